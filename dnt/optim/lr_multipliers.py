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

  A `layer_decay` beside `trainable='head'` is for `config.relations`, which leaves it to a config file.

  Args:
    config: the section `finetune` of a validated config.
    leaves: all parameters.
    partition: that of the last phase, which trains the most.

  Raises:
    errors.InputError: the head never trains and has a factor, only the head trains and others have one, or a pattern in
      `rates` matches the whole name of no entry that trains.
  """
  head, trained = leaves.owners()[-1], leaves.owners(partition)
  name = leaves.entries[head].name
  if config.head_lr_mult != 1 and head not in trained:
    raise errors.InputError(
      f'config.finetune.head_lr_mult={config.head_lr_mult} is a factor on the rate of {name}, which never trains; set '
      'it to 1, or let the head train (finetune.trainable, finetune.unfreeze)'
    )
  if config.layer_decay != 1 and trained == (head,) and config.trainable != 'head':
    raise errors.InputError(
      f'config.finetune.layer_decay={config.layer_decay} is a factor on the rates below {name}, and nothing else '
      'trains; set it to 1, or let more train (finetune.trainable, finetune.unfreeze)'
    )
  names = [leaves.entries[index].name for index in trained]
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
