"""Batch norm on Gaussian pre-activations: what leaves it, and the gradient through it.

Yang et al. 2019, "A mean field theory of batch normalization": every layer multiplies the squared norm of the gradient
by more than 1, whatever the variances of weights and biases. Linear layers do so too, by (B - 2) / (B - 3) at a batch
size of B; for them alone it is 1 in the limit of a large batch.

A unit's batch of B Gaussian values, made of mean zero and unit variance, is a random point z on the sphere of radius
sqrt(B) among the batches of mean zero, in B - 1 dimensions: two of its values have the correlation -1 / (B - 1), and
are not quite Gaussian.
"""

import functools
from typing import NamedTuple

import numpy as np

from dnt.meanfield.theory import activations, quadrature


class Averages(NamedTuple):
  """Holds expectations over normalized batches z [B], of the values z1 and z2 of two different inputs.

  phi' is the derivative of phi; both are taken at scale * z.

  Attributes:
    mean: E[phi(z1)].
    square: E[phi(z1)^2].
    product: E[phi(z1) phi(z2)].
    slope: E[phi'(z1)^2].
    slopes: E[phi'(z1) phi'(z2)].
    tilt: E[(z1 phi'(z1))^2].
    tilts: E[z1 phi'(z1) z2 phi'(z2)].
  """

  mean: float
  square: float
  product: float
  slope: float
  slopes: float
  tilt: float
  tilts: float


@functools.lru_cache(1024)
def averages(activation: str | activations.Activation, batch: int, scale: float = 1.0) -> Averages:
  """Returns the averages over normalized batches.

  Args:
    activation: one of `activations.ACTIVATIONS` by name, or any other.
    batch: its size B, at least 8.
    scale: factor on z.
  """
  phi, slope = activations.make(activation)
  dimensions, correlation = batch - 1, -1 / (batch - 1)
  z, weights = quadrature.sphere_rule(np.array(0.0), dimensions)
  radius = np.sqrt((1 - correlation**2) * np.maximum(1 - z**2 / dimensions, 1e-300) * dimensions / (dimensions - 1))
  inner, inner_weights = quadrature.sphere_rule(-correlation * z / radius, dimensions - 1)
  other = correlation * z[:, None] + radius[:, None] * inner

  def square_and_product(function):
    given = np.sum(inner_weights * function(other), -1)
    return float(weights @ function(z) ** 2), float(weights @ (function(z) * given))

  mean = float(weights @ phi(scale * z))
  slopes = square_and_product(lambda z: slope(scale * z))
  tilts = square_and_product(lambda z: z * slope(scale * z))
  return Averages(mean, *square_and_product(lambda z: phi(scale * z)), *slopes, *tilts)


def different_gain(z: Averages, batch: int) -> float:
  """Returns the factor on |g|^2 of a gradient g of mean zero over the batch, back through phi and batch norm.

  tr(P D G D P) / (B - 1) with D = diag(phi'(z)), G = I - 1 1^T / B and P = G - z z^T / B; the factor 1 / variance of
  batch norm is left out.
  """
  own = (batch - 2) * z.slope + (z.slope + (batch - 1) * z.slopes) / batch
  return (own - z.tilt + (z.tilt + (batch - 1) * z.tilts) / batch) / (batch - 1)


def common_gain(z: Averages, batch: int) -> float:
  """Returns the same factor for a gradient that is the same for all inputs: |P D 1|^2 / B."""
  return (1 - 1 / batch) * (z.slope - z.slopes) - (z.tilt + (batch - 1) * z.tilts) / batch


def gain(activation: str | activations.Activation, batch: int | None = None) -> float:
  """Returns by which factor each plain layer with batch norm multiplies the squared norm of the gradient.

  It does not depend on sigma_w and sigma_b.

  It is above 1, but for a linear activation and a large batch: (B - 2) / (B - 3) for a linear one, and pi / (pi - 1) =
  1.467 for ReLU and a large batch.

  Args:
    activation: one of `activations.ACTIVATIONS` by name, or any other.
    batch: its size, at least 8; None: the limit of a large one, E[phi'^2] / Var[phi].
  """
  if batch:
    z = averages(activation, batch)
    return batch / (batch - 3) * different_gain(z, batch) / (z.square - z.product)
  phi, slope = activations.make(activation)
  square = quadrature.expectation(lambda u: phi(u) ** 2, 1.0)
  return quadrature.expectation(lambda u: slope(u) ** 2, 1.0) / (square - quadrature.expectation(phi, 1.0) ** 2)
