"""The activations a config can name, as functions and as the module that blocks are built from."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from dnt import errors

Function = Callable[[jax.Array], jax.Array]


def identity(x: jax.Array) -> jax.Array:
  """x: a deep linear network."""
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
  """The activation of that name; `gelu` is the exact one, `leaky_relu` has slope 0.01.

  Raises:
    errors.InputError: an unknown name.
  """
  if name not in ACTIVATIONS:
    raise errors.unknown('activation', name, ACTIVATIONS)
  return ACTIVATIONS[name]


class Activation(nn.Module):
  """An activation as a module without parameters, so that the units of a network can be found from outside.

  Attributes:
    kind: its name.
  """

  kind: str

  def __call__(self, x: jax.Array) -> jax.Array:
    return make(self.kind)(x)
