"""Turns examples into batches on the mesh: chooses where the images live, their size and their order.

The order of examples and every random draw are functions of (seed, epoch, position). Row `row` of step `step` has place
p = step * batch_size + row in the run, which is position p % N of epoch p // N. A batch may cross the end of an epoch,
and no example is dropped.
"""

import functools
import math
from collections.abc import Iterator
from concurrent import futures
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from dnt import errors
from dnt.config import implied, typed
from dnt.data import examples, placement, readers, resident, stream
from dnt.data.transforms import images, policies
from dnt.reporting import progress

Batch = dict[str, jax.Array]
# Values for options that the config leaves unset, if neither pretrained weights nor the data define them.
DEFAULTS = {'eval_crop': 0.875, 'interpolation': 'bilinear', 'image_bits': images.USUAL.bits}

MEASURED = 512  # images of a streamed split whose mean and standard deviation are measured: a few seconds


class Loader(Protocol):
  """Serves batches on the mesh by step.

  A program calls `arrays(step, count)` for up to `max_steps(step)` steps starting at `step`, passes the arrays to the
  jitted function, and calls the pure function `batch_at(arrays, step)` inside it. A batch holds `image`, uint8
  [B, H, W, C], and `label`, int32 [B]. In training it also holds `epoch` and the `position` within it, int32 [B]. In
  evaluation it also holds `mask`, bool [B], which is False on the rows that pad the last batch. An evaluation loader
  has `steps`, the number of batches of one pass, and `count`, that of its images. `shapes()` returns the shapes and
  shardings of `arrays`, so that a program can be compiled before any image is read.
  """

  def shapes(self) -> Any: ...

  def arrays(self, step: int, count: int) -> Any: ...

  def batch_at(self, arrays: Any, step: jax.Array) -> Batch: ...

  def max_steps(self, step: int) -> int: ...

  def close(self) -> None: ...


def image_shape(config: typed.Data, source: examples.Examples) -> tuple[int, int, int]:
  """Returns (H, W, C) of the images in a batch.

  Raises:
    errors.InputError: the images differ in size and `image_size` is not set.
  """
  height, width, channels = source.shape
  if config.image_size:
    return config.image_size, config.image_size, channels
  if height is None or width is None:
    raise errors.InputError(
      f'the images of {source.name} may differ in size; set config.data.image_size to the size that the network gets, '
      'such as 224'
    )
  return height, width, channels


def _is_resident(config: typed.Data, source: examples.Examples, train: bool) -> bool:
  return source.images is not None and placement.on_device(config, len(source), source.shape, train)


def resident_bytes(config: typed.Data, source: examples.Examples) -> int:
  """Returns the bytes of a device that a split to evaluate takes, images (or features) and labels; 0: it streams."""
  if source.views:
    return sum(array.nbytes for array in source.arrays())
  if not _is_resident(config, source, train=False):
    return 0
  return len(source) * (math.prod(image_shape(config, source)) + np.dtype(np.int32).itemsize)


def _resident_images(
  config: typed.Data, source: examples.Examples, train: bool
) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns images, uint8 [N, H, W, C] at `image_shape`'s size, and labels if the split lives on the device."""
  if not _is_resident(config, source, train):
    return None
  (pixels, labels), size = source.arrays(), image_shape(config, source)[:2]
  if size == pixels.shape[1:3] and (train or implied.eval_resize(config) == 'squash'):
    return pixels, labels
  resize = (_train_resize if train else eval_transform)(config, size)
  with futures.ThreadPoolExecutor() as pool:
    resized = pool.map(lambda image: images.to_array(resize(images.from_array(image), None)), pixels)
    return np.stack(list(resized)), labels


def _train_resize(config: typed.Data, size: tuple[int, int]) -> readers.Transform:
  """Returns the transform that brings an image to (height, width) for training; `config.augment` decides."""
  to_size = {'size': size, 'interpolation': config.interpolation}
  if config.augment == 'resized_crop_flip':
    return functools.partial(images.random_resized_crop, min_area=config.resized_crop_min_area, **to_size)
  return functools.partial(images.squash, **to_size)


def eval_transform(config: typed.Data, size: tuple[int, int]) -> readers.Transform:
  """Returns the host transform for evaluation, `(image, None) -> image`; `config.eval_resize` decides.

  Args:
    config: the `data` section of the config, resolved.
    size: (height, width) of the network's input, and of the result.
  """
  to_size = {'size': size, 'interpolation': config.interpolation}
  if implied.eval_resize(config) == 'center_crop':
    return functools.partial(images.resize_center_crop, fraction=config.eval_crop, **to_size)
  return functools.partial(images.squash, **to_size)


def resizes_apart(config: typed.Data, shape: examples.Shape) -> bool:
  """Returns whether training squashes images whose borders evaluation crops.

  Args:
    config: the `data` section of the config, resolved.
    shape: (H, W, C) of the images in the source.
  """
  if config.augment == 'resized_crop_flip' or implied.eval_resize(config) == 'squash':
    return False
  return config.eval_crop < 1 or shape[0] is None or shape[0] != shape[1]


def _train_transform(config: typed.Data, size: tuple[int, int]) -> readers.Transform:
  """Returns the host transform for training."""
  resize, policy = _train_resize(config, size), policies.make(config)
  return functools.partial(readers.in_turn, transforms=(resize, policy)) if policy else resize


def make_train_loader(config: typed.Config, source: examples.Examples, mesh: Mesh) -> Loader:
  """Makes a loader of endless shuffled batches of `config.train.batch_size`, each a function of (config.seed, step).

  Args:
    config: the whole config, resolved.
    source: the training split.
    mesh: the mesh whose devices share each batch.

  Raises:
    errors.InputError: placement or size do not suit the images.
  """
  if source.views:
    return resident.TrainLoader(*source.arrays(), config.seed, config.train.batch_size, mesh, source.views)
  shape = image_shape(config.data, source)
  resident_images = _resident_images(config.data, source, train=True)
  if resident_images is not None:
    return resident.TrainLoader(*resident_images, config.seed, config.train.batch_size, mesh)
  transform = _train_transform(config.data, shape[:2])
  return stream.TrainLoader(source, transform, shape, config.seed, config.train.batch_size, mesh, config.data.workers)


def make_eval_loader(config: typed.Config, source: examples.Examples, mesh: Mesh) -> Any:
  """Makes a `Loader` of one pass over a split in batches of `config.eval.batch_size`.

  Raises:
    errors.InputError: placement or size do not suit the images.
  """
  if source.views:
    return resident.EvalLoader(*source.arrays(), config.eval.batch_size, mesh)
  return _pass(config, source, mesh, None)


def make_view_loader(config: typed.Config, source: examples.Examples, mesh: Mesh, view: int) -> Any:
  """Makes a loader of one pass in order, like `make_eval_loader`, but with the host transforms of training.

  Args:
    config: the whole config.
    source: the training split.
    mesh: the mesh whose devices share each batch.
    view: number that replaces the epoch in the random draws, so that each view has its own.
  """
  return _pass(config, source, mesh, view)


def _pass(config: typed.Config, source: examples.Examples, mesh: Mesh, view: int | None) -> Any:
  shape = image_shape(config.data, source)
  resident_images = _resident_images(config.data, source, train=view is not None)
  if resident_images is not None:
    return resident.EvalLoader(*resident_images, config.eval.batch_size, mesh)
  transform = (eval_transform if view is None else _train_transform)(config.data, shape[:2])
  drawn = None if view is None else (config.seed, view)
  return stream.EvalLoader(source, transform, shape, config.eval.batch_size, mesh, config.data.workers, drawn)


def _histograms(config: typed.Data, source: examples.Examples) -> Iterator[np.ndarray]:
  """Yields how often each value occurs in parts of the images that `statistics` measures, int64 [C, 256]."""

  def count(pixels):
    channels = pixels.reshape(-1, pixels.shape[-1]).T
    return np.stack([np.bincount(channel, minlength=256) for channel in channels])

  if source.images is not None:
    yield from (count(source.images[start : start + 4096]) for start in range(0, len(source), 4096))
    return
  transform = eval_transform(config, image_shape(config, source)[:2])
  chosen = np.linspace(0, len(source) - 1, min(len(source), MEASURED)).astype(int)
  line = progress.Count('mean and standard deviation', len(chosen))
  with futures.ThreadPoolExecutor(stream.THREADS) as pool:  # no more, because images may be large
    found = pool.map(lambda index: count(images.to_array(transform(source[index][0], None))), chosen)
    for done, each in enumerate(found):
      line.update(done)
      yield each
  line.close()


def statistics(config: typed.Data, source: examples.Examples) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Returns mean and standard deviation per channel in [0, 1], from the config or measured on the images.

  All images in memory are measured, as they are; of a streamed split `MEASURED` images, at the size of an evaluation.
  The measurement is exact: integer sums over all pixels, then float64.

  Args:
    config: the `data` section of the config.
    source: the training split.

  Raises:
    errors.InputError: the values do not suit the images, or a channel is constant.
  """
  channels = source.shape[2]
  mean, std = tuple(config.mean), tuple(config.std)
  if bool(mean) != bool(std):
    raise errors.InputError('config.data.mean and config.data.std must be set together')
  if mean:
    if len(mean) != channels:  # images are read in as many channels, 1 or 3
      raise errors.InputError(f'config.data.mean={mean} must hold 1 or 3 numbers, one per channel')
    if len(std) != channels:
      raise errors.InputError(f'config.data.std={std} must hold {channels} numbers, as config.data.mean does')
    if min(std) <= 0:
      raise errors.InputError(f'config.data.std={std} must be above 0')
    return mean, std
  counts, values = sum(_histograms(config, source), np.zeros((channels, 256), np.int64)), np.arange(256)
  total = counts.sum(1)
  first, second = counts @ values, counts @ values**2
  mean = first / total
  # Computes total * second - first^2 in Python integers, because it overflows int64 and loses digits in float64.
  variance = [(int(n) * int(s) - int(f) ** 2) / int(n) ** 2 for n, s, f in zip(total, second, first, strict=True)]
  if min(variance) <= 0:
    raise errors.InputError(f'a channel of {source.name} is constant; set config.data.mean and config.data.std')
  return tuple((mean / 255).tolist()), tuple((np.sqrt(variance) / 255).tolist())
