"""Stanford Cars (Krause et al. 2013), 196 classes: the unpacked official archives, or one folder per class."""

import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from dnt import errors
from dnt.config import typed
from dnt.data import examples, order
from dnt.data.sources import folder, image_files
from dnt.data.transforms import images

SHOWN_FILES = 3  # most missing images that a message names


class _Split(NamedTuple):
  """The folder of a split's images, and the file of its labels and boxes."""

  images: str
  annotations: str


SPLITS = {
  'train': _Split('cars_train', 'cars_train_annos.mat'),
  'test': _Split('cars_test', 'cars_test_annos_withlabels.mat'),
}
NAMES = 'cars_meta.mat'
UNLABELLED = 'cars_test_annos.mat'
# Subfolders that may hold the .mat files (first the official one, then those of copies), and class folders.
DEVKITS = ('devkit', '', 'devkit/devkit', 'car_devkit/devkit', 'car_devkit')
CLASS_FOLDERS = ('', 'car_data', 'car_data/car_data')
LAYOUT = (
  f'cars_train/, cars_test/ and devkit/ with {NAMES}, {SPLITS["train"].annotations} and {SPLITS["test"].annotations}; '
  'or train/<class>/ and test/<class>/'
)


@dataclasses.dataclass(frozen=True)
class Boxed(folder.Files):
  """Image files cropped to a box: int [N, 4], (top, bottom, left, right), `bottom` and `right` exclusive.

  The boxes are those of the pixels as the file stores them, before an image is turned by its EXIF orientation.
  """

  boxes: np.ndarray

  def __getitem__(self, index: int) -> tuple[Any, int]:
    image = self.decode(index, self.how._replace(rotate=False))
    top, bottom, left, right = self.boxes[index]
    width, height = image.size
    box = left, top, min(right, width), min(bottom, height)
    if box[0] >= box[2] or box[1] >= box[3]:
      raise errors.InputError(
        f'the box of {self.paths[index]}, rows {top} to {bottom} and columns {left} to {right}, lies outside of its '
        f'{height} x {width} pixels; set config.data.crop_to_box=False, or replace the image and the annotations'
      )
    cropped = images.crop(image, box)
    return images.turn(cropped) if self.how.rotate else cropped, int(self.labels[index])

  def part(self, start: int, stop: int) -> 'Boxed':
    paths, labels, boxes = (each[start:stop] for each in (self.paths, self.labels, self.boxes))
    return dataclasses.replace(self, paths=paths, labels=labels, boxes=boxes)

  def take(self, indices: np.ndarray) -> folder.Files:
    return dataclasses.replace(super().take(indices), boxes=self.boxes[indices])


def cars(where: str, config: typed.Data, seed: int) -> examples.Splits:
  """Returns the splits `train` and `test` of Stanford Cars: RGB images of any size; of class folders also all others.

  Each split is in random order, so that slices are fair. The files may lie where the official archives and the copies
  on Kaggle have them: images in `cars_train/` and `cars_test/`, or once nested in a folder of the same name, and the
  `.mat` files in `devkit/` or beside it; or class folders in `train/` and `test/`, optionally under `car_data/`.
  Classes have the order of the devkit; class folders are sorted by name.

  Args:
    where: the folder.
    config: the `data` section of the config; reads `crop_to_box`, `image_bits` and `exif_rotation`.
    seed: seed of the random order.

  Raises:
    errors.InputError: files are missing (the message names the place of each) or damaged, or `crop_to_box` is set for
      class folders, which have no boxes.
  """
  root = pathlib.Path(where).expanduser()
  if not root.is_dir():
    raise errors.InputError(f'the folder {root} does not exist; expected there: {LAYOUT}')
  if not any((root / split.images).is_dir() for split in SPLITS.values()):
    for base in (root / each for each in CLASS_FOLDERS):
      if (base / 'test').is_dir():
        return _class_folders(where, base, config, seed)
    if _find(root, NAMES) is None:
      raise errors.InputError(f'{root} holds no Stanford Cars; expected there: {LAYOUT}')
  return {split: functools.partial(_read, where, root, split, config, seed) for split in SPLITS}


def _class_folders(where: str, base: pathlib.Path, config: typed.Data, seed: int) -> examples.Splits:
  if config.crop_to_box:
    raise errors.InputError(
      f'config.data.crop_to_box needs the boxes in the .mat files of the devkit, but {base} holds only class folders; '
      f'set it to False, or add to {where}: {LAYOUT.partition(";")[0]}'
    )
  splits = folder.folder(str(base), config, seed)

  def read(split):
    return dataclasses.replace(splits[split](), name=f'cars:{where}')

  return {split: functools.partial(read, split) for split in splits}


def _read(where: str, root: pathlib.Path, split: str, config: typed.Data, seed: int) -> examples.Examples:
  """Reads a split in the layout of the official archives."""
  wanted = SPLITS[split]
  base = next((path for path in _nested(root, wanted.images) if path.is_dir()), None)
  names_file, annotations_file = _find(root, NAMES), _find(root, wanted.annotations)
  if names_file is None or annotations_file is None or base is None:
    missing = [
      f'put {name} at {root / "devkit" / name}'
      for name, result in ((NAMES, names_file), (wanted.annotations, annotations_file))
      if result is None
    ]
    if base is None:
      missing.append(f'put the images 00001.jpg, ... in {root / wanted.images}')
    unlabelled = split == 'test' and annotations_file is None and _find(root, UNLABELLED)
    note = f' ({UNLABELLED} exists, but holds no labels)' if unlabelled else ''
    raise errors.InputError(f'cars:{where} lacks files of the {split!r} split: {"; ".join(missing)}{note}')

  class_names = tuple(str(name) for name in np.atleast_1d(_mat(names_file, 'class_names')))
  files, labels, boxes = _annotations(annotations_file, len(class_names))
  present = {path.name for path in base.iterdir()}
  absent = [name for name in files if name not in present]
  if absent:
    raise errors.InputError(
      f'{base} lacks {errors.list_names(absent, SHOWN_FILES)} of the {len(files)} images that {annotations_file} '
      'names; unpack the archive again'
    )
  shuffled = order.permutation(order.philox(seed, order.SPLIT), len(files))
  read = tuple(str(base / files[index]) for index in shuffled), labels[shuffled], images.decoding(config)
  chosen = Boxed(*read, boxes[shuffled]) if config.crop_to_box else folder.Files(*read)
  others = present.difference(files)
  unnamed = sum(image_files.is_image(name) and not image_files.is_skipped(name) for name in others)
  reasons = [f'{unnamed:,} without a label'] if unnamed else []
  line = folder.describe(split, str(base), class_names, len(labels), labels, reasons)
  return examples.Examples(f'cars:{where}', split, class_names, (None, None, 3), chosen, chosen.labels, line=line)


def _nested(root: pathlib.Path, name: str) -> tuple[pathlib.Path, ...]:
  return root / name / name, root / name


def _find(root: pathlib.Path, name: str) -> pathlib.Path | None:
  return next((path for each in DEVKITS if (path := root / each / name).is_file()), None)


def _mat(path: pathlib.Path, key: str) -> Any:
  """Reads a variable from a MATLAB file."""
  from scipy import io

  try:
    return io.loadmat(path, squeeze_me=True)[key]
  except Exception as error:  # scipy raises many types for other files, such as a saved web page
    reason = f'it has no {key}' if isinstance(error, KeyError) else f'{type(error).__name__}: {error}'
    raise errors.InputError(f'{path} is not the file of the devkit ({reason}); fetch it again') from error


def _annotations(path: pathlib.Path, classes: int) -> tuple[list[str], np.ndarray, np.ndarray]:
  """Reads the file names, the labels, int32 [N] from 0, and the boxes, int [N, 4] in the form of `Boxed`."""
  table = np.atleast_1d(_mat(path, 'annotations'))
  fields = ('fname', 'class', 'bbox_y1', 'bbox_y2', 'bbox_x1', 'bbox_x2')
  absent = [name for name in fields if name not in (table.dtype.names or ())]
  if absent or not len(table):
    what = f'no {absent[0]}' if absent else 'no images'
    raise errors.InputError(
      f'the annotations in {path} hold {what}; the test annotations with labels are {SPLITS["test"].annotations}'
    )
  numbers = np.stack([table[name].astype(np.int64) for name in fields[1:]], axis=1)
  labels = numbers[:, 0] - 1  # MATLAB counts classes, rows and columns from 1
  if labels.min() < 0 or labels.max() >= classes:
    raise errors.InputError(f'{path} holds classes {labels.min() + 1} to {labels.max() + 1}; {NAMES} names {classes}')
  boxes = np.maximum(numbers[:, 1:] - [1, 0, 1, 0], 0)
  return [str(name) for name in table['fname']], labels.astype(np.int32), boxes
