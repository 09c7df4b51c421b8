"""Pictures explained one batch at a time: what the network says, where it sees it, and how faithful the map is."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dnt import errors, inference
from dnt.explanation import cam, faithfulness
from dnt.models import depth
from dnt.parallel import compile as compile_lib

BATCH = 8  # pictures that run together


class Explained(NamedTuple):
  """One picture.

  Attributes:
    path: of the file.
    picture: uint8 [H, W, C], as the network takes it.
    map: float32 [H, W], upsampled; as it is, not normalized.
    probabilities: float32 [classes].
    target: the class that the map speaks for.
    areas: deletion and insertion in the order of the map.
    random_areas: the same in the order of a random map.
  """

  path: str
  picture: np.ndarray
  map: np.ndarray
  probabilities: np.ndarray
  target: int
  areas: faithfulness.Areas
  random_areas: faithfulness.Areas


def class_index(names: Sequence[str], text: str) -> int:
  """The class of that name, or, where no class has that name, of that index.

  Raises:
    errors.InputError: neither.
  """
  if text in names:
    return list(names).index(text)
  if text.isdecimal() and int(text) < len(names):
    return int(text)
  if text.isdecimal():
    raise errors.InputError(f'there is no class {text}: the network has {len(names)}, counted from 0')
  raise errors.unknown('class', text, names)


def in_batches(program: Callable, size: int, *arrays: np.ndarray) -> Any:
  """A program over the rows of arrays: results [N, ...] on the host.

  Args:
    program: jitted; of `size` rows of each array, each row by itself.
    size: rows of a batch; the last one is filled up with zeros.
    *arrays: [N, ...] each, N above 0.
  """
  results = []
  for start in range(0, len(arrays[0]), size):
    parts = [array[start : start + size] for array in arrays]
    count = len(parts[0])
    filled = [np.concatenate([part, np.zeros((size - count, *part.shape[1:]), part.dtype)]) for part in parts]
    results.append(jax.tree.map(lambda leaf, count=count: leaf[:count], jax.device_get(program(*filled))))
  return jax.tree.map(lambda *leaves: np.concatenate(leaves), *results)


class Explainer:
  """Explains pictures with one network, at one entry, by one method; programs are compiled once."""

  def __init__(self, network: inference.Network, entry: depth.Entry, method: str, batch_size: int = BATCH):
    """Args: entry: of the depth list, from `cam.choose`; method: of `cam.METHODS`; batch_size: pictures together."""
    self._network, self._size = network, batch_size
    self._shape = next(row.shape for row in network.table if row.entry == entry)[:2]
    size = network.image_shape[:2]

    def explain(variables, pictures, targets=None):
      images = network.preprocess(pictures)
      found = cam.explain(network.model, entry, method, variables, images, targets)
      return cam.upsample(found.values, size), jax.nn.softmax(found.logits), found.targets

    def probability(variables, targets, images):
      probabilities = jax.nn.softmax(network.model.apply(variables, images, train=False))
      return jnp.take_along_axis(probabilities, targets[:, None], 1)[:, 0]

    self._explain, self._probability = compile_lib.jit(explain), compile_lib.jit(probability)
    self._preprocess = compile_lib.jit(network.preprocess)

  def maps(self, pictures: np.ndarray, targets: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps float32 [N, H, W], probabilities float32 [N, classes] and targets int32 [N].

    Args:
      pictures: uint8 [N, H, W, C], from `inference.read`.
      targets: int32 [N], the classes; None: those predicted.
    """
    given = (pictures,) if targets is None else (pictures, targets)
    return in_batches(functools.partial(self._explain, self._network.variables), self._size, *given)

  def __call__(self, paths: Sequence[str], target: int | None, skip: Callable[[str, str], None]) -> Iterator[Explained]:
    """Explains picture files in their order, reading no more than a batch at a time.

    Args:
      paths: of picture files.
      target: the class that all maps speak for; None: the one predicted, picture by picture.
      skip: called with the path of each picture that cannot be read, and why.
    """
    for start in range(0, len(paths), self._size):
      places = range(start, min(start + self._size, len(paths)))
      read = inference.read(self._network, [paths[place] for place in places])
      for path, reason in read.unreadable.items():
        skip(path, reason)
      if read.paths:
        yield from self._batch(read, np.array([place for place in places if paths[place] in read.paths]), target)

  def _batch(self, read: inference.Pictures, places: np.ndarray, target: int | None) -> Iterator[Explained]:
    count = len(places)
    targets = None if target is None else np.full(count, target, np.int32)
    maps, probabilities, targets = self.maps(read.pictures, targets)
    # The rest of the batch, so that one program serves all.
    filling = [(0, self._size - count)]
    size = self._network.image_shape[:2]
    noise = np.asarray(cam.upsample(jnp.asarray(faithfulness.random_maps(places, self._shape)), size))
    images = self._preprocess(np.pad(read.pictures, filling + [(0, 0)] * 3))
    probability = functools.partial(self._probability, self._network.variables, np.pad(targets, filling))
    areas, random_areas = (
      faithfulness.measure(probability, images, np.pad(faithfulness.ranks(each, noise), filling + [(0, 0)] * 2))
      for each in (maps, noise)
    )
    for index in range(count):
      yield Explained(
        path=read.paths[index],
        picture=read.pictures[index],
        map=maps[index],
        probabilities=probabilities[index],
        target=int(targets[index]),
        areas=faithfulness.Areas(*(float(each[index]) for each in areas)),
        random_areas=faithfulness.Areas(*(float(each[index]) for each in random_areas)),
      )
