"""Reads the results of a run of a comparison from its workdir."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dnt import config as schema
from dnt import files
from dnt import workdir as workdir_lib
from dnt.comparison import figure, plan, quantities
from dnt.data import class_order, splits
from dnt.reporting import metric_names, metrics


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


def read(run: plan.Run, ranking: str = 'error') -> Outcome:
  """Reads the results of a run from its workdir.

  Args:
    run: the run.
    ranking: the metric that ranks the variants; of a split, it has curves besides the error, which is the accuracy's.
  """
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
  drawn = {'error', ranking} - {'accuracy'}
  for name in {name: None for line in evaluations for name in _evaluated(run, line) if quantities.kind(name) in drawn}:
    curves[quantities.title(name)] = _curve([{**line, **_evaluated(run, line)} for line in evaluations], name)
  about = {
    key: ', '.join(f'{name} {value}' for name, value in summary.get(key, {}).items()) for key in ('devices', 'versions')
  }
  known = {name: value for name, value in values.items() if value is not None}
  per_class = _per_class(run, last['step']) if state == 'finished' and last else {}
  return Outcome(run, state, error, step, known, per_class, summary.get('warnings', {}), curves, about)


def _evaluated(run: plan.Run, line: Mapping[str, Any]) -> dict[str, float]:
  """Returns the metrics of an evaluation, those of the training split first."""
  result = {}
  for name, value in line.items():
    metric = metric_names.parse(name)
    if metric.split and metric.quantity in schema.SPLIT_METRICS:
      value = math.nan if value is None else value
      prefix = split_name(run, metric.split)
      if metric.quantity == 'accuracy':
        result[f'{prefix}_error'] = 100 - 100 * value
      result[f'{prefix}_{metric.quantity}'] = 100 * value if metric.quantity in quantities.PERCENT else value
  return dict(sorted(result.items(), key=lambda item: not item[0].startswith('train_')))


def _per_class(run: plan.Run, step: int) -> dict[str, dict[str, dict[str, float]]]:
  """Returns `Outcome.per_class` of the evaluation at that step; older versions did not record it."""
  result = {}
  for path in workdir_lib.confusion_paths(run.workdir):
    content = workdir_lib.read_confusion(path)
    if content and content['step'] == step and 'per_class' in content:
      numbers = {name: values for name, values in content['per_class'].items() if name != 'examples'}
      result[split_name(run, content['split'])] = {
        label: {name: values[place] for name, values in numbers.items() if values[place] is not None}
        for place, label in enumerate(class_order.normalized(content['class_names']))
      }
  return result


def split_name(run: plan.Run, split: str) -> str:
  """Returns the name of an evaluated split in `Outcome.values`, with the suffix of averaged weights if it has that."""
  name = split.removesuffix(metric_names.AVERAGED)
  if name != run.config.data.train_split or splits.TRAIN in run.config.eval.splits:
    return split
  return split.replace(name, splits.TRAIN, 1)


def _curve(records: Sequence[Mapping[str, Any]], name: str) -> figure.Curve:
  held = [record for record in records if name in record]
  values = [math.nan if record[name] is None else record[name] for record in held]
  return figure.Curve([record['step'] for record in held], [record['epoch'] for record in held], values)
