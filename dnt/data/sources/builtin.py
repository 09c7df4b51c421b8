"""Sources that need no files: scikit-learn's digits, and synthetic images."""

import functools
import gzip
import importlib.util
import pathlib

import numpy as np

from dnt import errors
from dnt.config import typed
from dnt.data import examples, order
from dnt.parallel import capacity

DIGITS_TEST_FRACTION = 0.2
SYNTHETIC_SIZE = 32  # pixels per side, unless config.data.image_size is set


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
  """Returns images uint8 [1797, 8, 8, 1] and labels int64 [1797], in the order of `sklearn.datasets.load_digits`."""
  # This avoids scikit-learn's own loader, whose import takes 2.5 s on two cores, as long as the rest of a warm start.
  package = importlib.util.find_spec('sklearn')
  if package is None or package.origin is None:
    raise errors.InputError("the source 'digits' comes with scikit-learn: pip install scikit-learn")
  with gzip.open(pathlib.Path(package.origin).parent / 'datasets' / 'data' / 'digits.csv.gz', 'rt') as file:
    rows = np.loadtxt(file, delimiter=',', dtype=np.int64)
  return np.round(rows[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8), rows[:, -1]


def digits(where: str, config: typed.Data, seed: int) -> examples.Splits:
  """Returns the splits of scikit-learn's 1797 handwritten digits, [8, 8, 1], split 80/20 class by class.

  It scales the original values 0 to 16 to 0 to 255.
  """
  del where, config

  def read(split):
    images, labels = _read_digits()
    train, test = order.stratified(labels, DIGITS_TEST_FRACTION, seed)
    chosen = {'train': train, 'test': test}[split]
    names = tuple(str(digit) for digit in range(10))
    return examples.in_memory('digits', split, images[chosen], labels[chosen], names)

  return {split: functools.partial(read, split) for split in ('train', 'test')}


def synthetic(where: str, config: typed.Data, seed: int) -> examples.Splits:
  """Returns the splits of learnable synthetic images, [S, S, 3]: one smooth pattern per class, plus noise.

  Example i depends on (seed, split, i) alone; its label is i modulo the number of classes.
  """
  del where
  size = config.image_size or SYNTHETIC_SIZE
  classes, count = config.synthetic_classes, config.synthetic_examples
  # int16 and float64 patterns, and the uint8 images of a split.
  capacity.check(
    3 * size**2 * (10 * classes + count),
    capacity.host(),
    f'a split of {count:,} synthetic images of {size} pixels and {classes:,} classes',
    'config.data.synthetic_examples, config.data.synthetic_classes or config.data.image_size',
  )

  def read(split):
    coarse = order.generator(seed, order.IMAGES).uniform(48, 208, (classes, 4, 4, 3))
    # Bilinear upsampling from 4x4 makes the patterns smooth, so that the class survives a crop or a flip.
    at = np.linspace(0, 3, size)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(4)))
    patterns = np.einsum('yi,xj,kijc->kyxc', weights, weights, coarse).astype(np.int16)
    labels = np.arange(count) % classes
    images = np.empty((count, size, size, 3), np.uint8)
    stream = {'train': 1, 'test': 2}[split]
    for index, label in enumerate(labels):
      noise = order.generator(seed, order.IMAGES, stream, index).integers(-48, 48, (size, size, 3), np.int16)
      images[index] = patterns[label] + noise
    names = tuple(f'class{label}' for label in range(classes))
    return examples.in_memory('synthetic', split, images, labels, names)

  return {split: functools.partial(read, split) for split in ('train', 'test')}
