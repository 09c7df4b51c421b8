"""Builds the optimizer: one named chain of clipping, update rule, weight decay and learning rate."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dnt import errors, trees
from dnt.config import implied, keys, relations, schema, typed
from dnt.models import freeze
from dnt.optim import clip, lr_multipliers, rows

_LEAST = 0.25  # less than most initializers draw: besides what starts near zero, stems of few channels may feel it


def make(
  config: typed.Config,
  schedule: optax.Schedule,
  leaves: rows.Leaves,
  partitions: Sequence[freeze.Partition] = (freeze.ALL,),
) -> optax.GradientTransformation:
  """Builds the optimizer chain over the trainable parameters; its state is a dict keyed by the name of each link.

  Clipping comes first, on the raw gradients. Then:

  - sgd: adds L2 decay to the gradient before the momentum, as in the papers (`torch.optim.SGD`).
  - adamw: decoupled decay (Loshchilov and Hutter 2019), times the learning rate (`torch.optim.AdamW`).
  - lamb: You et al. 2020, algorithm 2; each leaf that `weight_decay_on` matches has a trust ratio, also with a decay of
    zero, and the others Adam's updates, as in the authors' code and timm. See `_trusted`.
  - muon (Jordan et al. 2024): orthogonalized momentum for the hidden kernels, Adam for the rest; decoupled decay.

  The per-entry learning rate factors, if there are any, and the learning rate come last.

  Each row of a scanned stage counts as a separate leaf, so that both layouts train alike. Parameters that begin to
  train later have a separate rule (`phase1`, ...): with a shared step count, Adam would treat their first steps as
  later ones and correct the bias of their moments too little.

  Args:
    config: a validated config; this function reads its sections `optim`, `clip` and `finetune`.
    schedule: learning rate by step, from `schedules.make`; the chain counts its steps as TrainState does.
    leaves: all parameters.
    partitions: the partitions of the run's phases up to the current one; each trains more than the one before.

  Raises:
    errors.InputError: the rule is muon, or clipping adaptive, and there is no kernel.
  """
  clipping = [] if config.clip.name == 'none' else [('clip', clip.make(config.clip, leaves))]
  if len(partitions) == 1:
    rule = _rule(config, leaves, leaves.trained(partitions[0]))
  else:
    rule, before = [], set()
    for number, partition in enumerate(partitions):
      added = [path for path in leaves.trained(partition) if path not in before]
      before.update(added)
      if added:
        own = _rule(config, leaves, added)
        if number:  # the first phase uses the names of a chain with one phase
          own = [(f'phase{number}', optax.named_chain(*own))]
        rule += [(name, _only(link, frozenset(added))) for name, link in own]
  return optax.named_chain(
    *clipping,
    *rule,
    *lr_multipliers.make(config.finetune, leaves),
    ('learning_rate', optax.scale_by_learning_rate(schedule)),
  )


def check(config: typed.Config, leaves: rows.Leaves, partition: freeze.Partition) -> None:
  """Refuses an optimizer of which a part has nothing to do in a run.

  Args:
    config: a validated config; this function reads its sections `optim` and `finetune`.
    leaves: all parameters.
    partition: that of the last phase, which trains the most.

  Raises:
    errors.InputError: muon, and no hidden kernel trains; or `weight_decay_on` matches nothing that L2-SP could pull or,
      with lamb or where weight decay is not that of the defaults, nothing that trains.
  """
  optim = config.optim
  if optim.name == 'muon' and not _hidden(leaves, leaves.trained(partition)):
    raise errors.InputError(
      "optim.name='muon' is for the kernels between the first and the last entry, and none of them trains (those of "
      "layers that a module scans or maps itself do not count); use 'sgd', 'adamw' or 'lamb'"
    )
  head, trained = leaves.owners()[-1], leaves.named(partition)
  below = [name for index, name in trained if index != head and not trees.is_named(name, config.finetune.reinit)]
  decays = re.compile(optim.weight_decay_on).search
  defaults = schema.SCHEMA['optim']
  asked = any(optim[key] != defaults[key].default for key in ('weight_decay', 'weight_decay_on'))
  if optim.name == 'lamb' and not any(decays(name) for _, name in trained):
    raise errors.InputError(
      f"optim.name='lamb' scales the updates of what optim.weight_decay_on={optim.weight_decay_on!r} matches, and that "
      f"is no parameter that trains; their paths look like {trained[0][1]!r}. Name those to scale, or use 'adamw'"
    )
  if asked and (problem := undecayed(config, leaves, partition)):
    raise errors.InputError(problem)
  # Where the head alone trains it is for `config.relations`, which leaves it to a config file.
  head_alone = relations.failing(schema.BELOW_HEAD, lambda key: keys.get(config, key))
  if config.finetune.l2_sp and not head_alone and not any(map(decays, below)):
    there = f'what trains there has paths like {below[0]!r}' if below else 'nothing that has pretrained values does'
    raise errors.InputError(
      f'finetune.l2_sp={config.finetune.l2_sp} pulls what optim.weight_decay_on={optim.weight_decay_on!r} matches '
      f'below the head, and none of it trains; {there}'
    )


def undecayed(config: typed.Config, leaves: rows.Leaves, partition: freeze.Partition) -> str:
  """Says that the weight decay of a run has nothing to do; empty if it has, or is off. Arguments as for `check`."""
  optim, names = config.optim, [name for _, name in leaves.named(partition)]
  if not optim.weight_decay or any(map(re.compile(optim.weight_decay_on).search, names)):
    return ''
  return (
    f'weight decay has no effect: config.optim.weight_decay_on={optim.weight_decay_on!r} matches no parameter that '
    f'trains; their paths look like {names[0]!r} (--config.optim.weight_decay=0 turns decay off)'
  )


def is_scale_free(optim: typed.Optim) -> bool:
  """Returns whether the update rule divides each gradient by its size, so that small gradients also move parameters."""
  return optim.name != 'sgd'


def advance(optimizer: optax.GradientTransformation, state: Any, params: Any) -> Any:
  """Returns the state for the next phase's chain: keeps the existing links' state and initializes the new ones.

  Args:
    optimizer: the chain of the next phase, from `make` with one more partition.
    state: state of the previous chain.
    params: the parameters that train from now on.
  """
  fresh: Any = optimizer.init(params)
  return type(fresh)((name, state.get(name, link)) for name, link in fresh.items())


def _only(rule: optax.GradientTransformation, paths: frozenset[str]) -> optax.GradientTransformation:
  """Applies a rule to the leaves at these paths only; passes the others unchanged."""

  def inside(tree):
    return trees.split(tree, paths.__contains__)

  def update(updates, state, params=None):
    own, others = inside(updates)
    moved: tuple[trees.Tree, optax.OptState] = rule.update(own, state, inside(params)[0])
    return trees.merge(moved[0], others), moved[1]

  return optax.GradientTransformation(lambda params: rule.init(inside(params)[0]), update)


def _rule(
  config: typed.Config, leaves: rows.Leaves, paths: Sequence[str]
) -> list[tuple[str, optax.GradientTransformation]]:
  """Builds the update rule and weight decay of the leaves at these paths."""
  optim = config.optim
  # One bool per row, because a pattern may name one block of a scanned stage.
  matches = {
    path: np.array([re.search(optim.weight_decay_on, name) is not None for name in leaves.names(path)])
    for path in paths
  }
  decay = _decay(config, leaves, matches)
  constants = implied.rule(optim)
  adam = optax.scale_by_adam(optim.b1, optim.b2, constants['epsilon'])
  if optim.name == 'sgd':
    return [*decay, ('momentum', optax.trace(constants['momentum'], constants['nesterov']))]
  if optim.name == 'adamw':
    return [('adam', adam), *decay]
  if optim.name == 'lamb':
    return [('adam', adam), *decay, ('trust_ratio', rows.by_row(_trusted, matches))]
  if optim.name == 'muon':
    hidden = _hidden(leaves, paths)
    return [('muon', _muon(constants, adam, paths, hidden)) if hidden else ('adam', adam), *decay]
  raise errors.unknown('optimizer', optim.name, schema.SCHEMA['optim']['name'].choices)


def _trusted(update: jax.Array, param: jax.Array) -> jax.Array:
  """Gives an update the norm of its parameter, or at least the bound gamma_l of You et al. 2020, section 3.

  A parameter that starts at zero, as the head of a network that is retrained, would otherwise grow only by the factor
  (1 + learning rate) a step. The bound is `_LEAST` of the norm of a kernel [..., outputs] of variance 1 / fan-in.
  """
  size, length = (jnp.sqrt(jnp.sum(jnp.square(each))) for each in (param, update))
  least = _LEAST * math.sqrt(math.prod(param.shape[-1:]))
  return update * (jnp.maximum(size, least) / jnp.where(length > 0, length, 1))


def _decay(
  config: typed.Config, leaves: rows.Leaves, matches: Mapping[str, np.ndarray]
) -> list[tuple[str, optax.GradientTransformation]]:
  """Builds the weight decay of what matches: one bool per row by path.

  With L2-SP (Li et al. 2018, eq. 4) it pulls all but the head and what `finetune.reinit` names to their starting
  values, with a separate strength.
  """
  optim, strength = config.optim, config.finetune.l2_sp
  if not optim.weight_decay and not strength:
    return []
  if not strength:
    return [('decay', optax.stateless(_pull(matches, optim.weight_decay)))]
  head, new = leaves.owners()[-1], {}  # one bool per row: there are no pretrained values to return to
  for path in matches:
    named = [trees.is_named(name, config.finetune.reinit) for name in leaves.names(path)]
    new[path] = np.array(named) | (np.array(leaves.places[path]) == head)
  of_new = {path: match & new[path] for path, match in matches.items()}
  others = {path: match & ~new[path] for path, match in matches.items()}
  links = [('decay', optax.stateless(_pull(of_new, optim.weight_decay)))] if optim.weight_decay else []
  pull = _pull(others, strength)

  def update(updates, state, params=None):  # the state holds the parameters at the start
    return pull(updates, jax.tree.map(jnp.subtract, params, state)), state

  # We copy the parameters because the step donates their buffers.
  return [*links, ('l2_sp', optax.GradientTransformation(lambda params: jax.tree.map(jnp.array, params), update))]


def _pull(matches: Mapping[str, np.ndarray], strength: float) -> Callable[[Any, Any], Any]:
  """Returns `(updates, params) -> updates`, which adds strength x parameter where it matches."""

  def leaf(path: str, update: jax.Array, param: jax.Array) -> jax.Array:
    match = matches[path]
    if not match.any():
      return update
    if match.all():
      return update + strength * param
    return update + rows.along(jnp.asarray(strength * match, param.dtype), param) * param

  return lambda updates, params: trees.map_with_path(leaf, updates, params)


def _hidden(leaves: rows.Leaves, paths: Sequence[str]) -> dict[str, optax.contrib.MuonDimensionNumbers]:
  """Returns the hidden kernels among these paths: dense and convolution kernels except those of stem and head.

  This is the choice of Jordan's readme. Stem and head are the first and the last kernel of all parameters. Kernels
  that hold, or may hold, several layers are not among them.

  Returns:
    The axes of their inputs and outputs; optax treats the rows' axis, which is neither, as a batch axis.
  """
  ends, found = set(leaves.kernel_ends('optim.name=muon')), {}
  for path in paths:
    if not rows.is_kernel(path) or ends.issuperset(leaves.places[path]):
      continue
    axes, first, last = rows.kernel_axes(path, leaves.shapes), rows.first_axis(path), leaves.shapes[path].ndim
    if len(axes) == 1 and not axes[0][0] and (outputs := last - axes[0][1]) > first:
      found[path] = optax.contrib.MuonDimensionNumbers(tuple(range(first, outputs)), tuple(range(outputs, last)))
  return found


def _muon(
  constants: Mapping[str, Any],
  adam: optax.GradientTransformation,
  paths: Sequence[str],
  hidden: Mapping[str, optax.contrib.MuonDimensionNumbers],
) -> optax.GradientTransformation:
  """Applies Muon to hidden kernels and Adam to the rest, both at the same learning rate as in `optax.contrib.muon`.

  A kernel HWIO becomes the matrix [H W I, O], and Muon scales its update by sqrt(max(1, O / (H W I))). Only Muon uses
  Nesterov momentum.
  """

  def scale(update: jax.Array, axes: optax.contrib.MuonDimensionNumbers) -> jax.Array:
    assert not isinstance(axes.reduction_axis, int) and not isinstance(axes.output_axis, int)  # `_hidden`: tuples
    inputs, outputs = (
      math.prod(update.shape[axis] for axis in each) for each in (axes.reduction_axis, axes.output_axis)
    )
    return update * math.sqrt(max(1.0, outputs / inputs))

  matrices = trees.unflatten({path: hidden.get(path, optax.MaskedNode()) for path in paths})
  labels = trees.map_with_path(lambda _, axes: 'muon' if axes else 'adam', matrices)
  muon = optax.chain(
    optax.contrib.scale_by_muon(
      beta=constants['momentum'], nesterov=constants['nesterov'], weight_dimension_numbers=matrices
    ),
    optax.stateless(lambda updates, _: jax.tree.map(scale, updates, matrices)),
  )
  return optax.partition({'muon': muon, 'adam': adam}, labels)
