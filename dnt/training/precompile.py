"""Runs the compiled programs of a training run, each compiled once: at its first use or, on CPU, in the background.

The first step waits for the compilation of one program only. On CPU the other programs compile during training, and
parameters are drawn while the first program compiles. On accelerators nothing is compiled ahead: XLA times candidates
on the device during compilation, and the device must be idle for that.
"""

import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import jax
import numpy as np

from dnt.data import pipeline
from dnt.parallel import activity, cpu, signals
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.training import budget, evaluate, experiment, record, steps

PLAIN, TELEMETRY, EVALUATION = 'plain', 'telemetry', 'evaluation'


class Programs:
  """Holds the programs. On exit, it cancels the compilations that have not begun, and waits for the running one.

  It does not wait if a signal stops the program, which then ends without it.
  """

  def __init__(
    self,
    run: experiment.Experiment,
    mesh: jax.sharding.Mesh,
    loader: pipeline.Loader,
    evaluator: evaluate.Evaluator,
    clock: record.Clock,
  ):
    self._run, self._mesh, self._loader, self._evaluator, self._clock = run, mesh, loader, evaluator, clock
    self._telemetry = run.every(run.config.telemetry.every)
    self._ahead = mesh_lib.on_cpu(mesh) and cpu.uses('background')
    self._pool = futures.ThreadPoolExecutor(1, 'compile')  # one at a time, in the order of the requests
    self._requested: dict[tuple[str, int], futures.Future] = {}
    self._counts: dict[int, jax.Array] = {}  # numbers of steps, on the devices

  def __enter__(self) -> 'Programs':
    return self

  def __exit__(self, *_: object) -> None:
    self._pool.shutdown(wait=not signals.received(), cancel_futures=True)

  def prepare(self, state: steps.TrainState, step: int) -> None:
    """Prepares the steps from `step` on, at the start of the run or of a phase: on CPU it starts to compile.

    Args:
      state: the state before these steps, or its shapes.
      step: steps done.
    """
    if self._ahead:
      shapes = mesh_lib.shapes(state, self._run.shardings(self._mesh, state))
      for name in used(self._run, step):
        self._ask(name, step, shapes)

  def is_ready(self, step: int) -> bool:
    """Returns whether the program of the step after `step` steps has been compiled."""
    requested = self._requested.get(self._key(self._name(step), step))
    return requested is not None and requested.done()

  def next_steps(
    self, state: steps.TrainState, step: int, count: int
  ) -> Callable[[steps.TrainState], tuple[steps.TrainState, dict[str, Any]]]:
    """Waits for the data and the program of train steps; the clock counts waiting for a compilation as compilation.

    Args:
      state: the state after `step` steps.
      step: steps done.
      count: number of steps; 1 if the next step records telemetry.

    Returns:
      A function that dispatches the steps. It takes the state, whose buffers are donated, and returns the new state and
      the metrics of the steps, as from `steps.make_train_steps`.
    """
    activity.note(activity.READ, step)
    begin = time.monotonic()
    arrays = self._loader.arrays(step, count)
    self._clock.input_seconds += time.monotonic() - begin
    program = self._get(self._name(step), step, state)
    if count not in self._counts:
      self._counts[count] = mesh_lib.place(np.int32(count), mesh_lib.replicated(self._mesh))
    return lambda state: program(state, arrays, self._counts[count])

  def evaluate(self, state: steps.TrainState, step: int) -> evaluate.Result:
    """Evaluates the state after `step` steps on `eval.splits`, with and without averaged parameters."""
    self._get(EVALUATION, step, state)
    activity.note(activity.EVALUATE, step)
    return evaluate.evaluate_all(self._evaluator, evaluate.get_variables(state), self._run.config.eval.splits)

  def _name(self, step: int) -> str:
    return TELEMETRY if self._telemetry.due(step + 1) else PLAIN

  def _get(self, name: str, step: int, state: steps.TrainState) -> Any:
    requested = self._requested.get(self._key(name, step))
    if requested is not None and requested.done():
      return requested.result()
    activity.note(activity.COMPILE, step)
    program = self._ask(name, step, state).result()
    self._clock.lap('compile')
    return program

  def _key(self, name: str, step: int) -> tuple[str, int]:
    return name, 0 if name == EVALUATION else self._run.phase(step).start

  def _ask(self, name: str, step: int, state: steps.TrainState) -> futures.Future:
    key = self._key(name, step)
    if key not in self._requested:
      self._requested[key] = self._pool.submit(self._compile, name, self._run.phase(step), state)
    return self._requested[key]

  def _compile(self, name: str, phase: experiment.Phase, state: steps.TrainState) -> Callable:
    if name == EVALUATION:
      self._evaluator.prepare(evaluate.get_variables(state)[''])
      return self._evaluator
    return compile_lib.ahead(
      *train_program(self._run, self._mesh, self._loader, name, phase, state),
      what='the compiled train step' if name == PLAIN else 'the compiled train step with telemetry',
      remedy=budget.remedy(self._run.config, self._mesh),
    )


def train_program(
  run: experiment.Experiment,
  mesh: jax.sharding.Mesh,
  loader: pipeline.Loader,
  name: str,
  phase: experiment.Phase,
  state: steps.TrainState,
) -> tuple[Any, ...]:
  """Returns the jitted program of train steps and its arguments or their shapes.

  Args:
    run: the experiment.
    mesh: the mesh of the state, whose devices need not be here.
    loader: of the training split.
    name: `PLAIN` or `TELEMETRY`.
    phase: the phase whose steps it takes.
    state: the state before these steps, or its shapes.
  """
  step, longest = phase.train_step, min(run.config.train.steps_per_dispatch, loader.max_steps(0))
  if name == TELEMETRY:
    step, longest = phase.telemetry_step, 1
  program = steps.make_train_steps(step, loader.batch_at, longest)
  return jit_on_state(run, mesh, program, state), state, loader.shapes(), np.int32(1)


def jit_on_state(run: experiment.Experiment, mesh: jax.sharding.Mesh, program: Callable, state: Any) -> Any:
  """Jits a program that takes a state, whose buffers it takes over, and returns the next one and other results.

  Args:
    run: the experiment.
    mesh: the mesh of the state.
    program: `(state, ...) -> (state, results)`; the new state keeps its shardings, the results lie on all devices.
    state: a state of the run, or its shapes.
  """
  shardings = (run.shardings(mesh, state), mesh_lib.replicated(mesh))
  return compile_lib.jit(program, mesh, donate_argnums=0, out_shardings=shardings)


def used(run: experiment.Experiment, step: int) -> list[str]:
  """Returns the programs that the phase of a run uses from `step` on, in the order of their first use."""
  telemetry = run.every(run.config.telemetry.every)
  total = min([phase.start for phase in run.phases if phase.start > step], default=run.config.train.steps)
  first = {}
  if (at := telemetry.next(step)) is not None:
    first[TELEMETRY] = at
  # If four steps in a row record telemetry, every step does.
  if plain := [at for at in range(step + 1, step + 5) if not telemetry.due(at)]:
    first[PLAIN] = plain[0]
  used = sorted((name for name, at in first.items() if at <= total), key=lambda name: first[name])
  return [*used, EVALUATION] if used else []
