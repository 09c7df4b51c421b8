"""Evaluates a run on labelled data that it was not trained on, such as a test set in a folder of its own.

What such data lacks comes from the run: the classes and their order, the preprocessing, the size of the images.
"""

import contextlib
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dnt import buckets, errors
from dnt import config as schema
from dnt.config import typed
from dnt.data import class_order, inspection, pipeline, sources
from dnt.data import splits as splits_lib
from dnt.parallel import agreement, multihost
from dnt.training import datasets, resume

_log = logging.getLogger(__name__)


class Loaded(NamedTuple):
  """Holds what to evaluate and the config to do it with; the first split stands for an absent training split."""

  config: typed.Config
  data: datasets.Data


def load(
  config: typed.Config, splits: Sequence[str], workdir: pathlib.Path, trained: resume.Trained, meta: Mapping[str, Any]
) -> Loaded:
  """Reads the splits to evaluate, of the data of a run or of other data.

  A run's own data may have been moved: it is recognized by the fingerprint of its training split. It may have lost its
  training images, which an evaluation does not need. Of other data, `sources.choose` says what is evaluated.

  Args:
    config: from `resume.keep_open`.
    splits: the splits to evaluate, at least one.
    workdir: the workdir of the run.
    trained: what the run was trained with.
    meta: the `meta` of its checkpoint.

  Raises:
    errors.InputError: a source, split or image file is missing or damaged, or has other classes than the run, or
      processes have other data.
  """
  # The lead wrote the config of the run; in another process the folder may stand elsewhere.
  in_place = multihost.broadcast_from_lead(_place(config.data) == _place(trained.config.data))
  train = config.data.train_split

  def read(own):
    return _read(_complete(config, trained.config, meta), splits, meta, f'the run in {buckets.name(workdir)}', own)

  if in_place or (train in trained.data and _may_be_own(config, meta)):
    try:
      data = datasets.load(config, splits, workdir)
      found = data.fingerprint()
      if in_place or found[train] == trained.data[train]:
        different = [split for split in found if trained.data.get(split, found[split]) != found[split]]
        if different:
          _log.info(
            f'not as the run in {buckets.name(workdir)}: the images of {", ".join(different)}; some may have been in '
            'another split'
          )
        return Loaded(config, data)
    except agreement.DifferenceError:
      raise
    except errors.InputError as error:
      try:
        return read(own=True)
      except agreement.DifferenceError:
        raise
      except errors.InputError:
        raise error from None  # it says more
  return read(own=False)


def _may_be_own(config: typed.Config, meta: Mapping[str, Any]) -> bool:
  """Returns whether data in another place has the training images of a run, by their fingerprint; logs nothing."""
  data = config.data

  def look():
    with contextlib.suppress(errors.InputError):  # reading what is evaluated reports it
      available, _ = datasets.divide(config, sources.find(data, data.seed), meta)
      return datasets.is_of(available, data, data.train_split, meta['data'][data.train_split])
    return False

  return multihost.on_lead(look)


def _read(config: typed.Config, splits: Sequence[str], meta: Mapping[str, Any], owner: str, own: bool) -> Loaded:
  """Reads splits without a training split, each as a whole; of data that is the run's `own`, by their names."""
  data = schema.copy_unlocked(config.data)
  data.images_per_class = None

  def read():
    available, chosen = sources.find(data, data.seed), {split: split for split in splits}
    if own and (splits_lib.ALL in available or (data.hold_out and splits_lib.TRAIN in available)):
      available, _ = datasets.divide(config, available, meta)
    if not own and (chosen := sources.choose(available, splits)) != {split: split for split in splits}:
      named = ', '.join(name if name == split else f'{split!r} as {name!r}' for name, split in chosen.items())
      _log.info(f'{data.source} is not the data of {owner}: evaluating its split {named}')
    return {
      name: class_order.align(sources.read(available, data, split), meta['class_names'], owner)
      for name, split in chosen.items()
    }

  loaded = multihost.together(read)
  datasets.check_alike(loaded)
  inspection.check(loaded, loaded, data)
  first = next(iter(loaded.values()))
  spec = datasets.Spec(len(first), pipeline.image_shape(data, first), first.class_names)
  return Loaded(config, datasets.Data(spec, first, loaded))


def _place(data: typed.Data) -> tuple[str, str]:
  """Returns the kind of the source, and the path of its folder or its name."""
  kind, _, where = data.source.partition(':')
  where = where or data.dir
  return kind, where if kind == 'tfds' or not where else str(pathlib.Path(where).expanduser().resolve())


def _complete(config: typed.Config, trained: typed.Config, meta: Mapping[str, Any]) -> typed.Config:
  """Returns the config with what it leaves open as the run had it, and without what is only for training."""
  result, default = schema.copy_unlocked(config), schema.default()
  for key, value in trained.data.items():
    if result.data[key] in (None, ()):
      result.data[key] = value
  height, width, _ = meta['image_shape']
  if result.data.image_size is None and height == width:
    result.data.image_size = height
  # Their periods may be longer than the other data.
  result.schedule, result.finetune, result.train.steps = default.schedule, default.finetune, trained.train.steps
  result.loss.balance_classes = False
  return result
