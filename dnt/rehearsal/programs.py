"""Builds the programs of a run for a mesh that is not here, from shapes alone, and compiles them.

They are the programs of `training.precompile` and `training.evaluate`, which the loop runs.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from dnt import errors
from dnt.config import typed
from dnt.data import pipeline
from dnt.finetune import feature_cache
from dnt.models import flops
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import sharding
from dnt.rehearsal import targets
from dnt.training import datasets, evaluate, experiment, open_options, precompile


class Program(NamedTuple):
  """Describes a compiled program. Sizes are bytes of one chip.

  Attributes:
    name: of `precompile`: `plain`, `telemetry` or `evaluation`.
    step: the first step of its phase.
    seconds: that it took to trace and to compile.
    arguments: the state and the images that are on the device.
    outputs: the results that do not take the place of arguments.
    temporaries: what it needs while it runs.
    flops: 2 x multiply-adds of convolutions and products of one step, or one batch of evaluation, over all chips.
    text: the compiled HLO of one chip.
  """

  name: str
  step: int
  seconds: float
  arguments: int
  outputs: int
  temporaries: int
  flops: int
  text: str

  @property
  def memory(self) -> int:
    """Returns the bytes of one chip that it takes while it runs."""
    return self.arguments + self.outputs + self.temporaries

  @property
  def label(self) -> str:
    """Returns the name, with the first step of a later phase."""
    return f'{self.name} (from step {self.step})' if self.step else self.name


class Run(NamedTuple):
  """A run on a mesh, from which its programs are compiled.

  Attributes:
    run: the experiment.
    data: its images, or what stands in for them.
    mesh: the devices.
  """

  run: experiment.Experiment
  data: datasets.Data
  mesh: Mesh

  @property
  def streams(self) -> bool:
    """Returns whether the hosts read the training images during the run."""
    return self.data.train.images is None

  @property
  def largest(self) -> str:
    """Returns the split whose evaluation is compiled: the one with the most images."""
    return max(self.data.evaluation, key=lambda name: len(self.data.evaluation[name]))

  def held(self, split: str) -> int:
    """Returns the bytes of one chip that the images of a split to evaluate take during the whole run."""
    return pipeline.resident_bytes(self.run.config.data, self.data.evaluation[split])

  @property
  def sharding(self) -> list[dict[str, Any]]:
    """Returns the parameters that `fsdp` splits: for each its path, shape and the axis that is split."""
    rows = sharding.table(self.mesh, self.run.abstract_state().params, self.run.split_axes)
    return [{'parameter': row.path, 'shape': row.shape, 'axis': row.axis} for row in rows if row.axis is not None]


def make(config: typed.Config, data: datasets.Data, target: targets.Target) -> Run:
  """Builds a run for a target as the loop does, without parameters.

  Raises:
    errors.InputError: the config does not fit the data or the number of chips.
  """
  mesh = mesh_lib.make_mesh(config.mesh, targets.devices(target))
  mesh_lib.check_batch('config.train.batch_size', config.train.batch_size, mesh, config.train.accumulate)
  mesh_lib.check_batch('config.eval.batch_size', config.eval.batch_size, mesh)
  resolved = open_options.rank(open_options.resolve(config, data), data)
  run, data = feature_cache.use_blank(experiment.make(resolved, data.spec), data)
  return Run(run, data, mesh)


def compile_all(made: Run) -> Iterator[Program]:
  """Yields the programs of a run, each as soon as it is compiled: the train steps of every phase, then the evaluation.

  Raises:
    errors.RunError: a program does not compile, such as for want of memory.
  """
  yield from compile_steps(made)
  run, data = made.run, made.data
  with evaluate.Evaluator(run, made.mesh, data.evaluation) as evaluator:
    last = run.phases[-1].start
    variables = evaluate.get_variables(_state(made, last))['']
    yield _compile(precompile.EVALUATION, last, evaluator.program(variables, made.largest))


def compile_steps(made: Run) -> Iterator[Program]:
  """Yields the train steps of every phase, with and without telemetry as the run takes them; raises as above."""
  for phase in made.run.phases:
    for name in precompile.used(made.run, phase.start):
      if name != precompile.EVALUATION:
        yield compile_train(made, name, phase)


def compile_train(made: Run, name: str, phase: experiment.Phase) -> Program:
  """Compiles the train steps of a phase, `PLAIN` or `TELEMETRY` of `precompile`; raises as `compile_all` does."""
  with contextlib.closing(pipeline.make_train_loader(made.run.config, made.data.train, made.mesh)) as loader:
    state = _state(made, phase.start)
    return _compile(name, phase.start, precompile.train_program(made.run, made.mesh, loader, name, phase, state))


def _state(made: Run, step: int) -> Any:
  """Returns the shapes of the state before the step after `step` steps."""
  abstract = made.run.abstract_state(step + 1)
  return mesh_lib.shapes(abstract, made.run.shardings(made.mesh, abstract))


def _compile(name: str, step: int, program: tuple[Any, ...]) -> Program:
  jitted, *args = program
  began = time.monotonic()
  traced = jitted.trace(*args)
  try:
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    raise errors.RunError(f'the program {name!r} does not compile: {errors.first_line(error)}') from error
  memory = compiled.memory_analysis()
  return Program(
    name=name,
    step=step,
    seconds=time.monotonic() - began,
    arguments=memory.argument_size_in_bytes,
    outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    flops=flops.count(traced.jaxpr.jaxpr).total(),
    text=compiled.as_text(),
  )
