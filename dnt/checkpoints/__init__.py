"""Checkpoints of whole runs: written by Orbax, restored strictly."""

from dnt.checkpoints.manager import (
  DIRECTORY,
  Checkpoints,
  ReadOnly,
  better,
  load_parameters,
)

__all__ = [
  'Checkpoints',
  'DIRECTORY',
  'ReadOnly',
  'better',
  'load_parameters',
]
