"""Residual stacks of finite width against draws of them in NumPy, and against the limit of infinite width."""

import numpy as np
import pytest

from dnt.meanfield.theory import activations, finite_width, layers, plain

Net = plain.Net


@pytest.mark.parametrize('name', ['relu', 'gelu', 'tanh', 'sigmoid'])
def test_wide_networks_have_the_limit(name):
  net = Net(name, 1.5, 0.3)
  wide = finite_width.residual_gains(net, 12, 10**14)
  np.testing.assert_allclose(wide, layers.predict(net, 12, block='residual').gain, rtol=1e-9)


@pytest.mark.parametrize('bias', [0.0, 0.5])
def test_linear_networks_have_it_at_any_width(bias):
  """E|(I + W^T) g|^2 = (1 + sigma_w^2) |g|^2 exactly, whatever g and x."""
  np.testing.assert_allclose(finite_width.residual_gains(Net('identity', 0.8, bias), 10, 16), 1.8, rtol=1e-9)


def drawn_gain(net, depth, width, draws):
  """E|dL/dx_0|^2 / E|dL/dx_L|^2 by drawing networks."""
  phi, slope = activations.make(net.activation)
  generator = np.random.default_rng(0)
  squares = np.zeros(2)
  for _ in range(draws):
    kernels = generator.standard_normal((depth, width, width)) * np.sqrt(net.weight_variance / width)
    biases = generator.standard_normal((depth, width)) * np.sqrt(net.bias_variance)
    x, slopes = generator.standard_normal((2, width)), []
    for kernel, bias in zip(kernels, biases, strict=True):
      h = x @ kernel.T + bias
      slopes.append(slope(h))
      x = x + phi(h)
    gradient = generator.standard_normal((2, width))
    squares[1] += np.sum(gradient**2)
    for kernel, d in zip(kernels[::-1], slopes[::-1], strict=True):
      gradient = gradient + (d * gradient) @ kernel
    squares[0] += np.sum(gradient**2)
  return squares[0] / squares[1]


@pytest.mark.parametrize(('net', 'beyond'), [(Net('relu', 1.0, 0.1), 2.0), (Net('gelu', 1.5, 0.2), 1.7)])
def test_the_mean_of_activations_makes_gradients_grow_faster(net, beyond):
  depth, width = 12, 64
  drawn = drawn_gain(net, depth, width, 400)
  limit = np.prod(layers.predict(net, depth, block='residual').gain)
  assert drawn > beyond * limit
  predicted = np.prod(layers.predict(net, depth, block='residual', width=width).gain)
  assert np.log(predicted) == pytest.approx(np.log(drawn), rel=0.03)


def test_odd_activations_stay_near_the_limit():
  net = Net('tanh', 2.0, 0.1)
  gain = np.prod(layers.predict(net, 12, block='residual', width=64).gain)
  assert np.log(gain) == pytest.approx(np.log(drawn_gain(net, 12, 64, 200)), rel=0.03)
