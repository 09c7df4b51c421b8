"""A split of a data set: labelled images with random access."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dnt import errors
from dnt.data import order, splits
from dnt.data.transforms import images

Shape = tuple[int | None, int | None, int]
# A source returns this: for each split name a function that reads the whole split.
Splits = Mapping[str, Callable[[], 'Examples']]


class UnlabelledError(errors.InputError):
  """Raised if a split has no labels, so that it can be neither trained on nor evaluated."""


@dataclasses.dataclass(frozen=True)
class Examples:
  """Labelled images; `examples[i]` is (image, label), where the image is a Pillow image of mode L or RGB.

  Attributes:
    name: name of the source, for messages.
    split: name of the split as the config writes it, with its slice.
    class_names: one name per class, in label order.
    shape: (H, W, C) of every image; H and W are None if the images differ in size.
    store: the images, uint8 [N, H, W, C], if they are in memory; features, see `views`; or a picklable object with
      random access: `store[i]` reads and decodes (image, label) number i, `store.part(start, stop)` returns a slice,
      `store.take(indices)` selects images, `store.relabelled(places)` returns it with label l as `places[l]`,
      `store.paths` lists the files, `store.shares(other)` says whether another one of the same source has an image of
      these. If the labels are not known, `store.labels_at(indices)` reads some. If all images have the same size,
      `store.decode_all(shape)` returns all images and labels. `store.in_channels(count)` returns it with gray images
      (1) or RGB ones (3).
    labels: int32 [N]; None if the labels are stored with the images and reading them means reading everything.
    views: 0 for images. Otherwise `store` is features, float32 [views x N, ...]: view 0 of every image first.
    origin: the examples that were decoded into these; None if these were not decoded.
    start: place of the first example in the whole split, of which these are a slice.
    line: what was read of the whole split, in one line for the log; empty: the source does not say it.
    drawn_from: if these were drawn from more examples, which began at `start`, the number of those; else 0.
    ordered: whether the source may keep its examples in an order that follows the labels, which are not known.
  """

  name: str
  split: str
  class_names: tuple[str, ...]
  shape: Shape
  store: Any
  labels: np.ndarray | None
  views: int = 0
  origin: 'Examples | None' = None
  start: int = 0
  line: str = ''
  drawn_from: int = 0
  ordered: bool = False

  @property
  def images(self) -> np.ndarray | None:
    """Returns the images, uint8 [N, H, W, C], if they are in memory, else None."""
    return self.store if isinstance(self.store, np.ndarray) else None

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  def __len__(self) -> int:
    return len(self.store)

  def __getitem__(self, index: int) -> tuple[Any, int]:
    """Returns (image, label).

    Raises:
      errors.InputError: the file cannot be decoded; the message names it.
    """
    if self.images is None:
      return self.store[index]
    store, labels = self.arrays()
    return images.from_array(store[index]), int(labels[index])

  def arrays(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images (or features) and labels of a split that is in memory."""
    assert self.images is not None and self.labels is not None, f'{self.split} of {self.name} is not in memory'
    return self.images, self.labels

  def part(self, split: str, start: int, stop: int) -> 'Examples':
    """Returns the examples from `start` to `stop` (exclusive) as a split named `split`."""
    store = self.store.part(start, stop) if self.images is None else self.store[start:stop]
    labels = None if self.labels is None else self.labels[start:stop]
    origin = self.origin and self.origin.part(split, start, stop)
    place = self.start + start
    return dataclasses.replace(self, split=split, store=store, labels=labels, origin=origin, start=place)

  def take(self, split: str, indices: np.ndarray) -> 'Examples':
    """Returns the examples at `indices` (int [n]) as a whole split named `split`; the labels must be known."""
    assert self.labels is not None, f'the labels of {self.split} of {self.name} are not known'
    store = self.store.take(indices) if self.images is None else self.store[indices]
    return dataclasses.replace(self, split=split, store=store, labels=self.labels[indices], start=0)

  def draw(self, each: int, seed: int) -> 'Examples':
    """Returns `each` examples of every class that has one, drawn at random, see `order.balanced`.

    Raises:
      errors.InputError: a class has fewer; the message names it.
      UnlabelledError: an example has no label.
    """
    known = self.labels
    labels_at = self.store.labels_at if known is None else lambda indices: known[indices]
    indices, labels = order.balanced(labels_at, len(self), self.num_classes, each, seed)
    counts = np.bincount(labels, minlength=self.num_classes)
    fewest = int(np.argmin(np.where(counts, counts, each)))
    if 0 < counts[fewest] < each:
      raise errors.InputError(
        f'config.data.images_per_class={each}, but {self.split} of {self.name} has only {counts[fewest]} images of '
        f'{self.class_names[fewest]!r}; give at most this number'
      )
    store = self.store.take(indices) if self.images is None else self.store[indices]
    return dataclasses.replace(self, store=store, labels=labels, drawn_from=len(self))

  def absent(self, option: str) -> str:
    """Returns the names of the classes without an example, in one text; empty if all have one. The labels are known.

    Args:
      option: what needs examples of all classes, for the message.

    Raises:
      errors.InputError: these are a slice of a split, so that the rest of it may have examples of these classes.
    """
    assert self.labels is not None, f'the labels of {self.split} of {self.name} are not known'
    present = set(self.labels.tolist())
    names = errors.list_names([repr(name) for label, name in enumerate(self.class_names) if label not in present])
    if names and not splits.parse(self.split).is_whole:
      raise errors.InputError(
        f'{option}: {self.split} of {self.name} has no image of {names}; use a larger '
        'config.data.train_split (a whole split may lack classes)'
      )
    return names

  def in_channels(self, count: int) -> 'Examples':
    """Returns gray images with three equal channels (3), or the luma of RGB images (1)."""
    store = self.store.in_channels(count) if self.images is None else images.in_channels(self.images, count)
    return dataclasses.replace(self, shape=(*self.shape[:2], count), store=store)

  def overlaps(self, other: 'Examples') -> bool:
    """Returns whether these and `other`, of the same source, share images, whatever the names of their splits.

    Images that a source holds in memory are those of one split, by its name; of those that were drawn, it is whether
    they may share images.
    """
    mine, others = (each.origin or each for each in (self, other))
    if mine.images is None:
      return mine.store.shares(others.store)
    same = splits.parse(self.split).name == splits.parse(other.split).name
    ends = [each.start + (each.drawn_from or len(each)) for each in (self, other)]
    return same and self.start < ends[1] and other.start < ends[0]

  def relabelled(self, places: np.ndarray, class_names: tuple[str, ...]) -> 'Examples':
    """Returns the examples with other classes.

    Args:
      places: int32 [classes], the new label of each old one.
      class_names: one name per class, in the order of the new labels.
    """
    if np.array_equal(places, np.arange(len(places))):
      return dataclasses.replace(self, class_names=class_names)
    store = self.store.relabelled(places) if self.images is None else self.store
    labels = None if self.labels is None else places[self.labels]
    origin = self.origin and self.origin.relabelled(places, class_names)
    return dataclasses.replace(self, class_names=class_names, store=store, labels=labels, origin=origin)

  def decoded(self) -> 'Examples':
    """Reads all images, which must have the same size, into memory."""
    store, labels = self.store.decode_all(self.shape)
    held = in_memory(self.name, self.split, store, labels, self.class_names)
    return dataclasses.replace(held, origin=self, start=self.start, drawn_from=self.drawn_from)


def in_memory(name: str, split: str, store: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Examples:
  """Makes `Examples` from an array of images, uint8 [N, H, W, C]."""
  store, labels = np.ascontiguousarray(store), labels.astype(np.int32)
  return Examples(name, split, tuple(class_names), store.shape[1:], store, labels)
