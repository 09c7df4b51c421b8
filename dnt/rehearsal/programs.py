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
from dnt.models import flops
from dnt.parallel import mesh as mesh_lib
from dnt.rehearsal import targets
from dnt.training import evaluate, experiment, precompile


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
  data: experiment.Data
  mesh: Mesh

  @property
  def streams(self) -> bool:
    """Returns whether the hosts read the training images during the run."""
    return self.data.train.images is None


def make(config: typed.Config, data: experiment.Data, target: targets.Target) -> Run:
  """Builds a run for a target as the loop does, without parameters.

  Raises:
    errors.InputError: the config does not fit the data or the number of chips.
  """
  mesh = mesh_lib.make_mesh(config.mesh, targets.devices(target))
  mesh_lib.check_batch('config.train.batch_size', config.train.batch_size, mesh, config.train.accumulate)
  mesh_lib.check_batch('config.eval.batch_size', config.eval.batch_size, mesh)
  resolved = experiment.rank(experiment.resolve(config, data), data)
  return Run(experiment.make(resolved, data.spec), data, mesh)


def compile_all(made: Run) -> Iterator[Program]:
  """Yields the programs of a run, each as soon as it is compiled: those of every phase, then the evaluation.

  Raises:
    errors.RunError: a program does not compile, such as for want of memory.
  """
  run, mesh = made.run, made.mesh
  last = max(run.phases, key=lambda phase: phase.start)
  with contextlib.closing(pipeline.make_train_loader(run.config, made.data.train, mesh)) as loader:
    for phase in run.phases:
      abstract = run.abstract_state(phase.start + 1)
      state = mesh_lib.shapes(abstract, mesh_lib.parameter_shardings(mesh, abstract))
      for name in precompile.used(run, phase.start):
        if name != precompile.EVALUATION:
          yield _compile(name, phase.start, precompile.train_program(run, mesh, loader, name, phase, state))
  with evaluate.Evaluator(run, mesh, made.data.evaluation) as evaluator:
    split = max(made.data.evaluation, key=lambda name: len(made.data.evaluation[name]))
    program = evaluator.program(evaluate.get_variables(state)[''], split)
    yield _compile(precompile.EVALUATION, last.start, program)


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
