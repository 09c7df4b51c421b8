"""A split of a data set: labelled pictures that can be read in any order."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dnt.data.transforms import images

Shape = tuple[int | None, int | None, int]
# What a source offers: a function that reads the whole split, by its name.
Splits = Mapping[str, Callable[[], 'Examples']]


@dataclasses.dataclass(frozen=True)
class Examples:
  """Labelled pictures; `examples[i]` is (image, label), the image as Pillow has it, of mode L or RGB.

  Attributes:
    name: the source, for messages.
    split: what was asked for, slice included.
    class_names: a name a class, in label order.
    shape: (H, W, C) of every picture; H and W are None where pictures differ in size.
    pictures: uint8 [N, H, W, C] when they are in memory; else random access that worker processes can be sent:
      `pictures[i]` reads and decodes (image, label) number i, `pictures.part(start, stop)` is a slice, and where
      all are of one size `pictures.decode_all(shape)` gives images and labels.
    labels: int32 [N]; None where labels are stored with the pictures and reading them means reading everything.
    views: 0; else `pictures` holds features, float32 [views x N, ...], those of the first view of each picture first.
  """

  name: str
  split: str
  class_names: tuple[str, ...]
  shape: Shape
  pictures: Any
  labels: np.ndarray | None
  views: int = 0

  @property
  def images(self) -> np.ndarray | None:
    """uint8 [N, H, W, C] when the pictures are in memory, else None."""
    return self.pictures if isinstance(self.pictures, np.ndarray) else None

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  def __len__(self) -> int:
    return len(self.pictures)

  def __getitem__(self, index: int) -> tuple[Any, int]:
    """(image, label).

    Raises:
      errors.InputError: the file cannot be decoded; names it.
    """
    if self.images is None:
      return self.pictures[index]
    return images.from_array(self.pictures[index]), int(self.labels[index])

  def part(self, split: str, start: int, stop: int) -> 'Examples':
    """Examples start to stop, under the name `split`."""
    pictures = self.pictures.part(start, stop) if self.images is None else self.pictures[start:stop]
    labels = None if self.labels is None else self.labels[start:stop]
    return dataclasses.replace(self, split=split, pictures=pictures, labels=labels)

  def decoded(self) -> 'Examples':
    """The same with the pictures, which must be of one size, in memory."""
    pictures, labels = self.pictures.decode_all(self.shape)
    return in_memory(self.name, self.split, pictures, labels, self.class_names)


def in_memory(
  name: str, split: str, pictures: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]
) -> Examples:
  """Examples whose pictures are an array, uint8 [N, H, W, C]."""
  pictures, labels = np.ascontiguousarray(pictures), labels.astype(np.int32)
  return Examples(name, split, tuple(class_names), pictures.shape[1:], pictures, labels)
