import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dnt.models import dense


def draw(*shape):
  return np.random.default_rng(0).uniform(0.5, 1.5, shape).astype(np.float32)


def test_in_float32_it_is_the_dense_layer_of_flax():
  x, ours, theirs = draw(4, 3), dense.Dense(5), nn.Dense(5)
  variables = jax.jit(ours.init)(jax.random.key(0), x)
  expected = jax.jit(theirs.init)(jax.random.key(0), x)
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  variables['params']['bias'] = draw(5)
  np.testing.assert_array_equal(jax.jit(ours.apply)(variables, x), jax.jit(theirs.apply)(variables, x))


def test_in_bfloat16_its_parameters_stay_float32_and_the_gradient_of_the_bias_is_its_sum_over_the_batch():
  x, weights, module = draw(4096, 3), jnp.asarray(draw(4096, 4), jnp.bfloat16), dense.Dense(4, dtype=jnp.bfloat16)
  variables = jax.jit(module.init)(jax.random.key(0), x)
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables) == {
    'params': {'kernel': ((3, 4), jnp.dtype('float32')), 'bias': ((4,), jnp.dtype('float32'))}
  }
  assert jax.eval_shape(module.apply, variables, x).dtype == jnp.bfloat16

  def total(variables, x, weights):
    return jnp.sum(module.apply(variables, x) * weights, dtype=jnp.float32)

  gradient = jax.jit(jax.grad(total))(variables, x, weights)['params']['bias']
  np.testing.assert_allclose(gradient, np.asarray(weights, np.float64).sum(0), rtol=1e-5)


def test_it_may_have_no_bias():
  x, module = draw(4, 3), dense.Dense(5, use_bias=False, dtype=jnp.bfloat16)
  variables = jax.jit(module.init)(jax.random.key(0), x)
  assert set(variables['params']) == {'kernel'}
  assert jax.jit(module.apply)(variables, x).shape == (4, 5)
