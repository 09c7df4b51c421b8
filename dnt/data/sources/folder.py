"""Image folders with one subfolder per class."""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from dnt import errors
from dnt.config import typed
from dnt.data import examples, order
from dnt.data.transforms import images

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
LAYOUT = 'train/<class>/<images> beside val/ or test/ of the same kind, or <class>/<images> alone'


@dataclasses.dataclass(frozen=True)
class Files:
  """Image files and their labels; reads one image at a time."""

  paths: tuple[str, ...]
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> tuple[Any, int]:
    return images.decode(self.paths[index], self.paths[index]), int(self.labels[index])

  def part(self, start: int, stop: int) -> 'Files':
    return Files(self.paths[start:stop], self.labels[start:stop])


def folder(where: str, config: typed.Data, seed: int) -> examples.Splits:
  """Returns the splits of a folder of class folders: RGB images of any size, classes sorted by name.

  If the folder has `train/` and also `val/`, `test/` or both, these are the splits. Otherwise it draws `train` and
  `val` at random, class by class, from the class folders in `train/` or in the folder itself. Each split is in random
  order, so that a slice holds every class.

  Args:
    where: the folder.
    config: the `data` section of the config; reads `val_fraction`.
    seed: seed of the random split and of the order.

  Raises:
    errors.InputError: the folder does not exist or has another layout, a class has no images, or training lacks a class
      of another split.
  """
  root = pathlib.Path(where).expanduser()
  if not root.is_dir():
    raise errors.InputError(f'the folder {root} does not exist; expected there: {LAYOUT}')
  given = [split for split in ('train', 'val', 'test') if (root / split).is_dir()]
  if 'train' in given and len(given) > 1:
    names = _classes(root / 'train')
    listed = {split: _list(root / split, names) for split in given}
    shuffled = {split: order.permutation(order.philox(seed, order.SPLIT), len(listed[split][1])) for split in given}
  elif given and given != ['train']:
    raise errors.InputError(f'{root} has {given[0]}/ but no train/; expected: {LAYOUT}')
  else:
    base = root / 'train' if given else root
    names = _classes(base)
    whole = _list(base, names)
    _check_drawable(base, names, whole[1])
    listed = {'train': whole, 'val': whole}
    shuffled = dict(zip(listed, order.stratified(whole[1], config.val_fraction, seed), strict=True))

  def read(split):
    paths, labels = listed[split]
    files = Files(tuple(paths[index] for index in shuffled[split]), labels[shuffled[split]])
    return examples.Examples(f'folder:{where}', split, names, (None, None, 3), files, files.labels)

  return {split: functools.partial(read, split) for split in listed}


def find_images(base: pathlib.Path) -> list[str]:
  """Lists the paths of all files in and below a folder that have an image suffix, sorted."""
  return sorted(
    str(path) for path in base.rglob('*') if path.suffix.lower() in SUFFIXES and not path.name.startswith('.')
  )


def _folders(base: pathlib.Path) -> list[str]:
  return sorted(path.name for path in base.iterdir() if path.is_dir() and not path.name.startswith('.'))


def _classes(base: pathlib.Path) -> tuple[str, ...]:
  names = tuple(_folders(base))
  if len(names) < 2:
    result = f'only {names[0]!r}' if names else 'none'
    raise errors.InputError(f'{base} must hold one folder per class, at least two; found {result}. Expected: {LAYOUT}')
  return names


def _list(base: pathlib.Path, names: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
  """Lists paths and labels of the images in the class folders of `base`, sorted; `base` may lack classes."""
  folders = _folders(base)
  extra = [name for name in folders if name not in names]
  if extra:
    raise errors.InputError(f'{base} has the class {extra[0]!r}, which train/ lacks; its classes: {", ".join(names)}')
  paths, labels = [], []
  for label, name in enumerate(names):
    if name not in folders:
      continue
    result = find_images(base / name)
    if not result:
      raise errors.InputError(f'the class folder {base / name} holds no images ({", ".join(SUFFIXES)})')
    paths += result
    labels += [label] * len(result)
  if not paths:
    raise errors.InputError(f'{base} holds no class folders; expected: {LAYOUT}')
  return paths, np.array(labels, np.int32)


def _check_drawable(base: pathlib.Path, names: tuple[str, ...], labels: np.ndarray) -> None:
  lonely = [name for name, count in zip(names, np.bincount(labels), strict=True) if count < 2]
  if lonely:
    raise errors.InputError(
      f'{base / lonely[0]} holds only one image; a random val split needs at least two images per class'
    )
