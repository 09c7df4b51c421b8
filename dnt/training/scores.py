"""Computes metrics of a classifier beyond accuracy: each class against the rest, and the calibration of its confidence.

All metrics are exact over their examples. An undefined metric is NaN here and None in records.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dnt.data import examples as examples_lib

BINS = 15  # of the confidence, of equal width (Guo et al. 2017)
TOP5_FROM = 100  # number of classes from which the top-5 accuracy is informative
LARGEST = 2**24  # largest examples x classes of a split whose log odds are kept for the AUROC: 64 MiB
# Only tests use scikit-learn. Its roc_auc_score agrees to 1e-16, but importing it adds 0.8 to 1.7 s to the start, and
# it takes ten times as long (4.5 s instead of 0.3 s for 16,000 examples of 1,000 classes). Its confusion_matrix and
# classification_report need lists of labels and predictions; here the devices sum the confusion of any split exactly.
_EDGES = np.linspace(0, 1, BINS + 1, dtype=np.float32)


def log_odds(logits: jax.Array) -> jax.Array:
  """Returns log(p / (1 - p)) of the probability p of each class, by which examples are ranked: pure, for a step.

  Float32 rounds p, and log p, of all confident predictions to one value: from a lead of 18 on, p is 1.

  Args:
    logits: [B, classes].

  Returns:
    float32 [B, classes]; infinite where p is 0 or 1 exactly, NaN for an example whose probabilities are.
  """
  logits = logits.astype(jnp.float32)
  largest = jnp.max(logits, 1, keepdims=True)
  is_largest = jnp.arange(logits.shape[1])[None] == jnp.argmax(logits, 1)[:, None]
  # Without the class itself, the others sum to at least the largest, except for the largest.
  rest = jnp.where(is_largest, -jnp.inf, logits)
  relative = jnp.exp(rest - largest)
  others = largest + jnp.log1p(jnp.sum(relative, 1, keepdims=True) - relative)
  others = jnp.where(is_largest, jax.nn.logsumexp(rest, 1, keepdims=True), others)
  return jnp.where(jnp.isfinite(largest), logits - others, jnp.nan)


def calibration_gaps(confidence: jax.Array, correct: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns for each bin of confidence the sum over its examples of `correct` minus the confidence; pure, for a step.

  Bin m of M holds confidences in ((m - 1) / M, m / M]. The sum of the gaps of batches is the gap of all their examples.

  Args:
    confidence: float32 [B], the probability of the predicted class.
    correct: float32 [B], 1 if the prediction is right, else 0.
    mask: bool [B], False on rows that do not count.

  Returns:
    float32 [BINS].
  """
  gap = jnp.where(mask, correct - confidence, 0.0)
  place = jnp.sum(confidence[:, None] > _EDGES[None, 1:-1], axis=1)
  return jnp.sum(jnp.where(place[:, None] == np.arange(BINS)[None, :], gap[:, None], 0.0), axis=0)


def calibration_error(gaps: np.ndarray, count: int) -> float:
  """Returns the expected calibration error in [0, 1]: the mean over examples of their bin's |accuracy - confidence|.

  The confidence of a bin is the mean over its examples.

  Guo et al. 2017, "On calibration of modern neural networks", equation 3.

  Args:
    gaps: from `calibration_gaps`, summed over all examples.
    count: number of examples.
  """
  return float(np.sum(np.abs(gaps), dtype=np.float64)) / count


def auroc(ranking: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Computes the area under the ROC curve of each class against the rest.

  It is the probability that an example of the class has a higher probability for this class than an example of another
  class. Ties count half. It is the rank statistic of Mann and Whitney, computed exactly.

  Args:
    ranking: float [N, classes]; any score that increases with the probability, such as `log_odds`.
    labels: int [N].

  Returns:
    float64 [classes]; NaN for a class that none or all of the examples belong to, or with a score that is NaN.
  """
  areas = np.full(ranking.shape[1], np.nan)
  for label, column in enumerate(ranking.T):
    inside = column[labels == label]
    count, rest = len(inside), len(column) - len(inside)
    ordered = np.sort(column)  # NaN last
    if count and rest and not np.isnan(ordered[-1]):
      # Twice the mean rank (from 0) plus one is a whole number, so nothing is rounded before the division.
      ranks = np.searchsorted(ordered, inside, 'left') + np.searchsorted(ordered, inside, 'right')
      areas[label] = (int(ranks.sum()) - count**2) / (2 * count * rest)
  return areas


def balanced_accuracy(confusion: np.ndarray) -> float:
  """Returns the mean sensitivity over the classes that have examples, in [0, 1]; NaN without examples.

  Args:
    confusion: int [classes, classes], true class by predicted.
  """
  examples = confusion.sum(1, dtype=np.int64)
  known = examples > 0
  return float(np.mean(np.diag(confusion)[known] / examples[known])) if known.any() else math.nan


def has_auroc(source: examples_lib.Examples) -> bool:
  """Returns whether the log odds of a split are few enough to be kept."""
  return len(source) * source.num_classes <= LARGEST


def why_not_measured(quantity: str, source: examples_lib.Examples) -> str:
  """Returns why an evaluation of a split has no such metric, as far as its labels are known; '' if it has it."""
  size, classes = f'{len(source):,} images', source.num_classes
  if quantity == 'top5_accuracy' and classes < TOP5_FROM:
    return f'top5_accuracy is measured from {TOP5_FROM} classes on, and {source.name} has {classes}'
  if quantity == 'auroc' and not has_auroc(source):
    return f'auroc is not measured above {LARGEST:,} images x classes, and {source.split} has {size} x {classes:,}'
  if quantity == 'auroc' and source.labels is not None and len(np.unique(source.labels)) == 1:
    return f'auroc compares classes, and {source.split} has images of one alone'
  return ''


def per_class(confusion: np.ndarray, areas: np.ndarray) -> dict[str, list[Any]]:
  """Returns the metrics of each class against the rest, as JSON values.

  Args:
    confusion: int [classes, classes], true class by predicted.
    areas: float [classes], from `auroc`.

  Returns:
    Lists in class order: `examples`; `sensitivity` (recall), the fraction of its examples that are predicted as the
    class; `specificity`, the fraction of all other examples that are not predicted as it; `auroc`. None where a metric
    is not defined: all three for a class without examples.
  """
  hits = np.diag(confusion)
  taken, examples = (confusion.sum(axis, dtype=np.int64) for axis in (0, 1))
  others = examples.sum() - examples
  fractions = {
    'sensitivity': hits / np.maximum(examples, 1),
    'specificity': np.where(others > 0, (others - taken + hits) / np.maximum(others, 1), np.nan),
    'auroc': areas,
  }
  result = {'examples': examples.tolist()}
  for name, values in fractions.items():
    defined = (examples > 0) & np.isfinite(values)
    result[name] = [value if known else None for value, known in zip(values.tolist(), defined, strict=True)]
  return result
