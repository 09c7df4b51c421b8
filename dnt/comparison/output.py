"""Writes the results of a comparison to its workdir, in one table, one plot and one page.

The files are `results.md`, `results.csv`, `results.json`, `curves.png` and `report.html`.
"""

import csv
import io
import math
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dnt import files
from dnt import workdir as workdir_lib
from dnt.comparison import figure, quantities, reading, results
from dnt.config import keys, typed
from dnt.reporting import html, plots, progress, tables

MOST_CLASSES = 20  # largest number of classes whose sensitivity and specificity are shown


class About(NamedTuple):
  """Holds what a reader must know about a comparison, besides its runs."""

  config: typed.Comparison
  name: str
  form: str
  command: str


class Table(NamedTuple):
  """Holds a table of formatted cells."""

  header: list[str]
  cells: list[list[str]]


def write(outcomes: Sequence[reading.Outcome], about: About, workdir: pathlib.Path) -> None:
  """Writes the table, the plot and the page.

  Args:
    outcomes: of all runs of the comparison.
    about: the comparison.
    workdir: of the comparison.
  """
  rows = results.summarize(outcomes)
  whole = table(rows, about.config.columns)
  classes = class_tables(rows)
  variants = results.by_variant(outcomes)
  drawn = {
    name: [figure.Drawn(each.curves, each.state == 'failed') for each in group] for name, group in variants.items()
  }
  image = plots.png(figure.curves(drawn))
  best = results.find_best(rows, about.config.columns[0])
  facts = describe_best(best) | _facts(outcomes, about)
  files.write(workdir / workdir_lib.RESULTS_TABLES, markdown(whole, facts, classes))
  files.write(workdir / workdir_lib.RESULTS_CSV, comma_separated(rows))
  runs = [_as_json(outcome, workdir) for outcome in outcomes]
  files.write_json(workdir / workdir_lib.RESULTS, {'comparison': facts, 'best': best, 'variants': rows, 'runs': runs})
  files.write(workdir / workdir_lib.CURVES, image)
  files.write(workdir / workdir_lib.REPORT, _page(outcomes, about, facts, whole, classes, image))


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
  """Returns the table of the variants; the data column is present only if variants differ in their data.

  Args:
    rows: from `results.summarize`.
    columns: metrics to show, in order, of `config.columns`; the table leaves out those that no run has.
  """
  known = dict.fromkeys(name for row in rows for name in row['mean'])
  names = [name for column in columns for name in known if quantities.kind(name) == column]
  differ = len({row['data'] for row in rows}) > 1
  cells = []
  for row in rows:
    shown = [_cell(name, row['mean'].get(name), row['std'].get(name)) for name in names]
    notes = [f'{kind} {count}/{row["finished"]}' for kind, count in row['warnings'].items()]
    about = [row['variant'], row['data']] if differ else [row['variant']]
    cells.append([*about, f'{row["finished"]}/{row["runs"]}', *shown, '; '.join([*notes, *row['problems']])])
  return Table(['variant', *(['data'] if differ else []), 'runs', *map(quantities.title, names), 'remarks'], cells)


def class_tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, Table]:
  """Returns tables of sensitivity and specificity in percent by title: one row per class, one column per variant.

  Only a split of at most 20 classes has one.

  Args:
    rows: from `results.summarize`.
  """
  tables = {}
  for split in dict.fromkeys(split for row in rows for split in row['per_class']):
    result = {row['variant']: row['per_class'][split] for row in rows if split in row['per_class']}
    names = dict.fromkeys(name for classes in result.values() for name in classes)
    if len(names) <= MOST_CLASSES:
      cells = [[name, *(_class_cell(classes.get(name, {})) for classes in result.values())] for name in names]
      tables[f'sensitivity / specificity (%), {split}'] = Table(['class', *result], cells)
  return tables


def markdown(whole: Table, facts: Mapping[str, str], classes: Mapping[str, Table]) -> str:
  """Formats the table, the facts about the comparison and `class_tables` as Markdown."""
  lines = [tables.markdown([whole.header, *whole.cells]), '', *(f'- {name}: {value}' for name, value in facts.items())]
  for title, each in classes.items():
    lines += ['', f'{title[0].upper()}{title[1:]}:', '', tables.markdown([each.header, *each.cells])]
  return '\n'.join(lines) + '\n'


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
  """Formats `results.summarize` as CSV: mean and standard deviation of each quantity, a row per variant."""
  names = dict.fromkeys(name for row in rows for name in row['mean'])
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  columns = [f'{name}_{kind}' for name in names for kind in ('mean', 'std')]
  writer.writerow(['variant', 'data', 'runs', 'finished', *columns, 'warnings', 'problems'])
  for row in rows:
    numbers = [row[kind].get(name, '') for name in names for kind in ('mean', 'std')]
    warnings = '; '.join(f'{kind} {count}' for kind, count in row['warnings'].items())
    about = [row[key] for key in ('variant', 'data', 'runs', 'finished')]
    writer.writerow([*about, *numbers, warnings, '; '.join(row['problems'])])
  return file.getvalue()


def describe_best(found: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Says in words what `results.find_best` found: what is best, by title; the title names the data if they differ.

  Variants tie whose means read the same.
  """
  lines = {}
  for each in found:
    name, margin = each['metric'], each['margin']
    first, *others = (_ranked(row, name) for row in each['ranked'][:2])
    shown = [_cell(name, row['mean'], None) for row in each['ranked']]
    *tied, last = [row['variant'] for row, value in zip(each['ranked'], shown, strict=True) if value == shown[0]]
    if margin is None:
      text = f'{first}; there is no other variant with a result'
    elif tied:
      text = f'tie of {", ".join(tied)} and {last} at {shown[0]}'
    else:
      spreads = [row['std'] for row in each['ranked'][:2] if row['std'] is not None]
      if not spreads:
        note = ', one run each: no spread'
      else:
        note = ', within a standard deviation over the seeds' if margin <= max(spreads) else ''
      text = f'{first}, {_cell(name, margin, None)} better than {others[0]}{note}'
    missing = f'; {each["finished"]} of {each["runs"]} runs have finished' if each['finished'] < each['runs'] else ''
    place = f' on {each["data"]}' if len(found) > 1 else ''
    lines[f'best {quantities.title(name)}{place}'] = text + missing
  return lines


def _ranked(row: Mapping[str, Any], metric: str) -> str:
  other = '' if row['metric'] == metric else f', {quantities.title(row["metric"])}'
  return f'{row["variant"]} {_cell(metric, row["mean"], row["std"])} ({_runs(row["finished"])}{other})'


def _class_cell(numbers: Mapping[str, float]) -> str:
  shown = [f'{100 * numbers[name]:.1f}' if name in numbers else '-' for name in ('sensitivity', 'specificity')]
  return ' / '.join(shown)


def _cell(name: str, mean: float | None, std: float | None) -> str:
  if mean is None:
    return '-'
  if not math.isfinite(mean):
    return 'not finite'
  number, unit = (lambda value: f'{value:.{2 if quantities.kind(name) in quantities.PERCENT else 4}f}'), ''
  if name == 'seconds':
    number = progress.format_duration
  elif name in ('images_per_second', 'parameters', 'trainable_parameters'):
    number = '{:,.0f}'.format
  elif name.endswith('_memory'):
    number, unit = lambda value: f'{value / 2**20:,.0f}', ' MiB'
  spread = f' ± {number(std)}' if std is not None and not name.endswith('parameters') else ''
  return number(mean) + spread + unit


def _runs(count: int) -> str:
  return '1 run' if count == 1 else f'{count} runs'


def _facts(outcomes: Sequence[reading.Outcome], about: About) -> dict[str, str]:
  known = [outcome.about for outcome in outcomes if outcome.state == 'finished']
  about_all = {key: dict.fromkeys(each[key] for each in known) for key in ('devices', 'versions')}
  counts = Counter(outcome.state for outcome in outcomes)
  return {
    'comparison': about.name,
    'form': about.form or 'full',
    'command': about.command,
    'runs': ', '.join(f'{count} {state}' for state, count in counts.items()),
    'seeds': ', '.join(str(seed) for seed in dict.fromkeys(outcome.run.seed for outcome in outcomes)),
    'data': ', '.join(dict.fromkeys(results.source_of(outcome.run.config.data) for outcome in outcomes)),
    'figures': 'mean ± sample standard deviation over the finished runs',
    'figures of splits': (
      'from the last evaluation, over the whole split; AUROC: mean over the classes of one class against the rest; '
      'calibration error: expected calibration error with 15 bins'
    ),
    'time': 'the whole run, with start-up, compilation and evaluation; images/s: during training',
    'peak memory': (
      'largest resident set of the run, including compilation, which runs with cached programs skip; '
      'device memory: as the device reports it'
    ),
    **{key: '; '.join(each) for key, each in about_all.items() if each},
  }


def _as_json(outcome: reading.Outcome, workdir: pathlib.Path) -> dict[str, Any]:
  return {
    'variant': outcome.run.variant,
    'seed': outcome.run.seed,
    'workdir': str(outcome.run.workdir.relative_to(workdir)),
    'state': outcome.state,
    'error': outcome.error,
    'step': outcome.step,
    **outcome.values,
    'warnings': outcome.warnings,
  }


def _page(
  outcomes: Sequence[reading.Outcome],
  about: About,
  facts: Mapping[str, str],
  whole: Table,
  classes: Mapping[str, Table],
  image: bytes,
) -> str:
  def listed(changes):
    return ', '.join(f'{key} = {value!r}' for key, value in changes.items()) or 'nothing'

  config = {
    key: 'not set' if value is None else str(value) for key, value in keys.flatten(about.config.base.to_dict()).items()
  }
  form = {f'form {about.form}': listed(about.config.forms[about.form])} if about.form else {}
  parts = [
    html.table(*whole),
    html.heading('curves'),
    html.image('curves', image),
  ]
  for title, each in classes.items():
    parts += [html.heading(title), html.table(*each)]
  parts += [
    html.heading('variants'),
    html.facts(form | {name: listed(changes) for name, changes in about.config.variants.items()}),
  ]
  failures = [(outcome.run.name, outcome.error) for outcome in outcomes if outcome.state == 'failed']
  if failures:
    parts += [html.heading('failed runs'), html.table(('run', 'why'), failures)]
  if warnings := _warnings(outcomes):
    columns = ('variant', 'seeds', 'first at', 'warning')
    parts += [html.heading('warnings'), html.table(columns, warnings)]
  parts += [
    html.heading('comparison'),
    html.facts(facts),
    html.heading('base config'),
    html.facts(config),
  ]
  return html.page(about.name, parts)


def _warnings(outcomes: Sequence[reading.Outcome]) -> list[tuple[str, str, str, str]]:
  """Lists the telemetry warnings of each variant by kind: the seeds, the earliest step and its message."""
  lines = []
  for variant, group in results.by_variant(outcomes).items():
    for kind in dict.fromkeys(kind for outcome in group for kind in outcome.warnings):
      warned = [outcome for outcome in group if kind in outcome.warnings]
      first = min((outcome.warnings[kind] for outcome in warned), key=lambda warning: warning['step'])
      seeds = ', '.join(str(outcome.run.seed) for outcome in warned)
      lines.append((variant, seeds, f'step {first["step"]:,}', first['text']))
  return lines
