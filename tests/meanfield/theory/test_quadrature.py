"""Gaussian integrals against closed forms and samples."""

import math

import numpy as np
import pytest

from dnt.meanfield.theory import activations, quadrature

CORRELATIONS = (-1.0, -0.6, 0.0, 1e-6, 0.3, 0.9, 0.9999, 1 - 1e-12, 1.0)
RELU, ERF, IDENTITY = (activations.make(name) for name in ('relu', 'erf', 'identity'))


@pytest.mark.parametrize('c', CORRELATIONS)
@pytest.mark.parametrize('q', [0.01, 1.0, 30.0, 1e4])
def test_pairs_have_the_closed_forms(q, c, arc_cosine, arc_sine):
  pair = quadrature.pair_expectation
  assert pair(RELU.function, q, c) == pytest.approx(q / 2 * arc_cosine(c), abs=1e-9 * q)
  assert pair(ERF.function, q, c) == pytest.approx(arc_sine(q, c), abs=1e-8)
  assert pair(IDENTITY.function, q, c) == pytest.approx(q * c, abs=1e-9 * q)
  sides = pair(RELU.derivative, q, c)  # P(u > 0 and v > 0)
  assert sides == pytest.approx(1 / 4 + math.asin(c) / (2 * math.pi), abs=1e-8 if abs(c) < 0.9999 else 1e-5)


def test_pairs_with_a_mean_are_those_of_samples():
  u = np.random.default_rng(0).standard_normal((2, 2_000_000))
  u[1] = 0.7 * u[0] + math.sqrt(1 - 0.49) * u[1]
  for name in ('sigmoid', 'relu'):
    function = activations.make(name).function
    sampled = np.mean(np.prod(function(-2 + 1.5 * u), 0))
    assert quadrature.pair_expectation(function, 2.25, 0.7, -2.0) == pytest.approx(sampled, rel=0.02)


def test_expectation_of_steep_and_bent_functions():
  assert quadrature.expectation(np.abs, 4.0) == pytest.approx(2 * math.sqrt(2 / math.pi), abs=1e-9)
  for q in (0.1, 10.0, 1e4):  # E[erf'(u)^2] = 4 / pi / sqrt(1 + 4 q)
    square = quadrature.expectation(lambda u: ERF.derivative(u) ** 2, q)
    assert square == pytest.approx(4 / math.pi / math.sqrt(1 + 4 * q), abs=1e-8)


def test_at_variance_zero_there_is_the_limit_from_above():
  assert quadrature.expectation(np.tanh, 0.0, 0.5) == pytest.approx(math.tanh(0.5), rel=1e-12)
  assert quadrature.expectation(RELU.derivative, 0.0) == pytest.approx(0.5, rel=1e-12)  # half of the units fire
  assert quadrature.expectation(RELU.derivative, 0.0, -1.0) == 0
  assert quadrature.pair_expectation(RELU.derivative, 0.0, 0.5) == pytest.approx(1 / 4 + 1 / 12, abs=1e-8)


@pytest.mark.parametrize('dimensions', [7, 40])
def test_a_coordinate_of_the_sphere_has_its_moments(dimensions):
  z, weights = quadrature.sphere_rule(np.array(0.0), dimensions)
  assert weights @ z**2 == pytest.approx(1, rel=1e-6)
  assert weights @ z**4 == pytest.approx(3 * dimensions / (dimensions + 2), rel=1e-6)
  assert weights @ np.abs(z) ** 3 == pytest.approx(
    dimensions**1.5 * math.exp(math.lgamma(dimensions / 2) - math.lgamma((dimensions + 3) / 2)) / math.sqrt(math.pi),
    rel=1e-6,
  )
