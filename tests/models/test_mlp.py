import functools

import jax
import numpy as np
import pytest

from dnt import config, errors, models
from dnt.models import depth

SHAPE = (4, 4, 3)


def make(**options):
  cfg = config.default()
  cfg.model.update({'name': 'mlp', 'norm': 'none', **options})
  return models.make(cfg.model, 5)


@pytest.mark.parametrize('layers', [1, 2, 3, 6])
def test_depth_counts_dense_layers(layers):
  model = make(depth=layers, width=7)
  rows = depth.trace(model, SHAPE).table
  names = ['stem', *(f'stage1/block{i + 1:03d}' for i in range(layers - 2)), 'head']
  assert [row.entry.name for row in rows] == (names if layers > 1 else ['head'])
  sizes = [48, *[7] * (layers - 1), 5]
  assert [row.parameters for row in rows] == [a * b + b for a, b in zip(sizes, sizes[1:], strict=False)]
  assert [row.flops for row in rows] == [2 * a * b for a, b in zip(sizes, sizes[1:], strict=False)]


@pytest.mark.parametrize('block', ['plain', 'residual', 'highway'])
def test_logits_are_the_formulas(block):
  model = make(depth=4, width=6, block=block, activation='tanh')
  variables = models.init(depth.trace(model, SHAPE), 0)
  params = jax.device_get(variables['params'])
  x = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)

  def dense(part, x):
    return x @ part['kernel'] + part['bias'].reshape(1, -1)

  y = np.tanh(dense(params['stem']['dense'], x.reshape(3, -1)))
  for part in (params['stage1']['block001'], params['stage1']['block002']):
    h = np.tanh(dense(part['dense'], y))
    if block == 'plain':
      y = h
    elif block == 'residual':
      y = y + h
    else:
      np.testing.assert_array_equal(part['gate']['bias'], -2)
      t = 1 / (1 + np.exp(-dense(part['gate'], y)))
      y = h * t + y * (1 - t)
  got = jax.jit(functools.partial(model.apply, train=False))(variables, x)
  np.testing.assert_allclose(got, dense(params['head']['dense'], y), rtol=1e-4, atol=1e-5)


def test_options_that_do_not_fit_are_refused():
  with pytest.raises(errors.InputError, match="block of mlp 'residul'.* 'residual'"):
    make(block='residul')
  with pytest.raises(errors.InputError, match="gate_bias .*block='highway'.* block='residual'"):
    make(block='residual', gate_bias=-1.0)


def test_a_clone_with_another_block_has_no_gates():
  clone = make(block='highway').clone(block='residual')
  assert clone == make(block='residual').clone(parts=clone.parts)
  assert clone.resolved() == (None,)
