"""Plain networks without a norm: fixed points, chi_1, depth scales and the edge of chaos.

- Poole et al. 2016, "Exponential expressivity in deep neural networks through transient chaos".
- Schoenholz et al. 2017, "Deep information propagation".
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dnt import errors
from dnt.meanfield.theory import activations, quadrature

_SMALLEST, _LARGEST = 1e-6, 1e14  # stand for a q* of 0 and of infinity, where a limit is meant
_STRIDE = 1.25  # ratio of the variances at which a fixed point is looked for; two that are nearer are passed by
_EXACT = 1e-11  # of a slope: the quadrature's error for ReLU is 4e-12


class Net(NamedTuple):
  """A plain network without a norm.

  Attributes:
    activation: one of `activations.ACTIVATIONS` by name, or any other.
    weight_variance: sigma_w^2; a weight has sigma_w^2 / fan-in.
    bias_variance: sigma_b^2.
  """

  activation: str | activations.Activation
  weight_variance: float
  bias_variance: float = 0.0


def variance_map(net: Net, q: float) -> float:
  """V(q) = sigma_w^2 E[phi(u)^2] + sigma_b^2, u ~ N(0, q): the next layer's variance (Poole et al. 2016, eq. 3)."""
  phi = activations.make(net.activation).function
  return net.weight_variance * quadrature.expectation(lambda u: phi(u) ** 2, q) + net.bias_variance


def fixed_point(net: Net, start: float = 1.0) -> float:
  """q* = V(q*): the variance that `start` > 0 is drawn to, 0 or infinity included.

  V rises with q, so that q moves one way until V(q) = q. Where every q is a fixed point (ReLU at sigma_w^2 = 2 and
  sigma_b^2 = 0) it is `start` itself.
  """

  def excess(q):
    return variance_map(net, q) / q - 1

  first = excess(start)
  if abs(first) < 1e-10:
    return start
  factor = _STRIDE if first > 0 else 1 / _STRIDE
  low = start
  while 1e-12 < low < 1e9:
    high = low * factor
    if excess(high) * first <= 0:
      return math.exp(_root(lambda x: excess(math.exp(x)), math.log(low), math.log(high)))
    low = high
  return 0.0 if factor < 1 else math.inf


def variance_slope(net: Net, q: float) -> float:
  """V'(q) = sigma_w^2 E[u phi(u) phi'(u)] / q, by parts: the factor of a layer on a distance from a fixed point q."""
  phi, slope = activations.make(net.activation)
  return net.weight_variance * quadrature.expectation(lambda u: u * phi(u) * slope(u), q) / q


def is_stable(net: Net, q: float) -> bool:
  """Whether V'(q) <= 1 at the fixed point q, so that signals near it go there; they leave any other."""
  return variance_slope(net, q) <= 1 + _EXACT


def correlation_map(net: Net, c: float, q: float) -> float:
  """C(c) = (sigma_w^2 E[phi(u) phi(v)] + sigma_b^2) / V(q), u and v of variance q and correlation c.

  The correlation of the next layer's pre-activations (Poole et al. 2016, eq. 5).
  """
  phi = activations.make(net.activation).function
  covariance = net.weight_variance * quadrature.pair_expectation(phi, q, c) + net.bias_variance
  return covariance / variance_map(net, q)


def correlation_fixed_point(net: Net, q: float) -> float:
  """c* = C(c*), what two different inputs end with: 1 in the ordered phase, less in the chaotic one.

  Args:
    net: the network.
    q: q*, see `fixed_point`.
  """
  q = _between(q)

  def excess(c):
    return correlation_map(net, c, q) - c

  # C is convex on [0, 1] and C(1) = 1: there is a second fixed point below exactly when the slope at 1 is above 1.
  edge = 1 - 1e-5
  return 1.0 if excess(edge) > -1e-10 else _root(excess, 0.0, edge)


def chi(net: Net, q: float, c: float = 1.0) -> float:
  """sigma_w^2 E[phi'(u) phi'(v)], u and v of variance q and correlation c; c = 1 is chi_1 (Poole et al. 2016, eq. 6).

  chi_1 is the slope of C at 1 where q = q*, and, at any q, the factor on the squared norm of the gradient in one layer
  of the backward pass (Schoenholz et al. 2017, eq. 18).
  """
  return net.weight_variance * quadrature.pair_expectation(activations.make(net.activation).derivative, q, c)


class Phase(NamedTuple):
  """Where signals and gradients end, and over how many layers they change by a factor e on their way.

  A scale is infinite where the change is slower than exponential (where q* = 0, an odd activation is linear and keeps
  c), and negative where something grows.

  Attributes:
    q: q*.
    c: c*.
    chi_1: at q*: below 1 the ordered phase, above it the chaotic one, 1 on the edge of chaos.
    xi_q: of q - q*, -1 / log V'(q*); where q* is infinite, of q itself.
    xi_c: of c - c*, -1 / log C'(c*).
    xi_gradient: of the norm of the gradient, -2 / log chi_1.
  """

  q: float
  c: float
  chi_1: float
  xi_q: float
  xi_c: float
  xi_gradient: float


def phase(net: Net, start: float = 1.0) -> Phase:
  """Fixed points and depth scales (Schoenholz et al. 2017, eq. 9 and 10) of q from `start`, see `fixed_point`."""
  fixed = fixed_point(net, start)
  q, c = _between(fixed), correlation_fixed_point(net, fixed)
  correlation_slope = chi(net, q, c) * q / variance_map(net, q)
  chi_1 = chi(net, q)
  return Phase(fixed, c, chi_1, _scale(variance_slope(net, q)), _scale(correlation_slope), 2 * _scale(chi_1))


def _between(q: float) -> float:
  return min(max(q, _SMALLEST), _LARGEST)


def _scale(factor: float) -> float:
  """Layers in which something changes by e that changes by `factor` in each."""
  if factor <= 0:
    return 0.0
  return math.inf if abs(factor - 1) < 1e-5 else -1 / math.log(factor)


def critical_line(activation: str | activations.Activation, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Where chi_1 = 1, by the fixed point: (sigma_w^2, sigma_b^2), each in the shape of q*.

  It is a curve in q*, because both follow from it: sigma_w^2 = 1 / E[phi'^2], sigma_b^2 = q* - sigma_w^2 E[phi^2]. A
  negative sigma_b^2 means that no network has that fixed point. The curve is the edge of chaos where the fixed point is
  stable, see `is_stable`; small ones of GELU and SiLU are not.
  """
  phi, slope = activations.make(activation)
  flat = np.ravel(q)
  weight = np.array([1 / quadrature.expectation(lambda u: slope(u) ** 2, value) for value in flat])
  square = np.array([quadrature.expectation(lambda u: phi(u) ** 2, value) for value in flat])
  return weight.reshape(np.shape(q)), np.reshape(flat - weight * square, np.shape(q))


def critical_weight_variance(activation: str | activations.Activation, bias_variance: float) -> float:
  """sigma_w^2 on the edge of chaos for this sigma_b^2; that of the smallest stable q*, where there are several.

  Raises:
    errors.InputError: there is none.
  """

  def excess(x):
    return float(critical_line(activation, np.array(math.exp(x)))[1]) - bias_variance

  grid = np.linspace(math.log(1e-10), math.log(1e6), 65)
  biases = critical_line(activation, np.exp(grid))[1]
  # q* = 0, where the line starts; ReLU's is this point alone.
  points = [grid[0]] if abs(biases[0] - bias_variance) < 1e-17 else []
  crossings = np.flatnonzero(np.diff(np.sign(biases - bias_variance)))
  points += [_root(excess, grid[at], grid[at + 1]) for at in crossings]
  for q in np.exp(points):
    weight = float(critical_line(activation, q)[0])
    if is_stable(Net(activation, weight, bias_variance), q):
      return weight
  raise errors.InputError(f'{activation} has no edge of chaos at sigma_b^2 = {bias_variance:g}')


def _root(function: Callable[[float], float], low: float, high: float) -> float:
  """Where a function changes its sign between `low` and `high`."""
  from scipy import optimize

  return float(optimize.brentq(function, low, high, xtol=1e-13, rtol=1e-13))
