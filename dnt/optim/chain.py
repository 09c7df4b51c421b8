"""The optimizer: one named chain of clipping, update rule, weight decay and learning rate."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from dnt import config as schema
from dnt import errors, trees
from dnt.models import depth, freeze
from dnt.optim import clip, rates, rows


def make(
  config: ml_collections.ConfigDict,
  schedule: optax.Schedule,
  params: Any,
  entries: Sequence[depth.Entry],
  cuts: Sequence[freeze.Cut] = (freeze.ALL,),
) -> optax.GradientTransformation:
  """The optimizer's chain over the parameters that train; the state of each link stands under its name.

  Clipping comes first, over the gradients as they are. Then:

  - sgd: L2 decay joins the gradient before the momentum, as in the papers (`torch.optim.SGD`).
  - adamw: decoupled decay (Loshchilov and Hutter 2019), times the learning rate (`torch.optim.AdamW`).
  - lamb: You et al. 2020, algorithm 2; the trust ratio is that of each leaf, 1 where parameter or update is zero.
  - muon (Jordan et al. 2024): momentum made orthogonal for the hidden kernels, Adam for all else; decoupled decay.

  Last come the factors of single entries on the learning rate, if there are any, and the rate.

  In a scanned stage each row counts as a leaf of its own, so that both layouts train alike. Parameters that begin to
  train later have a rule of their own (`stage1`, ...): under a shared count Adam would take its first steps for later
  ones, and correct their moments too little.

  Args:
    config: a validated config; its sections `optim`, `clip` and `finetune` are read.
    schedule: learning rate by step, from `schedules.make`; the chain counts its steps as TrainState does.
    params: all parameters, nested dicts of arrays or shapes.
    entries: the depth order, from `depth.entries`.
    cuts: of the stages of the run up to the one that the chain is for, each with more to train than the one before.

  Raises:
    errors.InputError: a pattern that matches nothing, or muon for a network without hidden kernels.
  """
  trainable, _ = cuts[-1].split(params)
  clipping = [] if config.clip.name == 'none' else [('clip', clip.make(config.clip, trainable, entries))]
  if len(cuts) == 1:
    rule = _rule(config, params, trainable, entries)
  else:
    rule, before = [], set()
    for number, cut in enumerate(cuts):
      added = {path: leaf for path, leaf in trees.flatten(cut.split(params)[0]).items() if path not in before}
      before |= added.keys()
      if added:
        own = _rule(config, params, trees.unflatten(added), entries)
        own = (
          [(f'stage{number}', optax.named_chain(*own))] if number else own
        )  # the first stage's names are those of all
        rule += [(name, _only(link, frozenset(added))) for name, link in own]
  return optax.named_chain(
    *clipping,
    *rule,
    *rates.make(config.finetune, params, trainable, entries),
    ('learning_rate', optax.scale_by_learning_rate(schedule)),
  )


def advance(optimizer: optax.GradientTransformation, state: Any, params: Any) -> Any:
  """The state of the chain of the next stage: what trained before goes on, what begins to train starts anew.

  Args:
    optimizer: the chain of the next stage, from `make` with one cut more.
    state: of the chain before it.
    params: the parameters that train from now on.
  """
  fresh = optimizer.init(params)
  return type(fresh)((name, state.get(name, link)) for name, link in fresh.items())


def _only(rule: optax.GradientTransformation, paths: frozenset[str]) -> optax.GradientTransformation:
  """A rule for the leaves at these paths; the others pass as they are."""

  def inside(tree):
    return trees.split(tree, paths.__contains__)

  def update(updates, state, params):
    own, others = inside(updates)
    own, state = rule.update(own, state, inside(params)[0])
    return trees.merge(own, others), state

  return optax.GradientTransformation(lambda params: rule.init(inside(params)[0]), update)


def _rule(
  config: ml_collections.ConfigDict, whole: Any, params: Any, entries: Sequence[depth.Entry]
) -> list[tuple[str, optax.GradientTransformation]]:
  """Update rule and weight decay of `params`, a part of the parameters `whole`."""
  optim = config.optim
  decay = _decay(config, whole, params, entries)
  adam = optax.scale_by_adam(optim.b1, optim.b2, optim.epsilon)
  if optim.name == 'sgd':
    return [*decay, ('momentum', optax.trace(optim.momentum, optim.nesterov))]
  if optim.name == 'adamw':
    return [('adam', adam), *decay]
  if optim.name == 'lamb':
    return [('adam', adam), *decay, ('trust_ratio', rows.by_row(optax.scale_by_trust_ratio()))]
  if optim.name == 'muon':
    return [('muon', _muon(optim, adam, whole, params, entries)), *decay]
  raise errors.unknown('optimizer', optim.name, schema.SCHEMA['optim']['name'].choices)


def _decay(
  config: ml_collections.ConfigDict, whole: Any, params: Any, entries: Sequence[depth.Entry]
) -> list[tuple[str, optax.GradientTransformation]]:
  """Weight decay of the paths that match, by their names in the unrolled layout.

  With L2-SP (Li et al. 2018, eq. 4) it pulls all but the head to where it began to train, by a strength of its own.
  """
  optim, strength = config.optim, config.finetune.l2_sp
  if not optim.weight_decay and not strength:
    return []
  head = max(index for place in rows.places(whole, entries).values() for index in place)
  places = rows.places(params, entries)
  # One bool a row: a pattern may name one block of a scanned stage.
  matches = {
    path: np.array([re.search(optim.weight_decay_on, name) is not None for name in rows.names(path, place, entries)])
    for path, place in rows.places(whole, entries).items()
  }
  if not any(match.any() for match in matches.values()):
    path, place = next(iter(places.items()))
    example = rows.names(path, place, entries)[0]
    raise errors.InputError(
      f'optim.weight_decay_on={optim.weight_decay_on!r} matches no parameter; their paths are like {example!r} '
      '(--config.optim.weight_decay=0 turns decay off)'
    )

  if not strength:
    return [('decay', optax.stateless(_pull(matches, optim.weight_decay)))]
  # The head has nothing to go back to.
  of_head = {path: match & (np.array(places[path]) == head) for path, match in matches.items() if path in places}
  others = {path: match & (np.array(places[path]) != head) for path, match in matches.items() if path in places}
  links = [('decay', optax.stateless(_pull(of_head, optim.weight_decay)))] if optim.weight_decay else []
  pull = _pull(others, strength)

  def update(updates, start, params):
    return pull(updates, jax.tree.map(jnp.subtract, params, start)), start

  # A copy: the step donates the parameters' buffers.
  return [*links, ('l2_sp', optax.GradientTransformation(lambda params: jax.tree.map(jnp.array, params), update))]


def _pull(matches: Mapping[str, np.ndarray], strength: float) -> Callable[[Any, Any], Any]:
  """`(updates, params) -> updates` with strength x parameter added where it matches."""

  def leaf(path: str, update: jax.Array, param: jax.Array) -> jax.Array:
    match = matches[path]
    if not match.any():
      return update
    if match.all():
      return update + strength * param
    return update + rows.along(jnp.asarray(strength * match, param.dtype), param) * param

  return lambda updates, params: trees.map_with_path(leaf, updates, params)


def _muon(
  optim: ml_collections.ConfigDict,
  adam: optax.GradientTransformation,
  whole: Any,
  params: Any,
  entries: Sequence[depth.Entry],
) -> optax.GradientTransformation:
  """Muon on hidden kernels, Adam on the rest, both at the same learning rate as in `optax.contrib.muon`.

  Hidden as in Jordan's readme: the dense and convolution kernels but those of stem and head. A kernel HWIO is the
  matrix [H W I, O]; the update is scaled by sqrt(max(1, O / (H W I))). Nesterov's momentum is Muon's alone.
  """
  places = rows.places(params, entries)
  ends = rows.kernel_ends(rows.places(whole, entries))

  def dimensions(path: str, param: Any) -> Any:
    first = 1 if trees.is_scanned(path) else 0  # an axis that is not named is a batch axis: the rows
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
