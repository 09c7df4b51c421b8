"""Captures activation and gradient statistics of each entry in a running network, or one entry's whole output.

The captures intercept calls from outside, so that they work with any unmodified module: unrolled or scanned, with or
without remat. They record sums over examples, which add up across devices and micro-batches.

The other uses of a value decide how XLA fuses the operations that compute it, and on CPU also how it is rounded. Steps
with and without captures put the same optimization barriers around captured values, so their results are equal to the
last bit.

`apply_capturing_output` captures the whole output of one entry, example by example.

A user's own module may call its activations as plain functions: `function_calls` finds them in the traced program.
Where such an activation follows an entry, it stands for the output of the entry, unless something reads that output
besides it, such as a skip path.
"""

import collections
import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dnt import errors, trees
from dnt.models import activations, depth, function_calls, stage
from dnt.parallel.cpu import lowering

# Variable collections: captured values, and inputs that receive the gradients.
CAPTURES, GRADIENTS = stage.CAPTURES, stage.GRADIENTS
OUTPUT = 'output()'  # where an entry's output is stored: no name that a part of the entry may have
SATURATING = ('sigmoid', 'tanh')
# Threshold on |a|, scaled to [-1, 1]: above it the slope of sigmoid and tanh is below a tenth of its maximum.
SATURATED = 0.95


class Zeros(NamedTuple):
  """Holds float32 sums over the values of an activation or output.

  Attributes:
    count: number of values.
    zero: number of zeros.
    fired: [units], how often each unit of the last axis is not zero.
  """

  count: jax.Array
  zero: jax.Array
  fired: jax.Array


class Saturation(NamedTuple):
  """Holds float32 sums over the values of a sigmoid or tanh.

  Attributes:
    count: number of values.
    saturated: number of saturated values, see `SATURATED`.
    steep: [units], how often each unit of the last axis is not saturated.
  """

  count: jax.Array
  saturated: jax.Array
  steep: jax.Array


class Output(NamedTuple):
  """Holds float32 sums over the output of an entry.

  Attributes:
    sum: sum of the values.
    square: sum of their squares.
    units: counts of the zeros.
  """

  sum: jax.Array
  square: jax.Array
  units: Zeros


class Captures(NamedTuple):
  """Holds what `capturing` captured of an entry; in a scanned stage, each array has a leading axis of rows.

  Attributes:
    output: None if the entry's output holds no float, or the entry is inside a user's own `nn.scan` or `nn.vmap`, which
      leave out the collections that they do not name.
    units: of each activation inside, by its path from the entry; empty for an entry without any, whose output stands
      for one; None if its activations could not be captured.
  """

  output: Output | None
  units: dict[str, Zeros | Saturation] | None


def captures(result: Mapping[str, Any], path: str) -> Captures:
  """Returns what `capturing` captured of an entry.

  Args:
    result: the collection `CAPTURES`.
    path: path of the entry, see `depth.Entry`.
  """
  own = trees.subtree(result, path)
  flat = trees.flatten(own)
  units = {key.rpartition('/')[0]: value for key, value in flat.items() if isinstance(value, Zeros | Saturation)}
  return Captures(own.get(OUTPUT), None if 'unknown' in own and not units else units)


def barrier(tree: Any) -> Any:
  """Puts a barrier on each float leaf, so that its value does not depend on its consumers; in programs for CPU only."""
  return jax.tree.map(lambda leaf: lowering.barrier(leaf) if _inexact(leaf) else leaf, tree)


@contextlib.contextmanager
def barriers() -> Generator[None]:
  """Makes `model.apply` compute bit for bit the same as under `capturing`, but capture nothing."""
  with depth.intercept(lambda run, module: barrier(run())):
    yield


@jax.custom_vjp
def _capture_gradient(x: jax.Array, gradient_capture: jax.Array) -> jax.Array:
  """Returns x; the cotangent of `gradient_capture` is the sum of squares of x's cotangent."""
  del gradient_capture
  return x


_capture_gradient.defvjp(
  lambda x, gradient_capture: (x, None),
  lambda _, gradient: (gradient, jnp.sum(jnp.square(gradient.astype(jnp.float32)))),
)


def make_gradient_captures(table: Sequence[depth.Row]) -> dict[str, Any]:
  """Returns zeros, in the model's layout, whose gradients are the squared gradient norms at the entries' outputs.

  Args:
    table: rows of the entries to capture; the function skips entries that the model never calls.
  """
  rows: dict[str, list[int | None]] = {}
  for row in table:
    if row.shape is not None:
      rows.setdefault(row.entry.path, []).append(row.entry.row)
  shapes = {path: () if places == [None] else (len(places),) for path, places in rows.items()}
  return trees.unflatten({f'{path}/gradient_capture': jnp.zeros(shape) for path, shape in shapes.items()})


@contextlib.contextmanager
def capturing() -> Generator[None]:
  """Makes `model.apply` fill the collection `CAPTURES` (which must be mutable) and read `GRADIENTS`.

  Each entry stores an `Output`, and each `activations.Activation` in it `Zeros`, or for sigmoid and tanh a
  `Saturation`; `captures` returns them. If a module is called more than once, the sums are over all calls.
  """

  def entry(run, module):
    output = barrier(run())
    if module.has_variable(GRADIENTS, 'gradient_capture'):
      gradient_capture = module.get_variable(GRADIENTS, 'gradient_capture')
      output = jax.tree.map(lambda leaf: _capture_gradient(leaf, gradient_capture) if _inexact(leaf) else leaf, output)
    leaves = [leaf for leaf in jax.tree.leaves(output) if _inexact(leaf) and leaf.ndim]
    if leaves:
      with function_calls.ignored():
        x = jax.lax.stop_gradient(leaves[0]).astype(jnp.float32)
        _leave(module, OUTPUT, Output(jnp.sum(x), jnp.sum(jnp.square(x)), _zeros(x)))
    return output

  def activation(next_fun, args, kwargs, context):
    output = next_fun(*args, **kwargs)
    if isinstance(context.module, activations.Activation) and context.method_name == '__call__':
      with function_calls.ignored():
        _leave(context.module, 'units', _units(output, context.module.kind))
    return output

  with depth.intercept(entry), nn.intercept_methods(activation):
    yield


def with_function_calls(model: nn.Module, apply: Callable, watch: bool) -> Callable:
  """Lets `capturing` and `barriers` reach the activations that a user's own module calls as plain functions.

  Args:
    model: the module; for one of dnt's own, whose activations are modules, the result is `apply`.
    apply: `apply(variables, x, *rest) -> (output, updates)`, which calls `model.apply`.
    watch: whether to capture the activations, as inside `capturing`, or only to put barriers on them.
  """
  if not getattr(model, 'calls_functions', False):
    return apply

  def run(variables, x, *rest):
    program = function_calls.trace(apply, variables, x, *rest)
    sums: dict[str, Any] = {f'{path}/unknown': () for path in program.unknown}
    calls = collections.Counter()

    def hook(activation, value):
      value = barrier(value)
      if watch:
        calls[activation.path] += 1
        name = f'activation{calls[activation.path]}()'  # no name of a module
        sums[f'{activation.path}/{name}/units'] = _units(value, activation.kind)
      return value

    output, updates = function_calls.run(program, (variables, x, *rest), hook)
    if watch:
      updates = {**updates, CAPTURES: trees.merge(updates.get(CAPTURES, {}), trees.unflatten(sums))}
    return output, updates

  return run


def apply_capturing_output(
  model: nn.Module, entry: depth.Entry, variables: Mapping[str, Any], x: jax.Array, added: Any = None
) -> tuple[jax.Array, dict[str, Any]]:
  """Returns the logits and the output of one entry, in evaluation mode.

  The output is the first array that the entry returns, or the activation that a user's own module calls after it as a
  plain function, see `function_calls.following`. It is the only leaf of the result, `OUTPUT` below the path.
  For a scanned entry it is [rows, ...], with all rows that share the path.

  Args:
    model: a module with the call `model(x, train)`.
    entry: an entry of its depth list.
    variables: `params` and `batch_stats`, in the model's layout.
    x: [B, H, W, C], preprocessed.
    added: added to the output, with the same tree structure: the gradient with respect to zeros here is that at the
      output. None: nothing.

  Raises:
    errors.InputError: the model calls the entry more than once, so that its output is not unique.
  """

  def apply(variables, x):
    with _capturing_output(entry):
      logits, updates = model.apply(variables, x, train=False, mutable=[CAPTURES])
    return logits, updates[CAPTURES]

  if getattr(model, 'calls_functions', False):
    program = function_calls.trace(apply, variables, x)
    logits, outputs = jax.tree.unflatten(program.structure, program.closed.jaxpr.outvars)
    (output,) = jax.tree.leaves(outputs)
    following = function_calls.following(program, entry.path, output, logits)
    if following:
      outputs = {}

      def hook(activation, value):
        if activation is following:
          name = f'{entry.path}/{OUTPUT}'
          value = value if added is None else value + trees.flatten(added)[name]
          outputs[name] = value
        return value

      logits, _ = function_calls.run(program, (variables, x), hook)
      return logits, trees.unflatten(outputs)
  return apply(variables if added is None else {**variables, GRADIENTS: added}, x)


@contextlib.contextmanager
def _capturing_output(entry: depth.Entry) -> Generator[None]:
  """Makes `model.apply` capture the output of one entry, and add the value in `GRADIENTS` to the output.

  The entry may also be an activation of dnt's own inside one, see `depth.Row.activation`.
  """

  def keep(run, module):
    output = run()
    if '/'.join(module.path) != entry.path:
      return output
    if module.has_variable(CAPTURES, OUTPUT):
      raise errors.InputError(
        f'the network calls the entry {entry.name!r} more than once, so that its output is not unique'
      )
    leaves, structure = jax.tree.flatten(output)
    module.sow(CAPTURES, OUTPUT, leaves[0], init_fn=lambda: None, reduce_fn=lambda _, output: output)
    if module.has_variable(GRADIENTS, OUTPUT):
      leaves[0] = leaves[0] + module.get_variable(GRADIENTS, OUTPUT)
    return jax.tree.unflatten(structure, leaves)

  def activation(next_fun, args, kwargs, context):
    module = context.module
    inside = len(module.path) > 1  # one that is an entry itself is intercepted as such
    if inside and isinstance(module, activations.Activation) and context.method_name == '__call__':
      return keep(lambda: next_fun(*args, **kwargs), module)
    return next_fun(*args, **kwargs)

  with depth.intercept(keep), nn.intercept_methods(activation):
    yield


def _inexact(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _units(output: jax.Array, kind: str) -> Zeros | Saturation:
  x = jax.lax.stop_gradient(output).astype(jnp.float32)
  return _flat(x, kind) if kind in SATURATING else _zeros(x)


def _zeros(x: jax.Array) -> Zeros:
  zero = x == 0
  fired = jnp.sum(~zero, axis=tuple(range(x.ndim - 1)), dtype=jnp.float32)
  return Zeros(jnp.float32(x.size), jnp.sum(zero, dtype=jnp.float32), fired)


def _flat(x: jax.Array, kind: str) -> Saturation:
  saturated = jnp.abs(2 * x - 1 if kind == 'sigmoid' else x) > SATURATED
  steep = jnp.sum(~saturated, axis=tuple(range(x.ndim - 1)), dtype=jnp.float32)
  return Saturation(jnp.float32(x.size), jnp.sum(saturated, dtype=jnp.float32), steep)


def _leave(module: nn.Module, name: str, sums: Output | Zeros | Saturation) -> None:
  """Stores sums for a module; adds them up if the model calls it more than once."""
  module.sow(
    CAPTURES, name, sums, init_fn=lambda: None, reduce_fn=lambda a, b: b if a is None else jax.tree.map(jnp.add, a, b)
  )
