"""Kernel initializers by config name, which draw their values on the host.

Kernels are [..., inputs, outputs] (dense: [inputs, outputs], convolution: [kh, kw, inputs, outputs]). The fan-in is
the product of all axes but the last, the fan-out the product of all axes but the second to last.

Values come from NumPy's Philox generator, seeded with the key. XLA would compile a program for each shape, which takes
half a second each and dominates the start-up of a small network. Measured on two cores with jax 0.10.2, the cold start
of the default config to its first step (benchmarks/startup.py): 5.8 s; with the initializers of `jax.random`, 11.6 s if
each kernel is drawn by itself and 10.5 s if all are drawn in one program. With a warm compilation cache: 2.3, 2.5 and
2.2 s.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dnt import errors

PRNG = 'threefry2x32'  # of every key from a seed, whatever jax's default is, so that runs stay the same
Initializer = Callable[..., jax.Array]
Shape = tuple[int, ...]
Draw = Callable[[np.random.Generator, Shape], np.ndarray]

# Standard deviation of a standard normal truncated at two standard deviations.
_TRUNCATED_STD = 0.87962566103423978


def _on_host(draw: Draw) -> Initializer:
  """Returns a flax initializer that computes its values with `draw(generator, shape)`."""

  @functools.cache  # one callback per shape, because jax prepares every new callback
  def host(shape):
    def call(data):
      philox = np.random.Philox(key=int.from_bytes(np.asarray(data).tobytes(), 'little'))
      return draw(np.random.Generator(philox), shape).astype(np.float32)

    return call

  def init(key: jax.Array, shape: Shape, dtype: Any = jnp.float32) -> jax.Array:
    shape = tuple(shape)
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.pure_callback(host(shape), result, jax.random.key_data(key), vmap_method='sequential').astype(dtype)

  return init


def _fans(shape: Shape) -> tuple[int, int]:
  """Returns the fan-in and the fan-out."""
  return math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]


def _gaussian(generator, shape):
  return generator.standard_normal(shape, np.float32)


def _he(gain: float) -> Initializer:
  return _on_host(lambda generator, shape: _gaussian(generator, shape) * gain * math.sqrt(2 / _fans(shape)[0]))


def _glorot(gain: float) -> Initializer:
  def draw(generator, shape):
    bound = gain * math.sqrt(6 / sum(_fans(shape)))
    return generator.uniform(-bound, bound, shape)

  return _on_host(draw)


def _lecun(gain: float) -> Initializer:
  def draw(generator, shape):
    values = _gaussian(generator, shape)
    while (outside := np.abs(values) > 2).any():
      values[outside] = _gaussian(generator, int(outside.sum()))
    return values * gain / (_TRUNCATED_STD * math.sqrt(_fans(shape)[0]))

  return _on_host(draw)


def _normal(gain: float) -> Initializer:
  return _on_host(lambda generator, shape: _gaussian(generator, shape) * gain / math.sqrt(_fans(shape)[0]))


def _orthogonal_matrix(generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
  """Draws uniformly from matrices [rows, columns] with orthonormal columns (orthonormal rows if it is wide)."""
  q, r = np.linalg.qr(generator.standard_normal((max(rows, columns), min(rows, columns))))
  q = q * np.sign(np.diag(r))[None]  # makes the factorization unique, and q uniform
  return q if rows >= columns else q.T


def _orthogonal(gain: float) -> Initializer:
  def draw(generator, shape):
    return gain * _orthogonal_matrix(generator, _fans(shape)[0], shape[-1]).reshape(shape)

  return _on_host(draw)


def _delta_orthogonal(gain: float) -> Initializer:
  def draw(generator, shape):
    kernel = np.zeros(shape)
    kernel[tuple(k // 2 for k in shape[:-2])] = gain * _orthogonal_matrix(generator, *shape[-2:])
    return kernel

  return _on_host(draw)


INITIALIZERS: dict[str, Callable[[float], Initializer]] = {
  'he': _he,
  'glorot': _glorot,
  'lecun': _lecun,
  'normal': _normal,
  'orthogonal': _orthogonal,
  'delta_orthogonal': _delta_orthogonal,
}


def make(name: str, gain: float = 1.0) -> Initializer:
  """Returns the initializer of that name, with its standard deviation multiplied by `gain`.

  - `he`: Gaussian of std sqrt(2 / fan_in) (He et al. 2015, eq. 10), for any activation.
  - `glorot`: uniform of std sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 16).
  - `lecun`: Gaussian of std 1 / sqrt(fan_in), truncated at two standard deviations (Flax's default).
  - `normal`: Gaussian of std gain / sqrt(fan_in), so that gain^2 is the weight variance sigma_w^2 of mean field theory
    (Poole et al. 2016).
  - `orthogonal`: the kernel as a matrix [fan_in, outputs] with W^T W = gain^2 I (W W^T if it is wide; Saxe et al.
    2014).
  - `delta_orthogonal`: an orthogonal matrix at the center of a convolution kernel, zero elsewhere (Xiao et al. 2018);
    the same as `orthogonal` for dense kernels. It preserves the norm if inputs <= outputs.

  Args:
    name: one of `INITIALIZERS`.
    gain: factor on the standard deviation.

  Returns:
    `init(key, shape, dtype=float32)`.

  Raises:
    errors.InputError: the name is unknown.
  """
  if name not in INITIALIZERS:
    raise errors.unknown('initializer', name, INITIALIZERS)
  return INITIALIZERS[name](gain)
