"""Rehearses a run on one target: compiles its programs and measures what they need."""

import itertools
import logging
import math
from typing import Any, NamedTuple

import jax

from dnt import errors
from dnt.config import typed
from dnt.parallel import capacity
from dnt.parallel import mesh as mesh_lib
from dnt.rehearsal import fit as fit_lib
from dnt.rehearsal import hlo, programs, roofline, targets
from dnt.training import datasets, precompile

_log = logging.getLogger(__name__)


class Step(NamedTuple):
  """A compiled program with what one step of it, or one batch of evaluation, needs."""

  program: programs.Program
  costs: hlo.Costs
  roofline: roofline.Roofline


class Rehearsal(NamedTuple):
  """Holds what a rehearsal found.

  Attributes:
    target: the hardware.
    made: the run on it; None: the config does not suit the hardware.
    steps: its programs, those before the first that does not compile.
    problem: why a program does not compile; '' if all do.
    fit: the largest batch whose train step fits; None: without --fit.
  """

  target: targets.Target
  made: programs.Run | None
  steps: tuple[Step, ...]
  problem: str = ''
  fit: fit_lib.Fit | None = None

  @property
  def config(self) -> typed.Config:
    assert self.made is not None
    return self.made.run.config

  @property
  def taken(self) -> dict[int, Step]:
    """Returns, by the first step of each phase, the step taken most often: without telemetry, unless all record it."""
    found = {}
    for name in (precompile.TELEMETRY, precompile.PLAIN):
      found.update({each.program.step: each for each in self.steps if each.program.name == name})
    return found

  @property
  def train(self) -> Step | None:
    """Returns the step that the run takes most often at its end."""
    return self.taken[max(self.taken)] if self.taken else None

  @property
  def evaluation(self) -> Step | None:
    return next((each for each in self.steps if each.program.name == precompile.EVALUATION), None)

  @property
  def available(self) -> float:
    """Returns the bytes of memory of one chip."""
    return _available(self.target)

  @property
  def peaks(self) -> dict[str, int]:
    """Returns the most bytes of one chip at once in `training` and in `evaluation`, of those that compiled.

    They are those of a program, and what the other programs hold in the meantime.
    """
    if self.made is None or not self.steps:
      return {}
    train = [each.program for each in self.steps if each.program.name != precompile.EVALUATION]
    held = max((each.arguments for each in train), default=0)
    peak = max((each.memory for each in train), default=0)
    if self.evaluation is None:
      return {'training': peak}
    program, images, variables = self.evaluation.program, self.images, _variables(self.made)
    batch = max(program.arguments - variables - self.made.held(self.made.largest), 0)  # of a split that streams
    peak_of_evaluation = held + images + batch + program.outputs + program.temporaries
    if {*self.made.data.evaluation} - {*self.config.eval.splits} and '/' in self.config.checkpoint.best_metric:
      # What only the end evaluates is evaluated with the best checkpoint too, beside the last state.
      peak_of_evaluation += variables * (2 if self.config.ema.decay else 1)
    return {'training': peak + images, 'evaluation': peak_of_evaluation}

  @property
  def images(self) -> int:
    """Returns the bytes of one chip that the images of all splits to evaluate take, also while the run trains."""
    if self.made is None:
      return 0
    return sum(map(self.made.held, self.made.data.evaluation))

  @property
  def peak(self) -> int | None:
    """Returns the most bytes of one chip at once."""
    return max(self.peaks.values(), default=None)

  @property
  def fits(self) -> bool:
    return not self.problem and self.peak is not None and self.peak <= self.available

  @property
  def step_seconds(self) -> float | None:
    return self.train.roofline.step if self.train else None

  @property
  def images_per_second(self) -> float | None:
    seconds = self.step_seconds
    return self.config.train.batch_size / seconds if seconds else None

  @property
  def utilization(self) -> float | None:
    """Returns the ceiling of the MFU: the fraction of a step in which the chip computes what the network needs.

    Products that remat computes again do not count.
    """
    if self.made is None or self.train is None or not self.step_seconds or not self.train.roofline.compute:
      return None
    program = self.train.program
    needed = min(program.flops, self.made.run.train_flops(program.step) * self.config.train.batch_size)
    return needed / program.flops * self.train.roofline.compute / self.step_seconds

  @property
  def run_seconds(self) -> float | None:
    """Returns the seconds of the whole run: the steps of its phases and its evaluations."""
    if self.made is None:
      return None
    run, batch = self.made.run, self.evaluation.roofline.step if self.evaluation else None
    training, starts = 0.0, [*(phase.start for phase in run.phases), run.config.train.steps]
    for start, stop in itertools.pairwise(starts):
      seconds = self.taken[start].roofline.step if start in self.taken else None
      if not seconds:
        return None
      training += (stop - start) * seconds
    every = run.every(run.config.eval.every).period
    times = math.ceil(run.config.train.steps / every) if every else 1
    images = [len(self.made.data.evaluation[split]) for split in run.config.eval.splits]
    batches = sum(math.ceil(count / run.config.eval.batch_size) for count in images)
    variants = 2 if run.config.ema.decay else 1
    return training + times * variants * batches * (batch or 0.0)


def rehearse(config: typed.Config, data: datasets.Data, target: targets.Target, fitting: bool = False) -> Rehearsal:
  """Rehearses a run on a target.

  Args:
    config: from `stand_in.load`.
    data: its images, or what stands in for them.
    target: the hardware.
    fitting: whether to search for the largest batch whose train step fits.
  """
  try:
    made = programs.make(config, data, target)
  except errors.InputError as error:
    return Rehearsal(target, None, (), str(error))
  steps, problem = [], ''
  try:
    for program in programs.compile_all(made):
      _log.info(f'{target.text}: {program.label} compiled in {program.seconds:.0f} s')
      costs = hlo.measure(program.text, target.chips)
      line = roofline.make(target, program.flops, costs, made.run.config.model.dtype)
      steps.append(Step(program._replace(text=''), costs, line))
  except errors.RunError as error:
    problem = str(error)
  found = Rehearsal(target, made, tuple(steps), problem)
  if not fitting:
    return found
  return found._replace(fit=fit_lib.find(config, data, target, found.available - found.images))


def _available(target: targets.Target) -> float:
  """Returns the bytes of memory of one chip; CPU devices share that of this machine."""
  return (target.chip.memory if target.chip else None) or capacity.host() / target.chips


def _variables(made: programs.Run) -> int:
  """Returns the bytes of the parameters and statistics on one chip."""
  state = made.run.abstract_state()
  variables: Any = {'params': state.params, 'batch_stats': state.batch_stats}
  shapes = mesh_lib.shapes(variables, made.run.shardings(made.mesh, variables))
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
