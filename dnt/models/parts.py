"""The parts that every block is built from, chosen by the config and passed to blocks as values."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from dnt.models import activations, conv, initializers, norms


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a block needs to build itself.

  Attributes:
    conv: `conv(features, kernel_size, strides=(1, 1), ...)` makes a `conv.Conv`. It has a bias only where there is no
      norm to undo it: a convolution that no norm follows asks for `use_bias=True`.
    dense: `dense(features, ...)` makes an `nn.Dense`, with a bias.
    norm: `norm(scale_init=..., ...)` makes a `norms.Norm`; call it with `(x, train)`.
    activation: `activation()` makes an `activations.Activation`.
    dtype: compute dtype.
  """

  conv: Callable[..., nn.Module]
  dense: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  activation: Callable[..., nn.Module]
  dtype: Any


def make(model: ml_collections.ConfigDict) -> Parts:
  """The parts that `config.model` asks for.

  Raises:
    errors.InputError: an unknown activation or initializer.
  """
  dtype = jnp.dtype(model.dtype)
  activations.make(model.activation)  # an unknown one is refused here, not when a block is called
  kernel_init = initializers.make(model.initializer, model.init_gain)
  return Parts(
    conv=functools.partial(
      conv.Conv,
      use_bias=model.norm == 'none',
      kernel_init=kernel_init,
      weight_standardization=model.weight_standardization,
      dtype=dtype,
    ),
    dense=functools.partial(nn.Dense, kernel_init=kernel_init, dtype=dtype),
    norm=functools.partial(
      norms.Norm,
      kind=model.norm,
      epsilon=model.norm_epsilon,
      groups=model.norm_groups,
      momentum=model.norm_momentum,
    ),
    activation=functools.partial(activations.Activation, model.activation),
    dtype=dtype,
  )
