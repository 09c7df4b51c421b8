"""Finds the source that `config.data.source` names and loads a split of it."""

from collections.abc import Callable, Mapping

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
  """Loads a split of the configured source, into memory if it will live on the device.

  Args:
    config: the `data` section of the config.
    split: the name of a split, with an optional slice as in TFDS (`'train[:98%]'`).
    seed: seed of the random splits (digits, folders without a val folder), of the order of folders and cars, and of
      synthetic images.

  Raises:
    errors.InputError: the source or split is unknown, or files are missing or damaged; the message names the expected
      files and their place.
  """
  part = splits.parse(split)
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
  available = splits_of(where, config, seed)
  if part.name not in available:
    raise errors.unknown(f'split of {config.source}', part.name, available)
  whole = available[part.name]()
  chosen = whole.part(split, *part.bounds(len(whole)))
  if placement.on_device(config, len(chosen), chosen.shape) and chosen.images is None:
    return chosen.decoded()
  return chosen
