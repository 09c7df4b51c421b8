"""Computes the training loss of each example, and whether its prediction is right.

For a mixture of two examples, each value that depends on a label is the mean over both labels, weighted by their
mixing fractions.
"""

import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from dnt import errors
from dnt.config import typed
from dnt.data import examples
from dnt.data.transforms import mixing
from dnt.reporting import terminal

_log = logging.getLogger(__name__)


def make(
  config: typed.Loss,
) -> Callable[[jax.Array, mixing.Labels], tuple[jax.Array, jax.Array]]:
  """Returns `(logits, labels) -> (losses, weights)`, the cross-entropy set by the section `loss` of a config."""

  def loss(logits, labels):
    return cross_entropy(logits, labels, config.label_smoothing, config.class_weights)

  return loss


def cross_entropy(
  logits: jax.Array, labels: mixing.Labels, label_smoothing: float, class_weights: tuple[float, ...]
) -> tuple[jax.Array, jax.Array]:
  """Computes the weighted cross-entropy of each example, and its weight.

  sum(losses) / sum(weights) equals torch's `F.cross_entropy(weight=..., label_smoothing=...)`: the weight of each class
  multiplies the term of that class, and the mean uses the weight of the label's class.

  Args:
    logits: [B, classes], any float type; the function computes in float32.
    labels: int32 [B], or mixed.
    label_smoothing: fraction of the target that is spread evenly over all classes, including the true one (Szegedy et
      al. 2016, section 7).
    class_weights: one weight per class; empty: all 1.

  Returns:
    float32 [B] weighted losses, float32 [B] weights.

  Raises:
    errors.InputError: the number of weights differs from the number of classes.
  """
  classes = logits.shape[-1]
  check_weights(class_weights, classes)
  log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))

  def of(label):
    return -weights(class_weights, label) * jnp.take_along_axis(log_probabilities, label[:, None], axis=-1)[:, 0]

  losses = mixing.average_labels(of, labels)
  if label_smoothing:
    each = jnp.asarray(class_weights or (1.0,) * classes, jnp.float32)
    spread = -jnp.sum(each[None, :] * log_probabilities, axis=-1) / classes
    losses = (1 - label_smoothing) * losses + label_smoothing * spread
  return losses, weights(class_weights, labels)


def check_weights(class_weights: tuple[float, ...], classes: int) -> None:
  """Checks that there is one weight for each class, or none at all.

  Raises:
    errors.InputError: there are fewer or more.
  """
  if class_weights and len(class_weights) != classes:
    raise errors.InputError(
      f'loss.class_weights has {len(class_weights)} weights, but the model has {classes} classes; give one per class'
    )


def weights(class_weights: tuple[float, ...], labels: mixing.Labels) -> jax.Array:
  """Returns the weight of each example by its class, float32 [B]; all 1 without class weights."""
  if not class_weights:
    return jnp.ones(jax.tree.leaves(labels)[0].shape, jnp.float32)
  return mixing.average_labels(lambda label: jnp.asarray(class_weights, jnp.float32)[label], labels)


def balanced_weights(source: examples.Examples) -> tuple[float, ...]:
  """Returns one weight per class, inverse to its count in a split: examples / (classes x examples of the class).

  All classes then have the same total weight, and the mean weight of an example is 1 (scikit-learn's `balanced`). A
  class without examples does not count, and weighs 0; a line names it.

  Args:
    source: the training split.

  Raises:
    errors.InputError: a class has no examples in a slice of a split, or the labels are stored with streamed images.
  """
  if source.labels is None:
    raise errors.InputError(
      f'config.loss.balance_classes: the labels of {source.name} are stored with its images and cannot be counted '
      'in advance; set config.loss.class_weights'
    )
  if absent := source.absent('config.loss.balance_classes'):
    what = f'{source.split} of {source.name}'
    terminal.say_once(_log, f'config.loss.balance_classes: {what} has no image of {absent}: the weight is 0')
  counts = np.bincount(source.labels, minlength=source.num_classes)
  present = counts > 0
  return tuple((present * len(source) / (present.sum() * np.maximum(counts, 1))).tolist())


def shares(source: examples.Examples, class_weights: tuple[float, ...]) -> np.ndarray:
  """Returns the part of each class in the weight of a split, float64 [classes] with the sum 1.

  The largest is the weighted accuracy of always predicting that class. All are equal if the labels are not known.
  """
  classes = source.num_classes
  if source.labels is None:
    return np.full(classes, 1 / classes)
  weight = np.bincount(source.labels, minlength=classes) * np.asarray(class_weights or (1.0,) * classes)
  return weight / weight.sum()


def of_constant_predictions(config: typed.Loss, source: examples.Examples) -> tuple[float, float]:
  """Returns the mean loss over a split if all classes are equally likely, and the least one of any constant prediction.

  They are log(classes) and the entropy of `shares`. With class weights, label smoothing adds to both what
  `cross_entropy` does.
  """
  classes = source.num_classes
  smooth = np.full(classes, 1 / classes)
  if config.class_weights and source.labels is not None:
    each = np.asarray(config.class_weights)
    smooth = each / classes / np.mean(each[source.labels])
  # The loss of probabilities q is -sum(targets * log q).
  targets = (1 - config.label_smoothing) * shares(source, config.class_weights) + config.label_smoothing * smooth
  total = targets.sum()
  return float(total * np.log(classes)), float(total * special.entr(targets / total).sum())


def correct(logits: jax.Array, labels: mixing.Labels) -> jax.Array:
  """Returns 1.0 where the largest logit is the label's, else 0.0: float32 [B]. Among equal logits the first counts.

  For mixed labels, the label with the larger mixing fraction counts.
  """
  if isinstance(labels, mixing.Mixed):
    labels = jnp.where(labels.fraction >= 0.5, labels.first, labels.second)
  return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
