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
  5. the next phase, if one starts at s: the optimizer's state for the parameters that begin to train.
"""

import contextlib
import logging
import os
import pathlib
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax

from dnt import buckets, checkpoints, errors, files
from dnt import config as schema
from dnt import workdir as workdir_lib
from dnt.config import changes, run_config, typed
from dnt.data import pipeline
from dnt.diagnostics import lr_find
from dnt.finetune import feature_cache
from dnt.models import layouts
from dnt.optim import chain
from dnt.parallel import activity, cpu, multihost, ownership, preemption, sharding, signals
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.reporting import metric_names, terminal
from dnt.training import (
  budget,
  calendar,
  datasets,
  evaluate,
  experiment,
  initialize,
  open_options,
  precompile,
  profiling,
  record,
  report,
  resume,
  steps,
  watchdog,
)

_log = logging.getLogger(__name__)
_alone = threading.Lock()  # held by the run of this process
# The sections of the options that decide how steps train.
_TRAINED = ('seed', 'data', 'model', 'loss', 'optim', 'schedule', 'clip', 'finetune', 'ema', 'train')


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
  if not _alone.acquire(blocking=False):
    raise errors.InputError(
      f'{workdir} cannot be trained now: another thread of this process trains a run. Wait until it ends, or train in '
      'another process'
    )
  try:
    return _train_alone(config, workdir, clock, command, allow, profile)
  except OSError as error:
    if error.filename is None:
      raise
    raise errors.of_file(error) from error
  finally:
    _alone.release()


def _train_alone(
  config: typed.Config,
  workdir: str | pathlib.Path,
  clock: record.Clock | None,
  command: str,
  allow: Collection[str],
  profile: int,
) -> dict[str, Any]:
  """Trains as `train` does, as the only run of this process."""
  schema.validate(config)
  cpu.check()
  compile_lib.check()
  workdir = os.path.expanduser(workdir)
  files.check_workdir(workdir)
  clock = clock or record.Clock(time.monotonic())
  with ownership.own(workdir), buckets.Mirror(workdir) as mirror:
    workdir_lib.check_format(mirror.folder)
    summary = _train(config, mirror, clock, command, allow, profile)
    with signals.hold():
      mirror.upload()
    return summary


def _train(
  config: typed.Config, mirror: buckets.Mirror, clock: record.Clock, command: str, allow: Collection[str], profile: int
) -> dict[str, Any]:
  """Trains as `train` does, in a workdir that this run owns."""
  workdir = mirror.folder
  mesh = mesh_lib.make_mesh(config.mesh)
  run, data, fingerprint, saved, meta, found = _prepare(config, workdir, mesh, allow)
  _log.info(report.block_table(run.table, run.trace.outside))
  if config.mesh.fsdp > 1:
    _log.info(sharding.describe(mesh, sharding.table(mesh, run.abstract_state().params, run.split_axes)))
  if (summary := _already_done(run, workdir, saved, mesh, command, meta, found)) is not None:
    return summary
  provenance = {'data': fingerprint, 'versions': report.versions(), 'devices': report.devices(mesh)}
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
      run_config.write(workdir / workdir_lib.CONFIG, run.config, provenance | _left_open(config, run, workdir, history))
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
      try:
        with profiling.Profile(workdir, profile, step, run.config.train.steps) as profiled:
          state = _run(_Session(run, mesh, loader, programs, saved, mirror, rec, clock, guard, profiled), state)
        activity.note(activity.END, int(state.step))
        saved.wait()
        if rec.is_finished(int(state.step)) and not guard.stopped_by:
          end = guard.attempt(_evaluate_end, run, mesh, data, evaluator, state, workdir, rec, ends_alone=False)
          if end is not None:
            rec.add_end(int(state.step), *end)
        saved.close()
      except (errors.InputError, errors.RunError, OSError) as error:
        raise _failed(error, saved, workdir) from error
      finally:
        _end_writing(saved)
  return report.write(run, rec, state, workdir, mesh, command, guard.stopped_by)


def _left_open(
  config: typed.Config, run: experiment.Experiment, workdir: pathlib.Path, history: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns what `config.json` records of the options that the config left open; nothing if the run began without it.

  The config of such a run, of an older version, has all of them determined.
  """
  found = run_config.left_open(config, run.config)
  if not history:
    return {run_config.OPEN: found}
  with contextlib.suppress(errors.InputError):  # a damaged file is written anew
    recorded = run_config.recorded_open(files.read_object(workdir / workdir_lib.CONFIG))
    return {} if recorded is None else {run_config.OPEN: recorded | found}
  return {}


class _Prepared(NamedTuple):
  """Holds what a run needs before it computes anything.

  Attributes:
    run: the experiment.
    data: its images.
    fingerprint: the fingerprint of each split.
    saved: the checkpoints of the workdir.
    meta: the `meta` of the newest one, see `checkpoints.read_meta`.
    found: how config and data differ from those of the newest checkpoint.
  """

  run: experiment.Experiment
  data: datasets.Data
  fingerprint: dict[str, Any]
  saved: checkpoints.Checkpoints
  meta: dict[str, Any]
  found: list[changes.Change]


def _prepare(config: typed.Config, workdir: pathlib.Path, mesh: jax.sharding.Mesh, allow: Collection[str]) -> _Prepared:
  """Reads the data, builds the experiment, and refuses what cannot run here or cannot continue the run."""
  mesh_lib.check_batch('config.train.batch_size', config.train.batch_size, mesh, config.train.accumulate)
  mesh_lib.check_batch('config.eval.batch_size', config.eval.batch_size, mesh)
  if config.optim.learning_rate == schema.AUTO:
    lr_find.check(config)
  meta = checkpoints.read_meta(workdir)
  trained = resume.of_meta(meta, workdir)
  config = resume.keep_open(config, trained)
  data = datasets.load(config, config.eval.splits, workdir, test=True)
  run = experiment.make(open_options.rank(open_options.resolve(config, data), data), data.spec)
  fingerprint = data.fingerprint()
  budget.check_training(run, mesh)
  budget.check_evaluation(run, mesh)
  if data.held_out:
    _log.info(
      f'val is {config.data.val_fraction:.0%} of the images of train, held out (config.data.val_fraction); a run that '
      'begins trains on all of them if config.eval.splits does not name val and config.data.hold_out is not set'
    )
  if problem := chain.undecayed(run.config, run.abstract_state().params, run.entries, run.phases[-1].partition):
    _log.info(problem)
  if pipeline.resizes_apart(run.config.data, data.train.shape):
    _log.info(
      f'training squashes whole images (config.data.augment={config.data.augment}), and evaluation crops their borders '
      '(config.data.eval_resize=center_crop): to make them agree, set config.data.eval_resize=squash or '
      'config.data.augment=resized_crop_flip'
    )
  saved = checkpoints.Checkpoints(workdir, run.config.checkpoint, metric_names.ranking(run.config))
  found = resume.find_changes(run, fingerprint, trained, saved.latest_step or 0)
  resume.check(run, found, allow, workdir, saved)
  return _Prepared(run, data, fingerprint, saved, meta, found)


def _failed(error: Exception, saved: checkpoints.Checkpoints, workdir: pathlib.Path) -> Exception:
  """Returns the error of a run that failed at `error`, with the newest checkpoint that is kept."""
  with contextlib.suppress(errors.RunError):  # the first error counts
    saved.close()
  if isinstance(error, OSError):
    if error.filename is None:
      return error
    error = errors.of_file(error)
  try:
    step = saved.newest_on_disk()
  except OSError:  # a bucket that does not answer
    return type(error)(str(error))
  kept = 'none was saved' if step is None else f'the checkpoint of step {step} is kept'
  # Other files change the data of the steps so far, which `resume.check` refuses.
  mended = isinstance(error, errors.InputError) and step is not None
  way = f'; if the files of the data change, go on from there with --allow={changes.DATA}' if mended else ''
  return type(error)(f'{error}; {kept} in {buckets.name(workdir)}{way}')


def _end_writing(saved: checkpoints.Checkpoints) -> None:
  """Waits until no thread writes a checkpoint, whatever ends the run: the next one removes what is not complete.

  A Ctrl-C meanwhile does not end it, but a second one does, as a file server may never answer; in a program already the
  first does, which ends with its threads. Of several processes, one that fails alone would wait for the others.
  """
  if not multihost.is_single():
    return
  with contextlib.suppress(errors.RunError):  # the first error counts
    try:
      saved.close()
    except KeyboardInterrupt:
      _log.info('waiting for the checkpoint that is being written; press Ctrl-C again to give it up')
      saved.close()


def _already_done(
  run: experiment.Experiment,
  workdir: pathlib.Path,
  saved: checkpoints.Checkpoints,
  mesh: jax.sharding.Mesh,
  command: str,
  meta: Mapping[str, Any],
  found: Collection[changes.Change],
) -> dict[str, Any] | None:
  """Returns the summary of a run that has nothing to do with this config, else None; changes no file.

  It has done more steps than the config asks for; or as many, or all that patience gave it, and has ended, but was
  trained with other values, which `config.json` must keep.
  """
  total, latest = run.config.train.steps, saved.latest_step or 0
  # Another ranking counts anew.
  waited = meta.get('evaluations_without_better', 0) if record.is_ranked_alike(run.config, meta) else 0
  impatient = latest <= total and record.is_out_of_patience(run.config, waited)
  last = latest if impatient else total
  # Those of evaluations and checkpoints may rank anew. The paths in `config.json` are the lead's.
  other = multihost.broadcast_from_lead(
    [each.key for each in found if each.on_resume != schema.FREE and each.key.split('.')[0] in _TRAINED]
  )
  if latest < last or (latest == last and not (other and _has_ended(workdir, last))):
    return None
  # Not the whole state: with fewer steps, the last phases may be missing, and with them their optimizer's state.
  newest = checkpoints.load_parameters(workdir)
  if newest.step < last or (newest.step == last and latest > last):  # newer ones are damaged
    return None
  held = {'params': newest.params, 'batch_stats': newest.batch_stats}
  params = initialize.match(run.trace, held, f'checkpoint {newest.step} in {buckets.name(workdir)}')['params']
  if note := resume.epochs_note(found, run.spec, newest.step):
    _log.info(note)
  if newest.step == last:
    why = 'with all of its steps' if last == total else 'as patience ran out'
    ways = ['more config.train.steps'] if last == total else []
    if impatient:
      ways.append(f'a config.train.patience above {waited}')
    _log.info(
      f'this run has ended at step {last:,} {why}, so that another {errors.list_names(other)} has no effect: '
      f'nothing in the workdir changes. With {" and ".join(ways)} the run goes on; or give another --workdir'
    )
  else:
    _log.info(
      f'this run has already done {newest.step:,} steps, more than the {total:,} of config.train.steps: there is '
      'nothing to do, and nothing in the workdir changes. For a shorter run, give another --workdir'
    )
  return report.summarize(run, newest.meta, newest.step, params, True, mesh, command)


def _has_ended(workdir: pathlib.Path, step: int) -> bool:
  """Returns whether the summary says that the run has ended after this step."""

  def read():
    with contextlib.suppress(errors.InputError):
      summary = files.read_object(workdir / workdir_lib.SUMMARY)
      return summary.get('finished') is True and summary.get('step') == step
    return False

  return multihost.on_lead(read)


def _evaluate_end(
  run: experiment.Experiment,
  mesh: jax.sharding.Mesh,
  data: datasets.Data,
  evaluator: evaluate.Evaluator,
  state: steps.TrainState,
  workdir: pathlib.Path,
  rec: record.Record,
) -> tuple[evaluate.Result, dict[str, Any]]:
  """Evaluates the splits that the run has not measured at its end, with its last weights and its best checkpoint.

  These are those that are looked at only now, and those that `eval.splits` of a run that had ended did not name.

  Returns:
    The result of the last weights, and the step and the metrics of the best checkpoint; both empty without such splits,
    the second also if no checkpoint is the best, or if the best is damaged.
  """
  splits = [split for split in data.evaluation if split not in rec.measured]
  if not splits:
    return evaluate.Result({}, {}, {}), {}
  last = best = evaluate.evaluate_all(evaluator, evaluate.get_variables(state), splits)
  if not rec.best:
    return last, {}
  try:
    step = checkpoints.choose_step(workdir, checkpoints.BEST, rec.best_metric)
  except errors.InputError:  # the value is not finite in any checkpoint that was kept
    return last, {}
  if step != int(state.step):
    try:
      loaded = checkpoints.load_parameters(workdir, step)
    except errors.InputError as error:  # the run has trained all its steps, and would fail at its end each time
      _log.info(f'the run ends without the figures of its best checkpoint: {error}')
      return last, {}
    best = evaluate.evaluate_all(evaluator, evaluate.place(run, mesh, loaded, workdir), splits)
  return last, {'step': step, **best.metrics}


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
  run, programs, rec = session.run, session.programs, session.rec
  due, pending = calendar.Calendar(run), _Pending(rec)
  rows = layouts.scanned_rows(state.params)
  step, requested = int(state.step), False
  start = step
  phase = run.phase(step)

  def save(trained):
    activity.note(activity.SAVE, step)
    if rec.out_of_patience:  # no later step would complete the line
      rec.write_line(step)
    session.mirror.upload()  # the lines up to this step, before the checkpoint that goes on after them
    session.saved.save(step, layouts.to_unrolled(trained, rows), rec.history())
    session.clock.lap('checkpoint')

  @contextlib.contextmanager
  def keeping(trained):
    """Saves a state, that of the phase that ends, before an error ends the run."""
    try:
      yield
    except Exception as error:
      pending.flush()
      # Of several processes, the others come here too only if they have agreed on the error.
      if step > 0 and (multihost.is_single() or isinstance(error, evaluate.UnreadableError)):
        save(trained)
      raise

  while True:
    evaluating = due.evaluates(step) and rec.evaluated_at < step and not requested
    ending = step == due.total or requested or rec.out_of_patience
    saving = step > 0 and (due.saves(step) or ending)
    if evaluating or saving:
      pending.flush()
    if saving:
      save(state)
    if evaluating:
      with keeping(state):
        result = session.guard.attempt(programs.evaluate, state, step, ends_alone=step == start)
        if result is not None:
          rec.add_evaluation(step, result)
      if result is None:
        requested = True
        continue
      if rec.out_of_patience and not ending:
        ending = saving = True
        save(state)
      if saving or step == start > 0:  # an earlier process may have saved it without its evaluation, as on a signal
        session.mirror.upload()
        session.saved.rate(step, rec.history(), rec.metrics)
        session.clock.lap('checkpoint')
    if ending:
      return state

    ended = state
    if run.phase(step).start > phase.start:
      phase = run.phase(step)
      state = initialize.advance(run, session.mesh, state, phase)
      programs.prepare(state, step)

    count = due.steps_at_once(step, session.loader.max_steps(step))
    if not programs.is_ready(step):
      pending.flush()
    with keeping(ended):  # it reads the images before it starts the step
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
