"""How often the doctor is right: its verdicts on drawn networks, beside what their training shows.

  python -m benchmarks.doctor --train=tuned,held_out
  python -m benchmarks.doctor --fit
  python -m benchmarks.doctor --score=held_out

`--train` trains the networks of `benchmarks.doctor_space` for 300 steps each and adds what they do to the file of
truths; networks that it holds already are left out, so the command goes on where it was stopped. `--fit` prints the
weights of `trial.probability`. `--score` lets the doctor examine the networks and compares.

A network is sick if its training stops being finite, or if its mean accuracy over the last 50 steps is below
`trial.limit`: 25 % for ten equal classes. It is slow below 60 % of the best network on the same data.
"""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import doctor_score, doctor_space
from dnt import files
from dnt.data import examples, pipeline
from dnt.diagnostics import cures, diagnosis, trial
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.training import datasets, experiment, open_options, steps

TRUTHS = pathlib.Path(__file__).with_name('doctor_truths.json')
SETS = {'tuned': doctor_space.TUNED, 'held_out': doctor_space.HELD_OUT}
TRAIN = flags.DEFINE_list('train', [], f'Networks to train: {", ".join(SETS)}.')
SCORE = flags.DEFINE_list('score', [], 'Sets on which to score the doctor.')
VERDICTS = flags.DEFINE_string('verdicts', None, 'File of the verdicts; with it a score goes on where it was stopped.')
FIT = flags.DEFINE_bool('fit', False, 'Whether to fit the weights of `trial.probability` to the tuned networks.')
CURES = flags.DEFINE_bool('cures', False, 'Whether to try what is offered to sick networks.')
LAST_TRAINED = 50  # steps over which the accuracy counts
TENTHS = 10  # parts of a run of which the file holds means


def load(overrides: dict[str, Any], labels: str = '') -> tuple[Any, datasets.Data]:
  """Returns the config of a network and its data, with labels that may be wrong."""
  config = doctor_space.make_config(overrides)
  data = datasets.load(config, ())
  return config, data._replace(train=spoil(data.train, labels, config.seed))


def spoil(train: examples.Examples, labels: str, seed: int) -> examples.Examples:
  """Returns the training split with labels that are constant, shuffled, or those of the images before."""
  if not labels:
    return train
  given = train.labels
  changed = {
    'constant': np.zeros_like(given),
    'shuffled': np.random.Generator(np.random.Philox(seed)).permutation(given),
    'shifted': np.roll(given, 1),
  }[labels]
  return examples.in_memory(train.name, train.split, train.images, changed, train.class_names)


def train(overrides: dict[str, Any], labels: str = '') -> dict[str, Any]:
  """Trains a network for `doctor_space.STEPS` steps.

  Returns:
    `chance`; `accuracy` over the last steps; `losses` and `accuracies`, means over tenths of the run; `not_finite`, the
    first step whose loss is not finite, or None; `seconds`.
  """
  begun = time.monotonic()
  config, data = load(overrides, labels)
  run = experiment.make(open_options.resolve(config, data), data.spec)
  mesh = mesh_lib.make_mesh(config.mesh)
  losses, accuracies = [], []
  with contextlib.closing(pipeline.make_train_loader(run.config, data.train, mesh)) as loader:
    train_steps = steps.make_train_steps(run.phases[0].train_step, loader.batch_at, 10)
    program = compile_lib.jit(train_steps, donate_argnums=0)
    state = mesh_lib.place(run.make_state(run.init_variables()), mesh_lib.replicated(mesh))
    while len(losses) < doctor_space.STEPS:
      taken = min(10, loader.max_steps(len(losses)), doctor_space.STEPS - len(losses))
      state, metrics = program(state, loader.arrays(len(losses), taken), np.int32(taken))
      losses += np.asarray(metrics['loss'][:taken], np.float64).tolist()
      accuracies += np.asarray(metrics['accuracy'][:taken], np.float64).tolist()
  counts = np.bincount(data.train.labels)
  broken = np.flatnonzero(~np.isfinite(losses))
  return {
    'chance': round(float(counts.max() / counts.sum()), 4),
    'accuracy': round(float(np.mean(accuracies[-LAST_TRAINED:])), 4),
    'losses': [_rounded(np.mean(part)) for part in np.array_split(losses, TENTHS)],
    'accuracies': [_rounded(np.mean(part)) for part in np.array_split(accuracies, TENTHS)],
    'not_finite': int(broken[0]) if broken.size else None,
    'seconds': round(time.monotonic() - begun, 1),
  }


def _rounded(value: float) -> float | None:
  return float(f'{value:.4g}') if np.isfinite(value) else None


def read() -> dict[int, Any]:
  """Returns the truths by number: `outcome`, and `base`, the outcome without the planted fault."""
  return {int(number): truth for number, truth in json.loads(TRUTHS.read_text()).items()} if TRUTHS.exists() else {}


def numbers(sets: list[str]) -> Iterator[int]:
  for name in sets:
    yield from SETS[name]


def train_all(sets: list[str]) -> None:
  """Trains the networks that have no truth yet and writes each when it is known."""
  truths = read()
  for number in numbers(sets):
    if number in truths:
      continue
    case = doctor_space.draw(number)
    # The doctor examines seeds from `number` on; what it says must hold for others.
    truth = {'outcome': train({**case.overrides, 'seed': number + 5000}, case.labels)}
    if case.base is not None:
      truth['base'] = train({**case.base, 'seed': number + 5000})
    truths[number] = truth
    content = ',\n'.join(f'"{each}": {json.dumps(truths[each])}' for each in sorted(truths))
    files.write(TRUTHS, f'{{\n{content}\n}}\n'.encode())
    what = case.fault or case.overrides['model.name']
    print(f'{number}: {what}: accuracy {truth["outcome"]["accuracy"]:.3f}, {truth["outcome"]["seconds"]} s', flush=True)


def fit() -> tuple[float, ...]:
  """Returns the weights of `trial.features` with which `trial.probability` fits the tuned networks.

  Each training that stays finite counts once for every tenth at which a trial could have ended. With `--verdicts`, the
  complete trials of the doctor count too, which are of other initializations than the outcomes.
  """
  from sklearn import linear_model

  truths = read()
  rows, sick = [], []
  for number, truth in truths.items():
    outcome = truth['outcome']
    if number not in doctor_space.TUNED or outcome['chance'] >= 1:
      continue
    for end in range(1, len(outcome['accuracies']) + 1):
      if outcome['not_finite'] is not None and outcome['not_finite'] < end * doctor_space.STEPS / TENTHS:
        break
      accuracies = np.repeat(outcome['accuracies'][:end], doctor_space.STEPS // TENTHS)
      ones = np.ones(len(accuracies))
      ended = trial.Trial(ones, accuracies, ones, ones, 1.0, 1.0, outcome['chance'], 'complete', 0.0)
      rows.append(trial.features(ended if end == TENTHS else ended._replace(stopped='time')))
      sick.append(doctor_score.is_sick(outcome))
  for verdict in _read_verdicts().values():
    if verdict['stopped'] == 'complete' and verdict['number'] in doctor_space.TUNED:
      rows.append(tuple(verdict['features']))
      sick.append(doctor_score.is_sick(truths[verdict['number']]['outcome']))
  model = linear_model.LogisticRegression(fit_intercept=False, C=100.0, max_iter=5000).fit(rows, sick)
  return tuple(round(float(weight), 2) for weight in model.coef_[0])


def examine(number: int) -> dict[str, Any]:
  """Returns what the doctor says of a network, in JSON values."""
  begun = time.monotonic()
  case = doctor_space.draw(number)
  config, data = load(case.overrides, case.labels)
  found = diagnosis.make(config, data)
  result = {
    'number': number,
    'seconds': round(time.monotonic() - begun, 1),
    'kind': found.verdict.kind,
    'entry': found.verdict.entry,
    'reason': found.verdict.reason,
    'state': found.state,
    'probability': found.probability,
    'causes': [(cause.kind, cause.entry) for cause in found.causes],
    'findings': [finding.kind for finding in found.findings],
    'features': trial.features(found.trial),
    'stopped': found.trial.stopped,
    'steps': len(found.trial.losses),
  }
  if CURES.value and found.state != trial.HEALTHY:
    offered = cures.offer(config, found.examination, found.causes)
    tried = cures.rank([cures.try_out(config, data, each, 60) for each in offered])
    result['tried'] = [{'overrides': dict(each.overrides), 'state': each.state} for each in tried]
    if tried:
      after = train({**case.overrides, **tried[0].overrides, 'seed': case.number + 5000}, case.labels)
      result['mended'] = not doctor_score.is_sick(after)
  return result


def _read_verdicts() -> dict[int, dict[str, Any]]:
  """Returns the verdicts of `--verdicts` by number; none without the flag or the file."""
  if not VERDICTS.value or not pathlib.Path(VERDICTS.value).exists():
    return {}
  lines = pathlib.Path(VERDICTS.value).read_text().splitlines()
  return {verdict['number']: verdict for verdict in map(json.loads, lines)}


def score(sets: list[str]) -> str:
  """Lets the doctor examine the networks of sets, and returns Markdown tables of how often it is right."""
  verdicts = _read_verdicts()
  truths, chosen = read(), list(numbers(sets))
  if missing := [number for number in chosen if number not in truths]:
    raise app.UsageError(f'{len(missing)} networks have no truth yet: --train={",".join(sets)} trains them')
  labels = doctor_score.label(truths)
  for number in chosen:
    if number not in verdicts:
      verdicts[number] = examine(number)
      if VERDICTS.value:
        with open(VERDICTS.value, 'a') as file:
          file.write(json.dumps(verdicts[number]) + '\n')
      what = verdicts[number]
      print(f'{number}: {labels[number]}: {what["state"]} {what["probability"]:.2f}, {what["kind"]}', flush=True)
  return doctor_score.report([verdicts[number] for number in chosen], truths)


def main(arguments):
  if len(arguments) > 1 or not {*TRAIN.value, *SCORE.value} <= set(SETS):
    raise app.UsageError(f'valid sets: {", ".join(SETS)}')
  compile_lib.enable_cache()
  train_all(TRAIN.value)
  if FIT.value:
    print(f'WEIGHTS = {fit()}')
  if SCORE.value:
    print(score(SCORE.value))


if __name__ == '__main__':
  app.run(main)
