"""Finds between which values the results of a traced program lie whatever it computes with, as behind a sigmoid."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.extend import core

Range = tuple[float, float]  # the least value and the largest
ANY: Range = (-np.inf, np.inf)
_OF = {'logistic': (0.0, 1.0), 'tanh': (-1.0, 1.0), 'erf': (-1.0, 1.0), 'sin': (-1.0, 1.0), 'cos': (-1.0, 1.0)}
# What gives all values of its first operand, or some of them.
_MOVES = (
  *('reshape', 'squeeze', 'broadcast_in_dim', 'transpose', 'rev', 'slice', 'copy', 'stop_gradient'),
  *('convert_element_type', 'reduce_precision', 'sharding_constraint', 'reduce_max', 'reduce_min'),
)
# What grows or falls with each of two operands, so that the ends of their ranges give the ends of the result.
_MONOTONE = {
  'add': np.add,
  'sub': np.subtract,
  'mul': np.multiply,
  'div': np.divide,
  'max': np.maximum,
  'min': np.minimum,
}
_CALLS = (
  *('jit', 'pjit', 'closed_call', 'core_call', 'custom_jvp_call', 'custom_vjp_call'),
  *('checkpoint', 'remat', 'remat2', 'shard_map'),
)


def find(jaxpr: core.Jaxpr, given: Sequence[Range] = ()) -> list[Range]:
  """Returns the ranges in which the results of a program lie; `ANY` where its operations do not show one.

  Args:
    jaxpr: the program.
    given: the ranges of its arguments; empty: `ANY` of all.
  """
  known = dict(zip(jaxpr.invars, given, strict=True)) if given else {}

  def look(atom: core.Var | core.Literal) -> Range:
    if not isinstance(atom, core.Literal):
      return known.get(atom, ANY)
    values = np.asarray(atom.val, np.float64)
    return float(values.min()), float(values.max())

  for equation in jaxpr.eqns:
    if all(_is_float(each) for each in equation.outvars):
      known |= zip(equation.outvars, _results(equation, [look(each) for each in equation.invars]), strict=False)
  return [look(atom) for atom in jaxpr.outvars]


def _is_float(variable: core.Var) -> bool:
  return jnp.issubdtype(getattr(variable.aval, 'dtype', bool), jnp.floating)


def _results(equation: core.JaxprEqn, operands: Sequence[Range]) -> list[Range]:
  """Returns the ranges of the results of an operation; none if it says nothing."""
  kind = equation.primitive.name
  if kind in _OF:
    return [_OF[kind]]
  if kind in _MOVES:
    return [operands[0]]
  if kind in _CALLS:
    parts = [*core.jaxprs_in_params(equation.params)]
    return find(parts[0], operands) if len(parts) == 1 and len(parts[0].invars) == len(operands) else []
  if kind not in _MONOTONE or (kind == 'div' and operands[1][0] <= 0 <= operands[1][1]):
    return []
  with np.errstate(invalid='ignore'):
    ends = _MONOTONE[kind].outer(*operands)
  return [] if np.isnan(ends).any() else [(float(ends.min()), float(ends.max()))]
