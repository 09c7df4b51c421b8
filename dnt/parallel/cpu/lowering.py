"""Lets a traced function contain code that only a program lowered for CPU includes.

jax lowers a traced function for a platform: by default that of its arguments' devices, with `jax.export` or the devices
of a topology another one. The functions here therefore decide while jax lowers, not while it traces.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from dnt.parallel import cpu


def barrier(x: jax.Array) -> jax.Array:
  """Returns x behind an optimization barrier if the program is lowered for CPU alone; its gradient passes one too."""
  return _barrier.bind(x) if cpu.uses('barriers') else x


def choose(*args: jax.Array, on_cpu: Callable, elsewhere: Callable, like: int) -> jax.Array:
  """Returns `on_cpu(*args)` if the program is lowered for CPU alone, else `elsewhere(*args)`.

  jax's own `lax.platform_dependent` wraps each choice in a conditional of one branch, even for a single platform.

  Args:
    *args: arrays.
    on_cpu: function of `args`; it returns an array.
    elsewhere: function of `args` with the same result; its derivative is that of both.
    like: index of the argument that has the shape and dtype of the result.
  """
  return _choice.bind(*args, on_cpu=on_cpu, elsewhere=elsewhere, like=like)


def _for_cpu(ctx: mlir.LoweringRuleContext) -> bool:
  # A program exported for several platforms at once gets the code for accelerators.
  return tuple(ctx.platforms or ctx.module_context.platforms) == ('cpu',)


def _lower_barrier(ctx: mlir.LoweringRuleContext, x: Any) -> Any:
  return mlir.lower_fun(lax.optimization_barrier, multiple_results=False)(ctx, x) if _for_cpu(ctx) else [x]


_barrier = core.Primitive('cpu_barrier')
_barrier.def_impl(lambda x: x)
_barrier.def_abstract_eval(lambda x: x)
batching.defvectorized(_barrier)
ad.deflinear2(_barrier, lambda gradient, x: [_barrier.bind(gradient)])
mlir.register_lowering(_barrier, _lower_barrier)


def _lower_choice(ctx: mlir.LoweringRuleContext, *args: Any, on_cpu: Callable, elsewhere: Callable, like: int) -> Any:
  return mlir.lower_fun(on_cpu if _for_cpu(ctx) else elsewhere, multiple_results=False)(ctx, *args)


def _batch_choice(args: Any, axes: Any, *, on_cpu: Callable, elsewhere: Callable, like: int) -> Any:
  size = next(arg.shape[axis] for arg, axis in zip(args, axes, strict=True) if axis is not None)
  args, axes = list(args), list(axes)
  args[like], axes[like] = batching.bdim_at_front(args[like], axes[like], size), 0
  each = {'on_cpu': jax.vmap(on_cpu, axes), 'elsewhere': jax.vmap(elsewhere, axes)}
  return _choice.bind(*args, **each, like=like), 0


def _differentiate_choice(primals: Any, tangents: Any, *, elsewhere: Callable, **rest: Any) -> Any:
  _, tangent = jax.jvp(elsewhere, tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))
  return _choice.bind(*primals, elsewhere=elsewhere, **rest), tangent


_choice = core.Primitive('cpu_choice')
_choice.def_impl(lambda *args, elsewhere, **_: elsewhere(*args))
_choice.def_abstract_eval(lambda *args, like, **_: args[like])
mlir.register_lowering(_choice, _lower_choice)
ad.primitive_jvps[_choice] = _differentiate_choice
batching.primitive_batchers[_choice] = _batch_choice
