"""Weights too large to store: each tensor is drawn by NumPy from its name, the same for torch and for dnt."""

import math
import zlib

import numpy as np

RANGES = {'running_mean': (-0.5, 0.5), 'running_var': (0.5, 2), 'weight': (0.5, 1.5), 'bias': (-0.5, 0.5)}


def uniform(name, shape, low, high):
  """float32, to the bit on every machine."""
  generator = np.random.default_rng(zlib.crc32(name.encode()))
  return np.float32(low) + np.float32(high - low) * generator.random(shape, np.float32)


def draw(name, shape, dtype='float32'):
  """A tensor as a trained network may have it, by torchvision's name: scales far from 1, all else from 0."""
  low, high = RANGES.get(name.rpartition('.')[2], (0, 0))
  if len(shape) > 1:
    high = math.sqrt(6 / math.prod(shape[1:]))
    low = -high
  return np.asarray(uniform(name, shape, low, high), dtype)


def describe(tensors):
  """Names, dtypes and shapes of torch's tensors by name, as an array of text."""
  dtypes = {name: str(value.dtype).removeprefix('torch.') for name, value in tensors.items()}
  return np.array([' '.join((name, dtypes[name], *map(str, value.shape))) for name, value in tensors.items()])


def described(description):
  """`{name: (dtype, shape)}` of such an array."""
  lines = [line.split() for line in description.tolist()]
  return {name: (dtype, tuple(map(int, shape))) for name, dtype, *shape in lines}


def drawn(tensors):
  """`{name: array}` for `{name: (dtype, shape)}`."""
  return {name: draw(name, shape, dtype) for name, (dtype, shape) in tensors.items()}


def checksums(arrays):
  """One number for each array, by the order of their names."""
  return np.array([zlib.crc32(np.ascontiguousarray(arrays[name])) for name in sorted(arrays)])
