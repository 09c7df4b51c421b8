"""What the tests of diagnostics share."""

import jax.numpy as jnp
import pytest


@pytest.fixture
def build():
  """The experiment of a config, its first state and a batch of its training pictures, by position."""
  from dnt import experiment
  from dnt.parallel import compile as compile_lib

  def make(config):
    data = experiment.load_data(config, ())
    run = experiment.make(experiment.resolve(config, data), data.spec)
    size = config.train.batch_size
    batch = {
      'image': jnp.asarray(data.train.images[:size]),
      'label': jnp.asarray(data.train.labels[:size]),
      'epoch': jnp.zeros(size, jnp.int32),
      'position': jnp.arange(size, dtype=jnp.int32),
    }
    return run, compile_lib.eagerly(run.make_state)(run.init_variables()), batch

  return make
