import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import config, errors
from dnt.models import activations, parts


def make(**options):
  cfg = config.default()
  cfg.model.update(options)
  return parts.make(cfg.model)


def test_every_option_reaches_its_part():
  made = make(
    norm='group_norm',
    norm_epsilon=1e-3,
    norm_groups=4,
    norm_momentum=0.5,
    norm_sync='device',
    weight_standardization=True,
    activation='tanh',
    initializer='orthogonal',
    init_gain=3.0,
    dtype='bfloat16',
  )
  norm, conv, dense = made.norm(), made.conv(8, (3, 3)), made.dense(8)
  assert (norm.kind, norm.epsilon, norm.groups, norm.momentum, norm.sync) == ('group_norm', 1e-3, 4, 0.5, 'device')
  assert conv.weight_standardization
  assert conv.dtype == dense.dtype == made.dtype == jnp.bfloat16
  assert made.activation() == activations.Activation('tanh')
  x = jnp.ones((2, 4, 4, 8))
  kernel = np.asarray(conv.init(jax.random.key(0), x)['params']['kernel']).reshape(-1, 8)
  np.testing.assert_allclose(kernel.T @ kernel, 9 * np.eye(8), atol=1e-5)
  kernel = np.asarray(dense.init(jax.random.key(0), x)['params']['kernel'])
  np.testing.assert_allclose(kernel.T @ kernel, 9 * np.eye(8), atol=1e-5)
  assert conv.apply(conv.init(jax.random.key(0), x), x).dtype == jnp.bfloat16


@pytest.mark.parametrize('norm', config.NORMS)
def test_convolutions_have_a_bias_only_without_a_norm(norm):
  made, x = make(norm=norm), jnp.ones((1, 3, 3, 2))
  leaves = set(made.conv(4, (3, 3)).init(jax.random.key(0), x)['params'])
  assert leaves == ({'kernel', 'bias'} if norm == 'none' else {'kernel'})
  assert set(made.conv(4, (1, 1), use_bias=True).init(jax.random.key(0), x)['params']) == {'kernel', 'bias'}


def test_unknown_parts_are_refused():
  with pytest.raises(errors.InputError, match='activation'):
    make(activation='swish')
  with pytest.raises(errors.InputError, match='initializer'):
    make(initializer='xavier')
