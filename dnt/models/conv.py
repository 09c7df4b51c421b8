"""The convolution of all models: XLA's own, with backward passes that stay fast on CPU inside loops.

On CPU, XLA calls its fast library only for convolutions in the form NHWC x HWIO -> NHWC. Outside loops XLA rewrites
other forms; inside `lax.scan`, `fori_loop` and `cond` it does not, and they run 20 to 40 times slower. In a program for
CPU, this module therefore writes the two backward passes in that form. Their values equal the gradients of
`lax`, which programs for other platforms use.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dnt import errors
from dnt.models import norms
from dnt.parallel import cpu
from dnt.parallel.cpu import lowering

Pair = tuple[int, int]
Padding = Literal['SAME'] | tuple[Pair, Pair]
LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def conv2d(x: jax.Array, kernel: jax.Array, *, strides: Pair = (1, 1), padding: Padding = 'SAME') -> jax.Array:
  """Computes a two-dimensional cross-correlation; it supports reverse mode only (no `jvp`).

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
  return _conv2d(lowering.barrier(x), kernel, tuple(strides), ((top, bottom), (left, right)))


def symmetric_padding(kernel_size: Pair) -> tuple[Pair, Pair]:
  """Returns a padding of k // 2 on every side."""
  height, width = kernel_size
  return (height // 2, height // 2), (width // 2, width // 2)


def _plain(x, kernel, strides, padding, **kwargs):
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT, **kwargs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d(x, kernel, strides, padding):
  return _plain(x, kernel, strides, padding)


def _forward(x, kernel, strides, padding):
  return _plain(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, saved, g):
  if not cpu.uses('convolutions'):
    return tuple(gradient(strides, padding, *saved, g) for gradient in (_own_dx, _own_dkernel))

  def choose(on_cpu, elsewhere, like):
    on_cpu, elsewhere = (functools.partial(gradient, strides, padding) for gradient in (on_cpu, elsewhere))
    return lowering.choose(*saved, g, on_cpu=on_cpu, elsewhere=elsewhere, like=like)

  return choose(_cpu_dx, _own_dx, 0), choose(_cpu_dkernel, _own_dkernel, 1)


def _own_dx(strides, padding, x, kernel, g):
  return jax.linear_transpose(lambda x: _plain(x, kernel, strides, padding), x)(g)[0]


def _own_dkernel(strides, padding, x, kernel, g):
  return jax.linear_transpose(lambda kernel: _plain(x, kernel, strides, padding), kernel)(g)[0]


def _sides(strides, padding, x, kernel, g):
  """Yields for rows and columns: sizes of x, kernel and g dilated by the stride, and the padding before."""
  for n, k, o, s, (low, _) in zip(x.shape[1:3], kernel.shape[:2], g.shape[1:3], strides, padding, strict=True):
    yield n, k, (o - 1) * s + 1, low


def _cpu_dx(strides, padding, x, kernel, g):
  """Convolves g, dilated by the stride, with the flipped kernel with swapped input and output axes."""
  pads = tuple((k - 1 - low, n - d + low) for n, k, d, low in _sides(strides, padding, x, kernel, g))
  return _plain(g, kernel[::-1, ::-1].swapaxes(2, 3), (1, 1), pads, lhs_dilation=strides)


def _cpu_dkernel(strides, padding, x, kernel, g):
  """Convolves x with g as the kernel; channels act as the batch, and examples as the channels."""
  pads = tuple((low, k - 1 + d - n - low) for n, k, d, low in _sides(strides, padding, x, kernel, g))
  dkernel = _plain(x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), (1, 1), pads, rhs_dilation=strides)
  return dkernel.transpose(1, 2, 0, 3)


_conv2d.defvjp(_forward, _backward)


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
      y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
    return y
