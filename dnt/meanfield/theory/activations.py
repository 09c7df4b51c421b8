"""Activations and their derivatives in float64: those of `dnt.models.activations`, and erf, which has closed forms."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special

from dnt import errors

Function = Callable[[np.ndarray], np.ndarray]


class Activation(NamedTuple):
  """phi and phi', of float64 arrays of any shape. Any that is smooth everywhere but at 0 will do."""

  function: Function
  derivative: Function


def normal_density(x: np.ndarray) -> np.ndarray:
  """exp(-x^2 / 2) / sqrt(2 pi)."""
  return np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


ACTIVATIONS: dict[str, Activation] = {
  'relu': Activation(lambda x: np.maximum(x, 0), lambda x: np.where(x > 0, 1.0, 0.0)),
  'leaky_relu': Activation(lambda x: np.where(x > 0, x, 0.01 * x), lambda x: np.where(x > 0, 1.0, 0.01)),
  'sigmoid': Activation(special.expit, lambda x: special.expit(x) * special.expit(-x)),
  'tanh': Activation(np.tanh, lambda x: 1 - np.tanh(x) ** 2),
  'gelu': Activation(lambda x: x * special.ndtr(x), lambda x: special.ndtr(x) + x * normal_density(x)),
  'silu': Activation(lambda x: x * special.expit(x), lambda x: special.expit(x) * (1 + x * special.expit(-x))),
  'identity': Activation(lambda x: x, np.ones_like),
  'erf': Activation(special.erf, lambda x: 2 / math.sqrt(math.pi) * np.exp(-(x**2))),
}


def make(activation: str | Activation) -> Activation:
  """The activation of that name, or the given one itself.

  Raises:
    errors.InputError: an unknown name.
  """
  if isinstance(activation, Activation):
    return activation
  if activation not in ACTIVATIONS:
    raise errors.unknown('activation', activation, ACTIVATIONS)
  return ACTIVATIONS[activation]
