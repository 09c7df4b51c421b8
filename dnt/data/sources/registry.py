"""Finds the source that `config.data.source` names and loads a split of it."""

from collections.abc import Callable, Mapping, Sequence

from dnt import errors
from dnt.config import typed
from dnt.data import examples, placement, splits
from dnt.data.sources import builtin, cars, cifar, folder, idx, tfds

FOLDER = '<dir>'
# name -> (f(where, config.data, seed) -> splits, placeholder for the text after the colon, which becomes `where`).
# config.data.dir may name a folder instead.
SOURCES: Mapping[str, tuple[Callable[..., examples.Splits], str]] = {
  'digits': (builtin.digits, ''),
  'synthetic': (builtin.synthetic, ''),
  'tfds': (tfds.tfds, '<name>'),
  'cifar_binary': (cifar.cifar_binary, FOLDER),
  'idx': (idx.idx, FOLDER),
  'folder': (folder.folder, FOLDER),
  'cars': (cars.cars, FOLDER),
}


def names() -> list[str]:
  """Lists the valid forms of `config.data.source`."""
  return [f'{name}:{follows}' if follows else name for name, (_, follows) in SOURCES.items()]


def load(config: typed.Data, split: str, seed: int) -> examples.Examples:
  """Finds the source and reads a split of it; see `find` and `read`."""
  return read(find(config, seed), config, split)


def find(config: typed.Data, seed: int) -> examples.Splits:
  """Returns the splits of the configured source.

  Args:
    config: the `data` section of the config.
    seed: seed of the random splits (digits, folders without a val folder), of the order of folders and cars, and of
      synthetic images.

  Raises:
    errors.InputError: the source is unknown, or files are missing or damaged; the message names the expected files and
      their place.
  """
  name, colon, where = config.source.partition(':')
  if name not in SOURCES:
    raise errors.unknown('data source (config.data.source)', name, names())
  splits_of, follows = SOURCES[name]
  if follows == FOLDER and bool(where) == bool(config.dir):
    problem = 'names no folder' if not where else f'and config.data.dir={config.dir!r} name two folders'
    raise errors.InputError(
      f"config.data.source={config.source!r} {problem}; give one: '{name}:{FOLDER}', or {name!r} with config.data.dir"
    )
  if follows == FOLDER:
    where = where or config.dir
  elif bool(where) != bool(follows) or bool(colon) != bool(follows):
    form = f'{name}:{follows}' if follows else name
    raise errors.InputError(f"config.data.source={config.source!r} must be of the form '{form}'")
  if config.crop_to_box and name != 'cars':
    raise errors.InputError(f'config.data.crop_to_box needs boxes, but {config.source} has none; cars:<dir> has boxes')
  return splits_of(where, config, seed)


def choose(available: examples.Splits, asked: Sequence[str]) -> dict[str, str]:
  """Returns which splits to read of data that the run was not trained on, by the name that their metrics get.

  Class folders alone are one set: the name that is asked for first then stands for all of their images. If the data
  lacks what is asked for and has only one split besides `train`, it is this one.

  Args:
    available: the splits of the source.
    asked: `config.eval.splits`.
  """
  first = asked[0]
  if folder.ALL in available:
    return {first: folder.ALL + first.removeprefix(splits.parse(first).name)}
  besides = [name for name in available if name != 'train']
  if len(besides) == 1 and not all(splits.parse(text).name in available for text in asked):
    return {besides[0]: besides[0]}
  return {text: text for text in asked}


def read(available: examples.Splits, config: typed.Data, split: str) -> examples.Examples:
  """Reads a split, into memory if it will live on the device.

  Args:
    available: from `find`.
    config: the `data` section of the config.
    split: the name of a split, with an optional slice as in TFDS (`'train[:98%]'`).

  Raises:
    errors.InputError: the split is unknown, or files are missing or damaged.
  """
  part = splits.parse(split)
  if part.name not in available:
    raise errors.unknown(f'split of {config.source}', part.name, available)
  whole = available[part.name]()
  if not isinstance(whole.store, folder.Files):  # sources of files have said what they read
    folder.say(part.name, whole.name, whole.class_names, len(whole), whole.labels)
  chosen = whole.part(split, *part.bounds(len(whole)))
  if placement.on_device(config, len(chosen), chosen.shape) and chosen.images is None:
    return chosen.decoded()
  return chosen
