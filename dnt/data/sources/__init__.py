"""Data sources: one module per format, and the registry that finds a source by its name."""

from dnt.data.sources.registry import (
  choose,
  find,
  hold_out,
  locate,
  names,
  read,
  undrawn,
)

__all__ = [
  'choose',
  'find',
  'hold_out',
  'locate',
  'names',
  'read',
  'undrawn',
]
