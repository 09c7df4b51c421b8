"""Computes a digest of each array from its bits and their positions, independent of the sharding."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dnt.parallel import multihost


class Digest(NamedTuple):
  """Holds the digest of a leaf, and whether all its numbers are finite."""

  value: int
  finite: bool


def inspect(leaves: Mapping[str, Any]) -> dict[str, Digest]:
  """Returns the digest of each leaf.

  The digest is the sum modulo 2^32 of the leaf's 32-bit words, each times the odd weight 2 x position + 1. Every order
  of summation, over any shards, gives the same digest, and a change of one word always changes it. The host computes
  the sum, because it receives the values anyway to write them. Compiling a program for each shape would take seconds
  for a deep network.

  Args:
    leaves: arrays on the mesh, where each process sums its own shards, or whole numpy arrays.
  """
  shards = {path: _shards(leaf) for path, leaf in leaves.items()}
  for _, values in itertools.chain.from_iterable(shards.values()):
    if isinstance(values, jax.Array):
      values.copy_to_host_async()
  result = np.zeros((len(leaves), 2), np.uint32)  # digest, number of shards that are not finite
  for row, (path, leaf) in zip(result, leaves.items(), strict=True):
    for index, values in shards[path]:
      digest, finite = _inspect_shard(leaf.shape, index, np.asarray(values))
      row += np.array([digest, not finite], np.uint32)
  if any(isinstance(leaf, jax.Array) for leaf in leaves.values()) and not multihost.is_single():
    result = multihost_utils.process_allgather(result).sum(0, dtype=np.uint32)
  return {path: Digest(int(digest), not bad) for path, (digest, bad) in zip(leaves, result, strict=True)}


def _shards(leaf: Any) -> list[tuple[tuple[slice, ...], Any]]:
  """Returns (index, values) of the shards that this process sums; together the processes sum each number once."""
  if isinstance(leaf, jax.Array):
    return [(shard.index, shard.data) for shard in leaf.addressable_shards if shard.replica_id == 0]
  return [((slice(None),) * leaf.ndim, leaf)]


def _inspect_shard(shape: tuple[int, ...], index: tuple[slice, ...], values: np.ndarray) -> tuple[int, bool]:
  finite = not jnp.issubdtype(values.dtype, jnp.inexact) or bool(np.isfinite(values).all())
  size = values.dtype.itemsize
  words = np.ascontiguousarray(values).view(f'u{min(size, 4)}').astype(np.uint32, copy=False)
  if size > 4:
    shape, index = (*shape, size // 4), (*index, slice(None))
  position, stride = np.zeros((), np.uint32), 1
  for axis in reversed(range(len(shape))):
    along = np.arange(*index[axis].indices(shape[axis]), dtype=np.uint32) * np.uint32(stride % 2**32)
    position = along.reshape(-1, *[1] * (len(shape) - 1 - axis)) + position
    stride *= shape[axis]
  words = words.reshape(position.shape)
  return int(np.sum(words * (position * np.uint32(2) + np.uint32(1)), dtype=np.uint32)), finite
