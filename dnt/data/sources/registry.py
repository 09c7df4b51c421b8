"""Finds the source that `config.data.source` names and loads a split of it."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence

from dnt import errors
from dnt.config import typed
from dnt.data import examples, order, placement, splits
from dnt.data.sources import builtin, cars, cifar, folder, idx, tfds
from dnt.data.splits import ALL, ALSO_VAL, TEST, TRAIN, VAL
from dnt.reporting import terminal

_log = logging.getLogger(__name__)
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


def find(config: typed.Data, seed: int) -> examples.Splits:
  """Returns the splits of the configured source; a validation split is also named `VAL`, whatever the source calls it.

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
  available = splits_of(where, config, seed)
  named = [each for each in (VAL, *ALSO_VAL) if each in available]
  return {**available, VAL: available[named[0]]} if named else available


def choose(available: examples.Splits, asked: Sequence[str]) -> dict[str, str]:
  """Returns which splits to read of data that the run was not trained on, by the name that their metrics get.

  Class folders alone are one set: the first name in `asked` then stands for all of their images, unless there is a
  folder of this split beside them, such as a `test/` without labels. If the data lacks a split in `asked` and has only
  one split besides `train`, it is this one.

  Args:
    available: the splits of the source.
    asked: `config.eval.splits`.
  """
  first = asked[0]
  name = splits.parse(first).name
  if ALL in available and name not in available.keys() - {TRAIN, VAL, ALL}:
    return {first: ALL + first.removeprefix(name)}
  besides = list({available[name]: name for name in available if name != TRAIN}.values())  # some have two names
  if len(besides) == 1 and not all(splits.parse(text).name in available for text in asked):
    return {besides[0]: besides[0]}
  return {text: text for text in asked}


def undrawn(available: examples.Splits) -> examples.Splits:
  """Returns the splits of class folders alone with all images as `TRAIN`, and without the `VAL` drawn from them."""

  def whole():
    found = available[ALL]()
    return dataclasses.replace(found, split=TRAIN, line=TRAIN + found.line.removeprefix(ALL))

  return {name: read for name, read in available.items() if name != VAL} | {TRAIN: whole}


def hold_out(available: examples.Splits, config: typed.Data, seed: int) -> examples.Splits:
  """Returns the splits with a `VAL` of `config.val_fraction` of `TRAIN`, which is then without these images.

  The fraction is that of each class; it is that of the whole, from the end, if the labels are not known before the
  images are read (TFDS). The seed then has no say: TFDS keeps its examples in random order, and the few sets that it
  does not shuffle get one that is always the same. Class folders alone stay as they are: their `VAL` is drawn from
  `TRAIN` already. A `VAL` that the source itself has is not read, as the line on `VAL` says.

  Args:
    available: the splits of the source.
    config: the `data` section of the config.
    seed: seed of the draw.

  Raises:
    errors.InputError: the source has no `TRAIN`; when they are read: no class has two images.
  """

  @functools.cache
  def drawn():
    whole, lacks = available[TRAIN](), ''
    if whole.labels is None:
      first = len(whole) - max(round(config.val_fraction * len(whole)), 1)
      mixed = _shuffled(whole) if whole.ordered else whole
      train, val = mixed.part(TRAIN, 0, first), mixed.part(VAL, first, len(whole))
    else:
      *parts, lacks = folder.draw_val(whole.name, whole.class_names, whole.labels, config.val_fraction, seed)
      train, val = (whole.take(split, indices) for split, indices in zip((TRAIN, VAL), parts, strict=True))
    left = folder.count_classes(train.class_names, len(train), train.labels)
    unread = [f'the val that {val.name} has'] if VAL in available else []
    held_out = _describe(VAL, val, f'train of {val.name}', unread) + lacks
    lines = f'{_line(TRAIN, whole)}; without val: {left}', held_out
    both = zip((train, val), lines, strict=True)
    return {part.split: dataclasses.replace(part, line=line) for part, line in both}

  if ALL in available:
    return available
  if TRAIN not in available:
    raise errors.InputError(
      f"config.data.hold_out=True draws 'val' from 'train', but {config.source} has only {', '.join(available)}"
    )
  return {**available, TRAIN: lambda: drawn()[TRAIN], VAL: lambda: drawn()[VAL]}


def _shuffled(whole: examples.Examples) -> examples.Examples:
  """Returns examples whose labels are not known in random order, the same for every seed."""
  indices = order.permutation(order.philox(0, order.SPLIT), len(whole))
  return dataclasses.replace(whole, store=whole.store.take(indices))


def read(available: examples.Splits, config: typed.Data, split: str) -> examples.Examples:
  """Reads a split, into memory if it will live on the device, and logs a line on the whole split, once per process.

  Args:
    available: from `find` or `hold_out`.
    config: the `data` section of the config.
    split: the name of a split, with an optional slice as in TFDS (`'train[:98%]'`).

  Raises:
    errors.InputError: the split is unknown, or files are missing or damaged.
    examples.UnlabelledError: the split has no labels.
  """
  chosen = locate(available, config, split)
  terminal.say_once(_log, chosen.line)
  if placement.on_device(config, len(chosen), chosen.shape) and chosen.images is None:
    return chosen.decoded()
  return chosen


def locate(available: examples.Splits, config: typed.Data, split: str) -> examples.Examples:
  """Finds the examples of a split as `read` does, but leaves them where they are, and logs nothing.

  Of `config.train_split` these are the ones to train on. Images become gray or RGB if `config.mean` has one or three
  values, as that of a network of such images has.

  Raises:
    errors.InputError: the split or its slice is not valid, a class has fewer than `config.images_per_class`, or files
      are missing or damaged.
    examples.UnlabelledError: images of each class are to be drawn, and one has no label.
  """
  part = splits.parse(split)
  if part.name == VAL and VAL not in available and config.hold_out is False:
    raise errors.InputError(
      f"{config.source} has no split 'val' (only {', '.join(available)}), and config.data.hold_out=False draws none "
      "from 'train'. Leave 'val' out of config.eval.splits; or, for a run that begins, leave config.data.hold_out unset"
    )
  if part.name == TEST and TEST not in available and TRAIN in available:
    raise errors.InputError(
      f"{config.source} has no split 'test' (only {', '.join(available)}); to train on all images of 'train', "
      "leave 'val' out: config.eval.splits=('train',)"
    )
  if part.name not in available:
    names = {*available}
    if part.name != VAL and TRAIN in available and config.hold_out is None:  # a run draws one if it is named
      names.add(VAL)
    raise errors.unknown(f'split of {config.source}', part.name, names)
  whole = available[part.name]()
  chosen, line = whole.part(split, *part.bounds(len(whole))), _line(part.name, whole)
  if config.images_per_class and split == config.train_split:
    chosen = chosen.draw(config.images_per_class, config.seed)
    absent = chosen.absent('config.data.images_per_class')
    line = (
      f'{line}; trains on {config.images_per_class:,} of each class{f" but {absent}: there is none" if absent else ""}'
    )
  if len(config.mean) in (1, 3) and chosen.shape[-1] != len(config.mean):
    chosen = chosen.in_channels(len(config.mean))
  return dataclasses.replace(chosen, line=line)


def _line(split: str, whole: examples.Examples) -> str:
  return whole.line or _describe(split, whole, whole.name)


def _describe(split: str, whole: examples.Examples, origin: str, unread: Sequence[str] = ()) -> str:
  return folder.describe(split, origin, whole.class_names, len(whole), whole.labels, unread)
