"""Defines the training loop: the order of events and nothing else.

Order of resume sources (`initialize.find`), the first that exists wins:
  1. the newest good checkpoint of the run's own workdir: the whole state,
  2. `config.train.init_from`: parameters and BatchNorm statistics of another run or of a file,
  3. fresh parameters from `config.seed`.
With 1, the config and the data are those of the steps so far; `resume` refuses or logs what is different.

Order of events when step s is done:
  1. the host fetches the metrics of the steps up to s after it has dispatched the next steps, so that the device does
     not wait for the host (before 2 and 3, before a compilation and at the end, at once); a loss that is not finite
     stops the run; a training line at every `train.log_every`; then a telemetry line, if s is a multiple of
     `telemetry.every`, and its warnings,
  2. a checkpoint, if s is a multiple of `checkpoint.every` or the run ends here; it holds the state of the phase that
     ends at s, if one does,
  3. evaluation, if s is a multiple of `eval.every` or the last step; then the best metric and patience, which the
     checkpoint of step s gets once it is on disk. A run that is killed in between does 3 when it continues from there;
     so does one that stopped because an image could not be read, as it saves what it has trained,
  4. the end, if s is the last step, patience has run out (then with a training line and a checkpoint) or a signal
     requested it; a signal also ends 3, and the wait for data or a compilation; the process that continues from here
     does 3. Otherwise the split `test`, if it is labelled and not in `eval.splits`, is evaluated with the weights of
     this step and of the best checkpoint,
  5. the next phase, if one starts at s: a line on what trains, and the optimizer's state for the parameters that begin.
"""

import contextlib
import logging
import os
import pathlib
import threading
import time
from collections.abc import Collection, Generator
from typing import Any, NamedTuple

import jax

from dnt import buckets, checkpoints, errors, files
from dnt import config as schema
from dnt import workdir as workdir_lib
from dnt.config import run_config, typed
from dnt.data import pipeline
from dnt.diagnostics import lr_find
from dnt.finetune import feature_cache
from dnt.models import layouts
from dnt.parallel import activity, cpu, multihost, ownership, preemption, sharding, signals
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.reporting import terminal
from dnt.training import (
  calendar,
  evaluate,
  experiment,
  finish,
  initialize,
  precompile,
  prepare,
  profiling,
  record,
  report,
  resume,
  steps,
  watchdog,
)

_log = logging.getLogger(__name__)
_alone = threading.Lock()  # held by the run of this process


def train(
  config: typed.Config,
  workdir: str | pathlib.Path,
  clock: record.Clock | None = None,
  command: str = '',
  allow: Collection[str] = (),
  profile: int = 0,
) -> dict[str, Any]:
  """Trains from the current state of the workdir to the end of the config, or until a signal requests a stop.

  In another thread than the main one it takes no signals: they stay the business of the main thread. A process trains
  one run at a time, as Orbax numbers the checkpoints that a process writes, whatever their workdirs.

  Args:
    config: a training config, as `dnt.config.default` makes it; it is validated here and not changed,
      except that an old spelling becomes today's.
    workdir: where the run writes everything, a folder (`~` is the home folder) or gs://<bucket>/<path>; docs/runs.md
      lists the files.
    clock: started when the program began; None: it starts now.
    command: the command line, for the report.
    allow: keys of options that a run which continues may change although this makes it another experiment.
    profile: number of steps to profile, see `training.profiling`.

  Returns:
    The summary, with the contents of `summary.json`. A run that a signal has stopped, such as Ctrl-C, returns it too:
    `stopped_by` is the signal, and `finished` is False.

  Raises:
    errors.InputError: config, data and checkpoint do not fit together, the run was trained with another config,
      another run owns the workdir, or this process trains another run; nothing has run and nothing saved is lost.
    errors.RunError: a loss or state is not finite, or a file cannot be written; the last good checkpoint remains.
    KeyboardInterrupt: a second Ctrl-C, where no program of dnt runs; what was saved before remains, with the checkpoint
      that was being written.
  """
  with _only_run(workdir):
    schema.validate(config)
    cpu.check()
    compile_lib.check()
    workdir = os.path.expanduser(workdir)
    files.check_workdir(workdir)
    clock = clock or record.Clock(time.monotonic())
    with ownership.own(workdir), buckets.Mirror(workdir) as mirror:
      workdir_lib.check_format(mirror.folder)
      prepare.check_files(mirror.folder)
      summary = _train(config, mirror, clock, command, allow, profile)
      with signals.hold():
        mirror.upload()
      return summary


@contextlib.contextmanager
def _only_run(workdir: str | pathlib.Path) -> Generator[None]:
  """Refuses a second run of this process, and turns errors of files into those of dnt."""
  if not _alone.acquire(blocking=False):
    raise errors.InputError(
      f'{workdir} cannot be trained now: another thread of this process trains a run. Wait until it ends, or train in '
      'another process'
    )
  try:
    yield
  except OSError as error:
    if error.filename is None:
      raise
    raise errors.of_file(error) from error
  finally:
    _alone.release()


def _train(
  config: typed.Config, mirror: buckets.Mirror, clock: record.Clock, command: str, allow: Collection[str], profile: int
) -> dict[str, Any]:
  """Trains as `train` does, in a workdir that this run owns."""
  workdir = mirror.folder
  mesh = mesh_lib.make_mesh(config.mesh)
  if config.optim.learning_rate == schema.AUTO:
    lr_find.check(config)
  prepared = prepare.prepare(config, workdir, mesh, allow)
  run, data, saved, fingerprint = prepared.run, prepared.data, prepared.saved, prepared.fingerprint
  _log.info(report.block_table(run.table, run.trace.outside))
  if len(run.phases) > 1 or run.phases[0].partition.frozen:
    for phase in run.phases[run.phases.index(run.phase(saved.latest_step or 0)) :]:
      _log.info(_line(run, phase))
  if config.mesh.fsdp > 1:
    _log.info(sharding.describe(mesh, sharding.table(mesh, run.abstract_state().params, run.split_axes)))
  if (summary := prepare.already_done(prepared, command)) is not None:
    return summary
  _log.info(report.device_line(mesh))
  provenance = {'data': fingerprint, 'versions': report.versions(), 'devices': report.devices(mesh)}
  del prepared  # it would keep the data that the features replace
  run, data = feature_cache.use(run, data, mesh, workdir)
  run = lr_find.settle(run, data, mesh, workdir)

  with (
    contextlib.closing(pipeline.make_train_loader(run.config, data.train, mesh)) as loader,
    evaluate.Evaluator(run, mesh, data.evaluation) as evaluator,
    precompile.Programs(run, mesh, loader, evaluator, clock) as programs,
  ):
    if data.weights and saved.latest_step is None:
      provenance['weights'] = data.weights.describe()
    start = initialize.find(run, mesh, saved, data.weights)
    programs.prepare(start.shapes, start.step)
    state = initialize.make_state(run, mesh, start)
    step, history = start.step, start.history
    if 'weights' in history:  # the run began with them
      provenance['weights'] = history['weights']
    del start  # it would keep a second copy of the state for as long as the run lasts
    trained = resume.of_meta(history, workdir)  # not that of a newer checkpoint, which is damaged
    changed = resume.find_changes(run, fingerprint, trained, step)
    resume.check(run, changed, allow, workdir)
    if multihost.is_lead():
      left_open = run_config.merge_open(workdir / workdir_lib.CONFIG, config, run.config, begun=bool(history))
      run_config.write(workdir / workdir_lib.CONFIG, run.config, provenance | left_open)
      workdir_lib.write_format(workdir)
    clock.lap('setup')
    with (
      preemption.Guard() as guard,
      watchdog.Watchdog(clock),
      terminal.outlive(guard.stop_without_output),
      record.Record(run, workdir, step, history, clock, provenance) as rec,
    ):
      evaluator.between = guard.interrupt
      if history:
        _log.info(f'continuing from step {step}')
        noted = resume.log(changed, run, trained, step)
        noted |= resume.log_circumstances(trained, provenance['versions'], provenance['devices'], step)
        rec.add_change(step, noted)
      with finish.naming_kept(saved, workdir), finish.writing(saved):
        with profiling.Profile(workdir, profile, step, run.config.train.steps) as profiled:
          state = _run(_Session(run, mesh, loader, programs, saved, mirror, rec, clock, guard, profiled), state)
        activity.note(activity.END, int(state.step))
        saved.wait()
        if rec.is_finished(int(state.step)) and not guard.stopped_by:
          end = guard.attempt(finish.evaluate_rest, run, mesh, data, evaluator, state, workdir, rec, ends_alone=False)
          if end is not None:
            rec.add_end(int(state.step), *end)
  return report.write(run, rec, state, workdir, mesh, command, guard.stopped_by)


class _Session(NamedTuple):
  """Holds the objects that a run uses from its first step to its last."""

  run: experiment.Experiment
  mesh: jax.sharding.Mesh
  loader: pipeline.Loader
  programs: precompile.Programs
  saved: checkpoints.Checkpoints
  mirror: buckets.Mirror
  rec: record.Record
  clock: record.Clock
  guard: preemption.Guard
  profiled: profiling.Profile


class _Pending:
  """Holds the metrics of the last steps, which the device may still be computing, until the record takes them."""

  def __init__(self, rec: record.Record):
    self._rec, self._waiting = rec, None

  def flush(self) -> None:
    """Waits for the metrics, if there are any, and passes them to the record."""
    if self._waiting:
      start, count, metrics = self._waiting
      self._waiting = None
      activity.note(activity.WAIT, start)
      self._rec.add_training(start, count, jax.device_get(metrics))

  def replace(self, start: int, count: int, metrics: dict[str, Any]) -> None:
    """Flushes the metrics of the older steps, then stores those of newer, dispatched steps."""
    self.flush()
    self._waiting = (start, count, metrics)


def _run(session: _Session, state: steps.TrainState) -> steps.TrainState:
  """Trains from a state to the end, in the order of events of this module's docstring; returns the last state."""
  run, programs, rec = session.run, session.programs, session.rec
  due, pending = calendar.Calendar(run), _Pending(rec)
  step, requested = int(state.step), False
  start = step
  phase = run.phase(step)

  while True:
    evaluating = due.evaluates(step) and rec.evaluated_at < step and not requested
    ending = step == due.total or requested or rec.out_of_patience
    saving = step > 0 and (due.saves(step) or ending)
    if evaluating or saving:
      pending.flush()
    if saving:
      _save(session, step, state)
    if evaluating:
      with _keeping(session, pending, step, state):
        result = session.guard.attempt(programs.evaluate, state, step, ends_alone=step == start)
        if result is not None:
          rec.add_evaluation(step, result)
      if result is None:
        requested = True
        continue
      if rec.out_of_patience and not ending:
        ending = saving = True
        _save(session, step, state)
      if saving or step == start > 0:  # an earlier process may have saved it without its evaluation, as on a signal
        session.mirror.upload()
        session.saved.rate(step, rec.history(), rec.metrics)
        session.clock.lap('checkpoint')
    if ending:
      return state

    ended = state
    if run.phase(step).start > phase.start:
      phase = run.phase(step)
      pending.flush()
      _log.info(_line(run, phase))
      state = initialize.advance(run, session.mesh, state, phase)
      programs.prepare(state, step)

    count = due.steps_at_once(step, session.loader.max_steps(step))
    if not programs.is_ready(step):
      pending.flush()
    with _keeping(session, pending, step, ended):  # it reads the images before it starts the step
      dispatch = session.guard.attempt(programs.next_steps, state, step, count, ends_alone=step == start)
    if dispatch is None:
      state, requested = ended, True
      continue
    del ended  # at the start of a phase it is a second copy
    with session.profiled.step(step, pending.flush):
      state, metrics = dispatch(state)
    pending.replace(step, count, metrics)
    step += count
    requested = session.guard.requested(next(session.guard.counter))


def _line(run: experiment.Experiment, phase: experiment.Phase) -> str:
  return report.phase_line(phase, run.table, run.trace.variables['params'])


def _save(session: _Session, step: int, state: steps.TrainState) -> None:
  """Begins to write the checkpoint of a step, whose state is that of the phase that ends there."""
  activity.note(activity.SAVE, step)
  if session.rec.out_of_patience:  # no later step would complete the line
    session.rec.write_line(step)
  session.mirror.upload()  # the lines up to this step, before the checkpoint that goes on after them
  session.saved.save(step, layouts.to_unrolled(state, session.run.trace.scanned), session.rec.history())
  session.clock.lap('checkpoint')


@contextlib.contextmanager
def _keeping(session: _Session, pending: _Pending, step: int, state: steps.TrainState) -> Generator[None]:
  """Saves the state of a step before an error ends the run."""
  try:
    yield
  except Exception as error:
    pending.flush()
    # Of several processes, the others come here too only if they have agreed on the error.
    if step > 0 and (multihost.is_single() or isinstance(error, evaluate.UnreadableError)):
      _save(session, step, state)
    raise
