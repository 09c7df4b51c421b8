"""Finds the frozen prefix of a network, whose output can take the place of the images.

The prefix is the entries before the first one that trains. A run on features reads the prefix's output instead of
images, and the prefix entries pass it on unchanged. Step, evaluation and telemetry therefore work as in any other run.
"""

import contextlib
import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors as flax_errors
from jax.sharding import Mesh

from dnt import errors, trees
from dnt.data import pipeline
from dnt.models import captures, depth, freeze, initializers, stage
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.training import datasets, experiment

_log = logging.getLogger(__name__)
SHAKEN = 0.1  # standard deviation of the noise that `suffices` adds to parameters
CLOSE = 1e-4  # logits that differ by at most this fraction of the largest one count as equal
CLOSE_IN_TRAINING = 1e-2  # normalization by the batch enlarges differences of rounding where a channel hardly varies
# What the code of a network raises for features in place of the images that it was written for.
_MISFIT = (
  ArithmeticError,
  AssertionError,
  AttributeError,
  LookupError,
  RuntimeError,
  TypeError,
  ValueError,
  errors.InputError,
  flax_errors.FlaxError,
)


class Prefix(NamedTuple):
  """The frozen prefix of a run.

  Attributes:
    run: the experiment.
    cached: the same on features.
    names: names of the prefix's entries, in depth order.
    pooled: whether the features are only the mean of its output over all positions.
  """

  run: experiment.Experiment
  cached: experiment.Experiment
  names: tuple[str, ...]
  pooled: bool

  @property
  def shape(self) -> Any:
    """Returns the shape of the features of an image, of any rank."""
    last = next(row.shape for row in self.run.table if row.entry.name == self.names[-1])
    assert last is not None  # the last entry of a prefix is called
    return (1, 1, last[-1]) if self.pooled else last


def find(run: experiment.Experiment) -> Prefix:
  """Returns the prefix of a run of which views are to be cached, see `views`."""
  names = _names(run)
  return Prefix(run, experiment.make(run.config, run.spec, frozenset(names), run.trace), names, _is_pooled(run, names))


def views(run: experiment.Experiment) -> int:
  """Returns the number of views of each image to cache; 0 turns caching off.

  Raises:
    errors.InputError: this run cannot satisfy `config.finetune.cached_views`.
  """
  requested = run.config.finetune.cached_views
  if requested == 0:
    return 0
  possible, augmented = bool(_names(run)), is_augmented(run)
  mixed = run.config.data.mixup > 0 or run.config.data.cutmix > 0
  if requested is None:
    return int(possible and not augmented and not mixed)
  if mixed:
    raise errors.InputError(
      f'config.finetune.cached_views={requested}: config.data.mixup and cutmix mix images anew at every step, so '
      'that there are no views to cache; set it to 0'
    )
  if not possible:
    raise errors.InputError(
      f'config.finetune.cached_views={requested} needs a frozen prefix: entries before the first that trains, in a '
      "single phase, with config.finetune.frozen_norm='running'; set it to 0"
    )
  if requested > 1 and not augmented:
    raise errors.InputError(
      f"config.finetune.cached_views={requested}: without augmentation (config.data.augment='none') all views are "
      'equal; set it to 1'
    )
  return requested


def is_augmented(run: experiment.Experiment) -> bool:
  """Returns whether training draws views of each image."""
  data = run.config.data
  return data.augment != 'none' or data.policy != 'none' or data.erasing > 0


def lack(prefix: Prefix) -> str:
  """Says that the features cannot take the place of the images, for `decline`."""
  kept = 'the mean over all positions of the output' if prefix.pooled else 'the output'
  return (
    f'{kept} of {prefix.names[-1]} does not hold all that later entries read. The usual cause is something that the '
    'module computes between its entries, such as nn.relu or a pooling that is a plain function, or adds to images in '
    'training: move it into an entry. An entry that is itself an nn.scan or nn.vmap has no output to keep: put it into '
    'an entry'
  )


def decline(prefix: Prefix, problem: str) -> None:
  """Logs that the run uses images because of a problem with their features.

  Raises:
    errors.InputError: the config demands features.
  """
  requested = prefix.run.config.finetune.cached_views
  if requested is not None:
    raise errors.InputError(f'config.finetune.cached_views={requested}: {problem}, or set the option to 0')
  _log.info(f'features are not cached: {problem}')


def fits(prefix: Prefix, variables: Any) -> bool:
  """Returns whether the output of the prefix is one array, which the network takes in place of an image; by shapes.

  Args:
    prefix: the prefix.
    variables: variables of the whole network, or their shapes.
  """
  config = prefix.run.config
  x = jax.ShapeDtypeStruct((config.eval.batch_size, *prefix.run.spec.image_shape), jnp.dtype(config.model.dtype))
  output, _ = jax.eval_shape(lambda variables, x: _output(prefix, variables, x), variables, x)
  if not isinstance(output, jax.ShapeDtypeStruct):
    return False
  try:
    jax.eval_shape(lambda variables, x: _from_features(prefix, variables, _pool(prefix, x)), variables, output)
    jax.eval_shape(lambda variables, x: _in_training(prefix.cached, variables, _pool(prefix, x)), variables, output)
  except _MISFIT:
    return False
  return True


def suffices(prefix: Prefix, variables: Any, data: datasets.Data, mesh: Mesh) -> bool:
  """Returns whether the network, which fits, computes the same logits from the features of a batch as from its images.

  It does in evaluation and in training, with the same random numbers: noise that a module adds to its images would be
  added to the features. We perturb the parameters after the prefix, because zero-initialized ones would hide their
  effect.

  Args:
    prefix: the prefix.
    variables: variables of the whole network.
    data: the images.
    mesh: the device mesh.
  """
  skipped = prefix.cached.phases[0].partition.skipped
  behind, before = trees.split(variables['params'], lambda path: not freeze.is_below(path, skipped))
  keys = jax.random.split(jax.random.key(0, impl=initializers.PRNG), len(trees.flatten(behind)))
  shaken = {
    path: leaf + SHAKEN * jax.random.normal(key, leaf.shape, leaf.dtype)
    for key, (path, leaf) in zip(keys, trees.flatten(behind).items(), strict=True)
  }
  variables = variables | {'params': trees.merge(before, trees.unflatten(shaken))}

  with contextlib.closing(pipeline.make_eval_loader(prefix.run.config, data.train, mesh)) as loader:

    def program(variables, arrays):
      x = prefix.run.preprocess(loader.batch_at(arrays, jnp.int32(0)), None)
      output, whole = _output(prefix, variables, x)
      features = _pool(prefix, output)
      trained = (
        _in_training(prefix.cached, variables, features),
        _in_training(prefix.run, variables, x),
      )
      return (_from_features(prefix, variables, features), whole), trained

    program = compile_lib.jit(program, mesh, out_shardings=mesh_lib.replicated(mesh))
    evaluated, trained = jax.device_get(program(variables, loader.arrays(0, 1)))
  return _are_close(*evaluated, CLOSE) and _are_close(*trained, CLOSE_IN_TRAINING)


def _are_close(found: np.ndarray, expected: np.ndarray, fraction: float) -> bool:
  return bool(np.abs(found - expected).max() <= fraction * np.abs(expected).max())


def features(prefix: Prefix, variables: Any, x: jax.Array) -> jax.Array:
  """Returns the features of preprocessed images, in evaluation mode.

  Args:
    prefix: the prefix.
    variables: variables of the whole network.
    x: images [N, H, W, C].
  """
  output, _ = _output(prefix, variables, x)
  return _pool(prefix, output)


def _names(run: experiment.Experiment) -> tuple[str, ...]:
  """Returns the names of the entries before the first that trains; empty if they cannot be skipped.

  Those without parameters right before it, such as a dropout, belong to what trains.
  """
  phase, names = run.phases[0], []
  if len(run.phases) > 1 or not phase.partition.frozen or phase.partition.norm != 'running':
    return ()
  for row in run.table:
    if row.entry.name not in phase.partition.frozen:
      break
    if row.shape is None:  # a parameter that the model itself owns
      return ()
    names.append(row.entry.name)
  return tuple(names)


def _is_pooled(run: experiment.Experiment, names: tuple[str, ...]) -> bool:
  """Returns whether to keep only the features' mean over all positions, smaller by the number of positions.

  The network must say that this is all its head reads (`head_pools`), and only the head may be left to run. No
  measurement could tell: a head may read the positions of some images, or for some parameters, only.
  """
  *_, last, _ = run.table  # the head comes last
  maps = last.shape is not None and len(last.shape) == 3
  return maps and names[-1] == last.entry.name and getattr(run.model, 'head_pools', False)


def _output(prefix: Prefix, variables: Any, x: jax.Array) -> tuple[Any, jax.Array]:
  """Returns the prefix's output for preprocessed images in evaluation mode, and the logits.

  The output is None inside a user's own `nn.scan` or `nn.vmap`, which leave out the collections that they do not name.
  """

  def watch(call, module):
    output = call()
    if '/'.join(module.path) == prefix.names[-1]:  # sown, because the module may run inside remat or jit
      module.sow(captures.CAPTURES, captures.OUTPUT, output, init_fn=lambda: None, reduce_fn=lambda _, output: output)
    return output

  with depth.intercept(watch):
    logits, updates = prefix.run.model.apply(variables, x, train=False, mutable=[captures.CAPTURES])
  return trees.subtree(updates.get(captures.CAPTURES, {}), prefix.names[-1]).get(captures.OUTPUT), logits


def _pool(prefix: Prefix, output: jax.Array) -> jax.Array:
  """Returns the features of a prefix's output."""
  return jnp.mean(output, (1, 2), keepdims=True) if prefix.pooled else output


def _from_features(prefix: Prefix, variables: Any, features: jax.Array) -> jax.Array:
  """Returns the logits that the run on features computes in evaluation mode."""
  with prefix.cached.phases[0].partition.running():
    return prefix.run.model.apply(variables, features, train=False)


def _in_training(run: experiment.Experiment, variables: Any, x: jax.Array) -> jax.Array:
  """Returns the logits of a training step of the first phase, with fixed random numbers."""
  rngs = {name: jax.random.key(place, impl=initializers.PRNG) for place, name in enumerate(stage.RNGS)}
  with run.phases[0].partition.running():
    logits, _ = run.model.apply(variables, x, train=True, rngs=rngs, mutable=['batch_stats'])
  return logits
