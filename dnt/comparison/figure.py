"""The plot of a comparison: each variant's curves in a color and a line style of its own."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dnt import plots

if TYPE_CHECKING:
  from matplotlib.figure import Figure

STYLES = ('-', '--', ':', '-.')
WIDE = 20  # a range of this ratio is shown on a log scale


class Curve(NamedTuple):
  """One quantity of a run."""

  steps: Sequence[int]
  epochs: Sequence[float]
  values: Sequence[float]


class Drawn(NamedTuple):
  """The curves of one run, by title, and whether the run failed."""

  curves: Mapping[str, Curve]
  failed: bool


@plots.styled
def curves(variants: Mapping[str, Sequence[Drawn]]) -> 'Figure':
  """A panel a quantity: the mean of each variant over its seeds, the seeds as thin lines, a cross where a run failed.

  The horizontal axis is in steps, or in epochs when variants have different steps an epoch.

  Args:
    variants: the runs of each, one a seed.
  """
  drawn = [run for runs in variants.values() for run in runs]
  titles = list(dict.fromkeys(title for run in drawn for title in run.curves))
  epochs = _steps_differ(drawn)
  figure = plots.new_figure(6 * len(titles) + 3, 6)
  grid = figure.subplots(1, len(titles), squeeze=False)[0]
  looks = _looks(list(variants))
  for title, axes in zip(titles, grid, strict=True):
    for name, runs in variants.items():
      color, style = looks[name]
      found = [(run, run.curves[title]) for run in runs if title in run.curves and len(run.curves[title].steps)]
      for run, curve in found:
        x = curve.epochs if epochs else curve.steps
        if len(found) > 1:
          axes.plot(x, curve.values, color=color, linestyle=style, linewidth=0.8, alpha=0.4)
        if run.failed:
          axes.plot(x[-1:], curve.values[-1:], color=color, marker='x', markersize=10, markeredgewidth=2.5)
      x, mean = _mean([curve for _, curve in found], epochs)
      marker = 'o' if len(x) == 1 else None
      axes.plot(x, mean, color=color, linestyle=style, marker=marker, linewidth=2.2, label=name)
    _finish(axes, title, epochs)
  handles, labels = grid[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside right upper', frameon=False, handlelength=3)
  return figure


def _looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
  """Color and line style of each: names of a grid ('relu_he') have the style of what is before the first _."""
  parts = [name.partition('_')[::2] for name in names]
  styles, colors = (list(dict.fromkeys(column)) for column in zip(*parts, strict=True))
  if all(rest for _, rest in parts) and len(styles) <= len(STYLES) and len(colors) <= len(plots.COLORS):
    return {'_'.join(pair): (plots.COLORS[colors.index(pair[1])], STYLES[styles.index(pair[0])]) for pair in parts}
  looks = itertools.cycle((color, style) for style in STYLES for color in plots.COLORS)
  return dict(zip(names, looks, strict=False))


def _steps_differ(runs: Sequence[Drawn]) -> bool:
  ratios = [
    curve.steps[-1] / curve.epochs[-1]
    for run in runs
    for curve in run.curves.values()
    if len(curve.steps) and curve.epochs[-1]
  ]
  return bool(ratios) and max(ratios) > 1.01 * min(ratios)


def _mean(curves: Sequence[Curve], epochs: bool) -> tuple[np.ndarray, np.ndarray]:
  """At the steps that all of them have; with a run that failed early, as far as it came."""
  if not curves:
    return np.array([]), np.array([])
  steps = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
  values = [dict(zip(curve.steps, curve.values, strict=True)) for curve in curves]
  first = dict(zip(curves[0].steps, curves[0].epochs, strict=True))
  x = np.array([first[step] if epochs else step for step in steps])
  return x, np.array([np.mean([each[step] for each in values]) for step in steps])


def _finish(axes, title: str, epochs: bool) -> None:
  from matplotlib import ticker

  held = [np.asarray(line.get_ydata(), float) for line in axes.lines]
  values = np.concatenate(held) if held else np.array([])
  values = values[np.isfinite(values)]
  positive = values[values > 0]
  if positive.size and positive.max() > WIDE * positive.min():
    axes.set_yscale('log')
  elif values.size:
    axes.set_ylim(bottom=0)
  axes.set_title(title, loc='left')
  axes.set_xlabel('epoch' if epochs else 'step')
  axes.set_xlim(left=0)
  axes.grid(alpha=0.3)
  axes.spines[['top', 'right']].set_visible(False)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=5, integer=True))
  axes.xaxis.set_major_formatter('{x:,.0f}')
