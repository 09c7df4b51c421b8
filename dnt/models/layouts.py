"""Converts between the two layouts of a stage, and names its blocks.

In the unrolled layout, the blocks of a stage are the submodules `block001`, `block002`, ... In the scanned layout, the
first block, which may change the shape, stays separate, and the rest are one submodule `scanned` whose leaves have a
leading row axis. `to_scanned` and `to_unrolled` convert any tree that mirrors the parameters.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dnt import errors, trees

_BLOCK = re.compile(r'block(\d{3,})')
Rows = Mapping[tuple[str, ...], int]  # number of rows of each scanned stage by path; 0: a stage that is not scanned


def block_name(number: int) -> str:
  """Returns the name of a block, numbered from 1; three digits make sorted names follow the depth order."""
  return f'block{number:03d}'


def block_number(name: str) -> int:
  """Returns the number of a block from its name, the inverse of `block_name`."""
  match = _BLOCK.fullmatch(name)
  assert match, name
  return int(match[1])


def scanned_rows(tree: Any) -> Rows:
  """Returns the path and number of rows of each scanned stage in parameters (or shapes) of the scanned layout."""
  rows = {}

  def visit(node, path):
    if not isinstance(node, Mapping):
      return
    leaves = jax.tree.leaves(node.get(trees.SCANNED))
    if leaves:
      rows[path] = leaves[0].shape[0]
    for key, value in node.items():
      visit(value, (*path, key))

  visit(tree, ())
  return rows


def to_unrolled(tree: Any, rows: Rows | None = None) -> Any:
  """Splits scanned stages into blocks: `stage1/scanned` becomes `stage1/block002` and so on.

  The conversion is exact and keeps unrolled stages as they are.

  Args:
    tree: dicts, tuples, lists and dataclasses of arrays (or `ShapeDtypeStruct`s) in which parts mirror the parameters,
      such as parameters, batch statistics, optimizer states and whole train states.
    rows: rows of the stages, from `scanned_rows`; None computes them from `tree`, which must then be nested dicts.

  Returns:
    The tree in the unrolled layout.
  """
  rows = scanned_rows(tree) if rows is None else rows

  def convert(stage, count):
    blocks = {key: value for key, value in stage.items() if key != trees.SCANNED}
    for index in range(count):
      blocks[block_name(index + 2)] = jax.tree.map(functools.partial(_row, index=index), stage[trees.SCANNED])
    return blocks

  return _convert(tree, rows, lambda stage: trees.SCANNED in stage, convert)


def to_scanned(tree: Any, rows: Rows) -> Any:
  """Stacks the blocks of stages from the second block on: the inverse of `to_unrolled`.

  The conversion is exact and keeps scanned stages as they are.

  Args:
    tree: as in `to_unrolled`.
    rows: rows of the stages to scan, from `depth.Trace.scanned`, or from `scanned_rows` of parameters (or shapes)
      in the scanned layout.

  Returns:
    The tree in the scanned layout.

  Raises:
    errors.InputError: a stage has another number of blocks, or its blocks differ in structure, shapes or dtypes.
  """

  def convert(stage, count):
    blocks = {key: value for key, value in stage.items() if _BLOCK.fullmatch(key)}
    if len(blocks) != count + 1:
      raise errors.InputError(f'a stage of {len(blocks)} blocks cannot become one of {count + 1}')
    first, *rest = (blocks.pop(block_name(index + 1)) for index in range(count + 1))
    if any(_shapes(block) != _shapes(rest[0]) for block in rest):
      raise errors.InputError('the blocks of a stage differ in their parameters, so that they cannot be scanned')
    return {block_name(1): first, trees.SCANNED: jax.tree.map(_stack, *rest)}

  return _convert(tree, rows, lambda stage: block_name(2) in stage, convert)


def _convert(tree: Any, rows: Rows, is_stage: Callable, convert: Callable, path: tuple[str, ...] = ()) -> Any:
  """Applies `convert` to each dict that represents a stage of `rows`, wherever the tree mirrors the parameters."""

  def inside(node, *keys):
    return _convert(node, rows, is_stage, convert, path + keys)

  if isinstance(tree, Mapping):
    # A path begins with what is around the parameters. The longest stage counts: `tower/body` ends with `body` too.
    stage = max((stage for stage in rows if path[-len(stage) :] == stage), key=len, default=None)
    if stage and rows[stage] and is_stage(tree):
      return convert(tree, rows[stage])
    return type(tree)({key: inside(value, key) for key, value in tree.items()})
  if isinstance(tree, tuple) and hasattr(tree, '_fields'):
    return type(tree)(*map(inside, tree))
  if isinstance(tree, tuple | list):
    return type(tree)(map(inside, tree))
  if dataclasses.is_dataclass(tree):
    fields = [field.name for field in dataclasses.fields(tree)]
    return dataclasses.replace(tree, **{name: inside(getattr(tree, name)) for name in fields})
  return tree


def _shapes(tree: Any) -> Any:
  leaves, structure = jax.tree.flatten(tree)
  return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _row(leaf: Any, index: int) -> Any:
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
  return leaf[index]


def _stack(*leaves: Any) -> Any:
  if isinstance(leaves[0], jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct((len(leaves), *leaves[0].shape), leaves[0].dtype)
  return (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves)
