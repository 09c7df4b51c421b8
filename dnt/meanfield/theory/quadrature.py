"""Gaussian integrals of functions that may bend, or jump, at 0.

They are sums over Gauss-Legendre nodes on panels that narrow towards the place where the function bends, so that kinks
and steep slopes cost no accuracy: errors stay below 1e-8, or 1e-5 for a pair of steps (phi' of ReLU) that has a
correlation within 1e-6 of 1.
"""

import functools
import math

import numpy as np

from dnt.meanfield.theory import activations

Function = activations.Function

_REACH = 7.5  # standard deviations; 6e-14 of a Gaussian is beyond
_GRID = np.linspace(-_REACH, _REACH, 11)
_NEARER = 1.5 / 3.0 ** np.arange(6)  # resolves a slope 200 times as steep as the Gaussian
_AROUND = np.concatenate([-_NEARER, [0.0], _NEARER[::-1]])
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_TINY = 1e-200  # stands for a variance of 0, so that a function that jumps at 0 has its limit from above


def expectation(function: Function, variance: float, mean: float = 0.0) -> float:
  """E[f(u)] for u ~ N(mean, variance); at variance 0 the limit from above."""
  deviation = math.sqrt(max(variance, _TINY))
  nodes, weights = _scalar_rule(-mean / deviation)
  return float(weights @ function(mean + deviation * nodes))


def pair_expectation(function: Function, variance: float, correlation: float, mean: float = 0.0) -> float:
  """E[f(u) f(v)] for u, v ~ N(mean, variance) with this correlation; at variance 0 the limit from above.

  u and v share one Gaussian and have one each of their own: given the shared one they are independent.
  """
  if correlation >= 1:
    return expectation(lambda u: function(u) ** 2, variance, mean)
  if correlation == 0:
    return expectation(function, variance, mean) ** 2
  variance = max(variance, _TINY)
  shared = math.sqrt(variance * min(abs(correlation), 1.0))
  own = math.sqrt(variance * max(1 - abs(correlation), 1e-30))
  nodes, weights = _scalar_rule(-mean / shared)

  def given(center):
    inner, inner_weights = _rule(-center / own)
    return np.sum(inner_weights * function(center[:, None] + own * inner), -1)

  first = given(mean + shared * nodes)
  second = first if correlation > 0 else given(mean - shared * nodes)
  return float(weights @ (first * second))


def sphere_rule(bend: np.ndarray, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
  """Nodes and weights for a coordinate of a random point on the sphere of radius sqrt(n) in n dimensions.

  Args:
    bend: [...], where the integrands bend.
    dimensions: n.

  Returns:
    float64 [..., nodes] and the same shape; the weights add up to one.
  """
  nodes, weights = _panels(bend, min(_REACH, math.sqrt(dimensions)))
  weights = weights * np.maximum(1 - nodes**2 / dimensions, 0) ** ((dimensions - 3) / 2)
  return nodes, weights / weights.sum(-1, keepdims=True)


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
  return nodes, weights * activations.normal_density(nodes)


@functools.lru_cache(64)
def _scalar_rule(bend: float) -> tuple[np.ndarray, np.ndarray]:
  return _rule(np.array(bend))
