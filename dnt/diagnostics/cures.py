"""Offers changes of a config that should mend its network, tries them, and ranks them by where they lead.

A cure is tried as long as the verdict needed: its network trains in a `trial`. Where the given learning rate does not
do, a range test of the changed network finds one.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dnt import config as schema
from dnt import errors
from dnt.config import typed
from dnt.data import pipeline
from dnt.diagnostics import causes, first_steps, lr_find, remedies, trial
from dnt.diagnostics.verdicts import Kind, Verdict
from dnt.optim import schedules
from dnt.parallel import mesh as mesh_lib
from dnt.training import datasets, experiment, initialize, open_options

SWEEP = 100  # steps of a range test
USUAL_DECAY = 1e-4
USUAL_BATCH = 32
MOST = 4  # offers
RATE = 'optim.learning_rate'
# Causes inside a network, which no option reaches if it is given, see `_is_given`.
_INSIDE = (Kind.DEAD, Kind.CUT_OFF, Kind.SQUASHED)
# Overrides with which most networks train.
SOUND: dict[str, Any] = {
  'model.activation': 'relu',
  'model.initializer': 'he',
  'model.init_gain': 1.0,
  'optim.name': 'adamw',
  'optim.learning_rate': 1e-3,
  'optim.weight_decay': USUAL_DECAY,
  'clip.name': 'none',
}


class Tried(NamedTuple):
  """Holds where a cure leads.

  Attributes:
    overrides: `{'section.key': value}`, with the learning rate that a range test found, if it took one.
    state: of the network with them, healthy, doubtful or sick; 'cannot be run' if they do not suit it.
    learnt: how far the accuracy of the last steps is on the way from chance to 1; negative if it cannot be run.
    steps: number of steps of its trial, which ends early where it clearly learns.
    reason: the course of its training, or why it cannot be run.
  """

  overrides: Mapping[str, Any]
  state: str
  learnt: float
  steps: int
  reason: str


def offer(config: typed.Config, examination: first_steps.Examination, found: Sequence[Verdict]) -> list[dict[str, Any]]:
  """Returns sets of overrides that may mend a network, the smallest change first.

  They are what answers the first cause, in at most two forms; what answers all causes together; and a form of the
  network that is known to train.

  Args:
    config: a validated training config.
    examination: its first steps.
    found: its causes, the first before the rest.

  Returns:
    `{'section.key': value}` each, all of which change the config and can be built; none without a cause.
  """
  given = _is_given(config)
  if not found or (given and found[0].kind in _INSIDE):
    return []
  answers = [_answers(config, examination, cause) for cause in found]
  together: dict[str, Any] = {}
  for cause, answer in reversed([*zip(found, answers, strict=True)]):  # what answers an earlier cause wins
    # Where another cause is first, its cure changes the updates too.
    if answer and (cause is found[0] or cause.kind not in (Kind.SMALL_STEP, Kind.LARGE_STEP)):
      together |= answer[0]
  norm = 'layer_norm' if remedies.norm_batch(config) <= causes.BATCH_NORM_BLAMED_TO else 'batch_norm'
  sound = causes.usual(config, SOUND['optim.name']) | SOUND | {'model.norm': norm}
  sound |= remedies.shortcut(config, len(examination.entries))
  if given:
    sound = {key: value for key, value in sound.items() if not key.startswith('model.')}
  if any(cause.kind == Kind.SCALE for cause in found):
    sound |= {'data.mean': (), 'data.std': ()}
  return remedies.keep_buildable(config, [*(answers[0][:2] if answers else []), together, sound])[:MOST]


def _answers(config: typed.Config, examination: first_steps.Examination, cause: Verdict) -> list[dict[str, Any]]:
  """Returns overrides against one cause, the likeliest first; none if no option of the config can affect it."""
  rate = schedules.peak_rate(config.optim)
  if cause.kind == Kind.SQUASHED:
    return []
  if cause.kind == Kind.SCALE:
    return [{'data.mean': (), 'data.std': ()}]
  if cause.kind == Kind.DECAY:
    return [{'optim.weight_decay': USUAL_DECAY}]
  if cause.kind == Kind.CLIPPED:
    return [{'clip.name': 'none'}]
  if cause.kind == Kind.SMALL_BATCH:
    larger = _larger(config)
    return [larger] if _is_given(config) else [{'model.norm': 'layer_norm'}, larger]
  if cause.kind == Kind.SMALL_STEP:
    reach = causes.reach(examination)
    # Where no update is seen, no rate follows from it.
    sized = [{RATE: float(f'{rate / max(reach, 1e-9):.0e}')}] if reach > 0 else []
    return [*sized, {'optim.name': 'adamw', RATE: 1e-3}]
  if cause.kind == Kind.STUCK:
    return []
  return remedies.choose(config, examination, cause)


def _is_given(config: typed.Config) -> bool:
  """Whether options of `config.model` cannot mend a network: it is a user's own module, or its weights are given."""
  return ':' in config.model.name or bool(config.train.init_from)


def _larger(config: typed.Config) -> dict[str, int]:
  """Returns overrides that leave batch_norm `USUAL_BATCH` images or more; the batch stays if it has so many."""
  size, accumulate = config.train.batch_size, config.train.accumulate
  enough = USUAL_BATCH * (size // accumulate // remedies.norm_batch(config))  # for each device, with norm_sync=device
  if size < enough:
    return {'train.batch_size': enough, 'train.accumulate': 1}
  # With a divisor of `accumulate`, the devices share a micro-batch evenly, as they do now.
  return {'train.accumulate': max(n for n in range(1, size // enough + 1) if accumulate % n == 0)}


def try_out(
  config: typed.Config,
  data: datasets.Data,
  overrides: Mapping[str, Any],
  seconds: float,
  log: Callable[[str], None] = lambda text: None,
) -> Tried:
  """Trains the network with overrides; where it does not learn, it tries the rate that a range test finds.

  Args:
    config: a validated training config.
    data: its images.
    overrides: from `offer`.
    seconds: limit for each trial.
    log: receives a status message for each chunk of steps.
  """
  doing = f'trying {remedies.flags(overrides)}'
  try:
    best = _try(config, data, overrides, seconds, lambda text: log(f'{doing}: {text}'))
    if best.state != trial.HEALTHY:
      log(f'{doing}: range test')
      for rate in _find_rates(schema.override(config, overrides, 'a cure'), data):
        other = _try(config, data, {**overrides, RATE: rate}, seconds, lambda text: log(f'{doing}: {text}'))
        best = max(best, other, key=lambda each: each.learnt)
        if best.state == trial.HEALTHY:
          break
  except errors.InputError as error:
    return Tried(overrides, 'cannot be run', -1.0, 0, str(error))
  return best


def rank(tried: Sequence[Tried]) -> list[Tried]:
  """Returns cures with the best first: those that mend, by what was learnt, of those that lead as far the smallest."""

  def key(cure):
    return cure.state != trial.HEALTHY, -round(cure.learnt, 1), len(cure.overrides), -cure.learnt

  return sorted(tried, key=key)


def _try(
  config: typed.Config,
  data: datasets.Data,
  overrides: Mapping[str, Any],
  seconds: float,
  log: Callable[[str], None],
) -> Tried:
  result = trial.run(schema.override(config, overrides, 'a cure'), data, seconds, log)
  learnt = result.learnt if result.stopped != 'not finite' else 0.0
  reason = trial.course(result) + ('; its time limit ended it' if result.stopped == 'time' else '')
  return Tried(overrides, trial.state(trial.probability(result)), learnt, len(result.losses), reason)


def _find_rates(config: typed.Config, data: datasets.Data) -> list[float]:
  """Returns the rates that a range test of a network suggests, the larger first; none if it ends too soon."""
  config = schema.copy_unlocked(config)
  config.lr_find.steps = SWEEP
  mesh = mesh_lib.make_mesh(config.mesh)
  run = experiment.make(open_options.resolve(config, data), data.spec)
  state = initialize.begin(run, mesh, initialize.load_new(run, data.weights))
  with contextlib.closing(pipeline.make_train_loader(run.config, data.train, mesh)) as loader:
    suggestions = lr_find.sweep(run, mesh, state, loader).suggestions
  rates = {float(f'{suggestions[name]:.1g}') for name in ('steepest', 'valley') if name in suggestions}
  return sorted((rate for rate in rates if np.isfinite(rate) and rate > 0), reverse=True)
