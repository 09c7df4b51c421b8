"""Examines a network before training: predicts whether it will train, and if not, where it fails and how to fix it.

It takes the first steps of training, over several seeds, with the telemetry of each step. The first step shows each
entry of the depth list at initialization on one real batch: the signal forward, the gradient backward, dead and
saturated units, and how similar the outputs for different images have become.
"""

import contextlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dnt import config as schema
from dnt import errors, models
from dnt.config import keys, typed
from dnt.data import pipeline
from dnt.diagnostics.verdicts import Kind, Verdict
from dnt.models import captures, depth, function_calls, initializers, stage
from dnt.optim import chain, schedules
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.training import budget, datasets, experiment, initialize, open_options, telemetry

IMAGES = 8  # images of the batch whose similarity is measured
FIRST_STEPS = 10
# A signal or gradient may shrink or grow by this factor from end to end before it counts as lost.
VANISHING, EXPLODING = telemetry.VANISHING, 1e3
FAINT = 1e-5  # limit for the product of both factors, which sets the size of the gradients at the kernels
MOVES = telemetry.UPDATE_RATIOS[0]  # update over parameter norm of an entry that trains although the signal vanishes
ABRUPT = 1e-12  # a signal or gradient of this size does not become zero in one entry by shrinking
COLLAPSED = 0.9999  # cosine of two different images
ALIKE_AT_GUESSING = 0.98  # the same, if the first steps do not lower a loss that is that of guessing
GUESSING = 0.02  # largest distance from the loss of guessing, as a fraction of it, that counts as guessing
DEAD = 0.9  # fraction of an entry's units that are dead, or of its activations that are saturated
GROWN = 10.0  # loss after the first steps over the loss before
RATIO = 0.1  # update over parameter norm, of the median entry, if the loss stays above that of guessing
LAST_EXAMINED = 3  # number of the last of the first steps whose mean loss measures the result of the first steps
HEALTHY_UPDATE = 1e-3  # update over parameter norm of a first step, for the suggested rate
BATCH_NORM_OFFERED_FROM = 16  # fewest images of its statistics with which batch_norm is offered
# The initializer with which each activation keeps the norm of a signal.
FITTING = {
  'relu': 'he',
  'leaky_relu': 'he',
  'gelu': 'he',
  'silu': 'he',
  'sigmoid': 'glorot',
  'tanh': 'orthogonal',
  'identity': 'orthogonal',
}


class Examination(NamedTuple):
  """Holds the measurements of an examination.

  Attributes:
    entries: names in depth order.
    columns: float64 [seeds, entries] by quantity: those of `metric_names.EntryRow`, and

      - `activation_variance`: of the output, over examples, positions and units,
      - `cosine`: mean cosine of the angle between the outputs for two different images,
      - `jacobian_gain`: the gradient's norm at the output of the entry before, over the norm at this entry's output,
      - `update_ratio`: mean over the first steps,
      - `first_update_ratio`: of the first step that moves parameters.

      NaN: the entry lacks the quantity; infinite: the value was not finite.
    input_cosine: the cosine of the images themselves, as the network receives them.
    losses: [seeds, first steps].
    update_ratios: [seeds, first steps], median over the entries that do not start at zero; NaN if all do.
    learning_rates: [first steps].
    peak_rate: the largest learning rate of the whole run.
    scale_free: see `chain.is_scale_free`.
    guessing_loss: loss of guessing.
    input_rms: the RMS of the images, as the network receives them.
    outputs: logits of the batch of the step that the columns describe, as training computes them (batch_norm takes the
      statistics of the batch), float64 [images, classes].
    batch_statistics: whether the first steps normalize anything by the batch, as batch_norm does; frozen norms may not.
  """

  entries: tuple[str, ...]
  columns: dict[str, np.ndarray]
  input_cosine: float
  losses: np.ndarray
  update_ratios: np.ndarray
  learning_rates: np.ndarray
  peak_rate: float
  scale_free: bool
  guessing_loss: float
  input_rms: float
  outputs: np.ndarray
  batch_statistics: bool


def examine(
  config: typed.Config,
  data: datasets.Data,
  seeds: int = 3,
  log: Callable[[str], None] = lambda text: None,
) -> Examination:
  """Measures the network of a training config.

  Args:
    config: a validated training config.
    data: its images, from `datasets.load`.
    seeds: number of initializations, from `config.seed` on; pretrained weights (`config.train.init_from`) leave nothing
      to draw, so that there is one.
    log: receives a status message for each step.

  Raises:
    errors.InputError: the config does not fit the data or the model, or pretrained weights do not fit the model.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  mesh_lib.check_batch('config.train.batch_size', config.train.batch_size, mesh, config.train.accumulate)
  if config.optim.learning_rate == schema.AUTO:
    raise errors.InputError(
      'config.optim.learning_rate=auto is not possible here, as it is found when a run starts; set a rate '
      '(python -m dnt.main --mode=lr_find finds one)'
    )
  run = experiment.make(open_options.resolve(config, data), data.spec)
  budget.check_training(run, mesh)
  seeds = 1 if data.weights else seeds
  shown = []
  with contextlib.closing(pipeline.make_train_loader(run.config, data.train, mesh)) as loader:
    shardings = (run.shardings(mesh, run.abstract_state()), mesh_lib.replicated(mesh))
    step = compile_lib.jit(_make_step(run, loader.batch_at), mesh, donate_argnums=0, out_shardings=shardings)
    outputs = compile_lib.jit(_make_outputs(run, loader.batch_at), mesh)
    batches: list[Any] = []
    logits: list[Any] = []  # of the first seed, up to the step that `_initial` returns
    for seed in range(seeds):
      variables = initialize.load_new(run, data.weights) if data.weights else models.init(run.trace, config.seed + seed)
      state = initialize.begin(run, mesh, variables)
      rows = []
      for index in range(FIRST_STEPS):
        doing = 'compiling' if not seed and not index else f'step {index + 1} of {FIRST_STEPS}'
        log(f'seed {seed + 1} of {seeds}: {doing}')
        if not seed:
          batches.append(loader.arrays(index, 1))
        if not seed and not any(map(_is_initial, rows)):
          logits.append(jax.device_get(outputs(state, batches[index])))
        state, metrics = step(state, batches[index])
        rows.append(jax.device_get(metrics))
      shown.append(rows)
  drawn = any(map(_is_initial, shown[0]))
  return _examination(run, shown, np.asarray(logits[-1 if drawn else 0], np.float64))


def _make_step(run: experiment.Experiment, batch_at: Callable) -> Callable:
  """Returns the run's step with its telemetry and the similarity of different images at each entry.

  Args:
    run: the experiment.
    batch_at: the loader's `batch_at`.

  Returns:
    `(state, arrays) -> (state, metrics)`; metrics: as with telemetry, with an additional column `cosine`, and the
    float32 scalar `input_cosine`. Both are NaN for micro-batches of one image.
  """
  called = [row.entry for row in run.table if row.shape is not None]
  parts = run.config.train.accumulate

  def likeness(call, module):
    output = call()
    examples = _micro_batch(run.config)
    leaves = [leaf for leaf in jax.tree.leaves(output) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    outputs = [leaf for leaf in leaves if leaf.shape[:1] == (examples,)]
    if outputs:
      with function_calls.ignored():
        cosine = _cosine(outputs[0])
      module.sow(captures.CAPTURES, 'cosine', cosine, init_fn=lambda: None, reduce_fn=lambda _, new: new)
    return output

  phase = run.phases[0]
  params = run.abstract_state().params
  plain = telemetry.make(run.config, params, phase.partition.split(params)[0], run.table)

  def measure(params, gradient, updates, captured, gradient_captures):
    cosine = telemetry.gather(captured, 'cosine', called, run.entries, lambda total: total / parts)
    return plain.measure(params, gradient, updates, captured, gradient_captures) | {'cosine': cosine}

  watched = telemetry.Telemetry(plain.gradient_captures, measure)
  train_step = run.make_step(phase.partition, phase.optimizer, telemetry=watched)

  def step(state, arrays):
    batch = batch_at(arrays, state.step)
    with depth.intercept(likeness):
      state, metrics = train_step(state, batch)
    images = run.preprocess(batch, None)
    rms = jnp.sqrt(jnp.mean(jnp.square(images.astype(jnp.float32))))
    return state, metrics | {'input_cosine': _cosine(images), 'input_rms': rms}

  return step


def _make_outputs(run: experiment.Experiment, batch_at: Callable) -> Callable:
  """Returns the logits of a step's batch in training, as a pure function `(state, arrays) -> float32 [B, classes]`.

  In evaluation, the running statistics of a network that has not trained would normalize nothing.
  """

  def outputs(state, arrays):
    images = run.preprocess(batch_at(arrays, state.step), None)
    key = jax.random.wrap_key_data(state.rng, impl=initializers.PRNG)
    rngs = dict.fromkeys(stage.RNGS, key)
    variables = {'params': mesh_lib.gather_for_use(state.params), 'batch_stats': state.batch_stats}
    with run.phases[0].partition.running():
      logits, _ = run.model.apply(variables, images, train=True, rngs=rngs, mutable=['batch_stats'])
    return logits.astype(jnp.float32)

  return outputs


def _cosine(x: jax.Array) -> jax.Array:
  """Returns the mean cosine of the angle between two different examples, over the first examples of the batch."""
  x = jax.lax.stop_gradient(x)[:IMAGES].astype(jnp.float32)
  x = x.reshape(x.shape[0], -1)
  # Divide by the largest value first: the squares of a signal that has nearly vanished would underflow.
  x = x / jnp.maximum(jnp.max(jnp.abs(x), axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)
  x = x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)
  count = x.shape[0]
  # The default precision of accelerators is coarser than what `COLLAPSED` leaves to 1.
  products = jnp.matmul(x, x.T, precision='highest')
  return (jnp.sum(products) - jnp.sum(jnp.square(x))) / (count * (count - 1) or jnp.nan)


def _examination(
  run: experiment.Experiment, shown: Sequence[Sequence[Mapping[str, Any]]], outputs: np.ndarray
) -> Examination:
  """Builds the examination from the metrics of the steps, by seed and step."""
  names = tuple(row.entry.name for row in run.table)
  rows = [[metrics['telemetry'] for metrics in each] for each in shown]
  first = [_initial(each) for each in shown]
  columns = {name: np.stack([_whole(each[name], len(names)) for each in first]) for name in first[0]}
  absent = np.full((len(rows), len(names)), np.nan)
  mean, rms = (columns.setdefault(f'activation_{name}', absent) for name in ('mean', 'rms'))
  gradient, called = columns['output_gradient_norm'], list(first[0]['output_gradient_norm'].entries)
  columns['jacobian_gain'] = absent.copy()
  with np.errstate(divide='ignore', invalid='ignore'):  # for values that are zero or not finite
    columns['activation_variance'] = rms**2 - mean**2
    columns['jacobian_gain'][:, called[1:]] = gradient[:, called[:-1]] / gradient[:, called[1:]]
  columns['update_ratio'] = np.mean(
    [[_whole(step['update_ratio'], len(names)) for step in each] for each in rows], axis=1
  )
  moving = [
    next((step for step in each if np.nanmax(step['update_ratio'].values, initial=0) > 0), each[0]) for each in rows
  ]
  columns['first_update_ratio'] = np.stack([_whole(step['update_ratio'], len(names)) for step in moving])
  if _micro_batch(run.config) == 1:
    columns['cosine'] = absent  # there is no second image
  return Examination(
    names,
    columns,
    input_cosine=float(np.mean([each[0]['input_cosine'] for each in shown])),
    input_rms=float(np.mean([each[0]['input_rms'] for each in shown])),
    outputs=outputs,
    losses=np.array([[step['loss'] for step in each] for each in shown], np.float64),
    update_ratios=np.array([_ratios(each) for each in rows]),
    learning_rates=np.array([step['learning_rate'] for step in shown[0]], np.float64),
    peak_rate=schedules.peak_rate(run.config.optim),
    scale_free=chain.is_scale_free(run.config.optim),
    guessing_loss=float(np.log(len(run.spec.class_names))),
    batch_statistics=bool(run.phases[0].partition.split_statistics(run.abstract_state().batch_stats)[0]),
  )


def _initial(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, telemetry.Column]:
  """Returns the telemetry of the first step where no entry's parameters are all zero, else of the first step."""
  return next(filter(_is_initial, rows), rows[0])['telemetry']


def _is_initial(metrics: Mapping[str, Any]) -> bool:
  """Whether no entry's parameters are all zero in a step; zero kernels pass no gradient."""
  return bool(np.all(metrics['telemetry']['parameter_norm'].values))


def _ratios(steps: Sequence[Mapping[str, telemetry.Column]]) -> list[float]:
  """Returns for each step the median update ratio over the entries that do not start at zero; NaN if all do.

  Parameters that start at zero consist of their updates: an update is a fraction of their norm that says nothing of the
  learning rate, see `telemetry.floors`.
  """
  moving = np.flatnonzero(steps[0]['parameter_norm'].values)
  ratios = [np.asarray(step['update_ratio'].values, np.float64)[moving] for step in steps]
  return [float(np.median(np.where(np.isfinite(each), each, np.inf))) if each.size else np.nan for each in ratios]


def _whole(column: telemetry.Column, count: int) -> np.ndarray:
  values, whole = np.asarray(column.values, np.float64), np.full(count, np.nan)
  whole[list(column.entries)] = np.where(np.isfinite(values), values, np.inf)
  return whole


def judge(examination: Examination) -> Verdict:
  """Returns the verdict on an examination: the first problem, in an order where earlier problems cause later ones."""
  typical = {name: np.median(column, axis=0) for name, column in examination.columns.items()}
  rms, gradient = typical['activation_rms'], typical['output_gradient_norm']
  # A branch whose last kernel starts at zero outputs zero but is not dead: its parameters have a gradient.
  waking = (rms == 0) & (typical['gradient_norm'] > 0)
  measured = np.flatnonzero(~np.isnan(rms) & ~np.isnan(gradient))
  hidden = np.array([place for place in measured[:-1] if not waking[place]], int)  # without the logits, the last output
  faded = np.min(rms, where=rms > 0, initial=1.0) < ABRUPT  # if so, a value of zero has shrunk to zero
  return (
    (None if faded else _dead(examination, typical, waking))
    or _not_finite(examination, 'signal', rms, measured)
    or _not_finite(examination, 'gradient', gradient, measured[::-1])
    or (None if faded else _cut_off(examination, gradient, measured))
    or (_lost(examination, typical, hidden) if len(hidden) else None)
    or (_collapsed(examination, typical['cosine'], hidden) if len(hidden) else None)
    or _stepped(examination)
  )


def _dead(examination: Examination, typical: Mapping[str, np.ndarray], waking: np.ndarray) -> Verdict | None:
  for name, what in (('dead', 'units are zero for the whole batch'), ('saturated', 'activations are saturated')):
    if name in typical:
      sick = (typical[name] > DEAD) & ~waking
      if sick.any():
        at = int(np.argmax(sick))
        return Verdict(Kind.DEAD, examination.entries[at], f'{100 * typical[name][at]:.0f} % of its {what}')
  return None


def _not_finite(examination: Examination, name: str, norms: np.ndarray, path: np.ndarray) -> Verdict | None:
  at = next((place for place in path if not np.isfinite(norms[place])), None)
  return None if at is None else Verdict(Kind.EXPLODING, examination.entries[at], f'the {name} is not finite')


def _cut_off(examination: Examination, gradient: np.ndarray, measured: np.ndarray) -> Verdict | None:
  """Detects what lets no gradient pass in a user's own module: dead units outside of any entry, or `stop_gradient`."""
  for at, after in zip(measured[-2::-1], measured[:0:-1], strict=True):
    if gradient[measured[0]] == gradient[at] == 0 and gradient[after] > ABRUPT:
      if not np.median(examination.columns['cosine'][:, after]) > COLLAPSED:  # images differ behind it
        reason = f'no gradient reaches it from {examination.entries[after]}, which its signal reaches (stop_gradient?)'
        return Verdict(Kind.CUT_OFF, examination.entries[at], reason)
      reason = f'no gradient reaches it from {examination.entries[after]}, because the units between are dead'
      return Verdict(Kind.DEAD, examination.entries[at], reason)
  return None


def _lost(examination: Examination, typical: Mapping[str, np.ndarray], hidden: np.ndarray) -> Verdict | None:
  """Detects a signal that vanishes or explodes from the first hidden entry to the last, or a gradient on the way back.

  The reported entry is the first with half of the excessive change, on a log scale.
  """
  moved = typical['update_ratio'][hidden]
  rates = np.mean(examination.learning_rates) or np.inf
  moves = examination.scale_free and np.nanmin(moved, initial=np.inf) * examination.peak_rate / rates > MOVES
  ends = {}
  for name, path in (('signal', hidden), ('gradient', hidden[::-1])):
    norms = typical['activation_rms' if name == 'signal' else 'output_gradient_norm']
    start = norms[path[0]]
    ratios = norms[path] / start if start > 0 else np.zeros(len(path))
    ends[name] = path, ratios
    if ratios[-1] < VANISHING and not moves:
      at = path[int(np.argmax(ratios < np.sqrt(VANISHING)))]
      return Verdict(Kind.VANISHING, examination.entries[at], f'the {name} {_shrinks(ratios[-1])}')
    if ratios[-1] > EXPLODING:
      at = path[int(np.argmax(ratios > np.sqrt(EXPLODING)))]
      return Verdict(Kind.EXPLODING, examination.entries[at], f'the {name} grows to {ratios[-1]:.1e} times its size')
  signal, back = (ratios[-1] for _, ratios in ends.values())
  if signal * back < FAINT and not moves:
    path, ratios = ends['signal' if signal < back else 'gradient']
    at = path[int(np.argmax(ratios < FAINT**0.25))]
    return Verdict(
      Kind.VANISHING, examination.entries[at], f'the signal {_shrinks(signal)}, the gradient {_shrinks(back)}'
    )
  return None


def _shrinks(ratio: float) -> str:
  return f'shrinks to {ratio:.1e} of its size' if ratio > 0 else 'shrinks to less than a float32 can hold'


def _collapsed(examination: Examination, cosine: np.ndarray, hidden: np.ndarray) -> Verdict | None:
  before, after = _losses(examination)
  stands = abs(before - examination.guessing_loss) < GUESSING * examination.guessing_loss and after >= before
  limit = ALIKE_AT_GUESSING if stands else COLLAPSED
  if not np.inf > cosine[hidden[-1]] > limit > examination.input_cosine:
    return None
  at = hidden[int(np.argmax(cosine[hidden] > limit))]
  reason = (
    f'different images enter the network with cosine {examination.input_cosine:.2f} and leave this entry with '
    f'cosine {cosine[at]:.5f}'
  )
  if stands:
    reason += f', and {FIRST_STEPS} steps do not lower the loss ({before:.3g}, then {after:.3g})'
  return Verdict(Kind.COLLAPSING, examination.entries[at], reason)


def _losses(examination: Examination) -> tuple[float, float]:
  """Returns the loss of the first step and the loss after the first steps, as medians over the seeds."""
  return float(np.median(examination.losses[:, 0])), float(np.median(last_loss(examination)))


def last_loss(examination: Examination) -> np.ndarray:
  """Returns the mean loss of the last few of the first steps, by seed."""
  return np.mean(examination.losses[:, -LAST_EXAMINED:], axis=1)


def _stepped(examination: Examination) -> Verdict:
  before, after = _losses(examination)
  ratio = float(np.median(examination.update_ratios))
  reason = f'the loss goes from {before:.3g} to {after:.3g} in {FIRST_STEPS} steps'
  # Large updates alone do no harm: a linear classifier starts with them.
  large = not np.isfinite(examination.losses).all() or after > GROWN * max(before, examination.guessing_loss)
  if large or (ratio > RATIO and after > examination.guessing_loss):
    moves = '' if np.isnan(ratio) else f', which move parameters by {ratio:.1e} of their norm'
    return Verdict(Kind.LARGE_STEP, None, reason + moves)
  return Verdict(Kind.TRAINABLE, None, reason)


def remedies(config: typed.Config, examination: Examination, verdict: Verdict) -> list[dict[str, Any]]:
  """Returns at most three sets of overrides that are likely to fix a network, the likeliest first.

  Each set changes the config.

  Args:
    config: a validated training config.
    examination: its examination.
    verdict: the verdict on it.

  Returns:
    `{'section.key': value}` each; empty for a trainable network, and if no option can affect the problem (such as
    inside a user's own module, or inside a network of pretrained weights).
  """
  model, rate = config.model, schedules.peak_rate(config.optim)
  tenth, hundredth = (float(f'{rate / factor:.2g}') for factor in (10, 100))  # no digits of floating point
  few = norm_batch(config) < BATCH_NORM_OFFERED_FROM
  norm = {'model.norm': 'layer_norm' if model.norm == 'batch_norm' or few else 'batch_norm'}
  init = {'model.initializer': FITTING[model.activation], 'model.init_gain': 1.0}
  fits = (model.initializer, model.init_gain) == tuple(init.values())
  relu = {'model.activation': 'relu', 'model.initializer': 'he', 'model.init_gain': 1.0}
  bypass = shortcut(config, len(examination.entries))
  both = bypass | (norm if bypass and model.norm == 'none' else {})
  adam = {'optim.name': 'adamw', 'optim.learning_rate': 1e-3}
  clip = {'clip.name': 'global_norm', 'optim.learning_rate': tenth}
  if verdict.kind == Kind.TRAINABLE:
    offered = []
  elif verdict.kind == Kind.LARGE_STEP:
    ratios = np.median(examination.update_ratios, 0)
    moved = int(np.argmax(ratios > 0))  # a warm-up may start at a rate of zero
    healthy = examination.learning_rates[moved] * HEALTHY_UPDATE
    sized = float(f'{healthy / ratios[moved]:.0e}') if ratios[moved] > 0 else rate
    offered = [{'optim.learning_rate': each} for each in (sized, tenth, hundredth) if each < rate] + [clip]
  elif verdict.kind == Kind.DEAD:
    offered = [init, norm, {'model.activation': 'leaky_relu'} if model.activation == 'relu' else relu]
  elif model.activation == 'sigmoid' and verdict.kind != Kind.EXPLODING:
    offered = [relu | norm, norm, both, adam]
  elif fits:
    offered = [both, norm, clip if verdict.kind == Kind.EXPLODING else adam, init]
  else:
    offered = [init, norm, both, clip if verdict.kind == Kind.EXPLODING else adam]
  return keep_buildable(config, offered)[:3]


def keep_buildable(config: typed.Config, offered: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns what of each set of overrides changes the config, without repetitions and without what cannot be built.

  Args:
    config: a validated training config.
    offered: `{'section.key': value}` each.
  """
  chosen: list[dict[str, Any]] = []
  for overrides in offered:
    changed = {key: value for key, value in overrides.items() if keys.get(config, key) != value}
    if changed and changed not in chosen and _can_be_built(config, changed):
      chosen.append(changed)
  return chosen


def _micro_batch(config: typed.Config) -> int:
  return config.train.batch_size // config.train.accumulate


def norm_batch(config: typed.Config) -> int:
  """Returns the number of images from which batch_norm takes its statistics."""
  return _micro_batch(config) // (len(jax.devices()) if config.model.norm_sync == 'device' else 1)


def shortcut(config: typed.Config, entries: int) -> dict[str, Any]:
  """Returns overrides that let the signal and the gradient bypass the layers."""
  model = config.model
  if model.name == 'mlp' and model.block in (None, 'plain'):
    return {'model.block': 'residual'}
  if model.name == 'plain':
    # The width counts channels there and is a factor on 16 here.
    return {'model.name': 'resnet'} | ({'model.width': max(1, model.width // 16)} if model.width else {})
  if model.name == 'resnet':
    return {'model.residual_scalar': 0.0}
  if model.name == 'highway' or model.block == 'highway':
    return {'model.gate_bias': -round(float(np.log(entries)), 1)}  # each gate passes a fraction of 1 / entries
  return {}


def _can_be_built(config: typed.Config, overrides: Mapping[str, Any]) -> bool:
  if config.train.init_from and any(key.startswith('model.') for key in overrides):
    return False  # pretrained weights are those of one network
  try:
    models.check(schema.override(config, overrides, 'a remedy').model)
  except errors.InputError:
    return False
  return True


def flags(overrides: Mapping[str, Any]) -> str:
  """Formats overrides as flags of a command line, for a shell."""
  return shlex.join(f'--config.{key}={value}' for key, value in overrides.items())
