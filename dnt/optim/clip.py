"""Clips gradients by value, or by the norm of all gradients, of each depth entry or of each unit."""

import jax
import jax.numpy as jnp
import optax

from dnt import config as schema
from dnt import errors, trees
from dnt.config import typed
from dnt.models import freeze
from dnt.optim import rows

_TINY = 1e-6  # keeps the branch that is not taken from dividing by zero


def make(config: typed.Clip, leaves: rows.Leaves) -> optax.GradientTransformation:
  """Builds the clipping from the section `clip` of a validated config; it keeps no state.

  Args:
    config: the section; its `name` is not 'none'.
    leaves: all parameters, of which those that train have a gradient.
  """
  if config.name == 'global_norm':
    return optax.clip_by_global_norm(config.threshold)
  if config.name == 'value':
    return optax.clip(config.threshold)
  if config.name == 'block_norm':
    return block_norm(config.threshold, leaves.places)
  if config.name == 'adaptive':
    return adaptive(config.threshold, config.epsilon, leaves)
  raise errors.unknown('clip', config.name, schema.SCHEMA['clip']['name'].choices)


def check(config: typed.Clip, leaves: rows.Leaves, partition: freeze.Partition) -> None:
  """Refuses clipping that has nothing to do in a run.

  Args:
    config: the section `clip` of a validated config.
    leaves: all parameters.
    partition: that of the last phase, which trains the most.

  Raises:
    errors.InputError: clipping is adaptive, and there is no kernel, or only the layer that it leaves out trains.
  """
  if config.name != 'adaptive':
    return
  last = _last_layers(leaves)
  if all(_layer(path) in last for path in leaves.trained(partition)):
    raise errors.InputError(
      f"clip.name='adaptive' leaves out the layer that gives the classes, {errors.list_names(sorted(last))}, and "
      "nothing else trains; use 'none', 'global_norm', 'value' or 'block_norm', or let more train (finetune.trainable, "
      'finetune.unfreeze)'
    )


def block_norm(threshold: float, places: rows.Places) -> optax.GradientTransformation:
  """Clips each depth entry's gradient by its norm over all the entry's leaves; a scanned row counts as an entry."""

  def clip(gradients, params):
    del params
    norms = {place: jnp.sqrt(square) for place, square in rows.squares(gradients, places).items()}
    factors = {place: jnp.where(norm < threshold, 1.0, threshold / norm) for place, norm in norms.items()}
    return trees.map_with_path(lambda path, g: g * rows.along(factors[places[path]], g), gradients)

  return optax.stateless(clip)


def adaptive(threshold: float, epsilon: float, leaves: rows.Leaves) -> optax.GradientTransformation:
  """Clips each unit's gradient norm to at most a fraction of its parameter norm (adaptive gradient clipping, AGC).

  It follows Brock et al. 2021, equation 3, and the authors' code: a unit is an output of a kernel (see
  `rows.kernel_axes`), or any other parameter as a whole, such as a bias or gain. It does not clip the head's
  dense layer (section 4.1). `optax.adaptive_grad_clip` does the same with kernels of two and four axes, biases and
  gains.

  Args:
    threshold: the fraction (lambda).
    epsilon: lower bound on the parameter norm, so that zero parameters can move.
    leaves: all parameters; the last entry with a kernel is the head.

  Raises:
    errors.InputError: there is no kernel.
  """
  last = _last_layers(leaves)

  def leaf(path: str, gradient: jax.Array, param: jax.Array) -> jax.Array:
    if _layer(path) in last:
      return gradient
    is_kernel = rows.is_kernel(path)
    layers, units = (rows.kernel_axes(path, leaves.shapes) or [(0, 1)])[0] if is_kernel else (0, 0)
    axes = tuple(range(rows.first_axis(path) + layers, param.ndim - units))
    norm, size = (jnp.sqrt(jnp.sum(jnp.square(each), axes, keepdims=True)) for each in (gradient, param))
    largest = threshold * jnp.maximum(size, epsilon)
    return jnp.where(norm < largest, gradient, gradient * (largest / jnp.maximum(norm, _TINY)))

  def clip(gradients: trees.Tree, params: trees.Tree) -> trees.Tree:
    return trees.map_with_path(leaf, gradients, params)

  return optax.stateless(clip)


def _last_layers(leaves: rows.Leaves) -> set[str]:
  """Returns the paths of the layers with a kernel in the last entry that has one."""
  _, head = leaves.kernel_ends('clip.name=adaptive')
  return {_layer(path) for path, place in leaves.places.items() if rows.is_kernel(path) and place == (head,)}


def _layer(path: str) -> str:
  """Returns the path of the layer that has a parameter."""
  return path.rpartition('/')[0]
