import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import config, errors
from dnt.models import activations

torch = pytest.importorskip('torch')
REFERENCE = {
  'relu': torch.nn.functional.relu,
  'leaky_relu': torch.nn.functional.leaky_relu,
  'sigmoid': torch.sigmoid,
  'tanh': torch.tanh,
  'gelu': torch.nn.functional.gelu,
  'silu': torch.nn.functional.silu,
  'identity': lambda x: x * 1,
}


@pytest.mark.parametrize('name', config.ACTIVATIONS)
def test_value_and_gradient_equal_torch(name):
  x = np.concatenate([np.linspace(-6, 6, 40), [-90.0, 90.0]]).astype(np.float32)
  y, pullback = jax.vjp(activations.make(name), x)
  tx = torch.tensor(x, requires_grad=True)
  ty = REFERENCE[name](tx)
  ty.sum().backward()
  np.testing.assert_allclose(y, ty.detach(), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(pullback(jnp.ones_like(y))[0], tx.grad, rtol=1e-5, atol=1e-6)
  assert activations.make(name)(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_the_table_is_the_schema():
  assert tuple(activations.ACTIVATIONS) == config.ACTIVATIONS
  with pytest.raises(errors.InputError, match="did you mean 'relu'"):
    activations.make('rleu')
