import hashlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import trees

TREE = {
  'stem': {'kernel': np.arange(6, dtype=np.float32).reshape(2, 3)},
  'head': {'kernel': np.ones((3, 1), np.float32), 'bias': np.zeros((1,), np.float32)},
}


def test_flatten_joins_keys_in_path_order_and_unflatten_undoes_it():
  flat = trees.flatten(TREE)
  assert list(flat) == ['head/bias', 'head/kernel', 'stem/kernel']
  assert flat['stem/kernel'] is TREE['stem']['kernel']
  assert jax.tree.structure(trees.unflatten(flat)) == jax.tree.structure(TREE)
  assert trees.flatten({}) == {} and trees.unflatten({}) == {}


def test_flatten_reads_frozen_dicts():
  assert trees.flatten(flax.core.freeze(TREE)).keys() == trees.flatten(TREE).keys()


def test_map_with_path_passes_the_leaves_of_every_tree():
  seen = {}

  def add(path, leaf, other):
    seen[path] = True
    return leaf + other

  total = trees.map_with_path(add, TREE, jax.tree.map(lambda leaf: 2 * leaf, TREE))
  assert list(seen) == list(trees.flatten(TREE))
  np.testing.assert_array_equal(total['stem']['kernel'], 3 * TREE['stem']['kernel'])


def test_map_with_path_refuses_trees_of_other_paths():
  with pytest.raises(KeyError, match='head/bias'):
    trees.map_with_path(lambda path, leaf, other: leaf, TREE, {'stem': TREE['stem']})


@pytest.mark.parametrize(
  ('patterns', 'named'),
  [
    ((), False),
    (('stage1',), True),
    (('stage1/block001',), True),
    (('stage1/block00',), False),
    (('block001',), False),
    (('.*/kernel',), True),
    (('kernel', 'stage1/.*/conv'), True),
    (('.*/bias',), False),
  ],
)
def test_a_path_is_named_as_a_whole_or_by_what_holds_it(patterns, named):
  assert trees.is_named('stage1/block001/conv/kernel', patterns) == named


def test_subtree_is_empty_where_there_is_none():
  assert trees.subtree(TREE, 'head/bias') is TREE['head']['bias']
  assert trees.subtree(TREE, 'stage1/block001') == {}


def test_count_takes_arrays_and_shapes():
  assert trees.count(TREE) == 10
  assert trees.count(jax.eval_shape(lambda: TREE)) == 10
  assert trees.count({'scalar': np.float32(1.0)}) == 1
  assert trees.count({}) == 0
  assert trees.count({'large': jax.ShapeDtypeStruct((2**20, 2**20), np.float32)}) == 2**40


def test_sha256_is_what_its_docstring_says():
  digest = hashlib.sha256()
  for path, leaf in [
    ('head/bias', TREE['head']['bias']),
    ('head/kernel', TREE['head']['kernel']),
    ('stem/kernel', TREE['stem']['kernel']),
  ]:
    digest.update(f'{path} float32 {leaf.shape}\n'.encode() + leaf.tobytes())
  assert trees.sha256(TREE) == digest.hexdigest()


@pytest.mark.usefixtures('eight_devices')
def test_sha256_is_the_same_wherever_and_however_the_leaves_lie():
  transposed = {**TREE, 'stem': {'kernel': np.asfortranarray(TREE['stem']['kernel'])}}
  on_device = jax.tree.map(jnp.asarray, TREE)
  assert trees.sha256(TREE) == trees.sha256(transposed) == trees.sha256(on_device)
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  leaf = {'kernel': np.arange(16, dtype=np.float32)}
  assert trees.sha256(leaf) == trees.sha256(jax.device_put(leaf, split))


@pytest.mark.parametrize(
  'other',
  [
    {'a': {'c': np.zeros(4, np.float32)}},
    {'a': {'b': np.zeros(4, np.int32)}},
    {'a': {'b': np.zeros((2, 2), np.float32)}},
    {'a': {'b': np.array([0, 0, 0, 1e-45], np.float32)}},
    {'a': {'b': -np.zeros(4, np.float32)}},
    {'a': {'b': jnp.zeros(4, jnp.bfloat16)}},
  ],
  ids=['path', 'dtype', 'shape', 'value', 'sign', 'bfloat16'],
)
def test_sha256_tells_apart(other):
  assert trees.sha256({'a': {'b': np.zeros(4, np.float32)}}) != trees.sha256(other)
