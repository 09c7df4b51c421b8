"""The training loss per example, and whether each example is classified right."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

from dnt import errors


def make(
  config: ml_collections.ConfigDict,
) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
  """`(logits, labels) -> (losses, weights)`, the cross-entropy that the section `loss` of a config asks for."""

  def loss(logits, labels):
    return cross_entropy(logits, labels, config.label_smoothing, config.class_weights)

  return loss


def cross_entropy(
  logits: jax.Array, labels: jax.Array, label_smoothing: float, class_weights: tuple[float, ...]
) -> tuple[jax.Array, jax.Array]:
  """Weighted cross-entropy of each example, with its weight.

  sum(losses) / sum(weights) equals torch's `F.cross_entropy(weight=..., label_smoothing=...)`: each class's term is
  weighted by that class, the mean by the class of the label.

  Args:
    logits: [B, classes], any float type; computed in float32.
    labels: int32 [B].
    label_smoothing: share of the target that is spread evenly over all classes, the true one among them (Szegedy et
      al. 2016, section 7).
    class_weights: a weight a class; empty: all 1.

  Returns:
    float32 [B] weighted losses, float32 [B] weights.

  Raises:
    errors.InputError: when there are not as many weights as classes.
  """
  classes = logits.shape[-1]
  if class_weights and len(class_weights) != classes:
    raise errors.InputError(
      f'loss.class_weights has {len(class_weights)} weights and the model {classes} classes; give one a class'
    )
  log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
  weight = weights(class_weights, labels)
  losses = -weight * jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)[:, 0]
  if label_smoothing:
    each = jnp.asarray(class_weights or (1.0,) * classes, jnp.float32)
    spread = -jnp.sum(each[None, :] * log_probabilities, axis=-1) / classes
    losses = (1 - label_smoothing) * losses + label_smoothing * spread
  return losses, weight


def weights(class_weights: tuple[float, ...], labels: jax.Array) -> jax.Array:
  """The weight of each example by its class, float32 [B]; 1 without class weights."""
  if not class_weights:
    return jnp.ones(labels.shape, jnp.float32)
  return jnp.asarray(class_weights, jnp.float32)[labels]


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """1.0 where the largest logit is the label's, else 0.0: float32 [B]; of equal logits the first counts."""
  return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
