"""Finds and reads images as a trained network takes them, and predicts their classes."""

import glob
import itertools
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dnt import errors, files
from dnt.data import inspection, order, pipeline
from dnt.data.sources import image_files
from dnt.data.transforms import images
from dnt.inference import network as network_lib
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib

_log = logging.getLogger(__name__)


def find(text: str | os.PathLike[str]) -> tuple[str, ...]:
  """Returns the sorted paths of images, each once.

  Args:
    text: a file, a folder (all images in and below it) or a glob ('scans/**/*.png').

  Raises:
    errors.InputError: there is no image.
  """
  text = os.fspath(text)
  path = pathlib.Path(text).expanduser()
  if path.is_dir():
    paths, skipped = image_files.find(path)
    if not paths:
      raise errors.InputError(f'the folder {text} holds no images ({", ".join(image_files.SUFFIXES)})')
    if skipped:
      reasons = errors.list_names(image_files.reasons(skipped))
      _log.info(files.readable(f'{text}: {len(paths):,} images; not read: {reasons}'))
    return tuple(paths)
  if path.is_file():
    return (str(path),)
  # A glob with two '**' finds a file once for each way to share the folders out between them.
  result = sorted({each for each in glob.glob(str(path), recursive=True) if pathlib.Path(each).is_file()})
  if not result:
    raise errors.InputError(f'there are no images at {text!r}; give a file, a folder or a quoted glob')
  return tuple(result)


def say_reading(network: network_lib.Network, paths: Sequence[str]) -> None:
  """Logs a line if images have an EXIF orientation that the network's run ignores, and so `read` does too.

  Another one says so if 16-bit images look black because they use few bits, and one if the run cut its images to boxes,
  which these images do not have.
  """
  how = images.decoding(network.config.data)
  # In random order, so that the images whose values are read are not those of one class.
  seen = inspection.look([paths[index] for index in order.permutation(order.philox(0, order.SPLIT), len(paths))])
  if seen.rotated and not how.rotate:
    _log.info(inspection.describe_rotation(seen))
  depth = inspection.measure_depth(seen.deep) if how.bits == images.USUAL.bits else None
  if depth and depth.fitting:
    _log.info(
      f'{inspection.describe_depth(depth)} to the network, which reads 16 bits (config.data.image_bits); unless it was '
      f'trained on such images, multiply values of {depth.fitting} bits by {2 ** (16 - depth.fitting)}'
    )
  if network.config.data.crop_to_box:
    _log.info(
      'the run cut each image to its box (config.data.crop_to_box), and these images have no boxes: they are taken '
      'whole; give images that show the object alone'
    )


class Images(NamedTuple):
  """Images in the size and channels that a network expects.

  Attributes:
    images: the images, uint8 [N, H, W, C].
    paths: paths of these N images.
    unreadable: maps the path of each other image to the error message.
  """

  images: np.ndarray
  paths: tuple[str, ...]
  unreadable: dict[str, str]


def read(network: network_lib.Network, paths: Sequence[str | os.PathLike[str]]) -> Images:
  """Reads images exactly as an evaluation of the network does: decodes, resizes, and crops or squashes them.

  Boxes are the exception (`config.data.crop_to_box`): images are read whole.

  Args:
    network: from `network.load`; its channels decide between gray and RGB images.
    paths: paths of image files; memory holds all of them at once.
  """
  paths = [os.fspath(path) for path in paths]
  height, width, channels = network.image_shape
  transform, how = pipeline.eval_transform(network.config.data, (height, width)), images.decoding(network.config.data)

  def one(path):
    try:
      return images.to_array(transform(images.decode(path, path, channels, how), None))
    except errors.InputError as error:
      return str(error)

  with futures.ThreadPoolExecutor() as pool:
    result = list(zip(paths, pool.map(one, paths), strict=True))
  unreadable = {path: each for path, each in result if isinstance(each, str)}
  good = [(path, each) for path, each in result if path not in unreadable]
  pixels = np.array([each for _, each in good], np.uint8).reshape(-1, *network.image_shape)
  return Images(pixels, tuple(path for path, _ in good), unreadable)


class Predictions(NamedTuple):
  """The most likely classes of one batch of images.

  Attributes:
    paths: paths of the N images.
    indexes: class indexes, int32 [N, k], the most likely first.
    probabilities: float32 [N, k].
    unreadable: maps the path of each other image to the reason why it has no prediction.
  """

  paths: tuple[str, ...]
  indexes: np.ndarray
  probabilities: np.ndarray
  unreadable: dict[str, str]


def why_not_predicted(path: str) -> str:
  """Returns the reason why an image has no prediction although it can be read."""
  return f'the network gives no finite logits for the image {path}'


def predict(
  network: network_lib.Network, mesh: Mesh, paths: Sequence[str | os.PathLike[str]], batch_size: int, top: int
) -> Iterator[Predictions]:
  """Yields the most likely classes of images batch by batch; it reads the next batch while one is computed.

  An image whose logits are not finite has no prediction, like one that cannot be read.

  Args:
    network: from `network.load`, on the mesh.
    mesh: mesh whose devices share each batch.
    paths: paths of image files.
    batch_size: a multiple of the number of devices.
    top: number of classes for each image; the function uses at most as many as the network has.
  """
  paths = [os.fspath(path) for path in paths]
  if not paths:
    return
  say_reading(network, paths)
  count = min(top, len(network.class_names))
  size = min(batch_size, mesh_lib.divisible(len(paths), mesh))  # do not compute a full batch for a few images

  def best(variables, images):
    _, indexes, probabilities = most_likely(network, variables, images, count)
    return probabilities, indexes

  def fetch(seen, result):
    probabilities, indexes = (np.asarray(each)[: len(seen.paths)] for each in result)
    good = np.all(np.isfinite(probabilities), axis=-1)
    paths = tuple(itertools.compress(seen.paths, good))
    lost = {path: why_not_predicted(path) for path in itertools.compress(seen.paths, ~good)}
    return Predictions(paths, indexes[good], probabilities[good], seen.unreadable | lost)

  program, pending = compile_lib.jit(best, mesh, out_shardings=mesh_lib.replicated(mesh)), None
  for start in range(0, len(paths), size):
    seen = read(network, paths[start : start + size])
    padded = np.zeros((size, *network.image_shape), np.uint8)
    padded[: len(seen.paths)] = seen.images
    result = program(network.variables, mesh_lib.place(padded, mesh_lib.batch_sharding(mesh)))
    if pending:
      yield fetch(*pending)
    pending = seen, result
  if pending:
    yield fetch(*pending)


def most_likely(
  network: network_lib.Network, variables: Any, images: jax.Array, count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the logits of images, and the indexes and probabilities of their most likely classes.

  Args:
    network: the network.
    variables: its variables, as they are arguments of a program.
    images: uint8 [B, H, W, C].
    count: number of classes of each image.

  Returns:
    The logits [B, classes], the indexes int32 [B, count], the most likely first, and their probabilities [B, count].
  """
  logits = network.model.apply(variables, network.preprocess(images), train=False)
  _, indexes = jax.lax.top_k(logits, count)  # small probabilities are equal in float32: zero
  return logits, indexes, jnp.take_along_axis(jax.nn.softmax(logits), indexes, axis=-1)
