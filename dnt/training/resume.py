"""Lets a run continue with the config and data of its steps so far, and says what is different.

What the config leaves open (`optim.learning_rate='auto'`, what pretrained weights determine) stays as it was. Every
other change is refused, logged or free, as `Option.on_resume` says.
"""

import logging
import pathlib
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dnt import buckets, checkpoints, errors, models
from dnt import config as schema
from dnt import workdir as workdir_lib
from dnt.config import changes, implied, older, run_config, typed
from dnt.models import freeze, layouts
from dnt.optim import schedules
from dnt.reporting import progress
from dnt.training import datasets, experiment, open_options
from dnt.weights import preprocessing

_log = logging.getLogger(__name__)
_PHASES = 'finetune.unfreeze'
# The option that a run measures on its images anew whenever it continues.
_MEASURED = 'loss.class_weights'


class Trained(NamedTuple):
  """Describes what the steps of a checkpoint were trained with.

  Attributes:
    config: the resolved config of the run.
    data: the fingerprint of each split, see `dnt.data.fingerprint`; empty if nothing says it.
    older: whether the run is older than `data.hold_out`.
    versions: those of Python and of packages, by name; empty likewise.
    devices: what they ran on, see `report.devices`; empty likewise.
  """

  config: typed.Config
  data: Mapping[str, Any]
  older: bool = False
  versions: Mapping[str, str] = {}
  devices: Mapping[str, Any] = {}


def read(workdir: pathlib.Path) -> Trained | None:
  """Returns what the newest checkpoint of a workdir was trained with; None if there is no checkpoint, or no record.

  Raises:
    errors.InputError: the record is not a config.
  """
  return of_meta(checkpoints.read_meta(workdir), workdir)


def of_meta(meta: Mapping[str, Any], workdir: pathlib.Path) -> Trained | None:
  """Returns what the checkpoint with this `meta` (`record.Record.history`) was trained with; None: nothing says it."""
  if not meta:
    return None
  config = schema.copy_unlocked(run_config.parse(meta['config'], workdir / workdir_lib.CHECKPOINTS))
  open_options.fill_defaults(config.data)
  if ':' not in config.model.name:  # a user's own module may have moved
    config.model.update(models.resolved_options(config.model))
  return Trained(config, meta['data'], older.held_nothing_out(meta['config']), meta['versions'], meta['devices'])


def keep_open(config: typed.Config, trained: Trained | None) -> typed.Config:
  """Returns the config of a run with values that were found when it began, for options that the config leaves open.

  They are the learning rate of a range test, the bits that image files name, the mean and standard deviation of the
  images, the threshold of clipping, the constants of the update rule, the network and preprocessing of pretrained
  weights, and whether `val` is held out of `train`. So the same command continues the same run, even if its weights are
  gone. A run of a version that held nothing out goes on with the splits that it evaluated by default, the first of
  which ranks.

  Args:
    config: a validated config.
    trained: what the run was trained with; None: it begins.
  """
  if trained is None:
    return config
  kept = schema.copy_unlocked(config)
  if config.data.image_bits is None:
    kept.data.image_bits = trained.config.data.image_bits
  if not (config.data.mean or config.data.std):  # measured anew, they may differ with how images are read or evaluated
    kept.data.mean, kept.data.std = trained.config.data.mean, trained.config.data.std
  if config.train.init_from:
    preprocessing.fill(kept.data, preprocessing.of_run(trained.config.data))
  if config.model.name == models.PRETRAINED:
    for key in config.model:
      if key == 'name' or (key not in schema.model_options('run') and models.is_left(config.model, key)):
        kept.model[key] = trained.config.model[key]
  if config.clip.threshold is None and config.clip.name == trained.config.clip.name:
    kept.clip.threshold = trained.config.clip.threshold
  if config.optim.name == trained.config.optim.name:
    before = implied.rule(trained.config.optim)
    kept.optim.update({key: value for key, value in before.items() if config.optim[key] is None})
  if config.data.hold_out is None:
    kept.data.hold_out = trained.config.data.hold_out
    splits_are_open = config.eval.splits == schema.default().eval.splits and not schema.is_given(config.eval, 'splits')
    if trained.older and splits_are_open:
      kept.eval.splits, kept.checkpoint.best_metric = trained.config.eval.splits, trained.config.checkpoint.best_metric
  if config.optim.learning_rate == schema.AUTO:
    rate = schedules.peak_rate(trained.config.optim)
    with kept.ignore_type():  # its current value is a word
      kept.optim.learning_rate = rate
    _log.info(f'learning rate {rate:.3g}, with which this run started')
  return kept


def find_changes(
  run: experiment.Experiment, data: Mapping[str, Any], trained: Trained | None, step: int
) -> list[changes.Change]:
  """Returns how the config and the data differ from those of the steps so far.

  Other images count as a change of `data.source`, unless the change of another option explains them. The class weights
  that are measured on them may then change too. A length that moves the start of a phase across `step` counts as a
  change of `finetune.unfreeze`.

  Args:
    run: the experiment.
    data: the fingerprint of each of its splits.
    trained: what the steps so far were trained with; None: there are none, or nothing says it.
    step: the number of these steps.
  """
  if trained is None:
    return []
  found = changes.find(trained.config, run.config)
  before, now = (_phases(config, run.spec) for config in (trained.config, run.config))
  begun, planned = (sum(start < step for start, _ in phases) for phases in (before, now))
  moved = begun != planned and step <= run.config.train.steps  # a run that is further does nothing
  if before == now or moved:
    found = [change for change in found if change.key != _PHASES]
  if moved:
    was, is_now = ([[str(start), name] for start, name in phases] for phases in (before, now))
    found.append(changes.Change(_PHASES, was, is_now, schema.REFUSE))
  different = [split for split in data if trained.data.get(split, data[split]) != data[split]]
  explained = any(change.role == 'images' for change in found)  # by the config
  if different and not explained:
    was, now = (', '.join(_describe(split, each[split]) for split in different) for each in (trained.data, data))
    found.append(changes.Change(changes.DATA, was, now, schema.REFUSE))
  if different or explained:
    found = [change._replace(on_resume=schema.NOTE) if change.key == _MEASURED else change for change in found]
  return found


def check(
  run: experiment.Experiment,
  found: Sequence[changes.Change],
  allow: Collection[str],
  workdir: pathlib.Path,
  saved: checkpoints.Checkpoints | None = None,
) -> None:
  """Checks that a run may continue with what has changed, as `changes.check` does.

  Args:
    run: the experiment.
    found: from `find_changes`.
    allow: keys that the user allows to change.
    workdir: the workdir of the run, for the message.
    saved: its checkpoints, the newest of which must fit the experiment; None: it is known to fit.

  Raises:
    errors.InputError: it may not.
  """
  misfit = None
  if saved and any(change.on_resume == schema.REFUSE for change in found):

    def unrolled(step):
      return layouts.to_unrolled(run.abstract_state(step), run.trace.scanned)

    misfit = saved.find_misfit(unrolled)
    # A run that has done more steps does not continue.
    if misfit and not misfit.of_network and (saved.latest_step or 0) > run.config.train.steps:
      misfit = None
  same_network = not any(change.role == 'function' for change in found)
  keeps_weights = same_network and not (misfit and misfit.of_network)
  changes.check(found, allow, workdir, misfit.text if misfit else '', keeps_weights)


def log(
  found: Collection[changes.Change], run: experiment.Experiment, trained: Trained | None, step: int
) -> dict[str, dict[str, Any]]:
  """Logs a line for each change, and one if the learning rate is now higher than it stood.

  Args:
    found: from `find_changes`.
    run: the experiment.
    trained: what the steps so far were trained with.
    step: the number of these steps.

  Returns:
    The values `was` and `now` by key, to record.
  """
  shown = [change for change in found if change.on_resume != schema.FREE]
  for change in shown:
    _log.info(f'changed at step {step}: {change.key} was {change.was} and is now {change.now}')
  if note := epochs_note(found, run.spec, step):
    _log.info(note)
  if shown and trained and step < run.config.train.steps:
    rates = schedules.make(
      trained.config.schedule,
      schedules.peak_rate(trained.config.optim),
      trained.config.train.steps,
      run.spec.steps_per_epoch(trained.config.train.batch_size),
    )
    compared = rates(step - 1), rates(step), run.schedule(step)
    stood, planned, now = (np.asarray(rate, float).item() for rate in compared)
    if now > max(stood, planned):
      _log.info(
        f'the learning rate restarts at {progress.format_value("learning_rate", now)}; it stood at '
        f'{progress.format_value("learning_rate", stood)}'
      )
  return {change.key: {'was': change.was, 'now': change.now} for change in shown}


def log_circumstances(
  trained: Trained | None, versions: Mapping[str, str], devices: Mapping[str, Any], step: int
) -> dict[str, dict[str, Any]]:
  """Logs a line if versions or devices are others than for the steps so far, as that may change the last bits of a run.

  Args:
    trained: what the steps so far were trained with.
    versions: the versions of this process.
    devices: the devices of the run.
    step: the number of these steps.

  Returns:
    What was and what is `now`, by `versions.<name>` and `devices.<name>`, to record; None for what is not there.
  """
  found = {}
  if trained:
    shared = [name for name in devices if name in trained.devices]  # accelerators have no cores
    was, is_now = ({name: each[name] for name in shared} for each in (trained.devices, devices))
    for kind, before, now in (('versions', trained.versions, versions), ('devices', was, is_now)):
      names = [name for name in {**before, **now} if before.get(name) != now.get(name)] if before else []
      others = {name: {'was': before.get(name), 'now': now.get(name)} for name in names}
      if others:
        listed = ', '.join(f'{name} was {each["was"]} and is now {each["now"]}' for name, each in others.items())
        _log.info(
          f'other {kind} from step {step}: {listed}; the run goes on, but need not end bit-identical to one without '
          'the change'
        )
      found |= {f'{kind}.{name}': each for name, each in others.items()}
  return found


def epochs_note(found: Collection[changes.Change], spec: datasets.Spec, step: int) -> str:
  """Returns what another batch size makes of the epochs of the steps so far, in words; empty if it has not changed."""
  sizes = next(((change.was, change.now) for change in found if change.key == 'train.batch_size'), None)
  if sizes is None:
    return ''
  was, now = (step / spec.steps_per_epoch(size) for size in sizes)
  return (
    f'all steps count as steps of the new config.train.batch_size: {step:,} were {was:.2f} epochs and are now '
    f'{now:.2f}, from where epochs, the order of the images and the schedule go on'
  )


def check_network(config: typed.Config, trained: Trained | None, workdir: pathlib.Path) -> None:
  """Logs a line for each option with which an evaluation measures something else than the run did.

  Args:
    config: the resolved config of the evaluation.
    trained: what the run was trained with; None: nothing says it.
    workdir: the workdir of the run, for messages.

  Raises:
    errors.InputError: the config describes a network with other weights.
  """
  where = buckets.name(workdir)
  found = changes.find(trained.config, config) if trained else []
  # Data apart from that of the run, whose evaluation says so, need not have what the run held out.
  found = [each for each in found if each.on_resume != schema.FREE and each.key not in (changes.DATA, 'data.hold_out')]
  if network := [change for change in found if change.role == 'weights']:
    raise errors.InputError(
      f'{where} holds another network than config.model: {"; ".join(map(str, network))}. Leave these options at the '
      f'values of the run; --config={shlex.quote(where)} gives all of them'
    )
  for change in found:
    if change.role in ('images', 'preprocessing', 'function', 'computation', 'run'):
      _log.info(f'not as the run in {where}: {change}')


def _phases(config: typed.Config, spec: datasets.Spec) -> list[tuple[int, str]]:
  """Returns the later phases of a resolved config: the step at which each starts, and what trains from then on."""
  per_epoch = spec.steps_per_epoch(config.train.batch_size)
  return [(freeze.start_of(at, config.train.steps, per_epoch), name) for at, name in config.finetune.unfreeze]


def _describe(split: str, fingerprint: Mapping[str, Any]) -> str:
  content, labels = fingerprint['content'][:8], (fingerprint['labels'] or '')[:8]
  return f'{split} of {fingerprint["images"]} images (content {content}, labels {labels or "unknown"})'
