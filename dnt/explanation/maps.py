"""Explains images one batch at a time: the network's prediction, its map, and the faithfulness of the map."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dnt import errors, inference
from dnt.data import class_order
from dnt.explanation import cam, faithfulness
from dnt.models import depth
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib

BATCH = 8  # number of images per batch
Array = TypeVar('Array', np.ndarray, jax.Array)  # on the host, or inside a program


class Explained(NamedTuple):
  """The explanation of one image.

  Attributes:
    path: path of the file.
    image: the network's input image before normalization, uint8 [H, W, C].
    map: float32 [H, W], upsampled but not normalized.
    probabilities: float32 [classes].
    target: the class that the map explains.
    areas: deletion and insertion in the order of the map.
    random_areas: the same in the order of a random map.
  """

  path: str
  image: np.ndarray
  map: np.ndarray
  probabilities: np.ndarray
  target: int
  areas: faithfulness.Areas[float]
  random_areas: faithfulness.Areas[float]


def class_index(names: Sequence[str], text: str) -> int:
  """Returns the index of the class with that name or, if no class has that name, with that index.

  Raises:
    errors.InputError: no class has that name or index, or several have that name.
  """
  spelt, (wanted,) = class_order.normalized(names), class_order.normalized([text])
  if spelt.count(wanted) > 1:
    found = class_order.indexes(wanted, spelt)
    raise errors.InputError(f'several classes of the network have the name {text!r}; give the index of one: {found}')
  if wanted in spelt:
    return spelt.index(wanted)
  if text.isdecimal() and int(text) < len(names):
    return int(text)
  if text.isdecimal():
    raise errors.InputError(f'there is no class {text}: the network has {len(names)}, counted from 0')
  raise errors.unknown('class', text, names)


def in_batches(program: Callable, mesh: Mesh, size: int, *arrays: np.ndarray) -> Any:
  """Runs a program on the rows of arrays in batches, and returns the results [N, ...] on the host.

  Args:
    program: function of `size` rows of each array on the mesh; it must treat each row independently.
    mesh: mesh whose devices share each batch.
    size: rows per batch, a multiple of the number of devices; zeros pad the last batch.
    *arrays: [N, ...] each, N above 0.
  """
  results = []
  for start in range(0, len(arrays[0]), size):
    parts = [array[start : start + size] for array in arrays]
    count = len(parts[0])
    filled = tuple(np.pad(part, [(0, size - count)] + [(0, 0)] * (part.ndim - 1)) for part in parts)
    result = program(*mesh_lib.place(filled, mesh_lib.batch_sharding(mesh)))
    results.append(jax.tree.map(lambda leaf, count=count: leaf[:count], jax.device_get(result)))
  return jax.tree.map(lambda *leaves: np.concatenate(leaves), *results)


class Maps(NamedTuple, Generic[Array]):
  """Holds the maps of images.

  Attributes:
    values: float32 [N, H, W].
    probabilities: float32 [N, classes].
    targets: int32 [N], the class that each map explains.
  """

  values: Array
  probabilities: Array
  targets: Array


class Explainer:
  """Explains images with one network, at one entry, by one method; it compiles its programs once."""

  def __init__(self, network: inference.Network, mesh: Mesh, entry: depth.Entry, method: str, batch_size: int = BATCH):
    """Sets up the programs; the first call compiles them.

    Args:
      network: the network, with variables on the mesh.
      mesh: mesh whose devices share each batch.
      entry: an entry of the depth list, from `cam.choose`.
      method: a key of `cam.METHODS`.
      batch_size: number of images per batch; the explainer rounds it up to a multiple of the number of devices.
    """
    self._network, self._mesh = network, mesh
    self._size = mesh_lib.divisible(batch_size, mesh)
    shape = next(row.shape for row in cam.spatial(network.table) if row.entry == entry)
    assert shape is not None  # it is spatial
    self._grid = (shape[0], shape[1])
    size = network.image_shape[:2]

    def explain(variables, images, targets=None):
      inputs = network.preprocess(images)
      result = cam.explain(network.model, entry, method, variables, inputs, targets)
      return Maps(cam.upsample(result.values, size), jax.nn.softmax(result.logits), result.targets)

    def probability(variables, targets, inputs):
      probabilities = jax.nn.softmax(network.model.apply(variables, inputs, train=False))
      return jnp.take_along_axis(probabilities, targets[:, None], 1)[:, 0]

    self._explain, self._probability = compile_lib.jit(explain, mesh), compile_lib.jit(probability, mesh)

  def maps(self, images: np.ndarray, targets: np.ndarray | None = None) -> Maps[np.ndarray]:
    """Returns the maps of images.

    Args:
      images: images in the network's size, uint8 [N, H, W, C].
      targets: int32 [N], the target classes; None: the predicted classes.
    """
    given = (images,) if targets is None else (images, targets)
    return in_batches(functools.partial(self._explain, self._network.variables), self._mesh, self._size, *given)

  def areas(self, images: np.ndarray, targets: np.ndarray, order: np.ndarray) -> faithfulness.Areas[np.ndarray]:
    """Computes deletion and insertion, float64 [N] each.

    Args:
      images: images in the network's size, uint8 [N, H, W, C].
      targets: int32 [N], the target classes.
      order: int32 [N, H, W], from `faithfulness.ranks`.
    """

    def measure(images, targets, order):
      probability = functools.partial(self._probability, self._network.variables, targets)
      return faithfulness.measure(probability, self._network.preprocess(images), order)

    return in_batches(measure, self._mesh, self._size, images, targets, order)

  def __call__(self, paths: Sequence[str], target: int | None, skip: Callable[[str, str], None]) -> Iterator[Explained]:
    """Explains image files in order, and reads at most one batch at a time.

    Args:
      paths: paths of image files.
      target: the class that all maps explain; None: each image's predicted class.
      skip: called with the path of each image that is unreadable, or has no finite logits, and the reason.
    """
    size = self._network.image_shape[:2]
    for start in range(0, len(paths), self._size):
      places = range(start, min(start + self._size, len(paths)))
      read = inference.read(self._network, [paths[place] for place in places])
      for path, reason in read.unreadable.items():
        skip(path, reason)
      if not read.paths:
        continue
      chosen = None if target is None else np.full(len(read.paths), target, np.int32)
      maps = self.maps(read.images, chosen)
      finite = np.all(np.isfinite(maps.probabilities), axis=-1)
      for path in itertools.compress(read.paths, ~finite):
        skip(path, inference.why_not_predicted(path))
      # The seed is the index among all paths, so other images read or skipped in the batch do not change the map.
      drawn = faithfulness.random_maps([place for place in places if paths[place] in read.paths], self._grid)
      noise = np.asarray(cam.upsample(jnp.asarray(drawn), size))
      areas, random_areas = (
        self.areas(read.images, maps.targets, faithfulness.ranks(each, noise)) for each in (maps.values, noise)
      )
      for index, path in itertools.compress(enumerate(read.paths), finite):
        yield Explained(
          path=path,
          image=read.images[index],
          map=maps.values[index],
          probabilities=maps.probabilities[index],
          target=int(maps.targets[index]),
          areas=faithfulness.Areas(*(float(each[index]) for each in areas)),
          random_areas=faithfulness.Areas(*(float(each[index]) for each in random_areas)),
        )
