"""A trained network from one string, without its data."""

from dnt.inference.network import (
  Network,
  find,
  load,
  predict,
  read,
)

__all__ = [
  'Network',
  'find',
  'load',
  'predict',
  'read',
]
