"""Stacks of each block and norm against closed forms and against wide layers drawn in NumPy."""

import numpy as np
import pytest

from dnt.meanfield.theory import activations, batch_norm, layers, plain, quadrature

Net = plain.Net
TANH = activations.make('tanh')


def test_plain_relu_at_its_critical_variance_keeps_all_but_the_correlation(arc_cosine):
  found = layers.predict(Net('relu', 2.0), 5, correlation=0.2)
  np.testing.assert_allclose(found.q, 2.0, rtol=1e-8)
  np.testing.assert_allclose(found.gain, 1.0, rtol=1e-8)
  np.testing.assert_allclose(found.c[:3], [0.2, arc_cosine(0.2), arc_cosine(arc_cosine(0.2))], atol=1e-8)


def test_residual_branches_add_up():
  """tanh is odd, so that squares add up (Yang and Schoenholz 2017, theorem 5)."""
  residual = layers.predict(Net('tanh', 1.5, 0.1), 4, block='residual')
  square = 1.0
  for q, gain in zip(residual.q, residual.gain, strict=True):
    assert q == pytest.approx(1.5 * square + 0.1, rel=1e-9)
    assert gain == pytest.approx(1 + 1.5 * quadrature.expectation(lambda u: TANH.derivative(u) ** 2, q), rel=1e-9)
    square += quadrature.expectation(lambda u: np.tanh(u) ** 2, q)
  # Linear: squares and gradients double in each layer at sigma_w^2 = 1.
  linear = layers.predict(Net('identity', 1.0), 4, block='residual')
  np.testing.assert_allclose(linear.q, [1, 2, 4, 8], rtol=1e-8)
  np.testing.assert_allclose(linear.gain, 2.0, rtol=1e-8)


@pytest.mark.parametrize('norm', ['layer_norm', 'rms_norm'])
def test_with_a_norm_over_units_the_weight_variance_does_not_matter(norm):
  """Without biases the gain is E[phi'^2] / E[phi^2]."""
  gain = layers.predict(Net('tanh', 7.0), 4, norm=norm, epsilon=0.0).gain[1:]
  square = quadrature.expectation(lambda u: np.tanh(u) ** 2, 1.0)
  np.testing.assert_allclose(gain, quadrature.expectation(lambda u: TANH.derivative(u) ** 2, 1.0) / square, rtol=1e-8)


def test_batch_norm_has_its_own_gain():
  gain = layers.predict(Net('relu', 5.0), 4, norm='batch_norm', batch=32, epsilon=0.0).gain[1:-1]
  np.testing.assert_allclose(gain, batch_norm.gain('relu', 32), rtol=1e-4)


def test_highways_are_the_identity_or_plain_at_their_limits():
  shut = layers.predict(Net('tanh', 1.0), 3, block='highway', gate_bias=-40.0)
  np.testing.assert_allclose(shut, layers.Prediction(np.ones(3), np.zeros(3), np.ones(3)), atol=1e-9)
  open_ = layers.predict(Net('tanh', 1.0), 3, block='highway', gate_bias=40.0)
  np.testing.assert_allclose(open_, layers.predict(Net('tanh', 1.0), 3), atol=1e-9)


@pytest.mark.parametrize('name', ['relu', 'tanh'])
def test_half_open_highways_are_those_that_are_drawn(name):
  """Three wide layers: signals with a mean, a correlation and gates that all matter."""
  net, gate_bias, width, depth = Net(name, 1.5, 0.2), -0.5, 1500, 3
  predicted = layers.predict(net, depth, block='highway', gate_bias=gate_bias, correlation=0.4)
  phi, slope = activations.make(name)
  gate, gate_slope = activations.make('sigmoid')
  generator = np.random.default_rng(0)
  common, own = generator.standard_normal(width), generator.standard_normal((2, width))
  x = np.sqrt(0.4) * common + np.sqrt(0.6) * own
  backs = []
  for layer in range(depth):
    w, v = generator.standard_normal((2, width, width)) * np.sqrt(net.weight_variance / width)
    h = x @ w.T + np.sqrt(net.bias_variance) * generator.standard_normal(width)
    assert np.mean(h**2) == pytest.approx(predicted.q[layer], rel=0.1)
    cosine = h[0] @ h[1] / np.linalg.norm(h[0]) / np.linalg.norm(h[1])
    assert cosine == pytest.approx(predicted.c[layer], abs=0.05)
    a = x @ v.T + gate_bias
    y, t = phi(h), gate(a)
    backs.append((t * slope(h), w, (y - x) * gate_slope(a), v, 1 - t))
    x = y * t + x * (1 - t)
  gradient = generator.standard_normal((2, width))
  for layer in reversed(range(depth)):
    through, w, turned, v, carried = backs[layer]
    back = (gradient * through) @ w + (gradient * turned) @ v + gradient * carried
    assert np.sum(back**2) / np.sum(gradient**2) == pytest.approx(predicted.gain[layer], rel=0.1)
    gradient = back
