"""Measures signal propagation in random dense networks over a grid, and compares it with mean field theory.

For every depth x activation x block x norm x (sigma_w^2, sigma_b^2) of a config of kind 'signal', over many seeds, it
measures by layer the variance q and the correlation c of the pre-activations and the norm of the gradient. It also
measures the largest singular values of the Jacobian of one input's output with respect to that input.
"""

import contextlib
import functools
import itertools
import logging
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dnt import errors, files
from dnt import workdir as workdir_lib
from dnt.config import typed
from dnt.meanfield import random_nets, report
from dnt.meanfield.theory import batch_norm, layers, plain
from dnt.models import initializers
from dnt.parallel import capacity, signals
from dnt.reporting import progress, terminal

_log = logging.getLogger(__name__)
SETTLED = 0.01  # q within this fraction of its last value is at its fixed point
MEMORY = 2**28  # bytes of weights and signals that the seeds under one vmap may take
DRAW = 60  # multiply-adds that take as long as drawing one weight
LONGEST = 30 * 86_400  # seconds of a grid
# Multiply-adds in a second, more than any machine does: of a CPU core, and of an accelerator.
CORE, ACCELERATOR = 1e11, 1e15

Network = random_nets.Network


class _Job(NamedTuple):
  """Describes one call of a compiled program: some seeds of the networks of one depth."""

  kind: str  # 'propagation' or 'jacobian'
  network: Network
  seeds: range
  work: float  # in multiply-adds


class _Series(NamedTuple):
  """Describes one measurement over all of its seeds.

  Attributes:
    kind: 'propagation' or 'jacobian'.
    network: the networks of one depth.
    seeds: number of draws.
    signals: vectors that pass through one of its networks, at all variances.
    held: vectors in memory then.
    passes: number of passes through the network.
  """

  kind: str
  network: Network
  seeds: int
  signals: int
  held: int
  passes: int

  @property
  def networks(self) -> int:
    """Returns the number of networks of different kinds, at each variance."""
    return len(self.network.activations) * len(self.network.blocks) * len(self.network.norms)

  @property
  def size(self) -> int:
    """Returns the bytes that one seed takes."""
    return 4 * (2 * self.network.width**2 + self.held * self.networks * self.network.width)

  @property
  def work(self) -> float:
    """Returns the multiply-adds that one seed takes."""
    network = self.network
    return self.passes * network.depth * network.width**2 * (DRAW + self.signals * self.networks)


class _Profile(NamedTuple):
  """Holds signals and gradients by layer, each [seeds, depth, G]; `log_norm` describes the gradient."""

  log_q: Any
  cosine: Any
  log_norm: Any


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _propagation(network, keys, variances, inputs, correlation):

  def measure(key):
    x, cotangents = random_nets.draw_signals(network, key, variances, inputs, correlation)
    signals = random_nets.forward(network, key, variances, x)
    _, log_norm = random_nets.pull(network, key, variances, signals.inputs, cotangents[None])
    return _Profile(signals.log_q, signals.cosine, log_norm)

  return jax.vmap(measure)(keys)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6))
def _jacobian(network, keys, variances, inputs, correlation, count, iterations):
  """Returns logarithms of the largest singular values [seeds, G, count]."""

  def measure(key):
    x, _ = random_nets.draw_signals(network, key, variances, inputs, correlation)
    return random_nets.singular_values(network, key, variances, x, count, iterations)

  return jax.vmap(measure)(keys)


def run(config: typed.SignalConfig, workdir: str | os.PathLike) -> dict[str, Any]:
  """Measures the grid of a validated config of kind 'signal' and writes it to `workdir`: see `report.write`.

  Ctrl-C or SIGTERM stops it. It then writes and returns the measurements so far, for each depth those of the finished
  seeds; while there are none, a signal ends it as any other work, and the files of an earlier run stay.

  Returns:
    `networks`: one dict for each network, see `_row`; in theory, for plain networks without a norm `phases`, see
    `_phases`, and for those with batch norm `batch_norm_gains`, see `batch_norm.gain`; `interrupted`; `config`: the
    section; `summary`: how far the rates are from theory, see `report.summarize`.

  Raises:
    errors.InputError: the workdir cannot be written, or holds measurements of a newer version; or the grid takes too
      much memory or time.
  """
  options = config.signal
  workdir = pathlib.Path(workdir)
  files.make_workdir(workdir)
  workdir_lib.check_file(workdir / workdir_lib.SIGNAL)
  variances = np.array(list(itertools.product(options.weight_variances, options.bias_variances)), np.float64)
  _check(options, len(variances))
  jobs = [job for series in _series(options) for job in _split(series)]
  measured: dict[tuple[str, Network], list[Any]] = {}
  status = terminal.StatusLine()
  start, done, total = time.monotonic(), 0.0, sum(job.work for job in jobs)
  interrupted = False
  with contextlib.ExitStack() as held:
    for number, job in enumerate(jobs, 1):
      left = (
        f'  ETA {progress.format_duration((time.monotonic() - start) * (total / done - 1))}' if done else '  compiling'
      )
      last = job.seeds[-1] + 1
      of = f'{job.kind}, depth {job.network.depth}'
      status.update(f'{100 * done / total:.0f} %  {of}, seeds {job.seeds[0] + 1} to {last} of {options.seeds}{left}')
      part = _measure(job, options, variances)
      if not measured:  # from now on there is something to write
        held.enter_context(signals.hold_by_parts('measurement'))
      measured.setdefault((job.kind, job.network), []).append(part)
      done += job.work
      interrupted = signals.received() is not None and number < len(jobs)
      if interrupted:
        _log.info('stopped; writing the measurements so far')
        break
    status.update('mean field theory')
    networks = [row for depth in options.depths for row in _rows(options, variances, depth, measured)]
    section = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    result = {'config': section, 'interrupted': interrupted, 'networks': networks}
    is_plain = 'plain' in options.blocks
    result['phases'] = _phases(options, variances) if is_plain and 'none' in options.norms else []
    result['batch_norm_gains'] = _batch_norm_gains(options) if is_plain and 'batch_norm' in options.norms else {}
    result['summary'] = report.summarize(networks)
    report.write(result, workdir)
    status.close()
  _log.info(report.summary_text(result))
  return result


def _network(options: typed.Signal, depth: int) -> Network:
  return Network(
    tuple(options.activations),
    tuple(options.blocks),
    tuple(options.norms),
    depth,
    options.width,
    options.gate_bias,
  )


def _jacobian_networks(network: Network) -> Iterator[Network]:
  """Yields the networks whose Jacobian takes one input, then those with batch_norm, whose Jacobian takes the batch."""
  for whole in (False, True):
    norms = tuple(norm for norm in network.norms if (norm == 'batch_norm') == whole)
    if norms:
      yield network._replace(norms=norms)


def _inputs(options: typed.Signal, network: Network) -> int:
  """Returns the number of inputs for the Jacobian of these networks."""
  return options.batch_size if 'batch_norm' in network.norms else 1


def _check(options: typed.Signal, points: int) -> None:
  """Refuses a grid that no network has, that cannot fit into memory, or that takes any machine over `LONGEST` seconds.

  Args:
    options: the section.
    points: number of variances.
  """
  if options.singular_values > options.width:
    raise errors.InputError(
      f'config.signal.singular_values={options.singular_values} must be at most config.signal.width={options.width}: '
      'a Jacobian has no more'
    )
  draws = 'config.signal.seeds, config.signal.jacobian_seeds'
  lower = (
    'config.signal.depths, config.signal.width, config.signal.batch_size, config.signal.singular_values or '
    'config.signal.lanczos_iterations'
  )
  work = 0.0
  for series in _series(options):
    what = f'one draw of the networks of depth {series.network.depth} and width {options.width}'
    capacity.check(series.size, capacity.device(), what, lower)
    work += series.seeds * series.work
  networks = points * len(options.activations) * len(options.blocks) * len(options.norms)
  results = 8 * len(_Profile._fields) * options.seeds * sum(options.depths) * networks
  results += 8 * options.jacobian_seeds * len(options.depths) * networks * options.singular_values
  capacity.check(results, capacity.host(), 'the result of this grid', f'{draws} or config.signal.depths')
  seconds = work / (CORE * (os.cpu_count() or 1) if jax.default_backend() == 'cpu' else ACCELERATOR)
  if seconds > LONGEST:
    raise errors.InputError(
      f'this grid takes at least {seconds / 86_400:,.0f} days: lower {draws}, config.signal.width or '
      'config.signal.depths'
    )


def _series(options: typed.Signal) -> Iterator[_Series]:
  points = len(options.weight_variances) * len(options.bias_variances)
  for depth in options.depths:
    network = _network(options, depth)
    signals = options.batch_size * points
    yield _Series('propagation', network, options.seeds, signals, signals * (depth + 4), 3)
    if options.singular_values:
      block, iterations = random_nets.lanczos(options.width, options.singular_values, options.lanczos_iterations)
      for part in _jacobian_networks(network):
        inputs = _inputs(options, part) * points
        # The inputs of each layer, a block on its way, and the space with its images.
        held = inputs * (depth + 3 * block) + points * 3 * block * iterations
        yield _Series('jacobian', part, options.jacobian_seeds, inputs * block, held, 2 * iterations + 1)


def _split(series: _Series) -> Iterator[_Job]:
  """Yields jobs of as many seeds as fit into `MEMORY`."""
  together = max(min(MEMORY // series.size, series.seeds), 1)
  for first in range(0, series.seeds, together):
    chunk = range(first, min(first + together, series.seeds))
    yield _Job(series.kind, series.network, chunk, len(chunk) * series.work)


def _measure(job: _Job, options: typed.Signal, variances: np.ndarray) -> Any:
  """Runs the program of the job and returns its outputs on the host."""
  key = jax.random.key(options.seed, impl=initializers.PRNG)
  keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(np.array(job.seeds))
  points = jnp.asarray(variances, jnp.float32)
  if job.kind == 'propagation':
    measured = _propagation(job.network, keys, points, options.batch_size, options.input_correlation)
  else:
    inputs, count = _inputs(options, job.network), options.singular_values
    measured = _jacobian(
      job.network, keys, points, inputs, options.input_correlation, count, options.lanczos_iterations
    )
  return jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(measured))


def _rows(
  options: typed.Signal, variances: np.ndarray, depth: int, measured: dict[tuple[str, Network], list[Any]]
) -> Iterator[dict[str, Any]]:
  """Yields the rows of the networks of one depth; none if nothing was measured."""
  network = _network(options, depth)
  chunks = measured.get(('propagation', network))
  if not chunks:
    return
  whole = jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)
  singular = {}
  for part in _jacobian_networks(network):
    if ('jacobian', part) in measured:
      values = np.concatenate(measured['jacobian', part])  # [seeds, G, count]
      singular |= {norm: values[:, :, :, at] for at, norm in enumerate(part.norms)}
  names = (options.activations, options.blocks, options.norms, variances)
  for a, k, m, s in itertools.product(*map(range, map(len, names))):
    place = (..., a, k, m, s)
    norm = options.norms[m]
    own = singular[norm][:, a, k, s] if norm in singular else None
    kind: dict[str, Any] = {
      'depth': depth,
      'activation': options.activations[a],
      'block': options.blocks[k],
      'norm': norm,
    }
    kind |= {'weight_variance': float(variances[s, 0]), 'bias_variance': float(variances[s, 1])}
    yield _row(options, kind, np.exp(whole.log_q[place]), whole.cosine[place], whole.log_norm[place], own)


def _row(
  options: typed.Signal,
  kind: dict[str, Any],
  q: np.ndarray,
  c: np.ndarray,
  norms: np.ndarray,
  singular: np.ndarray | None,
) -> dict[str, Any]:
  """Returns the row of one network: its description, and its measured (over the seeds) and predicted values.

  - `q`, `c` [depth]: mean and, as `spread`, standard deviation over the seeds.
  - `gradient_norm` [depth + 1]: at the input of each layer and at the output, over the norm at the output; root of the
    mean square over the seeds, and `spread` likewise.
  - `rate`: the change of the natural logarithm of the gradient's norm in one layer of the backward pass, over the
    layers from `first_layer` on, where q is at its fixed point (all, if it reaches none before the last half).
    `deviation`: of the measured rate from the rate in theory, as a fraction of the latter; None if the latter is below
    `report.CRITICAL`, or if the measured rate is not a number, because signals or gradients left the range of
    float32. `error`: standard error over the seeds.
  - `singular_values`: geometric means over the seeds; `rms_singular_value`: of all singular values, from the gradient's
    norm (for a random cotangent g, E|J^T g|^2 is the sum of their squares), and in theory.

  Args:
    options: the section.
    kind: the description of the network.
    q: [seeds, depth].
    c: [seeds, depth].
    norms: logarithms of the gradient's norm at the input of each layer, over the norm at the output [seeds, depth].
    singular: logarithms of the singular values [seeds, count].
  """
  predicted = layers.predict(
    plain.Net(kind['activation'], kind['weight_variance'], kind['bias_variance']),
    kind['depth'],
    block=kind['block'],
    norm=kind['norm'],
    gate_bias=options.gate_bias,
    correlation=options.input_correlation,
    batch=options.batch_size,
    width=options.width,
  )
  norms = np.concatenate([norms, np.zeros((len(norms), 1))], 1)
  logarithms = np.concatenate([np.cumsum(np.log(predicted.gain[::-1]))[::-1] / 2, [0.0]])
  measured = np.sqrt(np.mean(np.exp(2 * norms), 0))
  row = kind | {
    'seeds': len(q),
    'q': {'measured': np.mean(q, 0), 'spread': np.std(q, 0), 'theory': predicted.q},
    'c': {'measured': np.mean(c, 0), 'spread': np.std(c, 0), 'theory': predicted.c},
    'gradient_norm': {'measured': measured, 'spread': np.std(np.exp(norms), 0), 'theory': np.exp(logarithms)},
    'rate': _rate(norms, predicted),
    'rms_singular_value': {'measured': measured[0], 'theory': np.exp(logarithms[0])},
  }
  if singular is not None:
    row['singular_values'] = np.exp(np.mean(singular, 0))
  return jax.tree.map(lambda x: _short(x.tolist() if isinstance(x, np.ndarray | np.generic) else x), row)


def _rate(norms: np.ndarray, predicted: layers.Prediction) -> dict[str, Any]:
  """Returns the entry `rate` of `_row`.

  Mean field theory predicts the mean of the ratio of squared norms from one layer to the next, so this ratio is
  averaged over the seeds. The mean of the logarithm of the norm is lower, by a term of order depth / width.
  """
  settled = np.abs(predicted.q / predicted.q[-1] - 1) <= SETTLED
  first = len(settled) - int(np.argmin(settled[::-1])) if not settled.all() else 0
  first = 0 if first > len(settled) // 2 else first
  norms = norms[:, first:]
  expected = np.log(predicted.gain[first:]).mean() / 2
  rate = error = np.nan
  if np.isfinite(norms).all():
    gains = np.exp(-2 * np.diff(norms, axis=1))
    rate = np.log(gains.mean(0)).mean() / 2
    by_seed = np.log(gains).mean(1) / 2
    error = by_seed.std(ddof=1) / len(by_seed) ** 0.5 if len(by_seed) > 1 else np.nan
  compared = np.isfinite(rate) and abs(expected) >= report.CRITICAL
  deviation = rate / expected - 1 if compared else None
  return {'measured': rate, 'theory': expected, 'error': error, 'deviation': deviation, 'first_layer': first + 1}


def _phases(options: typed.Signal, variances: np.ndarray) -> list[dict[str, Any]]:
  """Returns fixed points and depth scales (see `plain.Phase`; infinite: null in JSON) and `critical_weight_variance`.

  The fixed points are those that the measured networks are drawn to, whose first layer has q = sigma_w^2 + sigma_b^2.
  `critical_weight_variance` is sigma_w^2 on the edge of chaos for this sigma_b^2, None if there is none.
  """
  rows = []
  for activation, (weight, bias) in itertools.product(options.activations, variances.tolist()):
    phase = plain.phase(plain.Net(activation, weight, bias), start=weight + bias)
    try:
      critical = plain.critical_weight_variance(activation, bias)
    except errors.InputError:
      critical = None
    kind = {'activation': activation, 'weight_variance': weight, 'bias_variance': bias}
    rows.append(
      kind | {name: _short(value) for name, value in (*phase._asdict().items(), ('critical_weight_variance', critical))}
    )
  return rows


def _batch_norm_gains(options: typed.Signal) -> dict[str, dict[str, float]]:
  """Returns the gain for each activation, at the batch size and in the limit of a large batch."""
  sizes = {'batch': options.batch_size, 'limit': None}
  return {
    name: {key: _short(batch_norm.gain(name, size)) for key, size in sizes.items()} for name in options.activations
  }


def _short(value: Any) -> Any:
  """Rounds numbers to six digits."""
  if isinstance(value, list):
    return [_short(each) for each in value]
  return float(f'{value:.6g}') if isinstance(value, float) else value
