"""Class activation maps: where in a picture an entry's output speaks for a class.

With A [H, W, K] the output of an entry, y the logit of the class and g = dy/dA, a map is ReLU(sum_k w_k A_k), and the
methods differ in w alone:
- `grad_cam` (Selvaraju et al. 2017, equations 1 and 2): the mean of g_k over all places,
- `grad_cam_plus_plus` (Chattopadhay et al. 2018): the sum over all places of alpha_k ReLU(g_k), with
  alpha_k = g_k^2 / (2 g_k^2 + g_k^3 sum A_k) where g_k is not zero. As in the paper the class scores exp(y); its factor
  exp(y) > 0 on the whole map is left out, for it overflows,
- `hires_cam` (Draelos and Carin 2020): g_k itself, place by place; the ReLU is that of the authors' code,
- `layer_cam` (Jiang et al. 2021): ReLU(g_k), place by place.

The gradient is with respect to the entry's output, in evaluation mode (running BatchNorm statistics): which parameters
train, and whether a stage is scanned, makes no difference.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dnt import errors, trees
from dnt.models import depth, taps


class Outputs(NamedTuple):
  """What maps are made of.

  Attributes:
    activations: float32 [B, h, w, K], output of the entry.
    gradients: float32 [B, h, w, K], of each picture's logit of its class.
    logits: float32 [B, classes].
    targets: int32 [B], the classes.
  """

  activations: jax.Array
  gradients: jax.Array
  logits: jax.Array
  targets: jax.Array


class Maps(NamedTuple):
  """Maps of a batch.

  Attributes:
    values: float32 [B, h, w], not below zero, at the entry's own resolution.
    logits: float32 [B, classes].
    targets: int32 [B], the classes that the maps speak for.
  """

  values: jax.Array
  logits: jax.Array
  targets: jax.Array


def _grad_cam(activations: jax.Array, gradients: jax.Array) -> jax.Array:
  del activations
  return jnp.mean(gradients, (1, 2), keepdims=True)


def _grad_cam_plus_plus(activations: jax.Array, gradients: jax.Array) -> jax.Array:
  # Both sides of the fraction divided by g^2, which would underflow.
  below = 2 + gradients * jnp.sum(activations, (1, 2), keepdims=True)
  defined = (gradients != 0) & (below != 0)
  alpha = jnp.where(defined, 1 / jnp.where(defined, below, 1), 0)
  return jnp.sum(alpha * jax.nn.relu(gradients), (1, 2), keepdims=True)


def _hires_cam(activations: jax.Array, gradients: jax.Array) -> jax.Array:
  del activations
  return gradients


def _layer_cam(activations: jax.Array, gradients: jax.Array) -> jax.Array:
  del activations
  return jax.nn.relu(gradients)


# What A is weighted with: (A, g), float32 [B, h, w, K] each, to float32 [B, h or 1, w or 1, K].
METHODS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  'grad_cam': _grad_cam,
  'grad_cam_plus_plus': _grad_cam_plus_plus,
  'hires_cam': _hires_cam,
  'layer_cam': _layer_cam,
}


def choose(table: Sequence[depth.Row], name: str | None) -> depth.Entry:
  """The entry of that name, or the last one whose output has places.

  Args:
    table: the depth list.
    name: such as `stage4/block003`; None: the last that will do.

  Raises:
    errors.InputError: no such entry, or one whose output has no places.
  """
  rows = {row.entry.name: row for row in table}
  spatial = [name for name, row in rows.items() if _is_spatial(row)]
  if name is not None and name not in rows:
    raise errors.unknown('entry', name, spatial)
  if not spatial:
    raise errors.InputError('no entry of this network has an output [h, w, channels] with places to map')
  if name is not None and name not in spatial:
    shape, order = rows[name].shape, list(rows)
    said = 'is never called' if shape is None else f'returns {"x".join(map(str, shape)) or "one number"} an example'
    nearest = min(spatial, key=lambda other: abs(order.index(other) - order.index(name)))
    raise errors.InputError(
      f'the entry {name!r} {said} and has no places to map: height x width x channels; nearest that has: {nearest}'
    )
  return rows[name or spatial[-1]].entry


def _is_spatial(row: depth.Row) -> bool:
  return row.shape is not None and len(row.shape) == 3 and row.shape[0] * row.shape[1] > 1


def outputs(
  model: nn.Module, entry: depth.Entry, variables: Mapping[str, Any], images: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The logits, float32 [B, classes], and the output of an entry, [B, h, w, K].

  Args:
    model: called as `model(x, train)`.
    entry: of its depth list.
    variables: `params` and `batch_stats`, in the model's layout.
    images: [B, H, W, C], preprocessed.
  """
  with taps.holding(entry):
    logits, updates = model.apply(variables, images, train=False, mutable=[taps.FOUND])
  return logits, _of(entry, updates[taps.FOUND])


def differentiate(
  model: nn.Module,
  entry: depth.Entry,
  variables: Mapping[str, Any],
  images: jax.Array,
  targets: jax.Array | None = None,
) -> Outputs:
  """The output of an entry and the gradient of a logit of each picture there.

  Args:
    model: called as `model(x, train)`.
    entry: of its depth list, with an output [h, w, K].
    variables: `params` and `batch_stats`, in the model's layout.
    images: [B, H, W, C], preprocessed.
    targets: int32 [B], the classes; None: those predicted.
  """

  def run(sinks):
    with taps.holding(entry):
      logits, updates = model.apply({**variables, **sinks}, images, train=False, mutable=[taps.FOUND])
    return logits, updates[taps.FOUND]

  _, shapes = jax.eval_shape(run, {})
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  logits, backward, found = jax.vjp(lambda sinks: run({taps.SINKS: sinks}), zeros, has_aux=True)
  targets = jnp.argmax(logits, -1) if targets is None else targets
  # Examples do not mix in evaluation: the gradient of the sum of their logits is that of each.
  (gradients,) = backward(jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype))
  activations, gradients = (_of(entry, tree).astype(jnp.float32) for tree in (found, gradients))
  return Outputs(activations, gradients, logits, targets.astype(jnp.int32))


def weigh(method: str, activations: jax.Array, gradients: jax.Array) -> jax.Array:
  """The maps of a method of `METHODS`: float32 [B, h, w], not below zero.

  Args:
    method: its name.
    activations: float32 [B, h, w, K].
    gradients: of the class's logit there, float32 [B, h, w, K].
  """
  return jax.nn.relu(jnp.sum(METHODS[method](activations, gradients) * activations, -1))


def explain(
  model: nn.Module,
  entry: depth.Entry,
  method: str,
  variables: Mapping[str, Any],
  images: jax.Array,
  targets: jax.Array | None = None,
) -> Maps:
  """The maps of a batch, of each picture by itself; pure. For the arguments see `differentiate` and `weigh`."""
  found = differentiate(model, entry, variables, images, targets)
  return Maps(weigh(method, found.activations, found.gradients), found.logits, found.targets)


def _of(entry: depth.Entry, found: Any) -> jax.Array:
  output = trees.flatten(found)[f'{entry.path}/output']
  return output if entry.row is None else output[entry.row]


def upsample(maps: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Maps at the size of the pictures, bilinear between the centers of their pixels.

  Args:
    maps: float32 [B, h, w].
    size: (H, W).

  Returns:
    float32 [B, H, W].
  """
  return jax.image.resize(maps, (maps.shape[0], *size), 'bilinear')
