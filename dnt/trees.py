"""Works with trees of named leaves: computes every path, count and digest of a parameter tree.

A path joins the keys of nested dicts by '/', such as `stage1/block001/conv1/kernel`.
"""

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

Tree = Any
SCANNED = 'scanned'  # key of a scanned stage; each leaf below it stacks the blocks as rows


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Flattens nested dicts to `{path: leaf}`, in path order."""
  flat = traverse_util.flatten_dict(dict(tree), sep='/')
  return {path: flat[path] for path in sorted(flat)}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Inverts `flatten`."""
  return traverse_util.unflatten_dict(dict(flat), sep='/')


def map_with_path(fn: Callable[..., Any], tree: Mapping[str, Any], *rest: Mapping[str, Any]) -> dict[str, Any]:
  """Applies `fn(path, leaf, *other_leaves)` to every leaf of nested dicts with the same paths."""
  others = [flatten(other) for other in rest]
  return unflatten({path: fn(path, leaf, *(other[path] for other in others)) for path, leaf in flatten(tree).items()})


def is_scanned(path: str) -> bool:
  """Returns whether the leaf at this '/'-joined path has a leading row axis."""
  return SCANNED in path.split('/')


def prefixes(path: str) -> list[str]:
  """Returns the names of what holds a '/'-joined path, from the outermost on, and at the end the path itself."""
  parts = path.split('/')
  return ['/'.join(parts[:count]) for count in range(1, len(parts) + 1)]


def is_named(path: str, patterns: Sequence[str]) -> bool:
  """Returns whether a pattern matches the whole of a '/'-joined path, or of the name of something that holds it."""
  return any(re.fullmatch(pattern, name) for pattern in patterns for name in prefixes(path))


def split(tree: Mapping[str, Any], chosen: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits nested dicts into the leaves whose path satisfies `chosen`, and the others; see `merge`."""
  flat = flatten(tree)
  inside = {path: leaf for path, leaf in flat.items() if chosen(path)}
  return unflatten(inside), unflatten({path: leaf for path, leaf in flat.items() if path not in inside})


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
  """Inverts `split`: merges the leaves of both trees into one."""
  return unflatten({**flatten(first), **flatten(second)})


def subtree(tree: Mapping[str, Any], path: str) -> Any:
  """Returns the part of nested dicts below `path`, or an empty dict if there is none."""
  for key in path.split('/'):
    if key not in tree:
      return {}
    tree = tree[key]
  return tree


def count(tree: Tree) -> int:
  """Returns the total number of array elements in a tree of arrays (or of shapes)."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def sha256(tree: Mapping[str, Any]) -> str:
  """Returns a SHA-256 hex digest over the leaves in path order: path, dtype, shape, bytes (C order).

  Args:
    tree: nested dicts of arrays that are fully readable by this process.
  """
  digest = hashlib.sha256()
  for path, leaf in flatten(tree).items():
    array = np.ascontiguousarray(jax.device_get(leaf))
    digest.update(f'{path} {array.dtype} {tuple(np.shape(leaf))}\n'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()
