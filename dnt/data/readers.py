"""Readers that grain's worker processes run: they map a row's index to its image. They import no jax and no model."""

import dataclasses
import functools
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from dnt.data import examples, order
from dnt.data.transforms import images
from dnt.parallel import signals
from dnt.parallel.cpu import allocator

# Maps a Pillow image to another one; see `images`.
Transform = Callable[[Any, np.random.Generator | None], Any]
Row = dict[str, np.ndarray | np.int32]  # `image`, uint8 [H, W, C], and `label`

# Workers need the same few epochs again and again; computing ImageNet's order takes 0.1 s, storing it 5 MB.
_order = functools.lru_cache(maxsize=4)(order.order)


@dataclasses.dataclass(frozen=True)
class _Reader:
  """Reads one row of one batch; the workers receive a pickled copy.

  Attributes:
    examples: the split to read.
    transform: resizes an image to the common size and, in training, augments it; its draws depend on the row's place.
    batch_size: rows of a batch over all processes.
    rows: rows that this process reads.
  """

  examples: examples.Examples
  transform: Transform
  batch_size: int
  rows: range

  def place(self, index: int) -> int:
    """Maps the index of a row among those that this process reads to its place in the whole run."""
    step, row = divmod(index, len(self.rows))
    return step * self.batch_size + self.rows[row]


@dataclasses.dataclass(frozen=True)
class TrainReader(_Reader):
  """Reads endless shuffled epochs."""

  seed: int

  def __call__(self, index: int) -> Row:
    epoch, position = divmod(self.place(index), len(self.examples))
    image, label = self.examples[_order(self.seed, epoch, len(self.examples))[position]]
    generator = order.generator(self.seed, order.CROP, epoch, position)
    return {'image': images.to_array(self.transform(image, generator)), 'label': np.int32(label)}


@dataclasses.dataclass(frozen=True)
class EvalReader(_Reader):
  """Reads one pass in order; rows beyond the end are zeros.

  Attributes:
    shape: (H, W, C) of the images.
    drawn: (seed, view) that determines the transform's random draws; None: the transform makes none.
  """

  shape: tuple[int, int, int]
  drawn: tuple[int, int] | None = None

  def __call__(self, index: int) -> Row:
    place = self.place(index)
    if place >= len(self.examples):
      return {'image': np.zeros(self.shape, np.uint8), 'label': np.int32(0)}
    image, label = self.examples[place]
    generator = self.drawn and order.generator(self.drawn[0], order.CROP, self.drawn[1], place)
    return {'image': images.to_array(self.transform(image, generator)), 'label': np.int32(label)}


def in_turn(image: Any, generator: np.random.Generator | None, transforms: tuple[Transform, ...]) -> Any:
  """Applies transforms in sequence; all draw from the same generator."""
  for transform in transforms:
    image = transform(image, generator)
  return image


def start_worker(index: int, count: int) -> None:
  """Prepares a worker to ignore the signals that the main process handles, and to exit if that is killed.

  A decoded photograph is a large block of memory, and a worker allocates one every few milliseconds. Its allocator
  therefore keeps freed memory.
  """
  del index, count
  allocator.keep_freed()
  for number in signals.CODES.values():
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None  # this process is a worker

  def watch():
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
