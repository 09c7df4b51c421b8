"""Matches the rules of `config.sharding` with parameters, and lists how the parameters lie on a mesh."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from dnt import errors, trees
from dnt.config import checks
from dnt.parallel import mesh as mesh_lib


class Placement(NamedTuple):
  """Describes how a parameter lies on a mesh.

  Attributes:
    path: path of the parameter.
    shape: its shape.
    axis: the axis that is split over `fsdp`; None: each device holds the whole parameter.
    bytes_per_device: bytes of each device's part.
  """

  path: str
  shape: tuple[int, ...]
  axis: int | None
  bytes_per_device: int


def match(rules: Sequence[tuple[str, int | str]], params: Mapping[str, Any], fsdp: int) -> dict[str, int | None]:
  """Returns the axis along which to split each parameter; None keeps it whole.

  Of several rules for a parameter, the first one counts. What no rule names is split by its size.

  Args:
    rules: `config.sharding`, pairs of a pattern for whole paths and an axis or `checks.WHOLE`. The axes of a scanned
      parameter count from the one after its row axis, so that a rule means the same in both layouts.
    params: parameters or shapes, nested dicts.
    fsdp: number of devices over which the axis is split.

  Returns:
    `{path: axis}`; axes are those of the leaf, with its row axis, from 0 on.

  Raises:
    errors.InputError: a pattern matches no parameter, or a parameter does not have the axis or cannot be split there.
  """
  leaves, axes = trees.flatten(params), {}
  for pattern, axis in rules:
    paths = [path for path in leaves if re.fullmatch(pattern, path)]
    if not paths:
      raise errors.InputError(
        f'config.sharding: {pattern!r} matches the whole path of no parameter: {errors.list_names(list(leaves))}'
      )
    for path in paths:
      if path not in axes:
        axes[path] = None if axis == checks.WHOLE else _axis(pattern, int(axis), path, leaves[path].shape, fsdp)
  return {path: mesh_lib.axis_by_size(path, leaf, fsdp) for path, leaf in leaves.items()} | axes


def _axis(pattern: str, axis: int, path: str, shape: tuple[int, ...], fsdp: int) -> int:
  rows = int(trees.is_scanned(path))
  own = shape[rows:]
  valid = [str(place) for place, size in enumerate(own) if size % fsdp == 0]
  axis = axis + len(own) if axis < 0 else axis
  if 0 <= axis < len(own) and own[axis] % fsdp == 0:
    return axis + rows
  if 0 <= axis < len(own):
    problem = f'axis {axis} of {path} has size {own[axis]}, which config.mesh.fsdp={fsdp} does not divide'
  else:
    problem = f'{path} of shape {own} has no axis {axis}'
  raise errors.InputError(f'config.sharding: {pattern!r}: {problem}; valid: {", ".join([*valid, checks.WHOLE])}')


def table(mesh: Mesh, params: Mapping[str, Any], axes: Mapping[str, int | None]) -> list[Placement]:
  """Returns how each parameter lies on a mesh, whose devices need not be here, in path order.

  Args:
    mesh: from `mesh.make_mesh`.
    params: parameters or shapes, nested dicts.
    axes: from `match`.
  """
  shardings = trees.flatten(mesh_lib.parameter_shardings(mesh, params, axes))
  rows = []
  for path, leaf in trees.flatten(params).items():
    spec = tuple(shardings[path].spec)
    axis = spec.index(mesh_lib.FSDP) if mesh_lib.FSDP in spec else None
    size = math.prod(shardings[path].shard_shape(leaf.shape)) * leaf.dtype.itemsize
    rows.append(Placement(path, tuple(leaf.shape), axis, size))
  return rows


def describe(mesh: Mesh, rows: Sequence[Placement]) -> str:
  """Describes a `table` in one line."""
  split = sum(row.axis is not None for row in rows)
  size = sum(row.bytes_per_device for row in rows)
  return (
    f'{split} of {len(rows)} parameters are split over config.mesh.fsdp={mesh.shape[mesh_lib.FSDP]} devices, so that '
    f'each holds {size / 1e6:,.1f} MB of parameters'
  )
