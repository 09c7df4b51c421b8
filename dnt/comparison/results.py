"""Collects the results of a comparison from the records of its runs, in one table, one plot and one page.

It writes to the comparison's workdir: `results.md`, `results.csv`, `results.json`, `curves.png`, `report.html`.
"""

import csv
import io
import math
import pathlib
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dnt import config as schema
from dnt import files
from dnt import workdir as workdir_lib
from dnt.comparison import figure, plan
from dnt.config import keys, typed
from dnt.data import class_order, splits
from dnt.reporting import html, metric_names, metrics, plots, progress, tables

MOST_CLASSES = 20  # largest number of classes whose sensitivity and specificity are shown
_TITLES = {
  'auroc': 'AUROC',
  'seconds': 'time',
  'images_per_second': 'images/s',
  'process_memory': 'peak memory',
  'device_memory': 'peak device memory',
}
_PERCENT = ('error', 'accuracy', 'top5_accuracy')
_MORE_IS_BETTER = ('accuracy', 'top5_accuracy', 'auroc', 'images_per_second')


class Outcome(NamedTuple):
  """Holds the result of one run.

  Attributes:
    run: the run.
    state: finished, failed, stopped (it can continue) or not run.
    error: the reason why it failed.
    step: the last step in its metrics.
    values: metrics by name: `<split>_<metric>` for `config.SPLIT_METRICS` of the last evaluation (error and accuracies
      in percent; the training split is called train, unless `train` is evaluated too), and `config.RUN_METRICS` (memory
      in peak bytes).
    per_class: metrics of each class in the last evaluation, by split and class name: `sensitivity`, `specificity` and
      `auroc`, if they are defined.
    warnings: warnings of telemetry, by kind.
    curves: (steps, epochs, values) by title.
    about: devices and versions.
  """

  run: plan.Run
  state: str
  error: str
  step: int
  values: dict[str, float]
  per_class: dict[str, dict[str, dict[str, float]]]
  warnings: dict[str, Any]
  curves: dict[str, figure.Curve]
  about: dict[str, str]


class About(NamedTuple):
  """Holds what a reader must know about a comparison, besides its runs."""

  config: typed.Comparison
  name: str
  form: str
  command: str


def read(run: plan.Run) -> Outcome:
  """Reads the results of a run from its workdir."""
  records, summary = metrics.read(run.workdir), plan.summary(run) or {}
  failure = run.workdir / workdir_lib.FAILURE
  error = str(files.read_object(failure).get('error', 'unknown')) if failure.exists() else ''
  step = records[-1]['step'] if records else 0
  if summary.get('finished'):
    state = 'finished'
  else:
    state = 'failed' if error else 'stopped' if records else 'not run'
  evaluations, last = metrics.evaluations(records), metrics.last_evaluation(records)
  values: dict[str, float | None] = {**_evaluated(run, last)}
  if state == 'finished':
    values |= {
      'seconds': summary['seconds']['total'],
      'images_per_second': summary['images_per_second'],
      'parameters': summary['parameters'],
      'trainable_parameters': summary.get('trainable_parameters'),
      'process_memory': summary['peak_memory']['process'],
      'device_memory': summary['peak_memory']['device'],
    }
  curves = {'training loss': _curve([line for line in records if metric_names.is_training(line)], 'train/loss')}
  for name in {name: None for line in evaluations for name in _evaluated(run, line) if _figure(name) == 'error'}:
    curves[_title(name)] = _curve([{**line, **_evaluated(run, line)} for line in evaluations], name)
  about = {
    key: ', '.join(f'{name} {value}' for name, value in summary.get(key, {}).items()) for key in ('devices', 'versions')
  }
  known = {name: value for name, value in values.items() if value is not None}
  per_class = _per_class(run, last['step']) if state == 'finished' and last else {}
  return Outcome(run, state, error, step, known, per_class, summary.get('warnings', {}), curves, about)


def summarize(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
  """Returns one row per variant, in the order of the variants.

  Returns:
    `variant`, `data` (source, its folder if `data.dir` names one, training split and, if limited, images of each
    class), `runs`, `finished`, and over the finished runs: `trained_on` (the evaluated splits, as in `Outcome`, that
    share images with the training split), `mean`, `std` (sample; absent for a single run) by quantity, both NaN if it
    is not finite in a run, `per_class` (means, as in `Outcome`) and `warnings` (the number of runs with each kind);
    `problems`: why the other runs are not finished.
  """
  rows = []
  for variant, group in _by_variant(outcomes).items():
    done = [outcome for outcome in group if outcome.state == 'finished']
    names = dict.fromkeys(name for outcome in done for name in outcome.values)
    columns = {name: [outcome.values[name] for outcome in done if name in outcome.values] for name in names}
    rows.append(
      {
        'variant': variant,
        'data': _data(group[0].run.config.data),
        'trained_on': _trained_on(done[0].run) if done else [],
        'runs': len(group),
        'finished': len(done),
        'mean': {name: statistics.fmean(values) for name, values in columns.items()},
        'std': {name: _deviation(values) for name, values in columns.items() if len(values) > 1},
        'per_class': _mean_per_class(done),
        'warnings': dict(Counter(kind for outcome in done for kind in outcome.warnings)),
        'problems': _problems(group),
      }
    )
  return rows


def _deviation(values: Sequence[float]) -> float:
  return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan  # stdev raises for NaN


def find_best(rows: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
  """Finds the variant with the best mean of a metric, and the next one, among those trained on the same data.

  Args:
    rows: from `summarize`.
    metric: of `config.columns`; of several evaluated splits the first counts that shares no images with the training
      split, with the averaged weights of variants that have them, since checkpoints are ranked and predict by these.

  Returns:
    For each data of which a variant has a finite mean: `data`, `metric` (that of the best), `ranked` (one or two
    variants, the best first: `variant`, `metric` as in `Outcome.values`, `mean`, `std` or None, `finished`), `margin`
    (of the best to the second, at least 0; None if there is no second), `runs` and `finished` (of all variants).
  """
  found = []
  for data in dict.fromkeys(row['data'] for row in rows):
    alike = [row for row in rows if row['data'] == data]
    trained_on = {split for row in alike for split in row['trained_on']}
    named = [(row, _by_split(row['mean'], metric)) for row in alike]
    evaluated = dict.fromkeys(split for _, names in named for split in names)
    deciding = sorted(evaluated, key=lambda split: split in trained_on)[:1]
    known = [(row, names[split]) for split in deciding for row, names in named if split in names]
    ranked: list[dict[str, Any]] = [
      {'metric': name, 'mean': row['mean'][name], 'std': row['std'].get(name)}
      | {key: row[key] for key in ('variant', 'finished')}
      for row, name in known
      if math.isfinite(row['mean'][name])
    ]
    if ranked:
      ranked.sort(key=lambda each: each['mean'], reverse=metric in _MORE_IS_BETTER)
      margin = abs(ranked[0]['mean'] - ranked[1]['mean']) if len(ranked) > 1 else None
      runs, finished = (sum(row[key] for row in alike) for key in ('runs', 'finished'))
      about = {'data': data, 'metric': ranked[0]['metric'], 'ranked': ranked[:2], 'margin': margin}
      found.append({**about, 'runs': runs, 'finished': finished})
  return found


def _by_split(means: Mapping[str, float], metric: str) -> dict[str, str]:
  """Returns the names of a metric by evaluated split ('' for one of the run): of averaged weights if they are there."""
  found: dict[str, str] = {}
  for name in means:
    if _figure(name) == metric:
      split = name.removesuffix(metric).removesuffix('_')
      if split.endswith(metric_names.AVERAGED) or split not in found:
        found[split.removesuffix(metric_names.AVERAGED)] = name
  return found


def describe_best(found: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Says in words what `find_best` found: what is best, by title; the title names the data if they differ."""
  lines = {}
  for each in found:
    name, margin = each['metric'], each['margin']
    first, *others = (_ranked(row, name) for row in each['ranked'])
    if margin is None:
      text = f'{first}; there is no other variant with a result'
    else:
      spreads = [row['std'] for row in each['ranked'] if row['std'] is not None]
      if not spreads:
        note = ', one run each: no spread'
      else:
        note = ', within a standard deviation over the seeds' if margin <= max(spreads) else ''
      text = f'{first}, {_cell(name, margin, None)} better than {others[0]}{note}'
    missing = f'; {each["finished"]} of {each["runs"]} runs have finished' if each['finished'] < each['runs'] else ''
    place = f' on {each["data"]}' if len(found) > 1 else ''
    lines[f'best {_title(name)}{place}'] = text + missing
  return lines


def _ranked(row: Mapping[str, Any], metric: str) -> str:
  other = '' if row['metric'] == metric else f', {_title(row["metric"])}'
  return f'{row["variant"]} {_cell(metric, row["mean"], row["std"])} ({_runs(row["finished"])}{other})'


def write(outcomes: Sequence[Outcome], about: About, workdir: pathlib.Path) -> None:
  """Writes the table, the plot and the page.

  Args:
    outcomes: of all runs of the comparison.
    about: the comparison.
    workdir: of the comparison.
  """
  rows = summarize(outcomes)
  whole = table(rows, about.config.columns)
  classes = class_tables(rows)
  variants = _by_variant(outcomes)
  drawn = {
    name: [figure.Drawn(each.curves, each.state == 'failed') for each in group] for name, group in variants.items()
  }
  image = plots.png(figure.curves(drawn))
  best = find_best(rows, about.config.columns[0])
  facts = describe_best(best) | _facts(outcomes, about)
  files.write(workdir / workdir_lib.RESULTS_TABLES, markdown(whole, facts, classes))
  files.write(workdir / workdir_lib.RESULTS_CSV, comma_separated(rows))
  runs = [_as_json(outcome, workdir) for outcome in outcomes]
  files.write_json(workdir / workdir_lib.RESULTS, {'comparison': facts, 'best': best, 'variants': rows, 'runs': runs})
  files.write(workdir / workdir_lib.CURVES, image)
  files.write(workdir / workdir_lib.REPORT, _page(outcomes, about, facts, whole, classes, image))


class Table(NamedTuple):
  """Holds a table of formatted cells."""

  header: list[str]
  cells: list[list[str]]


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
  """Returns the table of the variants; the data column is present only if variants differ in their data.

  Args:
    rows: from `summarize`.
    columns: metrics to show, in order, of `config.columns`; the table leaves out those that no run has.
  """
  known = dict.fromkeys(name for row in rows for name in row['mean'])
  names = [name for column in columns for name in known if _figure(name) == column]
  differ = len({row['data'] for row in rows}) > 1
  cells = []
  for row in rows:
    shown = [_cell(name, row['mean'].get(name), row['std'].get(name)) for name in names]
    notes = [f'{kind} {count}/{row["finished"]}' for kind, count in row['warnings'].items()]
    about = [row['variant'], row['data']] if differ else [row['variant']]
    cells.append([*about, f'{row["finished"]}/{row["runs"]}', *shown, '; '.join([*notes, *row['problems']])])
  return Table(['variant', *(['data'] if differ else []), 'runs', *map(_title, names), 'remarks'], cells)


def class_tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, Table]:
  """Returns tables of sensitivity and specificity in percent by title: one row per class, one column per variant.

  Only a split of at most 20 classes has one.

  Args:
    rows: from `summarize`.
  """
  tables = {}
  for split in dict.fromkeys(split for row in rows for split in row['per_class']):
    result = {row['variant']: row['per_class'][split] for row in rows if split in row['per_class']}
    names = dict.fromkeys(name for classes in result.values() for name in classes)
    if len(names) <= MOST_CLASSES:
      cells = [[name, *(_class_cell(classes.get(name, {})) for classes in result.values())] for name in names]
      tables[f'sensitivity / specificity (%), {split}'] = Table(['class', *result], cells)
  return tables


def _class_cell(numbers: Mapping[str, float]) -> str:
  shown = [f'{100 * numbers[name]:.1f}' if name in numbers else '-' for name in ('sensitivity', 'specificity')]
  return ' / '.join(shown)


def markdown(whole: Table, facts: Mapping[str, str], classes: Mapping[str, Table]) -> str:
  """Formats the table, the facts about the comparison and `class_tables` as Markdown."""
  lines = [tables.markdown([whole.header, *whole.cells]), '', *(f'- {name}: {value}' for name, value in facts.items())]
  for title, each in classes.items():
    lines += ['', f'{title[0].upper()}{title[1:]}:', '', tables.markdown([each.header, *each.cells])]
  return '\n'.join(lines) + '\n'


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
  """Formats `summarize` as CSV: mean and standard deviation of each quantity, a row per variant; unknown: empty."""
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


def _evaluated(run: plan.Run, line: Mapping[str, Any]) -> dict[str, float]:
  """Returns the metrics of an evaluation, those of the training split first."""
  result = {}
  for name, value in line.items():
    metric = metric_names.parse(name)
    if metric.split and metric.quantity in schema.SPLIT_METRICS:
      value = math.nan if value is None else value
      prefix = _split_name(run, metric.split)
      if metric.quantity == 'accuracy':
        result[f'{prefix}_error'] = 100 - 100 * value
      result[f'{prefix}_{metric.quantity}'] = 100 * value if metric.quantity in _PERCENT else value
  return dict(sorted(result.items(), key=lambda item: not item[0].startswith('train_')))


def _per_class(run: plan.Run, step: int) -> dict[str, dict[str, dict[str, float]]]:
  """Returns `Outcome.per_class` of the evaluation at that step; older versions did not record it."""
  result = {}
  for path in workdir_lib.confusion_paths(run.workdir):
    content = workdir_lib.read_confusion(path)
    if content and content['step'] == step and 'per_class' in content:
      numbers = {name: values for name, values in content['per_class'].items() if name != 'examples'}
      result[_split_name(run, content['split'])] = {
        label: {name: values[place] for name, values in numbers.items() if values[place] is not None}
        for place, label in enumerate(class_order.normalized(content['class_names']))
      }
  return result


def _mean_per_class(outcomes: Sequence[Outcome]) -> dict[str, dict[str, dict[str, float]]]:
  result: dict[str, dict[str, dict[str, list[float]]]] = {}
  for outcome in outcomes:
    for split, classes in outcome.per_class.items():
      for label, numbers in classes.items():
        held = result.setdefault(split, {}).setdefault(label, {})
        for name, value in numbers.items():
          held.setdefault(name, []).append(value)
  return {
    split: {label: {name: statistics.fmean(values) for name, values in held.items()} for label, held in classes.items()}
    for split, classes in result.items()
  }


def _split_name(run: plan.Run, split: str) -> str:
  """Returns the name of an evaluated split in `Outcome.values`, with the suffix of averaged weights if it has that."""
  name = split.removesuffix(metric_names.AVERAGED)
  if name != run.config.data.train_split or splits.TRAIN in run.config.eval.splits:
    return split
  return split.replace(name, splits.TRAIN, 1)


def _trained_on(run: plan.Run) -> list[str]:
  """Returns the evaluated splits that share images with the training split, by their names in `Outcome.values`."""
  trained = splits.parse(run.config.data.train_split)
  return [_split_name(run, split) for split in run.config.eval.splits if splits.parse(split).overlaps(trained)]


def _figure(name: str) -> str:
  """Returns the metric, as named in `config.columns`, of a quantity of a run or split (`test_calibration_error`)."""
  if name in schema.RUN_METRICS:
    return name
  return max((figure for figure in schema.SPLIT_METRICS if name.endswith(f'_{figure}')), key=len)


def _title(name: str) -> str:
  """Formats the name of a quantity in words."""
  kind = _figure(name)
  words = (name.removesuffix(kind) + _TITLES.get(kind, kind)).replace('_', ' ')
  return f'{words} (%)' if kind in _PERCENT else words


def _curve(records: Sequence[Mapping[str, Any]], name: str) -> figure.Curve:
  held = [record for record in records if name in record]
  values = [math.nan if record[name] is None else record[name] for record in held]
  return figure.Curve([record['step'] for record in held], [record['epoch'] for record in held], values)


def _by_variant(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
  variants: dict[str, list[Outcome]] = {}
  for outcome in outcomes:
    variants.setdefault(outcome.run.variant, []).append(outcome)
  return variants


def _runs(count: int) -> str:
  return '1 run' if count == 1 else f'{count} runs'


def _data(config: typed.Data) -> str:
  """Names what a run was trained on."""
  few = f', {config.images_per_class:,} of each class' if config.images_per_class else ''
  return f'{_source(config)} {config.train_split}{few}'


def _source(config: typed.Data) -> str:
  return f'{config.source} in {config.dir}' if config.dir else config.source


def _problems(outcomes: Sequence[Outcome]) -> list[str]:
  """Describes the runs that are not finished, by the first clause of the reason; equal reasons share a line."""
  seeds: dict[str, list[str]] = {}
  for outcome in outcomes:
    if outcome.state != 'finished':
      reached = f' at step {outcome.step}' if outcome.state == 'stopped' else ''
      why = f'{outcome.state}{reached}: {outcome.error.partition(";")[0]}'.removesuffix(': ')
      seeds.setdefault(why, []).append(str(outcome.run.seed))
  return [f'seed {", ".join(alike)} {why}' for why, alike in seeds.items()]


def _cell(name: str, mean: float | None, std: float | None) -> str:
  if mean is None:
    return '-'
  if not math.isfinite(mean):
    return 'not finite'
  number, unit = (lambda value: f'{value:.{2 if _figure(name) in _PERCENT else 4}f}'), ''
  if name == 'seconds':
    number = progress.format_duration
  elif name in ('images_per_second', 'parameters', 'trainable_parameters'):
    number = '{:,.0f}'.format
  elif name.endswith('_memory'):
    number, unit = lambda value: f'{value / 2**20:,.0f}', ' MiB'
  spread = f' ± {number(std)}' if std is not None and not name.endswith('parameters') else ''
  return number(mean) + spread + unit


def _facts(outcomes: Sequence[Outcome], about: About) -> dict[str, str]:
  known = [outcome.about for outcome in outcomes if outcome.state == 'finished']
  about_all = {key: dict.fromkeys(each[key] for each in known) for key in ('devices', 'versions')}
  counts = Counter(outcome.state for outcome in outcomes)
  return {
    'comparison': about.name,
    'form': about.form or 'full',
    'command': about.command,
    'runs': ', '.join(f'{count} {state}' for state, count in counts.items()),
    'seeds': ', '.join(str(seed) for seed in dict.fromkeys(outcome.run.seed for outcome in outcomes)),
    'data': ', '.join(dict.fromkeys(_source(outcome.run.config.data) for outcome in outcomes)),
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


def _as_json(outcome: Outcome, workdir: pathlib.Path) -> dict[str, Any]:
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
  outcomes: Sequence[Outcome],
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


def _warnings(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str, str]]:
  """Lists the telemetry warnings of each variant by kind: the seeds, the earliest step and its message."""
  lines = []
  for variant, group in _by_variant(outcomes).items():
    for kind in dict.fromkeys(kind for outcome in group for kind in outcome.warnings):
      warned = [outcome for outcome in group if kind in outcome.warnings]
      first = min((outcome.warnings[kind] for outcome in warned), key=lambda warning: warning['step'])
      seeds = ', '.join(str(outcome.run.seed) for outcome in warned)
      lines.append((variant, seeds, f'step {first["step"]:,}', first['text']))
  return lines
