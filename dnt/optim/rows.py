"""Maps leaves to their depth entries: one entry per leaf, or one per row in a scanned stage."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dnt import errors, trees
from dnt.models import depth, freeze

Places = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Leaves:
  """The parameters of a network, and the depth entries that own them.

  Attributes:
    entries: the depth list, see `depth.Trace.entries`.
    shapes: all parameters by path, arrays or shapes.
    places: their indices in the depth list by path: one index, or one per row.
  """

  entries: Sequence[depth.Entry]
  shapes: Mapping[str, Any]
  places: Places

  @classmethod
  def of(cls, params: Any, entries: Sequence[depth.Entry]) -> 'Leaves':
    """Returns the leaves of all parameters, nested dicts of arrays or shapes."""
    shapes = trees.flatten(params)
    return cls(entries, shapes, depth.find_owners(entries, shapes))

  def trained(self, partition: freeze.Partition) -> list[str]:
    """Returns the paths of the parameters that train."""
    return [path for path in self.shapes if partition.trains(path)]

  def owners(self, partition: freeze.Partition = freeze.ALL) -> tuple[int, ...]:
    """Returns the depth list indices of the entries that own any parameter that trains, in order."""
    return tuple(sorted({index for path in self.trained(partition) for index in self.places[path]}))

  def names(self, path: str) -> tuple[str, ...]:
    """Returns the paths that the leaf at `path` has in the unrolled layout: one path, or one per row."""
    owners = [self.entries[index] for index in self.places[path]]
    return tuple(entry.name + path[len(entry.path) :] for entry in owners)

  def named(self, partition: freeze.Partition = freeze.ALL) -> list[tuple[int, str]]:
    """Returns the depth list index and the path in the unrolled layout of what trains, of scanned leaves row by row."""
    return [
      (index, name)
      for path in self.trained(partition)
      for index, name in zip(self.places[path], self.names(path), strict=True)
    ]

  def kernel_ends(self, option: str) -> tuple[int, int]:
    """Returns the depth list indices of the first and the last kernel, which belong to stem and head.

    Args:
      option: what needs them, 'key=value', for the message.

    Raises:
      errors.InputError: there is no kernel.
    """
    indices = [index for path, place in self.places.items() if is_kernel(path) for index in place]
    if not indices:
      raise errors.InputError(
        f'config.{option} tells kernels from other parameters by their name, and no parameter of the model is called '
        "'kernel', as in flax's dense and convolution layers: rename them, or set another "
        f'config.{option.partition("=")[0]}'
      )
    return min(indices), max(indices)


def is_kernel(path: str) -> bool:
  """Returns whether the leaf at `path` is the kernel of a dense layer or convolution."""
  return path.rpartition('/')[2] == 'kernel'


def first_axis(path: str) -> int:
  """Returns the first axis of a leaf after that of its rows, if it has one."""
  return 1 if trees.is_scanned(path) else 0


def kernel_axes(path: str, leaves: Mapping[str, Any]) -> list[tuple[int, int]]:
  """Returns how a kernel may be read: numbers of its first axes, of layers, and of its last axes, its outputs.

  Those between them are its inputs. There is one axis of outputs in dense layers and convolutions of any dimension.
  `nn.DenseGeneral` may have more, as its bias has too. Layers that a module scans or maps itself (`nn.scan`, `nn.vmap`)
  have a first axis, as their bias has too; a bias may fit several of these, or none. Where there is no bias, names
  tell the kernels [inputs, heads, features] of `nn.MultiHeadDotProductAttention` from those of a convolution, [width,
  inputs, outputs].

  Args:
    path: path of the kernel.
    leaves: the leaves of the network by path, arrays or shapes.
  """
  module, first = path.rpartition('/')[0], first_axis(path)
  shape = leaves[path].shape[first:]
  if (bias := leaves.get(f'{module}/bias')) is None:
    return [(0, 2 if len(shape) == 3 and module.rpartition('/')[2] in ('query', 'key', 'value') else 1)]
  outputs = bias.shape[first:]
  if len(outputs) < 2:
    return [(0, 1)]
  return [
    (layers, len(outputs) - layers)
    for layers in range(len(outputs))
    if len(outputs) < len(shape)
    and shape == (*outputs[:layers], *shape[layers : layers - len(outputs)], *outputs[layers:])
  ]


def squares(tree: Any, places: Places) -> dict[tuple[int, ...], jax.Array]:
  """Returns the sum of squares over each entry's leaves by place: float32 [], or [R] for R rows of a scanned stage.

  A scanned stage inside an entry has no places of its own: its rows count together, as part of the entry.

  Args:
    tree: nested dicts of arrays with the paths of `places`.
    places: from `Leaves`.
  """
  sums: dict[tuple[int, ...], jax.Array] = {}
  for path, leaf in trees.flatten(tree).items():
    place = places[path]
    first = 1 if len(place) > 1 else 0
    square = jnp.sum(jnp.square(leaf), axis=tuple(range(first, leaf.ndim)))
    sums[place] = sums.get(place, 0.0) + square
  return sums


def along(values: jax.Array, leaf: jax.Array) -> jax.Array:
  """Reshapes one value [], or one per row [R], to broadcast against a leaf."""
  return values.reshape(values.shape + (1,) * (leaf.ndim - values.ndim))


def by_row(
  transform: Callable[[jax.Array, jax.Array], jax.Array], matches: Mapping[str, np.ndarray]
) -> optax.GradientTransformation:
  """Replaces the update of each leaf that matches, and of each row of a scanned leaf; it keeps no state.

  Args:
    transform: `(update, parameter) -> update`, of a leaf or of one row.
    matches: one bool per leaf by path, [1], or one per row [R].
  """

  def leaf(path: str, update: jax.Array, param: jax.Array) -> jax.Array:
    match = matches[path]
    if not match.any():
      return update
    changed = (jax.vmap(transform) if trees.is_scanned(path) else transform)(update, param)
    return changed if match.all() else jnp.where(along(jnp.asarray(match), update), changed, update)

  def update(updates: trees.Tree, params: trees.Tree) -> trees.Tree:
    return trees.map_with_path(leaf, updates, params)

  return optax.stateless(update)
