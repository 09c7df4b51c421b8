"""Mean field theory against closed forms, sampling and the project's own activations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import errors
from dnt.diagnostics import theory
from dnt.models import activations

Net = theory.Net
CORRELATIONS = (-1.0, -0.6, 0.0, 1e-6, 0.3, 0.9, 0.9999, 1 - 1e-12, 1.0)


def arc_cosine(c):
  """E[relu(u) relu(v)] / E[relu(u)^2] (Cho and Saul 2009)."""
  return (math.sqrt(1 - c * c) + c * (math.pi - math.acos(c))) / math.pi


def arc_sine(q, c):
  """E[erf(u) erf(v)] (Williams 1997)."""
  return 2 / math.pi * math.asin(2 * q * c / (1 + 2 * q))


@pytest.mark.parametrize('name', activations.ACTIVATIONS)
def test_functions_and_slopes_are_the_models(name):
  x = np.concatenate([np.linspace(-6, 6, 41)[:20], np.linspace(-6, 6, 41)[21:], [-30.0, 30.0]])  # 0 has no slope
  function = activations.make(name)
  own = theory.make(name)
  np.testing.assert_allclose(own.function(x), function(jnp.float32(x)), rtol=2e-6, atol=1e-6)
  np.testing.assert_allclose(own.derivative(x), jax.vmap(jax.grad(function))(jnp.float32(x)), rtol=1e-5, atol=2e-6)


def test_the_table_is_the_models_and_erf():
  assert set(theory.ACTIVATIONS) == {*activations.ACTIVATIONS, 'erf'}
  with pytest.raises(errors.InputError, match="did you mean 'tanh'"):
    theory.make('tan')


@pytest.mark.parametrize('name', theory.ACTIVATIONS)
@pytest.mark.parametrize('x', [-2.5, -0.3, 0.4, 3.0])
def test_slopes_are_central_differences(name, x):
  function, slope = theory.make(name)
  x = np.array(x)
  assert slope(x) == pytest.approx((function(x + 1e-5) - function(x - 1e-5)) / 2e-5, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize('c', CORRELATIONS)
@pytest.mark.parametrize('q', [0.01, 1.0, 30.0, 1e4])
def test_pairs_have_the_closed_forms(q, c):
  assert theory.pair_expectation(theory.make('relu').function, q, c) == pytest.approx(
    q / 2 * arc_cosine(c), abs=1e-9 * q
  )
  assert theory.pair_expectation(theory.make('erf').function, q, c) == pytest.approx(arc_sine(q, c), abs=1e-8)
  assert theory.pair_expectation(theory.make('identity').function, q, c) == pytest.approx(q * c, abs=1e-9 * q)
  sides = theory.pair_expectation(theory.make('relu').derivative, q, c)  # P(u > 0 and v > 0)
  assert sides == pytest.approx(1 / 4 + math.asin(c) / (2 * math.pi), abs=1e-8 if abs(c) < 0.9999 else 1e-5)


def test_pairs_with_a_mean_are_those_of_samples():
  u = np.random.default_rng(0).standard_normal((2, 2_000_000))
  u[1] = 0.7 * u[0] + math.sqrt(1 - 0.49) * u[1]
  for name in ('sigmoid', 'relu'):
    function = theory.make(name).function
    sampled = np.mean(np.prod(function(-2 + 1.5 * u), 0))
    assert theory.pair_expectation(function, 2.25, 0.7, -2.0) == pytest.approx(sampled, rel=0.02)


def test_expectation_of_steep_and_bent_functions():
  assert theory.expectation(np.abs, 4.0) == pytest.approx(2 * math.sqrt(2 / math.pi), abs=1e-9)
  slope = theory.make('erf').derivative  # E[erf'(u)^2] = 4 / pi / sqrt(1 + 4 q)
  for q in (0.1, 10.0, 1e4):
    assert theory.expectation(lambda u: slope(u) ** 2, q) == pytest.approx(4 / math.pi / math.sqrt(1 + 4 * q), abs=1e-8)
  assert theory.expectation(np.tanh, 0.0, 0.5) == math.tanh(0.5)


def test_relu_is_critical_at_a_weight_variance_of_two():
  assert theory.critical_weight_variance('relu', 0.0) == pytest.approx(2, abs=1e-8)
  assert theory.critical_bias_variance('relu', 2.0) == pytest.approx(0, abs=1e-9)
  for weight in (0.5, 2.0, 3.0):
    net = Net('relu', weight, 0.2)
    assert theory.variance_map(net, 1.7) == pytest.approx(weight * 1.7 / 2 + 0.2, abs=1e-9)
    assert theory.chi(net, 1.7) == pytest.approx(weight / 2, abs=1e-9)
  assert theory.fixed_point(Net('relu', 1.0, 0.2)) == pytest.approx(0.2 / (1 - 0.5), rel=1e-9)
  assert theory.fixed_point(Net('relu', 2.0), 3.7) == 3.7  # every q is one
  assert theory.fixed_point(Net('relu', 2.0, 0.1)) == theory.fixed_point(Net('relu', 3.0)) == math.inf
  assert theory.fixed_point(Net('relu', 1.0)) == 0
  c = theory.correlations(Net('relu', 2.0), 0.1, 1.0, 4)
  np.testing.assert_allclose(c, [0.1, arc_cosine(0.1), arc_cosine(arc_cosine(0.1)), arc_cosine(c[2])], atol=1e-9)
  for bias in (0.1, 1.0):
    with pytest.raises(errors.InputError, match='relu has no edge of chaos at sigma_b'):
      theory.critical_weight_variance('relu', bias)


def test_erf_has_its_closed_forms():
  net = Net('erf', 2.0, 0.3)
  assert theory.variance_map(net, 0.8) == pytest.approx(2 * arc_sine(0.8, 1.0) + 0.3, abs=1e-9)
  q = theory.fixed_point(net)
  assert 2 * arc_sine(q, 1.0) + 0.3 == pytest.approx(q, abs=1e-8)
  assert theory.correlation_map(net, 0.4, q) == pytest.approx((2 * arc_sine(q, 0.4) + 0.3) / q, abs=1e-8)
  assert theory.chi(net, q) == pytest.approx(2 * 4 / math.pi / math.sqrt(1 + 4 * q), abs=1e-8)
  # On the edge of chaos q* follows from chi_1 = 1, and sigma_b^2 from q*.
  weight = theory.critical_weight_variance('erf', 0.1)
  q = ((4 * weight / math.pi) ** 2 - 1) / 4
  assert q - weight * arc_sine(q, 1.0) == pytest.approx(0.1, abs=1e-8)
  assert theory.critical_bias_variance('erf', weight) == pytest.approx(0.1, abs=1e-8)
  assert theory.critical_weight_variance('erf', 0.0) == pytest.approx(math.pi / 4, abs=1e-6)


def test_tanh_at_small_variances():
  q = 1e-3  # tanh(u)^2 = u^2 - 2/3 u^4 + 17/45 u^6, with E[u^4] = 3 q^2, E[u^6] = 15 q^3
  assert theory.variance_map(Net('tanh', 1.5), q) == pytest.approx(1.5 * (q - 2 * q**2 + 17 / 3 * q**3), rel=1e-7)
  assert theory.chi(Net('tanh', 1.5), q) == pytest.approx(
    1.5 * (1 - 2 * q + 17 * q**2 - 17 * q**2 + 9 * q**2), rel=2e-5
  )
  assert theory.fixed_point(Net('tanh', 0.9)) == 0
  assert theory.critical_weight_variance('tanh', 0.0) == pytest.approx(1, abs=1e-6)
  # The point of Schoenholz et al. 2017, figure 5: sigma_b^2 = 0.05 is critical at sigma_w^2 = 1.76.
  assert theory.critical_weight_variance('tanh', 0.05) == pytest.approx(1.76, abs=0.005)


def test_linear_networks():
  net = Net('identity', 0.8, 0.1)
  assert theory.fixed_point(net) == pytest.approx(0.5, rel=1e-9)
  assert theory.chi(net, 0.5) == pytest.approx(0.8, abs=1e-9)
  assert theory.correlation_map(net, 0.3, 0.5) == pytest.approx((0.8 * 0.15 + 0.1) / 0.5, abs=1e-9)
  scales = theory.depth_scales(net)
  assert scales == pytest.approx((-1 / math.log(0.8), -1 / math.log(0.8), -2 / math.log(0.8)))
  np.testing.assert_allclose(theory.variances(net, 1.0, 3), [1, 0.9, 0.82], atol=1e-9)


@pytest.mark.parametrize('name', ['tanh', 'erf', 'sigmoid', 'relu', 'gelu'])
def test_chi_is_the_slope_of_the_correlation_map_at_one(name):
  net = Net(name, 1.3, 0.2)
  q = theory.fixed_point(net)
  step = 1e-5
  slope = (theory.correlation_map(net, 1.0, q) - theory.correlation_map(net, 1 - step, q)) / step
  assert theory.chi(net, q) == pytest.approx(slope, rel=5e-3)
  inside = (theory.correlation_map(net, 0.5 + step, q) - theory.correlation_map(net, 0.5 - step, q)) / (2 * step)
  assert theory.chi(net, q, 0.5) == pytest.approx(inside, rel=1e-4)


@pytest.mark.parametrize(('weight', 'chaotic'), [(1.2, False), (3.0, True)])
def test_fixed_points_and_depth_scales_are_where_iterations_go(weight, chaotic):
  net = Net('tanh', weight, 0.05)
  q = theory.variances(net, 1.0, 120)
  fixed = theory.fixed_point(net)
  assert q[-1] == pytest.approx(fixed, rel=1e-8)
  scales = theory.depth_scales(net)
  assert scales.q == pytest.approx(-1 / math.log((q[13] - fixed) / (q[12] - fixed)), rel=0.01)
  c = theory.correlations(net, 0.5, fixed, 80)
  end = theory.correlation_fixed_point(net)
  assert (end < 0.99, theory.chi(net, fixed) > 1) == (chaotic, chaotic)
  assert c[-1] == pytest.approx(end, abs=1e-4)
  assert scales.c == pytest.approx(-1 / math.log((c[21] - end) / (c[20] - end)), rel=0.02)
  assert (scales.gradient < 0) == chaotic


def test_without_a_fixed_point_there_are_no_scales():
  with pytest.raises(errors.InputError, match='goes to inf'):
    theory.depth_scales(Net('relu', 3.0))


def test_batch_norm_makes_gradients_explode():
  assert theory.batch_norm_gain('relu') == pytest.approx(math.pi / (math.pi - 1), abs=1e-9)
  assert theory.batch_norm_gain('identity') == pytest.approx(1, abs=1e-9)
  for name in ('relu', 'tanh', 'gelu', 'sigmoid', 'silu'):
    assert theory.batch_norm_gain(name) > 1
    assert theory.batch_norm_gain(name, 4000) == pytest.approx(theory.batch_norm_gain(name), rel=2e-3)
  # B / (B - 3) from the variance, of B - 1 directions one is projected away (Yang et al. 2019, linear networks).
  assert theory.batch_norm_gain('identity', 10) == pytest.approx((10 - 2) / (10 - 3), rel=1e-5)


def test_averages_over_a_normalized_batch_are_those_of_samples():
  h = np.random.default_rng(0).standard_normal((200_000, 8))
  z = (h - h.mean(1, keepdims=True)) / h.std(1, keepdims=True)
  phi, slope = theory.make('tanh')
  d = slope(z)
  got = theory.normalized_batch('tanh', 8)
  sampled = (phi(z), phi(z) ** 2, phi(z[:, 0]) * phi(z[:, 1]), d**2, d[:, 0] * d[:, 1])
  sampled += ((z * d) ** 2, z[:, 0] * d[:, 0] * z[:, 1] * d[:, 1])
  np.testing.assert_allclose(got, [np.mean(each) for each in sampled], atol=2e-3)


def test_blocks_and_norms_of_closed_form():
  relu = Net('relu', 2.0)
  plain = theory.predict(relu, 5, correlation=0.2)
  np.testing.assert_allclose(plain.q, 2.0, rtol=1e-8)
  np.testing.assert_allclose(plain.gain, 1.0, rtol=1e-8)
  np.testing.assert_allclose(plain.c[:3], [0.2, arc_cosine(0.2), arc_cosine(arc_cosine(0.2))], atol=1e-8)
  # Residual, tanh: odd, so that squares add up (Yang and Schoenholz 2017, theorem 5).
  residual = theory.predict(Net('tanh', 1.5, 0.1), 4, block='residual')
  square, tanh = 1.0, theory.make('tanh')
  for q, gain in zip(residual.q, residual.gain, strict=True):
    assert q == pytest.approx(1.5 * square + 0.1, rel=1e-9)
    assert gain == pytest.approx(1 + 1.5 * theory.expectation(lambda u: tanh.derivative(u) ** 2, q), rel=1e-9)
    square += theory.expectation(lambda u: np.tanh(u) ** 2, q)
  # Linear: squares and gradients double in each layer at sigma_w^2 = 1.
  linear = theory.predict(Net('identity', 1.0), 4, block='residual')
  np.testing.assert_allclose(linear.q, [1, 2, 4, 8], rtol=1e-8)
  np.testing.assert_allclose(linear.gain, 2.0, rtol=1e-8)
  # Layer norm and RMS norm: whatever sigma_w, the gain is E[phi'^2] / E[phi^2] without biases.
  for norm in ('layer_norm', 'rms_norm'):
    gain = theory.predict(Net('tanh', 7.0), 4, norm=norm, epsilon=0.0).gain[1:]
    square = theory.expectation(lambda u: np.tanh(u) ** 2, 1.0)
    np.testing.assert_allclose(gain, theory.expectation(lambda u: tanh.derivative(u) ** 2, 1.0) / square, rtol=1e-8)
  batch = theory.predict(Net('relu', 5.0), 4, norm='batch_norm', batch=32, epsilon=0.0).gain[1:-1]
  np.testing.assert_allclose(batch, theory.batch_norm_gain('relu', 32), rtol=1e-4)
  shut = theory.predict(Net('tanh', 1.0), 3, block='highway', gate_bias=-40.0)
  np.testing.assert_allclose(shut, theory.Prediction(np.ones(3), np.zeros(3), np.ones(3)), atol=1e-9)
  open_ = theory.predict(Net('tanh', 1.0), 3, block='highway', gate_bias=40.0)
  np.testing.assert_allclose(open_, theory.predict(Net('tanh', 1.0), 3), atol=1e-9)
