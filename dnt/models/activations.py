"""Activations by config name, as functions and as the module that blocks use."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from dnt import errors

Function = Callable[[jax.Array], jax.Array]


def identity(x: jax.Array) -> jax.Array:
  """Returns x, for deep linear networks."""
  return x


ACTIVATIONS: dict[str, Function] = {
  'relu': jax.nn.relu,
  'leaky_relu': functools.partial(jax.nn.leaky_relu, negative_slope=0.01),
  'sigmoid': jax.nn.sigmoid,
  'tanh': jax.numpy.tanh,
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
  'silu': jax.nn.silu,
  'identity': identity,
}


def make(name: str) -> Function:
  """Returns the activation of that name; `gelu` is the exact form, `leaky_relu` has slope 0.01.

  Raises:
    errors.InputError: the name is unknown.
  """
  if name not in ACTIVATIONS:
    raise errors.unknown('activation', name, ACTIVATIONS)
  return ACTIVATIONS[name]


class Activation(nn.Module):
  """An activation as a module without parameters, so that telemetry can intercept its calls.

  Attributes:
    kind: name of the activation.
  """

  kind: str

  def __call__(self, x: jax.Array) -> jax.Array:
    return make(self.kind)(x)
