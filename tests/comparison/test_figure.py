import numpy as np
import pytest

from dnt.comparison import figure
from dnt.reporting import plots


def drawn(values, steps=(10, 20, 30), per_epoch=10, failed=False):
  curve = figure.Curve(steps[: len(values)], [step / per_epoch for step in steps[: len(values)]], values)
  return figure.Drawn({'training loss': curve}, failed)


def panel(variants):
  (axes,) = (axes for axes in figure.curves(variants).axes)
  return axes, {line.get_label(): line for line in axes.lines if not line.get_label().startswith('_')}


def test_the_mean_over_seeds_and_each_seed():
  axes, means = panel({'a': [drawn([1, 2, 3]), drawn([3, 4, 8])], 'b': [drawn([1, 1, 1])]})
  np.testing.assert_allclose(means['a'].get_ydata(), [2, 3, 5.5])
  np.testing.assert_allclose(means['a'].get_xdata(), [10, 20, 30])
  assert len(axes.lines) == 2 + 1 + 1
  assert axes.get_xlabel() == 'step'
  assert means['a'].get_color() != means['b'].get_color()


@pytest.mark.parametrize('values', [[2, 4], [2, 4, np.nan]])
def test_a_failed_run_ends_with_a_cross_at_its_last_finite_value(values):
  axes, means = panel({'a': [drawn([1, 2, 3]), drawn(values, failed=True)]})
  (cross,) = (line for line in axes.lines if line.get_marker() == 'x')
  assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (20, 4)
  np.testing.assert_allclose(means['a (1 of 2 failed)'].get_xdata(), [10, 20, 30][: len(values)])


def test_epochs_where_steps_an_epoch_differ():
  axes, means = panel({'a': [drawn([1, 2, 3])], 'b': [drawn([1, 2, 3], per_epoch=5)]})
  assert axes.get_xlabel() == 'epoch'
  np.testing.assert_allclose(means['b'].get_xdata(), [2, 4, 6])


@pytest.mark.parametrize(('values', 'scale'), [([1.0, 2, 3], 'linear'), ([1e-3, 1, 1], 'log'), ([0, 50, 90], 'linear')])
def test_a_wide_range_has_a_log_scale(values, scale):
  axes, _ = panel({'a': [drawn(values)]})
  assert axes.get_yscale() == scale


def rows_of(names):
  """(name, color) of each line by row, read off the first column."""
  shown = figure.curves({name: [drawn([1, 2])] for name in names})
  for axes in shown.axes:
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [line.get_label() for line in axes.lines]
  return [[(line.get_label(), line.get_color()) for line in axes.lines] for axes in shown.axes]


def test_colors_tell_up_to_seven_variants_in_one_row():
  (row,) = rows_of([f'relu_{index}' for index in range(7)])
  assert len(dict(row)) == len(set(dict(row).values())) == 7


def test_a_grid_of_more_has_a_row_for_each_first_part_and_a_color_for_each_second():
  rows = rows_of([f'{first}_{rest}' for first in ('relu', 'tanh') for rest in ('a', 'b_c', 'd', 'e')])
  assert [[name for name, _ in row] for row in rows] == [
    ['relu_a', 'relu_b_c', 'relu_d', 'relu_e'],
    ['tanh_a', 'tanh_b_c', 'tanh_d', 'tanh_e'],
  ]
  assert [color for _, color in rows[0]] == [color for _, color in rows[1]]
  assert len({color for _, color in rows[0]}) == 4


@pytest.mark.parametrize('name', ['v{}', 'v_{}', 'v{}_x{}'])
def test_many_others_come_in_rows_as_they_stand(name):
  names = [name.format(index, index) for index in range(16)]
  rows = rows_of(names)
  assert [len(row) for row in rows] == [7, 7, 2]
  assert [name for row in rows for name, _ in row] == names


def test_panels_of_a_quantity_share_their_axes():
  values = {f'{first}_{rest}': (first, rest) for first in range(3) for rest in range(3)}
  shown = figure.curves({name: [drawn([1, 1 + 4 * first])] for name, (first, _) in values.items()})
  assert len(shown.axes) == 3
  assert len({axes.get_ylim() for axes in shown.axes}) == 1
  assert shown.axes[0].get_ylim()[0] < 0 < 9 < shown.axes[0].get_ylim()[1]


def test_what_explodes_does_not_flatten_the_others():
  axes, _ = panel({'a': [drawn([1.0, 0.5, 0.2])], 'b': [drawn([1.0, 0.4, 0.1])], 'c': [drawn([1.0, 1e20])]})
  low, high = axes.get_ylim()
  assert low < 0.1 and 1 < high < 20


def test_the_start_of_a_curve_that_falls_far_stays_in_the_image():
  axes, _ = panel({'a': [drawn([2.0, *[1e-4] * 20], range(10, 220, 10))], 'b': [drawn([1.0, 1e-3, 1e-3])]})
  low, high = axes.get_ylim()
  assert low < 1e-4 and 2 < high < 4


def test_failures_are_counted_even_where_nothing_was_recorded():
  axes, means = panel({'a': [drawn([1, 2])], 'b': [drawn([], failed=True), drawn([], failed=True)]})
  assert list(means) == ['a', 'b (2 of 2 failed)']


def test_nothing_to_draw():
  assert plots.png(figure.curves({'a': [drawn([])], 'b': []})).startswith(b'\x89PNG')
