"""The float64 activations against the models' and against central differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import errors
from dnt.meanfield.theory import activations
from dnt.models import activations as models


@pytest.mark.parametrize('name', models.ACTIVATIONS)
def test_functions_and_slopes_are_the_models(name):
  x = np.concatenate([np.linspace(-6, 6, 41)[:20], np.linspace(-6, 6, 41)[21:], [-30.0, 30.0]])  # 0 has no slope
  function = models.make(name)
  own = activations.make(name)
  np.testing.assert_allclose(own.function(x), function(jnp.float32(x)), rtol=2e-6, atol=1e-6)
  np.testing.assert_allclose(own.derivative(x), jax.vmap(jax.grad(function))(jnp.float32(x)), rtol=1e-5, atol=2e-6)


def test_the_table_is_the_models_and_erf():
  assert set(activations.ACTIVATIONS) == {*models.ACTIVATIONS, 'erf'}
  with pytest.raises(errors.InputError, match="'tan'.* 'tanh'"):
    activations.make('tan')


@pytest.mark.parametrize('name', activations.ACTIVATIONS)
@pytest.mark.parametrize('x', [-2.5, -0.3, 0.4, 3.0])
def test_slopes_are_central_differences(name, x):
  function, slope = activations.make(name)
  x = np.array(x)
  assert slope(x) == pytest.approx((function(x + 1e-5) - function(x - 1e-5)) / 2e-5, rel=1e-7, abs=1e-9)
