"""Reads what a run needs before it computes anything, and refuses what cannot run here or cannot continue the run."""

import contextlib
import logging
import pathlib
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax

from dnt import buckets, checkpoints, errors, files
from dnt import workdir as workdir_lib
from dnt.checkpoints import format
from dnt.config import changes, schema, typed, validation
from dnt.data import pipeline, splits
from dnt.models import freeze
from dnt.optim import chain
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import multihost
from dnt.reporting import metric_names
from dnt.training import budget, datasets, experiment, initialize, open_options, record, report, resume
from dnt.weights import pretrained

_log = logging.getLogger(__name__)
# The sections of the options that decide how steps train.
_TRAINED = ('seed', 'data', 'model', 'loss', 'optim', 'schedule', 'clip', 'finetune', 'ema', 'train')


class Prepared(NamedTuple):
  """Holds a run that has computed nothing yet.

  Attributes:
    run: the experiment.
    data: its images.
    fingerprint: the fingerprint of each split.
    mesh: the mesh of the run.
    workdir: folder of the run.
    saved: the checkpoints of the workdir.
    meta: the `meta` of the newest one, see `checkpoints.read_meta`.
    found: how config and data differ from those of the newest checkpoint.
  """

  run: experiment.Experiment
  data: datasets.Data
  fingerprint: dict[str, Any]
  mesh: jax.sharding.Mesh
  workdir: pathlib.Path
  saved: checkpoints.Checkpoints
  meta: dict[str, Any]
  found: Sequence[changes.Change]


def check_files(workdir: pathlib.Path) -> None:
  """Refuses a workdir with files that no run has written, and that a run would replace; every process calls it.

  A run has begun there if there are a format, a checkpoint or a config of dnt. A run writes its config before any other
  of these files; older versions wrote no format.

  Raises:
    errors.InputError: there is such a file.
  """

  def check():
    there = [path for name in workdir_lib.COMMON if (path := workdir / name).is_file()]
    there += workdir_lib.confusion_paths(workdir)
    if not there or (workdir / workdir_lib.VERSION).exists() or format.steps_in(workdir_lib.checkpoints(workdir)):
      return
    if there[0].name == workdir_lib.CONFIG:
      with contextlib.suppress(errors.InputError):
        pretrained.read_run_config(workdir)
        return
    workdir_lib.refuse_others(there[0], 'a run of dnt')

  multihost.on_lead(check)


def prepare(config: typed.Config, workdir: pathlib.Path, mesh: jax.sharding.Mesh, allow: Collection[str]) -> Prepared:
  """Reads the data, builds the experiment and opens the checkpoints.

  Args:
    config: as the user gave it.
    workdir: folder of the run.
    mesh: the mesh of the run.
    allow: keys of options that a run which continues may change although this makes it another experiment.

  Raises:
    errors.InputError: config, data, memory, devices or the newest checkpoint do not fit together.
  """
  mesh_lib.check_batch('config.train.batch_size', config.train.batch_size, mesh, config.train.accumulate)
  mesh_lib.check_batch('config.eval.batch_size', config.eval.batch_size, mesh)
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
  elif problem := _unused_fraction(config):
    _log.info(problem)
  if problem := chain.undecayed(run.config, run.leaves, run.phases[-1].partition):
    _log.info(problem)
  for line in _unreached_phases(run):
    _log.info(line)
  if pipeline.resizes_apart(run.config.data, data.train.shape):
    _log.info(
      f'training squashes whole images (config.data.augment={config.data.augment}), and evaluation crops their borders '
      '(config.data.eval_resize=center_crop): to make them agree, set config.data.eval_resize=squash or '
      'config.data.augment=resized_crop_flip'
    )
  saved = checkpoints.Checkpoints(workdir, run.config.checkpoint, metric_names.ranking(run.config))
  found = resume.find_changes(run, fingerprint, trained, saved.latest_step or 0)
  resume.check(run, found, allow, workdir, saved)
  return Prepared(run, data, fingerprint, mesh, workdir, saved, meta, found)


def _unused_fraction(config: typed.Config) -> str:
  """Says that `data.val_fraction` has no effect with the data of a run which draws no `val`, if it is set."""
  fraction = config.data.val_fraction
  if fraction == schema.default().data.val_fraction or not validation.has_effect(config, 'data.val_fraction'):
    return ''
  why = 'config.eval.splits does not name val'
  if any(splits.parse(text).name == splits.VAL for text in config.eval.splits):
    why = f'{config.data.source} has a val of its own'
  return f'config.data.val_fraction={fraction} has no effect: {why}; config.data.hold_out=True draws one from train'


def _unreached_phases(run: experiment.Experiment) -> list[str]:
  """Says which phases of `finetune.unfreeze` start only when the run has ended."""
  steps = run.config.train.steps
  starts = [(freeze.start_of(at, steps, run.steps_per_epoch), chosen) for at, chosen in run.config.finetune.unfreeze]
  return [
    f'config.finetune.unfreeze: {chosen} would train from step {start} on, but the run ends at step {steps}'
    for start, chosen in starts
    if start >= steps
  ]


def already_done(prepared: Prepared, command: str) -> dict[str, Any] | None:
  """Returns the summary of a run that has nothing to do with this config, else None; changes no file.

  It has done more steps than the config asks for; or as many, or all that patience gave it, and has ended, but was
  trained with other values, which `config.json` must keep.

  Args:
    prepared: the run.
    command: the command line, for the summary.
  """
  run, meta, workdir = prepared.run, prepared.meta, prepared.workdir
  total, latest = run.config.train.steps, prepared.saved.latest_step or 0
  # Another ranking counts anew.
  waited = meta.get('evaluations_without_better', 0) if record.is_ranked_alike(run.config, meta) else 0
  impatient = latest <= total and record.is_out_of_patience(run.config, waited)
  last = latest if impatient else total
  # Those of evaluations and checkpoints may rank anew. The paths in `config.json` are the lead's.
  other = multihost.broadcast_from_lead(
    [each.key for each in prepared.found if each.on_resume != schema.FREE and each.key.split('.')[0] in _TRAINED]
  )
  if latest < last or (latest == last and not (other and _has_ended(workdir, last))):
    return None
  # Not the whole state: with fewer steps, the last phases may be missing, and with them their optimizer's state.
  newest = checkpoints.load_parameters(workdir)
  if newest.step < last or (newest.step == last and latest > last):  # newer ones are damaged
    return None
  held = {'params': newest.params, 'batch_stats': newest.batch_stats}
  params = initialize.match(run.trace, held, f'checkpoint {newest.step} in {buckets.name(workdir)}')['params']
  if note := resume.epochs_note(prepared.found, run.spec, newest.step):
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
  return report.summarize(run, newest.meta, newest.step, params, True, prepared.mesh, command)


def _has_ended(workdir: pathlib.Path, step: int) -> bool:
  """Returns whether the summary says that the run has ended after this step."""

  def read():
    with contextlib.suppress(errors.InputError):
      summary = files.read_object(workdir / workdir_lib.SUMMARY)
      return summary.get('finished') is True and summary.get('step') == step
    return False

  return multihost.on_lead(read)
