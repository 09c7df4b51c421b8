"""The doctor: examines a network before it is trained, says whether it will train, and if not, where and what mends it.

At initialization, over several seeds and on one real batch, by entry of the depth list: the forward signal, dead and
saturated units, how alike two different pictures have become, and how a random gradient at the logits travels back
(its gain by entry estimates the norm of the entry's Jacobian). Then the first optimizer steps are taken for real.
"""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dnt import config as schema
from dnt import errors, experiment, models, steps
from dnt.data import pipeline
from dnt.diagnostics import taps, telemetry
from dnt.models import depth
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib

PICTURES = 8  # of the batch, whose likeness is measured
FIRST_STEPS = 10
VERDICTS = ('trainable', 'vanishing', 'exploding', 'collapsing', 'dead', 'step too large')
# A signal or gradient may shrink or grow by this factor from end to end before it counts as lost.
VANISHING, EXPLODING = telemetry.VANISHING, telemetry.EXPLODING
COLLAPSED = 0.999  # cosine of two different pictures
DEAD = 0.9  # share of an entry's units that are dead, or of its activations that are saturated
GROWN = 1.5  # loss after the first steps over that before
RATIO = 0.5  # update over parameter norm, of the median entry


class Examination(NamedTuple):
  """What was measured; columns are by seed and entry, float64 [seeds, n], with NaN for entries without the figure.

  Attributes:
    entries: names in depth order.
    columns: `activation_variance`, `activation_rms`, `cosine`, `zero`, `dead`, `saturated`, `backward` (norm of a
      random gradient of the logits at each output), `jacobian_gain`, and of the loss `gradient_norm`.
    input_cosine: of the pictures themselves, mean over seeds.
    losses: [seeds, first steps].
    update_ratios: [seeds, first steps], median over entries.
    chance: loss of guessing.
  """

  entries: tuple[str, ...]
  columns: dict[str, np.ndarray]
  input_cosine: float
  losses: np.ndarray
  update_ratios: np.ndarray
  chance: float


class Verdict(NamedTuple):
  """What the doctor says.

  Attributes:
    kind: one of `VERDICTS`.
    entry: where it begins; None where it is the whole network's.
    reason: the figures it rests on, in words.
  """

  kind: str
  entry: str | None
  reason: str


def examine(config: ml_collections.ConfigDict, data: experiment.Data, seeds: int = 3) -> Examination:
  """Measures the network of a training config.

  Args:
    config: a validated training config.
    data: its pictures, from `experiment.load_data`.
    seeds: initializations, from `config.seed` on.

  Raises:
    errors.InputError: a config that does not fit the data or the model.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  mesh_lib.check_batch('config.train.batch_size', config.train.batch_size, mesh, config.train.accumulate)
  run = experiment.make(experiment.resolve(config, data), data.spec)
  names = tuple(row.entry.name for row in run.table)
  with contextlib.closing(pipeline.make_train_feed(run.config, data.train, mesh)) as feed:
    batches = [feed.arrays(step, 1) for step in range(FIRST_STEPS)]
    signal = compile_lib.jit(functools.partial(_signal, run, feed))
    step = compile_lib.jit(steps.make_train_steps(run.telemetry_step, feed.batch_at, 1), donate_argnums=0)
    shown, losses, ratios, cosines = [], [], [], []
    for seed in range(config.seed, config.seed + seeds):
      variables = models.init(run.model, seed, run.spec.image_shape)
      state = mesh_lib.place(run.make_state(variables), mesh_lib.replicated(mesh))
      found, input_cosine = jax.device_get(
        signal({'params': state.params, 'batch_stats': state.batch_stats}, batches[0], jax.random.key(seed))
      )
      rows = []
      for batch in batches:
        state, metrics = step(state, batch, np.int32(1))
        rows.append(jax.device_get(metrics))
      cosines.append(input_cosine)
      losses.append([float(row['loss'][0]) for row in rows])
      ratios.append([_median(row['telemetry']['update_ratio'].values) for row in rows])
      first = rows[0]['telemetry']
      shown.append({**found, 'gradient_norm': first['gradient_norm']})
  columns = {name: np.stack([_whole(each[name], len(names)) for each in shown]) for name in shown[0]}
  columns['activation_variance'] = columns['activation_rms'] ** 2 - columns.pop('activation_mean') ** 2
  before = columns['backward'][:, :-1]
  columns['jacobian_gain'] = np.concatenate([np.full((seeds, 1), np.nan), before / columns['backward'][:, 1:]], 1)
  chance = float(np.log(len(data.spec.class_names)))
  return Examination(names, columns, float(np.mean(cosines)), np.array(losses), np.array(ratios), chance)


def _signal(run: experiment.Experiment, feed: Any, variables: Any, arrays: Any, key: jax.Array) -> Any:
  """The columns of one forward and backward pass of a random gradient, and the likeness of the pictures."""
  images = run.preprocess(feed.batch_at(arrays, 0), None)
  entries = [row.entry for row in run.table]
  called = [row.entry for row in run.table if row.shape is not None]
  rngs = dict(zip(('stochastic_depth', 'dropout'), jax.random.split(key), strict=True))

  def likeness(run_entry, module):
    output = run_entry()
    leaves = [leaf for leaf in jax.tree.leaves(output) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    if leaves:
      module.sow(taps.FOUND, 'cosine', _cosine(leaves[0]), init_fn=lambda: None, reduce_fn=lambda _, new: new)
    return output

  def project(sinks):
    with taps.watching(), depth.watching(likeness):
      logits, updates = run.model.apply(
        {**variables, taps.SINKS: sinks}, images, train=True, rngs=rngs, mutable=['batch_stats', taps.FOUND]
      )
    return jnp.sum(logits * jax.random.normal(key, logits.shape)), updates[taps.FOUND]

  squares, found = jax.grad(project, has_aux=True)(taps.make_sinks(run.table))
  columns = telemetry.activity(found, called, entries)
  columns['backward'] = telemetry.gather(squares, 'sink', called, entries, jnp.sqrt)
  columns['cosine'] = telemetry.gather(found, 'cosine', called, entries)
  return columns, _cosine(images)


def _cosine(x: jax.Array) -> jax.Array:
  """Mean cosine between different ones of the first examples."""
  x = jax.lax.stop_gradient(x)[:PICTURES].astype(jnp.float32)
  x = x.reshape(x.shape[0], -1)
  x = x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)
  count = x.shape[0]
  return (jnp.sum(x @ x.T) - jnp.sum(jnp.square(x))) / max(count * (count - 1), 1)


def _whole(column: telemetry.Column, count: int) -> np.ndarray:
  values = np.full(count, np.nan)
  values[list(column.entries)] = np.asarray(column.values)
  return values


def _median(values: np.ndarray) -> float:
  finite = np.asarray(values)[np.isfinite(values)]
  return float(np.median(finite)) if finite.size else np.inf


def judge(found: Examination) -> Verdict:
  """The verdict on an examination: the first sickness in the order that they cause one another."""
  typical = {name: _over_seeds(column) for name, column in found.columns.items()}
  rms, backward, cosine = typical['activation_rms'], typical['backward'], typical['cosine']
  for name in ('dead', 'saturated'):
    share = typical.get(name)
    if share is not None and np.nanmax(share) > DEAD:
      at = int(np.argmax(np.nan_to_num(share) > DEAD))
      what = 'units are zero for the whole batch' if name == 'dead' else 'activations are saturated'
      return Verdict('dead', found.entries[at], f'{100 * share[at]:.0f} % of its {what}')
  called = np.flatnonzero(~np.isnan(backward) | ~np.isnan(rms))
  first, last = called[0], called[-1]
  for name, signal, onward in (('signal', rms, True), ('gradient', backward, False)):
    if not np.isfinite(signal[called]).all():
      at = called[int(np.argmax(~np.isfinite(signal[called])))]
      return Verdict('exploding', found.entries[at], f'the {name} is not finite')
    start, path = (first, called) if onward else (last, called[::-1])
    ratio = signal / signal[start] if signal[start] > 0 else np.full_like(signal, np.nan)
    end = ratio[path[-1]] if onward is False else ratio[path[-2]] if len(path) > 1 else 1.0
    if not end >= VANISHING:
      at = next((place for place in path if not ratio[place] >= np.sqrt(VANISHING)), path[-1])
      return Verdict('vanishing', found.entries[at], f'the {name} shrinks to {end:.1e} of what it was')
    if end > EXPLODING:
      at = next(place for place in path if ratio[place] > np.sqrt(EXPLODING))
      return Verdict('exploding', found.entries[at], f'the {name} grows to {end:.1e} times what it was')
  hidden = called[:-1] if len(called) > 1 else called
  if cosine[hidden[-1]] > COLLAPSED and found.input_cosine < COLLAPSED:
    at = next(place for place in hidden if cosine[place] > COLLAPSED)
    reason = f'different pictures, of cosine {found.input_cosine:.2f}, leave it with cosine {cosine[at]:.5f}'
    return Verdict('collapsing', found.entries[at], reason)
  before, after = np.median(found.losses[:, 0]), np.median(found.losses[:, -1])
  ratio = float(np.median(found.update_ratios))
  if not np.isfinite(found.losses).all() or after > GROWN * max(before, found.chance) or ratio > RATIO:
    reason = (
      f'the loss goes from {before:.3g} to {after:.3g} in {FIRST_STEPS} steps, which move parameters by {ratio:.1e}'
    )
    return Verdict('step too large', None, f'{reason} of their norm')
  return Verdict('trainable', None, f'the loss goes from {before:.3g} to {after:.3g} in {FIRST_STEPS} steps')


def _over_seeds(column: np.ndarray) -> np.ndarray:
  """The geometric middle; not finite where it is so for most seeds."""
  return np.median(column, axis=0)


def remedies(config: ml_collections.ConfigDict, kind: str) -> list[dict[str, Any]]:
  """Overrides that are likely to mend a network, the likeliest first; those that change nothing are left out.

  Args:
    config: a validated training config.
    kind: of the verdict.
  """
  model = config.model
  small_batch = config.train.batch_size // config.train.accumulate < 16
  norm = {'model.norm': 'layer_norm' if small_batch or model.norm == 'batch_norm' else 'batch_norm'}
  init = {'model.initializer': 'he' if model.activation in ('relu', 'leaky_relu', 'gelu', 'silu') else 'glorot'}
  init |= {'model.init_gain': 1.0}
  relu = {'model.activation': 'relu', 'model.initializer': 'he', 'model.init_gain': 1.0}
  shortcut: dict[str, Any] = {}
  if model.name == 'mlp' and model.block in (None, 'plain'):
    shortcut = {'model.block': 'residual'}
  elif model.name == 'plain':
    shortcut = {'model.name': 'resnet'}
    shortcut |= {'model.width': None} if model.width is not None else {}
  small = {'optim.learning_rate': config.optim.learning_rate / 10}
  smaller = {'optim.learning_rate': config.optim.learning_rate / 100}
  offered = {
    'vanishing': [norm, init, {**shortcut, **norm} if shortcut else {}, {**relu, **norm}],
    'exploding': [norm, init, {'model.init_gain': model.init_gain / 2}],
    'collapsing': [norm, {**shortcut, **norm} if shortcut else {}, init],
    'dead': [norm, {'model.activation': 'leaky_relu'}, init],
    'step too large': [small, smaller, {'clip.name': 'global_norm', **small}],
    'trainable': [],
  }[kind]
  found = []
  for overrides in offered:
    changed = {key: value for key, value in overrides.items() if _value(config, key) != value}
    if changed and changed not in found:
      found.append(changed)
  return found[:3]


def apply(config: ml_collections.ConfigDict, overrides: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """A validated copy of the config with the overrides."""
  changed = ml_collections.ConfigDict(config.to_dict())
  for key, value in overrides.items():
    section, _, name = key.rpartition('.')
    with changed[section].ignore_type():
      changed[section][name] = value
  schema.validate(changed)
  return changed


def try_out(
  config: ml_collections.ConfigDict, data: experiment.Data, offered: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], Verdict, float]]:
  """Examines each set of overrides and ranks them: healthy ones first, then by the loss after the first steps.

  Returns:
    (overrides, verdict, loss) of each, the best first; the loss is infinite where it is not finite, and for overrides
    that this network cannot take, which say so in the verdict's reason.
  """
  tried = []
  for overrides in offered:
    try:
      found = examine(apply(config, overrides), data, seeds=1)
    except errors.InputError as error:
      tried.append((overrides, Verdict('cannot be built', None, str(error)), np.inf))
      continue
    loss = float(found.losses[0, -1])
    tried.append((overrides, judge(found), loss if np.isfinite(loss) else np.inf))
  return sorted(tried, key=lambda each: (each[1].kind != 'trainable', each[2]))


def _value(config: ml_collections.ConfigDict, key: str) -> Any:
  value = config
  for part in key.split('.'):
    value = value[part]
  return value


def flags(overrides: Mapping[str, Any]) -> str:
  """Overrides as they are written on a command line."""
  return ' '.join(f'--config.{key}={value}' for key, value in overrides.items())
