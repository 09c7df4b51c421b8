"""Data sources: one module per format, and the registry that finds a source by its name."""

from dnt.data.sources.registry import (
  load,
  names,
)

__all__ = [
  'load',
  'names',
]
