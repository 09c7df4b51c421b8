"""Identifies the data of a run by a few digests, so that a run that continues can tell whether the data has changed.

It decodes no image, and reads no file except for the sizes of image files.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dnt import files
from dnt.data import examples

MOST_SIZES = 100_000  # above this number of files, only the sizes of every n-th file are read: 0.2 s on a local disk
MOST_BYTES = 2**25  # above this size of the images in memory, only every n-th image is read: 32 MiB take 0.05 s


def of(splits: Mapping[str, examples.Examples]) -> dict[str, dict[str, Any]]:
  """Returns the fingerprint of each split, in JSON values.

  A folder that has been moved or copied keeps its fingerprint, and so does data that is streamed instead of held in
  memory.

  Args:
    splits: loaded splits by name, with images and not cached features.

  Returns:
    For each split:
      `images`: the number of images.
      `content`: the SHA-256, in hexadecimal, of the names of the files, relative to the folder that holds them all, in
        the order of the split, and of their sizes (-1 for a file that is missing; above `MOST_SIZES` files, of a
        sample); or of images that come from no such files, the SHA-256 of their shape and pixels (above `MOST_BYTES`,
        of a sample).
      `labels`: the SHA-256 of the labels, and of the boxes that the images are cropped to. If reading the labels would
        mean reading all images: None, or of images that were shuffled the SHA-256 of their places.
  """
  return {name: _of_split(split.origin or split) for name, split in splits.items()}


def _of_split(split: examples.Examples) -> dict[str, Any]:
  assert not split.views, f'{split.split} of {split.name} holds features, which do not identify the images'
  content = _of_files(split.store.paths) if split.images is None else _of_array(split.images)
  boxes = getattr(split.store, 'boxes', None)
  places = getattr(split.store, 'indices', None)
  shuffled = places if split.labels is None and isinstance(places, np.ndarray) else None
  arrays = [np.ascontiguousarray(array) for array in (split.labels, boxes, shuffled) if array is not None]
  return {
    'images': len(split),
    'content': content,
    'labels': hashlib.sha256(b''.join(array.tobytes() for array in arrays)).hexdigest() if arrays else None,
  }


def _of_files(paths: Sequence[str]) -> str:
  shared = os.path.commonprefix([min(paths), max(paths)])  # of all paths, as these two differ first
  start = shared.rfind(os.sep) + 1
  names = (files.normalized(path[start:]) for path in paths)
  digest = hashlib.sha256('\0'.join(names).encode())
  sample = paths[:: -(-len(paths) // MOST_SIZES)]
  digest.update(np.array([_size(path) for path in sample], '<i8').tobytes())
  return digest.hexdigest()


def _size(path: str) -> int:
  try:
    return os.stat(path).st_size
  except OSError:
    return -1  # reading the image reports the error


def _of_array(images: np.ndarray) -> str:
  digest = hashlib.sha256(str(images.shape).encode())
  digest.update(np.ascontiguousarray(images[:: -(-images.nbytes // MOST_BYTES)]).data)
  return digest.hexdigest()
