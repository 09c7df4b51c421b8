"""The programs of a training run, each compiled once: at its first use or, on CPU, ahead of it in the background.

A first step waits for the compilation of one program alone; on CPU that of the others goes on beside the training, and
parameters are drawn beside the first. On accelerators nothing is compiled ahead: there XLA times candidates on the
device while it compiles, which must not be busy then.
"""

from collections.abc import Callable
from concurrent import futures

import jax
import numpy as np

from dnt import evaluate, experiment, steps
from dnt.data import pipeline
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib

PLAIN, TELEMETRY, EVALUATION = 'plain', 'telemetry', 'evaluation'


class Programs:
  """Context that holds them; leaving it waits for what is being compiled, and drops what has not begun."""

  def __init__(
    self,
    run: experiment.Experiment,
    mesh: jax.sharding.Mesh,
    feed: pipeline.Feed,
    evaluator: evaluate.Evaluator,
  ):
    self._run, self._mesh, self._feed, self._evaluator = run, mesh, feed, evaluator
    self._pool = futures.ThreadPoolExecutor(1, 'compile')  # one at a time, in the order they are asked for
    self._asked: dict[str, futures.Future] = {}

  def __enter__(self) -> 'Programs':
    return self

  def __exit__(self, *_: object) -> None:
    self._pool.shutdown(cancel_futures=True)

  def ahead(self, shapes: steps.TrainState, step: int) -> None:
    """On CPU, starts to compile what a run from `step` on will use, in the order of its need.

    Args:
      shapes: of the state, with its shardings.
      step: where the run starts.
    """
    if jax.default_backend() == 'cpu':
      for name in _used(self._run, step):
        self._ask(name, shapes)

  def is_ready(self, name: str) -> bool:
    """Whether `get` would return at once."""
    return name in self._asked and self._asked[name].done()

  def get(self, name: str, state: steps.TrainState) -> Callable | None:
    """A program, compiled; waits for it.

    Args:
      name: PLAIN or TELEMETRY, `(state, arrays, count) -> (state, metrics)` as `steps.make_train_steps` says; or
        EVALUATION, of which the evaluator has the programs.
      state: the state or its shapes.
    """
    return self._ask(name, state).result()

  def _ask(self, name: str, state: steps.TrainState) -> futures.Future:
    if name not in self._asked:
      self._asked[name] = self._pool.submit(self._compile, name, state)
    return self._asked[name]

  def _compile(self, name: str, state: steps.TrainState) -> Callable | None:
    if name == EVALUATION:
      self._evaluator.prepare(evaluate.variables_of(state)[''])
      return None
    step, longest = self._run.train_step, min(self._run.config.train.steps_per_dispatch, self._feed.max_steps(0))
    if name == TELEMETRY:
      step, longest = self._run.telemetry_step, 1
    program = steps.make_train_steps(step, self._feed.batch_at, longest)
    shardings = (mesh_lib.parameter_shardings(self._mesh, state), mesh_lib.replicated(self._mesh))
    jitted = compile_lib.jit(program, donate_argnums=0, out_shardings=shardings)
    return jitted.lower(state, self._feed.shapes(), np.int32(1)).compile()


def _used(run: experiment.Experiment, step: int) -> list[str]:
  """The programs that a run uses from `step` on, in the order of their first use."""
  total, telemetry = run.config.train.steps, run.every(run.config.telemetry.every)
  first = {}
  if (at := telemetry.next(step)) is not None:
    first[TELEMETRY] = at
  # Telemetry at more than three steps on end is telemetry at every step.
  if plain := [at for at in range(step + 1, step + 5) if not telemetry.due(at)]:
    first[PLAIN] = plain[0]
  used = sorted((name for name, at in first.items() if at <= total), key=first.get)
  return [*used, EVALUATION] if used else []
