"""The layer constructors of all blocks; the config selects them, and networks pass them to blocks as values."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from dnt.config import typed
from dnt.models import activations, conv, dense, initializers, norms


@dataclasses.dataclass(frozen=True)
class Parts:
  """The layer constructors and the dtype that a block uses.

  Attributes:
    conv: `conv(features, kernel_size, strides=(1, 1), ...)` makes a `conv.Conv`. By default it has a bias only if the
      norm is 'none': batch_norm cancels it, and all norms but rms_norm add one. With rms_norm the convolutions have no
      bias at all. Those without a norm after them, such as the last of a pre-activation branch, have none either;
      set `use_bias=True` where it matters.
    dense: `dense(features, ...)` makes a `dense.Dense`, with a bias.
    norm: `norm(scale_init=..., ...)` makes a `norms.Norm`; call it with `(x, train)`.
    activation: `activation()` makes an `activations.Activation`.
    dtype: compute dtype.
  """

  conv: Callable[..., nn.Module]
  dense: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  activation: Callable[..., nn.Module]
  dtype: Any


def make(model: typed.Model) -> Parts:
  """Builds the parts from `config.model`.

  Raises:
    errors.InputError: the activation or initializer is unknown.
  """
  dtype = jnp.dtype(model.dtype)
  activations.make(model.activation)  # raises for an unknown name now, not when a block runs
  kernel_init = initializers.make(model.initializer, model.init_gain)
  return Parts(
    conv=functools.partial(
      conv.Conv,
      use_bias=model.norm == 'none',
      kernel_init=kernel_init,
      weight_standardization=model.weight_standardization,
      dtype=dtype,
    ),
    dense=functools.partial(dense.Dense, kernel_init=kernel_init, dtype=dtype),
    norm=functools.partial(
      norms.Norm,
      kind=model.norm,
      epsilon=model.norm_epsilon,
      groups=model.norm_groups,
      momentum=model.norm_momentum,
      sync=model.norm_sync,
    ),
    activation=functools.partial(activations.Activation, model.activation),
    dtype=dtype,
  )
