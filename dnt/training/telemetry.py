"""Computes the telemetry of a training step for each entry of the depth list, and derives warnings in words.

`metric_names.EntryRow` describes the quantities. On the device, a quantity is one column for all entries that have it.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dnt import trees
from dnt.config import typed
from dnt.models import captures, depth, freeze
from dnt.optim import clip
from dnt.optim import rows as rows_lib
from dnt.reporting import metric_names

VANISHING = 1e-4  # output gradient of the first entry over that of the last
EXPLODING = 1e4
UNITS = 0.5  # fraction of units dead, or of activations saturated, of one entry
VALUES = 8  # of a unit in a step; of fewer, all are often zero in a healthy unit too
UPDATE_RATIOS = (1e-4, 1e-2)  # of the median entry
NEAR_ZERO = 0.1  # norm of an entry's parameters over that of a drawn kernel
TIGHT = 0.1  # fraction of the gradient that clipping leaves of the median entry
ALWAYS_CLIPPED = 5  # steps with telemetry, all of them clipped


class Column(flax.struct.PyTreeNode):
  """Holds one quantity for the entries that have it.

  Attributes:
    values: float32 [n].
    entries: their places in the depth list.
  """

  values: jax.Array
  entries: tuple[int, ...] = flax.struct.field(pytree_node=False)


class Telemetry(NamedTuple):
  """Holds what a train step needs to compute its telemetry; see `make`."""

  gradient_captures: Any
  measure: Callable[..., dict[str, Column]]


def make(
  config: typed.Config, leaves: rows_lib.Leaves, partition: freeze.Partition, table: Sequence[depth.Row]
) -> Telemetry:
  """Returns the telemetry of a train step.

  Args:
    config: a validated config.
    leaves: all parameters.
    partition: which of them train; entries without any have no parameter metrics.
    table: the depth list.

  Returns:
    `gradient_captures`: what to differentiate with respect to; `measure(params, gradient, updates, captured,
    gradient_captures)`: the quantities from the parameters before the step, their gradient, the optimizer's updates,
    the collection `CAPTURES`, and the gradient of the collection `GRADIENTS`.
  """
  entries, places, lowest = leaves.entries, leaves.places, leaves.owners(partition)[0]
  frozen = any(row.parameters for row in table[:lowest])
  clipping = None if config.clip.name == 'none' else clip.make(config.clip, leaves)
  called = [row.entry for row in table if row.shape is not None]

  def measure(params, gradient, updates, captured, gradient_captures):
    norms = {
      'gradient_norm': _norms(gradient, places),
      'parameter_norm': _norms(params, places),
      'update_ratio': _norms(updates, places),
    }
    norms['update_ratio'] = {at: norm / norms['parameter_norm'][at] for at, norm in norms['update_ratio'].items()}
    if clipping:
      clipped, _ = clipping.update(gradient, clipping.init(params), params)
      after = _norms(clipped, places)
      norms['clip_factor'] = {at: after[at] / norms['gradient_norm'][at] for at in after}
    columns = {name: _column(column) for name, column in norms.items()}
    columns['output_gradient_norm'] = output_gradient_norms(gradient_captures, captured, called, entries)
    return columns | activity(captured, called, entries)

  return Telemetry(captures.make_gradient_captures(table[lowest if frozen else 0 :]), measure)


def activity(captured: Any, called: Sequence[depth.Entry], entries: Sequence[depth.Entry]) -> dict[str, Column]:
  """Returns the quantities of the forward pass.

  Args:
    captured: the captures' collection `CAPTURES`.
    called: the entries that are called, in depth order.
    entries: the depth list.
  """
  columns: dict[str, dict[tuple[int, ...], jax.Array]] = {}
  for path, at in _groups(called, entries):
    output, inside = captures.captures(captured, path)
    if output is None:
      continue
    count = output.units.count
    shown = {'activation_mean': output.sum / count, 'activation_rms': jnp.sqrt(output.square / count)}
    units = [] if inside is None else list(inside.values()) or [output.units]
    if zeros := [each for each in units if isinstance(each, captures.Zeros)]:
      shown['zero'] = _ratio([each.zero for each in zeros], [each.count for each in zeros])
      fired = jnp.concatenate([each.fired for each in zeros], -1)
      values = sum(each.count for each in zeros) / fired.shape[-1]
      shown['dead'] = jnp.where(values < VALUES, jnp.nan, jnp.mean(fired == 0, -1))
    if flat := [each for each in units if isinstance(each, captures.Saturation)]:
      shown['saturated'] = _ratio([each.saturated for each in flat], [each.count for each in flat])
    for name, value in shown.items():
      columns.setdefault(name, {})[at] = value
  return {name: _column(column) for name, column in columns.items()}


def _ratio(hits: Sequence[jax.Array], counts: Sequence[jax.Array]) -> jax.Array:
  return cast(jax.Array, sum(hits) / sum(counts))  # an array, because there is at least one entry


def output_gradient_norms(
  squares: Any, captured: Any, called: Sequence[depth.Entry], entries: Sequence[depth.Entry]
) -> Column:
  """Returns the gradient norm at the output of each entry whose gradient and output were captured.

  Args:
    squares: the gradient of the gradient captures.
    captured: the captures' collection `CAPTURES`.
    called: the entries that are called, in depth order.
    entries: the depth list.
  """
  shown = [entry for entry in called if captures.captures(captured, entry.path).output is not None]
  return gather(squares, 'gradient_capture', shown, entries, jnp.sqrt)


def gather(
  tree: Any,
  name: str,
  called: Sequence[depth.Entry],
  entries: Sequence[depth.Entry],
  fn: Callable[[jax.Array], jax.Array] = lambda value: value,
) -> Column:
  """Collects the leaf `name` at each entry's path, and applies `fn` to it.

  Args:
    tree: nested dicts in the model's layout, such as the gradient of the gradient captures.
    name: name of the leaf.
    called: the entries that are called, in depth order; the result leaves out those without the leaf.
    entries: the depth list.
    fn: an elementwise function.
  """
  nodes = {at: trees.subtree(tree, path) for path, at in _groups(called, entries)}
  return _column({at: fn(node[name]) for at, node in nodes.items() if name in node})


def _groups(called: Sequence[depth.Entry], entries: Sequence[depth.Entry]) -> list[tuple[str, tuple[int, ...]]]:
  """Returns each path with the places of its entries: one entry, or one per row of a scanned stack."""
  index = {entry: place for place, entry in enumerate(entries)}
  groups: dict[str, tuple[int, ...]] = {}
  for entry in called:
    groups[entry.path] = (*groups.get(entry.path, ()), index[entry])
  return list(groups.items())


def _norms(tree: Any, places: rows_lib.Places) -> dict[tuple[int, ...], jax.Array]:
  return {at: jnp.sqrt(square) for at, square in rows_lib.squares(tree, places).items()}


def _column(values: Mapping[tuple[int, ...], jax.Array]) -> Column:
  at = sorted(values)
  joined = jnp.concatenate([jnp.zeros(0), *(jnp.atleast_1d(values[place]) for place in at)])
  return Column(joined.astype(jnp.float32), tuple(index for place in at for index in place))


def rows(columns: Mapping[str, Column], names: Sequence[str]) -> list[metric_names.EntryRow]:
  """Returns the telemetry by entry, in depth order, without the entries that have none.

  Args:
    columns: the columns by quantity, on the host.
    names: names of all entries, in depth order.
  """
  values: dict[int, dict[str, float]] = {}
  for quantity, column in columns.items():
    for index, value in zip(column.entries, np.asarray(column.values).tolist(), strict=True):
      if quantity != 'dead' or not math.isnan(value):  # NaN: too few values to say
        values.setdefault(index, {})[quantity] = value
  return [metric_names.EntryRow(names[index], **values[index]) for index in sorted(values)]


def floors(config: typed.Config, table: Sequence[depth.Row]) -> dict[str, float]:
  """Returns for each entry the norm of its parameters below which `warnings` does not judge it.

  Parameters that start at zero consist of their updates: after t steps, an update is 1/t of their norm at any learning
  rate. At first their outputs are zero, and so are the gradients before them. A kernel that keeps the size of a signal
  has a norm of about one for each output. The head of a fine-tuned network is never judged: it starts at zero unless
  the weights have the same classes, and good rates then move it by percents for a hundred steps.

  Args:
    config: a validated config.
    table: the depth list.
  """
  result = {row.entry.name: NEAR_ZERO * math.sqrt(row.shape[-1]) for row in table if row.shape}
  return result | ({depth.head(table).name: math.inf} if config.train.init_from else {})


def warnings(
  shown: Sequence[metric_names.EntryRow], rate: float, held_back: bool, floors: Mapping[str, float]
) -> dict[str, str]:
  """Returns the warnings that the telemetry of a step gives, by kind, each with a remedy to try.

  Args:
    shown: from `rows`.
    rate: learning rate of the step over the peak: a rate that still rises or has fallen makes small updates.
    held_back: whether clipping took most of the gradient at every step with telemetry so far (see `is_clipped`), and
      the updates are in proportion to what it leaves.
    floors: from `floors`.
  """
  result = {}
  shown = [row for row in shown if row.parameter_norm is None or not row.parameter_norm < floors.get(row.entry, 0.0)]
  norms = _of(shown, 'output_gradient_norm')
  if norms:
    (first, before), (last, after) = norms[0], norms[-1]
    ratio = before / after if after > 0 else np.nan
    compared = f'at the output of {first} it is {ratio:.1e} times that at {last}'
    if ratio < VANISHING:
      result['vanishing'] = (
        f'the gradient vanishes: {compared}; try a norm (config.model.norm), residual blocks, or the initializer that '
        'fits (config.model.initializer=he for relu)'
      )
    if ratio > EXPLODING or not all(np.isfinite(norm) for _, norm in norms):
      result['exploding'] = (
        f'the gradient explodes: {compared}; try a smaller config.model.init_gain, config.clip.name=global_norm or '
        'residual blocks'
      )
  for quantity, description, cure in (
    ('dead', 'of the units are dead (zero for the whole batch)', 'config.model.activation=leaky_relu'),
    ('saturated', 'of the activations are saturated', 'config.model.activation=relu'),
  ):
    fractions = [(value, entry) for entry, value in _of(shown, quantity) if np.isfinite(value)]
    worst, where = max(fractions, key=lambda pair: pair[0], default=(0.0, ''))
    if worst > UNITS:
      result[quantity] = (
        f'{100 * worst:.0f} % {description} in {where}; try a smaller config.optim.learning_rate or '
        f'config.model.init_gain, a norm (config.model.norm), or {cure}'
      )
  low, high = UPDATE_RATIOS
  ratios = [value for _, value in _of(shown, 'update_ratio') if np.isfinite(value)]
  median = statistics.median(ratios) if ratios else np.nan
  if median > high or (median < low and rate > 0.5):
    way, unless = ('smaller', '') if median > high else ('larger', ', unless the network has finished learning')
    result['update_ratio'] = (
      f'a step changes the parameters of the median entry by {median:.1e} of their norm, outside {low:.0e} to '
      f'{high:.0e}; try a {way} config.optim.learning_rate{unless}'
    )
  if held_back:
    result['clipping'] = (
      f'clipping left less than {100 * TIGHT:.0f} % of the gradient at every step with telemetry, so that the '
      'threshold sets the step size; try a larger config.clip.threshold or a smaller config.optim.learning_rate'
    )
  return result


def _of(shown: Sequence[metric_names.EntryRow], quantity: str) -> list[tuple[str, float]]:
  """Returns (entry, value) for each entry that has the quantity."""
  return [(row.entry, value) for row in shown if (value := getattr(row, quantity)) is not None]


def is_clipped(shown: Sequence[metric_names.EntryRow]) -> bool:
  """Returns whether clipping took most of the gradient of the median entry."""
  factors = [factor for _, factor in _of(shown, 'clip_factor') if np.isfinite(factor)]
  return bool(factors) and statistics.median(factors) < TIGHT
