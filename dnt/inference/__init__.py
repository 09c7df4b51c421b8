"""Loads a trained network from one string, without its training data."""

from dnt.inference.network import Network, load
from dnt.inference.predictions import find, predict, read, say_reading, why_not_predicted
from dnt.inference.splits import Ranked, load_split, paths_of, predict_split, say_trained_on

__all__ = [
  'Network',
  'Ranked',
  'find',
  'load',
  'load_split',
  'paths_of',
  'predict',
  'predict_split',
  'read',
  'say_reading',
  'say_trained_on',
  'why_not_predicted',
]
