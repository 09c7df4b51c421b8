import numpy as np
import pytest

from dnt import plots
from dnt.comparison import figure


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


def test_a_failed_run_ends_with_a_cross():
  axes, means = panel({'a': [drawn([1, 2, 3]), drawn([2, 4], failed=True)]})
  (cross,) = (line for line in axes.lines if line.get_marker() == 'x')
  assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (20, 4)
  np.testing.assert_allclose(means['a'].get_xdata(), [10, 20])


def test_epochs_where_steps_an_epoch_differ():
  axes, means = panel({'a': [drawn([1, 2, 3])], 'b': [drawn([1, 2, 3], per_epoch=5)]})
  assert axes.get_xlabel() == 'epoch'
  np.testing.assert_allclose(means['b'].get_xdata(), [2, 4, 6])


@pytest.mark.parametrize(('values', 'scale'), [([1.0, 2, 3], 'linear'), ([1e-3, 1, 1], 'log'), ([0, 50, 90], 'linear')])
def test_a_wide_range_has_a_log_scale(values, scale):
  axes, _ = panel({'a': [drawn(values)]})
  assert axes.get_yscale() == scale


def test_variants_of_a_grid_share_colors_and_styles():
  names = [f'{activation}_{start}' for activation in ('relu', 'tanh') for start in ('he', 'glorot')]
  _, lines = panel({name: [drawn([1, 2])] for name in names})
  assert lines['relu_he'].get_color() == lines['tanh_he'].get_color() != lines['relu_glorot'].get_color()
  assert lines['relu_he'].get_linestyle() == lines['relu_glorot'].get_linestyle() != lines['tanh_he'].get_linestyle()
  many = {f'v{index}': [drawn([1, 2])] for index in range(20)}
  _, lines = panel(many)
  assert len({(line.get_color(), line.get_linestyle()) for line in lines.values()}) == 20


def test_nothing_to_draw():
  assert plots.png(figure.curves({'a': [drawn([])], 'b': []})).startswith(b'\x89PNG')
