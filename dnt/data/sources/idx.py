"""Reads IDX files: MNIST, Fashion-MNIST and similar sets (format: the end of http://yann.lecun.com/exdb/mnist/)."""

import functools
import gzip
import math
import pathlib
import zlib

import numpy as np

from dnt import errors
from dnt.config import typed
from dnt.data import examples

FILES = {'train': 'train', 'test': 't10k'}
UINT8 = 0x08  # the type code in the magic number; all these sets use it


def idx(where: str, config: typed.Data, seed: int) -> examples.Splits:
  """Returns the splits of a folder of IDX files: gray images, [H, W, 1].

  The four files are `train-` and `t10k-`, each with `images-idx3-ubyte` and `labels-idx1-ubyte`, gzipped or not. They
  contain no class names, so the name of a class is its number.

  Args:
    where: the folder with the four files.

  Raises:
    errors.InputError: a file is missing, is not an IDX file, or its size differs from its header.
  """
  del config, seed
  folder = pathlib.Path(where).expanduser()
  files = {
    split: (_find(folder, prefix, 'images', 3), _find(folder, prefix, 'labels', 1)) for split, prefix in FILES.items()
  }

  def read(split):
    images, labels = _read(files[split][0], 3), _read(files[split][1], 1)
    if len(images) != len(labels):
      raise errors.InputError(
        f'{files[split][0]} holds {len(images)} images, but {files[split][1]} holds {len(labels)} labels'
      )
    classes = int(_read(files['train'][1], 1).max()) + 1
    if labels.max() >= classes:
      raise errors.InputError(
        f'{files[split][1]} holds label {labels.max()}; the largest training label is {classes - 1}'
      )
    names = tuple(str(label) for label in range(classes))
    return examples.in_memory(f'idx:{where}', split, images[..., None], labels, names)

  return {split: functools.partial(read, split) for split in FILES}


def _find(folder: pathlib.Path, prefix: str, what: str, dimensions: int) -> pathlib.Path:
  name = f'{prefix}-{what}-idx{dimensions}-ubyte'
  spellings = (name, name.replace('-idx', '.idx'))
  candidates = [folder / (spelling + suffix) for spelling in spellings for suffix in ('', '.gz')]
  result = next((path for path in candidates if path.is_file()), None)
  if result is None:
    state = 'has no' if folder.is_dir() else 'does not exist; expected there:'
    wanted = ', '.join(f'{p}-{w}' for p in FILES.values() for w in ('images-idx3-ubyte', 'labels-idx1-ubyte'))
    raise errors.InputError(f'{folder} {state} {name}[.gz]; an idx folder holds {wanted}, each with or without .gz')
  return result


def _read(path: pathlib.Path, dimensions: int) -> np.ndarray:
  """Reads the uint8 array of an IDX file, which must have `dimensions` dimensions."""
  try:
    data = gzip.decompress(path.read_bytes()) if path.suffix == '.gz' else path.read_bytes()
  except (OSError, EOFError, zlib.error) as error:
    raise errors.InputError(f'{path} cannot be unpacked ({error}); fetch it again') from error
  header = 4 + 4 * dimensions
  magic = bytes((0, 0, UINT8, dimensions))
  if data[:4] != magic or len(data) < header:
    raise errors.InputError(
      f'{path} is not an IDX file of bytes with {dimensions} dimensions: it starts with '
      f'{data[:4].hex() or "nothing"}, expected {magic.hex()}'
    )
  shape = tuple(int(size) for size in np.frombuffer(data, '>u4', dimensions, 4))
  expected = header + math.prod(shape)
  if len(data) != expected:
    raise errors.InputError(f'{path} holds {len(data)} bytes, but its header says {expected} ({shape}); fetch it again')
  if not shape[0]:
    raise errors.InputError(f'{path} holds no examples')
  return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
