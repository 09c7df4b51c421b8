"""Scales the learning rate of single entries: by depth, for the head, by name."""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dnt import errors, trees
from dnt.config import typed
from dnt.models import depth, freeze
from dnt.optim import rows


def factors(config: typed.Finetune, entries: Sequence[depth.Entry], owners: Sequence[int]) -> np.ndarray:
  """Returns one factor per entry.

  The factor is layer_decay ** (distance to the head) x head_lr_mult (head only) x the first matching factor of `rates`.
  The distance counts the entries with parameters: a dropout between two layers does not part them.

  Args:
    config: the section `finetune` of a validated config.
    entries: the depth list.
    owners: indices of the entries with parameters, in order. The last is the head; later entries are treated like it.

  Returns:
    float64 [entries].
  """
  distance = len(owners) - np.searchsorted(owners, np.arange(len(entries)), side='right')
  result = config.layer_decay**distance * np.where(distance == 0, config.head_lr_mult, 1.0)
  for index, entry in enumerate(entries):
    named = (factor for pattern, factor in config.rates if re.fullmatch(pattern, entry.name))
    result[index] *= next(named, 1.0)
  return result


def check(config: typed.Finetune, leaves: rows.Leaves, partition: freeze.Partition) -> None:
  """Refuses factors for entries that never train.

  Args:
    config: the section `finetune` of a validated config.
    leaves: all parameters.
    partition: that of the last phase, which trains the most.

  Raises:
    errors.InputError: a pattern in `rates` matches the whole name of no entry that trains.
  """
  names = [leaves.entries[index].name for index in leaves.owners(partition)]
  for pattern, _ in config.rates:
    if not any(re.fullmatch(pattern, name) for name in names):
      raise errors.InputError(
        f'config.finetune.rates: {pattern!r} matches the whole name of no entry that trains: {", ".join(names)}'
      )


def make(config: typed.Finetune, leaves: rows.Leaves) -> list[tuple[str, optax.GradientTransformation]]:
  """Builds the link of the optimizer's chain that applies `factors`; returns no link if all of them are 1.

  Args:
    config: the section `finetune` of a validated config.
    leaves: all parameters.
  """
  result = factors(config, leaves.entries, leaves.owners())
  if (result == 1).all():
    return []

  def leaf(path: str, update: jax.Array) -> jax.Array:
    mine = jnp.asarray(result[list(leaves.places[path])], update.dtype)
    return update * (rows.along(mine, update) if trees.is_scanned(path) else mine[0])

  def update(updates: trees.Tree, params: trees.Tree) -> trees.Tree:
    del params
    return trees.map_with_path(leaf, updates)

  return [('rates', optax.stateless(update))]
