"""The dense layer of all models."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def _promote_all_but_bias(
  x: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, dtype: Any
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Returns x and kernel in the compute dtype, and the bias as it is."""
  return x.astype(dtype), kernel.astype(dtype), bias


class Dense(nn.Dense):
  """flax's dense layer, with its bias in float32: `kernel` [inputs, features] and `bias` [features].

  The gradient of the bias sums over the batch, which bfloat16 cannot count.

  Attributes:
    dtype: compute dtype of input, kernel and output.
  """

  dtype: Any = jnp.float32
  promote_dtype: Any = _promote_all_but_bias

  def __call__(self, inputs: jax.Array) -> jax.Array:
    return super().__call__(inputs).astype(self.dtype)
