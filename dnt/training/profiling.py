"""Profiles a few steps of a run: `--profile=10` writes a trace to `<workdir>/profile`.

TensorBoard (with its profile plugin, `xprof`) opens that folder, and ui.perfetto.dev the file `*.trace.json.gz` in it.
"""

import contextlib
import logging
import pathlib
from collections.abc import Callable

import jax

from dnt import buckets, errors
from dnt import workdir as workdir_lib
from dnt.parallel import multihost

WARM_UP = 10  # steps before the first that is profiled; fewer if the run is short
_log = logging.getLogger(__name__)


class Profile:
  """Context of a loop whose steps are profiled; in processes that are not the lead, and for 0 steps, none is."""

  def __init__(self, workdir: pathlib.Path, steps: int, start: int, total: int):
    """Makes the profile of a loop.

    Args:
      workdir: folder of the run.
      steps: number of steps to profile; more, if one dispatch takes more.
      start: steps done when the loop begins.
      total: steps of the whole run.
    """
    self._folder, self._steps = workdir / workdir_lib.PROFILE, steps if multihost.is_lead() else 0
    self._first = start + min(WARM_UP, max((total - start - steps) // 2, 1))
    self._begun: int | None = None

  def __enter__(self) -> 'Profile':
    return self

  def __exit__(self, *error: object) -> None:
    if self._begun is not None:
      self._end('the end of the run')
    elif self._steps and not any(error):
      _log.info('no steps were profiled: the run ended before they could be; see --profile')

  def step(self, step: int, finish: Callable[[], None]) -> contextlib.AbstractContextManager:
    """Returns a context for the dispatch of the steps after `step`, which names them in the trace.

    Args:
      step: steps done.
      finish: waits for the steps that were dispatched.
    """
    if self._begun is None and self._steps and step >= self._first:
      finish()
      if self._try(self._start):
        self._begun = step
    elif self._begun is not None and step >= self._begun + self._steps:
      finish()
      self._end(f'step {step}')
    return jax.profiler.StepTraceAnnotation('train', step_num=step)

  def _start(self) -> None:
    self._folder.mkdir(exist_ok=True)
    jax.profiler.start_trace(self._folder)

  def _end(self, where: str) -> None:
    begun, self._begun, self._steps = self._begun, None, 0
    if self._try(jax.profiler.stop_trace):
      _log.info(f'the profile of the steps from {begun} to {where} is in {buckets.name(self._folder)}')

  def _try(self, call: Callable[[], None]) -> bool:
    """Calls a function; if it fails, a line says so, and the run goes on without a profile."""
    try:
      call()
    except (OSError, RuntimeError) as error:  # jax has an error of its own, a RuntimeError
      self._steps = 0
      _log.info(f'no profile was written ({errors.first_line(error)})')
      return False
    return True
