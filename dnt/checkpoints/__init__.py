"""Saves checkpoints of whole runs with Orbax, and restores them strictly."""

from dnt.checkpoints.manager import (
  BEST,
  NEWEST,
  NEWEST_NAMES,
  Checkpoints,
  ReadOnly,
  better,
  choose_step,
  load_parameters,
  read_meta,
)

__all__ = [
  'BEST',
  'NEWEST',
  'NEWEST_NAMES',
  'Checkpoints',
  'ReadOnly',
  'better',
  'choose_step',
  'load_parameters',
  'read_meta',
]
