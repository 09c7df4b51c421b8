"""The activations a config can name."""

import functools
from collections.abc import Callable

import jax

from dnt import errors

Activation = Callable[[jax.Array], jax.Array]


def identity(x: jax.Array) -> jax.Array:
  """x: a deep linear network."""
  return x


ACTIVATIONS: dict[str, Activation] = {
  'relu': jax.nn.relu,
  'leaky_relu': functools.partial(jax.nn.leaky_relu, negative_slope=0.01),
  'sigmoid': jax.nn.sigmoid,
  'tanh': jax.numpy.tanh,
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
  'silu': jax.nn.silu,
  'identity': identity,
}


def make(name: str) -> Activation:
  """The activation of that name; `gelu` is the exact one, `leaky_relu` has slope 0.01.

  Raises:
    errors.InputError: an unknown name.
  """
  if name not in ACTIVATIONS:
    raise errors.unknown('activation', name, ACTIVATIONS)
  return ACTIVATIONS[name]
