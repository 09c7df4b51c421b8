"""Builds data, model, optimizer chain and steps from a config. This module runs none of them.

All programs build the same experiment, so none can differ from the run that it studies.
"""

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dnt import buckets, checkpoints, errors, models, trees
from dnt import config as schema
from dnt.config import checks, implied, typed
from dnt.data import class_order, examples, fingerprint, inspection, pipeline, sources
from dnt.data import splits as splits_lib
from dnt.data.transforms import augment
from dnt.models import depth, freeze, layouts, size
from dnt.optim import chain, lr_multipliers, rows, schedules
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import multihost, sharding
from dnt.training import losses, periodic, steps
from dnt.training import telemetry as telemetry_lib
from dnt.weights import preprocessing, pretrained

# What `data.fingerprint` holds of a split, in words.
_FINGERPRINT = {
  'images': 'the number of images',
  'content': 'the content (names and sizes of the files, or pixels)',
  'labels': 'the digest of the labels',
}


class DataSpec(NamedTuple):
  """Describes the data to the program, so that the program can be built and checked without the data."""

  examples: int  # of the training split
  image_shape: tuple[int, int, int]  # height, width, channels, as the step receives them
  class_names: tuple[str, ...]

  def steps_per_epoch(self, batch_size: int) -> float:
    """Returns the steps in an epoch of the training split; it need not be whole, as batches cross epoch ends."""
    return self.examples / batch_size


class Data(NamedTuple):
  """Holds the inputs of a run: its images with their description, and its pretrained weights."""

  spec: DataSpec
  train: examples.Examples
  evaluation: dict[str, examples.Examples]  # by split
  weights: pretrained.Source | None = None  # from config.train.init_from, unless the run has a checkpoint
  image_bits: int | None = None  # config.data.image_bits, if the config leaves it open and the files name it
  held_out: bool = False  # whether `val` is drawn from `train`, see config.data.hold_out

  def fingerprint(self) -> dict[str, dict[str, Any]]:
    """Returns the fingerprint of each split that was loaded, see `dnt.data.fingerprint`; not for cached features."""
    return fingerprint.of({self.train.split: self.train} | self.evaluation)


@dataclasses.dataclass(frozen=True)
class Phase(freeze.Phase):
  """A phase with the functions that run it.

  Attributes:
    optimizer: the chain for the trainable parameters.
    train_step: `(state, batch) -> (state, metrics)`.
    telemetry_step: the same step, which also returns telemetry.
    train_flops: FLOPs of one example in a step, as the network needs them.
  """

  optimizer: optax.GradientTransformation
  train_step: Callable
  telemetry_step: Callable
  train_flops: int


class Experiment(NamedTuple):
  """Holds a resolved config and the pure functions built from it."""

  config: typed.Config
  spec: DataSpec
  model: Any
  trace: depth.Trace
  schedule: optax.Schedule
  preprocess: Callable  # (batch, augmentation key or None) -> images
  init_variables: Callable[[], dict[str, Any]]  # in the model's layout, on the host
  phases: tuple[Phase, ...]
  eval_step: Callable
  split_axes: Mapping[str, int | None]  # by paths of parameters, see `sharding.match`

  @property
  def table(self) -> tuple[depth.Row, ...]:
    """Returns the depth list with shapes and costs."""
    return self.trace.table

  @property
  def entries(self) -> tuple[depth.Entry, ...]:
    """Returns the depth list."""
    return self.trace.entries

  @property
  def steps_per_epoch(self) -> float:
    return self.spec.steps_per_epoch(self.config.train.batch_size)

  def train_flops(self, step: int) -> int:
    """Returns the FLOPs of one example in the step after `step` steps, as the network needs them."""
    return self.phase(step).train_flops

  def make_optimizer(
    self, params: Any, partitions: tuple[freeze.Partition, ...], schedule: optax.Schedule | None = None
  ) -> optax.GradientTransformation:
    """Returns the optimizer chain of a phase.

    Args:
      params: all parameters (or shapes) in the model's layout.
      partitions: the partitions of the phases up to this one.
      schedule: learning rate by step; None: the schedule of the run.
    """
    return chain.make(self.config, schedule or self.schedule, params, self.entries, partitions)

  def make_step(
    self,
    partition: freeze.Partition,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule | None = None,
    telemetry: telemetry_lib.Telemetry | None = None,
  ) -> Callable:
    """Returns a train step of the run. All programs make train steps here; see `steps.make_train_step`.

    Args:
      partition: which parameters train.
      optimizer: the chain for those parameters.
      schedule: learning rate by step, for the metrics; None: the schedule of the run.
      telemetry: what to record for each entry.
    """
    schedule = schedule or self.schedule
    return steps.make_train_step(self.config, self.model, optimizer, schedule, self.preprocess, telemetry, partition)

  def make_gradient(self, partition: freeze.Partition) -> Callable:
    """Returns the gradient function of the train step, over a batch as a whole; see `steps.make_gradient`."""
    config = schema.copy_unlocked(self.config)
    config.train.accumulate = 1
    return steps.make_gradient(config, self.model, self.preprocess, partition=partition)

  def every(self, text: str) -> periodic.Every:
    """Returns the event that recurs with a period given as text in the config."""
    return periodic.Every(schema.period(text, self.config.train.steps, self.steps_per_epoch))

  def phase(self, step: int) -> Phase:
    """Returns the phase to which the step after `step` steps belongs."""
    return [phase for phase in self.phases if phase.start <= step][-1]

  def phase_of_state(self, step: int) -> Phase:
    """Returns the phase to which the state after `step` steps belongs; at the start of a phase, the phase before."""
    return self.phase(max(step - 1, 0))

  def make_state(self, variables: dict[str, Any]) -> steps.TrainState:
    """Returns the state before the first step."""
    return steps.make_state(self.config, variables, self.phases[0].optimizer, self.phases[0].partition)

  def shardings(self, mesh: jax.sharding.Mesh, tree: Any) -> Any:
    """Returns the sharding of each leaf of a state, or of a part of it; see `mesh.parameter_shardings`."""
    return mesh_lib.parameter_shardings(mesh, tree, self.split_axes)

  def advance(self, state: steps.TrainState, phase: Phase) -> steps.TrainState:
    """Returns the state at the start of a phase, from the state at the end of the phase before."""
    params, _ = phase.partition.split(state.params)
    return state.replace(opt_state=chain.advance(phase.optimizer, state.opt_state, params))

  def abstract_state(self, step: int = 0) -> steps.TrainState:
    """Returns the shapes and dtypes of the state after `step` steps, without drawing parameters."""

    def make():
      state = self.make_state(self.init_variables())
      for phase in self.phases[1 : self.phases.index(self.phase_of_state(step)) + 1]:
        state = self.advance(state, phase)
      return state

    return jax.eval_shape(make)


def load_data(
  config: typed.Config,
  splits: Sequence[str],
  workdir: pathlib.Path | None = None,
  test: bool = False,
  find: Callable[[typed.Data, int], examples.Splits] = sources.find,
) -> Data:
  """Reads the training split and other splits, each once, and the description of the pretrained weights.

  Args:
    config: a validated config; of a run that has a checkpoint, from `resume.keep_open`.
    splits: the splits to evaluate.
    workdir: the workdir of the run. If it has a checkpoint, the data gets its classes, see `class_order.align`, and the
      pretrained weights, which are then not used, need not exist any more.
    test: whether to add the split `test` if it is labelled and `splits` holds no part of it.
    find: finds the splits of the source, as `sources.find` does.

  Raises:
    errors.InputError: a source, split or file is missing or damaged (of image files: those in the splits to evaluate,
      as far as `inspection` looks), splits differ in channels, splits or a checkpoint have other classes, processes
      have other data, or pretrained weights are missing.
  """
  meta = checkpoints.read_meta(workdir) if workdir else {}
  begun = 'config' in meta  # older checkpoints do not hold what `resume.keep_open` needs
  weights = pretrained.Source(config.train.init_from) if config.train.init_from and not begun else None
  if weights and not multihost.is_single():  # all processes read a checkpoint together
    of_run = multihost.together(lambda: weights.workdir is not None)
    multihost.check_equal({'whether config.train.init_from is a workdir': of_run})
  config = _prepared(config, weights)
  loaded, held_out = _load(config, splits, test, find)
  evaluated = [*splits, *(split for split in loaded if split not in (config.data.train_split, *splits))]
  image_bits = inspection.check(loaded, evaluated, config.data)
  if image_bits:
    config.data.image_bits = image_bits
    loaded, _ = _load(config, splits, test, find)
  first = loaded[config.data.train_split]
  for split, other in loaded.items():
    if other.shape[-1] != first.shape[-1]:
      raise errors.InputError(f'split {split!r} of {config.data.source} has other channels than {first.split!r}')
  names, owner = first.class_names, f'its split {first.split!r}'
  if workdir and meta:
    names = meta.get('class_names', ())  # older versions recorded no names
    owner = f'the run in {buckets.name(workdir)}'
  loaded = {split: class_order.align(other, names, owner) for split, other in loaded.items()}
  train = loaded[config.data.train_split]
  spec = DataSpec(len(train), pipeline.image_shape(config.data, train), train.class_names)
  return Data(spec, train, {split: loaded[split] for split in evaluated}, weights, image_bits, held_out)


def _holds_out(config: typed.Config, available: examples.Splits) -> bool:
  if config.data.hold_out is not None:
    return config.data.hold_out
  return (
    splits_lib.VAL not in available and splits_lib.TRAIN in available and _names(config.eval.splits, splits_lib.VAL)
  )


def _names(texts: Sequence[str], name: str) -> bool:
  return any(splits_lib.parse(text).name == name for text in texts)


def _check_labelled(split: examples.Examples) -> examples.Examples:
  if split.labels is None:
    _ = split[0]  # raises if it has no label
  return split


def _load(
  config: typed.Config, splits: Sequence[str], test: bool, find: Callable[[typed.Data, int], examples.Splits]
) -> tuple[dict[str, examples.Examples], bool]:
  """Reads the splits of `load_data`, equal in all processes; also returns whether `val` is held out of `train`."""

  def read():
    available = find(config.data, config.data.seed)
    held_out = _holds_out(config, available)
    if held_out:
      available = sources.hold_out(available, config.data, config.data.seed)
    wanted = dict.fromkeys([config.data.train_split, *splits])
    found = {split: sources.read(available, config.data, split) for split in wanted}
    if test and splits_lib.TEST in available and not _names(splits, splits_lib.TEST):
      with contextlib.suppress(examples.UnlabelledError):
        found[splits_lib.TEST] = _check_labelled(sources.read(available, config.data, splits_lib.TEST))
    return found, held_out

  loaded, held_out = multihost.together(read)
  check_alike(loaded)
  return loaded, held_out


def check_alike(splits: Mapping[str, examples.Examples]) -> None:
  """Checks that all processes have read the same splits; every process calls it.

  Raises:
    agreement.DifferenceError: they have not; in every process.
  """
  if multihost.is_single():
    return
  found = {
    f'{_FINGERPRINT[name]} of {split}': value[:12] if isinstance(value, str) else value
    for split, values in fingerprint.of(splits).items()
    for name, value in values.items()
  }
  multihost.check_equal(found)


def resolve(config: typed.Config, data: Data) -> typed.Config:
  """Returns a new config whose open options are filled in from pretrained weights, data and model.

  A run writes it to `config.json`.

  Raises:
    errors.InputError: a head, weights or statistics disagree with the data, the data has one class alone, or the
      classes cannot be balanced.
  """
  weights = data.weights
  resolved = _prepared(config, weights)
  if weights and config.model.name == models.PRETRAINED:
    multihost.together(lambda: pretrained.fill_model(resolved.model, weights))
  classes = len(data.spec.class_names)
  if classes < 2:
    raise errors.InputError(
      f'{config.data.source} has only one class, {data.spec.class_names[0]!r}: there is nothing to learn'
    )
  if config.model.num_classes not in (None, classes):
    raise errors.InputError(
      f'config.model.num_classes={config.model.num_classes}, but {config.data.source} has {classes} classes; '
      'leave config.model.num_classes unset (None) to take the number in the data'
    )
  resolved.model.num_classes = classes
  resolved.data.hold_out = data.held_out
  if data.image_bits is not None:
    resolved.data.image_bits = data.image_bits
  fill_defaults(resolved.data)
  resolved.data.mean, resolved.data.std = pipeline.statistics(resolved.data, data.train)
  resolved.clip.threshold = implied.clip_threshold(config.clip)
  if config.train.steps is None:
    steps = config.train.epochs * data.spec.steps_per_epoch(config.train.batch_size)
    if steps > checks.LARGEST:
      raise errors.InputError(
        f'config.train.epochs={config.train.epochs} are {steps:.3g} steps; a run has at most {checks.LARGEST:,}'
      )
    resolved.train.steps = max(1, round(steps))
  if config.loss.balance_classes:
    # Keep only the weights, so that the recorded config can be run again.
    resolved.loss.class_weights, resolved.loss.balance_classes = losses.balanced_weights(data.train), False
  resolved.model.update(models.resolved_options(resolved.model))
  return resolved


def fill_defaults(data: typed.Data) -> None:
  """Sets the options that neither the user nor weights determine to the values that a run uses."""
  data.eval_resize = implied.eval_resize(data)
  for key, value in pipeline.DEFAULTS.items():
    if data[key] is None:
      data[key] = value


def rank(config: typed.Config, data: Data) -> typed.Config:
  """Returns a new config whose `checkpoint.best_metric` names the split that ranks, or no split if none does.

  It is the split that the config names, or the first of `eval.splits` that is no test split and shares no images with
  the training split.

  Args:
    config: from `resolve`.
    data: of the run, with all of `eval.splits`.

  Raises:
    errors.InputError: the named split is not evaluated, or `train.patience` is set and no split ranks.
  """
  ranked, metric = schema.copy_unlocked(config), config.checkpoint.best_metric
  named, _, quantity = metric.rpartition('/')
  if named and named not in config.eval.splits:
    raise errors.InputError(
      f'config.checkpoint.best_metric={metric!r} ranks by {named!r}, which is not in '
      f'config.eval.splits={config.eval.splits!r}; set '
      f'config.eval.splits={(*config.eval.splits, named)!r}'
    )
  fair = (each for each in config.eval.splits if not splits_lib.parse(each).is_test)
  split = named or next((each for each in fair if not data.evaluation[each].overlaps(data.train)), '')
  if config.train.patience and not split:
    raise errors.InputError(
      f'config.train.patience needs a split that ranks checkpoints, but config.eval.splits={config.eval.splits!r} '
      "holds only test splits and training images; add 'val', or name a split in config.checkpoint.best_metric"
    )
  ranked.checkpoint.best_metric = f'{split}/{quantity}' if split else quantity
  return ranked


def _prepared(config: typed.Config, weights: pretrained.Source | None) -> typed.Config:
  """Returns a copy whose open preprocessing options come from the run's pretrained weights, if it has any."""
  if config.model.name == models.PRETRAINED and not config.train.init_from:
    raise errors.InputError(
      f"config.model.name='pretrained' takes its network from config.train.init_from, which is empty; valid: "
      f'{pretrained.FORMS}'
    )
  prepared = schema.copy_unlocked(config)
  if weights and preprocessing.is_open(config.data):
    preprocessing.fill(prepared.data, multihost.together(lambda: weights.preprocessing))
  return prepared


def make(
  config: typed.Config,
  spec: DataSpec,
  skipped: frozenset[str] = frozenset(),
  trace: depth.Trace | None = None,
  trains: bool = True,
) -> Experiment:
  """Builds the experiment of a resolved config.

  Args:
    config: from `resolve`.
    spec: describes the data.
    skipped: names of the first entries, if the batches hold the output of these entries instead of images.
    trace: the trace of the model, if another experiment has it; None: the function makes it.
    trains: whether to refuse options of training that have no effect; an evaluation of a run does not judge them.

  Raises:
    errors.InputError: options do not fit the model, the data or one another.
  """
  model = models.make(config.model, len(spec.class_names))
  trace = trace or size.trace(config.model, model, len(spec.class_names), spec.image_shape)
  steps_per_epoch = spec.steps_per_epoch(config.train.batch_size)
  # Until a rate is found, the schedule is not used; `lr_find.settle` then makes the experiment again with the rate.
  peak = schedules.peak_rate(config.optim)
  schedule = schedules.make(config.schedule, peak, config.train.steps, steps_per_epoch)
  dtype = jnp.dtype(config.model.dtype)
  preprocess = augment.make_preprocess(config.data, config.data.mean, config.data.std, dtype)
  if skipped:
    preprocess = augment.make_passing(dtype)

  def init_variables():
    return models.init(trace, config.seed)

  params = layouts.to_scanned(trace.variables['params'], trace.scanned)
  planned = freeze.plan(config.finetune, trace.table, params, config.train.steps, steps_per_epoch)
  if trains:
    _check_training(config, params, trace.entries, planned[-1].partition)
  losses.check_weights(config.loss.class_weights, len(spec.class_names))
  eval_partition = dataclasses.replace(planned[0].partition, skipped=skipped) if skipped else freeze.ALL
  run = Experiment(
    config=config,
    spec=spec,
    model=model,
    trace=trace,
    schedule=schedule,
    preprocess=preprocess,
    init_variables=init_variables,
    phases=(),
    eval_step=steps.make_eval_step(model, len(spec.class_names), preprocess, eval_partition),
    split_axes=sharding.match(config.sharding, params, config.mesh.fsdp),
  )

  def make_phase(start, partitions):
    partition = dataclasses.replace(partitions[-1], skipped=skipped)
    optimizer = run.make_optimizer(params, (*partitions[:-1], partition))
    watched = telemetry_lib.make(config, params, partition.split(params)[0], trace.table)
    return Phase(
      start=start,
      partitions=(*partitions[:-1], partition),
      optimizer=optimizer,
      train_step=run.make_step(partition, optimizer),
      telemetry_step=run.make_step(partition, optimizer, telemetry=watched),
      train_flops=_train_flops(trace, partition),
    )

  reached = (phase for phase in planned if not phase.start or phase.start < config.train.steps)
  last_at = {phase.start: phase.partitions for phase in reached}  # of several that start at one step, see `start_of`
  return run._replace(phases=tuple(make_phase(start, partitions) for start, partitions in last_at.items()))


def _check_training(
  config: typed.Config, params: trees.Tree, entries: Sequence[depth.Entry], last: freeze.Partition
) -> None:
  """Refuses options of training that have no effect on the parameters of the last phase, which trains the most."""
  if config.finetune.l2_sp and not config.train.init_from:
    raise errors.InputError('config.finetune.l2_sp pulls towards pretrained values: it needs config.train.init_from')
  chain.check(config, params, entries, last)
  lr_multipliers.check(config.finetune, last.split(params)[0], entries)
  trained = rows.owners(last.split(params)[0], entries)
  for index, name in rows.named(params, entries):
    if index not in trained and trees.is_named(name, config.finetune.reinit):
      raise errors.InputError(
        f'config.finetune.reinit={config.finetune.reinit} draws {name} anew, and {entries[index].name} never trains; '
        'name less, or let it train (finetune.trainable, finetune.unfreeze)'
      )


def _train_flops(trace: depth.Trace, partition: freeze.Partition) -> int:
  """Returns the FLOPs of one example in a step, as the network needs them.

  They are those of the forward pass and, from the first entry on of which a parameter trains, as many for the gradient
  of the input and as many for that of the kernels, if they train. What `model.remat` computes again does not count.
  """
  flops = {row.entry.name: 0 if row.entry.name in partition.skipped else row.flops for row in trace.table}
  trained, kernels = set(), set()  # names of entries
  for path, leaf in trees.flatten(partition.split(trace.variables['params'])[0]).items():
    entry = '/'.join(path.split('/')[:2])
    entry = entry if entry in flops else entry.partition('/')[0]
    trained.add(entry)
    if len(leaf.shape) > 1:
      kernels.add(entry)
  above = itertools.dropwhile(lambda name: name not in trained, flops)
  return 3 * trace.outside + sum(flops[name] for name in (*flops, *above, *kernels))
