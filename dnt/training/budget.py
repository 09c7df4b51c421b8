"""Estimates the memory that training and evaluation take, and refuses a run that cannot have it before it allocates.

The estimates are lower bounds: parameters, gradients, the optimizer's state, a batch of images, and the output of each
entry, which the backward pass needs. `parallel.compile.ahead` checks the exact memory of each program when it is
compiled.
"""

import logging
import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax.sharding import Mesh

from dnt.config import typed
from dnt.models import depth
from dnt.parallel import capacity
from dnt.parallel import mesh as mesh_lib
from dnt.training import experiment

_log = logging.getLogger(__name__)
MOMENTS = {'sgd': 0, 'adamw': 2, 'lamb': 2, 'muon': 1}  # least arrays of the size of the parameters that it keeps


def check_training(run: experiment.Experiment, mesh: Mesh) -> None:
  """Refuses training that cannot fit into memory, and logs a line if a batch is larger than the split.

  Args:
    run: the experiment.
    mesh: the mesh of its devices.

  Raises:
    errors.InputError: the message says how much memory it needs, how much there is and which option to lower.
  """
  config, size = run.config, run.config.train.batch_size
  available = capacity.device()
  state = 4 * _parameters(run) * (2 if config.ema.decay else 1)
  moments = MOMENTS[config.optim.name] + (config.optim.name == 'sgd' and config.optim.momentum > 0)
  state += 4 * max(_trained(run, phase) for phase in run.phases) * (1 + moments)
  state /= mesh.shape[mesh_lib.FSDP]
  sizes = [f'config.model.{key}' for key in ('depth', 'width', 'growth_rate') if config.model[key] is not None]
  capacity.check(
    state,
    available,
    f'training {_parameters(run):,} parameters with config.optim.name={config.optim.name}',
    f'{" or ".join(sizes) or "the size of the network"}, or raise config.mesh.fsdp to split it over devices',
  )
  # Features may take the place of images in front of the first entry that trains, and nothing is kept there.
  first, padded = _first_trained(run), config.data.augment == 'pad_crop_flip'
  padding = ' or config.data.crop_padding' if padded else ''
  # XLA on CPU, with jax 0.10.2, takes 1.3 (tanh without a norm, `model.remat`) to 7.5 (bottlenecks) times the outputs.
  example = _outputs(run.table[first:]) * _itemsize(run)
  example = example / config.train.accumulate + (0 if first else _image(run, config.data.crop_padding if padded else 0))
  capacity.check(
    state + example * size / mesh.size,
    available,
    f'config.train.batch_size={size}',
    f'{_remedy((available - state) / example, mesh)}{padding}, or raise config.train.accumulate',
  )
  if size > run.spec.examples:
    _log.info(
      f'config.train.batch_size={size} is larger than {config.data.train_split} with {run.spec.examples:,} images: a '
      f'step takes each image {size / run.spec.examples:.1f} times on average'
    )


def check_evaluation(run: experiment.Experiment, mesh: Mesh) -> None:
  """Refuses an evaluation that cannot fit into memory.

  Args:
    run: the experiment.
    mesh: the mesh of its devices.

  Raises:
    errors.InputError: as for `check_training`.
  """
  size, classes, available = run.config.eval.batch_size, len(run.spec.class_names), capacity.device()
  capacity.check(4 * classes**2, available, f'the confusion matrix of {classes:,} classes', 'the number of classes')
  state = 4 * _parameters(run) / mesh.shape[mesh_lib.FSDP]
  largest = max(_outputs([row]) for row in run.table)
  example = _image(run) + largest * _itemsize(run)
  capacity.check(
    state + example * size / mesh.size,
    available,
    f'config.eval.batch_size={size}',
    _remedy((available - state) / example, mesh),
  )


def remedy(config: typed.Config, mesh: Mesh) -> str:
  """Returns what makes a train step need less memory, of what this config leaves to do; it follows 'lower '."""
  lower, other = ['config.data.image_size'], []
  if config.train.batch_size > mesh.size * config.train.accumulate:  # a device has several examples at a time
    lower.insert(0, 'config.train.batch_size')
    other.append('raise config.train.accumulate')
  if not config.model.remat:
    other.append('set config.model.remat=True')
  if config.model.dtype == 'float32':
    other.append('set config.model.dtype=bfloat16')
  if mesh.size > mesh.shape[mesh_lib.FSDP]:
    other.append('raise config.mesh.fsdp')
  return ', or '.join([' or '.join(lower), *other])


def _remedy(fits: float, mesh: Mesh) -> str:
  """Returns what makes a batch smaller; `fits`: the examples for which a device has memory."""
  return (
    f'it to {int(fits) * mesh.size:,} or less, or config.data.image_size' if fits >= 1 else 'config.data.image_size'
  )


def _parameters(run: experiment.Experiment) -> int:
  return sum(row.parameters for row in run.table)


def _trained(run: experiment.Experiment, phase: experiment.Phase) -> int:
  """Returns the number of parameters of the entries that train in a phase."""
  return sum(row.parameters for row in run.table if row.entry.name not in phase.partition.frozen)


def _first_trained(run: experiment.Experiment) -> int:
  """Returns the place of the first entry that trains in any phase."""
  frozen = frozenset.intersection(*(phase.partition.frozen for phase in run.phases))
  return next(place for place, row in enumerate(run.table) if row.parameters and row.entry.name not in frozen)


def _outputs(table: Sequence[depth.Row]) -> int:
  """Returns the numbers in the outputs of entries, for one example."""
  return sum(math.prod(row.shape) for row in table if row.shape is not None)


def _image(run: experiment.Experiment, padding: int = 0) -> int:
  """Returns the bytes of an image in a batch: as it is read, with padding on each side, and as the network takes it."""
  height, width, channels = run.spec.image_shape
  return ((height + 2 * padding) * (width + 2 * padding) + height * width * _itemsize(run)) * channels


def _itemsize(run: experiment.Experiment) -> int:
  return jnp.dtype(run.config.model.dtype).itemsize
