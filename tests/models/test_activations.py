import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import config, errors
from dnt.models import activations


def torch_activation(torch, name, x):
  """Value and gradient."""
  x = torch.tensor(x, requires_grad=True)
  y = x * 1 if name == 'identity' else getattr(torch.nn.functional, name)(x)
  y.sum().backward()
  return y, x.grad


@pytest.mark.parametrize('name', config.ACTIVATIONS)
def test_value_and_gradient_equal_torch(torch_reference, name):
  x = np.concatenate([np.linspace(-6, 6, 40), [-90.0, 90.0]]).astype(np.float32)
  y, pullback = jax.vjp(activations.make(name), x)
  expected, gradient = torch_reference(lambda torch: torch_activation(torch, name, x))
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(pullback(jnp.ones_like(y))[0], gradient, rtol=1e-5, atol=1e-6)
  assert activations.make(name)(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_the_table_is_the_schema():
  assert tuple(activations.ACTIVATIONS) == config.ACTIVATIONS
  with pytest.raises(errors.InputError, match="'rleu'.* 'relu'"):
    activations.make('rleu')
