"""Batch norm's gradient explosion against closed forms, limits and samples."""

import math

import numpy as np
import pytest

from dnt.meanfield.theory import activations, batch_norm


def test_gradients_explode():
  assert batch_norm.gain('relu') == pytest.approx(math.pi / (math.pi - 1), abs=1e-9)
  assert batch_norm.gain('identity') == pytest.approx(1, abs=1e-9)
  for name in ('relu', 'tanh', 'gelu', 'sigmoid', 'silu'):
    assert batch_norm.gain(name) > 1
    assert batch_norm.gain(name, 4000) == pytest.approx(batch_norm.gain(name), rel=2e-3)


@pytest.mark.parametrize('batch', [8, 10, 16, 32, 100])
def test_gradients_of_linear_networks_explode_too(batch):
  """B / (B - 3) from the variance, of B - 1 directions one is projected away (Yang et al. 2019, linear networks)."""
  assert batch_norm.gain('identity', batch) == pytest.approx((batch - 2) / (batch - 3), rel=1e-6)


@pytest.fixture(scope='module')
def samples():
  """Normalized batches z [200000, 8] and phi'(z) of tanh."""
  h = np.random.default_rng(0).standard_normal((200_000, 8))
  z = (h - h.mean(1, keepdims=True)) / h.std(1, keepdims=True)
  return z, activations.make('tanh').derivative(z)


def test_averages_are_those_of_samples(samples):
  z, d = samples
  got = batch_norm.averages('tanh', 8)
  y = np.tanh(z)
  sampled = (y, y**2, y[:, 0] * y[:, 1], d**2, d[:, 0] * d[:, 1])
  sampled += ((z * d) ** 2, z[:, 0] * d[:, 0] * z[:, 1] * d[:, 1])
  np.testing.assert_allclose(got, [np.mean(each) for each in sampled], atol=2e-3)


def test_gains_are_those_of_samples(samples):
  z, d = samples
  averages = batch_norm.averages('tanh', 8)
  random = np.random.default_rng(1).standard_normal(z.shape)
  for gain, gradient in (
    (batch_norm.different_gain(averages, 8), random - random.mean(1, keepdims=True)),
    (batch_norm.common_gain(averages, 8), np.ones_like(z)),
  ):
    back = d * gradient
    back = back - back.mean(1, keepdims=True) - z * np.mean(back * z, 1, keepdims=True)
    assert gain == pytest.approx(np.sum(back**2) / np.sum(gradient**2), rel=0.01)
