"""Plots a comparison: one column per quantity, and one row per few variants, so that their colors can be told apart."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dnt.reporting import plots

if TYPE_CHECKING:
  from matplotlib.figure import Figure

WIDE = 20  # a range with a larger ratio is shown on a log scale


class Curve(NamedTuple):
  """Holds one quantity of a run."""

  steps: Sequence[int]
  epochs: Sequence[float]
  values: Sequence[float]


class Drawn(NamedTuple):
  """Holds the curves of one run, by title, and whether the run failed."""

  curves: Mapping[str, Curve]
  failed: bool


@plots.styled
def curves(variants: Mapping[str, Sequence[Drawn]]) -> 'Figure':
  """Plots the mean of each variant over its seeds, the seeds as thin lines, and a cross where a run failed.

  The panels of a quantity share their axes. The horizontal axis is in steps, or in epochs if variants differ in their
  steps per epoch.

  Args:
    variants: the runs of each variant, one per seed.
  """
  drawn = [run for runs in variants.values() for run in runs]
  titles = list(dict.fromkeys(title for run in drawn for title in run.curves))
  epochs, rows = _steps_differ(drawn), _rows(list(variants))
  figure = plots.new_figure(6 * len(titles) + 3, 6 if len(rows) == 1 else 4 * len(rows) + 0.5)
  grid = figure.subplots(len(rows), len(titles), squeeze=False, sharex='col', sharey='col')
  for row, looks in zip(grid, rows, strict=True):
    for title, axes in zip(titles, row, strict=True):
      for name, color in looks.items():
        _draw(axes, title, name, variants[name], color, epochs)
      plots.tidy(axes)
    row[-1].legend(loc='center left', bbox_to_anchor=(1.02, 0.5), frameon=False)
  for title, column in zip(titles, grid.T, strict=True):
    _scale(column)
    column[0].set_title(title, loc='left')
    column[-1].set_xlabel('epoch' if epochs else 'step')
  return figure


def _rows(names: Sequence[str]) -> list[dict[str, str]]:
  """Returns the color of each name, by row: a single row if there are enough colors.

  With more names, those of a grid ('relu_he') that agree before the first _ share a row, and those that agree after it
  share a color; other names fill the rows in their order.
  """
  most = len(plots.COLORS)
  parts = [name.partition('_')[::2] for name in names]
  rests = list(dict.fromkeys(rest for _, rest in parts))
  if len(names) > most and '' not in rests and len(rests) <= most:
    rows: dict[str, dict[str, str]] = {}
    for name, (first, rest) in zip(names, parts, strict=True):
      rows.setdefault(first, {})[name] = plots.COLORS[rests.index(rest)]
    return list(rows.values())
  return [dict(zip(names[at : at + most], plots.COLORS, strict=False)) for at in range(0, len(names), most)]


def _draw(axes: Any, title: str, name: str, runs: Sequence[Drawn], color: str, epochs: bool) -> None:
  result = [(run, run.curves[title]) for run in runs if title in run.curves and len(run.curves[title].steps)]
  for run, curve in result:
    x = curve.epochs if epochs else curve.steps
    if len(result) > 1:
      axes.plot(x, curve.values, color=color, linewidth=0.8, alpha=0.4)
    if run.failed:
      finite = [place for place in zip(x, curve.values, strict=True) if np.isfinite(place[1])]
      for place in finite[-1:]:  # a run that diverged ends with a value that is not finite
        axes.plot(*place, color=color, marker='x', markersize=10, markeredgewidth=2.5)
  x, mean = _mean([curve for _, curve in result], epochs)
  failed = sum(run.failed for run in runs)
  label = f'{name} ({failed} of {len(runs)} failed)' if failed else name
  axes.plot(x, mean, color=color, linewidth=2.2, label=label, **plots.marks(len(x)))


def _steps_differ(runs: Sequence[Drawn]) -> bool:
  ratios = [
    curve.steps[-1] / curve.epochs[-1]
    for run in runs
    for curve in run.curves.values()
    if len(curve.steps) and curve.epochs[-1]
  ]
  return bool(ratios) and max(ratios) > 1.01 * min(ratios)


def _mean(curves: Sequence[Curve], epochs: bool) -> tuple[np.ndarray, np.ndarray]:
  """Averages at the steps that all curves have; if a run failed early, up to its last step."""
  if not curves:
    return np.array([]), np.array([])
  steps = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
  values = [dict(zip(curve.steps, curve.values, strict=True)) for curve in curves]
  first = dict(zip(curves[0].steps, curves[0].epochs, strict=True))
  x = np.array([first[step] if epochs else step for step in steps])
  return x, np.array([np.mean([each[step] for each in values]) for step in steps])


def _scale(column: Sequence[Any]) -> None:
  """Sets limits and ticks of panels that share their axes."""
  from matplotlib import ticker

  axes = column[0]
  held = [np.asarray(line.get_ydata(), float) for each in column for line in each.lines]
  values = np.concatenate([np.zeros(0), *held])
  values = values[np.isfinite(values)]
  peaks = [each[np.isfinite(each)].max() for each in held if np.isfinite(each).any()]
  positive = values[values > 0]
  if positive.size and positive.max() > WIDE * positive.min():
    # The limit cuts off curves that explode far above the peaks of most curves.
    low, high = positive.min(), min(positive.max(), max(10 * np.median(peaks), 10 * positive.min()))
    axes.set_yscale('log')
    axes.set_ylim(low / 1.2, high * 1.2)
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axes.yaxis.set_major_formatter('{x:g}')
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
  elif values.size:
    axes.set_ylim(-0.03 * values.max(), 1.05 * values.max() or 1)  # a curve of zeros stays visible
  axes.set_xlim(left=0)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=5, integer=True))
  axes.xaxis.set_major_formatter('{x:,.0f}')
