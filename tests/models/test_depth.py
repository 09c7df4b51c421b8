import functools
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dnt import config, errors, models, trees
from dnt.models import blocks, depth, parts

SHAPE = (8, 8, 3)
QUICK = {'xla_backend_optimization_level': 0}  # compile in a third of the time


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
    stage = depth.Stage(first, rest, self.count, self.drop_rates, self.scan, self.remat, name='stage1')
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

  step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True), compiler_options=QUICK)
  (loss, (logits, stats)), gradients = step(variables['params'])
  return loss, logits, depth.to_unrolled(stats), depth.to_unrolled(gradients)


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
  first, second = models.init(unrolled, 3, SHAPE), models.init(scanned, 3, SHAPE)
  assert_equal(first, depth.to_unrolled(second))
  loss, logits, stats, gradients = train_pass(unrolled, first)
  other_loss, other_logits, other_stats, other_gradients = train_pass(scanned, second)
  np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
  np.testing.assert_allclose(logits, other_logits, rtol=0, atol=1e-6)
  assert_close(other_stats, stats, 1e-6)
  assert_close(other_gradients, gradients, 1e-6)


@pytest.mark.thorough
def test_remat_keeps_values_and_is_there():
  variables = models.init(make_net(), 3, SHAPE)
  assert_close(train_pass(make_net(remat=True), variables)[3], train_pass(make_net(), variables)[3], 1e-6)
  for scan in (False, True):
    model = make_net(remat=True, scan=scan)
    variables = models.init(model, 3, SHAPE)
    program = jax.make_jaxpr(functools.partial(model.apply, train=False))(variables, np.zeros((2, *SHAPE), np.float32))
    assert str(program).count('remat') >= (2 if scan else 3)


def test_scanned_equals_unrolled_in_evaluation():
  unrolled, scanned = make_net(drop_rates=(0.1, 0.5, 0.7)), make_net(scan=True, drop_rates=(0.1, 0.5, 0.7))
  variables = models.init(scanned, 3, SHAPE)
  x = np.random.default_rng(1).normal(size=(2, *SHAPE)).astype(np.float32)
  got = jax.jit(functools.partial(scanned.apply, train=False))(variables, x)
  want = jax.jit(functools.partial(unrolled.apply, train=False))(depth.to_unrolled(variables), x)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.thorough
def test_scanned_equals_unrolled_in_bfloat16():
  unrolled, scanned = make_net('bfloat16'), make_net('bfloat16', scan=True)
  first, second = models.init(unrolled, 3, SHAPE), models.init(scanned, 3, SHAPE)
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
  first, second = models.init(unrolled, 0, SHAPE), models.init(scanned, 0, SHAPE)
  assert_equal(first, depth.to_unrolled(second))
  assert any(trees.is_scanned(path) for path in trees.flatten(second['params']))
  one, two = train_pass(unrolled, first), train_pass(scanned, second)
  np.testing.assert_allclose(one[1], two[1], rtol=0, atol=2e-5)
  assert_close(two[3], one[3], 1e-5)


class Keeps(nn.Module):
  """Shifts the mask it is given into x [B, 3], so that the output of three blocks is their masks."""

  def __call__(self, x, train, keep=None):
    return x if keep is None else jnp.concatenate([x[:, 1:], keep.reshape(-1, 1)], 1)


def test_stochastic_depth_draws_by_example_with_the_stated_rate_and_scale():
  x, rates, masks = np.zeros((4000, 3), np.float32), (0.0, 0.25, 0.75), []
  for scan in (False, True):
    stage = depth.Stage(Keeps, Keeps, 3, rates, scan)
    masks.append(stage.apply({}, x, train=True, rngs={'stochastic_depth': jax.random.key(0)}))
    np.testing.assert_array_equal(stage.apply({}, x, train=False), x)
  np.testing.assert_array_equal(*masks)
  for rate, mask in zip(rates, masks[0].T, strict=True):
    np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - rate)] if rate else [1], rtol=1e-6)
    np.testing.assert_allclose(np.mean(mask == 0), rate, atol=0.03)
  np.testing.assert_allclose(np.corrcoef(masks[0][:, 1], masks[0][:, 2])[0, 1], 0, atol=0.05)


def test_taps_reach_into_a_scanned_stage():
  """Interceptors can sow and perturb at each block's output, one row a block."""
  model, unrolled = make_net(scan=True), make_net()
  variables = models.init(model, 0, SHAPE)
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

  zeros = {'stage1': {depth.block_name(i + 1): {'output': jnp.zeros((2, 4, 4, 6))} for i in range(3)}}
  want = outputs(unrolled, depth.to_unrolled(variables), zeros)
  got = outputs(model, variables, depth.to_scanned(zeros, {('stage1',): 2}))
  for one, two in zip(want, got, strict=True):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), one, depth.to_unrolled(two))


def test_entries_are_in_depth_order_in_both_layouts():
  names = ['stem'] + [f'stage{s}/block{b:03d}' for s in (1, 2, 3) for b in (1, 2, 3)] + ['head']
  unrolled = depth.entries(make(depth=20), SHAPE)
  assert [e.name for e in unrolled] == [e.path for e in unrolled] == names
  assert all(e.row is None for e in unrolled)
  scanned = depth.entries(make(depth=20, scan=True), SHAPE)
  assert [e.name for e in scanned] == names
  assert scanned[4:7] == (
    depth.Entry('stage2/block001', 'stage2/block001'),
    depth.Entry('stage2/block002', 'stage2/scanned', 0),
    depth.Entry('stage2/block003', 'stage2/scanned', 1),
  )


def test_a_stage_of_one_block_has_nothing_scanned():
  model = make(depth=8, scan=True)
  variables = models.init(model, 0, SHAPE)
  assert_equal(variables, models.init(make(depth=8), 0, SHAPE))
  assert all(entry.row is None for entry in depth.entries(model, SHAPE))


def test_blocks_sort_in_depth_order():
  names = [depth.block_name(number) for number in range(1, 201)]
  assert names == sorted(names)
  assert names[0] == 'block001'


@pytest.mark.parametrize('scan', [False, True])
def test_every_leaf_belongs_to_its_entry(scan):
  model = make(depth=20, scan=scan)
  entries = depth.entries(model, SHAPE)
  variables = models.init(model, 0, SHAPE)
  for collection in ('params', 'batch_stats'):
    for path, leaf in trees.flatten(variables[collection]).items():
      owners = depth.entry_index(entries, path)
      if trees.is_scanned(path):
        assert len(owners) == leaf.shape[0] == 2
        assert [entries[i].row for i in owners] == [0, 1]
      else:
        assert len(owners) == 1
      assert all(path.startswith(entries[i].path) for i in owners)
  with pytest.raises(errors.InputError, match='belongs to no entry'):
    depth.entry_index(entries, 'stage4/block001/conv1/kernel')


def test_table_of_resnet20():
  rows = {row.entry.name: row for row in depth.table(make(depth=20), (32, 32, 3))}
  assert rows['stem'].shape == (32, 32, 16)
  assert rows['stage2/block001'].shape == (16, 16, 32)
  assert rows['head'].shape == (5,)
  assert rows['stage2/block001'].parameters == 9 * (16 * 32 + 32 * 32) + 4 * 32
  assert rows['stage2/block001'].flops == 2 * 16 * 16 * 9 * (16 * 32 + 32 * 32)
  # 40.55 M multiply-adds in the convolutions, as fvcore counts them for this network, and the head.
  convolutions = 32**2 * 9 * 3 * 16 + 32**2 * 9 * 16**2 * 6 + 16**2 * 9 * (16 * 32 + 32**2 * 5)
  convolutions += 8**2 * 9 * (32 * 64 + 64**2 * 5)
  assert sum(row.flops for row in rows.values()) == 2 * (convolutions + 64 * 5)
  assert rows == {row.entry.name: row for row in depth.table(make(depth=20, remat=True), (32, 32, 3))}


def test_table_is_the_same_scanned():
  def strip(rows):
    return [(row.entry.name, row.shape, row.parameters, row.flops) for row in rows]

  for options in ({'depth': 20}, {'name': 'mlp', 'depth': 6, 'width': 8}):
    assert strip(depth.table(make(**options), SHAPE)) == strip(depth.table(make(**options, scan=True), SHAPE))


class Odd(nn.Module):
  """Names out of order, a helper method, a submodule called twice, a parameter and a product of its own."""

  sizes: Any = (4, 4)

  def setup(self):
    self.z_first = nn.Dense(4)
    self.tower = [nn.Dense(size) for size in self.sizes]
    self.a_last = nn.Dense(5)
    self.shift = self.param('shift', nn.initializers.zeros_init(), (4,))

  def __call__(self, x, train):
    x = x.reshape(x.shape[0], -1)
    x = self.embed(x)
    for layer in self.tower:
      x = layer(x)
    x = self.tower[0](x)

    def body(x, _):
      return x @ jnp.ones((4, 4)), None

    x, _ = jax.lax.scan(body, x, length=3)
    return self.a_last(x)

  def embed(self, x):
    return self.z_first(x) + self.shift.reshape(1, 4)


@pytest.mark.parametrize('sizes', [(4, 4), [4, 4]], ids=['hashable', 'unhashable'])
def test_any_module_has_a_depth_list(sizes):
  rows = depth.table(Odd(sizes), SHAPE)
  assert [row.entry.name for row in rows] == ['shift', 'z_first', 'tower_0', 'tower_1', 'a_last']
  assert [row.shape for row in rows] == [None, (4,), (4,), (4,), (5,)]
  assert [row.parameters for row in rows] == [4, 192 * 4 + 4, 20, 20, 25]
  assert [row.flops for row in rows] == [0, 2 * 192 * 4, 2 * 2 * 16, 2 * 16, 2 * 20]
  entries = tuple(row.entry for row in rows)
  assert depth.entry_index(entries, 'shift') == (0,)
  assert depth.entry_index(entries, 'tower_1/kernel') == (3,)


class Branching(nn.Module):
  """A direct submodule that calls another method of itself, branches and has a stage inside."""

  @nn.compact
  def __call__(self, x, train):
    return Inner(name='inner')(x, train)


class Inner(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    x = self.flat(x)
    x = jax.lax.cond(x.sum() > 0, lambda x: x @ jnp.ones((192, 192)), lambda x: x, x)
    unit = functools.partial(blocks.DenseUnit, parts.make(config.default().model), 192)
    x = depth.Stage(unit, unit, 3, scan=True, name='stage')(x, train)
    return nn.Dense(5, name='out')(x)

  def flat(self, x):
    return x.reshape(x.shape[0], -1)


def test_a_stage_deep_inside_belongs_to_its_direct_submodule():
  model = Branching()
  (row,) = depth.table(model, SHAPE)
  assert row.entry == depth.Entry('inner', 'inner')
  assert row.shape == (5,)
  assert row.flops == 2 * (4 * 192**2 + 192 * 5)
  variables = models.init(model, 0, SHAPE)
  assert variables['params']['inner']['stage']['scanned']['dense']['kernel'].shape == (2, 192, 192)
  assert depth.entry_index([row.entry], 'inner/stage/scanned/dense/kernel') == (0,)
  assert model.apply(variables, np.ones((2, *SHAPE), np.float32), train=False).shape == (2, 5)


class Caching(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    self.variable('cache', 'last', jnp.zeros, ())
    return nn.Dense(5)(x.reshape(x.shape[0], -1))


def test_foreign_collections_are_refused():
  with pytest.raises(errors.InputError, match="collection 'cache'"):
    depth.entries(Caching(), SHAPE)


class State(flax.struct.PyTreeNode):
  params: Any
  opt_state: Any
  name: str = flax.struct.field(pytree_node=False)


def test_converter_round_trip_of_a_whole_state():
  """Parameters, momenta, Adam's moments and masked leaves, as arrays, NumPy arrays and shapes."""
  model = make(depth=20, scan=True)
  params = models.init(model, 0, SHAPE)['params']
  rows = depth.scanned_rows(params)
  assert rows == {('stage1',): 2, ('stage2',): 2, ('stage3',): 2}
  labels = trees.map_with_path(lambda path, _: 'one' if path.endswith('kernel') else 'two', params)
  optimizer = optax.named_chain(
    ('momentum', optax.trace(0.9)), ('rest', optax.partition({'one': optax.adam(1), 'two': optax.sgd(1)}, labels))
  )
  state = State(params, optimizer.init(params), 'kept')
  state = jax.tree.map(lambda leaf: jnp.asarray(np.random.default_rng(0).normal(size=leaf.shape)), state)
  for tree in (state, jax.tree.map(np.asarray, state), jax.eval_shape(lambda: state)):
    unrolled = depth.to_unrolled(tree, rows)
    assert unrolled.name == 'kept'
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(unrolled)]
    assert not any(trees.SCANNED in path for path in paths)
    assert any('mu' in path and "['block003']['conv1']['kernel']" in path for path in paths)
    back = depth.to_scanned(unrolled, rows)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for one, two in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
      assert type(one) is type(two)
      if isinstance(one, jax.ShapeDtypeStruct):
        assert (one.shape, one.dtype) == (two.shape, two.dtype)
      else:
        np.testing.assert_array_equal(one, two)
  assert_equal(depth.to_unrolled(state, rows).params, models_params_unrolled(state.params))


def models_params_unrolled(params):
  """The rows by hand."""
  flat = {}
  for path, leaf in trees.flatten(params).items():
    if trees.is_scanned(path):
      flat.update({path.replace('scanned', f'block{i + 2:03d}'): leaf[i] for i in range(leaf.shape[0])})
    else:
      flat[path] = leaf
  return trees.unflatten(flat)


def test_converter_leaves_the_layout_it_makes_alone():
  scanned = models.init(make(depth=20, scan=True), 0, SHAPE)
  unrolled = models.init(make(depth=20), 0, SHAPE)
  rows = depth.scanned_rows(scanned['params'])
  assert_equal(depth.to_unrolled(unrolled), unrolled)
  assert_equal(depth.to_scanned(scanned, rows), scanned)
  assert_equal(depth.to_scanned(unrolled, rows), scanned)


def test_converter_refuses_stages_that_do_not_fit():
  rows = {('stage1',): 2}
  block = {'kernel': np.zeros((2, 2))}
  stage = {depth.block_name(i + 1): block for i in range(3)}
  assert depth.to_scanned({'stage1': stage}, rows)['stage1'][trees.SCANNED]['kernel'].shape == (2, 2, 2)
  with pytest.raises(errors.InputError, match='a stage of 4 blocks cannot become one of 3'):
    depth.to_scanned({'stage1': {**stage, 'block004': block}}, rows)
  with pytest.raises(errors.InputError, match='differ in their parameters'):
    depth.to_scanned({'stage1': {**stage, 'block003': {'kernel': np.zeros((2, 3))}}}, rows)
