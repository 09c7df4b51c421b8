"""Class activation maps: the positions in an image where an entry's output supports a class.

Let A [H, W, K] be the output of an entry, y the logit of the class and g = dy/dA. A map is ReLU(sum_k w_k A_k), and
the methods differ only in w:
- `grad_cam` (Selvaraju et al. 2017, equations 1 and 2): the mean of g_k over all positions,
- `grad_cam_plus_plus` (Chattopadhay et al. 2018): the sum over all positions of alpha_k ReLU(g_k), with
  alpha_k = g_k^2 / (2 g_k^2 + g_k^3 sum A_k) where g_k is not zero. As in the paper, the class score is exp(y). We omit
  its factor exp(y) > 0 on the whole map, because it overflows,
- `hires_cam` (Draelos and Carin 2020): g_k itself at each position; the ReLU follows the authors' code,
- `layer_cam` (Jiang et al. 2021): ReLU(g_k) at each position.

The gradient is with respect to the entry's output, in evaluation mode (running BatchNorm statistics). It does not
depend on which parameters train or whether a stage is scanned. An activation that a user's own module calls right after
the entry counts as its output, unless a skip path reads that output too (`captures.apply_capturing_output`). In dnt's
own networks whose head begins with norm and activation (pre-activation ResNets, DenseNets), this activation counts as
the output of the head, so that only the pooling and a linear layer follow the last place of a map there too.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dnt import errors, trees
from dnt.models import captures, depth


class Outputs(NamedTuple):
  """The inputs from which `weigh` computes maps.

  Attributes:
    activations: float32 [B, h, w, K], output of the entry.
    gradients: float32 [B, h, w, K], gradient of each image's target logit there.
    logits: float32 [B, classes].
    targets: int32 [B], the target classes.
  """

  activations: jax.Array
  gradients: jax.Array
  logits: jax.Array
  targets: jax.Array


class Maps(NamedTuple):
  """Maps of a batch.

  Attributes:
    values: float32 [B, h, w], nonnegative, at the entry's own resolution.
    logits: float32 [B, classes].
    targets: int32 [B], the classes that the maps explain.
  """

  values: jax.Array
  logits: jax.Array
  targets: jax.Array


def _grad_cam(activations: jax.Array, gradients: jax.Array) -> jax.Array:
  del activations
  return jnp.mean(gradients, (1, 2), keepdims=True)


def _grad_cam_plus_plus(activations: jax.Array, gradients: jax.Array) -> jax.Array:
  # We divide numerator and denominator by g^2, which would underflow.
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


# Each function maps (A, g), float32 [B, h, w, K] each, to the weights w, float32 [B, h or 1, w or 1, K].
METHODS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  'grad_cam': _grad_cam,
  'grad_cam_plus_plus': _grad_cam_plus_plus,
  'hires_cam': _hires_cam,
  'layer_cam': _layer_cam,
}


def choose(table: Sequence[depth.Row], name: str | None) -> depth.Entry:
  """Returns the entry of that name, or the last one with a spatial output.

  Args:
    table: the depth list.
    name: such as `stage4/block003`; None selects the last entry with a spatial output.

  Raises:
    errors.InputError: there is no such entry, or its output is not spatial.
  """
  rows, found = ({row.entry.name: row for row in each} for each in (table, spatial(table)))
  if name is not None and name not in rows:
    raise errors.unknown('entry', name, list(found))
  if not found:
    raise errors.InputError('no entry of this network has a spatial output [h, w, channels] to map')
  if name is not None and name not in found:
    shape, order = rows[name].shape, list(rows)
    reason = 'is never called' if shape is None else f'returns {"x".join(map(str, shape)) or "one number"} per example'
    nearest = min(found, key=lambda other: abs(order.index(other) - order.index(name)))
    raise errors.InputError(
      f'the entry {name!r} {reason}; a map needs an output of height x width x channels; nearest entry with one: '
      f'{nearest}'
    )
  return found[name or list(found)[-1]].entry


def spatial(table: Sequence[depth.Row]) -> list[depth.Row]:
  """Returns the rows of the entries with a spatial output; that of a head is its activation, see above."""
  rows = []
  for row in table:
    if row.activation:
      path, shape = row.activation
      row = dataclasses.replace(row, entry=depth.Entry(row.entry.name, path), shape=shape)
    if row.shape is not None and len(row.shape) == 3 and row.shape[0] * row.shape[1] > 1:
      rows.append(row)
  return rows


def outputs(
  model: nn.Module, entry: depth.Entry, variables: Mapping[str, Any], images: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the logits, float32 [B, classes], and the output of an entry, [B, h, w, K].

  Args:
    model: a module with the call `model(x, train)`.
    entry: an entry of its depth list, from `choose`.
    variables: `params` and `batch_stats`, in the model's layout.
    images: [B, H, W, C], preprocessed.
  """
  logits, result = captures.apply_capturing_output(model, entry, variables, images)
  return logits, _of(entry, result)


def differentiate(
  model: nn.Module,
  entry: depth.Entry,
  variables: Mapping[str, Any],
  images: jax.Array,
  targets: jax.Array | None = None,
) -> Outputs:
  """Computes the output of an entry and the gradient of each image's target logit there.

  Args:
    model: a module with the call `model(x, train)`.
    entry: an entry of its depth list, from `choose`.
    variables: `params` and `batch_stats`, in the model's layout.
    images: [B, H, W, C], preprocessed.
    targets: int32 [B], the target classes; None: the predicted classes.
  """

  def run(added):
    return captures.apply_capturing_output(model, entry, variables, images, added)

  _, shapes = jax.eval_shape(run, None)
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  logits, backward, result = jax.vjp(run, zeros, has_aux=True)
  targets = jnp.argmax(logits, -1) if targets is None else targets
  # Examples do not interact in evaluation, so the gradient of the sum of their logits contains each one's gradient.
  (gradients,) = backward(jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype))
  activations, gradients = (_of(entry, tree).astype(jnp.float32) for tree in (result, gradients))
  return Outputs(activations, gradients, logits, targets.astype(jnp.int32))


def weigh(method: str, activations: jax.Array, gradients: jax.Array) -> jax.Array:
  """Computes the maps of a method: float32 [B, h, w], nonnegative.

  Args:
    method: a key of `METHODS`.
    activations: float32 [B, h, w, K].
    gradients: gradients of the target logit there, float32 [B, h, w, K].
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
  """Computes the maps of a batch, each image independently; pure. See `differentiate` and `weigh` for the arguments."""
  result = differentiate(model, entry, variables, images, targets)
  return Maps(weigh(method, result.activations, result.gradients), result.logits, result.targets)


def _of(entry: depth.Entry, result: Any) -> jax.Array:
  output = trees.flatten(result)[f'{entry.path}/{captures.OUTPUT}']
  return output if entry.row is None else output[entry.row]


def upsample(maps: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Resizes maps to the size of the images, with bilinear interpolation between pixel centers.

  Args:
    maps: float32 [B, h, w].
    size: (H, W).

  Returns:
    float32 [B, H, W].
  """
  return jax.image.resize(maps, (maps.shape[0], *size), 'bilinear')
