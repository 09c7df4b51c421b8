"""The initializers of kernels that a config can name.

Kernels are [..., inputs, outputs] (dense: [inputs, outputs], convolution: [kh, kw, inputs, outputs]); the fan-in is the
product of all axes but the last, the fan-out that of all but the last but one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dnt import errors

Initializer = Callable[..., jax.Array]


def _he(gain: float) -> Initializer:
  return jax.nn.initializers.variance_scaling(2.0 * gain**2, 'fan_in', 'normal')


def _glorot(gain: float) -> Initializer:
  return jax.nn.initializers.variance_scaling(gain**2, 'fan_avg', 'uniform')


def _lecun(gain: float) -> Initializer:
  return jax.nn.initializers.variance_scaling(gain**2, 'fan_in', 'truncated_normal')


def _normal(gain: float) -> Initializer:
  return jax.nn.initializers.variance_scaling(gain**2, 'fan_in', 'normal')


def _orthogonal(gain: float) -> Initializer:
  return jax.nn.initializers.orthogonal(gain)


def _delta_orthogonal(gain: float) -> Initializer:
  orthogonal = jax.nn.initializers.orthogonal(gain)

  def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    center = tuple(k // 2 for k in shape[:-2])
    return jnp.zeros(shape, dtype).at[center].set(orthogonal(key, shape[-2:], dtype))

  return init


INITIALIZERS: dict[str, Callable[[float], Initializer]] = {
  'he': _he,
  'glorot': _glorot,
  'lecun': _lecun,
  'normal': _normal,
  'orthogonal': _orthogonal,
  'delta_orthogonal': _delta_orthogonal,
}


def make(name: str, gain: float = 1.0) -> Initializer:
  """The initializer of that name, its standard deviation times `gain`.

  - `he`: Gaussian of std sqrt(2 / fan_in) (He et al. 2015, eq. 10), whatever the activation.
  - `glorot`: uniform of std sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 16).
  - `lecun`: Gaussian of std 1 / sqrt(fan_in), cut off at two standard deviations (Flax's default).
  - `normal`: Gaussian of std gain / sqrt(fan_in), so that gain^2 is the weight variance sigma_w^2 of mean field theory
    (Poole et al. 2016).
  - `orthogonal`: the kernel as a matrix [fan_in, outputs] with W^T W = gain^2 I (W W^T when it is wide; Saxe et al.
    2014).
  - `delta_orthogonal`: an orthogonal matrix at the centre tap of a convolution, zero elsewhere (Xiao et al. 2018); the
    same as `orthogonal` for dense kernels. It keeps the norm where inputs <= outputs.

  Args:
    name: one of `INITIALIZERS`.
    gain: factor on the standard deviation.

  Returns:
    `init(key, shape, dtype=float32)`.

  Raises:
    errors.InputError: an unknown name.
  """
  if name not in INITIALIZERS:
    raise errors.unknown('initializer', name, INITIALIZERS)
  return INITIALIZERS[name](gain)
