"""Mean field theory of signal propagation: what random, infinitely wide dense networks do to signals and gradients.

A layer is h = W x + b, y = phi(norm(h)), with W_ij ~ N(0, sigma_w^2 / fan-in) and b_i ~ N(0, sigma_b^2). In a wide
network the pre-activations h are Gaussian, and two numbers say everything: their variance q, and the correlation c of
those of two inputs. Both follow maps from layer to layer, and the squared norm of the gradient grows by a factor chi.

- Poole et al. 2016, "Exponential expressivity in deep neural networks through transient chaos": q, c, chi_1.
- Schoenholz et al. 2017, "Deep information propagation": depth scales, the edge of chaos.
- Yang and Schoenholz 2017, "Mean field residual networks: on the edge of chaos": the sums over residual branches.
- Yang et al. 2019, "A mean field theory of batch normalization": its gradient explosion.

Gaussian integrals are sums over Gauss-Legendre nodes on panels that narrow towards the place where an activation bends,
so that kinks and steep slopes cost no accuracy: errors stay below 1e-8, or 1e-5 for a pair of steps (phi' of ReLU) that
has a correlation within 1e-6 of 1. All in float64 on the host.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special

from dnt import errors

Function = Callable[[np.ndarray], np.ndarray]


class Activation(NamedTuple):
  """An activation that is smooth everywhere but at 0, in float64."""

  function: Function
  derivative: Function


def _normal_density(x: np.ndarray) -> np.ndarray:
  return np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


# Those of `dnt.models.activations`, and erf, whose maps have closed forms (Williams 1997).
ACTIVATIONS: dict[str, Activation] = {
  'relu': Activation(lambda x: np.maximum(x, 0), lambda x: np.where(x > 0, 1.0, 0.0)),
  'leaky_relu': Activation(lambda x: np.where(x > 0, x, 0.01 * x), lambda x: np.where(x > 0, 1.0, 0.01)),
  'sigmoid': Activation(special.expit, lambda x: special.expit(x) * special.expit(-x)),
  'tanh': Activation(np.tanh, lambda x: 1 - np.tanh(x) ** 2),
  'gelu': Activation(lambda x: x * special.ndtr(x), lambda x: special.ndtr(x) + x * _normal_density(x)),
  'silu': Activation(lambda x: x * special.expit(x), lambda x: special.expit(x) * (1 + x * special.expit(-x))),
  'identity': Activation(lambda x: x, np.ones_like),
  'erf': Activation(special.erf, lambda x: 2 / math.sqrt(math.pi) * np.exp(-(x**2))),
}


def make(name: str) -> Activation:
  """The activation of that name.

  Raises:
    errors.InputError: an unknown name.
  """
  if name not in ACTIVATIONS:
    raise errors.unknown('activation', name, ACTIVATIONS)
  return ACTIVATIONS[name]


class Net(NamedTuple):
  """A plain network without normalization.

  Attributes:
    activation: one of `ACTIVATIONS`.
    weight_variance: sigma_w^2; a weight has sigma_w^2 / fan-in.
    bias_variance: sigma_b^2.
  """

  activation: str
  weight_variance: float
  bias_variance: float = 0.0


_REACH = 7.5  # standard deviations; 6e-14 of a Gaussian is beyond
_GRID = np.linspace(-_REACH, _REACH, 11)
_NEARER = 1.5 / 3.0 ** np.arange(6)  # resolves a slope 200 times as steep as the Gaussian
_AROUND = np.concatenate([-_NEARER, [0.0], _NEARER[::-1]])
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)


def _panels(bend: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
  """Nodes and weights [..., n] over [-reach, reach] for integrands that bend at `bend` [...]."""
  bend = np.clip(bend, -reach, reach)[..., None]
  edges = np.concatenate([np.broadcast_to(_GRID, (*bend.shape[:-1], len(_GRID))), bend + _AROUND], -1)
  edges = np.sort(edges.clip(-reach, reach), -1)
  half = np.diff(edges)[..., None] / 2
  nodes = edges[..., :-1, None] + half * (1 + _NODES)
  flat = (*edges.shape[:-1], -1)
  return nodes.reshape(flat), (half * _WEIGHTS).reshape(flat)


def _rule(bend: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """`_panels` for a standard normal variable."""
  nodes, weights = _panels(bend, _REACH)
  return nodes, weights * _normal_density(nodes)


@functools.lru_cache(64)
def _scalar_rule(bend: float) -> tuple[np.ndarray, np.ndarray]:
  return _rule(np.array(bend))


def _sphere_rule(bend: np.ndarray, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
  """`_panels` for a coordinate of a random point on the sphere of radius sqrt(n) in n dimensions."""
  nodes, weights = _panels(bend, min(_REACH, math.sqrt(dimensions)))
  weights = weights * np.maximum(1 - nodes**2 / dimensions, 0) ** ((dimensions - 3) / 2)
  return nodes, weights / weights.sum(-1, keepdims=True)


def expectation(function: Function, variance: float, mean: float = 0.0) -> float:
  """E[f(u)] for u ~ N(mean, variance); f may bend at 0."""
  if variance <= 0:
    return float(function(np.array(mean)))
  deviation = math.sqrt(variance)
  nodes, weights = _scalar_rule(-mean / deviation)
  return float(weights @ function(mean + deviation * nodes))


def pair_expectation(function: Function, variance: float, correlation: float, mean: float = 0.0) -> float:
  """E[f(u) f(v)] for u, v ~ N(mean, variance) with this correlation; f may bend at 0.

  u and v share one Gaussian and have one each of their own: given the shared one they are independent.
  """
  if variance <= 0 or correlation >= 1:
    return expectation(lambda u: function(u) ** 2, variance, mean)
  if correlation == 0:
    return expectation(function, variance, mean) ** 2
  shared = math.sqrt(variance * min(abs(correlation), 1.0))
  own = math.sqrt(variance * max(1 - abs(correlation), 1e-300))
  nodes, weights = _scalar_rule(-mean / shared)

  def given(center):
    inner, inner_weights = _rule(-center / own)
    return np.sum(inner_weights * function(center[:, None] + own * inner), -1)

  first = given(mean + shared * nodes)
  second = first if correlation > 0 else given(mean - shared * nodes)
  return float(weights @ (first * second))


def variance_map(net: Net, q: float) -> float:
  """V(q): the variance of the next layer's pre-activations (Poole et al. 2016, eq. 3)."""
  phi = make(net.activation).function
  return net.weight_variance * expectation(lambda u: phi(u) ** 2, q) + net.bias_variance


def variances(net: Net, q: float, depth: int) -> np.ndarray:
  """q, V(q), V(V(q)), ...: the variances [depth] of the pre-activations of layers 1 to `depth`, q the first."""
  found = [q]
  while len(found) < depth:
    found.append(variance_map(net, found[-1]))
  return np.array(found)


def fixed_point(net: Net, start: float = 1.0) -> float:
  """q*: the variance that `start` > 0 is drawn to, 0 or infinity included.

  V rises with q, so that q moves one way until V(q) = q. Where every q is a fixed point (ReLU at sigma_w^2 = 2 and
  sigma_b^2 = 0) it is `start` itself.
  """

  def excess(q):
    return variance_map(net, q) / q - 1

  first = excess(start)
  if abs(first) < 1e-10:
    return start
  factor = 2.0 if first > 0 else 0.5
  low = start
  while 1e-12 < low < 1e9:
    high = low * factor
    if excess(high) * first <= 0:
      return math.exp(_root(lambda x: excess(math.exp(x)), math.log(low), math.log(high)))
    low = high
  return 0.0 if factor < 1 else math.inf


def correlation_map(net: Net, c: float, q: float) -> float:
  """C(c): the correlation of the next layer's pre-activations, both of variance q before (Poole et al. 2016, eq. 5)."""
  phi = make(net.activation).function
  covariance = net.weight_variance * pair_expectation(phi, q, c) + net.bias_variance
  return covariance / variance_map(net, q) if covariance else math.nan


def correlations(net: Net, c: float, q: float, depth: int) -> np.ndarray:
  """c, C(c), C(C(c)), ... [depth] along the variances that q goes through."""
  found = [c]
  for variance in variances(net, q, depth)[:-1]:
    found.append(correlation_map(net, found[-1], variance))
  return np.array(found)


def correlation_fixed_point(net: Net, start: float = 1.0) -> float:
  """c*, the correlation that two different inputs end with: 1 in the ordered phase, less in the chaotic one.

  Args:
    net: the network.
    start: variance that q starts from, see `fixed_point`. A q* of 0 or infinity is replaced by 1e-6 or 1e6.
  """
  q = min(max(fixed_point(net, start), 1e-6), 1e6)

  def excess(c):
    return correlation_map(net, c, q) - c

  # C is convex on [0, 1] and C(1) = 1: there is a second fixed point below exactly when the slope at 1 is above 1.
  edge = 1 - 1e-5
  return 1.0 if excess(edge) > -1e-10 else _root(excess, 0.0, edge)


def chi(net: Net, q: float, c: float = 1.0) -> float:
  """sigma_w^2 E[phi'(u) phi'(v)] at variance q and correlation c; c = 1 is chi_1 (Poole et al. 2016, eq. 6).

  chi_1 is the slope of C at 1 where q is at its fixed point, and, at any q, the factor on the squared norm of the
  gradient in one layer of the backward pass (Schoenholz et al. 2017, eq. 18).
  """
  return net.weight_variance * pair_expectation(make(net.activation).derivative, q, c)


class DepthScales(NamedTuple):
  """Layers over which distances from the fixed points, and the gradient, change by a factor e.

  Attributes:
    q: of q - q*; infinite where the approach is slower than exponential.
    c: of c - c*, likewise.
    gradient: of the norm of the gradient: it falls (positive) or grows (negative) by e in so many layers.
  """

  q: float
  c: float
  gradient: float


def depth_scales(net: Net, start: float = 1.0) -> DepthScales:
  """xi_q and xi_c (Schoenholz et al. 2017, eq. 9 and 10), and that of the gradient's norm, 2 / -log(chi_1).

  Raises:
    errors.InputError: no fixed point q* between 0 and infinity.
  """
  q = fixed_point(net, start)
  if not 0 < q < math.inf:
    raise errors.InputError(f'{net} has no depth scales: the variance of its pre-activations goes to {q:g}')
  slope = chi(net, q, correlation_fixed_point(net, start))
  return DepthScales(_scale(_variance_slope(net, q)), _scale(slope), 2 * _scale(chi(net, q)))


def _scale(factor: float) -> float:
  if factor <= 0:
    return 0.0
  return math.inf if abs(factor - 1) < 1e-9 else -1 / math.log(factor)


def _variance_slope(net: Net, q: float) -> float:
  """V'(q), by parts: E[u phi(u) phi'(u)] sigma_w^2 / q."""
  phi, slope = make(net.activation)
  return net.weight_variance * expectation(lambda u: u * phi(u) * slope(u), q) / q


def critical_line(activation: str, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The edge of chaos, chi_1 = 1, by its fixed point: (sigma_w^2, sigma_b^2), each in the shape of q*.

  It is a curve in q*, because both follow from it: sigma_w^2 = 1 / E[phi'^2], sigma_b^2 = q* - sigma_w^2 E[phi^2]. A
  negative sigma_b^2 means that no network has that fixed point on the edge.
  """
  phi, slope = make(activation)
  weight = np.array([1 / expectation(lambda u: slope(u) ** 2, value) for value in np.ravel(q)])
  square = np.array([expectation(lambda u: phi(u) ** 2, value) for value in np.ravel(q)])
  return weight.reshape(np.shape(q)), np.reshape(np.ravel(q) - weight * square, np.shape(q))


def critical_weight_variance(activation: str, bias_variance: float) -> float:
  """sigma_w^2 on the edge of chaos for this sigma_b^2; that of the smallest q*, where there are several.

  Raises:
    errors.InputError: there is none.
  """
  return _critical(activation, 1, bias_variance)


def critical_bias_variance(activation: str, weight_variance: float) -> float:
  """sigma_b^2 on the edge of chaos for this sigma_w^2; that of the smallest q*, where there are several.

  Raises:
    errors.InputError: there is none.
  """
  return _critical(activation, 0, weight_variance)


def _critical(activation: str, given: int, value: float) -> float:
  """The other coordinate of the point of the critical line whose coordinate `given` is `value`."""
  if activation in ('relu', 'leaky_relu', 'identity'):  # the whole line is one point: any q* will do
    points = [critical_line(activation, np.array(1.0))]
    found = [point for point in points if abs(point[given] - value) < 1e-9]
    return max(float(found[0][1 - given]), 0.0) if found else _no_edge(activation, given, value)

  def excess(x):
    return float(critical_line(activation, np.array(math.exp(x)))[given] - value)

  grid = np.linspace(math.log(1e-10), math.log(1e6), 65)
  values = [excess(x) for x in grid]
  if abs(values[0]) < 1e-8:  # q* = 0, where the line starts
    return max(float(critical_line(activation, np.array(1e-10))[1 - given]), 0.0)
  for low, high, before, after in zip(grid, grid[1:], values, values[1:], strict=False):
    if before * after <= 0:
      point = critical_line(activation, np.array(math.exp(_root(excess, low, high))))
      if point[1] >= -1e-9:
        return max(float(point[1 - given]), 0.0)
  return _no_edge(activation, given, value)


def _no_edge(activation: str, given: int, value: float) -> float:
  name = ('sigma_w^2', 'sigma_b^2')[given]
  raise errors.InputError(f'{activation} has no edge of chaos at {name} = {value:g}')


class Normalized(NamedTuple):
  """Averages over a normalized batch z [B] and two different inputs in it; phi' is at z, and z' another input's.

  Attributes:
    mean: E[phi(z)].
    square: E[phi(z)^2].
    product: E[phi(z) phi(z')].
    slope: E[phi'(z)^2].
    slopes: E[phi'(z) phi'(z')].
    tilt: E[(z phi'(z))^2].
    tilts: E[z phi'(z) z' phi'(z')].
  """

  mean: float
  square: float
  product: float
  slope: float
  slopes: float
  tilt: float
  tilts: float


@functools.lru_cache(1024)
def normalized_batch(activation: str, batch: int, scale: float = 1.0) -> Normalized:
  """Averages over a batch of Gaussian values after batch norm.

  Such a batch lies on the sphere of radius sqrt(B) among the batches of mean zero, in B - 1 dimensions: two of its
  values have the correlation -1 / (B - 1), and are not quite Gaussian.

  Args:
    activation: one of `ACTIVATIONS`.
    batch: its size B, at least 8.
    scale: phi and phi' are taken at scale * z.
  """
  phi, slope = make(activation)
  dimensions, correlation = batch - 1, -1 / (batch - 1)
  z, weights = _sphere_rule(np.array(0.0), dimensions)
  radius = np.sqrt((1 - correlation**2) * np.maximum(1 - z**2 / dimensions, 1e-300) * dimensions / (dimensions - 1))
  inner, inner_weights = _sphere_rule(-correlation * z / radius, dimensions - 1)
  other = correlation * z[:, None] + radius[:, None] * inner

  def averages(function):
    given = np.sum(inner_weights * function(other), -1)
    return float(weights @ function(z) ** 2), float(weights @ (function(z) * given))

  mean = float(weights @ phi(scale * z))
  slopes, tilts = averages(lambda z: slope(scale * z)), averages(lambda z: z * slope(scale * z))
  return Normalized(mean, *averages(lambda z: phi(scale * z)), *slopes, *tilts)


def batch_norm_gain(activation: str, batch: int | None = None) -> float:
  """The factor of each batch norm layer on the squared norm of the gradient, whatever sigma_w and sigma_b.

  It is above 1 for every activation that is not linear (Yang et al. 2019): pi / (pi - 1) = 1.467 for ReLU and a large
  batch.

  Args:
    activation: one of `ACTIVATIONS`.
    batch: its size, at least 8; None: the limit of a large one, E[phi'^2] / Var[phi].
  """
  if batch:
    z = normalized_batch(activation, batch)
    return batch / (batch - 3) * _batch_slope(z, batch) / (z.square - z.product)
  phi, slope = make(activation)
  variance = expectation(lambda u: phi(u) ** 2, 1.0) - expectation(phi, 1.0) ** 2
  return expectation(lambda u: slope(u) ** 2, 1.0) / variance


class Prediction(NamedTuple):
  """What mean field theory says of each layer, in order, float64 [depth].

  Attributes:
    q: variance of the pre-activations, before the norm.
    c: correlation of those of two inputs.
    gain: squared norm of the gradient at the layer's input over that at its output.
  """

  q: np.ndarray
  c: np.ndarray
  gain: np.ndarray


class _Moments(NamedTuple):
  """Over units: the mean, the mean square, and the mean product for two inputs."""

  mean: float
  square: float
  product: float

  def plus(self, other: '_Moments') -> '_Moments':
    """Of the sum of two independent quantities."""
    cross = 2 * self.mean * other.mean
    return _Moments(self.mean + other.mean, self.square + other.square + cross, self.product + other.product + cross)


def predict(
  net: Net,
  depth: int,
  *,
  block: str = 'plain',
  norm: str = 'none',
  gate_bias: float = -2.0,
  correlation: float = 0.0,
  batch: int = 16,
  epsilon: float = 1e-5,
) -> Prediction:
  """A network of `depth` equal layers on Gaussian inputs of unit variance, as `blocks.DenseUnit` computes them.

  Sums over residual branches are those of Yang and Schoenholz 2017, with the mean that activations which are not odd
  add up. The gates of a highway layer are Gaussian before their sigmoid, as h is.

  The limit of infinite width is taken at fixed depth. At finite width, activations with a mean, as ReLU, have one
  direction in which the gradient grows faster, the one that all units share; it matters once the other directions are
  behind by the width, which is soon in a residual network of ReLU without a norm.

  Args:
    net: activation and variances.
    depth: layers.
    block: plain: y; residual: x + y; highway: y T + x (1 - T), T = sigmoid(V x + gate_bias), V as W.
    norm: of h: none, batch_norm, layer_norm or rms_norm (the last two are the same: the mean of h over units is 0).
    gate_bias: highway: of every gate.
    correlation: of any two inputs.
    batch: inputs that batch_norm takes together, at least 8.
    epsilon: of the norm.
  """
  x = _Moments(0.0, 1.0, correlation)
  layers = []
  for _ in range(depth):
    q = net.weight_variance * x.square + net.bias_variance
    shared = net.weight_variance * x.product + net.bias_variance
    if norm == 'batch_norm':
      y, branch = _batch_normalized(net, q - shared, batch, epsilon)
    else:
      y, branch = _branch(net, q, shared / q, 1.0 if norm == 'none' else 1 / (q + epsilon))
    if block == 'plain':
      x, back = y, branch
    elif block == 'residual':
      x, back = x.plus(y), functools.partial(_add, branch)
    else:
      x, back = _highway(net.weight_variance, gate_bias, x, y, branch)
    layers.append((q, shared / q, back))
  gains, gradient = [], _Gradient(1.0, 0.0)
  for _, _, back in reversed(layers):
    gradient = back(gradient)
    gains.append(gradient.square)
    gradient = _Gradient(1.0, gradient.product / gradient.square)
  q, c, _ = zip(*layers, strict=True)
  return Prediction(np.array(q), np.array(c), np.array(gains[::-1]))


class _Gradient(NamedTuple):
  """Over units: mean square, and mean product for two inputs of a batch."""

  square: float
  product: float


_Back = Callable[[_Gradient], _Gradient]


def _add(branch: _Back, gradient: _Gradient) -> _Gradient:
  through = branch(gradient)
  return _Gradient(gradient.square + through.square, gradient.product + through.product)


def _branch(net: Net, q: float, correlation: float, factor: float) -> tuple[_Moments, _Back]:
  """y = phi(h sqrt(factor)) and the way back through it.

  Inputs do not touch, so that gradients that start independent stay so.
  """
  phi, slope = make(net.activation)
  variance = factor * q
  square = expectation(lambda u: phi(u) ** 2, variance)
  y = _Moments(expectation(phi, variance), square, _pair(phi, variance, correlation))
  gain = net.weight_variance * factor * expectation(lambda u: slope(u) ** 2, variance)
  return y, lambda gradient: _Gradient(gain * gradient.square, 0.0)


def _batch_normalized(net: Net, own: float, batch: int, epsilon: float) -> tuple[_Moments, _Back]:
  """y = phi(batch_norm(h)) and the way back, where h has the variance `own` around what the batch shares."""
  spread = own * (batch - 1) / batch
  scale = float(f'{math.sqrt(spread / (spread + epsilon)):.6g}')
  z = normalized_batch(net.activation, batch, scale)
  # The mean of 1 / variance over batches, of which (B - 1) / (B - 3) is that of 1 / chi^2.
  factor = net.weight_variance / (own * (batch - 3) / batch + epsilon)
  together = _batch_slope(z, batch)
  common = (1 - 1 / batch) * (z.slope - z.slopes) - (z.tilt + (batch - 1) * z.tilts) / batch

  def back(gradient):
    # The backward pass of the norm takes the mean over the batch away: what is left has an equal power in B - 1
    # directions. `together` is the gain for such a gradient, `common` for one that is the same for all inputs.
    different = gradient.square - gradient.product
    same = gradient.square + (batch - 1) * gradient.product
    power = factor * (different * together + same * common / (batch - 1))
    return _Gradient(power * (batch - 1) / batch, -power / batch)

  return _Moments(z.mean, z.square, z.product), back


def _batch_slope(z: Normalized, batch: int) -> float:
  """Power of a gradient of mean zero over the batch after phi' and the projections of batch norm, for unit power.

  tr(P D G D P) / (B - 1) with D = diag(phi'(z)), G = 1 - 11^T / B, P = G - z z^T / B; without the factor 1 / variance.
  """
  own = (batch - 2) * z.slope + (z.slope + (batch - 1) * z.slopes) / batch
  return (own - z.tilt + (z.tilt + (batch - 1) * z.tilts) / batch) / (batch - 1)


def _highway(
  weight_variance: float, gate_bias: float, x: _Moments, y: _Moments, branch: _Back
) -> tuple[_Moments, _Back]:
  """y T + x (1 - T), and the way back: through y, through x and through T."""
  gate, slope = make('sigmoid')
  spread = weight_variance * x.square
  alike = x.product / x.square
  mean = expectation(gate, spread, gate_bias)
  square, product = expectation(lambda u: gate(u) ** 2, spread, gate_bias), _pair(gate, spread, alike, gate_bias)
  carried = _Gradient(1 - 2 * mean + square, 1 - 2 * mean + product)  # E[(1 - T)^2], E[(1 - T) (1 - T')]
  cross = 2 * x.mean * y.mean
  turned = weight_variance * expectation(lambda u: slope(u) ** 2, spread, gate_bias) * (x.square + y.square - cross)

  def back(gradient):
    through = branch(_Gradient(square * gradient.square, product * gradient.product))
    other = 0.0
    if gradient.product:
      other = weight_variance * _pair(slope, spread, alike, gate_bias) * (x.product + y.product - cross)
    return _Gradient(
      through.square + (carried.square + turned) * gradient.square,
      through.product + (carried.product + other) * gradient.product,
    )

  mixed = _Moments(
    mean * y.mean + (1 - mean) * x.mean,
    square * y.square + carried.square * x.square + (mean - square) * cross,
    product * y.product + carried.product * x.product + (mean - product) * cross,
  )
  return mixed, back


def _pair(function: Function, variance: float, correlation: float, mean: float = 0.0) -> float:
  """`pair_expectation` to 12 digits of its arguments, so that a network at its fixed point takes no time."""
  return _cached_pair(function, float(f'{variance:.12g}'), float(f'{correlation:.12g}'), mean)


_cached_pair = functools.lru_cache(4096)(pair_expectation)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
  """Where a function changes its sign between `low` and `high`, by bisection and secants."""
  from scipy import optimize

  return float(optimize.brentq(function, low, high, xtol=1e-13, rtol=1e-13))
