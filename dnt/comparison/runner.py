"""Runs the unfinished runs of a comparison, one after the other, each in its own process.

So a run that fails or exhausts the memory does not stop the others. The output of a run goes to `log.txt` in its
workdir, and the reason of a failure to `failure.json`.
"""

import contextlib
import ctypes
import logging
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from dnt import config as schema
from dnt import errors, files, models
from dnt import workdir as workdir_lib
from dnt.comparison import plan
from dnt.config import run_config, typed
from dnt.data import splits
from dnt.parallel import ownership, signals
from dnt.reporting import metric_names, progress, terminal

_POLL = 0.5  # seconds
_POSITION = re.compile(r'step (\d+)/(\d+)')  # as `progress.Progress` begins its line
_PR_SET_PDEATHSIG = 1  # from Linux's prctl.h
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def own(workdir: pathlib.Path, runs: Sequence[plan.Run]) -> Generator[None]:
  """Makes this process the owner of a comparison's workdir within the context.

  Raises:
    errors.InputError: another comparison uses the workdir, or a run that it started and that lives on; or the folder
      cannot be written, or has files that no comparison has written, and that this one would replace.
  """
  with ownership.own(workdir, alone=True):
    plan.check_files(workdir)
    for run in runs:
      ownership.check_free(run.workdir)
    yield


def run(runs: Sequence[plan.Run], ended: Callable[[], None] = lambda: None, ranking: str = '') -> bool:
  """Runs the runs that are not finished.

  Args:
    runs: in their order.
    ended: called after each run that has finished or failed.
    ranking: the metric that ranks the variants; empty: any.

  Returns:
    Whether all runs ended; False after a request to stop, when the current run has saved.

  Raises:
    errors.InputError: a run was done with another config or other images, data is missing, or nothing measures the
      metric that ranks; nothing runs then.
    KeyboardInterrupt: Ctrl-C was pressed twice; the current run has stopped at once.
  """
  finished = {run: plan.is_finished(run) for run in runs}
  plan.check_data([run for run in runs if not finished[run]], [run for run in runs if finished[run]], ranking)
  pace, line = Pace(runs), terminal.StatusLine()
  received: list[int] = []

  def stop():
    if not received:
      received.append(signal.SIGINT)

  with signals.hold(received.append, ends_at_once=False), terminal.outlive(stop):
    for number, each in enumerate(runs, 1):
      if received:
        return False
      place = f'run {number} of {len(runs)}  {each.name}'
      if finished[each]:
        _log.info(f'{place}  already finished')
        continue
      each.workdir.mkdir(parents=True, exist_ok=True)
      error = _without_source(each) or _run_one(each, place, line, pace, received)
      line.close()
      if received.count(signal.SIGINT) > 1:
        raise KeyboardInterrupt
      summary = plan.summary(each) or {}
      if summary.get('finished'):
        last, evaluated = summary['last'], dict.fromkeys([*each.config.eval.splits, splits.TEST])
        names = [metric_names.deciding(last, split, 'accuracy') for split in evaluated]
        shown = {name.replace('/', ' '): progress.format_value(name, last[name]) for name in names if name in last}
        results = [f'{name} {value}' for name, value in shown.items()]
        _log.info('  '.join([place, *results, progress.format_duration(summary['seconds']['total'])]))
      elif not received:
        error = error or f'stopped by a signal at step {summary.get("step", 0)}'
        files.write_json(each.workdir / workdir_lib.FAILURE, {'error': error})
        where = f' (see {log})' if (log := each.workdir / workdir_lib.LOG).exists() else ''
        _log.info(f'{place}  failed: {error}{where}')
      ended()
  return not received or all(plan.is_finished(run) for run in runs)


def _without_source(run: plan.Run) -> str:
  """Returns why a run cannot start: the run that trains its initial weights has failed; '' if it can start."""
  if not run.source or plan.source_weights(run):
    return ''
  failure = files.read_object(run.source.workdir / workdir_lib.FAILURE)
  return f'it starts from {run.source.variant}, which failed: {failure["error"]}'


def _given_defaults(config: typed.Config) -> list[str]:
  """Returns flags for the options that are set to their default and that weights would else decide.

  The file of the config does not say that they are set.
  """
  model = config.model
  if model.name != models.PRETRAINED:
    return []
  kept = [key for key in model if models.is_open(model, key) and not models.is_left(model, key)]
  return [f'--config.model.{key}={model[key]}' for key in kept if not schema.no_effect(config, f'model.{key}')]


def _run_one(run: plan.Run, place: str, line: terminal.StatusLine, pace: 'Pace', received: Sequence[int]) -> str:
  """Runs one run to its end, and passes on to it each signal that is received; returns the error, '' if none."""
  (run.workdir / workdir_lib.FAILURE).unlink(missing_ok=True)
  requested = run.workdir / workdir_lib.REQUESTED
  run_config.write(requested, run.config)
  loader = os.path.relpath(run_config.__file__)
  command = [sys.executable, '-m', 'dnt.main', f'--config={loader}:{requested}', f'--workdir={run.workdir}']
  if run.source:
    files.write_json(run.workdir / workdir_lib.SOURCE, plan.source_weights(run))
    command.append(f'--config.train.init_from={run.source.workdir}')
  command += _given_defaults(run.config)
  environment = {name: value for name, value in os.environ.items() if name != 'DNT_COMMAND'}
  passed_on = 0
  _log.info(f'{place}  starts')
  with (run.workdir / workdir_lib.LOG).open('ab') as log:
    start = log.tell()
    # Use a separate process group: a terminal sends Ctrl-C to its whole group, and a run counts the signals it gets.
    with subprocess.Popen(
      command,
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      env=environment,
      process_group=0,
      preexec_fn=_end_with_parent(),
    ) as child:
      try:
        while True:
          try:
            code = child.wait(_POLL)
            break
          except subprocess.TimeoutExpired:
            pass
          # A run may count two of them as one, see `signals.TOGETHER`.
          again = [signal.SIGINT] if received.count(signal.SIGINT) > 1 else []
          for number in received[passed_on:] or again:
            if not passed_on:
              _log.info('stopping after the current run has saved; press Ctrl-C again to stop at once')
            passed_on += 1
            child.send_signal(number)
          line.update('  '.join([place, *pace.look(run)]))
      except BaseException:
        child.terminate()  # it saves; the end of the context waits for it, and passes on no signals
        raise
  return '' if code == 0 or code in signals.CODES else _reason(run.workdir / workdir_lib.LOG, start, code)


def _end_with_parent() -> Any:
  """Returns a function that a child calls to receive SIGTERM if this process is killed.

  On systems other than Linux it returns None, and the child runs to its end.
  """
  if sys.platform != 'linux':
    return None
  libc = ctypes.CDLL(None)
  return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _reason(log: pathlib.Path, start: int, code: int) -> str:
  """Returns why a run failed: its error line, the signal that ended it, or the last line it wrote."""
  lines = _since(log, start)
  for line in reversed(lines):
    if line.startswith('error: '):
      return line.removeprefix('error: ')
  if code < 0:
    try:
      name = signal.Signals(-code).name
    except ValueError:
      name = f'signal {-code}'
    return f'ended by {name}' + (', which the system sends when memory runs out' if name == 'SIGKILL' else '')
  return lines[-1] if lines else f'ended with exit code {code}'


def _since(log: pathlib.Path, start: int) -> list[str]:
  """Returns the non-empty lines of a log from byte `start` on."""
  with log.open('rb') as file:
    file.seek(start)
    return [line.strip() for line in file.read().decode(errors='replace').splitlines() if line.strip()]


class Pace:
  """Measures the progress of the current run, and estimates the remaining time of all runs.

  The estimate for a run that has not started is the mean time of its variant's runs, or else of all known runs.
  """

  def __init__(self, runs: Sequence[plan.Run], clock: Any = time.monotonic):
    self._runs, self._clock = runs, clock
    self._run: plan.Run | None = None
    self._first: tuple[float, int] | None = None  # time and step at the first look that found a step
    self._last: tuple[float, int] | None = None  # the same at the first look that found the newest step
    self._logged = 0  # bytes of the run's log at the first look

  def look(self, run: plan.Run) -> list[str]:
    """Returns the parts of the status line for the current run's step and the remaining time of all runs.

    A log that cannot be read at the moment, as on a file server, counts as empty.
    """
    now = self._clock()
    path = run.workdir / workdir_lib.LOG
    if run is not self._run:
      self._run, self._first, self._last, self._began, self._logged = run, None, None, now, 0
      with contextlib.suppress(OSError):
        self._logged = path.stat().st_size
      self._took = {each: _seconds(each) for each in self._runs}
    lines = []
    with contextlib.suppress(OSError):
      lines = _since(path, self._logged)
    # The log has every step that the run shows; its record has one line every `log_every`, which may be an hour.
    position = next((found for line in reversed(lines) if (found := _POSITION.match(line))), None)
    if not position:  # it may compute features, which count too
      return ['starting', *(line for line in lines[-1:] if 'ETA' in line)]
    step, total = int(position[1]), int(position[2])
    if not self._last or step != self._last[1]:
      self._last = (now, step)
    self._first = self._first or self._last
    parts = [f'step {step}/{total}']
    (then, first), (seen, _) = self._first, self._last
    if step > first:
      rate = (seen - then) / (step - first)
      left = max((total - step) * rate - (now - seen), 0.0)
      whole = max(now - self._began + left, total * rate)  # a run that goes on did its first steps before
      of_all = left + self._pending(run, whole)
      parts.append(f'ETA {progress.format_duration(left)}, all runs {progress.format_duration(of_all)}')
    return parts

  def _pending(self, run: plan.Run, whole: float) -> float:
    """Returns the seconds of the runs after the current one, of which it takes so many from its step 0 on."""
    known = {each: took for each, took in self._took.items() if took is not None}
    known[run] = whole
    variants: dict[str, list[float]] = {}
    for each, took in known.items():
      variants.setdefault(each.variant, []).append(took)
    mean = statistics.mean(statistics.mean(taken) for taken in variants.values())
    later = self._runs[self._runs.index(run) + 1 :]
    waiting = [each for each in later if each not in known]
    return sum(statistics.mean(variants[each.variant]) if each.variant in variants else mean for each in waiting)


def _seconds(run: plan.Run) -> float | None:
  """Returns how long a finished run took; None for any other, and if its summary is damaged, which others report."""
  with contextlib.suppress(errors.InputError):
    summary = plan.summary(run)
    return summary['seconds']['total'] if summary and summary['finished'] else None
  return None
