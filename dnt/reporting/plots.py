"""Plots a run: curves, telemetry and confusion matrices, as matplotlib Figures without pyplot's global state."""

import functools
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dnt.config import measures
from dnt.reporting import confusion as confusion_lib
from dnt.reporting import fonts, metric_names

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

FONT_SIZE = 14  # readable when the image is shown at half its size
COLORS = ('#1f77b4', '#d95f02', '#1b9e77', '#7570b3', '#e7298a', '#66a61e', '#a6761d')
ANNOTATED_CLASSES = 20  # with more classes, the numbers in the cells cannot be read
NAMED_CLASSES = 40
PLOTTED_CLASSES = 1000  # cells per side of the confusion matrix of many classes
LEGEND = 28  # characters of a line in a legend
MARKED = 40  # most values of a curve that has a mark at each


def styled(draw: Callable) -> Callable:
  """Sets the common font size of all plots for a function that draws."""

  @functools.wraps(draw)
  def inner(*args, **kwargs):
    import matplotlib

    with matplotlib.rc_context({'font.size': FONT_SIZE}):
      return draw(*args, **kwargs)

  return inner


@styled
def png(figure: 'Figure') -> bytes:
  """Returns the figure as a PNG file."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  canvas, buffer = FigureCanvasAgg(figure), io.BytesIO()

  def render():
    buffer.seek(0)
    buffer.truncate()
    canvas.print_png(buffer)

  fonts.draw(figure, render)
  return buffer.getvalue()


@styled
def curves(
  records: Sequence[Mapping[str, Any]], extras: Mapping[str, Sequence[str]] | None = None, ranking: str = 'accuracy'
) -> 'Figure':
  """Plots loss, accuracy and learning rate over the steps, for the training batches and each evaluated split.

  Args:
    records: lines of `metrics.jsonl`, at least one.
    extras: by metric, what it contains in training and not in an evaluation; the legend says so.
    ranking: the metric that ranks checkpoints; one that is neither loss nor accuracy has a panel of its own.
  """
  from matplotlib import ticker

  shown = list(dict.fromkeys(('loss', 'accuracy', ranking)))
  figure = new_figure(16 / 3 * (len(shown) + 1), 5)
  *panels, rate = figure.subplots(1, len(shown) + 1)
  splits = [metric_names.parse(name).split for record in records for name in record]
  names = list(dict.fromkeys(filter(None, splits)))
  colors = {name: COLORS[index % len(COLORS)] for index, name in enumerate(names)}
  training = [record for record in records if metric_names.is_training(record)]
  others = [record for record in records if not metric_names.is_training(record)]
  for axes, metric in zip(panels, shown, strict=True):
    for name, lines in ((name, lines) for name in names for lines in (training, others)):
      steps, values = _series(lines, f'{name}/{metric}')
      if len(steps):
        values = values * 100 if metric in measures.FRACTIONS else values
        evaluated = name == 'train' and lines is others
        more = (extras or {}).get(metric) if name == 'train' and not evaluated else None
        label = f'{name}, evaluated' if evaluated else f'{name} (with {", ".join(more)})' if more else name
        look = {'color': colors[name], 'linewidth': 1.8, 'linestyle': '--' if evaluated else '-'}
        axes.plot(steps, values, label=textwrap.fill(label, LEGEND), **look, **marks(len(steps)))
    if axes.lines:
      axes.legend(frameon=False)
  steps, values = _series(records, 'train/learning_rate')
  rate.plot(steps, values, color=colors.get('train', COLORS[0]), linewidth=1.8, **marks(len(steps)))
  rate.set_ylim(bottom=0)
  loss = panels[0]
  drawn = [line.get_ydata() for line in loss.lines]
  finite = np.concatenate(drawn)[np.isfinite(np.concatenate(drawn))] if drawn else np.ones(1)
  if finite.size and finite.min() > 0 and finite.max() > 20 * finite.min():
    loss.set_yscale('log')
  last = records[-1]
  per_epoch = last['step'] / last['epoch'] if last.get('epoch') else None
  titles = [f'{metric} (%)' if metric in measures.FRACTIONS else metric for metric in shown]
  for axes, title in zip((*panels, rate), (*titles, 'learning rate'), strict=True):
    axes.set_title(title.replace('_', ' ').replace('auroc', 'AUROC'), loc='left')
    axes.set_xlabel('step' + (f' ({per_epoch:,.0f} = 1 epoch)' if per_epoch else ''))
    tidy(axes)
    axes.set_xlim(0, last['step'] * 1.02 or 1)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=5, integer=True))
    axes.xaxis.set_major_formatter('{x:,.0f}')
  return figure


@styled
def telemetry(records: Sequence[Mapping[str, Any]], entries: Sequence[str]) -> 'Figure':
  """Plots heat maps, depth by step, of each quantity in the record.

  Args:
    records: lines of `metrics.jsonl`, with telemetry.
    entries: names in depth order.
  """
  lines = [(record['step'], {row.entry: row for row in metric_names.from_metrics(record)}) for record in records]
  lines = [(step, by_entry) for step, by_entry in lines if by_entry]
  # The last entry outputs the logits, not activations: leave out what only it has, unless no other entry has telemetry.
  inner = {name for _, by_entry in lines for name in by_entry} & {*entries[:-1]} or {*entries}
  rows_inside = [row for _, by_entry in lines for name, row in by_entry.items() if name in inner]
  shown = [name for name in metric_names.QUANTITIES if any(getattr(row, name) is not None for row in rows_inside)]
  rows = -(-len(shown) // 4)
  columns = -(-len(shown) // rows)
  figure = new_figure(6.2 * columns, rows * min(max(2.5 + 0.22 * len(entries), 4.5), 9))
  grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
  steps = [step for step, _ in lines]
  ticks = np.unique(np.linspace(0, len(entries) - 1, min(len(entries), 16)).round().astype(int))
  at = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 4)).round().astype(int))
  for axes, quantity in zip(grid.flat, shown, strict=False):
    title, scale, *_ = metric_names.QUANTITIES[quantity]
    values = [[getattr(by_entry.get(name), quantity, None) for _, by_entry in lines] for name in entries]
    values = np.array(values, float)  # None becomes NaN
    values = 100 * values if scale == 'percent' else values
    norm, colors, marks = _color_scale(values, scale)
    image = axes.imshow(values, aspect='auto', cmap=colors, norm=norm, interpolation='nearest')
    axes.set_facecolor('#dddddd')  # not defined, or zero on a log scale
    axes.set_title(title, loc='left')
    axes.set_xticks(at, [f'{steps[index]:,}' for index in at])
    axes.set_yticks(ticks, [entries[index] for index in ticks])
    axes.set_xlabel('step')
    bar = figure.colorbar(image, ax=axes, fraction=0.06, pad=0.02)
    bar.set_ticks(marks.tolist(), labels=[f'{mark:.3g}' for mark in marks])
    bar.minorticks_off()
    bar.outline.set_visible(False)
  for axes in list(grid.flat)[len(shown) :]:
    axes.remove()
  return figure


def _color_scale(values: np.ndarray, scale: str) -> tuple[Any, str, np.ndarray]:
  """Returns norm, color map and ticks of a heat map."""
  from matplotlib import colors

  finite = values[np.isfinite(values)]
  if scale == 'percent':
    return colors.Normalize(0, 100), 'viridis', np.linspace(0, 100, 6)
  if scale == 'signed':
    most = float(np.abs(finite).max(initial=0)) or 1.0
    return colors.Normalize(-most, most), 'RdBu_r', np.linspace(-most, most, 5)
  positive = finite[finite > 0]
  low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
  high = max(high, low * 1.1)
  return colors.LogNorm(low, high), 'viridis', np.geomspace(low, high, 5)


@styled
def confusion(matrix: Any, class_names: Sequence[str], title: str) -> 'Figure':
  """Plots the fraction of each true class by predicted class, with the counts if they can be read.

  Of more than `confusion.LISTED_CLASSES`, each cell is that of several neighboring classes.

  Args:
    matrix: int [classes, classes], true class by predicted; or as `confusion.to_json` returns it.
    class_names: in class order.
    title: above the plot.
  """
  from matplotlib import colors

  classes = len(class_names)
  together = -(-classes // PLOTTED_CLASSES) if classes > confusion_lib.LISTED_CLASSES else 1
  matrix = confusion_lib.blocks(matrix, classes, together) if together > 1 else np.asarray(matrix)
  side = min(max(4 + 0.6 * classes, 7), 18) if classes <= NAMED_CLASSES else 12
  figure = new_figure(side + 1.2, side)
  axes = figure.subplots()
  fractions = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  # Color by the square root of the fraction, so that a confusion of one in a hundred is visible.
  edges = (-0.5, len(matrix) * together - 0.5)
  norm = colors.PowerNorm(0.5, vmin=0, vmax=100)
  image = axes.imshow(fractions, cmap='Blues', norm=norm, extent=(*edges, *edges[::-1]))
  bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02)
  bar.set_label('fraction of the true class (%)' if together == 1 else f'fraction of {together} true classes (%)')
  bar.set_ticks([0, 1, 5, 10, 20, 40, 60, 80, 100])
  bar.outline.set_visible(False)
  axes.set_title(title, loc='left')
  axes.set_xlabel('predicted class')
  axes.set_ylabel('true class')
  axes.spines[:].set_visible(False)
  if classes <= NAMED_CLASSES:
    labels = [name if len(name) <= 20 else f'{name[:19]}…' for name in class_names]
    upright = max(map(len, labels)) <= 3
    rotation, anchor = (0, 'center') if upright else (45, 'right')
    axes.set_xticks(range(classes), labels, rotation=rotation, ha=anchor, parse_math=False)  # names may hold a $
    axes.set_yticks(range(classes), labels, parse_math=False)
  if classes <= ANNOTATED_CLASSES:
    for row, column in np.argwhere(matrix):
      color = 'white' if fractions[row, column] > 35 else 'black'
      axes.text(column, row, f'{matrix[row, column]:,}', ha='center', va='center', color=color, fontsize=FONT_SIZE - 2)
  return figure


def new_figure(width: float, height: float) -> 'Figure':
  """Returns an empty figure, in inches of 100 dots each, outside pyplot's global state."""
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), dpi=100, layout='constrained')


def tidy(axes: 'Axes') -> None:
  """Gives a plot a faint grid, and no line at its top and right."""
  axes.grid(alpha=0.3)
  axes.spines[['top', 'right']].set_visible(False)


def marks(count: int) -> dict[str, Any]:
  """Returns the arguments that mark each value of a curve with few values; one value alone has no line."""
  return {'marker': 'o', 'markersize': 5} if count <= MARKED else {}


def _series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns steps and values of the lines that hold `name`; a null becomes NaN, a gap in the plot."""
  result = [(record['step'], record[name]) for record in records if name in record]
  steps = np.array([step for step, _ in result])
  return steps, np.array([np.nan if value is None else value for _, value in result], float)
