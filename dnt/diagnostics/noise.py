"""Measures gradient noise: how much gradients of examples agree, and above which batch size larger ones do not help.

Let G be the mean gradient and Sigma the covariance of the gradient of one example. A batch of B examples has the
gradient G plus noise of variance tr(Sigma) / B. The noise scale tr(Sigma) / |G|^2 is the batch size at which the two
are equal, and predicts the critical batch size: well below it, twice the batch saves half of the steps; well above it,
a larger batch saves nothing (McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", section 2.2 and
appendix A.1).

The gradients are those of training: of the loss with its label smoothing and class weights, on augmented images, with
dropout and stochastic depth, before clipping and weight decay. With class weights they are those of the mean of the
weighted losses, which is what balanced weights train; other weights scale them, but not the noise scale. The parameters
do not move during the measurement. The examples of an epoch are all different, so the estimates describe the
distribution from which the split was drawn. With mixup or CutMix each micro-batch is mixed by itself, and the noise
that mixing adds counts too.

BatchNorm makes the loss of an example depend on its batch, so there is no gradient of one example. Each micro-batch is
normalized by itself, as with `train.accumulate`. The estimate then describes batches of micro-batches of this size: it
includes the noise of the small batch's statistics, so the scale is larger with smaller micro-batches. Compare two
values of `noise_scale.micro_batches` to see by how much. Other norms have no such effect.
"""

import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dnt import checkpoints, files
from dnt import config as schema
from dnt import workdir as workdir_lib
from dnt.config import typed
from dnt.data import examples, pipeline
from dnt.optim import rows
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import multihost
from dnt.reporting import tables
from dnt.training import budget, datasets, experiment, initialize, losses, open_options, resume, steps


class Estimate(NamedTuple):
  """Holds float64 [n] arrays with one value per part of the parameters.

  Attributes:
    squared_gradient: |G|^2, unbiased; may be negative if the noise hides it.
    trace: tr(Sigma) of one example, unbiased.
    noise_scale: tr(Sigma) / |G|^2 in examples, the ratio of the means; NaN where |G|^2 is not positive.
    standard_error: of the noise scale, by the jackknife over batches; NaN where |G|^2 is not positive without one of
      the batches.
  """

  squared_gradient: np.ndarray
  trace: np.ndarray
  noise_scale: np.ndarray
  standard_error: np.ndarray


def estimate(small: np.ndarray, big: np.ndarray, micro_batch: int, batch: int) -> Estimate:
  """Estimates |G|^2 and tr(Sigma) from the gradients of two batch sizes (McCandlish et al. 2018, equation A.2).

  Args:
    small: [K, n], mean of |gradient|^2 over the micro-batches of each of K batches.
    big: [K, n], |gradient|^2 of each batch, whose gradient is the mean over its micro-batches.
    micro_batch: examples of a micro-batch.
    batch: examples of a batch.
  """
  small, big = np.asarray(small, np.float64), np.asarray(big, np.float64)
  squared = (batch * big - micro_batch * small) / (batch - micro_batch)
  trace = (small - big) / (1 / micro_batch - 1 / batch)
  count = len(squared)

  def scale(trace, squared):
    return np.where(squared > 0, trace / np.where(squared > 0, squared, 1.0), np.nan)

  left_out = scale(np.sum(trace, 0) - trace, np.sum(squared, 0) - squared)
  error = np.sqrt((count - 1) / count * np.sum(np.square(left_out - np.mean(left_out, 0)), 0))
  squared, trace = np.mean(squared, 0), np.mean(trace, 0)
  return Estimate(squared, trace, scale(trace, squared), error)


def run(config: typed.Config, workdir: pathlib.Path) -> dict[str, Any]:
  """Measures the noise at a run's newest checkpoint, or where it would start, and writes `noise_scale.json`.

  It changes nothing else in the workdir.

  Returns:
    The contents of the file: `step`, the sizes, whether a `batch_norm` follows the batch, `total` and `entries`, each
    with `squared_gradient`, `trace`, `noise_scale`, `standard_error` and `signal_to_noise` (|G|^2 over the variance of
    the gradient of a batch).

  Raises:
    errors.InputError: the batch cannot be divided, the checkpoint belongs to another network or optimizer, or the data
      does not fit.
  """
  files.make_workdir(workdir)
  options, batch = config.noise_scale, config.train.batch_size
  mesh = mesh_lib.make_mesh(config.mesh)
  mesh_lib.check_batch('config.train.batch_size', batch, mesh, options.micro_batches)
  config = resume.keep_open(config, resume.read(workdir))
  data = datasets.load(config, (), workdir)
  whole = experiment.make(open_options.resolve(config, data), data.spec)
  budget.check_training(whole, mesh)
  start = initialize.find(whole, mesh, checkpoints.ReadOnly(workdir), data.weights)
  resume.check_network(whole.config, resume.of_meta(start.history, workdir), workdir)
  state = initialize.make_state(whole, mesh, start)
  step = int(state.step)
  measured = measure(whole, mesh, data.train, state)
  estimated = estimate(measured.small, measured.big, batch // options.micro_batches, batch)
  estimates = [
    {
      'squared_gradient': float(squared),
      'trace': float(trace),
      'noise_scale': float(scale),
      'standard_error': float(error),
      'signal_to_noise': float(batch * squared / trace) if trace else float('nan'),
    }
    for squared, trace, scale, error in zip(*estimated, strict=True)
  ]
  result = {
    'step': step,
    'split': data.train.split,
    'examples': len(data.train),
    'batches': options.batches,
    'batch_size': batch,
    'micro_batch_size': batch // options.micro_batches,
    'batch_norm': bool(whole.phase(step).partition.split_statistics(state.batch_stats)[0]),
    'critical_batch_size': estimates[-1]['noise_scale'],
    'total': estimates[-1],
    'entries': [{'name': name, **each} for name, each in zip(measured.entries, estimates[:-1], strict=True)],
  }
  if multihost.is_lead():
    files.write_json(workdir / workdir_lib.NOISE_SCALE, result)
  return result


class Measurement(NamedTuple):
  """Holds squared gradient norms of batches, by entry.

  Attributes:
    entries: names of the entries that train, in depth order.
    small: float64 [batches, entries + 1], the mean of the squared norms over the micro-batches of a batch; the last
      column is for all entries together.
    big: the squared norm of their mean gradient, of the same shape.
  """

  entries: tuple[str, ...]
  small: np.ndarray
  big: np.ndarray


def measure(run: experiment.Experiment, mesh: Mesh, source: examples.Examples, state: steps.TrainState) -> Measurement:
  """Measures squared gradient norms of micro-batches and of their batches, from the run's position in the data.

  Args:
    run: the experiment; `config.noise_scale` sets the number of both.
    mesh: its devices share each micro-batch.
    source: the training split.
    state: on the mesh; the function uses its parameters, statistics, key and step.
  """
  micro_batches, batches = run.config.noise_scale.micro_batches, run.config.noise_scale.batches
  class_weights = run.config.loss.class_weights
  config = schema.copy_unlocked(run.config)
  config.train.batch_size //= micro_batches
  partition = run.phase(int(state.step)).partition
  compute_gradient = run.make_gradient(partition)
  params, _ = partition.split(state.params)
  places = {path: run.leaves.places[path] for path in run.leaves.trained(partition)}

  def add(state, sums, arrays, first, count):
    def body(index, sums):
      total, squares = sums
      at, batch = state.replace(step=jnp.int32(first + index)), loader.batch_at(arrays, first + index)
      gradient = compute_gradient(at, batch).params
      # Training divides by the weight of its whole batch. A mean over micro-batches of the gradients of examples must
      # not divide by that of each micro-batch, which may lack a rare class.
      weight = jnp.mean(losses.weights(class_weights, batch['label']))
      gradient = jax.tree.map(lambda leaf: weight * leaf, gradient)
      return jax.tree.map(jnp.add, total, gradient), squares + by_entry(gradient)

    return jax.lax.fori_loop(0, count, body, sums)

  def by_entry(gradient):
    squares = rows.squares(gradient, places)
    return jnp.concatenate([jnp.atleast_1d(squares[place]) for place in sorted(squares)])

  def finish(sums):
    total, squares = sums
    return squares / micro_batches, by_entry(total) / micro_batches**2

  order = [index for place in sorted(set(places.values())) for index in place]
  shardings = (run.shardings(mesh, params), mesh_lib.replicated(mesh))
  start = jax.jit(lambda params: (jax.tree.map(jnp.zeros_like, params), jnp.zeros(len(order))), out_shardings=shardings)
  program = compile_lib.jit(add, mesh, donate_argnums=1, out_shardings=shardings)
  finished = jax.jit(finish, out_shardings=mesh_lib.replicated(mesh))
  step, measurements = int(state.step) * micro_batches, []
  state = state.replace(opt_state={}, ema={})
  with contextlib.closing(pipeline.make_train_loader(config, source, mesh)) as loader:
    for _ in range(batches):
      sums, end = start(params), step + micro_batches
      while step < end:
        count = min(end - step, loader.max_steps(step))
        sums = program(state, sums, loader.arrays(step, count), np.int32(step), np.int32(count))
        step += count
      measurements.append(jax.device_get(finished(sums)))
  small, big = (np.stack([each[kind] for each in measurements]).astype(np.float64) for kind in (0, 1))
  in_depth = np.argsort(order)
  small, big = (np.concatenate([each[:, in_depth], each.sum(1, keepdims=True)], 1) for each in (small, big))
  return Measurement(tuple(run.entries[index].name for index in sorted(order)), small, big)


def text(result: Mapping[str, Any]) -> str:
  """Formats the result as a table and one summary line."""
  batch = result['batch_size']
  table = [('entry', '|G|^2', 'tr(Sigma)', 'noise scale', '+-', f'signal/noise at {batch}')]
  for each in [*result['entries'], {'name': 'all', **result['total']}]:
    names = ('squared_gradient', 'trace', 'noise_scale', 'standard_error', 'signal_to_noise')
    table.append((each['name'], *(f'{each[name]:.3g}' if np.isfinite(each[name]) else '-' for name in names)))
  lines = [tables.text(table)]
  if result['batch_norm']:
    lines.append(
      f'BatchNorm normalizes each micro-batch of {result["micro_batch_size"]} by itself, which adds noise; '
      'compare with another --config.noise_scale.micro_batches'
    )
  scale, error = result['critical_batch_size'], result['total']['standard_error']
  seen = f'at step {result["step"]:,}, over {result["batches"]} batches'
  more = f'measure more: --config.noise_scale.batches={4 * result["batches"]}'
  if not np.isfinite(scale):
    return '\n'.join([*lines, f'the noise hides the gradient {seen}; {more}'])
  spread = f'{error:,.0f}' if np.isfinite(error) else '?'
  summary_line = f'critical batch size {scale:,.0f} +- {spread} examples {seen}; config.train.batch_size is {batch}'
  return '\n'.join([*lines, summary_line if error <= scale / 2 else f'{summary_line}; {more}'])
