"""The convolution of all models."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dnt import errors
from dnt.models import norms
from dnt.parallel.cpu import lowering

Pair = tuple[int, int]
Padding = Literal['SAME'] | tuple[Pair, Pair]
LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def conv2d(x: jax.Array, kernel: jax.Array, *, strides: Pair = (1, 1), padding: Padding = 'SAME') -> jax.Array:
  """Computes a two-dimensional cross-correlation.

  Args:
    x: [B, H, W, C].
    kernel: [kh, kw, C, features], x's dtype.
    strides: (rows, columns).
    padding: numbers of zeros ((top, bottom), (left, right)), or 'SAME': k // 2 on every side for any stride, as in
      PyTorch's models (XLA's own SAME pads less on the top and left at stride 2).

  Returns:
    [B, H', W', features], x's dtype.

  Raises:
    errors.InputError: the shapes do not match.
  """
  if x.ndim != 4 or kernel.ndim != 4 or x.shape[-1] != kernel.shape[2]:
    raise errors.InputError(
      f'a convolution of {tuple(x.shape)} (NHWC) with a kernel {tuple(kernel.shape)} (HWIO) does not fit; the channels '
      'must be the inputs of the kernel'
    )
  sides = symmetric_padding((kernel.shape[0], kernel.shape[1])) if padding == 'SAME' else padding
  (top, bottom), (left, right) = sides
  # Without the barrier, XLA on CPU recomputes the elementwise operations of all earlier blocks in every consumer.
  x = lowering.barrier(x)
  return lax.conv_general_dilated(x, kernel, strides, ((top, bottom), (left, right)), dimension_numbers=LAYOUT)


def symmetric_padding(kernel_size: Pair) -> tuple[Pair, Pair]:
  """Returns a padding of k // 2 on every side."""
  height, width = kernel_size
  return (height // 2, height // 2), (width // 2, width // 2)


class Conv(nn.Module):
  """A convolution that owns its float32 `kernel` [kh, kw, C, features] and `bias` [features].

  Attributes:
    features: number of output channels.
    kernel_size: (kh, kw).
    strides: (rows, columns).
    padding: see `conv2d`.
    use_bias: whether to add a bias.
    kernel_init: flax initializer.
    bias_init: flax initializer.
    weight_standardization: whether to standardize the kernel over its fan-in before use.
    dtype: compute dtype of input, kernel and output.
  """

  features: int
  kernel_size: Pair
  strides: Pair = (1, 1)
  padding: Padding = 'SAME'
  use_bias: bool = True
  kernel_init: Callable[..., jax.Array] = nn.initializers.he_normal()
  bias_init: Callable[..., jax.Array] = nn.initializers.zeros_init()
  weight_standardization: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (*self.kernel_size, x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
    if self.weight_standardization:
      kernel = norms.weight_standardize(kernel)
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    y = conv2d(x, kernel, strides=self.strides, padding=self.padding)
    if self.use_bias:
      bias = self.param('bias', self.bias_init, (self.features,), jnp.float32)
      # In float32, as the gradient of the bias sums over all positions, which bfloat16 cannot count.
      y = (y + bias.reshape(1, 1, 1, -1)).astype(self.dtype)
    return y
