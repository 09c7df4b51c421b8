import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import config, errors, models, trees
from dnt.models import blocks, depth, parts


def make_parts(**options):
  cfg = config.default()
  cfg.model.update({'norm': 'none', 'activation': 'identity', **options})
  return parts.make(cfg.model)


def images(channels=3, size=5):
  return np.random.default_rng(0).normal(size=(2, size, size, channels)).astype(np.float32)


def init(block, x):
  return jax.device_get(models.init(depth.trace(block, x.shape[1:]), 1))


def run(block, variables, x, **kwargs):
  apply = jax.jit(functools.partial(block.apply, train=False))
  return np.asarray(apply(variables, x, **kwargs))


@pytest.mark.parametrize('stride', [1, 2])
def test_shortcut_a_takes_every_other_pixel_and_pads_the_channels(stride):
  x, block = images(), blocks.Shortcut(make_parts(), 5, stride, 'A', normalize=True)
  y = run(block, {}, x)
  np.testing.assert_array_equal(y[..., :3], x[:, ::stride, ::stride])
  np.testing.assert_array_equal(y[..., 3:], 0)


def test_shortcut_b_projects_where_the_shape_changes_alone():
  x, same = images(), blocks.Shortcut(make_parts(), 3, 1, 'B', normalize=True)
  np.testing.assert_array_equal(run(same, {}, x), x)
  block = blocks.Shortcut(make_parts(), 6, 2, 'B', normalize=False)
  variables = init(block, x)
  want = x[:, ::2, ::2] @ variables['params']['conv']['kernel'][0, 0]
  np.testing.assert_allclose(run(block, variables, x), want, rtol=1e-5, atol=1e-6)
  normed = blocks.Shortcut(make_parts(norm='batch_norm'), 6, 2, 'B', normalize=True)
  assert set(trees.flatten(init(normed, x)['params'])) == {'conv/kernel', 'norm/bias', 'norm/scale'}


def drawn(block, x):
  """Variables like those of a trained network, all drawn; of each kernel the centre alone, so that it is a matrix."""
  draw = np.random.default_rng(1)

  def leaf(path, like):
    if path.endswith('kernel'):
      kernel = np.zeros_like(like)
      kernel[tuple(size // 2 for size in like.shape[:2])] = draw.normal(size=like.shape[2:])
      return kernel
    low, high = (0.5, 2) if path.endswith('var') else (-1, 1)
    return draw.uniform(low, high, like.shape).astype(np.float32)

  return trees.map_with_path(leaf, init(block, x))


def layers(variables):
  """In NumPy, `conv(name, x)` and `act(name, x)`, a batch_norm and its ReLU."""
  flat = trees.flatten(variables)

  def conv(name, x):
    kernel = flat[f'params/{name}/kernel']
    return x @ kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] + flat.get(f'params/{name}/bias', 0)

  def act(name, x):
    mean, var = (flat[f'batch_stats/{name}/{leaf}'] for leaf in ('mean', 'var'))
    return np.maximum((x - mean) / np.sqrt(var + 1e-5) * flat[f'params/{name}/scale'] + flat[f'params/{name}/bias'], 0)

  return conv, act


def bottleneck(x, conv, act):
  return x + conv('conv3', act('norm3', conv('conv2', act('norm2', conv('conv1', act('norm1', x))))))


def highway(x, conv, act):
  gate = 1 / (1 + np.exp(-conv('gate', x)))
  return act('norm', conv('conv', x)) * gate + x * (1 - gate)


FORMULAS = {
  'Plain': ({'features': 4}, lambda x, conv, act: act('norm2', conv('conv2', act('norm1', conv('conv1', x))))),
  'PreactBasic': (  # He et al. 2016, figure 1b
    {'features': 4},
    lambda x, conv, act: x + conv('conv2', act('norm2', conv('conv1', act('norm1', x)))),
  ),
  'PreactBottleneck': ({'features': 4, 'inner': 3}, bottleneck),  # its section 4.1
  'Highway': ({'gate_bias': -1.0}, highway),  # Srivastava et al. 2015, eq. 3
  'Transition': ({'features': 4, 'stride': 1}, lambda x, conv, act: act('norm', conv('conv', x))),
}


@pytest.mark.parametrize('kind', FORMULAS)
def test_a_block_with_norm_and_activation_is_its_formula(kind):
  fields, formula = FORMULAS[kind]
  block, x = getattr(blocks, kind)(make_parts(norm='batch_norm', activation='relu'), **fields), images(4)
  variables = drawn(block, x)
  np.testing.assert_allclose(run(block, variables, x), formula(x, *layers(variables)), rtol=1e-4, atol=1e-4)


def residual(kind, **fields):
  bottleneck = 'Bottleneck' in kind
  return getattr(blocks, kind)(make_parts(), features=4, inner=2 if bottleneck else None, **fields)


@pytest.mark.parametrize('kind', ['Basic', 'Bottleneck', 'PreactBasic', 'PreactBottleneck'])
def test_keep_and_residual_scalar_scale_the_branch_of_each_example(kind):
  x = images(4)
  block = residual(kind)
  variables = init(block, x)
  branch = run(block, variables, x) - x
  assert float(np.abs(branch).max()) > 0.1
  y = run(block, variables, x, keep=np.array([0.0, 2.0], np.float32))
  np.testing.assert_array_equal(y[0], x[0])
  np.testing.assert_allclose(y[1], x[1] + 2 * branch[1], rtol=1e-5, atol=1e-5)

  scaled = residual(kind, residual_scalar=0.5)
  scaled_variables = init(scaled, x)
  assert scaled_variables['params'].pop('residual_scalar') == 0.5
  assert trees.sha256(scaled_variables) == trees.sha256(variables)
  for value in (0.0, 3.0):
    params = {**variables['params'], 'residual_scalar': np.float32(value)}
    np.testing.assert_allclose(run(scaled, {'params': params}, x), x + value * branch, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_residual_scalar_in_bfloat16_is_its_sum_over_the_batch():
  x = np.random.default_rng(0).normal(size=(32, 8, 8, 4)).astype(jnp.bfloat16)
  block = blocks.Basic(make_parts(dtype='bfloat16'), features=4, residual_scalar=0.5)
  variables = init(block, x)
  whole = {'params': {**variables['params'], 'residual_scalar': np.float32(1.0)}}
  branch = np.asarray(run(block, whole, x), np.float64) - np.asarray(x, np.float64)
  weights = np.where(branch > 0, 1, 0.5).astype(jnp.bfloat16)  # a sum without cancellation

  def total(scalar):
    output = block.apply({'params': {**variables['params'], 'residual_scalar': scalar}}, x, train=False)
    return jnp.sum(output * jnp.sign(branch.astype(jnp.bfloat16)) * weights, dtype=jnp.float32)

  gradient = jax.jit(jax.grad(total))(jnp.float32(0.5))
  expected = (np.abs(branch) * np.asarray(weights, np.float64)).sum()
  np.testing.assert_allclose(gradient, expected, rtol=0.02)


@pytest.mark.parametrize('kind', ['Basic', 'Bottleneck'])
def test_zero_init_last_norm_starts_a_block_at_its_shortcut(kind):
  x = images(4)
  block = getattr(blocks, kind)(make_parts(norm='batch_norm'), features=4, inner=2, zero_init_last_norm=True)
  variables = init(block, x)
  np.testing.assert_array_equal(run(block, variables, x), x)
  zero = [path for path, leaf in trees.flatten(variables['params']).items() if 'scale' in path and not leaf.any()]
  assert zero == ['norm2/scale' if kind == 'Basic' else 'norm3/scale']
  with pytest.raises(errors.InputError, match='residual_scalar=0'):
    init(getattr(blocks, kind)(make_parts(), features=4, inner=2, zero_init_last_norm=True), x)


@pytest.mark.parametrize('stride_on', ['1x1', '3x3'])
@pytest.mark.parametrize('kind', ['Bottleneck', 'PreactBottleneck'])
def test_the_stride_is_where_it_was_asked_for(kind, stride_on):
  x = images(4, size=8)
  block = residual(kind, stride=2, stride_on=stride_on)
  program = str(jax.make_jaxpr(functools.partial(block.apply, train=False))(init(block, x), x))
  # The 3x3 convolution runs on 4x4 pixels if the 1x1 before it has strided.
  assert ('f32[2,8,8,2]' in program) == (stride_on == '3x3')
  assert run(block, init(block, x), x).shape == (2, 4, 4, 4)


def test_preactivation_is_shared_with_a_shortcut_that_changes_shape():
  x = -np.abs(images(4))
  for features, want in ((4, x), (5, np.zeros((2, 5, 5, 5)))):
    block = blocks.PreactBasic(make_parts(activation='relu'), features=features)
    np.testing.assert_array_equal(run(block, init(block, x), x, keep=np.zeros(2, np.float32)), want)


@pytest.mark.parametrize('bias', [-3.0, 0.0, 2.0])
def test_highway_mixes_by_its_gate(bias):
  """y = H(x) T(x) + x (1 - T(x)), where the gate T = sigmoid(W x + b) starts with b = bias."""
  parts, x = make_parts(), images(4)
  for block, x, name, layer in (
    (blocks.Highway(parts, bias), x, 'conv', lambda own, x: parts.conv(4, (3, 3)).apply({'params': own}, x)),
    (blocks.DenseUnit(parts, 4, 'highway', bias), x[:, 0, 0], 'dense', lambda own, x: x @ own['kernel'] + own['bias']),
  ):
    params = init(block, x)['params']
    np.testing.assert_array_equal(params['gate']['bias'], bias)
    h, t = (np.asarray(layer(params[part], x)) for part in (name, 'gate'))
    t = 1 / (1 + np.exp(-t))
    np.testing.assert_allclose(run(block, {'params': params}, x), h * t + x * (1 - t), rtol=1e-5, atol=1e-5)


def test_dense_units():
  x = images(4)[:, 0, 0]
  for kind, fraction in (('plain', 0), ('residual', 1)):
    unit = blocks.DenseUnit(make_parts(activation='tanh'), 4, kind)
    variables = init(unit, x)
    want = fraction * x + np.tanh(x @ variables['params']['dense']['kernel'])
    np.testing.assert_allclose(run(unit, variables, x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('bottleneck', [False, True])
def test_a_dense_layer_adds_channels_and_keeps_the_others(bottleneck):
  x = images(6)
  block = blocks.DenseLayer(make_parts(norm='batch_norm', activation='relu'), 3, bottleneck)
  variables = init(block, x)
  y = run(block, variables, x)
  assert y.shape == (2, 5, 5, 9)
  np.testing.assert_array_equal(y[..., :6], x)
  kernels = [leaf.shape for path, leaf in trees.flatten(variables['params']).items() if path.endswith('kernel')]
  assert kernels == ([(1, 1, 6, 12), (3, 3, 12, 3)] if bottleneck else [(3, 3, 6, 3)])


def test_dense_transition_halves_the_pixels():
  x = images(6, size=4)
  block = blocks.DenseTransition(make_parts(), 3)
  variables = init(block, x)
  want = (x @ variables['params']['conv']['kernel'][0, 0]).reshape(2, 2, 2, 2, 2, 3).mean((2, 4))
  np.testing.assert_allclose(run(block, variables, x), want, rtol=1e-5, atol=1e-6)


def test_stems_and_heads():
  x = images(size=16)
  for kind, shape in (('cifar', (2, 16, 16, 8)), ('imagenet', (2, 4, 4, 8))):
    block = blocks.Stem(make_parts(norm='layer_norm'), 8, kind)
    assert run(block, init(block, x), x).shape == shape
    bare = blocks.Stem(make_parts(norm='layer_norm'), 8, kind, activate=False)
    assert set(init(bare, x)['params']) == {'conv'}
  head = blocks.Head(make_parts(dtype='bfloat16'), 7)
  variables = init(head, x.astype(jnp.bfloat16))
  logits = run(head, variables, x.astype(jnp.bfloat16))
  assert logits.dtype == jnp.float32
  want = x.mean((1, 2)) @ variables['params']['dense']['kernel']
  np.testing.assert_allclose(logits, want, atol=0.02)


def test_the_kernel_of_a_gate_is_not_standardized():
  """A standardized kernel gives the same whatever its scale."""
  x, block = images(4), blocks.Highway(make_parts(norm='layer_norm', weight_standardization=True), -2.0)
  variables = init(block, x)
  y = run(block, variables, x)
  for name, changes in (('conv', False), ('gate', True)):
    params = dict(variables['params'])
    params[name] = params[name] | {'kernel': 2 * params[name]['kernel']}
    assert (np.abs(run(block, {'params': params}, x) - y).max() > 1e-3) == changes, name


def test_convolutions_have_biases_where_no_norm_undoes_them():
  x = images(4)
  for norm, expected in (('none', {'conv1', 'conv2'}), ('batch_norm', set())):
    params = init(blocks.Basic(make_parts(norm=norm), features=4), x)['params']
    assert {name for name, part in params.items() if name.startswith('conv') and 'bias' in part} == expected
    gates = init(blocks.Highway(make_parts(norm=norm), -1.0), x)['params']
    assert 'bias' in gates['gate']
    assert ('bias' in gates['conv']) == bool(expected)
