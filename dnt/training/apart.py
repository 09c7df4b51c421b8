"""Evaluates a run on labelled data that it was not trained on, such as a test set in a folder of its own.

What such data lacks comes from the run: the classes and their order, the preprocessing, the size of the images.
"""

import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dnt import config as schema
from dnt import errors
from dnt.config import typed
from dnt.data import class_order, pipeline, sources
from dnt.training import experiment, resume

_log = logging.getLogger(__name__)


class Apart(NamedTuple):
  """Describes data that stands apart: the config to evaluate it with, and its splits. It has no training split."""

  config: typed.Config
  data: experiment.Data


def load(
  config: typed.Config, splits: Sequence[str], workdir: pathlib.Path, trained: resume.Trained, meta: Mapping[str, Any]
) -> Apart | None:
  """Reads the splits to evaluate if `config.data` names other data than that of the run; returns None if it does not.

  A run's own data that was moved is recognized by the fingerprint of its training split.

  Args:
    config: from `resume.keep_open`.
    splits: the splits to evaluate, see `sources.choose`.
    workdir: the workdir of the run.
    trained: what the run was trained with.
    meta: the `meta` of its checkpoint.

  Raises:
    errors.InputError: a source or split is missing or damaged, or has other classes than the run.
  """
  if _place(config.data) == _place(trained.config.data) or _is_moved(config, splits, workdir, trained):
    return None
  config = _complete(config, trained.config, meta)
  available = sources.find(config.data, config.data.seed)
  chosen = sources.choose(available, splits)
  if chosen != {split: split for split in splits}:
    named = ', '.join(name if name == split else f'{split!r} as {name!r}' for name, split in chosen.items())
    _log.info(f'{config.data.source} is not the data of the run in {workdir}: evaluating its split {named}')
  owner = f'the run in {workdir}'
  loaded = {
    name: class_order.align(sources.read(available, config.data, split), meta.get('class_names', ()), owner)
    for name, split in chosen.items()
  }
  first = next(iter(loaded.values()))
  spec = experiment.DataSpec(len(first), pipeline.image_shape(config.data, first), first.class_names)
  return Apart(config, experiment.Data(spec, first, loaded))


def _place(data: typed.Data) -> tuple[str, str]:
  """Returns the kind of the source, and the path of its folder or its name."""
  kind, _, where = data.source.partition(':')
  where = where or data.dir
  return kind, where if kind == 'tfds' or not where else str(pathlib.Path(where).expanduser().resolve())


def _is_moved(config: typed.Config, splits: Sequence[str], workdir: pathlib.Path, trained: resume.Trained) -> bool:
  if config.data.train_split not in trained.data:
    return False
  try:
    found = experiment.load_data(config, splits, workdir).fingerprint()
  except errors.InputError:
    return False
  return found[config.data.train_split] == trained.data[config.data.train_split]


def _complete(config: typed.Config, trained: typed.Config, meta: Mapping[str, Any]) -> typed.Config:
  """Returns the config with what it leaves open as the run had it, and without what is only for training."""
  result, default = schema.copy_unlocked(config), schema.default()
  for key, value in trained.data.items():
    if result.data[key] in (None, ()):
      result.data[key] = value
  height, width, _ = meta.get('image_shape', (None, None, None))
  if result.data.image_size is None and height == width:
    result.data.image_size = height
  # Their periods may be longer than the other data.
  result.schedule, result.finetune, result.train.steps = default.schedule, default.finetune, trained.train.steps
  result.loss.balance_classes = False
  return result
