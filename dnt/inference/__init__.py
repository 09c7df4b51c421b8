"""Loads a trained network from one string, without its training data."""

from dnt.inference.network import Network, load
from dnt.inference.predictions import find, predict, read, say_reading, why_not_predicted

__all__ = [
  'Network',
  'find',
  'load',
  'predict',
  'read',
  'say_reading',
  'why_not_predicted',
]
