"""Takes the first steps of training, over several seeds, and measures each entry of the depth list.

The first step shows each entry at initialization on one real batch: the signal forward, the gradient backward, dead and
saturated units, and how similar the outputs for different images have become.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dnt import config as schema
from dnt import errors, models
from dnt.config import typed
from dnt.data import pipeline
from dnt.diagnostics import bounds
from dnt.models import captures, depth, function_calls, initializers, stage
from dnt.optim import chain, schedules
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.training import budget, datasets, experiment, initialize, losses, open_options, precompile, telemetry

IMAGES = 8  # images of the batch whose similarity is measured
COUNT = 10  # steps that are taken


class Examination(NamedTuple):
  """Holds the measurements of an examination.

  Attributes:
    entries: names in depth order.
    columns: float64 [seeds, entries] by quantity: those of `metric_names.EntryRow`, and

      - `activation_variance`: of the output, over examples, positions and units; the mean of micro-batches,
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
    uniform_loss: loss if all classes are equally likely, as in most networks at the start.
    guessing_loss: the least loss of a prediction that is the same for all images, see `losses.of_constant_predictions`.
    input_rms: the RMS of the images, as the network receives them.
    outputs: logits of the batch of the step that the columns describe, as training computes them (batch_norm takes the
      statistics of the batch), float64 [images, classes].
    batch_statistics: whether the first steps normalize anything by the batch, as batch_norm does; frozen norms may not.
    output_range: the least and the largest logit that the network can give whatever its parameters are, as far as its
      last operations show it: (0, 1) behind a sigmoid; infinite without such an operation.
  """

  entries: tuple[str, ...]
  columns: dict[str, np.ndarray]
  input_cosine: float
  losses: np.ndarray
  update_ratios: np.ndarray
  learning_rates: np.ndarray
  peak_rate: float
  scale_free: bool
  uniform_loss: float
  guessing_loss: float
  input_rms: float
  outputs: np.ndarray
  batch_statistics: bool
  output_range: bounds.Range = bounds.ANY


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
    step = precompile.jit_on_state(run, mesh, _make_step(run, loader.batch_at), run.abstract_state())
    outputs = compile_lib.jit(_make_outputs(run, loader.batch_at), mesh)
    batches: list[Any] = []
    logits: list[Any] = []  # of the first seed, up to the step that `_initial` returns
    for seed in range(seeds):
      variables = initialize.load_new(run, data.weights) if data.weights else models.init(run.trace, config.seed + seed)
      state = initialize.begin(run, mesh, variables)
      rows = []
      for index in range(COUNT):
        doing = 'compiling' if not seed and not index else f'step {index + 1} of {COUNT}'
        log(f'seed {seed + 1} of {seeds}: {doing}')
        if not seed:
          batches.append(loader.arrays(index, 1))
        if not seed and not any(map(_is_initial, rows)):
          logits.append(jax.device_get(outputs(state, batches[index])))
        state, metrics = step(state, batches[index])
        rows.append(jax.device_get(metrics))
      shown.append(rows)
    (output_range,) = bounds.find(outputs.trace(state, batches[0]).jaxpr.jaxpr)  # the trace that the calls made
  drawn = any(map(_is_initial, shown[0]))
  constant = losses.of_constant_predictions(run.config.loss, data.train)
  found = _examination(run, shown, np.asarray(logits[-1 if drawn else 0], np.float64), constant)
  return found._replace(output_range=output_range)


def micro_batch(config: typed.Config) -> int:
  """Returns the number of images that pass through the network together."""
  return config.train.batch_size // config.train.accumulate


def _make_step(run: experiment.Experiment, batch_at: Callable) -> Callable:
  """Returns the run's step with its telemetry and the similarity of different images at each entry.

  Args:
    run: the experiment.
    batch_at: the loader's `batch_at`.

  Returns:
    `(state, arrays) -> (state, metrics)`; metrics: as with telemetry, with the additional columns `cosine` and
    `activation_variance`, and the float32 scalar `input_cosine`. Both cosines are NaN for micro-batches of one image.
  """
  called = [row.entry for row in run.table if row.shape is not None]
  parts = run.config.train.accumulate

  def likeness(call, module):
    output = call()
    examples = micro_batch(run.config)
    leaves = [leaf for leaf in jax.tree.leaves(output) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    outputs = [leaf for leaf in leaves if leaf.shape[:1] == (examples,)]
    if outputs:
      with function_calls.ignored():
        # The variance of its own: from the mean and the RMS, that of outputs that are nearly equal would be lost.
        shown = {'cosine': _cosine(outputs[0]), 'activation_variance': jnp.var(outputs[0].astype(jnp.float32))}
      for name, value in shown.items():
        module.sow(captures.CAPTURES, name, value, init_fn=lambda: None, reduce_fn=lambda _, new: new)
    return output

  phase = run.phases[0]
  plain = telemetry.make(run.config, run.leaves, phase.partition, run.table)

  def measure(params, gradient, updates, captured, gradient_captures):
    shown = {
      name: telemetry.gather(captured, name, called, run.entries, lambda total: total / parts)
      for name in ('cosine', 'activation_variance')
    }
    return plain.measure(params, gradient, updates, captured, gradient_captures) | shown

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
  # The default precision of accelerators is coarser than what `doctor.COLLAPSED` leaves to 1.
  products = jnp.matmul(x, x.T, precision='highest')
  return (jnp.sum(products) - jnp.sum(jnp.square(x))) / (count * (count - 1) or jnp.nan)


def _examination(
  run: experiment.Experiment,
  shown: Sequence[Sequence[Mapping[str, Any]]],
  outputs: np.ndarray,
  constant: tuple[float, float],
) -> Examination:
  """Builds the examination from the metrics of the steps, by seed and step, and the losses of constant predictions."""
  uniform_loss, guessing_loss = constant
  names = tuple(row.entry.name for row in run.table)
  rows = [[metrics['telemetry'] for metrics in each] for each in shown]
  first = [_initial(each) for each in shown]
  columns = {name: np.stack([_whole(each[name], len(names)) for each in first]) for name in first[0]}
  absent = np.full((len(rows), len(names)), np.nan)
  for name in ('mean', 'rms', 'variance'):
    columns.setdefault(f'activation_{name}', absent)
  gradient, called = columns['output_gradient_norm'], list(first[0]['output_gradient_norm'].entries)
  columns['jacobian_gain'] = absent.copy()
  with np.errstate(divide='ignore', invalid='ignore'):  # for values that are zero or not finite
    columns['jacobian_gain'][:, called[1:]] = gradient[:, called[:-1]] / gradient[:, called[1:]]
  columns['update_ratio'] = np.mean(
    [[_whole(step['update_ratio'], len(names)) for step in each] for each in rows], axis=1
  )
  moving = [
    next((step for step in each if np.nanmax(step['update_ratio'].values, initial=0) > 0), each[0]) for each in rows
  ]
  columns['first_update_ratio'] = np.stack([_whole(step['update_ratio'], len(names)) for step in moving])
  if micro_batch(run.config) == 1:
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
    uniform_loss=uniform_loss,
    guessing_loss=guessing_loss,
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
