"""Activations that a user's own module calls as functions, against the values that the module itself keeps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt.models import function_calls

FUNCTIONS = {
  **{name: getattr(nn, name) for name in ('relu', 'relu6', 'leaky_relu', 'elu', 'celu', 'selu', 'gelu', 'silu')},
  **{name: getattr(nn, name) for name in ('softplus', 'soft_sign', 'hard_tanh', 'hard_sigmoid', 'hard_swish')},
  'mish': jax.nn.mish,
  'exact gelu': lambda x: nn.gelu(x, approximate=False),
  'maximum': lambda x: jnp.maximum(x, 0),
  'lax.max': lambda x: jax.lax.max(jnp.float32(0), x),
  'clip': lambda x: jnp.clip(x, 0, 1),
  'where': lambda x: jnp.where(x > 0, x, 0),
  'leaky by hand': lambda x: jnp.maximum(x, 0.1 * x),
  'swish by hand': lambda x: x * nn.sigmoid(x),
  'abs': jnp.abs,
  'in bfloat16': lambda x: nn.relu(x.astype(jnp.bfloat16)).astype(jnp.float32),
}


def look(model, x, train=False):
  """Values by the path of the entry, in the order of the program; paths of entries of which nothing is known."""
  key = {'dropout': jax.random.key(1)}
  variables = jax.jit(model.init, static_argnames='train')(jax.random.key(0), x, train=False)

  def apply(variables, x, rngs):
    return model.apply(variables, x, train=train, rngs=rngs, mutable=['batch_stats', 'intermediates'])

  program = function_calls.trace(apply, variables, x, key)
  seen = []

  @jax.jit
  def run_both(*args):
    values = []

    def hook(activation, value):
      seen.append(activation)
      values.append(value)
      return value

    return function_calls.run(program, args, hook), apply(*args), values

  (got, updates), wanted, values = run_both(variables, x, key)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), (got, updates), wanted)
  kept = {name: value[0] for name, value in updates.get('intermediates', {}).items()}
  return list(zip(seen, values, strict=True)), program.unknown, kept


X = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype(np.float32)


@pytest.mark.thorough
@pytest.mark.parametrize('name', FUNCTIONS)
def test_a_function_of_the_output_of_an_entry_is_its_activation(name):
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      x = FUNCTIONS[name](nn.Dense(7, name='wide')(x.mean((1, 2))))
      self.sow('intermediates', 'kept', x)
      return nn.Dense(3, name='answer')(x)

  [(activation, value)], unknown, kept = look(Net(), X)
  assert activation == ('wide', '', True, (4, 7))
  np.testing.assert_array_equal(value, kept['kept'])
  assert unknown == set()


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    y = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(5, (3, 3))(x)))
    y = nn.LayerNorm()(nn.Conv(5, (3, 3))(y))
    return nn.relu(x + nn.Dropout(0.5, deterministic=not train)(y))


@pytest.mark.thorough
@pytest.mark.parametrize('train', [True, False])
def test_each_activation_belongs_to_the_entry_that_it_is_in_or_that_it_follows(train):
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      x = nn.tanh(x)  # before any entry
      x = nn.relu(nn.max_pool(nn.Conv(5, (3, 3), name='conv')(x), (2, 2), (2, 2)))
      x = Block(name='block')(x, train)
      x = nn.BatchNorm(use_running_average=not train, name='norm')(nn.Conv(5, (3, 3), name='linear')(x))
      x = x + nn.sigmoid(x) * x
      x = nn.GroupNorm(1, name='group')(x).mean((1, 2))
      x = nn.Sequential([nn.Dense(5), nn.tanh, nn.Dense(4)], name='sequence')(x)
      x = nn.Dropout(0.5, deterministic=not train, name='dropout')(nn.sigmoid(x))
      return nn.softmax(nn.Dense(3, name='answer')(x))

  seen, unknown, _ = look(Net(), X, train)
  assert [activation[:3] for activation, _ in seen] == [
    ('conv', '', True),
    ('block', '', False),
    ('block', '', False),
    ('norm', '', True),
    ('sequence', 'tanh', False),
    ('sequence', 'sigmoid', True),
  ]
  assert unknown == set()


@pytest.mark.thorough
def test_what_is_inside_loops_remat_and_jit_is_not_told():
  class Cell(nn.Module):
    @nn.compact
    def __call__(self, carry, _):
      return nn.tanh(nn.Dense(5)(carry)), None

  class Hidden(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.relu(nn.Dense(5)(x))

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      x = nn.Dense(5, name='linear')(x.mean((1, 2)))
      x, _ = nn.scan(Cell, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)(name='cells')(x, None)
      x = nn.remat(Hidden)(name='again')(x)
      x = jax.jit(lambda x: nn.relu(x) @ jnp.ones((5, 5)))(nn.Dense(5, name='before')(x))
      return nn.Dense(3, name='answer')(x)

  seen, unknown, _ = look(Net(), X)
  assert seen == []
  assert unknown == {'cells', 'again', 'before'}


def test_masks_and_norms_are_no_activations():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      x = nn.Dense(8, name='linear')(x.mean((1, 2)))
      x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
      x = jnp.where(jnp.arange(8)[None] < 4, x, 0)
      return nn.Dense(3, name='answer')(x)

  seen, unknown, _ = look(Net(), X)
  assert seen == []
  assert unknown == set()
