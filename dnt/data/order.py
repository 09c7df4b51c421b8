"""Random draws on the host. They are counter-based: each is a pure function of (seed, epoch, position)."""

from collections.abc import Callable

import numpy as np

# Purposes of random streams. Streams with different purposes never overlap.
ORDER, CROP, SPLIT, IMAGES, SHOTS = range(5)
BLOCK = 4096  # examples whose labels are looked up together


def philox(seed: int, purpose: int, major: int = 0, minor: int = 0) -> np.random.Philox:
  """Returns the Philox stream of (seed, purpose) that starts at counter (major, minor), each below 2^64."""
  return np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=np.array([0, 0, minor, major], np.uint64))


def generator(seed: int, purpose: int, major: int = 0, minor: int = 0) -> np.random.Generator:
  """Returns a NumPy generator on the stream that `philox` starts."""
  return np.random.Generator(philox(seed, purpose, major, minor))


def permutation(stream: np.random.Philox, count: int) -> np.ndarray:
  """Returns a random permutation of `count` items, int32 [count].

  It sorts raw random words. NumPy keeps these the same between versions, but does not promise this for its own
  `permutation`, and a run may resume under another version.
  """
  return np.argsort(stream.random_raw(count), kind='stable').astype(np.int32)


def order(seed: int, epoch: int, count: int) -> np.ndarray:
  """Returns the order in which an epoch visits the examples, int32 [count]."""
  return permutation(philox(seed, ORDER, epoch), count)


def stratified(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Splits examples in two so that both parts have the same class proportions; both parts are in random order.

  Args:
    labels: int [N].
    fraction: fraction of each class in the second part. The count is rounded to the nearest integer, but each part
      gets at least one example of the class; of one that occurs once, the first part.
    seed: seed of the draw.

  Returns:
    Two int32 arrays of example indices.
  """
  shuffled = permutation(philox(seed, SPLIT), len(labels))
  mixed, second = labels[shuffled], np.zeros(len(labels), bool)
  by_class = np.argsort(mixed, kind='stable')  # one sort, because there may be thousands of classes
  starts = np.unique(mixed[by_class], return_index=True)[1]
  for members in np.split(by_class, starts[1:]):
    count = min(max(round(len(members) * fraction), 1), len(members) - 1)
    second[members[:count]] = True
  return shuffled[~second], shuffled[second]


def balanced(
  labels_at: Callable[[np.ndarray], np.ndarray], count: int, classes: int, each: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Draws the same number of examples of every class, in random order: the first ones of a random permutation.

  So the examples of a smaller number are among those of a larger one.

  Args:
    labels_at: returns the labels of the examples at some indices; called for blocks of them, until all are drawn.
    count: number of examples to draw from.
    classes: number of classes.
    each: number of examples of each class.
    seed: seed of the draw.

  Returns:
    Indices, int32 [n], and their labels, int32 [n]; fewer than `each` of a class that has fewer.
  """
  shuffled, drawn, left = permutation(philox(seed, SHOTS), count), [], np.full(classes, each)
  for start in range(0, count, BLOCK):
    block = shuffled[start : start + BLOCK]
    for index, label in zip(block, labels_at(block), strict=True):
      if left[label]:
        left[label] -= 1
        drawn.append((index, label))
    if not left.any():
      break
  drawn = np.array(drawn, np.int32)
  return drawn[:, 0], drawn[:, 1]
