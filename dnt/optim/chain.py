"""The optimizer: one named chain of clipping, update rule, weight decay and learning rate."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from dnt import config as schema
from dnt import errors, trees
from dnt.models import depth
from dnt.optim import clip, rows


def make(
  config: ml_collections.ConfigDict, schedule: optax.Schedule, params: Any, entries: Sequence[depth.Entry]
) -> optax.GradientTransformation:
  """The optimizer's chain; the state of each link stands under its name.

  Clipping comes first, over the gradients as they are. Then:

  - sgd: L2 decay joins the gradient before the momentum, as in the papers (`torch.optim.SGD`).
  - adamw: decoupled decay (Loshchilov and Hutter 2019), times the learning rate (`torch.optim.AdamW`).
  - lamb: You et al. 2020, algorithm 2; the trust ratio is that of each leaf, 1 where parameter or update is zero.
  - muon (Jordan et al. 2024): momentum made orthogonal for the hidden kernels, Adam for all else; decoupled decay.

  In a scanned stage each row counts as a leaf of its own, so that both layouts train alike.

  Args:
    config: a validated config; its sections `optim` and `clip` are read.
    schedule: learning rate by step, from `schedules.make`; the chain counts its steps as TrainState does.
    params: the trainable parameters, nested dicts of arrays or shapes.
    entries: the depth order, from `depth.entries`.

  Raises:
    errors.InputError: decay on a pattern that no path matches, or muon for a network without hidden kernels.
  """
  optim = config.optim
  clipping = [] if config.clip.name == 'none' else [('clip', clip.make(config.clip, params, entries))]
  decay = [('decay', _decay(optim, params, entries))] if optim.weight_decay else []
  adam = optax.scale_by_adam(optim.b1, optim.b2, optim.epsilon)
  if optim.name == 'sgd':
    rule = [*decay, ('momentum', optax.trace(optim.momentum, optim.nesterov))]
  elif optim.name == 'adamw':
    rule = [('adam', adam), *decay]
  elif optim.name == 'lamb':
    rule = [('adam', adam), *decay, ('trust_ratio', rows.by_row(optax.scale_by_trust_ratio()))]
  elif optim.name == 'muon':
    rule = [('muon', _muon(optim, adam, params, entries)), *decay]
  else:
    raise errors.unknown('optimizer', optim.name, schema.SCHEMA['optim']['name'].choices)
  return optax.named_chain(*clipping, *rule, ('learning_rate', optax.scale_by_learning_rate(schedule)))


def _decay(
  optim: ml_collections.ConfigDict, params: Any, entries: Sequence[depth.Entry]
) -> optax.GradientTransformation:
  """Adds weight_decay x parameter to the updates of the paths that match, by their names in the unrolled layout."""
  places = rows.places(params, entries)
  # One bool a row: a pattern may name one block of a scanned stage.
  matches = {
    path: np.array([re.search(optim.weight_decay_on, name) is not None for name in rows.names(path, place, entries)])
    for path, place in places.items()
  }
  if not any(match.any() for match in matches.values()):
    path, place = next(iter(places.items()))
    example = rows.names(path, place, entries)[0]
    raise errors.InputError(
      f'optim.weight_decay_on={optim.weight_decay_on!r} matches no parameter; their paths are like {example!r} '
      '(--config.optim.weight_decay=0 turns decay off)'
    )

  def leaf(path: str, update: jax.Array, param: jax.Array) -> jax.Array:
    match = matches[path]
    if not match.any():
      return update
    if match.all():
      return update + optim.weight_decay * param
    return update + rows.along(jnp.asarray(optim.weight_decay * match, param.dtype), param) * param

  return optax.stateless(lambda updates, params: trees.map_with_path(leaf, updates, params))


def _muon(
  optim: ml_collections.ConfigDict,
  adam: optax.GradientTransformation,
  params: Any,
  entries: Sequence[depth.Entry],
) -> optax.GradientTransformation:
  """Muon on hidden kernels, Adam on the rest, both at the same learning rate as in `optax.contrib.muon`.

  Hidden as in Jordan's readme: the dense and convolution kernels but those of stem and head. A kernel HWIO is the
  matrix [H W I, O]; the update is scaled by sqrt(max(1, O / (H W I))). Nesterov's momentum is Muon's alone.
  """
  places = rows.places(params, entries)
  ends = rows.kernel_ends(places)

  def dimensions(path: str, param: Any) -> Any:
    first = 1 if depth.is_scanned(path) else 0  # an axis that is not named is a batch axis: the rows
    hidden = rows.is_kernel(path) and not set(ends).issuperset(places[path])
    if not hidden or param.ndim - first not in (2, 4):
      return optax.MaskedNode()
    return optax.contrib.MuonDimensionNumbers(tuple(range(first, param.ndim - 1)), (param.ndim - 1,))

  def scale(update: jax.Array, axes: optax.contrib.MuonDimensionNumbers) -> jax.Array:
    fan_in = math.prod(update.shape[axis] for axis in axes.reduction_axis)
    return update * math.sqrt(max(1.0, update.shape[-1] / fan_in))

  matrices = trees.map_with_path(dimensions, params)
  labels = trees.map_with_path(lambda _, axes: 'muon' if axes else 'adam', matrices)
  if 'muon' not in jax.tree.leaves(labels):
    raise errors.InputError(
      "optim.name='muon' is for the kernels between the first and the last entry, and this network has none; "
      "use 'sgd', 'adamw' or 'lamb'"
    )
  muon = optax.chain(
    optax.contrib.scale_by_muon(beta=optim.momentum, nesterov=optim.nesterov, weight_dimension_numbers=matrices),
    optax.stateless(lambda updates, _: jax.tree.map(scale, updates, matrices)),
  )
  return optax.partition({'muon': muon, 'adam': adam}, labels)
