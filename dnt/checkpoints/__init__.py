"""Saves checkpoints of whole runs with Orbax, and restores them strictly."""

from dnt.checkpoints.manager import (
  Checkpoints,
  ReadOnly,
  better,
  load_parameters,
)

__all__ = [
  'Checkpoints',
  'ReadOnly',
  'better',
  'load_parameters',
]
