import flax.linen as nn
import jax
import numpy as np
import pytest

from dnt import config, errors, models, trees
from dnt.models import depth

SHAPE = (8, 8, 3)


def options(**changed):
  cfg = config.default()
  cfg.model.update({'name': 'highway', **changed})
  return cfg.model


def make(**changed):
  return models.make(options(**changed), 10)


def test_depth_counts_layers_as_the_plain_nets_do():
  rows = depth.trace(make(depth=32, width=4), SHAPE).table
  assert len(rows) == 32
  variables = models.init(depth.trace(make(depth=8, width=4), SHAPE), 0)
  kernels = {path for path in trees.flatten(variables['params']) if 'kernel' in path}
  gated = {path.rsplit('/', 2)[0] for path in kernels if 'gate' in path}
  # Two layers a stage; the first of the second and third stage changes the shape and has no gate.
  assert gated == {'stage1/block001', 'stage1/block002', 'stage2/block002', 'stage3/block002'}
  assert [row.shape for row in rows[1::10]] == [(8, 8, 4), (4, 4, 8), (2, 2, 16), (10,)]


def test_a_negative_gate_bias_carries_the_input_through():
  """With closed gates each stage passes its first layer's output on."""
  model = make(depth=14, width=4, gate_bias=-30.0)
  variables = models.init(depth.trace(model, SHAPE), 0)
  outputs = {}

  def record(next_fun, args, kwargs, context):
    outputs['/'.join(context.module.path)] = output = next_fun(*args, **kwargs)
    return output

  def run(variables, x):
    with nn.intercept_methods(record):
      model.apply(variables, x, train=False)
    return outputs

  outputs = jax.jit(run, compiler_options={'xla_backend_optimization_level': 0})(
    variables, np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
  )
  np.testing.assert_allclose(outputs['stage1/block004'], outputs['stem'], atol=1e-6)
  np.testing.assert_allclose(outputs['stage2/block004'], outputs['stage2/block001'], atol=1e-6)
  assert models.resolved_options(options(depth=14))['gate_bias'] == -2.0


def test_depth_is_checked():
  with pytest.raises(errors.InputError, match='33 .*highway.* depth is 32$'):
    make(depth=33)
