"""Ends a run: the last evaluation, the checkpoint that is still being written, and the words of an error."""

import contextlib
import logging
import pathlib
from collections.abc import Generator
from typing import Any

from jax.sharding import Mesh

from dnt import buckets, checkpoints, errors
from dnt.config import changes
from dnt.parallel import multihost
from dnt.training import datasets, evaluate, experiment, record, steps

_log = logging.getLogger(__name__)
_NAMED = (errors.InputError, errors.RunError, OSError)  # the errors that `name_kept` completes


def evaluate_rest(
  run: experiment.Experiment,
  mesh: Mesh,
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


@contextlib.contextmanager
def writing(saved: checkpoints.Checkpoints) -> Generator[None]:
  """Waits at its end until no thread writes a checkpoint, whatever ends the run.

  The next run removes what is not complete. A Ctrl-C while it waits after an error does not end it, but a second one
  does, as a file server may never answer; in a program already the first does, which ends with its threads. Of several
  processes, one that fails alone in an unforeseen way does not wait: the others would have to write too.

  Raises:
    errors.RunError: without another error, a checkpoint could not be written.
  """
  try:
    yield
    saved.close()
  except BaseException as error:
    if multihost.is_single() or isinstance(error, _NAMED):
      with contextlib.suppress(errors.RunError):  # the first error counts
        _close(saved)
    raise


def _close(saved: checkpoints.Checkpoints) -> None:
  try:
    saved.close()
  except KeyboardInterrupt:
    _log.info('waiting for the checkpoint that is being written; press Ctrl-C again to give it up')
    saved.close()


@contextlib.contextmanager
def naming_kept(saved: checkpoints.Checkpoints, workdir: pathlib.Path) -> Generator[None]:
  """Completes an error of the run by the newest checkpoint that is kept, and by the way on from there."""
  try:
    yield
  except _NAMED as error:
    raise _name_kept(error, saved, workdir) from error


def _name_kept(error: Exception, saved: checkpoints.Checkpoints, workdir: pathlib.Path) -> Exception:
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
