"""Where images come from: a module a format, and the registry that finds it by name."""

from dnt.data.sources.registry import (
  load,
  names,
)

__all__ = [
  'load',
  'names',
]
