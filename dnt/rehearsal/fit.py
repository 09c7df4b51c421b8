"""Finds the largest batch whose train step fits into the memory of a target, and what makes that of the config fit.

It counts the train steps of all phases, also those with telemetry. The evaluation does not depend on this batch;
`rehearsal.Rehearsal.fits` counts it.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from dnt import errors
from dnt.config import overrides, typed
from dnt.rehearsal import programs, targets
from dnt.training import datasets

_log = logging.getLogger(__name__)
CLOSE = 8  # the search ends when a batch fits and one that is an eighth larger does not


class Fit(NamedTuple):
  """Holds what the search found.

  Attributes:
    batch: the largest batch whose train step fits, over all chips; 0: none does.
    memory: bytes of one chip that the largest train step takes with this batch.
    tried: every batch that was compiled, with its bytes of one chip; None: it does not compile.
    changes: options with which the train step of the config fits, by key; {}: it fits as it is; None: nothing tried
      does.
  """

  batch: int
  memory: int | None
  tried: dict[int, int | None]
  changes: dict[str, Any] | None


def find(config: typed.Config, data: datasets.Data, target: targets.Target, available: float) -> Fit:
  """Compiles the train step with other batches, and with remat and fsdp where the batch of the config does not fit.

  Args:
    config: from `stand_in.load`.
    data: its images, or what stands in for them.
    target: the hardware.
    available: bytes of one chip.
  """
  tried: dict[int, int | None] = {}

  def measure(batch):
    tried[batch] = _memory(config, data, target, batch, {})
    return tried[batch]

  asked, unit = config.train.batch_size, target.chips * config.train.accumulate
  largest = search(measure, available, asked, unit, data.spec.examples)
  if largest >= asked:
    return Fit(largest, tried.get(largest), tried, {})
  ways: list[dict[str, Any]] = [{'model.remat': True}] if not config.model.remat else []
  if config.mesh.fsdp == 1 and target.chips > 1:
    ways = [*ways, {'mesh.fsdp': target.chips}, *({**way, 'mesh.fsdp': target.chips} for way in ways)]
  for way in ways:
    memory = _memory(config, data, target, asked, way)
    if memory is not None and memory <= available:
      return Fit(largest, tried.get(largest), tried, way)
  return Fit(largest, tried.get(largest), tried, None)


def search(measure: Callable[[int], int | None], available: float, start: int, unit: int, most: int) -> int:
  """Returns the largest batch that fits, to within an eighth; 0 if none does.

  Args:
    measure: `batch -> bytes`, or None if it does not compile; called once for each batch.
    available: bytes that there are.
    start: the first batch to try.
    unit: the batch is a multiple of it.
    most: no larger batch is tried.
  """

  def fits(count):
    memory = measure(count * unit)
    return memory is not None and memory <= available

  first = max(start // unit, 1)
  low, high = (first, None) if fits(first) else (0, first)
  while high is None and low < most // unit:
    more = min(2 * low, most // unit)
    low, high = (more, None) if fits(more) else (low, more)
  while high is not None and high - low > max(low // CLOSE, 1):
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return low * unit


def _memory(
  config: typed.Config, data: datasets.Data, target: targets.Target, batch: int, changes: dict[str, Any]
) -> int | None:
  """Returns the bytes of one chip of the largest train step of the run, or None if one does not compile."""
  changes = {'train.batch_size': batch, **changes}
  listed = ', '.join(f'{key}={value}' for key, value in changes.items())
  try:
    made = programs.make(overrides.override(config, changes, '--fit'), data, target)
    memory = max(program.memory for program in programs.compile_steps(made))
  except (errors.InputError, errors.RunError) as error:
    _log.info(f'{target.text}: {listed}: {error}')
    return None
  _log.info(f'{target.text}: {listed}: {memory / 2**30:.2f} GiB')
  return memory
