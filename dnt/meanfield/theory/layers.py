"""A stack of equal layers of any block and norm, layer by layer: what `blocks.DenseUnit` computes, in theory.

Forward, over units: the mean, the mean square and the mean product for two inputs of a layer's signal x. Backward, over
units: the mean square of the gradient and, for batch norm, its mean product for two inputs.

Yang and Schoenholz 2017, "Mean field residual networks: on the edge of chaos", for sums over residual branches; with
the mean that activations which are not odd add up.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dnt.meanfield.theory import activations, batch_norm, finite_width, plain, quadrature


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
  """Holds averages of a quantity over units: its mean, its mean square, and its mean product for two inputs."""

  mean: float
  square: float
  product: float

  def plus(self, other: '_Moments') -> '_Moments':
    """Returns the moments of the sum of this and an independent quantity."""
    cross = 2 * self.mean * other.mean
    return _Moments(self.mean + other.mean, self.square + other.square + cross, self.product + other.product + cross)


class _Gradient(NamedTuple):
  """Holds averages of a gradient over units: its mean square, and its mean product for two inputs of a batch."""

  square: float
  product: float


_Back = Callable[[_Gradient], _Gradient]  # from the gradient at an output to that at the input


def predict(
  net: plain.Net,
  depth: int,
  *,
  block: str = 'plain',
  norm: str = 'none',
  gate_bias: float = -2.0,
  correlation: float = 0.0,
  batch: int = 16,
  epsilon: float = 1e-5,
  width: int | None = None,
) -> Prediction:
  """A network of `depth` equal layers on Gaussian inputs of unit variance.

  Args:
    net: activation and variances.
    depth: layers.
    block: plain: y; residual: x + y; highway: y T + x (1 - T), T = sigmoid(V x + gate_bias), V as W.
    norm: of h: none, batch_norm, layer_norm or rms_norm (the last two are the same: the mean of h over units is 0).
    gate_bias: highway: of every gate.
    correlation: of any two inputs.
    batch: inputs that batch_norm takes together, at least 8.
    epsilon: of the norm.
    width: units a layer, which the gradient of a residual network without a norm depends on, see `finite_width`; None:
      the limit of many.
  """
  x = _Moments(0.0, 1.0, correlation)
  qs, correlations, backs = [], [], []
  for _ in range(depth):
    q = net.weight_variance * x.square + net.bias_variance
    shared = net.weight_variance * x.product + net.bias_variance
    if norm == 'batch_norm':
      y, back = _batch_normalized(net, q - shared, batch, epsilon)
    else:
      y, back = _branch(net, q, shared / q, 1.0 if norm == 'none' else 1 / (q + epsilon))
    if block == 'residual':
      x, back = x.plus(y), functools.partial(_add, back)
    elif block == 'highway':
      x, back = _highway(net.weight_variance, gate_bias, x, y, back)
    else:
      x = y
    qs.append(q)
    correlations.append(shared / q)
    backs.append(back)
  if width and (block, norm) == ('residual', 'none'):
    gains = finite_width.residual_gains(net, depth, width)
  else:
    gains = _gains(backs)
  return Prediction(np.array(qs), np.array(correlations), gains)


def _gains(backs: list[_Back]) -> np.ndarray:
  gains, gradient = [], _Gradient(1.0, 0.0)
  for back in reversed(backs):
    gradient = back(gradient)
    gains.append(gradient.square)
    gradient = _Gradient(1.0, gradient.product / gradient.square)
  return np.array(gains[::-1])


def _branch(net: plain.Net, q: float, correlation: float, factor: float) -> tuple[_Moments, _Back]:
  """y = phi(h sqrt(factor)), and the way back: sigma_w^2 factor E[phi'^2].

  Inputs do not touch, so that gradients that start independent stay so.
  """
  phi, slope = activations.make(net.activation)
  variance = factor * q
  square = quadrature.expectation(lambda u: phi(u) ** 2, variance)
  y = _Moments(quadrature.expectation(phi, variance), square, _pair(phi, variance, correlation))
  gain = net.weight_variance * factor * quadrature.expectation(lambda u: slope(u) ** 2, variance)
  return y, lambda gradient: _Gradient(gain * gradient.square, 0.0)


def _add(branch: _Back, gradient: _Gradient) -> _Gradient:
  """Returns the gradient at the input x of a sum x + F(x), from that at the sum; `branch` takes it back through F."""
  through = branch(gradient)
  return _Gradient(gradient.square + through.square, gradient.product + through.product)


def _batch_normalized(net: plain.Net, own: float, batch: int, epsilon: float) -> tuple[_Moments, _Back]:
  """Returns the moments of phi(batch_norm(h)) and the way back; h varies by `own` around what the batch shares."""
  spread = own * (batch - 1) / batch
  scale = float(f'{math.sqrt(spread / (spread + epsilon)):.6g}')  # few values, so that the averages are not redone
  z = batch_norm.averages(net.activation, batch, scale)
  # The mean of 1 / variance over batches, of which (B - 1) / (B - 3) is that of 1 / chi^2.
  factor = net.weight_variance / (own * (batch - 3) / batch + epsilon)
  different_gain, common_gain = batch_norm.different_gain(z, batch), batch_norm.common_gain(z, batch)

  def back(gradient):
    # The backward pass of the norm takes the mean over the batch away: what is left has an equal power in B - 1
    # directions.
    different = gradient.square - gradient.product
    common = gradient.square + (batch - 1) * gradient.product
    power = factor * (different * different_gain + common * common_gain / (batch - 1))
    return _Gradient(power * (batch - 1) / batch, -power / batch)

  return _Moments(z.mean, z.square, z.product), back


def _highway(
  weight_variance: float, gate_bias: float, x: _Moments, y: _Moments, branch: _Back
) -> tuple[_Moments, _Back]:
  """y T + x (1 - T), and the way back: through y, through x and through T, Gaussian before its sigmoid as h is."""
  gate, slope = activations.make('sigmoid')
  spread = weight_variance * x.square
  alike = x.product / x.square
  mean = quadrature.expectation(gate, spread, gate_bias)
  square = quadrature.expectation(lambda u: gate(u) ** 2, spread, gate_bias)
  product = _pair(gate, spread, alike, gate_bias)
  carried = _Gradient(1 - 2 * mean + square, 1 - 2 * mean + product)  # E[(1 - T)^2], E[(1 - T) (1 - T')]
  cross = 2 * x.mean * y.mean
  slopes = quadrature.expectation(lambda u: slope(u) ** 2, spread, gate_bias)
  turned = weight_variance * slopes * (x.square + y.square - cross)

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


def _pair(function: activations.Function, variance: float, correlation: float, mean: float = 0.0) -> float:
  """`pair_expectation` to 12 digits of its arguments, so that a network at its fixed point takes no time."""
  return _cached_pair(function, float(f'{variance:.12g}'), float(f'{correlation:.12g}'), mean)


_cached_pair = functools.lru_cache(4096)(quadrature.pair_expectation)
