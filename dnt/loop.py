"""The loop: the order of events and nothing else.

Order of resume sources (`initial.state`), the first that exists wins:
  1. the newest good checkpoint of the run's own workdir: the whole state,
  2. `config.train.init_from`: parameters and BatchNorm statistics of another run or of a file,
  3. fresh parameters from `config.seed`.

Order of events when step s is done:
  1. the metrics of the steps up to s are fetched once the next steps are dispatched, so that the device does not wait
     for the host (before 2 and 3, before a compilation and at the end, at once); a loss that is not finite stops the
     run; a training line at every `train.log_every`; then a telemetry line, if s is a multiple of `telemetry.every`,
     and what it warns of,
  2. evaluation, if s is a multiple of `eval.every` or the last step; then the best metric and patience,
  3. a checkpoint, if s is a multiple of `checkpoint.every` or the run ends here; it holds the state of the stage that
     ends at s, if one does,
  4. the end, if s is the last step, patience is over or a signal asked for it; after a signal 2 is left to the process
     that goes on from here, so that the checkpoint is not kept waiting,
  5. the next stage, if one starts at s: the optimizer's state of what begins to train.
"""

import contextlib
import itertools
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np

from dnt import checkpoints, errors, files
from dnt.data import pipeline
from dnt.diagnostics import lr_find
from dnt.finetune import feature_cache
from dnt.models import depth
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import multihost, preemption
from dnt.training import evaluate, experiment, initialize, periodic, precompile, record, report, steps


def train(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, clock: record.Clock, command: str
) -> dict[str, Any]:
  """Trains from wherever the workdir stands to the end of the config, or until asked to stop.

  Args:
    config: a validated config.
    workdir: where everything is written; the README lists the files.
    clock: started when the program began.
    command: the command line, for the record.

  Returns:
    The summary, as `summary.json` holds it.

  Raises:
    errors.InputError: config, data and checkpoint that do not fit together; nothing was run, nothing saved is lost.
    errors.RunError: a loss or state that is not finite; the last good checkpoint stands.
  """
  saved = checkpoints.Checkpoints(workdir, config.checkpoint)
  mesh = mesh_lib.make_mesh(config.mesh)
  mesh_lib.check_batch('config.train.batch_size', config.train.batch_size, mesh, config.train.accumulate)
  mesh_lib.check_batch('config.eval.batch_size', config.eval.batch_size, mesh)
  if not config.optim.learning_rate:
    lr_find.check(config)
  data = experiment.load_data(config, config.eval.splits)
  run = experiment.make(experiment.resolve(config, data), data.spec)
  if multihost.is_lead():
    print(report.block_table(run.table))
  run, data = feature_cache.use(run, data, mesh, workdir)
  run = lr_find.settle(run, data, mesh, workdir)

  with (
    contextlib.closing(pipeline.make_train_feed(run.config, data.train, mesh)) as feed,
    evaluate.Evaluator(run, mesh, data.evaluation) as evaluator,
    precompile.Programs(run, mesh, feed, evaluator) as compiled,
  ):
    state, history = initialize.state(run, mesh, saved, compiled.ahead)
    if multihost.is_lead():
      files.write_json(workdir / 'config.json', run.config.to_dict())
    clock.lap('setup')
    with preemption.Guard() as guard, record.Record(run, workdir, int(state.step), history, clock) as rec:
      if history:
        rec.say(f'going on from step {int(state.step)}')
      try:
        state = _loop(run, mesh, state, feed, compiled, evaluator, saved, rec, clock, guard)
      except errors.RunError as error:
        saved.close()
        kept = 'none was saved' if saved.latest_step is None else f'the checkpoint of step {saved.latest_step} is kept'
        raise errors.RunError(f'{error}; {kept} in {workdir}') from error
      saved.close()
  return report.write(run, rec, state, workdir, mesh, command)


def _loop(
  run: experiment.Experiment,
  mesh: jax.sharding.Mesh,
  state: steps.TrainState,
  feed: pipeline.Feed,
  compiled: precompile.Programs,
  evaluator: evaluate.Evaluator,
  saved: checkpoints.Checkpoints,
  rec: record.Record,
  clock: record.Clock,
  guard: preemption.Guard,
) -> steps.TrainState:
  total = run.config.train.steps
  evaluation, saving = run.every(run.config.eval.every), run.every(run.config.checkpoint.every)
  telemetry = run.every(run.config.telemetry.every)
  stops = [
    evaluation,
    saving,
    run.every(run.config.train.log_every),
    periodic.Every(run.config.train.steps_per_dispatch),
  ]
  rows = depth.scanned_rows(state.params)
  step, pending, asked, counter = int(state.step), None, False, itertools.count()
  stage = run.stage(step)
  while True:
    evaluation_due = rec.evaluated_at < step and (evaluation.due(step) or step == total) and not asked
    ending = step == total or asked or rec.out_of_patience
    if pending and (evaluation_due or saving.due(step) or ending):
      rec.trained(*_fetch(pending))
      pending = None
    if evaluation_due:
      compiled.get(precompile.EVALUATION, step, state)
      clock.lap('compile')
      rec.evaluated(step, evaluate.evaluate_all(evaluator, evaluate.variables_of(state)))
      ending = ending or rec.out_of_patience
    if step and (saving.due(step) or ending):
      metric = rec.last[rec.best_metric] if rec.evaluated_at == step else None
      saved.save(step, depth.to_unrolled(state, rows), rec.history(), metric)
      clock.lap('checkpoint')
    if ending:
      return state

    if run.stage(step).start > stage.start:
      stage = run.stage(step)
      state = initialize.advance(run, mesh, state, stage)
      compiled.ahead(mesh_lib.shapes(state, mesh_lib.parameter_shardings(mesh, state)), step)

    # To the next step at which to look up; the same after a resume, so that the programs run alike. A step that shows
    # its telemetry is a program of its own.
    shows = telemetry.due(step + 1)
    upcoming = [at for event in stops if (at := event.next(step)) is not None]
    upcoming += [later.start for later in run.stages if later.start > step]
    upcoming += [at - 1 for at in [telemetry.next(step)] if at is not None and not shows]
    count = 1 if shows else min(total - step, feed.max_steps(step), min(upcoming) - step)
    arrays = feed.arrays(step, count)
    name = precompile.TELEMETRY if shows else precompile.PLAIN
    if not compiled.is_ready(name, step):
      if pending:
        rec.trained(*_fetch(pending))
        pending = None
      compiled.get(name, step, state)
      clock.lap('compile')
    state, metrics = compiled.get(name, step, state)(state, arrays, np.int32(count))
    if pending:
      rec.trained(*_fetch(pending))
    pending = (step, count, metrics)
    step += count
    asked = guard.requested(next(counter))


def _fetch(pending: tuple[int, int, dict[str, Any]]) -> tuple[int, int, dict[str, Any]]:
  start, count, metrics = pending
  return start, count, jax.device_get(metrics)
