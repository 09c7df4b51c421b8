"""Counts the FLOPs of a traced program by entry of the depth list."""

import collections
import contextlib
import math
import re

import jax.core
from jax.extend import core

_MARK = re.compile(r'dnt_entry_(\d+)_')


def mark(index: int) -> contextlib.AbstractContextManager[None]:
  """Marks all operations traced inside the context as those of the entry `index`, for `count`."""
  return jax.named_scope(f'dnt_entry_{index}_')


def count(jaxpr: core.Jaxpr) -> collections.Counter:
  """Counts FLOPs (2 x multiply-adds) of a program by entry index; the key None holds those outside entries."""
  total = collections.Counter()
  for equation in jaxpr.eqns:
    inner = _equation_flops(equation)
    mark = _MARK.search(str(equation.source_info.name_stack)) if inner else None
    for index, flops in inner.items():
      total[index if mark is None else int(mark[1])] += flops
  return total


def _array(variable: core.Var | core.Literal) -> jax.core.ShapedArray:
  aval = variable.aval
  assert isinstance(aval, jax.core.ShapedArray)  # the operands and results of convolutions and products
  return aval


def _equation_flops(equation: core.JaxprEqn) -> collections.Counter:
  kind, params = equation.primitive.name, equation.params
  if kind == 'conv_general_dilated':
    kernel, output = _array(equation.invars[1]), _array(equation.outvars[0])
    features = kernel.shape[params['dimension_numbers'].rhs_spec[0]]
    # A dilated input, as in the backward pass of a strided convolution, has zeros that no chip need multiply.
    return collections.Counter({None: 2 * output.size * (kernel.size // features) // math.prod(params['lhs_dilation'])})
  if kind == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    left, output = _array(equation.invars[0]), _array(equation.outvars[0])
    depth = math.prod(left.shape[axis] for axis in contracted)
    return collections.Counter({None: 2 * output.size * depth})
  parts = [count(inner) for inner in core.jaxprs_in_params(params)]
  if kind == 'cond':
    return max(parts, key=lambda part: part.total())
  times = params['length'] if kind == 'scan' else 1
  return collections.Counter({index: flops * times for part in parts for index, flops in part.items()})
