"""Computes the telemetry of a training step for each entry of the depth list, and warnings in plain words.

The quantities of a step, for each entry:
- `gradient_norm`, `parameter_norm`, `update_ratio`: of its parameters; the gradient before clipping, and the norm of
  the update over the norm of the parameters before the update,
- `output_gradient_norm`: norm of the gradient of the loss with respect to its output, over the whole batch; absent
  below the first entry that trains, where only a tap would require a backward pass,
- `activation_mean`, `activation_rms`: of its output,
- `zero`, `dead`: fractions of its activations that are zero, and of its units that are zero for the whole batch,
- `saturated`: for sigmoid and tanh, instead of those two: the fraction of its activations that are flat
  (`taps.SATURATED`),
- `clip_factor`: with clipping, the norm of its gradient after clipping over the norm before.
`zero`, `dead` and `saturated` describe the activations inside the entry, or its output if it captures none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from dnt import trees
from dnt.config import typed
from dnt.models import depth, taps
from dnt.optim import clip, rows

VANISHING = 1e-4  # output gradient of the first entry over that of the last
EXPLODING = 1e4
UNITS = 0.5  # fraction of units dead, or of activations saturated, of one entry
UPDATE_RATIOS = (1e-4, 1e-2)  # of the median entry
ALWAYS_CLIPPED = 5  # rows of telemetry, all of them clipped


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

  sinks: Any
  figures: Callable[..., dict[str, Column]]


def make(config: typed.Config, params: Any, table: Sequence[depth.Row]) -> Telemetry:
  """Returns the telemetry of a train step.

  Args:
    config: a validated config.
    params: the trainable parameters (or shapes) in the model's layout; entries without any have no parameter metrics.
    table: the depth list.

  Returns:
    `sinks`: what to differentiate with respect to; `figures(params, gradient, updates, found, sinks)`: the quantities
    from the parameters before the step, their gradient, the optimizer's updates, the taps' `FOUND` and the sinks'
    gradient.
  """
  entries = [row.entry for row in table]
  places = rows.places(params, entries)
  lowest = min(index for place in places.values() for index in place)
  frozen = any(row.parameters for row in table[:lowest])
  clipping = None if config.clip.name == 'none' else clip.make(config.clip, params, entries)
  called = [row.entry for row in table if row.shape is not None]

  def figures(params, gradient, updates, found, sinks):
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
    columns['output_gradient_norm'] = output_gradient_norms(sinks, found, called, entries)
    return columns | activity(found, called, entries)

  return Telemetry(taps.make_sinks(table[lowest if frozen else 0 :]), figures)


def activity(found: Any, called: Sequence[depth.Entry], entries: Sequence[depth.Entry]) -> dict[str, Column]:
  """Returns the quantities of the forward pass.

  Args:
    found: the taps' collection `FOUND`.
    called: the entries that are called, in depth order.
    entries: the depth list.
  """
  flat = trees.flatten(found)
  columns: dict[str, dict[tuple[int, ...], jax.Array]] = {}
  for path, at in _groups(called, entries):
    sums = {name: flat.get(f'{path}/output/{name}') for name in ('sum', 'square', 'count', 'zero', 'fired')}
    if sums['count'] is None:  # the output holds no float
      continue
    inside = [key.removesuffix('count') for key in flat if key.startswith(f'{path}/') and key.endswith('units/count')]
    units = [{name: flat.get(key + name) for name in ('count', 'zero', 'fired', 'saturated')} for key in inside]
    units = units or [{**sums, 'saturated': None}]
    shown = {'activation_mean': sums['sum'] / sums['count'], 'activation_rms': jnp.sqrt(sums['square'] / sums['count'])}
    for name in ('zero', 'saturated'):
      hits = [(unit[name], unit['count']) for unit in units if unit[name] is not None]
      if hits:
        shown[name] = sum(hit for hit, _ in hits) / sum(count for _, count in hits)
    fired = [unit['fired'] for unit in units if unit['fired'] is not None]
    if fired:
      shown['dead'] = jnp.mean(jnp.concatenate(fired, -1) == 0, -1)
    for name, value in shown.items():
      columns.setdefault(name, {})[at] = value
  return {name: _column(column) for name, column in columns.items()}


def output_gradient_norms(
  squares: Any, found: Any, called: Sequence[depth.Entry], entries: Sequence[depth.Entry]
) -> Column:
  """Returns the gradient norm at the output of each entry that has a tap.

  There is none where an output holds no float, nor inside a user's own `nn.scan` or `nn.vmap`, which leave out the
  collections that they do not name.

  Args:
    squares: the gradient of the sinks.
    found: the taps' collection `FOUND`.
    called: the entries that are called, in depth order.
    entries: the depth list.
  """
  tapped = trees.flatten(found)
  reached = {
    path: square
    for path, square in trees.flatten(squares).items()
    if f'{path.rpartition("/")[0]}/output/count' in tapped
  }
  return gather(trees.unflatten(reached), 'sink', called, entries, jnp.sqrt)


def gather(
  tree: Any,
  name: str,
  called: Sequence[depth.Entry],
  entries: Sequence[depth.Entry],
  fn: Callable[[jax.Array], jax.Array] = lambda value: value,
) -> Column:
  """Collects the leaf `name` at each entry's path, and applies `fn` to it.

  Args:
    tree: nested dicts in the model's layout, such as the sinks' gradient.
    name: name of the leaf.
    called: the entries that are called, in depth order; the result leaves out those without the leaf.
    entries: the depth list.
    fn: an elementwise function.
  """
  flat = trees.flatten(tree)
  groups = [(f'{path}/{name}', at) for path, at in _groups(called, entries)]
  return _column({at: fn(flat[path]) for path, at in groups if path in flat})


def _groups(called: Sequence[depth.Entry], entries: Sequence[depth.Entry]) -> list[tuple[str, tuple[int, ...]]]:
  """Returns each path with the places of its entries: one entry, or one per row of a scanned stack."""
  index = {entry: place for place, entry in enumerate(entries)}
  groups: dict[str, tuple[int, ...]] = {}
  for entry in called:
    groups[entry.path] = (*groups.get(entry.path, ()), index[entry])
  return list(groups.items())


def _norms(tree: Any, places: rows.Places) -> dict[tuple[int, ...], jax.Array]:
  return {at: jnp.sqrt(square) for at, square in rows.squares(tree, places).items()}


def _column(values: Mapping[tuple[int, ...], jax.Array]) -> Column:
  at = sorted(values)
  joined = jnp.concatenate([jnp.zeros(0), *(jnp.atleast_1d(values[place]) for place in at)])
  return Column(joined.astype(jnp.float32), tuple(index for place in at for index in place))


def line(columns: Mapping[str, Column], names: Sequence[str]) -> dict[str, float]:
  """Returns the telemetry as a line of `metrics.jsonl`: `telemetry/<entry>/<quantity>`.

  Args:
    columns: on the host.
    names: of all entries, in depth order.
  """
  return {
    f'telemetry/{names[index]}/{quantity}': value
    for quantity, column in columns.items()
    for index, value in zip(column.entries, np.asarray(column.values), strict=True)
  }


def warnings(columns: Mapping[str, Column], names: Sequence[str], rate: float, always_clipped: bool) -> dict[str, str]:
  """Returns the warnings that a row of telemetry gives, by kind, each with a remedy to try.

  Args:
    columns: on the host.
    names: of all entries, in depth order.
    rate: learning rate of the step over the peak: a rate that still rises or has fallen makes small updates.
    always_clipped: whether the gradient was clipped in every row so far (see `is_clipped`).
  """
  found = {}
  at = columns['output_gradient_norm']
  norms = np.asarray(at.values, np.float64)
  if len(norms):
    ratio = norms[0] / norms[-1] if norms[-1] > 0 else np.nan
    compared = f'at the output of {names[at.entries[0]]} it is {ratio:.1e} of that at {names[at.entries[-1]]}'
    if ratio < VANISHING:
      found['vanishing'] = (
        f'the gradient vanishes: {compared}; try a norm (config.model.norm), residual blocks, or the initializer that '
        'fits (config.model.initializer=he for relu)'
      )
    if ratio > EXPLODING or not np.isfinite(norms).all():
      found['exploding'] = (
        f'the gradient explodes: {compared}; try a smaller config.model.init_gain, config.clip.name=global_norm or '
        'residual blocks'
      )
  for quantity, said, cure in (
    ('dead', 'of the units are dead (zero for the whole batch)', 'config.model.activation=leaky_relu'),
    ('saturated', 'of the activations are saturated', 'config.model.activation=relu'),
  ):
    if quantity in columns:
      column = columns[quantity]
      worst = int(np.nanargmax(column.values)) if np.isfinite(column.values).any() else 0
      if column.values[worst] > UNITS:
        found[quantity] = (
          f'{100 * column.values[worst]:.0f} % {said} in {names[column.entries[worst]]}; try a smaller '
          f'config.optim.learning_rate or config.model.init_gain, a norm (config.model.norm), or {cure}'
        )
  low, high = UPDATE_RATIOS
  ratios = np.asarray(columns['update_ratio'].values)
  median = float(np.median(ratios[np.isfinite(ratios)])) if np.isfinite(ratios).any() else np.nan
  if median > high or (median < low and rate > 0.5):
    way, unless = ('smaller', '') if median > high else ('larger', ', unless the network has learned all there is')
    found['update_ratio'] = (
      f'a step changes the parameters of the median entry by {median:.1e} of their norm, outside {low:.0e} to '
      f'{high:.0e}; try a {way} config.optim.learning_rate{unless}'
    )
  if always_clipped:
    found['clipping'] = (
      'the gradient has been clipped at every step that was looked at, so that the threshold sets the step size; try a '
      'larger config.clip.threshold or a smaller config.optim.learning_rate'
    )
  return found


def is_clipped(columns: Mapping[str, Column]) -> bool:
  """Returns whether clipping reduced the gradient of any entry."""
  return 'clip_factor' in columns and bool(np.any(np.asarray(columns['clip_factor'].values) < 0.999))
