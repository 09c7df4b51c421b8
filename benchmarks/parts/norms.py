"""dnt's norms on a large activation, beside a copy of it: the least number of bytes that must move, per second.

Forward must read x and write y; forward and backward must read x, write y, and then read x and the gradient of y and
write the gradient of x: twice and five times the activation. Norms whose statistics need a pass of their own move more,
so that their fraction of the copy's rate cannot reach 1.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import racing
from benchmarks.parts import options as options_lib

SHAPE, TINY_SHAPE = (256, 56, 56, 256), (2, 4, 4, 32)  # that of the first stage of ResNet-50, batch 256
DTYPES = ('bfloat16', 'float32')
ROUNDS, CALLS = 5, 10


def programs(x: Any) -> dict[str, tuple[Callable, int]]:
  """What is timed, and how many times the activation it must move."""
  import jax
  import jax.numpy as jnp

  from dnt.models import norms

  def batch(x, scale, bias):
    return norms.batch_norm(x, scale, bias, *norms.batch_statistics(x))

  kinds = {
    'batch_norm': batch,
    'layer_norm': norms.layer_norm,
    'group_norm': functools.partial(norms.group_norm, groups=32),
    'rms_norm': lambda x, scale, bias: norms.rms_norm(x, scale),
  }
  scale, bias = jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1])

  def forward(fn):
    jitted = jax.jit(fn)
    return lambda: jitted(x, scale, bias)

  def both(norm):
    @jax.jit
    def jitted(x, gradient, scale, bias):
      y, pullback = jax.vjp(norm, x, scale, bias)
      return y, pullback(gradient)

    return lambda: jitted(x, gradient, scale, bias)

  gradient = -x  # an array of its own, or it would be read together with x
  found = {'copy': (forward(lambda x, scale, bias: -x), 2)}
  for name, norm in kinds.items():
    found[f'{name}, forward'] = (forward(norm), 2)
    found[f'{name}, forward and backward'] = (both(norm), 5)
  return found


def run(options: options_lib.Options, save: Callable[[Any], None]) -> None:
  import jax
  import jax.numpy as jnp

  shape, calls = (TINY_SHAPE, 1) if options.tiny else (SHAPE, CALLS)
  found: dict[str, Any] = {'shape': shape, 'device': options_lib.device(), 'rates': {}}
  for dtype in DTYPES[:1] if options.tiny else DTYPES:
    x = jax.random.normal(jax.random.key(0), shape, jnp.dtype(dtype))
    timed = programs(x)

    def turn(fn):
      start = time.perf_counter()
      for _ in range(calls):
        result = fn()
      jax.block_until_ready(result)
      return (time.perf_counter() - start) / calls

    asked = {name: functools.partial(turn, fn) for name, (fn, _) in timed.items()}
    racing.take_turns(asked, 1)  # compiled
    turns = racing.take_turns(asked, 2 if options.tiny else ROUNDS)
    rates = {name: times * x.nbytes / statistics.median(turns[name]) for name, (_, times) in timed.items()}
    found['rates'][dtype] = {
      name: {
        'gigabytes_per_second': rate / 1e9,
        'of_copy': rate / rates['copy'],
        'milliseconds': 1e3 * statistics.median(turns[name]),
      }
      for name, rate in rates.items()
    }
    save(found)


def markdown(found: Any) -> str:
  names = list(next(iter(found['rates'].values())))
  rows = []
  for name in names:
    row = {'x'.join(map(str, found['shape'])): name}
    for dtype, rates in found['rates'].items():
      row |= {f'{dtype}, GB/s': f'{rates[name]["gigabytes_per_second"]:,.0f}'}
      row |= {f'{dtype}, of a copy': f'{rates[name]["of_copy"]:.2f}'}
    rows.append(row)
  return options_lib.table(rows)
