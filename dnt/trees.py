"""Trees of named leaves: every path, count and digest of a parameter tree is made here.

A path is the keys of nested dicts joined by '/', such as `stage1/block001/conv1/kernel`.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

Tree = Any
SCANNED = 'scanned'  # the name below which the entries of a scanned stage are rows of stacked leaves


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dicts to `{path: leaf}`, in path order."""
  flat = traverse_util.flatten_dict(dict(tree), sep='/')
  return {path: flat[path] for path in sorted(flat)}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  return traverse_util.unflatten_dict(dict(flat), sep='/')


def map_with_path(fn: Callable[..., Any], tree: Mapping[str, Any], *rest: Mapping[str, Any]) -> dict[str, Any]:
  """`fn(path, leaf, *other_leaves)` on every leaf of nested dicts with the same paths."""
  others = [flatten(other) for other in rest]
  return unflatten({path: fn(path, leaf, *(other[path] for other in others)) for path, leaf in flatten(tree).items()})


def is_scanned(path: str) -> bool:
  """Whether the leaf at that '/'-joined path has a leading row axis."""
  return SCANNED in path.split('/')


def split(tree: Mapping[str, Any], chosen: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Nested dicts apart: the leaves whose path is `chosen`, and the others; see `merge`."""
  flat = flatten(tree)
  inside = {path: leaf for path, leaf in flat.items() if chosen(path)}
  return unflatten(inside), unflatten({path: leaf for path, leaf in flat.items() if path not in inside})


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `split`: one tree of the leaves of both."""
  return unflatten({**flatten(first), **flatten(second)})


def subtree(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
  """The part of nested dicts below `path`; an empty dict where there is none."""
  for key in path:
    if key not in tree:
      return {}
    tree = tree[key]
  return tree


def count(tree: Tree) -> int:
  """The number of numbers in a tree of arrays (or of shapes)."""
  return sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in jax.tree.leaves(tree))


def sha256(tree: Mapping[str, Any]) -> str:
  """Hex digest over the leaves in path order: path, dtype, shape, bytes (C order).

  Args:
    tree: nested dicts of arrays that this process can read whole.
  """
  digest = hashlib.sha256()
  for path, leaf in flatten(tree).items():
    array = np.ascontiguousarray(jax.device_get(leaf))
    digest.update(f'{path} {array.dtype} {tuple(np.shape(leaf))}\n'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()
