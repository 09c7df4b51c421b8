"""Random networks: against the models' own layers, and against whole Jacobians."""

import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt.meanfield import random_nets
from dnt.models import activations, blocks, norms, parts

NORMS = ('none', 'batch_norm', 'layer_norm', 'rms_norm')
BLOCKS = ('plain', 'residual', 'highway')
NETWORK = random_nets.Network(('tanh', 'relu'), BLOCKS, NORMS, 2, 12, -1.0)
VARIANCES = jnp.array([[1.5, 0.0], [2.0, 0.2]])


@pytest.fixture(scope='module')
def measured():
  """A key, and the inputs of each layer, log q and c."""
  key = jax.random.key(3)
  x, _ = random_nets.draw_signals(NETWORK, key, VARIANCES, 4, 0.5)
  return key, jax.jit(random_nets.forward, static_argnums=0)(NETWORK, key, VARIANCES, x)


def draw_and_apply(key, x):
  weights = NETWORK.draw(key, 1)
  return weights, NETWORK.layer(weights, VARIANCES, x)[0]


@pytest.mark.thorough
def test_a_layer_is_the_models_dense_unit(measured):
  key, (inputs, log_q, c) = measured
  weights, output = jax.device_get(jax.jit(draw_and_apply)(key, inputs[1]))
  inputs, log_q, c = jax.device_get((inputs, log_q, c))
  for k, m in ((0, 1), (0, 2), (1, 0), (1, 3), (2, 1), (2, 3)):
    a, s = m % 2, (k + m // 2) % 2
    weight, bias = (math.sqrt(value) for value in VARIANCES[s])
    unit = blocks.DenseUnit(
      parts.Parts(
        conv=None,
        dense=nn.Dense,
        norm=lambda m=m, **kwargs: norms.Norm(kind=NORMS[m], **kwargs),
        activation=lambda a=a: activations.Activation(NETWORK.activations[a]),
        dtype=jnp.float32,
      ),
      12,
      BLOCKS[k],
      -1.0,
    )
    x = inputs[1, a, k, m, s]
    params = {
      'dense': {'kernel': weight * weights.kernel, 'bias': bias * weights.bias},
      'norm': {'scale': np.ones(12), 'bias': np.zeros(12)},
      'gate': {'kernel': weight * weights.gate, 'bias': np.full(12, -1.0)},
    }
    params = jax.tree.map(np.float32, params)
    y, _ = jax.jit(functools.partial(unit.apply, train=True, mutable=['batch_stats']))({'params': params}, x)
    np.testing.assert_allclose(output[a, k, m, s], y, rtol=2e-4, atol=2e-5)
    h = np.asarray(x) @ np.asarray(params['dense']['kernel']) + np.asarray(params['dense']['bias'])
    assert np.exp(log_q[1, a, k, m, s]) == pytest.approx(np.mean(h**2), rel=1e-4)
    unit_h = h / np.linalg.norm(h, axis=1, keepdims=True)
    cosines = [unit_h[i] @ unit_h[j] for i, j in itertools.combinations(range(4), 2)]
    assert c[1, a, k, m, s] == pytest.approx(np.mean(cosines), abs=1e-5)


def test_draws_have_the_variances_of_the_theory():
  weights = NETWORK._replace(width=200).draw(jax.random.key(0), 0)
  assert float(jnp.var(weights.kernel)) * 200 == pytest.approx(1, rel=0.02)
  assert float(jnp.var(weights.gate)) * 200 == pytest.approx(1, rel=0.02)
  assert float(jnp.var(weights.bias)) == pytest.approx(1, rel=0.3)
  other = NETWORK._replace(width=200).draw(jax.random.key(0), 1)
  assert abs(np.corrcoef(weights.kernel.ravel(), other.kernel.ravel())[0, 1]) < 0.02
  x, cotangents = random_nets.draw_signals(NETWORK._replace(width=2000), jax.random.key(1), VARIANCES, 4, 0.3)
  assert x.shape == (2, 3, 4, 2, 4, 2000)
  correlations = np.corrcoef(x[0, 0, 0, 0])
  np.testing.assert_allclose(correlations, np.where(np.eye(4), 1, 0.3), atol=0.08)
  assert float(jnp.mean(x[0, 0, 0, 0] ** 2)) == pytest.approx(1, rel=0.08)
  assert np.abs(np.corrcoef(cotangents[0, 0, 0, 0]) - np.eye(4)).max() < 0.08


@pytest.mark.thorough
def test_products_and_singular_values_are_those_of_the_whole_jacobian():
  network = NETWORK._replace(norms=('batch_norm',), activations=('tanh',), blocks=('plain', 'residual'))
  key = jax.random.key(5)
  x, cotangents = random_nets.draw_signals(network, key, VARIANCES, 4, 0.5)

  def output(x):
    for index in range(network.depth):
      x = network.layer(network.draw(key, index), VARIANCES, x)[0]
    return x

  @jax.jit
  def everything(x, cotangents):
    basis = jnp.eye(48).reshape(48, 1, 1, 1, 1, 4, 12) + jnp.zeros((1, *x.shape))
    columns = jax.vmap(jax.linearize(output, x)[1])(basis)
    found = random_nets.singular_values(network, key, VARIANCES, x, 3, 6)  # 3 span all
    inputs = random_nets.forward(network, key, VARIANCES, x).inputs
    return columns, found, random_nets.pull(network, key, VARIANCES, inputs, cotangents[None])

  columns, found, (pulled, logarithm) = everything(x, cotangents)
  for k, s in itertools.product(range(2), range(2)):
    jacobian = np.asarray(columns[:, 0, k, 0, s], np.float64).reshape(48, 4, 12)  # by input, its unit; output
    want = np.linalg.svd(jacobian[:12, 0], compute_uv=False)[:3]
    np.testing.assert_allclose(np.exp(found[0, k, 0, s]), want, rtol=1e-4)
    gradient = np.asarray(cotangents[0, k, 0, s], np.float64)
    want = jacobian.reshape(48, 48) @ gradient.ravel() / np.linalg.norm(gradient)
    got = pulled[0, 0, k, 0, s].ravel() * np.exp(logarithm[0, 0, k, 0, s])
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.thorough
def test_a_few_lanczos_iterations_find_the_largest_singular_values():
  """18 of 96 dimensions: within 2 % of the whole Jacobian's, from below."""
  network = random_nets.Network(('tanh', 'relu'), ('plain', 'residual'), ('none', 'layer_norm'), 12, 96, 0.0)
  key, variances = jax.random.key(1), VARIANCES[:1]
  x, _ = random_nets.draw_signals(network, key, variances, 1, 0.0)

  @jax.jit
  def everything(x):
    basis = jnp.eye(96).reshape(96, 1, 1, 1, 1, 1, 96) + jnp.zeros((1, *x.shape))
    inputs = random_nets.forward(network, key, variances, x).inputs
    columns, logarithm = random_nets.push(network, key, variances, inputs, basis)
    return columns, logarithm, random_nets.singular_values(network, key, variances, x, 2, 6)

  columns, logarithm, found = everything(x)
  for a, k, m in itertools.product(range(2), range(2), range(2)):
    want = np.linalg.svd(np.asarray(columns[:, a, k, m, 0, 0], np.float64), compute_uv=False)[:2]
    ratio = np.exp(found[a, k, m, 0] - logarithm[a, k, m, 0]) / want
    assert (ratio > 0.98).all() and (ratio < 1 + 1e-4).all(), (a, k, m, ratio)


@pytest.mark.parametrize(
  ('activation', 'depth', 'width', 'count', 'iterations'), [('tanh', 12, 16, 9, 6), ('relu', 6, 48, 2, 16)]
)
def test_many_singular_values_or_iterations_are_accurate(activation, depth, width, count, iterations):
  """Six blocks of ten vectors are more than 16 units have; one of them would miss much of the smaller values.

  Units of relu that are off leave few dimensions to the images, all of which the space has long before its end.
  """
  network = random_nets.Network((activation,), ('plain',), ('none',), depth, width, 0.0)
  key, variances = jax.random.key(2), VARIANCES[:1]
  x, _ = random_nets.draw_signals(network, key, variances, 1, 0.0)

  def output(vector):
    def body(x, index):
      return network.layer(network.draw(key, index), variances, x)[0], None

    return jax.lax.scan(body, vector.reshape(x.shape), jnp.arange(network.depth))[0].ravel()

  want = np.linalg.svd(np.asarray(jax.jit(jax.jacobian(output))(x.ravel()), np.float64), compute_uv=False)
  program = jax.jit(random_nets.singular_values, static_argnums=(0, 4, 5))
  found = np.exp(program(network, key, variances, x, count, iterations)).ravel()
  np.testing.assert_allclose(found, want[:count], rtol=1e-4, atol=1e-6 * want[0])  # rounding, of the largest


def test_more_iterations_than_the_units_allow_take_no_more_than_those():
  assert [random_nets.lanczos(256, 2, iterations) for iterations in (84, 86, 1000)] == [(3, 84), (3, 85), (3, 85)]
  assert random_nets.lanczos(60, 9, 7) == (10, 6)
  assert [random_nets.lanczos(59, 9, iterations) for iterations in (5, 6, 7)] == [(10, 5), (59, 1), (59, 1)]
