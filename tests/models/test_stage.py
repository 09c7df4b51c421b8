import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dnt import config, errors, models, trees
from dnt.models import blocks, depth, layouts, parts
from dnt.models import stage as stage_lib

SHAPE = (8, 8, 3)


def make(**options):
  cfg = config.default()
  cfg.model.update(options)
  return models.make(cfg.model, 5)


class Net(nn.Module):
  """A stem, one stage and a head, small enough to compile in a second."""

  parts: parts.Parts
  count: int = 3
  drop_rates: tuple[float, ...] = ()
  scan: bool = False
  remat: bool = False

  @nn.compact
  def __call__(self, x, train):
    x = blocks.Stem(self.parts, 4, name='stem')(x, train)
    first = functools.partial(blocks.Basic, self.parts, 6, stride=2)
    rest = functools.partial(blocks.Basic, self.parts, 6)
    stage = stage_lib.Stage(first, rest, self.count, self.drop_rates, self.scan, self.remat, name='stage1')
    return blocks.Head(self.parts, 5, name='head')(stage(x, train), train)


def make_net(dtype='float32', **fields):
  cfg = config.default()
  cfg.model.dtype = dtype
  return Net(parts.make(cfg.model), **fields)


def train_pass(model, variables, seed=0):
  """Loss, logits, new statistics and gradients of one batch of 6, in the unrolled layout."""
  x = np.random.default_rng(seed).normal(size=(6, *SHAPE)).astype(np.float32)
  labels = jnp.arange(6) % 5

  def loss_fn(params):
    logits, updates = model.apply(
      {**variables, 'params': params},
      x,
      train=True,
      rngs={'stochastic_depth': jax.random.key(7)},
      mutable=['batch_stats'],
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, (logits, updates['batch_stats'])

  step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
  (loss, (logits, stats)), gradients = step(variables['params'])
  return loss, logits, layouts.to_unrolled(stats), layouts.to_unrolled(gradients)


def assert_close(tree, other, tolerance):
  """Every leaf within `tolerance` times the largest value of that leaf's kind in the tree."""
  tree, other = trees.flatten(tree), trees.flatten(other)
  assert list(tree) == list(other)
  scale = max(float(np.abs(leaf).max()) for leaf in other.values())
  for path, leaf in tree.items():
    np.testing.assert_allclose(leaf, other[path], rtol=0, atol=tolerance * scale, err_msg=path)


def assert_equal(tree, other):
  assert jax.tree.structure(tree) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.thorough
@pytest.mark.parametrize('fields', [{}, {'drop_rates': (0.1, 0.5, 0.7), 'remat': True}])
def test_scanned_equals_unrolled(fields):
  unrolled, scanned = make_net(**fields), make_net(scan=True, **fields)
  first, second = models.init(depth.trace(unrolled, SHAPE), 3), models.init(depth.trace(scanned, SHAPE), 3)
  assert_equal(first, layouts.to_unrolled(second))
  loss, logits, stats, gradients = train_pass(unrolled, first)
  other_loss, other_logits, other_stats, other_gradients = train_pass(scanned, second)
  # One rounding of float32 in each layer; which one it is depends on the processor.
  np.testing.assert_allclose(loss, other_loss, rtol=1e-5)
  np.testing.assert_allclose(logits, other_logits, rtol=0, atol=1e-5)
  assert_close(other_stats, stats, 1e-5)
  assert_close(other_gradients, gradients, 1e-5)


@pytest.mark.thorough
def test_remat_keeps_values_and_is_there():
  variables = models.init(depth.trace(make_net(), SHAPE), 3)
  assert_close(train_pass(make_net(remat=True), variables)[3], train_pass(make_net(), variables)[3], 1e-5)
  for scan in (False, True):
    model = make_net(remat=True, scan=scan)
    variables = models.init(depth.trace(model, SHAPE), 3)
    program = jax.make_jaxpr(functools.partial(model.apply, train=False))(variables, np.zeros((2, *SHAPE), np.float32))
    assert str(program).count('remat') >= (2 if scan else 3)


def test_scanned_equals_unrolled_in_evaluation():
  unrolled, scanned = make_net(drop_rates=(0.1, 0.5, 0.7)), make_net(scan=True, drop_rates=(0.1, 0.5, 0.7))
  variables = models.init(depth.trace(scanned, SHAPE), 3)
  x = np.random.default_rng(1).normal(size=(2, *SHAPE)).astype(np.float32)
  got = jax.jit(functools.partial(scanned.apply, train=False))(variables, x)
  want = jax.jit(functools.partial(unrolled.apply, train=False))(layouts.to_unrolled(variables), x)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.thorough
def test_scanned_equals_unrolled_in_bfloat16():
  unrolled, scanned = make_net('bfloat16'), make_net('bfloat16', scan=True)
  first, second = models.init(depth.trace(unrolled, SHAPE), 3), models.init(depth.trace(scanned, SHAPE), 3)
  one, two = train_pass(unrolled, first), train_pass(scanned, second)
  assert_close(two[2], one[2], 2e-2)
  assert_close(two[3], one[3], 5e-2)


@pytest.mark.thorough
@pytest.mark.parametrize(
  'options',
  [
    {'name': 'mlp', 'depth': 5, 'width': 16, 'block': 'highway'},
    {'name': 'resnet', 'block': 'preact_basic', 'depth': 14, 'stochastic_depth': 0.5, 'residual_scalar': 0.5},
  ],
  ids=lambda options: options['name'],
)
def test_models_are_the_same_function_scanned(options):
  unrolled, scanned = make(**options), make(**options, scan=True)
  first, second = models.init(depth.trace(unrolled, SHAPE), 0), models.init(depth.trace(scanned, SHAPE), 0)
  assert_equal(first, layouts.to_unrolled(second))
  assert any(trees.is_scanned(path) for path in trees.flatten(second['params']))
  one, two = train_pass(unrolled, first), train_pass(scanned, second)
  np.testing.assert_allclose(one[1], two[1], rtol=0, atol=2e-5)
  assert_close(two[3], one[3], 1e-5)


class Keeps(nn.Module):
  """Shifts the mask it is given into x [B, 3], so that the output of three blocks is their masks."""

  def __call__(self, x, train, keep=None):
    return x if keep is None else jnp.concatenate([x[:, 1:], keep.reshape(-1, 1)], 1)


@pytest.mark.thorough
def test_stochastic_depth_draws_by_example_with_the_stated_rate_and_scale():
  x, rates, masks = np.zeros((4000, 3), np.float32), (0.0, 0.25, 0.75), []
  for scan in (False, True):
    stage = stage_lib.Stage(Keeps, Keeps, 3, rates, scan)
    masks.append(stage.apply({}, x, train=True, rngs={'stochastic_depth': jax.random.key(0)}))
    np.testing.assert_array_equal(stage.apply({}, x, train=False), x)
  np.testing.assert_array_equal(*masks)
  for rate, mask in zip(rates, masks[0].T, strict=True):
    np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - rate)] if rate else [1], rtol=1e-6)
    np.testing.assert_allclose(np.mean(mask == 0), rate, atol=0.03)
  np.testing.assert_allclose(np.corrcoef(masks[0][:, 1], masks[0][:, 2])[0, 1], 0, atol=0.05)


class Drops(nn.Module):
  """Has no parameters, only a dropout."""

  @nn.compact
  def __call__(self, x, train, keep=None):
    return nn.Dropout(0.5)(x, deterministic=not train)


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('remat', [False, True])
def test_blocks_draw_numbers_of_their_own(scan, remat):
  stage, x = stage_lib.Stage(Drops, Drops, 4, scan=scan, remat=remat), np.ones((4096, 1), np.float32)
  np.testing.assert_array_equal(stage.apply({}, x, train=False), x)
  found = stage.apply({}, x, train=True, rngs={'dropout': jax.random.key(0)})
  np.testing.assert_array_equal(np.unique(found), [0, 16])  # four masks, each of which doubles what it keeps
  np.testing.assert_allclose(np.mean(found), 1, atol=5 * np.sqrt(15 / 4096))  # equal masks would give 4 or 8


@pytest.mark.thorough
def test_captures_reach_into_a_scanned_stage():
  """Interceptors can sow and perturb at each block's output, one row a block."""
  model, unrolled = make_net(scan=True), make_net()
  variables = models.init(depth.trace(model, SHAPE), 0)
  x = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)

  def tap(next_fun, args, kwargs, context):
    output = next_fun(*args, **kwargs)
    if isinstance(context.module, blocks.Basic) and context.method_name == '__call__':
      context.module.sow('intermediates', 'norm', jnp.linalg.norm(output))
      output = context.module.perturb('output', output)
    return output

  @functools.partial(jax.jit, static_argnums=0)
  @functools.partial(jax.grad, argnums=2, has_aux=True)
  def outputs(model, variables, perturbations):
    with nn.intercept_methods(tap):
      logits, updates = model.apply(
        {**variables, 'perturbations': perturbations}, x, train=False, mutable=['intermediates']
      )
    return logits.sum(), updates['intermediates']

  zeros = {'stage1': {layouts.block_name(i + 1): {'output': jnp.zeros((2, 4, 4, 6))} for i in range(3)}}
  want = outputs(unrolled, layouts.to_unrolled(variables), zeros)
  got = outputs(model, variables, layouts.to_scanned(zeros, {('stage1',): 2}))
  for one, two in zip(want, got, strict=True):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), one, layouts.to_unrolled(two))


def test_a_stage_of_one_block_has_nothing_scanned():
  model = make(depth=8, scan=True)
  variables = models.init(depth.trace(model, SHAPE), 0)
  assert_equal(variables, models.init(depth.trace(make(depth=8), SHAPE), 0))
  assert all(entry.row is None for entry in depth.trace(model, SHAPE).entries)


def test_parameters_of_flax_init_are_refused_by_a_scanned_stage_in_one_line():
  model, x = make_net(scan=True), jnp.zeros((1, *SHAPE))
  variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), x)
  with pytest.raises(errors.InputError, match=r'scanned stage1 .*unrolled layout.*dnt\.models\.init'):
    jax.eval_shape(functools.partial(model.apply, train=False), variables, x)
