"""Plain networks against closed forms and against iterations of their maps."""

import math

import numpy as np
import pytest

from dnt import errors
from dnt.meanfield.theory import activations, plain

Net = plain.Net


def test_relu_is_critical_at_a_weight_variance_of_two(arc_cosine):
  assert plain.critical_weight_variance('relu', 0.0) == pytest.approx(2, abs=1e-8)
  np.testing.assert_allclose(plain.critical_line('relu', np.array([0.1, 5.0])), [[2, 2], [0, 0]], atol=1e-9)
  for weight in (0.5, 2.0, 3.0):
    net = Net('relu', weight, 0.2)
    assert plain.variance_map(net, 1.7) == pytest.approx(weight * 1.7 / 2 + 0.2, abs=1e-9)
    assert plain.chi(net, 1.7) == pytest.approx(weight / 2, abs=1e-9)
  assert plain.fixed_point(Net('relu', 1.0, 0.2)) == pytest.approx(0.2 / (1 - 0.5), rel=1e-9)
  assert plain.fixed_point(Net('relu', 2.0), 3.7) == 3.7  # every q is one
  assert plain.fixed_point(Net('relu', 2.0, 0.1)) == plain.fixed_point(Net('relu', 3.0)) == math.inf
  assert plain.fixed_point(Net('relu', 1.0)) == 0
  for c in (0.1, 0.5, 0.99):
    assert plain.correlation_map(Net('relu', 2.0), c, 1.0) == pytest.approx(arc_cosine(c), abs=1e-9)
  for bias in (0.1, 1.0):
    with pytest.raises(errors.InputError, match='relu .*edge of chaos.* sigma_b'):
      plain.critical_weight_variance('relu', bias)


def test_erf_has_its_closed_forms(arc_sine):
  net = Net('erf', 2.0, 0.3)
  assert plain.variance_map(net, 0.8) == pytest.approx(2 * arc_sine(0.8, 1.0) + 0.3, abs=1e-9)
  q = plain.fixed_point(net)
  assert 2 * arc_sine(q, 1.0) + 0.3 == pytest.approx(q, abs=1e-8)
  assert plain.correlation_map(net, 0.4, q) == pytest.approx((2 * arc_sine(q, 0.4) + 0.3) / q, abs=1e-8)
  assert plain.chi(net, q) == pytest.approx(2 * 4 / math.pi / math.sqrt(1 + 4 * q), abs=1e-8)
  # On the edge of chaos q* follows from chi_1 = 1, and sigma_b^2 from q*.
  weight = plain.critical_weight_variance('erf', 0.1)
  q = ((4 * weight / math.pi) ** 2 - 1) / 4
  assert q - weight * arc_sine(q, 1.0) == pytest.approx(0.1, abs=1e-8)
  np.testing.assert_allclose(plain.critical_line('erf', np.array(q)), (weight, 0.1), atol=1e-8)
  assert plain.critical_weight_variance('erf', 0.0) == pytest.approx(math.pi / 4, abs=1e-6)


def test_tanh_at_small_variances():
  q = 1e-3  # tanh(u)^2 = u^2 - 2/3 u^4 + 17/45 u^6, with E[u^4] = 3 q^2, E[u^6] = 15 q^3
  assert plain.variance_map(Net('tanh', 1.5), q) == pytest.approx(1.5 * (q - 2 * q**2 + 17 / 3 * q**3), rel=1e-7)
  assert plain.chi(Net('tanh', 1.5), q) == pytest.approx(1.5 * (1 - 2 * q + 17 * q**2 - 17 * q**2 + 9 * q**2), rel=2e-5)
  assert plain.fixed_point(Net('tanh', 0.9)) == 0
  assert plain.critical_weight_variance('tanh', 0.0) == pytest.approx(1, abs=1e-6)
  # The point of Schoenholz et al. 2017, figure 5: sigma_b^2 = 0.05 is critical at sigma_w^2 = 1.76.
  assert plain.critical_weight_variance('tanh', 0.05) == pytest.approx(1.76, abs=0.005)


def test_linear_networks():
  net = Net('identity', 0.8, 0.1)
  assert plain.fixed_point(net) == pytest.approx(0.5, rel=1e-9)
  assert plain.chi(net, 0.5) == pytest.approx(0.8, abs=1e-9)
  assert plain.correlation_map(net, 0.3, 0.5) == pytest.approx((0.8 * 0.15 + 0.1) / 0.5, abs=1e-9)
  scale = -1 / math.log(0.8)
  assert plain.phase(net) == pytest.approx((0.5, 1.0, 0.8, scale, scale, 2 * scale))


@pytest.mark.parametrize('name', ['tanh', 'erf', 'sigmoid', 'relu', 'gelu'])
def test_chi_is_the_slope_of_the_correlation_map_at_one(name):
  net = Net(name, 1.3, 0.2)
  q = plain.fixed_point(net)
  step = 1e-5
  slope = (plain.correlation_map(net, 1.0, q) - plain.correlation_map(net, 1 - step, q)) / step
  assert plain.chi(net, q) == pytest.approx(slope, rel=5e-3)
  inside = (plain.correlation_map(net, 0.5 + step, q) - plain.correlation_map(net, 0.5 - step, q)) / (2 * step)
  assert plain.chi(net, q, 0.5) == pytest.approx(inside, rel=1e-4)


@pytest.mark.parametrize(('weight', 'chaotic'), [(1.2, False), (3.0, True)])
def test_fixed_points_and_depth_scales_are_where_iterations_go(weight, chaotic):
  net = Net('tanh', weight, 0.05)
  q, c = [1.0], [0.5]
  while len(q) < 120:
    q.append(plain.variance_map(net, q[-1]))
  found = plain.phase(net)
  assert q[-1] == pytest.approx(found.q, rel=1e-8)
  assert found.xi_q == pytest.approx(-1 / math.log((q[13] - found.q) / (q[12] - found.q)), rel=0.01)
  while len(c) < 80:
    c.append(plain.correlation_map(net, c[-1], found.q))
  assert (found.c < 0.99, found.chi_1 > 1) == (chaotic, chaotic)
  assert c[-1] == pytest.approx(found.c, abs=1e-4)
  assert found.xi_c == pytest.approx(-1 / math.log((c[21] - found.c) / (c[20] - found.c)), rel=0.02)
  assert found.xi_gradient == pytest.approx(-2 / math.log(found.chi_1))
  assert (found.xi_gradient < 0) == chaotic


def test_phases_without_a_fixed_point_between_zero_and_infinity():
  """Limits: of ReLU at any q, of tanh at q = 0."""
  inf = math.inf
  halved = -1 / math.log(0.5)
  assert plain.phase(Net('relu', 1.0)) == pytest.approx((0.0, 1.0, 0.5, halved, inf, 2 * halved), rel=1e-6)
  assert plain.phase(Net('relu', 2.0)) == (1.0, 1.0, pytest.approx(1), inf, inf, inf)
  grown = -1 / math.log(1.5)
  assert plain.phase(Net('relu', 3.0, 0.1)) == pytest.approx((inf, 1.0, 1.5, grown, inf, 2 * grown), rel=1e-6)
  assert plain.phase(Net('tanh', 0.5)) == pytest.approx((0.0, 1.0, 0.5, halved, inf, 2 * halved), rel=1e-5)
  assert plain.phase(Net('tanh', 3.0)).c == 0  # orthogonal inputs stay so without biases


def test_the_edge_of_chaos_of_a_saturating_activation_with_a_mean():
  """sigmoid(x) is (1 + tanh(x / 2)) / 2: at small q* no sigma_b^2 makes up for its mean."""
  weight, bias = plain.critical_line('sigmoid', np.array([1e-6, 1.0, 200.0]))
  assert weight[0] == pytest.approx(16, rel=1e-5) and bias[0] == pytest.approx(-4, rel=1e-4)
  assert bias[1] < 0 < bias[2]
  critical = plain.critical_weight_variance('sigmoid', 0.0)
  net = Net('sigmoid', critical)
  assert plain.chi(net, plain.fixed_point(net, 200.0)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(('name', 'biases'), [('gelu', (0.0, 0.05, 0.1, 0.16)), ('silu', (0.0, 0.1, 0.3, 0.5))])
def test_a_fixed_point_that_repels_is_no_edge_of_chaos(name, biases):
  """Small ones of GELU and SiLU: chi_1 is 1 there, but signals end below or above, where it is not."""
  for bias in biases:
    with pytest.raises(errors.InputError, match=f'{name} .*edge of chaos'):
      plain.critical_weight_variance(name, bias)
  weight, bias = (float(value) for value in plain.critical_line(name, np.array(1.0)))
  net, ends = Net(name, weight, bias), []
  assert plain.variance_map(net, 1.0) == pytest.approx(1.0, abs=1e-9) and plain.chi(net, 1.0) == pytest.approx(1.0)
  for q in (0.99, 1.01):
    for _ in range(200):
      q = min(plain.variance_map(net, q), 1e6)
    ends.append(plain.chi(net, q))
  assert ends[0] < 0.95 and ends[1] > 1.02
  assert not plain.is_stable(net, 1.0)


@pytest.mark.parametrize(('name', 'bias'), [('gelu', 0.3), ('silu', 1.0), ('tanh', 0.1)])
def test_signals_stay_on_the_edge_of_chaos(name, bias):
  net = Net(name, plain.critical_weight_variance(name, bias), bias)
  q = net.weight_variance + bias
  for _ in range(1500):
    q = plain.variance_map(net, q)
  assert plain.chi(net, q) == pytest.approx(1, abs=1e-5)
  assert plain.variance_slope(net, q) == pytest.approx(
    (plain.variance_map(net, 1.001 * q) - plain.variance_map(net, 0.999 * q)) / (0.002 * q), rel=1e-4
  )


@pytest.mark.parametrize(('name', 'weight', 'bias'), [('silu', 2.0, 0.5), ('gelu', 2.1, 0.1), ('silu', 2.1, 0.1)])
def test_a_start_is_drawn_to_the_fixed_point_of_its_own_basin(name, weight, bias):
  """SiLU at (2, 0.5) has a second fixed point at 1.8 times the first, which repels."""
  net = Net(name, weight, bias)
  for start in (1.0, weight + bias):
    q = start
    for _ in range(2000):
      q = plain.variance_map(net, q)
      if q > 1e9:
        q = math.inf
        break
    assert plain.fixed_point(net, start) == pytest.approx(q, rel=1e-4)


def test_any_activation_will_do():
  """A ReLU of slope 0.2 below 0: chi_1 = sigma_w^2 (1 + 0.2^2) / 2 at any q."""
  leaky = activations.Activation(lambda x: np.where(x > 0, x, 0.2 * x), lambda x: np.where(x > 0, 1.0, 0.2))
  assert plain.critical_weight_variance(leaky, 0.0) == pytest.approx(2 / 1.04, abs=1e-8)
  found = plain.phase(Net(leaky, 1.0, 0.3))
  assert (found.q, found.chi_1) == pytest.approx((0.3 / 0.48, 0.52), rel=1e-8)


def test_gelu_is_a_relu_where_variances_are_unbounded():
  grown = -1 / math.log(1.5)
  found = plain.phase(Net('gelu', 3.0, 0.1))
  assert found == pytest.approx((math.inf, 1.0, 1.5, grown, math.inf, 2 * grown), rel=1e-5)
