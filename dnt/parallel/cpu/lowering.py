"""Lets programs that are lowered for CPU differ from those for other platforms: barriers, and fast convolutions.

jax lowers a traced function for a platform: by default that of its arguments' devices, with `jax.export` or the devices
of a topology another one. The rules here therefore decide while jax lowers, not while it traces.

Convolutions: on CPU, XLA calls its fast library only for convolutions in the form NHWC x HWIO -> NHWC (and the like in
one or three dimensions). Outside loops XLA rewrites other forms; inside `lax.scan`, `fori_loop` and `cond` it does not,
and they run 20 to 90 times slower. Among them are both backward passes of every convolution. The rule here writes all
of them in that form, except those whose window is at one place only: a matrix product is faster. Such is the gradient
of every 1x1 kernel: its window is the whole image, and with jax 0.12 the library takes up to 14 times as long. The rule
holds for every convolution of the process, so also for those of a user's own module.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from dnt.parallel import cpu

_log = logging.getLogger('dnt')


def barrier(x: jax.Array) -> jax.Array:
  """Returns x behind an optimization barrier if the program is lowered for CPU alone; its gradient passes one too."""
  return _barrier.bind(x) if cpu.uses('barriers') else x


def _for_cpu(ctx: mlir.LoweringRuleContext) -> bool:
  # A program exported for several platforms at once gets the code for accelerators.
  return tuple(ctx.module_context.platforms) == ('cpu',)


def _lower_barrier(ctx: mlir.LoweringRuleContext, x: Any) -> Any:
  return mlir.lower_fun(lax.optimization_barrier, multiple_results=False)(ctx, x) if _for_cpu(ctx) else [x]


_barrier = core.Primitive('cpu_barrier')
_barrier.def_impl(lambda x: x)
_barrier.def_abstract_eval(lambda x: x)
batching.defvectorized(_barrier)
ad.deflinear2(_barrier, lambda gradient, x: [_barrier.bind(gradient)])
mlir.register_lowering(_barrier, _lower_barrier)


def _find_rule() -> Callable[..., Any] | None:
  """Returns jax's own rule for convolutions on CPU, which has no public name; None if this version has none here."""
  try:
    return mlir._platform_specific_lowerings['cpu'][lax.conv_general_dilated_p].rule
  except (AttributeError, KeyError, TypeError):
    return None


_lower_as_given = _find_rule()


@functools.cache
def check() -> None:
  """Warns if this version of jax does not show the rule that fast convolutions replace."""
  if _lower_as_given is None and cpu.uses('convolutions'):
    _log.warning('jax %s is untested: convolutions in loops are slow on CPU', jax.__version__)


def _lower_convolution(
  ctx: mlir.LoweringRuleContext, x: Any, kernel: Any, *, dimension_numbers: lax.ConvDimensionNumbers, **params: Any
) -> Any:
  *spatial, last = range(1, len(dimension_numbers.lhs_spec))
  images = (0, last, *spatial)
  fast = lax.ConvDimensionNumbers(images, (last, last - 1, *range(last - 1)), images)
  rewrites = _for_cpu(ctx) and cpu.uses('convolutions')
  if rewrites and _is_product(ctx.avals_out[0].shape, dimension_numbers, **params):
    product = functools.partial(_multiply, numbers=dimension_numbers, **params)
    return mlir.lower_fun(product, multiple_results=False)(ctx, x, kernel)
  if not rewrites or dimension_numbers == fast:
    assert _lower_as_given is not None  # else this rule is not registered
    return _lower_as_given(ctx, x, kernel, dimension_numbers=dimension_numbers, **params)

  def convolve(x, kernel):
    x = lax.transpose(x, _permutation(dimension_numbers.lhs_spec, fast.lhs_spec))
    kernel = lax.transpose(kernel, _permutation(dimension_numbers.rhs_spec, fast.rhs_spec))
    y = lax.conv_general_dilated_p.bind(x, kernel, dimension_numbers=fast, **params)
    return lax.transpose(y, _permutation(fast.out_spec, dimension_numbers.out_spec))

  return mlir.lower_fun(convolve, multiple_results=False)(ctx, x, kernel)


def _is_product(
  out: Sequence[int],
  numbers: lax.ConvDimensionNumbers,
  *,
  padding: Sequence[tuple[int, int]],
  lhs_dilation: Sequence[int],
  feature_group_count: int,
  batch_group_count: int,
  **_: Any,
) -> bool:
  """Returns whether the window is at one place only, where it reads no zeros: then `_multiply` gives the output."""
  return (
    all(out[axis] == 1 for axis in numbers.out_spec[2:])
    and all(low <= 0 and high <= 0 for low, high in padding)
    and all(dilation == 1 for dilation in lhs_dilation)
    and feature_group_count == batch_group_count == 1
  )


def _multiply(
  x: jax.Array,
  kernel: jax.Array,
  *,
  numbers: lax.ConvDimensionNumbers,
  padding: Sequence[tuple[int, int]],
  rhs_dilation: Sequence[int],
  precision: Any,
  preferred_element_type: Any,
  **_: Any,
) -> jax.Array:
  """Multiplies what the only window reads of x with the kernel, summed over places and channels."""
  image, window = numbers.lhs_spec[1:], numbers.rhs_spec[1:]
  for axis, side, (low, _high), dilation in zip(image[1:], window[1:], padding, rhs_dilation, strict=True):
    end = (kernel.shape[side] - 1) * dilation + 1 - low
    x = lax.slice_in_dim(x, -low, end, dilation, axis)
  contracted = ((image, window), ((), ()))
  y = lax.dot_general(x, kernel, contracted, precision, preferred_element_type)
  y = lax.expand_dims(y, range(2, x.ndim))
  return lax.transpose(y, _permutation(range(x.ndim), numbers.out_spec))


def _permutation(before: Sequence[int], after: Sequence[int]) -> list[int]:
  """Returns the permutation that moves the axes of an array from their places `before` to those `after`."""
  return [axis for _, axis in sorted(zip(after, before, strict=True))]


if _lower_as_given is not None:
  mlir.register_lowering(lax.conv_general_dilated_p, _lower_convolution, platform='cpu')
