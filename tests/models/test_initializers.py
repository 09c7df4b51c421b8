import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import config, errors, models
from dnt.models import conv, depth, initializers

DENSE, CONV = (400, 100), (3, 3, 40, 80)
VARIANCES = {
  'he': lambda fan_in, fan_out: 2 / fan_in,
  'glorot': lambda fan_in, fan_out: 2 / (fan_in + fan_out),
  'lecun': lambda fan_in, fan_out: 1 / fan_in,
  'normal': lambda fan_in, fan_out: 1 / fan_in,
}


@pytest.mark.parametrize('gain', [1.0, 1.5])
@pytest.mark.parametrize(('shape', 'fans'), [(DENSE, (400, 100)), (CONV, (360, 720))])
@pytest.mark.parametrize('name', VARIANCES)
def test_variance(name, shape, fans, gain):
  kernel = np.asarray(initializers.make(name, gain)(jax.random.key(1), shape), np.float64)
  want = gain**2 * VARIANCES[name](*fans)
  # The sample variance of n normal values has a relative deviation of sqrt(2 / n); four of them.
  np.testing.assert_allclose(np.mean(kernel**2), want, rtol=4 * np.sqrt(2 / kernel.size))
  np.testing.assert_allclose(kernel.mean(), 0, atol=4 * np.sqrt(want / kernel.size))


def test_distributions():
  def standard(name):
    kernel = np.asarray(initializers.make(name)(jax.random.key(2), (1000, 100)))
    return np.abs(kernel) / kernel.std()

  for name in ('he', 'normal'):
    np.testing.assert_allclose(np.mean(standard(name) > 2), 0.0455, atol=0.003)
  assert standard('lecun').max() < 2.28  # 2 / 0.8796
  assert standard('glorot').max() < np.sqrt(3) + 0.01


@pytest.mark.parametrize('gain', [1.0, 0.5])
@pytest.mark.parametrize('shape', [(20, 8), (8, 20), (3, 3, 4, 16), (1, 1, 4, 16)])
def test_orthogonal(shape, gain):
  kernel = np.asarray(initializers.make('orthogonal', gain)(jax.random.key(0), shape)).reshape(-1, shape[-1])
  gram = kernel.T @ kernel if kernel.shape[0] >= kernel.shape[1] else kernel @ kernel.T
  np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=1e-6)


@pytest.mark.thorough
def test_orthogonal_matrices_are_uniform():
  """By Haar's measure each value has mean 0 and variance 1 / 4 here; the corner of LAPACK's Q has the mean -0.42."""
  init = initializers.make('orthogonal')
  corners = [np.asarray(init(key, (4, 4)))[0, 0] for key in jax.random.split(jax.random.key(0), 200)]
  assert abs(np.mean(corners)) < 4 * np.sqrt(1 / 4 / len(corners))


@pytest.mark.parametrize('gain', [1.0, 2.0])
@pytest.mark.parametrize('shape', [(3, 3, 6, 6), (5, 3, 4, 8), (1, 1, 4, 4)])
def test_delta_orthogonal_keeps_the_norm_through_a_circular_convolution(shape, gain):
  """Xiao et al. 2018, section 2.4: the centre tap alone, orthogonal there."""
  kernel = np.asarray(initializers.make('delta_orthogonal', gain)(jax.random.key(0), shape))
  rows, columns = shape[0] // 2, shape[1] // 2
  center = kernel[rows, columns]
  np.testing.assert_allclose(center @ center.T, gain**2 * np.eye(shape[2]), atol=1e-5)
  assert np.count_nonzero(kernel) == np.count_nonzero(center)

  x = np.random.default_rng(0).normal(size=(2, 7, 6, shape[2])).astype(np.float32)
  wrapped = np.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)), mode='wrap')
  y = conv.conv2d(jnp.asarray(wrapped), jnp.asarray(kernel), padding=((0, 0), (0, 0)))
  assert y.shape == (*x.shape[:3], shape[3])
  np.testing.assert_allclose(np.linalg.norm(y, axis=-1), gain * np.linalg.norm(x, axis=-1), rtol=1e-5)


def test_delta_orthogonal_reduces_channels_and_is_orthogonal_on_dense_kernels():
  init = initializers.make('delta_orthogonal')
  center = np.asarray(init(jax.random.key(0), (3, 3, 8, 4)))[1, 1]
  np.testing.assert_allclose(center.T @ center, np.eye(4), atol=1e-6)
  dense = np.asarray(init(jax.random.key(0), (12, 5)))
  np.testing.assert_allclose(dense.T @ dense, np.eye(5), atol=1e-6)


@pytest.mark.parametrize('name', config.INITIALIZERS)
def test_a_kernel_is_a_function_of_the_key_alone(name):
  init = initializers.make(name)
  kernel = init(jax.random.key(3), CONV)
  assert kernel.dtype == jnp.float32
  np.testing.assert_array_equal(kernel, jax.jit(lambda key: init(key, CONV))(jax.random.key(3)))
  assert not np.array_equal(kernel, init(jax.random.key(4), CONV))
  assert init(jax.random.key(3), CONV, jnp.bfloat16).dtype == jnp.bfloat16


def test_the_table_is_the_schema():
  assert tuple(initializers.INITIALIZERS) == config.INITIALIZERS
  with pytest.raises(errors.InputError, match="'gloro'.* 'glorot'"):
    initializers.make('gloro')


def test_parameters_do_not_depend_on_the_default_generator_of_jax():
  cfg = config.default()
  cfg.model.update({'name': 'mlp', 'depth': 1})

  def draw():
    variables = models.init(depth.trace(models.make(cfg.model, 5), (4, 4, 1)), 3)
    return np.asarray(variables['params']['head']['dense']['kernel'])

  expected = draw()
  with jax.default_prng_impl('rbg'):
    np.testing.assert_array_equal(draw(), expected)
