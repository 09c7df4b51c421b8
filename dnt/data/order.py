"""Every random draw made on the host: counter-based, so that each is a pure function of (seed, epoch, position)."""

import numpy as np

# What a stream of random numbers is for: streams of different purposes never meet.
ORDER, CROP, SPLIT, PICTURES = range(4)


def philox(seed: int, purpose: int, major: int = 0, minor: int = 0) -> np.random.Philox:
  """The Philox stream of (seed, purpose) that starts at counter (major, minor), each up to 2^64."""
  return np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=np.array([0, 0, minor, major], np.uint64))


def generator(seed: int, purpose: int, major: int = 0, minor: int = 0) -> np.random.Generator:
  """Random numbers of the stream that `philox` starts."""
  return np.random.Generator(philox(seed, purpose, major, minor))


def permutation(stream: np.random.Philox, count: int) -> np.ndarray:
  """A random order of `count` things, int32 [count].

  It sorts raw words: NumPy keeps those the same between versions, which it does not promise of its `permutation`, and a
  run may be resumed under another version.
  """
  return np.argsort(stream.random_raw(count), kind='stable').astype(np.int32)


def order(seed: int, epoch: int, count: int) -> np.ndarray:
  """The order in which an epoch visits the examples, int32 [count]."""
  return permutation(philox(seed, ORDER, epoch), count)


def stratified(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Splits examples so that each class gives the same share to both parts; both come in random order.

  Args:
    labels: int [N]; every class that occurs must occur at least twice.
    fraction: share of each class in the second part, rounded to the nearest; at least one example stays on each side.
    seed: of the draw.

  Returns:
    Two int32 arrays of example numbers.
  """
  shuffled = permutation(philox(seed, SPLIT), len(labels))
  second = np.zeros(len(labels), bool)
  for label in np.unique(labels):
    members = np.flatnonzero(labels[shuffled] == label)
    count = min(max(round(len(members) * fraction), 1), len(members) - 1)
    second[members[:count]] = True
  return shuffled[~second], shuffled[second]
