"""Taps on a running network: what each entry's units do, and the gradient at each entry's output; one output whole.

Taps are set from outside, by intercepting calls, so that any module can be watched as it is: unrolled or scanned, with
or without remat. What they find is a sum over examples, so that devices and micro-batches add up.

What else is done with a value decides how XLA fuses the operations that make it, and on CPU also how it is rounded. So
that a step with taps is that without to the last bit, both make what is watched behind fences.

Where an output and its gradient are needed whole, example by example, `holding` has them of one entry.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dnt import errors, trees
from dnt.models import activations, depth

FOUND, SINKS = 'telemetry', 'sinks'  # variable collections: what taps find, and what takes up the gradients
SATURATING = ('sigmoid', 'tanh')
# Of |a| on a scale from -1 to 1: beyond it the slope of sigmoid and tanh is below a tenth of its largest value.
SATURATED = 0.95


def fence(tree: Any) -> Any:
  """The floats of a tree, on CPU each behind an optimization barrier, so that it is made the same whoever reads it."""
  if jax.default_backend() != 'cpu':
    return tree
  return jax.tree.map(lambda leaf: jax.lax.optimization_barrier(leaf) if _inexact(leaf) else leaf, tree)


@contextlib.contextmanager
def fencing() -> Iterator[None]:
  """A context in which `model.apply` computes to the last bit what it computes under `watching`, and leaves nothing."""
  with depth.watching(lambda run, module: fence(run())):
    yield


@jax.custom_vjp
def _tap(x: jax.Array, sink: jax.Array) -> jax.Array:
  """x; the cotangent of `sink` is the sum of squares of that of x."""
  del sink
  return x


_tap.defvjp(
  lambda x, sink: (x, None), lambda _, gradient: (gradient, jnp.sum(jnp.square(gradient.astype(jnp.float32))))
)


def make_sinks(table: Sequence[depth.Row]) -> dict[str, Any]:
  """Zeros whose gradients are the squared gradient norms at the outputs of the entries, in the model's layout.

  Args:
    table: of the entries to tap; those that are never called are left out.
  """
  rows: dict[str, list[int | None]] = {}
  for row in table:
    if row.shape is not None:
      rows.setdefault(row.entry.path, []).append(row.entry.row)
  shapes = {path: () if places == [None] else (len(places),) for path, places in rows.items()}
  return trees.unflatten({f'{path}/sink': jnp.zeros(shape) for path, shape in shapes.items()})


@contextlib.contextmanager
def watching() -> Iterator[None]:
  """A context in which `model.apply` fills the collection `FOUND` (which must be mutable) and reads `SINKS`.

  Each entry leaves, under `<path>/output`, float32 sums over its output: `sum`, `square`, `count`, `zero` (how many are
  zero) and `fired` [units] (how often each unit, along the last axis, is not zero). Each `activations.Activation` in
  it leaves, under `<path>/.../units`, `count` and either `zero` and `fired`, or for sigmoid and tanh `saturated` and
  `steep` [units] (how often each unit is not saturated).
  """

  def entry(run, module):
    output = fence(run())
    if module.has_variable(SINKS, 'sink'):
      sink = module.get_variable(SINKS, 'sink')
      output = jax.tree.map(lambda leaf: _tap(leaf, sink) if _inexact(leaf) else leaf, output)
    leaves = [leaf for leaf in jax.tree.leaves(output) if _inexact(leaf) and leaf.ndim]
    if leaves:
      x = jax.lax.stop_gradient(leaves[0]).astype(jnp.float32)
      sums = {'sum': jnp.sum(x), 'square': jnp.sum(jnp.square(x))}
      _leave(module, 'output', sums | _zeros(x))
    return output

  def activation(next_fun, args, kwargs, context):
    output = next_fun(*args, **kwargs)
    if isinstance(context.module, activations.Activation) and context.method_name == '__call__':
      x = jax.lax.stop_gradient(output).astype(jnp.float32)
      _leave(context.module, 'units', _flat(x, context.module.kind) if context.module.kind in SATURATING else _zeros(x))
    return output

  with depth.watching(entry), nn.intercept_methods(activation):
    yield


@contextlib.contextmanager
def holding(entry: depth.Entry) -> Iterator[None]:
  """A context in which `model.apply` keeps the output of one entry, and hands on the output plus what `SINKS` hold.

  `FOUND` (which must be mutable) holds it under `<path>/output`: the first array that the entry returns, of a scanned
  entry [rows, ...], those of all rows that share its path. The gradient at zeros in `SINKS`, of the same tree, is then
  that at the output.

  Args:
    entry: of the depth list.

  Raises:
    errors.InputError: when the model runs: it calls the entry more than once, so that it has no one output.
  """

  def keep(run, module):
    output = run()
    if '/'.join(module.path) != entry.path:
      return output
    if module.has_variable(FOUND, 'output'):
      raise errors.InputError(f'the network calls the entry {entry.name!r} more than once: it has no one output')
    leaves, structure = jax.tree.flatten(output)
    module.sow(FOUND, 'output', leaves[0], init_fn=lambda: None, reduce_fn=lambda _, output: output)
    if module.has_variable(SINKS, 'output'):
      leaves[0] = leaves[0] + module.get_variable(SINKS, 'output')
    return jax.tree.unflatten(structure, leaves)

  with depth.watching(keep):
    yield


def _inexact(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _zeros(x: jax.Array) -> dict[str, jax.Array]:
  zero = x == 0
  fired = jnp.sum(~zero, axis=tuple(range(x.ndim - 1)), dtype=jnp.float32)
  return {'count': jnp.float32(x.size), 'zero': jnp.sum(zero, dtype=jnp.float32), 'fired': fired}


def _flat(x: jax.Array, kind: str) -> dict[str, jax.Array]:
  saturated = jnp.abs(2 * x - 1 if kind == 'sigmoid' else x) > SATURATED
  steep = jnp.sum(~saturated, axis=tuple(range(x.ndim - 1)), dtype=jnp.float32)
  return {'count': jnp.float32(x.size), 'saturated': jnp.sum(saturated, dtype=jnp.float32), 'steep': steep}


def _leave(module: nn.Module, name: str, sums: dict[str, jax.Array]) -> None:
  """A module that is called more than once leaves the sum of its calls."""
  module.sow(
    FOUND, name, sums, init_fn=lambda: None, reduce_fn=lambda a, b: b if a is None else jax.tree.map(jnp.add, a, b)
  )
