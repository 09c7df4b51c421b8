"""Reads any image classification set of TensorFlow Datasets from its array_record files, without TensorFlow."""

import dataclasses
import difflib
import errno
import functools
import importlib.util
import logging
import math
import os
import pathlib
from concurrent import futures
from typing import Any

import filelock
import numpy as np

from dnt import errors, files
from dnt.config import typed
from dnt.data import examples
from dnt.data.transforms import images
from dnt.parallel import capacity

BLOCK = 512  # records per read when a whole split is decoded
SHOWN_FILES = 5  # most files to place by hand that a message names
REQUIREMENTS = 'requirements-tfds.txt'
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Records:
  """Images and labels in array_record files.

  Attributes:
    source: random access to the serialized `tf.train.Example`s; picklable, for worker processes.
    name: name of data set and split, for messages.
    image: name of the feature with the encoded image.
    label: name of the feature with the label.
    channels: 1 or 3.
    how: how to decode the images.
    paths: the array_record files of the whole split.
    indices: which records of the whole split these are: a range, or int32 [N].
    places: int32 [classes], the label of the example with label l in the files; None: l itself.
  """

  source: Any
  name: str
  image: str
  label: str
  channels: int
  how: images.Decoding
  paths: tuple[str, ...]
  indices: range | np.ndarray
  places: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> tuple[Any, int]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    return self._decode(index, self._read([index])[0])

  def part(self, start: int, stop: int) -> 'Records':
    return dataclasses.replace(self, indices=self.indices[start:stop])

  def take(self, indices: np.ndarray) -> 'Records':
    return dataclasses.replace(self, indices=np.asarray(self.indices)[indices])

  def in_channels(self, count: int) -> 'Records':
    return dataclasses.replace(self, channels=count)

  def shares(self, other: 'Records') -> bool:
    return self.paths == other.paths and np.intersect1d(self.indices, other.indices).size > 0

  def relabelled(self, places: np.ndarray) -> 'Records':
    return dataclasses.replace(self, places=places if self.places is None else places[self.places])

  def labels_at(self, indices: np.ndarray) -> np.ndarray:
    """Reads labels, int32 [n], without decoding the images."""
    features = map(_features_of, self._read(indices))
    return np.array([self._label(index, each) for index, each in zip(indices, features, strict=True)], np.int32)

  def decode_all(self, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Decodes all images, uint8 [N, *shape], and labels, int32 [N].

    Raises:
      errors.InputError: there is not enough memory, or an image cannot be read.
    """
    capacity.check(
      len(self) * math.prod(shape),
      capacity.host(),
      f'{self.name}, {len(self):,} images of {shape[0]} x {shape[1]} pixels that are decoded at once,',
      'the number of images, or set config.data.placement=stream',
    )
    decoded, labels = np.empty((len(self), *shape), np.uint8), np.empty(len(self), np.int32)

    def fill(start):
      indices = range(start, min(start + BLOCK, len(self)))
      for index, record in zip(indices, self._read(indices), strict=True):
        image, labels[index] = self._decode(index, record)
        decoded[index] = images.to_array(image)

    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      list(pool.map(fill, range(0, len(self), BLOCK)))
    return decoded, labels

  def _read(self, indices: Any) -> list[bytes]:
    try:
      return self.source.__getitems__([int(self.indices[index]) for index in indices])
    except (OSError, RuntimeError, ValueError, IndexError) as error:
      if os.strerror(errno.EMFILE) in str(error):
        raise errors.InputError(
          f'{self.name} cannot be read ({os.strerror(errno.EMFILE)}): each process keeps its {len(self.paths):,} files '
          f'open; {errors.MORE_FILES}'
        ) from error
      raise errors.InputError(
        f'{self.name} cannot be read ({error}); delete the prepared set and prepare it again'
      ) from error

  def _decode(self, index: int, record: bytes) -> tuple[Any, int]:
    feature = _features_of(record)
    label = self._label(index, feature)
    return images.decode(feature[self.image].bytes_list.value[0], self._name(index), self.channels, self.how), label

  def _label(self, index: int, feature: Any) -> int:
    label = feature[self.label].int64_list.value[0]
    if label < 0:
      raise examples.UnlabelledError(f'example {self._name(index)} has no label; use a labelled split')
    return label if self.places is None else int(self.places[label])

  def _name(self, index: int) -> str:
    return f'{self.indices[index]} of {self.name}'


def _features_of(record: bytes) -> Any:
  """Returns the features of a serialized `tf.train.Example` by name."""
  from tensorflow_datasets.proto import tf_example_pb2

  example = tf_example_pb2.Example  # ty: ignore[missing-attribute]  # protobuf makes the classes at run time
  return example.FromString(record).features.feature


def tfds(where: str, config: typed.Data, seed: int) -> examples.Splits:
  """Returns the splits of a TFDS set, and prepares the set first if necessary.

  Args:
    where: the set's name in TFDS, with config and version if necessary (`'cifar10'`, `'imagenette/160px'`).
    config: the `data` section of the config; reads `dir`, the folder of prepared sets, and `exif_rotation`.

  Raises:
    errors.InputError: the set does not exist, is not for image classification, or cannot be prepared; the message
      explains what to do.
  """
  del seed
  import tensorflow_datasets

  files.raise_open_limit()  # random access keeps every file of a split open, 1,024 of ImageNet
  given = config.dir or tensorflow_datasets.core.constants.DATA_DIR
  mounted = 'a folder, such as that in which the bucket is mounted (launch/skypilot.sh mounts one)'
  files.check_path(given, 'config.data.dir', mounted)
  root = pathlib.Path(given).expanduser()
  builder = _builder(where, root)
  image, label, shape = _features(builder)
  if not builder.is_prepared():
    _prepare(builder, root)
    builder = _builder(where, root)  # the first one does not see files that another process prepared
  feature = builder.info.features[label]
  how = images.decoding(config)
  names = tuple(feature.names or map(str, range(feature.num_classes)))

  def read(split):
    try:
      raw = tensorflow_datasets.decode.DeserializeMethod.RAW_BYTES
      source = builder.as_data_source(split, deserialize_method=raw).data_source
    except NotImplementedError as error:
      raise errors.InputError(
        f'{builder.data_dir} is prepared as {builder.info.file_format.value}, which has no random access; set '
        'config.data.dir to another folder, where the set is then prepared as array_record'
      ) from error
    paths = tuple(map(os.fspath, builder.info.splits[split].filepaths))
    records = Records(source, f'tfds:{where} {split}', image, label, shape[2], how, paths, range(len(source)))
    ordered = builder.info.disable_shuffling
    return examples.Examples(f'tfds:{where}', split, names, shape, records, None, ordered=ordered)

  return {split: functools.partial(read, split) for split in builder.info.splits}


def _builder(where: str, root: pathlib.Path) -> Any:
  import tensorflow_datasets

  try:
    return tensorflow_datasets.builder(where, data_dir=root)
  except tensorflow_datasets.core.DatasetNotFoundError as error:
    near = difflib.get_close_matches(where, tensorflow_datasets.list_builders(with_community_datasets=False), n=1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    raise errors.InputError(f'TFDS has no set {where!r}, and none is prepared in {root}{hint}') from error
  except ImportError as error:
    raise errors.InputError(_line(f'tfds:{where}: {error}; pip install -r {REQUIREMENTS}')) from error
  except (ValueError, RuntimeError) as error:  # no such config or version
    raise errors.InputError(_line(f'tfds:{where}: {error}')) from error


def _line(text: str) -> str:
  """Joins the paragraphs of a TFDS message into one line."""
  return ' '.join(text.split())


def _features(builder: Any) -> tuple[str, str, examples.Shape]:
  """Returns the names of the image and the label feature, and (H, W, C) of the images."""
  from tensorflow_datasets import features

  known = builder.info.features
  named = builder.info.supervised_keys or ()
  chosen = []
  for kind in (features.Image, features.ClassLabel):
    keys = [key for key in known if type(known[key]) is kind]
    keys = [key for key in keys if key in named] or keys
    if len(keys) != 1:
      raise errors.InputError(
        f'tfds:{builder.info.full_name} is no image classification set: it must have one image and one class '
        f'label, but has {list(known)}'
      )
    chosen += keys
  height, width, channels = known[chosen[0]].shape
  dtype = np.dtype(known[chosen[0]].np_dtype)
  if dtype != np.uint8 or channels not in (None, 1, 3):
    raise errors.InputError(
      f'tfds:{builder.info.full_name} has {dtype} images with {channels} channels; valid are uint8 images with 1 or 3'
    )
  return chosen[0], chosen[1], (height, width, channels or 3)


def _prepare(builder: Any, root: pathlib.Path) -> None:
  """Downloads the set and writes it as array_record files, once."""
  name = builder.info.full_name
  if importlib.util.find_spec('tensorflow') is None:
    raise errors.InputError(
      f'tfds:{name} is not prepared in {root}, and preparing needs TensorFlow (reading does not): '
      f'pip install -r {REQUIREMENTS}, or set config.data.dir to a folder that holds it prepared as array_record'
    )
  import tensorflow_datasets

  download = tensorflow_datasets.download
  root.mkdir(parents=True, exist_ok=True)
  with filelock.FileLock(root / f'.{name.replace("/", "-")}.lock'):
    if builder.is_prepared():  # the process that held the lock before has prepared it
      return
    manual = root / 'downloads' / 'manual'
    _log.info(f'preparing tfds:{name} in {root}; this happens once. {_line(_by_hand(builder, manual))}')
    try:
      builder.download_and_prepare(
        download_dir=root / 'downloads',
        file_format='array_record',
        download_config=download.DownloadConfig(manual_dir=manual),
      )
    except download.download_manager.NonMatchingChecksumError as error:
      raise errors.InputError(_line(f'tfds:{name}: {error}')) from error
    except ImportError as error:
      raise errors.InputError(f'preparing tfds:{name} needs one more package: {error}') from error
    except (OSError, AssertionError, download.DownloadError) as error:
      raise errors.InputError(_line(f'TFDS could not prepare {name} ({error}). {_by_hand(builder, manual)}')) from error


def _by_hand(builder: Any, manual: pathlib.Path) -> str:
  """Returns the part of a message that lists which files to place where if TFDS cannot download them."""
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    return f'TFDS cannot download it; put it in {manual} by hand: {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}'
  wanted = [f'{info.filename} from {url}' for url, info in (builder.url_infos or {}).items() if info.filename]
  return f'Without a network, put these files in {manual} by hand: {errors.list_names(wanted, SHOWN_FILES)}'
