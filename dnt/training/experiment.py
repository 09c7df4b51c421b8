"""Builds data, model, optimizer chain and steps from a config. This module runs none of them.

All programs build the same experiment, so none can differ from the run that it studies.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dnt import config as schema
from dnt import errors, models, trees
from dnt.config import typed
from dnt.data.transforms import augment
from dnt.models import depth, freeze, layouts, size
from dnt.optim import chain, clip, lr_multipliers, rows, schedules
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import sharding
from dnt.training import datasets, losses, periodic, steps
from dnt.training import telemetry as telemetry_lib


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
  spec: datasets.Spec
  model: Any
  trace: depth.Trace
  leaves: rows.Leaves
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
    self, partitions: tuple[freeze.Partition, ...], schedule: optax.Schedule | None = None
  ) -> optax.GradientTransformation:
    """Returns the optimizer chain of a phase.

    Args:
      partitions: the partitions of the phases up to this one.
      schedule: learning rate by step; None: the schedule of the run.
    """
    return chain.make(self.config, schedule or self.schedule, self.leaves, partitions)

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


def make(
  config: typed.Config,
  spec: datasets.Spec,
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
  leaves = rows.Leaves.of(params, trace.entries)
  planned = freeze.plan(config.finetune, trace.table, params, config.train.steps, steps_per_epoch)
  if trains:
    _check_training(config, leaves, planned[-1].partition)
  losses.check_weights(config.loss.class_weights, len(spec.class_names))
  eval_partition = dataclasses.replace(planned[0].partition, skipped=skipped) if skipped else freeze.ALL
  run = Experiment(
    config=config,
    spec=spec,
    model=model,
    trace=trace,
    leaves=leaves,
    schedule=schedule,
    preprocess=preprocess,
    init_variables=init_variables,
    phases=(),
    eval_step=steps.make_eval_step(model, len(spec.class_names), preprocess, eval_partition),
    split_axes=sharding.match(config.sharding, params, config.mesh.fsdp),
  )

  def make_phase(start, partitions):
    partition = dataclasses.replace(partitions[-1], skipped=skipped)
    optimizer = run.make_optimizer((*partitions[:-1], partition))
    watched = telemetry_lib.make(config, leaves, partition, trace.table)
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


def _check_training(config: typed.Config, leaves: rows.Leaves, last: freeze.Partition) -> None:
  """Refuses options of training that have no effect on the parameters of the last phase, which trains the most."""
  if config.finetune.l2_sp and not config.train.init_from:
    raise errors.InputError('config.finetune.l2_sp pulls towards pretrained values: it needs config.train.init_from')
  chain.check(config, leaves, last)
  clip.check(config.clip, leaves, last)
  lr_multipliers.check(config.finetune, leaves, last)
  trained = leaves.owners(last)
  for index, name in leaves.named():
    if index not in trained and trees.is_named(name, config.finetune.reinit):
      raise errors.InputError(
        f'config.finetune.reinit={config.finetune.reinit} draws {name} anew, and {leaves.entries[index].name} never '
        'trains; name less, or let it train (finetune.trainable, finetune.unfreeze)'
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
