"""What grain's worker processes run: from the number of a row to its picture. No jax and no model is imported here."""

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
from dnt.parallel import allocator

# From an image of Pillow to another: see `images`.
Transform = Callable[[Any, np.random.Generator | None], Any]

# Workers ask for the same few epochs over and over; an order of ImageNet takes 5 MB and 0.1 s.
_order = functools.lru_cache(maxsize=4)(order.order)


@dataclasses.dataclass(frozen=True)
class _Reader:
  """Reads one row of one batch; sent to the workers.

  Attributes:
    examples: where the pictures come from.
    transform: brings a picture to the one size, given the random numbers of its place; which ends in its size.
    batch_size: rows of a batch over all processes.
    rows: those that this process reads.
  """

  examples: examples.Examples
  transform: Transform
  batch_size: int
  rows: range

  def place(self, index: int) -> int:
    """From the count of rows this process reads to the place in the whole run."""
    step, row = divmod(index, len(self.rows))
    return step * self.batch_size + self.rows[row]


@dataclasses.dataclass(frozen=True)
class TrainReader(_Reader):
  """Endless shuffled epochs."""

  seed: int

  def __call__(self, index: int) -> dict[str, np.ndarray]:
    epoch, position = divmod(self.place(index), len(self.examples))
    image, label = self.examples[_order(self.seed, epoch, len(self.examples))[position]]
    generator = order.generator(self.seed, order.CROP, epoch, position)
    return {'image': images.to_array(self.transform(image, generator)), 'label': np.int32(label)}


@dataclasses.dataclass(frozen=True)
class EvalReader(_Reader):
  """One pass in order; zeros beyond the end.

  Attributes:
    shape: of the pictures.
    drawn: seed and view that the transform's draws are a function of; None: it draws nothing.
  """

  shape: tuple[int, int, int]
  drawn: tuple[int, int] | None = None

  def __call__(self, index: int) -> dict[str, np.ndarray]:
    place = self.place(index)
    if place >= len(self.examples):
      return {'image': np.zeros(self.shape, np.uint8), 'label': np.int32(0)}
    image, label = self.examples[place]
    generator = self.drawn and order.generator(self.drawn[0], order.CROP, self.drawn[1], place)
    return {'image': images.to_array(self.transform(image, generator)), 'label': np.int32(label)}


def in_turn(image: Any, generator: np.random.Generator | None, transforms: tuple[Transform, ...]) -> Any:
  """Transforms one after another, on one stream of random numbers."""
  for transform in transforms:
    image = transform(image, generator)
  return image


def start_worker(index: int, count: int) -> None:
  """Leaves Ctrl-C and SIGTERM to the main process, which stops in order, and ends with it when it is killed.

  A decoded photograph is a large block of memory, and a worker has another one every few milliseconds: it keeps them.
  """
  del index, count
  allocator.keep_freed()
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def watch():
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
