"""Compiles each program of a training run once: at its first use or, on CPU, ahead of it in the background.

The first step waits for the compilation of one program only. On CPU the other programs compile during training, and
parameters are drawn while the first program compiles. On accelerators nothing is compiled ahead: XLA times candidates
on the device during compilation, and the device must be idle for that.
"""

from collections.abc import Callable
from concurrent import futures

import jax
import numpy as np

from dnt.data import pipeline
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.training import evaluate, experiment, record, steps

PLAIN, TELEMETRY, EVALUATION = 'plain', 'telemetry', 'evaluation'


class Programs:
  """Holds the programs. On exit, it waits for the running compilation and cancels those that have not begun."""

  def __init__(
    self,
    run: experiment.Experiment,
    mesh: jax.sharding.Mesh,
    feed: pipeline.Feed,
    evaluator: evaluate.Evaluator,
    clock: record.Clock,
  ):
    self._run, self._mesh, self._feed, self._evaluator, self._clock = run, mesh, feed, evaluator, clock
    self._pool = futures.ThreadPoolExecutor(1, 'compile')  # one at a time, in the order of the requests
    self._asked: dict[tuple[str, int], futures.Future] = {}

  def __enter__(self) -> 'Programs':
    return self

  def __exit__(self, *_: object) -> None:
    self._pool.shutdown(cancel_futures=True)

  def ahead(self, shapes: steps.TrainState, step: int) -> None:
    """On CPU, starts to compile the programs that the phase uses from `step` on, in the order of their first use.

    Args:
      shapes: shapes of the state, with its shardings.
      step: the step at which the run or phase starts.
    """
    if jax.default_backend() == 'cpu':
      for name in _used(self._run, step):
        self._ask(name, step, shapes)

  def is_ready(self, name: str, step: int) -> bool:
    """Returns whether `get` would return at once."""
    asked = self._asked.get(self._key(name, step))
    return asked is not None and asked.done()

  def get(self, name: str, step: int, state: steps.TrainState) -> Callable:
    """Returns a compiled program. It waits for the compilation, and the clock counts this time as compilation.

    Args:
      name: PLAIN or TELEMETRY, `(state, arrays, count) -> (state, metrics)` as in `steps.make_train_steps`; or
        EVALUATION, the evaluator, which holds its programs.
      step: steps done before the program runs: each phase of a run has its own train steps.
      state: the state or its shapes.
    """
    waiting = not self.is_ready(name, step)
    program = self._ask(name, step, state).result()
    if waiting:
      self._clock.lap('compile')
    return program

  def _key(self, name: str, step: int) -> tuple[str, int]:
    return name, 0 if name == EVALUATION else self._run.phase(step).start

  def _ask(self, name: str, step: int, state: steps.TrainState) -> futures.Future:
    key = self._key(name, step)
    if key not in self._asked:
      self._asked[key] = self._pool.submit(self._compile, name, self._run.phase(step), state)
    return self._asked[key]

  def _compile(self, name: str, phase: experiment.Phase, state: steps.TrainState) -> Callable:
    if name == EVALUATION:
      self._evaluator.prepare(evaluate.variables_of(state)[''])
      return self._evaluator
    step, longest = phase.train_step, min(self._run.config.train.steps_per_dispatch, self._feed.max_steps(0))
    if name == TELEMETRY:
      step, longest = phase.telemetry_step, 1
    program = steps.make_train_steps(step, self._feed.batch_at, longest)
    shardings = (mesh_lib.parameter_shardings(self._mesh, state), mesh_lib.replicated(self._mesh))
    jitted = compile_lib.jit(program, donate_argnums=0, out_shardings=shardings)
    return compile_lib.ahead(jitted, state, self._feed.shapes(), np.int32(1))


def _used(run: experiment.Experiment, step: int) -> list[str]:
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
