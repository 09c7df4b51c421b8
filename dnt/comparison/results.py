"""Summarizes the outcomes of the runs of a comparison: mean and deviation of each variant, and which one is best."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dnt.comparison import plan, quantities, reading
from dnt.config import typed
from dnt.data import splits
from dnt.reporting import metric_names


def summarize(outcomes: Sequence[reading.Outcome]) -> list[dict[str, Any]]:
  """Returns one row per variant, in the order of the variants.

  Returns:
    `variant`, `data` (source, its folder if `data.dir` names one, training split and, if limited, images of each
    class), `runs`, `finished`, and over the finished runs: `trained_on` (the evaluated splits, as in `Outcome`, that
    share images with the training split), `mean`, `std` (sample; absent for a single run) by quantity, both NaN if it
    is not finite in a run, `per_class` (means, as in `Outcome`) and `warnings` (the number of runs with each kind);
    `problems`: why the other runs are not finished.
  """
  rows = []
  for variant, group in by_variant(outcomes).items():
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


def find_best(rows: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
  """Finds the variant with the best mean of a metric, and the next one, among those trained on the same data.

  Args:
    rows: from `summarize`.
    metric: of `config.columns`; of several evaluated splits the first counts that shares no images with the training
      split, with the averaged weights of variants that have them, since checkpoints are ranked and predict by these.

  Returns:
    For each data of which a variant has a finite mean: `data`, `metric` (that of the best), `ranked` (these variants,
    the best first: `variant`, `metric` as in `Outcome.values`, `mean`, `std` or None, `finished`), `margin` (of the
    best to the second, at least 0; None if there is no second), `runs` and `finished` (of all variants).
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
      ranked.sort(key=lambda each: each['mean'], reverse=metric in quantities.MORE_IS_BETTER)
      margin = abs(ranked[0]['mean'] - ranked[1]['mean']) if len(ranked) > 1 else None
      runs, finished = (sum(row[key] for row in alike) for key in ('runs', 'finished'))
      about = {'data': data, 'metric': ranked[0]['metric'], 'ranked': ranked, 'margin': margin}
      found.append({**about, 'runs': runs, 'finished': finished})
  return found


def by_variant(outcomes: Sequence[reading.Outcome]) -> dict[str, list[reading.Outcome]]:
  """Returns the outcomes of each variant, in the order of the variants."""
  variants: dict[str, list[reading.Outcome]] = {}
  for outcome in outcomes:
    variants.setdefault(outcome.run.variant, []).append(outcome)
  return variants


def source_of(config: typed.Data) -> str:
  """Names the source of the data, with its folder if `data.dir` names one."""
  return f'{config.source} in {config.dir}' if config.dir else config.source


def _by_split(means: Mapping[str, float], metric: str) -> dict[str, str]:
  """Returns the names of a metric by evaluated split ('' for one of the run): of averaged weights if they are there."""
  found: dict[str, str] = {}
  for name in means:
    if quantities.kind(name) == metric:
      split = name.removesuffix(metric).removesuffix('_')
      if split.endswith(metric_names.AVERAGED) or split not in found:
        found[split.removesuffix(metric_names.AVERAGED)] = name
  return found


def _deviation(values: Sequence[float]) -> float:
  return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan  # stdev raises for NaN


def _mean_per_class(outcomes: Sequence[reading.Outcome]) -> dict[str, dict[str, dict[str, float]]]:
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


def _trained_on(run: plan.Run) -> list[str]:
  """Returns the evaluated splits that share images with the training split, by their names in `Outcome.values`."""
  trained = splits.parse(run.config.data.train_split)
  return [reading.split_name(run, split) for split in run.config.eval.splits if splits.parse(split).overlaps(trained)]


def _data(config: typed.Data) -> str:
  """Names what a run was trained on."""
  few = f', {config.images_per_class:,} of each class' if config.images_per_class else ''
  return f'{source_of(config)} {config.train_split}{few}'


def _problems(outcomes: Sequence[reading.Outcome]) -> list[str]:
  """Describes the runs that are not finished, by the first clause of the reason; equal reasons share a line."""
  seeds: dict[str, list[str]] = {}
  for outcome in outcomes:
    if outcome.state != 'finished':
      reached = f' at step {outcome.step}' if outcome.state == 'stopped' else ''
      why = f'{outcome.state}{reached}: {outcome.error.partition(";")[0]}'.removesuffix(': ')
      seeds.setdefault(why, []).append(str(outcome.run.seed))
  return [f'seed {", ".join(alike)} {why}' for why, alike in seeds.items()]
