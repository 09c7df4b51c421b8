"""How good a classifier is beyond its accuracy: one class against the rest, and whether its confidence can be believed.

All figures are exact over the examples they are given. A figure that is not defined is NaN here and None in records.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BINS = 15  # of the confidence, of equal width (Guo et al. 2017)
_EDGES = np.linspace(0, 1, BINS + 1, dtype=np.float32)


def calibration_gaps(confidence: jax.Array, correct: jax.Array, mask: jax.Array) -> jax.Array:
  """By bin of confidence, the sum over its examples of `correct` less the confidence; pure, for a step.

  Bin m of M holds confidences in ((m - 1) / M, m / M]. Gaps of batches add up to those of all their examples.

  Args:
    confidence: float32 [B], the probability of the class that is predicted.
    correct: float32 [B], 1 where that is the label's, else 0.
    mask: bool [B], False on rows that do not count.

  Returns:
    float32 [BINS].
  """
  gap = jnp.where(mask, correct - confidence, 0.0)
  place = jnp.sum(confidence[:, None] > _EDGES[None, 1:-1], axis=1)
  return jnp.sum(jnp.where(place[:, None] == np.arange(BINS)[None, :], gap[:, None], 0.0), axis=0)


def calibration_error(gaps: np.ndarray, count: int) -> float:
  """Expected calibration error, in [0, 1]: mean over examples of |accuracy - mean confidence| of their bin.

  Guo et al. 2017, "On calibration of modern neural networks", equation 3.

  Args:
    gaps: of `calibration_gaps`, over all examples.
    count: of examples.
  """
  return float(np.sum(np.abs(gaps), dtype=np.float64)) / count


def auroc(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Area under the ROC curve of each class against the rest.

  The chance that an example of the class has a higher probability of it than one of another class, equal ones counting
  half: the rank statistic of Mann and Whitney, exact.

  Args:
    probabilities: float [N, classes]; any score that grows with the probability will do.
    labels: int [N].

  Returns:
    float64 [classes]; NaN for a class that none or all of the examples belong to, or with a probability that is NaN.
  """
  areas = np.full(probabilities.shape[1], np.nan)
  for label, column in enumerate(probabilities.T):
    inside = column[labels == label]
    count, rest = len(inside), len(column) - len(inside)
    ordered = np.sort(column)  # NaN last
    if count and rest and not np.isnan(ordered[-1]):
      # One more than twice its mean rank from 0: whole numbers, so that nothing is rounded before the division.
      ranks = np.searchsorted(ordered, inside, 'left') + np.searchsorted(ordered, inside, 'right')
      areas[label] = (int(ranks.sum()) - count**2) / (2 * count * rest)
  return areas


def per_class(confusion: np.ndarray, areas: np.ndarray) -> dict[str, list[Any]]:
  """Figures of each class against the rest, as JSON holds them.

  Args:
    confusion: int [classes, classes], true class by predicted.
    areas: float [classes], as `auroc` gives them.

  Returns:
    Lists in class order: `examples`; `sensitivity` (recall), the share of its examples that are found; `specificity`,
    the share of all others that are not taken for it; `auroc`. None where it is not defined: all three for a class
    without examples.
  """
  confusion = confusion.astype(np.int64)
  examples, hits, taken = confusion.sum(1), np.diag(confusion), confusion.sum(0)
  others = examples.sum() - examples
  shares = {
    'sensitivity': hits / np.maximum(examples, 1),
    'specificity': np.where(others > 0, (others - taken + hits) / np.maximum(others, 1), np.nan),
    'auroc': areas,
  }
  shares = {name: np.where((examples > 0) & np.isfinite(values), values, None) for name, values in shares.items()}
  return {'examples': examples.tolist()} | {name: values.tolist() for name, values in shares.items()}
