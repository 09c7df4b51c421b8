"""A figure and a table of the rule that more and nearer data need fewer retrained layers, from finished comparisons.

  python -m dnt.compare --config=configs/compare_transfer_rule.py --only='*_head,*_top?'
  python -m benchmarks.transfer_rule runs/compare_transfer_rule [more workdirs of the same config]

It reads the results.json of each workdir, and writes transfer_rule.png and transfer_rule.md to the first.
"""

import collections
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app

from dnt import files
from dnt.comparison import results
from dnt.reporting import plots, tables

METRIC = 'accuracy'


def read(workdirs: Sequence[pathlib.Path]) -> list[dict[str, Any]]:
  """Returns the rows of the variants, as `results.summarize` does, that have finished runs."""
  rows = [row for workdir in workdirs for row in files.read_object(workdir / 'results.json')['variants']]
  for row in rows:
    row.setdefault('trained_on', [])  # files of older versions lack it
    for of in ('mean', 'std'):
      row[of] = {name: math.nan if value is None else value for name, value in row[of].items()}
  return [row for row in rows if row['finished']]


def cell(variant: str) -> list[str]:
  """Returns data set, images of a class and what trains, of a variant such as 'cars_5_top2'."""
  return variant.split('_')


@plots.styled
def figure(rows: Sequence[Mapping[str, Any]]) -> Any:
  """Plots mean accuracy and deviation over seeds against images of a class.

  A data set has a panel, and a choice of what trains (`head`, `top2`, ...) a line.
  """
  names, choices = ([*dict.fromkeys(cell(row['variant'])[place] for row in rows)] for place in (0, 2))
  result = plots.new_figure(6 * len(names) + 1, 5.5)
  for name, axes in zip(names, result.subplots(1, len(names), squeeze=False)[0], strict=True):
    here = [row for row in rows if cell(row['variant'])[0] == name]
    counts = list(dict.fromkeys(cell(row['variant'])[1] for row in here))
    metric = metric_of(here)
    for order, (choice, color) in enumerate(zip(choices, plots.COLORS, strict=False)):
      found = {cell(row['variant'])[1]: row for row in here if cell(row['variant'])[2] == choice}
      beside = 0.06 * (order - (len(choices) - 1) / 2)  # so that no deviation hides another
      places = [place + beside for place in range(len(counts))]
      line = [found.get(count, {'mean': {}, 'std': {}}) for count in counts]  # a cell without a finished run is a break
      means, spread = ([row[of].get(metric, math.nan) for row in line] for of in ('mean', 'std'))
      axes.errorbar(places, means, spread, label=choice, color=color, marker='o', linewidth=1.8, capsize=4)
    axes.set_xticks(range(len(counts)), counts)
    axes.set_xlabel('images of each class')
    axes.set_title(f'{name}: {metric.replace("_", " ")} (%)', loc='left')
    plots.tidy(axes)
  axes.legend(title='trains', loc='center left', bbox_to_anchor=(1.02, 0.5), frameon=False)
  return result


def metric_of(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the name of the accuracy of the rows of a data set: of the split that decides what is best."""
  return results.find_best(rows, METRIC)[0]['metric']


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
  """Formats what trains best in each cell, the second, and the margin beside the larger deviation over seeds."""
  lines = [['data', 'images of each class', 'best', 'accuracy (%)', 'second', 'accuracy (%)', 'margin', 'spread']]
  for found in results.find_best(rows, METRIC):
    name, count, _ = cell(found['ranked'][0]['variant'])
    ranked, first = [], found['ranked'][:2]
    for row in first:
      spread = '' if row['std'] is None else f' ± {row["std"]:.2f}'
      ranked += [cell(row['variant'])[2], f'{row["mean"]:.2f}{spread} ({row["finished"]})']
    spreads = [row['std'] for row in first if row['std'] is not None]
    margin = '-' if found['margin'] is None else f'{found["margin"]:.2f}'
    ranked += ['-'] * (4 - len(ranked))
    lines.append([name, count, *ranked, margin, f'{max(spreads):.2f}' if spreads else 'one seed'])
  notes = 'Mean ± sample standard deviation (finished runs); spread: the larger deviation of the two.'
  return f'{tables.markdown(lines)}\n\n{notes}\n'


def main(arguments):
  workdirs = [pathlib.Path(argument) for argument in arguments[1:]]
  rows = read(workdirs)
  if not rows:
    raise app.UsageError('these workdirs have no finished runs')
  if several := [name for name, count in collections.Counter(row['variant'] for row in rows).items() if count > 1]:
    raise app.UsageError(f'{several[0]} has finished runs in several workdirs; all seeds of a variant must be in one')
  files.write(workdirs[0] / 'transfer_rule.png', plots.png(figure(rows)))
  files.write(workdirs[0] / 'transfer_rule.md', markdown(rows))
  print(markdown(rows), end='')


if __name__ == '__main__':
  if len(sys.argv) < 2:
    sys.exit('give the workdirs of comparisons of configs/compare_transfer_rule.py')
  app.run(main)
