"""Selects which entries train and which are frozen; no other module reads `config.finetune`'s choice of entries.

A run has phases, each with a first step and a `Partition` of the depth list. The training step differentiates only
with respect to the trainable leaves, so that XLA drops the backward pass below the lowest of them. Optimizer state,
clip norm, weight decay and EMA cover only these leaves, because they receive no others.

Frozen entries run as in evaluation: no stochastic depth, no dropout and no noise of their own, as long as an argument
of `custom.TRAINING` decides on it. Their BatchNorm depends on `frozen_norm`:

| mode | normalizes by | statistics | scale and bias | backward pass |
| --- | --- | --- | --- | --- |
| running | running statistics | fixed | fixed | down to the lowest entry that trains |
| batch | the batch | updated | fixed | the same |
| affine_only | running statistics | fixed | trained | down to the lowest norm |
"""

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import flax.linen as nn

from dnt import config as schema
from dnt import errors, trees
from dnt.config import typed
from dnt.models import custom, depth, layouts, norms

_TOP = re.compile(r'top:(\d+)')
_RANDOM = (nn.Dropout, nn.MultiHeadDotProductAttention)  # they draw random numbers unless they are deterministic


@dataclasses.dataclass(frozen=True)
class Partition:
  """The leaves that train, and how frozen entries run.

  Attributes:
    frozen: names of the frozen entries, and of those without parameters between them; if empty, everything trains and
      the other attributes have no effect.
    trainable: paths of the parameters that train.
    norm: `config.finetune.frozen_norm`.
    skipped: names of entries that return their input, because it already holds the cached features.
  """

  frozen: frozenset[str] = frozenset()
  trainable: frozenset[str] = frozenset()
  norm: str = 'running'
  skipped: frozenset[str] = frozenset()

  def trains(self, path: str) -> bool:
    """Returns whether the parameter at this path trains."""
    return not self.frozen or path in self.trainable

  def split(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits parameters (or a tree with their paths) into trainable and frozen; `trees.merge` is the inverse."""
    return trees.split(params, self.trains)

  def split_statistics(self, batch_stats: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits statistics into those that training updates and the others."""
    return trees.split(batch_stats, lambda path: self.norm == 'batch' or not is_below(path, self.frozen))

  @contextlib.contextmanager
  def running(self) -> Generator[None]:
    """Makes `model.apply` run frozen and skipped entries as this partition defines, while the context is active."""
    if not self.frozen:
      yield
      return

    training: bool | None = None  # the argument of the frozen entry around a call; None: outside, or it has none

    def intercept(next_fun, args, kwargs, context):
      nonlocal training
      module, fixed = context.module, self.norm != 'batch'
      path = '/'.join(module.path)
      if context.method_name != '__call__' or not is_below(path, self.frozen | self.skipped):
        return next_fun(*args, **kwargs)
      if path in self.skipped:
        return _input(module, args, kwargs)
      if isinstance(module, (norms.Norm, nn.BatchNorm)):
        if not fixed and training is None:
          return next_fun(*args, **kwargs)
        by_batch = not fixed and bool(training)
        if isinstance(module, norms.Norm):
          return next_fun(_input(module, args, kwargs), train=by_batch)
        return _with(module, 'use_running_average', not by_batch, next_fun, args, kwargs)
      if isinstance(module, _RANDOM):
        return _with(module, 'deterministic', True, next_fun, args, kwargs)
      if path not in self.frozen:
        return next_fun(*args, **kwargs)
      training, args, kwargs = _as_evaluated(module, args, kwargs)
      try:
        return next_fun(*args, **kwargs)
      finally:
        training = None

    with nn.intercept_methods(intercept):
      yield


def is_below(path: str, names: frozenset[str]) -> bool:
  """Returns whether a module or leaf of the unrolled layout is one of these entries or inside one.

  Args:
    path: path of the module or leaf, joined by '/'.
    names: names of entries.
  """
  parts = path.split('/')
  return not names.isdisjoint('/'.join(parts[:count]) for count in (1, 2))


ALL = Partition()


@dataclasses.dataclass(frozen=True)
class Phase:
  """A part of a run in which the same parameters train. Most runs have one phase.

  Attributes:
    start: steps done before the phase.
    partitions: the partition of each phase up to this one, which comes last; a partition says which parameters train.
  """

  start: int
  partitions: tuple[Partition, ...]

  @property
  def partition(self) -> Partition:
    """Returns the partition of this phase."""
    return self.partitions[-1]


def plan(
  config: typed.Finetune,
  table: Sequence[depth.Row],
  params: Mapping[str, Any],
  total_steps: int,
  steps_per_epoch: float,
) -> tuple[Phase, ...]:
  """Returns the phases of a run in the order of their steps, also those that a shortened run does not reach.

  Args:
    config: the section `finetune` of a validated config.
    table: the depth list.
    params: parameters or shapes, in the model's layout.
    total_steps: number of steps in the run.
    steps_per_epoch: number of steps in one pass over the training split.

  Raises:
    errors.InputError: a choice matches nothing or names more entries than there are; a phase freezes an entry that
      trained before, or does not come after the previous phase; a scanned network has a frozen entry.
  """
  phases: list[Phase] = []
  for number, (duration, chosen) in enumerate([('0', config.trainable), *config.unfreeze]):
    start = start_of(duration, total_steps, steps_per_epoch)
    names = trainable_entries(chosen, table)
    frozen = frozenset(row.entry.name for row in table if row.parameters and row.entry.name not in names)
    if frozen and layouts.scanned_rows(params):
      raise errors.InputError(
        f'config.finetune freezes {min(frozen)}, but a scanned network must train as a whole: a scan computes all of '
        "its gradients. Set config.model.scan=False (for your own module, config.model.options={'scan': False}); "
        'checkpoints are the same for both'
      )
    if number and (start < phases[-1].start or not start):
      raise errors.InputError(f'config.finetune.unfreeze: {duration!r} must come after the previous phase')
    if number and not frozen <= phases[-1].partition.frozen:
      again = min(frozen - phases[-1].partition.frozen)
      raise errors.InputError(
        f'config.finetune.unfreeze: {chosen!r} freezes {again}, which trained before; name it too'
      )
    partition = Partition(
      frozen | _between(frozen, table), _trainable_paths(config, params, frozen), config.frozen_norm
    )
    phases.append(Phase(start, (*(phases[-1].partitions if phases else ()), partition)))
  return tuple(phases)


def start_of(duration: str, total_steps: int, steps_per_epoch: float) -> int:
  """Returns the step at which a phase starts: `duration` in steps, but at least one unless it is 0.

  A small split or a short run makes less than half a step of a duration. Several phases may start at one step; the last
  of them then counts.

  Args:
    duration: text as in the config.
    total_steps: number of steps in the run.
    steps_per_epoch: number of steps in one pass over the training split.
  """
  steps = schema.duration(duration, total_steps, steps_per_epoch)
  return max(steps, 1) if schema.period(duration, total_steps, steps_per_epoch) else steps


def trainable_entries(chosen: str, table: Sequence[depth.Row]) -> frozenset[str]:
  """Returns the names of the entries with parameters that a choice makes trainable.

  Args:
    chosen: 'all'; 'head': the last entry; 'top:k': also the k entries before it; else a regex for whole names.
    table: the depth list.

  Raises:
    errors.InputError: the pattern matches nothing, or k is 0 or too large.
  """
  names = [row.entry.name for row in table if row.parameters]
  top = _TOP.fullmatch(chosen)
  if chosen == 'all':
    return frozenset(names)
  if chosen == 'head':
    return frozenset(names[-1:])
  if top:
    count = int(top[1])
    if not 1 <= count < len(names):
      raise errors.InputError(
        f'config.finetune: {chosen!r} asks for {count} entries below {names[-1]}; this network has {len(names) - 1}'
      )
    return frozenset(names[-1 - count :])
  matching = frozenset(name for name in names if re.fullmatch(chosen, name))
  if not matching:
    raise errors.InputError(
      f"config.finetune: {chosen!r} is neither 'all', 'head' nor 'top:<k>', and as a pattern it matches no whole name "
      f'of an entry with parameters: {", ".join(names)}'
    )
  return matching


def _between(frozen: frozenset[str], table: Sequence[depth.Row]) -> frozenset[str]:
  """Returns the names of entries without parameters, such as a dropout, whose neighbors with parameters are frozen."""
  found, waiting, below = [], [], True
  for row in table:
    if not row.parameters:
      waiting.append(row.entry.name)
      continue
    above = row.entry.name in frozen
    found += waiting if below and above else []
    waiting, below = [], above
  return frozenset(found)


def _trainable_paths(config: typed.Finetune, params: Mapping[str, Any], frozen: frozenset[str]) -> frozenset[str]:
  paths = frozenset(trees.flatten(params))

  def trains(path):
    return not is_below(path, frozen) or (config.frozen_norm == 'affine_only' and _is_affine(path, paths))

  return frozenset(filter(trains, paths))


def _is_affine(path: str, paths: frozenset[str]) -> bool:
  """Returns whether a leaf is the scale of a norm, or a bias in the same module."""
  module, _, name = path.rpartition('/')
  return name in ('scale', 'bias') and f'{module}/scale' in paths


def _input(module: nn.Module, args: Any, kwargs: Any) -> Any:
  """Returns the first argument of a call, which may be given by its name; None if there is none."""
  if args:
    return args[0]
  _, *named = inspect.signature(type(module).__call__).bind(module, **kwargs).arguments.values()
  return named[0] if named else None


def _as_evaluated(module: nn.Module, args: Any, kwargs: Any) -> tuple[bool | None, Any, Any]:
  """Returns whether the call of an entry asks it to train (None: it cannot), and the call as in evaluation.

  An entry of a user's own may draw random numbers itself; only this argument keeps it from that.
  """
  if len(module.path) == 2:  # a block of a `stage.Stage`
    x, train, _ = args
    return train, (x, False, None), kwargs
  bound = inspect.signature(type(module).__call__).bind(module, *args, **kwargs)
  flags = bound.arguments.keys() & custom.TRAINING.keys()
  if not flags:
    return None, args, kwargs
  trains = any(bound.arguments[flag] == custom.TRAINING[flag] for flag in flags)
  bound.arguments.update({flag: not custom.TRAINING[flag] for flag in flags})
  return trains, bound.args[1:], bound.kwargs


def _with(module: nn.Module, attribute: str, value: bool, next_fun: Any, args: Any, kwargs: Any) -> Any:
  """Calls a Flax module with the value of an option, no matter if the caller sets it as a field or as an argument."""
  bound = inspect.signature(type(module).__call__).bind(module, *args, **kwargs)
  bound.arguments.pop(attribute, None)
  before = getattr(module, attribute)
  object.__setattr__(module, attribute, value)  # modules are frozen
  try:
    return next_fun(*bound.args[1:], **bound.kwargs)
  finally:
    object.__setattr__(module, attribute, before)
