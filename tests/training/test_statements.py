"""What is said of deep networks, shown on the project's own blocks: bounds, identities and limits, each by number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import config as schema
from dnt import models
from dnt.models import activations, blocks, captures, depth, parts
from dnt.optim import clip, rows
from dnt.training import losses


def make_parts(activation, norm='none', initializer='he', gain=1.0):
  config = schema.default().model
  config.activation, config.norm, config.initializer, config.init_gain = activation, norm, initializer, gain
  return parts.make(config)


def draw(unit, seed, x):
  """Parameters of a unit that are a function of the seed."""
  return unit.init(jax.random.key(seed), x, train=False)['params']


def spectral(matrix):
  return float(np.linalg.norm(np.asarray(matrix, np.float64), 2))


def test_the_slope_of_the_sigmoid_is_at_most_a_quarter():
  slopes = jax.vmap(jax.grad(activations.make('sigmoid')))(jnp.linspace(-12, 12, 2401))
  assert float(slopes.max()) == pytest.approx(0.25, abs=1e-7) == float(slopes[1200])
  assert float(slopes.min()) > 0


@pytest.mark.parametrize(('initializer', 'gain'), [('glorot', 1.0), ('normal', 4.0)])
def test_gradients_of_sigmoid_networks_are_within_the_bound(initializer, gain):
  """|dL/dx_0| <= (max |W| / 4)^L |dL/dx_L| with the spectral norm |W|."""
  layers, width = 8, 24
  unit = blocks.DenseUnit(make_parts('sigmoid', initializer=initializer, gain=gain), width)
  for seed in range(2):
    x = jax.random.normal(jax.random.key(100 + seed), (1, width))
    params = [draw(unit, 10 * seed + layer, x) for layer in range(layers)]

    def output(x, params=params):
      for layer in params:
        x = unit.apply({'params': layer}, x, train=False)
      return x

    y, back = jax.vjp(output, x)
    gradient = jax.random.normal(jax.random.key(seed), y.shape)
    largest = max(spectral(layer['dense']['kernel']) for layer in params)
    ratio = float(jnp.linalg.norm(back(gradient)[0]) / jnp.linalg.norm(gradient))
    assert ratio <= (largest / 4) ** layers
    jacobian = jax.jacobian(output)(x).reshape(width, width)
    assert ratio <= spectral(jacobian) * (1 + 1e-4) <= (largest / 4) ** layers


def test_the_bound_is_reached_and_is_not_one_of_entries():
  """With all weights w and z = 0, the gradient is (w N / 4)^L: N w is the spectral norm, w the largest entry."""
  width, layers, w = 16, 5, 0.5
  unit = blocks.DenseUnit(make_parts('sigmoid'), width)
  params = {'dense': {'kernel': jnp.full((width, width), w), 'bias': jnp.full(width, -w * width / 2)}}

  def output(x):
    for _ in range(layers):
      x = unit.apply({'params': params}, x, train=False)
    return x

  x = jnp.full((1, width), 0.5)  # sigmoid(0): every layer's output
  ones = jnp.ones((1, width))
  ratio = float(jnp.linalg.norm(jax.vjp(output, x)[1](ones)[0]) / jnp.linalg.norm(ones))
  assert ratio == pytest.approx((w * width / 4) ** layers, rel=1e-4)
  assert spectral(params['dense']['kernel']) == pytest.approx(w * width, rel=1e-5)
  assert ratio > (w / 4) ** layers


def test_relu_with_he_keeps_the_norms_in_expectation():
  """Over 16 draws of 8 layers of 128 units, each mean within three of its standard errors, 0.14."""
  width, layers, seeds = 128, 8, 16
  unit = blocks.DenseUnit(make_parts('relu'), width)
  init = unit.parts.dense.keywords['kernel_init']
  keys = jax.random.split(jax.random.key(0), seeds)
  kernels = jnp.stack([init(key, (layers * width, width)) for key in keys]).reshape(seeds, layers, width, width)
  kernels = kernels * layers**0.5  # drawn at once, for a fan-in of all layers together

  @jax.jit
  @jax.vmap
  def ratios(kernels, key):
    x = jax.random.normal(key, (1, width))

    def output(x):
      for kernel in kernels:
        x = unit.apply({'params': {'dense': {'kernel': kernel, 'bias': jnp.zeros(width)}}}, x, train=False)
      return x

    y, back = jax.vjp(output, x)
    gradient = jax.random.normal(jax.random.fold_in(key, 1), y.shape)
    return jnp.sum(y**2) / jnp.sum(x**2), jnp.sum(back(gradient)[0] ** 2) / jnp.sum(gradient**2)

  np.testing.assert_allclose(np.mean(ratios(kernels, keys), 1), 1, atol=0.42)
  halved = np.mean(ratios(kernels * 0.5**0.5, keys), 1)  # Glorot's variance at equal widths
  np.testing.assert_allclose(halved, 0.5**layers, rtol=0.42)


def test_a_residual_stack_has_the_identity_in_its_jacobian():
  """d a_N / d a_l = I + sum_k d F_k(a_k) / d a_l."""
  width, layers = 6, 4
  unit = blocks.DenseUnit(make_parts('tanh'), width, 'residual')
  branch = blocks.DenseUnit(make_parts('tanh'), width)
  x = jax.random.normal(jax.random.key(0), (1, width))
  params = [draw(unit, layer, x) for layer in range(layers)]

  def states(x):
    found = [x]
    for layer in params:
      found.append(unit.apply({'params': layer}, found[-1], train=False))
    return found

  def branches(x):
    return [branch.apply({'params': layer}, a, train=False) for layer, a in zip(params, states(x), strict=False)]

  whole, terms = jax.jacobian(lambda x: (states(x)[-1], branches(x)))(x)
  terms = [np.asarray(term).reshape(width, width) for term in terms]
  np.testing.assert_allclose(np.asarray(whole).reshape(width, width), np.eye(width) + sum(terms), atol=1e-5)
  assert all(np.abs(term).max() > 0.01 for term in terms)


@pytest.fixture(scope='module')
def output_gradients():
  """Norms of the gradient at the outputs of the entries of an MLP of 30 layers whose weights are small, by block."""

  def measure(block):
    config = schema.default()
    config.model.name, config.model.block, config.model.norm = 'mlp', block, 'none'
    config.model.depth, config.model.width, config.model.init_gain, config.model.scan = 30, 32, 0.1, True
    model = models.make(config.model, 4)
    variables = models.init(depth.trace(model, (5, 5, 1)), 0)
    table = depth.trace(model, (5, 5, 1)).table
    x = jax.random.normal(jax.random.key(0), (8, 5, 5, 1))

    def loss(gradient_captures):
      with captures.capturing():
        logits, _ = model.apply(
          {**variables, captures.GRADIENTS: gradient_captures},
          x,
          train=True,
          mutable=[captures.CAPTURES, 'batch_stats'],
        )
      return jnp.mean(losses.cross_entropy(logits, jnp.arange(8) % 4, 0.0, None)[0])

    found = jax.jit(jax.grad(loss))(captures.make_gradient_captures(table))
    stage = found['stage1']
    squares = [stage['block001']['gradient_capture'], *stage['scanned']['gradient_capture']]
    return np.sqrt(np.array(squares, np.float64))

  return measure


@pytest.mark.thorough
def test_the_gradient_of_a_residual_stack_stays_near_the_last_entrys(output_gradients):
  norms = output_gradients('residual')
  assert len(norms) == 28
  assert (norms / norms[-1]).min() > 0.5 and (norms / norms[-1]).max() < 2
  plain = output_gradients('plain')
  assert plain[0] / plain[-1] < 1e-20


@pytest.mark.parametrize(('gate_bias', 'carried'), [(-30.0, True), (30.0, False)])
def test_a_highway_stack_is_the_identity_or_its_transforms(gate_bias, carried):
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
  pieces = make_parts('relu')
  stacks = {
    'dense': (functools.partial(blocks.DenseUnit, pieces, 3, 'highway', gate_bias), blocks.DenseUnit(pieces, 3)),
    'convolution': (functools.partial(blocks.Highway, pieces, gate_bias), None),
  }
  for name, (make, transform) in stacks.items():
    unit, y, h = make(), x, x
    for seed in range(5):
      params = draw(unit, seed, x)
      y = unit.apply({'params': params}, y, train=False)
      if transform is None:
        conv = pieces.conv(3, (3, 3))
        h = jax.nn.relu(conv.apply({'params': params['conv']}, h))
      else:
        h = transform.apply({'params': {'dense': params['dense']}}, h, train=False)
    np.testing.assert_allclose(y, x if carried else h, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize('scale', [0.01, 1.0, 1e4])
def test_clipping_is_by_the_norm_over_the_threshold(scale):
  """clip(g) = g min(1, tau / |g|), |g| over all of the network."""
  config = schema.default()
  config.clip.name, config.clip.threshold = 'global_norm', 1.5
  gradients = {'a': {'kernel': scale * jax.random.normal(jax.random.key(0), (3, 4))}, 'b': {'bias': jnp.full(2, scale)}}
  leaves = rows.Leaves.of(gradients, [depth.Entry(name, name) for name in gradients])
  transform = clip.make(config.clip, leaves)
  clipped, _ = transform.update(gradients, transform.init(gradients), gradients)
  norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradients)))
  jax.tree.map(
    lambda got, g: np.testing.assert_allclose(got, g * min(1, 1.5 / norm), rtol=1e-5), dict(clipped), gradients
  )
