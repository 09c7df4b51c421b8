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
from dnt.models import blocks, depth, layouts, parts, stage

SHAPE = (8, 8, 3)


def make(**options):
  cfg = config.default()
  cfg.model.update(options)
  return models.make(cfg.model, 5)


def assert_equal(tree, other):
  assert jax.tree.structure(tree) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_blocks_sort_in_depth_order():
  names = [layouts.block_name(number) for number in range(1, 201)]
  assert names == sorted(names)
  assert names[0] == 'block001'


class State(flax.struct.PyTreeNode):
  params: Any
  opt_state: Any
  name: str = flax.struct.field(pytree_node=False)


@pytest.mark.thorough
def test_converter_round_trip_of_a_whole_state():
  """Parameters, momenta, Adam's moments and masked leaves, as arrays, NumPy arrays and shapes."""
  model = make(depth=20, scan=True)
  params = models.init(depth.trace(model, SHAPE), 0)['params']
  rows = layouts.scanned_rows(params)
  assert rows == {('stage1',): 2, ('stage2',): 2, ('stage3',): 2}
  labels = trees.map_with_path(lambda path, _: 'one' if path.endswith('kernel') else 'two', params)
  optimizer = optax.named_chain(
    ('momentum', optax.trace(0.9)), ('rest', optax.partition({'one': optax.adam(1), 'two': optax.sgd(1)}, labels))
  )
  state = State(params, optimizer.init(params), 'kept')
  state = jax.tree.map(lambda leaf: jnp.asarray(np.random.default_rng(0).normal(size=leaf.shape)), state)
  for tree in (state, jax.tree.map(np.asarray, state), jax.eval_shape(lambda: state)):
    unrolled = layouts.to_unrolled(tree, rows)
    assert unrolled.name == 'kept'
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(unrolled)]
    assert not any(trees.SCANNED in path for path in paths)
    assert any('mu' in path and "['block003']['conv1']['kernel']" in path for path in paths)
    back = layouts.to_scanned(unrolled, rows)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for one, two in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
      assert type(one) is type(two)
      if isinstance(one, jax.ShapeDtypeStruct):
        assert (one.shape, one.dtype) == (two.shape, two.dtype)
      else:
        np.testing.assert_array_equal(one, two)
  assert_equal(layouts.to_unrolled(state, rows).params, models_params_unrolled(state.params))


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
  scanned = models.init(depth.trace(make(depth=20, scan=True), SHAPE), 0)
  unrolled = models.init(depth.trace(make(depth=20), SHAPE), 0)
  rows = layouts.scanned_rows(scanned['params'])
  assert_equal(layouts.to_unrolled(unrolled), unrolled)
  assert_equal(layouts.to_scanned(scanned, rows), scanned)
  assert_equal(layouts.to_scanned(unrolled, rows), scanned)


@pytest.mark.parametrize('order', [1, -1])
def test_a_stage_inside_an_entry_may_have_the_name_of_another(order):
  def stage(first, count):
    return {layouts.block_name(i + 1): {'kernel': np.full((2, 3), first + i)} for i in range(count)}

  rows = dict([(('body',), 2), (('tower', 'body'), 4)][::order])
  params = {'body': stage(0, 3), 'tower': {'body': stage(10, 5), 'conv': np.zeros(2)}}
  scanned = layouts.to_scanned({'params': params, 'mu': params}, rows)
  for tree in scanned.values():
    assert tree['body']['scanned']['kernel'][:, 0, 0].tolist() == [1, 2]
    assert tree['tower']['body']['scanned']['kernel'][:, 0, 0].tolist() == [11, 12, 13, 14]
  assert layouts.scanned_rows(scanned['params']) == rows
  assert_equal(layouts.to_unrolled(scanned, rows), {'params': params, 'mu': params})


class Staged(nn.Module):
  """Has a stage `body`; with two flags, inside an entry `tower` another one of this name."""

  scans: tuple[bool, ...]

  @nn.compact
  def __call__(self, x, train=False):
    scan, *inner = self.scans
    if inner:
      x = Staged(tuple(inner), name='tower')(x, train)
    block = functools.partial(blocks.Basic, parts.make(config.default().model), 3)
    return stage.Stage(block, block, 3, scan=scan, name='body')(x, train)


@pytest.mark.parametrize('scans', [(True, False), (False, True)])
def test_a_scanned_stage_leaves_one_alone_whose_path_ends_with_its_name(scans):
  model = Staged(scans)
  trace = depth.trace(model, SHAPE)
  variables = models.init(trace, 0)
  assert model.apply(variables, jnp.zeros((1, *SHAPE))).shape == (1, *SHAPE)  # it finds its parameters
  bodies = [variables['params'][name] for name in ('body', 'tower')]
  assert (trees.SCANNED in bodies[0], trees.SCANNED in bodies[1]['body']) == scans
  assert_equal(layouts.to_scanned(layouts.to_unrolled(variables, trace.scanned), trace.scanned), variables)


def test_converter_refuses_stages_that_do_not_fit():
  rows = {('stage1',): 2}
  block = {'kernel': np.zeros((2, 2))}
  stage = {layouts.block_name(i + 1): block for i in range(3)}
  assert layouts.to_scanned({'stage1': stage}, rows)['stage1'][trees.SCANNED]['kernel'].shape == (2, 2, 2)
  with pytest.raises(errors.InputError, match=r'\b4 blocks.* 3\b'):
    layouts.to_scanned({'stage1': {**stage, 'block004': block}}, rows)
  with pytest.raises(errors.InputError, match='differ'):
    layouts.to_scanned({'stage1': {**stage, 'block003': {'kernel': np.zeros((2, 3))}}}, rows)
