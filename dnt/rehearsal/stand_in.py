"""Stands in for images that are not here: splits of the right size, whose pixels nobody reads."""

import functools
import pathlib
import re
from typing import NamedTuple

import numpy as np

from dnt import config as schema
from dnt import errors
from dnt.config import typed
from dnt.data import examples, splits
from dnt.data.sources import builtin
from dnt.training import datasets

# Sets that a rehearsal knows without their files: (H, W, C), classes, images by split. Sizes from the TFDS catalog.
_CIFAR, _MNIST = ((32, 32, 3), {'train': 50_000, 'test': 10_000}), ((28, 28, 1), {'train': 60_000, 'test': 10_000})
KNOWN: dict[str, tuple[examples.Shape, int, dict[str, int]]] = {
  'cifar_binary': (_CIFAR[0], 10, _CIFAR[1]),
  'tfds:cifar10': (_CIFAR[0], 10, _CIFAR[1]),
  'tfds:cifar100': (_CIFAR[0], 100, _CIFAR[1]),
  'tfds:fashion_mnist': (_MNIST[0], 10, _MNIST[1]),
  'tfds:imagenet2012': ((None, None, 3), 1000, {'train': 1_281_167, 'validation': 50_000}),
  'tfds:mnist': (_MNIST[0], 10, _MNIST[1]),
}


class Size(NamedTuple):
  """The size of data that is not here, from the command line."""

  images: int  # of the training split
  classes: int


def parse(text: str) -> Size:
  """Parses `--stand_in`.

  Raises:
    errors.InputError: it is not `<training images>:<classes>`.
  """
  match = re.fullmatch(r'(\d+):(\d+)', text.replace('_', ''))
  if match is None or not int(match[1]) or int(match[2]) < 2:
    raise errors.InputError(f'--stand_in={text} must be <training images>:<classes>, such as 1281167:1000')
  return Size(int(match[1]), int(match[2]))


class _Absent:
  """Images of a split of which only the number is known: the images `indices` of it, a range or int [N]."""

  def __init__(self, classes: int, split: str, indices: range | np.ndarray):
    self._classes, self._split, self._indices, self.paths = classes, split, indices, ()

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> tuple[None, int]:
    return None, index % self._classes

  def part(self, start: int, stop: int) -> '_Absent':
    return _Absent(self._classes, self._split, self._indices[start:stop])

  def take(self, indices: np.ndarray) -> '_Absent':
    return _Absent(self._classes, self._split, np.asarray(self._indices)[indices])

  def labels_at(self, indices: np.ndarray) -> np.ndarray:
    return indices % self._classes

  def in_channels(self, count: int) -> '_Absent':
    return self

  def shares(self, other: '_Absent') -> bool:
    return self._split == other._split and np.intersect1d(self._indices, other._indices).size > 0

  def decode_all(self, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    # The system gives pages of zeros no memory before they are written.
    return np.zeros((len(self), *shape), np.uint8), np.arange(len(self)) % self._classes


def load(config: typed.Config, size: Size | None) -> tuple[typed.Config, datasets.Data]:
  """Returns the data of a run: its files if they are here and small, else splits of the same size.

  Args:
    config: a validated config.
    size: the size of data that is neither here nor known; None: the command line names none.

  Returns:
    The config, with values for what would have to be measured on images that are not here, and the data.

  Raises:
    errors.InputError: the data is not here, and its size is not known.
  """
  config = schema.copy_unlocked(config)
  absent = _find_absent(config, size)
  if absent is None:
    return config, datasets.load(config, config.eval.splits, test=True)
  first = next(iter(absent.values()))()
  if config.loss.balance_classes:
    config.loss.balance_classes, config.loss.class_weights = False, (1.0,) * first.num_classes
  if not config.data.mean:
    channels = first.shape[2]
    config.data.mean, config.data.std = (0.5,) * channels, (0.25,) * channels
  return config, datasets.load(config, config.eval.splits, test=True, find=lambda *_: absent)


def _find_absent(config: typed.Config, size: Size | None) -> examples.Splits | None:
  """Returns the splits that stand in for those of the config, or None if the files are to be read."""
  data, (name, _, where) = config.data, config.data.source.partition(':')
  key = data.source if name == 'tfds' else name
  if size:
    side = data.image_size
    if side is None:
      raise errors.InputError('--stand_in needs config.data.image_size, the side of the images in pixels')
    trained, *evaluated = (splits.parse(text).name for text in (data.train_split, *config.eval.splits))
    counts = {split: max(size.images // 10, 1) for split in evaluated if split != splits.VAL}
    counts |= {splits.TRAIN: size.images, trained: size.images}
    return _splits(data, (None, None, 3), size.classes, counts)
  if name == 'synthetic':
    side = data.image_size or builtin.SYNTHETIC_SIZE
    count = data.synthetic_examples
    return _splits(data, (side, side, 3), data.synthetic_classes, {'train': count, 'test': count})
  if key in KNOWN:
    return _splits(data, *KNOWN[key])
  folder = where or data.dir
  if name == 'digits' or (name != 'tfds' and folder and pathlib.Path(folder).expanduser().is_dir()):
    return None
  known = ', '.join(KNOWN)
  raise errors.InputError(
    f'the images of config.data.source={data.source!r} are not here, and their number is known only of digits, '
    f'synthetic, {known}: give it with --stand_in=<training images>:<classes>'
  )


def _splits(data: typed.Data, shape: examples.Shape, classes: int, counts: dict[str, int]) -> examples.Splits:
  side, names = data.image_size, tuple(map(str, range(classes)))
  if side and None not in shape:
    shape = (side, side, shape[2])  # as the run holds them

  def read(split):
    return examples.Examples(data.source, split, names, shape, _Absent(classes, split, range(counts[split])), None)

  found = {split: functools.partial(read, split) for split in counts}
  return {**found, splits.VAL: found['validation']} if 'validation' in found else found
