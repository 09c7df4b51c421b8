"""Checkpoints of whole runs: written by Orbax, restored strictly."""

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
