import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dnt.reporting import plots


def test_curves_show_what_the_record_holds(records):
  figure = plots.curves(records)
  loss, accuracy, rate = figure.axes
  for axes in (loss, accuracy):
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ['train', 'test', 'test_ema']
  train, test, ema = loss.lines
  np.testing.assert_array_equal(train.get_xdata(), np.arange(50, 1001, 50))
  np.testing.assert_allclose(train.get_ydata(), 2 / np.arange(50, 1001, 50))
  np.testing.assert_array_equal(test.get_ydata(), [0.5, np.nan, 0.5, 0.5, 0.5])
  np.testing.assert_allclose(accuracy.lines[2].get_ydata(), 91)
  assert len(rate.lines[0].get_xdata()) == 20
  assert loss.get_yscale() == 'log'
  assert [axes.get_title(loc='left') for axes in figure.axes] == ['loss', 'accuracy (%)', 'learning rate']
  assert all(axes.get_xlabel() == 'step (100 = 1 epoch)' for axes in figure.axes)
  assert Image.open(io.BytesIO(plots.png(figure))).size == (1600, 500)


@pytest.mark.parametrize(
  ('ranking', 'title', 'scale'), [('auroc', 'AUROC', 1), ('balanced_accuracy', 'balanced accuracy (%)', 100)]
)
def test_a_metric_that_ranks_has_a_panel(records, ranking, title, scale):
  records.append({'step': 1000, 'epoch': 10.0, f'test/{ranking}': 0.75})
  axes = plots.curves(records, ranking=ranking).axes
  assert [each.get_title(loc='left') for each in axes] == ['loss', 'accuracy (%)', title, 'learning rate']
  ((drawn,), (step,)) = (axes[2].lines, axes[2].lines[0].get_xdata())
  assert (step, *drawn.get_ydata()) == (1000, 0.75 * scale)


def test_the_legend_says_what_training_has_and_an_evaluation_has_not(records):
  figure = plots.curves(records, {'loss': ['augmentation', 'label smoothing'], 'accuracy': ['augmentation']})
  loss, accuracy = ([text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes[:2])
  assert 'label smoothing' in loss[0].replace('\n', ' ') and 'augmentation' in loss[0]
  assert accuracy == ['train (with augmentation)', 'test', 'test_ema']
  assert loss[1:] == ['test', 'test_ema']


def test_a_curve_of_few_values_has_a_mark_at_each():
  line = {'epoch': 0.1, 'train/loss': 1.0, 'train/learning_rate': 0.1, 'test/loss': 2.0}
  for count, marked in ((1, True), (3, True), (200, False)):
    loss, _, rate = plots.curves([{'step': step + 1} | line for step in range(count)]).axes
    assert {drawn.get_marker() != 'None' for drawn in (*loss.lines, *rate.lines)} == {marked}


def test_an_evaluation_of_the_training_split_is_a_curve_of_its_own(records):
  evaluated = [{'step': step, 'epoch': step / 100, 'train/loss': 0.1, 'train/accuracy': 0.5} for step in (200, 400)]
  figure = plots.curves([*records, *evaluated])
  for axes, value in zip(figure.axes, (0.1, 50.0), strict=False):
    shown = {line.get_label(): line for line in axes.lines}
    assert list(shown) == ['train', 'train, evaluated', 'test', 'test_ema']
    assert len(shown['train'].get_xdata()) == 20
    np.testing.assert_array_equal(shown['train, evaluated'].get_xdata(), [200, 400])
    np.testing.assert_allclose(shown['train, evaluated'].get_ydata(), value)


def test_curves_of_hardly_anything():
  """Of a first loss that is not finite, and of an evaluation before the first step."""
  lost = plots.curves([{'step': 1, 'epoch': 0.1, 'train/loss': None, 'train/learning_rate': 0.1}])
  before = plots.curves([{'step': 0, 'epoch': 0.0, 'test/loss': 2.0, 'test/accuracy': 0.1}])
  for figure, shown, label in (
    (lost, ([(1, np.nan)], [], [(1, 0.1)]), 'step (10 = 1 epoch)'),
    (before, ([(0, 2.0)], [(0, 10.0)], []), 'step'),
  ):
    for axes, points in zip(figure.axes, shown, strict=True):
      drawn = np.reshape([line.get_xydata() for line in axes.lines], (-1, 2))
      np.testing.assert_allclose(drawn, np.reshape(points, (-1, 2)))
      assert (axes.get_xlabel(), axes.get_yscale()) == (label, 'linear')
    assert Image.open(io.BytesIO(plots.png(figure))).size == (1600, 500)


def watched(step, **quantities):
  """A line of telemetry: a figure an entry and quantity, None where there is none."""
  names = ('stem', 'block', 'head')
  figures = {
    f'telemetry/{name}/{quantity}': value
    for quantity, values in quantities.items()
    for name, value in zip(names, values, strict=True)
  }
  return {'step': step, 'epoch': 0.1, **figures}


def test_telemetry_is_a_heat_map_of_depth_by_step():
  lines = [
    watched(100, gradient_norm=(1.0, 0.1, 0.01), activation_mean=(-2.0, 0.0, 1.0), dead=(0.5, 0.0, 0.0)),
    {'step': 150, 'train/loss': 1.0},
    watched(200, gradient_norm=(None, 0.0, 10.0), activation_mean=(-1.0, 0.0, 1.0), dead=(1.0, 0.0, 0.0)),
  ]
  figure = plots.telemetry(lines, ('stem', 'block', 'head'))
  panels = {axes.get_title(loc='left'): axes for axes in figure.axes if axes.images}
  for title, word in zip(panels, ('gradient norm', 'mean', 'dead units (%)'), strict=True):
    assert word in title
  gradient, mean, dead = (axes.images[0] for axes in panels.values())
  np.testing.assert_array_equal(gradient.get_array(), [[1.0, np.nan], [0.1, 0.0], [0.01, 10.0]])
  np.testing.assert_array_equal(dead.get_array(), [[50, 100], [0, 0], [0, 0]])
  assert [(image.norm.vmin, image.norm.vmax) for image in (gradient, mean, dead)] == [(0.01, 10), (-2, 2), (0, 100)]
  for axes in panels.values():
    assert axes.get_xlabel() == 'step'
    assert [label.get_text() for label in axes.get_xticklabels()] == ['100', '200']
    assert [label.get_text() for label in list(panels.values())[0].get_yticklabels()] == ['stem', 'block', 'head']
  bars = [axes for axes in figure.axes if not axes.images]
  shown = [[label.get_text() for label in axes.get_yticklabels()] for axes in bars]
  assert shown[0][0] == '0.01' and shown[0][-1] == '10'
  assert shown[1] == ['-2', '-1', '0', '1', '2']
  assert shown[2] == ['0', '20', '40', '60', '80', '100']
  plots.png(figure)


def test_telemetry_of_the_logits_alone_is_no_image():
  lines = [watched(1, zero=(None, None, 0.0), saturated=(0.5, 0.5, None), gradient_norm=(None, None, None))]
  del lines[0]['telemetry/stem/zero'], lines[0]['telemetry/block/zero'], lines[0]['telemetry/head/saturated']
  figure = plots.telemetry(lines, ('stem', 'block', 'head'))
  titles = [axes.get_title(loc='left') for axes in figure.axes if axes.images]
  assert len(titles) == 2 and 'gradient norm' in titles[0] and 'saturated activations (%)' in titles[1]
  plots.png(figure)
  plots.png(plots.telemetry([{'step': 1, 'telemetry/w/gradient_norm': 0.0}], ('w',)))


def test_confusion_matrix():
  matrix = [[8, 2, 0], [0, 0, 0], [1, 1, 998]]
  figure = plots.confusion(matrix, ['cat', 'a very long name of a class', 'x'], 'val')
  axes = figure.axes[0]
  np.testing.assert_allclose(axes.images[0].get_array(), [[80, 20, 0], [0, 0, 0], [0.1, 0.1, 99.8]])
  texts = {text.get_position(): text.get_text() for text in axes.texts}
  assert texts == {(0, 0): '8', (1, 0): '2', (0, 2): '1', (1, 2): '1', (2, 2): '998'}  # (predicted, true)
  names = [label.get_text() for label in axes.get_yticklabels()]
  assert names == ['cat', 'a very long name of…', 'x']
  many = plots.confusion(np.eye(100, dtype=int), [str(i) for i in range(100)], 'test')
  assert not many.axes[0].texts
  plots.png(many)


def test_the_confusion_matrix_of_many_classes_adds_neighbors():
  names = [str(i) for i in range(2500)]
  matrix = {'true': [0, 2, 3, 2499], 'predicted': [1, 2, 2497, 2499], 'count': [1, 1, 3, 5]}
  axes = plots.confusion(matrix, names, 'test').axes[0]
  shown = axes.images[0].get_array()
  assert shown.shape == (834, 834)  # of three classes each
  assert [(*place, shown[*place]) for place in np.argwhere(shown).tolist()] == [
    (0, 0, 100.0),
    (1, 832, 100.0),
    (833, 833, 100.0),
  ]
  assert axes.images[0].get_extent() == [-0.5, 2501.5, 2501.5, -0.5]


def test_drawing_leaves_no_global_state():
  code = (
    'import sys; from dnt.reporting import plots; import matplotlib; before = matplotlib.rcParams["font.size"];'
    'plots.png(plots.curves([{"step": 1, "epoch": 1.0, "train/loss": 1.0}]));'
    'assert matplotlib.rcParams["font.size"] == before and "matplotlib.pyplot" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
