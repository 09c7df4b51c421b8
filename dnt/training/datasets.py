"""Reads the splits of a run, equal in all processes, and describes them."""

import contextlib
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dnt import buckets, checkpoints, errors, models
from dnt import config as schema
from dnt.config import typed
from dnt.data import class_order, examples, fingerprint, inspection, pipeline, sources
from dnt.data import splits as splits_lib
from dnt.parallel import multihost
from dnt.weights import pretrained

# What `data.fingerprint` holds of a split, in words.
_FINGERPRINT = {
  'images': 'the number of images',
  'content': 'the content (names and sizes of the files, or pixels)',
  'labels': 'the digest of the labels',
}


class Spec(NamedTuple):
  """Describes the data to the program, so that the program can be built and checked without the data."""

  examples: int  # of the training split
  image_shape: tuple[int, int, int]  # height, width, channels, as the step receives them
  class_names: tuple[str, ...]

  def steps_per_epoch(self, batch_size: int) -> float:
    """Returns the steps in an epoch of the training split; it need not be whole, as batches cross epoch ends."""
    return self.examples / batch_size


class Data(NamedTuple):
  """Holds the inputs of a run: its images with their description, and its pretrained weights."""

  spec: Spec
  train: examples.Examples
  evaluation: dict[str, examples.Examples]  # by split
  weights: pretrained.Source | None = None  # from config.train.init_from, unless the run has a checkpoint
  image_bits: int | None = None  # config.data.image_bits, if the config leaves it open and the files name it
  held_out: bool = False  # whether `val` is drawn from `train`, see `divide`

  def fingerprint(self) -> dict[str, dict[str, Any]]:
    """Returns the fingerprint of each split that was loaded, see `dnt.data.fingerprint`; not for cached features."""
    return fingerprint.of({self.train.split: self.train} | self.evaluation)


def load(
  config: typed.Config,
  splits: Sequence[str],
  workdir: pathlib.Path | None = None,
  test: bool = False,
  find: Callable[[typed.Data, int], examples.Splits] = sources.find,
) -> Data:
  """Reads the training split and other splits, each once, and the description of the pretrained weights.

  Args:
    config: a validated config; of a run that has a checkpoint, from `resume.keep_open`.
    splits: the splits to evaluate.
    workdir: the workdir of the run. If it has a checkpoint, the data gets its classes, see `class_order.align`, and the
      pretrained weights, which are then not used, need not exist any more.
    test: whether to add the split `test` if it is labelled and `splits` holds no part of it.
    find: finds the splits of the source, as `sources.find` does.

  Raises:
    errors.InputError: a source, split or file is missing or damaged (of image files: those in the splits to evaluate,
      as far as `inspection` looks), splits differ in channels, splits or a checkpoint have other classes, processes
      have other data, or pretrained weights are missing.
  """
  meta = checkpoints.read_meta(workdir) if workdir else {}
  weights = pretrained.Source(config.train.init_from) if config.train.init_from and not meta else None
  if weights and not multihost.is_single():  # all processes read a checkpoint together
    of_run = multihost.together(lambda: weights.workdir is not None)
    multihost.check_equal({'whether config.train.init_from is a workdir': of_run})
  config = prepared(config, weights)
  loaded, held_out = _load(config, splits, test, find, meta)
  evaluated = [*splits, *(split for split in loaded if split not in (config.data.train_split, *splits))]
  image_bits = inspection.check(loaded, evaluated, config.data)
  if image_bits:
    config.data.image_bits = image_bits
    loaded, _ = _load(config, splits, test, find, meta)
  first = loaded[config.data.train_split]
  for split, other in loaded.items():
    if other.shape[-1] != first.shape[-1]:
      raise errors.InputError(f'split {split!r} of {config.data.source} has other channels than {first.split!r}')
  names, owner = first.class_names, f'its split {first.split!r}'
  if workdir and meta:
    names, owner = meta['class_names'], f'the run in {buckets.name(workdir)}'
  loaded = {split: class_order.align(other, names, owner) for split, other in loaded.items()}
  train = loaded[config.data.train_split]
  spec = Spec(len(train), pipeline.image_shape(config.data, train), train.class_names)
  return Data(spec, train, {split: loaded[split] for split in evaluated}, weights, image_bits, held_out)


def check_alike(splits: Mapping[str, examples.Examples]) -> None:
  """Checks that all processes have read the same splits; every process calls it.

  Raises:
    agreement.DifferenceError: they have not; in every process.
  """
  if multihost.is_single():
    return
  found = {
    f'{_FINGERPRINT[name]} of {split}': value[:12] if isinstance(value, str) else value
    for split, values in fingerprint.of(splits).items()
    for name, value in values.items()
  }
  multihost.check_equal(found)


def prepared(config: typed.Config, weights: pretrained.Source | None) -> typed.Config:
  """Returns a copy whose open preprocessing options come from the run's pretrained weights, if it has any.

  Raises:
    errors.InputError: the network is to be that of the weights, and there are none; or they cannot be found.
  """
  if config.model.name == models.PRETRAINED and not config.train.init_from:
    raise errors.InputError(
      f"config.model.name='pretrained' takes its network from config.train.init_from, which is empty; valid: "
      f'{pretrained.FORMS}'
    )
  prepared = schema.copy_unlocked(config)
  if weights:
    multihost.together(lambda: pretrained.fill_data(prepared.data, weights))
  return prepared


def divide(config: typed.Config, available: examples.Splits, meta: Mapping[str, Any]) -> tuple[examples.Splits, bool]:
  """Returns the splits of a run, and whether `val` is drawn from `train`: if `eval.splits` asks for it, or `hold_out`.

  Of class folders alone a part is drawn also with `hold_out=False` if they ask, which older versions recorded for such
  runs. They also drew it where no option names it: a run that has a checkpoint keeps the images of its record. Of a
  run whose images are others now, or lost, a part is drawn if its record names `val`, and else never: it may have
  trained on all of them.

  Args:
    config: a validated config.
    available: from `sources.find`.
    meta: the `meta` of the run's checkpoint; {}: it has none.
  """
  data, asked = config.data, _names(config.eval.splits, splits_lib.VAL)
  if splits_lib.ALL not in available:
    has_train_alone = splits_lib.VAL not in available and splits_lib.TRAIN in available
    held_out = has_train_alone and asked if data.hold_out is None else data.hold_out
    return (sources.hold_out(available, data, data.seed) if held_out else available), held_out
  if data.hold_out:
    return available, True
  ways = [(sources.undrawn(available), False), (available, True)]
  asked = asked or _names([data.train_split], splits_lib.VAL)
  if not meta:
    return ways[asked]
  if not (recorded := meta['data']):  # of a version that only drew
    return available, True
  divided = (splits_lib.TRAIN, splits_lib.VAL, splits_lib.ALL)
  known = [split for split in recorded if splits_lib.parse(split).name in divided]
  had_val = _names(recorded, splits_lib.VAL)
  for way in (ways[had_val], ways[not had_val]):
    if all(is_of(way[0], data, split, recorded[split]) for split in known):
      return way
  return ways[had_val]


def is_of(available: examples.Splits, data: typed.Data, split: str, recorded: Mapping[str, Any]) -> bool:
  """Returns whether the images of a split are those of a fingerprint.

  Their labels are compared once the classes are in the order of the run.
  """
  with contextlib.suppress(errors.InputError):  # reading them reports it
    found = fingerprint.of({'': sources.locate(available, data, split)})['']
    return all(found[name] == recorded[name] for name in ('images', 'content'))
  return False


def _names(texts: Iterable[str], name: str) -> bool:
  return any(splits_lib.parse(text).name == name for text in texts)


def _check_labelled(split: examples.Examples) -> examples.Examples:
  if split.labels is None:
    _ = split[0]  # raises if it has no label
  return split


def _load(
  config: typed.Config,
  splits: Sequence[str],
  test: bool,
  find: Callable[[typed.Data, int], examples.Splits],
  meta: Mapping[str, Any],
) -> tuple[dict[str, examples.Examples], bool]:
  """Reads the splits of `load`, equal in all processes; also returns whether `val` is held out of `train`."""

  def read():
    available, held_out = divide(config, find(config.data, config.data.seed), meta)
    wanted = dict.fromkeys([config.data.train_split, *splits])
    found = {split: sources.read(available, config.data, split) for split in wanted}
    if test and splits_lib.TEST in available and not _names(splits, splits_lib.TEST):
      with contextlib.suppress(examples.UnlabelledError):
        found[splits_lib.TEST] = _check_labelled(sources.read(available, config.data, splits_lib.TEST))
    return found, held_out

  loaded, held_out = multihost.together(read)
  check_alike(loaded)
  return loaded, held_out
