"""Compares the doctor's verdicts with what training shows: labels, counts with intervals, and calibration."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import doctor_space
from dnt.diagnostics import cures, trial
from dnt.diagnostics.verdicts import Kind
from dnt.reporting import tables

# The kinds of cause that name a planted fault.
NAMES = {
  'step too large': (Kind.LARGE_STEP,),
  'step too small': (Kind.SMALL_STEP,),
  'weight decay': (Kind.DECAY,),
  'clipping': (Kind.CLIPPED,),
  'large images': (Kind.SCALE,),
  'small images': (Kind.SCALE,),
  'small kernels': (Kind.VANISHING,),
  'large kernels': (Kind.EXPLODING,),
  'deep sigmoid': (Kind.VANISHING, Kind.COLLAPSING),
  'small batch': (Kind.SMALL_BATCH,),
  'dead': (Kind.DEAD,),
  'cut': (Kind.CUT_OFF,),
  'squashed': (Kind.SQUASHED,),
  'rectified': (Kind.SQUASHED,),
}
FINDINGS = {'constant': 'one class', 'shuffled': 'unexplained labels', 'shifted': 'shifted labels'}
LOCATED = ('dead', 'cut')  # planted faults that begin at a known entry
SLOW = 0.6  # accuracy over that of the best network on the same data, below which one is slow
HEALTHY, SLOWLY, SICK = 'healthy', 'slow', 'sick'
# The column of networks that are sick, are found and get an offer; `doctor.examine` retrains each with the best cure.
MENDS = f'best of up to {cures.MOST} tried cures mends (sick networks that got an offer)'
ALARMS = {trial.SICK: 1.0, trial.DOUBTFUL: 0.5, trial.HEALTHY: 0.0}
EDGES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)  # of the bins of probability


def is_sick(outcome: Mapping[str, Any]) -> bool:
  """Whether an outcome of `doctor.train` is that of a sick network."""
  # With one class alone everybody is right.
  return outcome['not_finite'] is not None or outcome['accuracy'] < min(trial.limit(outcome['chance']), 1)


def label(truths: Mapping[int, Any]) -> dict[int, str]:
  """Returns what each network is: healthy, slow or sick."""
  cases = {number: doctor_space.draw(number) for number in truths}
  best: dict[str, float] = {}
  for number, truth in truths.items():
    if not cases[number].labels and not is_sick(truth['outcome']):
      key = cases[number].data
      best[key] = max(best.get(key, 0), truth['outcome']['accuracy'])
  result = {}
  for number, truth in truths.items():
    if is_sick(truth['outcome']):
      result[number] = SICK
    else:
      slow = truth['outcome']['accuracy'] < SLOW * best.get(cases[number].data, 0)
      result[number] = SLOWLY if slow and not cases[number].labels else HEALTHY
  return result


def is_planted(case: doctor_space.Case, truth: Mapping[str, Any]) -> bool:
  """Whether a network is sick by its planted fault: with it, it is; without it, it is not."""
  return case.fault in NAMES and is_sick(truth['outcome']) and not is_sick(truth['base'])


def count(hits: float, of: int) -> str:
  """Formats a count with its 95 % interval (Jeffreys 1946, which takes halves)."""
  if not of:
    return '-'
  low, high = stats.beta.ppf([0.025, 0.975], hits + 0.5, of - hits + 0.5)
  return f'{hits:g}/{of} ({100 * (low if hits else 0):.0f}-{100 * (high if hits < of else 1):.0f} %)'


def report(verdicts: Sequence[Mapping[str, Any]], truths: Mapping[int, Any]) -> str:
  """Returns Markdown tables of how often verdicts are right.

  Args:
    verdicts: of `benchmarks.doctor.examine`.
    truths: of all networks that have been trained, by number.
  """
  labels = label(truths)
  cases = {verdict['number']: doctor_space.draw(verdict['number']) for verdict in verdicts}
  groups: dict[str, list[Mapping[str, Any]]] = {'all': list(verdicts)}
  for name in (*doctor_space.FAMILIES, *doctor_space.FAULTS):
    for verdict in verdicts:
      case = cases[verdict['number']]
      if name in (case.family, case.fault):
        groups.setdefault(name, []).append(verdict)
  header = ['networks', 'sick found', 'false alarms', 'cause named', 'entry named', MENDS, 'median s']
  rows = [header, *([name, *_row(members, cases, truths, labels)] for name, members in groups.items())]
  others = [_states(verdicts, labels), _calibration(verdicts, labels), _data(verdicts, cases)]
  return '\n\n'.join([tables.markdown(rows), *others])


def _row(
  verdicts: Sequence[Mapping[str, Any]],
  cases: Mapping[int, doctor_space.Case],
  truths: Mapping[int, Any],
  labels: Mapping[int, str],
) -> list[str]:
  found = [ALARMS[verdict['state']] for verdict in verdicts if labels[verdict['number']] == SICK]
  alarms = [ALARMS[verdict['state']] for verdict in verdicts if labels[verdict['number']] == HEALTHY]
  planted = [verdict for verdict in verdicts if is_planted(cases[verdict['number']], truths[verdict['number']])]
  named = [verdict['kind'] in NAMES[cases[verdict['number']].fault] for verdict in planted]
  located = [verdict for verdict in verdicts if cases[verdict['number']].fault in LOCATED]
  placed = [_names_entry(verdict, cases[verdict['number']]) for verdict in located]
  cured = [verdict['mended'] for verdict in verdicts if 'mended' in verdict and labels[verdict['number']] == SICK]
  counts = [count(sum(each), len(each)) for each in (found, alarms, named, placed, cured)]
  return [*counts, f'{np.median([verdict["seconds"] for verdict in verdicts]):.0f}']


def _names_entry(verdict: Mapping[str, Any], case: doctor_space.Case) -> bool:
  """Whether a fault is named with the layer where it was planted, whatever it does to the training."""
  at = f'layer{case.overrides["model.options"]["at"]}'
  return any(kind in NAMES[case.fault] and entry == at for kind, entry in verdict['causes'])


def _states(verdicts: Iterable[Mapping[str, Any]], labels: Mapping[int, str]) -> str:
  """Returns a table of networks by what they are and by what is said of them."""
  states = (trial.SICK, trial.DOUBTFUL, trial.HEALTHY)
  rows = [['networks', *(f'said {state}' for state in states)]]
  for name in (SICK, SLOWLY, HEALTHY):
    said = [verdict['state'] for verdict in verdicts if labels[verdict['number']] == name]
    rows.append([f'{len(said)} {name}', *(str(said.count(state)) for state in states)])
  return tables.markdown(rows)


def _calibration(verdicts: Iterable[Mapping[str, Any]], labels: Mapping[int, str]) -> str:
  """Returns a table of how often a probability of failure has come true."""
  rows = [['probability of failure', 'mean', 'failed']]
  for low, high in itertools.pairwise(EDGES):
    within = [each for each in verdicts if low <= each['probability'] < high + (high == 1)]
    failed = sum(labels[verdict['number']] == SICK for verdict in within)
    mean = f'{np.mean([verdict["probability"] for verdict in within]):.2f}' if within else '-'
    rows.append([f'{low:g} to {high:g}', mean, count(failed, len(within))])
  return tables.markdown(rows)


def _data(verdicts: Iterable[Mapping[str, Any]], cases: Mapping[int, doctor_space.Case]) -> str:
  """Returns a table of faults of the labels that are found, and of labels without one that are suspected."""
  rows = [['labels', 'found']]
  for kind, finding in FINDINGS.items():
    said = [finding in verdict['findings'] for verdict in verdicts if cases[verdict['number']].labels == kind]
    rows.append([kind, count(sum(said), len(said))])
  right = [verdict for verdict in verdicts if not cases[verdict['number']].labels]
  suspected = sum(not {*FINDINGS.values()}.isdisjoint(verdict['findings']) for verdict in right)
  rows.append(['right, and suspected', count(suspected, len(right))])
  return tables.markdown(rows)
