import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import errors, trees
from dnt.models import depth
from dnt.optim import rows


def test_names_are_those_of_the_unrolled_layout(network):
  leaves = rows.Leaves.of(network.stack(network.tree(0)), network.scanned)
  names = {path: leaves.names(path) for path in leaves.places}
  assert names['stage1/scanned/conv/kernel'] == ('stage1/block002/conv/kernel', 'stage1/block003/conv/kernel')
  assert names['head/bias'] == ('head/bias',)
  assert {name for row in names.values() for name in row} == trees.flatten(network.tree(0)).keys()


def test_places_take_time_in_proportion_to_the_entries():
  iterated = []

  class Entries(list):
    def __iter__(self):
      iterated.append(self)
      return super().__iter__()

  names = [f'block{i}' for i in range(50)]
  entries = Entries(depth.Entry(name, name) for name in names)
  leaves = rows.Leaves.of({name: {'kernel': 0} for name in names}, entries)
  assert leaves.places == {f'block{i}/kernel': (i,) for i in range(50)}
  assert len(iterated) == 1, 'the depth list is read once, not for each leaf'


def test_kernel_ends_are_the_first_and_last_entries_that_hold_a_kernel():
  names = ('scalar', 'stem', 'body', 'head', 'temperature')  # the scalars are parameters of the model itself
  entries = tuple(depth.Entry(name, name) for name in names)
  layer = {'kernel': 0, 'bias': 0}
  params = {'scalar': 0, 'temperature': 0, 'stem': layer, 'body': {'conv1': layer}, 'head': layer}
  assert rows.Leaves.of(params, entries).kernel_ends('optim.name=muon') == (1, 3)
  message = "^config.optim.name=muon .* called 'kernel', .*rename them, or set another config.optim.name$"
  with pytest.raises(errors.InputError, match=message):
    rows.Leaves.of({'scalar': 0, 'head': {'bias': 0}}, entries).kernel_ends('optim.name=muon')


def test_only_a_leaf_of_that_name_is_a_kernel():
  assert rows.is_kernel('kernel') and rows.is_kernel('head/kernel')
  assert not rows.is_kernel('head/kernel_scale') and not rows.is_kernel('kernel/bias')


def test_the_outputs_of_a_kernel_are_the_last_axes_that_its_bias_has_too():
  cases = (
    (nn.Dense(4), (0, 1)),
    (nn.Conv(4, (3,)), (0, 1)),
    (nn.Conv(4, (3,), use_bias=False), (0, 1)),
    (nn.Conv(4, (3, 3, 3), use_bias=False), (0, 1)),
    (nn.ConvLocal(4, (3, 3)), (2, 1)),  # a kernel for each position
    (nn.DenseGeneral((2, 3)), (0, 2)),
    (nn.DenseGeneral((2, 3), axis=(1, 2, 3)), (0, 2)),
    (nn.DenseGeneral((2, 3), axis=(1, 2, 3), use_bias=False), (0, 1)),  # nothing tells
  )
  for module, expected in cases:
    shape = (1, 8, 8, 8, 5) if isinstance(module, nn.Conv) and len(module.kernel_size) == 3 else (1, 8, 8, 5)
    params = jax.eval_shape(lambda module=module, shape=shape: module.init(jax.random.key(0), jnp.zeros(shape)))
    assert rows.kernel_axes('inner/kernel', trees.flatten({'inner': params['params']})) == [expected], module


def test_layers_that_a_module_maps_itself_are_told_by_their_bias():
  fields = {nn.Dense: (6,), nn.Conv: (6, (3, 3)), nn.DenseGeneral: ((2, 3),)}

  def stacked(layer, shape, axis=0):
    mapped = nn.vmap(layer, in_axes=None, axis_size=4, variable_axes={'params': axis}, split_rngs={'params': True})
    params = jax.eval_shape(lambda: mapped(*fields[layer]).init(jax.random.key(0), jnp.zeros(shape)))['params']
    return rows.kernel_axes('inner/kernel', trees.flatten({'inner': params}))

  assert stacked(nn.Dense, (1, 5)) == [(1, 1)]
  assert stacked(nn.Conv, (1, 8, 8, 5)) == [(1, 1)]
  assert stacked(nn.DenseGeneral, (1, 5)) == [(1, 2)]
  assert stacked(nn.Dense, (1, 4)) == [(0, 2), (1, 1)], 'four layers, or one whose outputs have two axes'
  assert stacked(nn.Dense, (1, 5), axis=1) == []


@pytest.mark.parametrize('use_bias', [True, False])
def test_the_outputs_of_attention_are_those_of_every_head(use_bias):
  module, x = nn.MultiHeadDotProductAttention(2, use_bias=use_bias), jnp.zeros((1, 5, 8))
  leaves = trees.flatten(jax.eval_shape(lambda: module.init(jax.random.key(0), x))['params'])
  found = {path: rows.kernel_axes(path, leaves) for path in leaves if rows.is_kernel(path)}
  assert {path: axes for path, ((_, axes),) in found.items()} == {
    'query/kernel': 2,
    'key/kernel': 2,
    'value/kernel': 2,
    'out/kernel': 1,
  }
  stacked = {f'blocks/scanned/{path}': jnp.zeros((3, *leaf.shape)) for path, leaf in leaves.items()}
  assert [rows.kernel_axes(f'blocks/scanned/{path}', stacked) for path in found] == list(found.values())


def test_along_multiplies_one_value_or_one_a_row():
  leaf = jnp.ones((2, 3, 4))
  np.testing.assert_array_equal(rows.along(jnp.array(5.0), leaf) * leaf, np.full((2, 3, 4), 5.0))
  np.testing.assert_array_equal((rows.along(jnp.array([1.0, 2.0]), leaf) * leaf)[1], np.full((3, 4), 2.0))


def test_by_row_sees_a_row_where_the_leaf_is_stacked_and_changes_those_that_match():
  rows_of = np.array([[3.0, 4.0], [0.6, 0.8]], np.float32)
  leaves = {'stage1/scanned/kernel': rows_of, 'head/kernel': np.ones((2, 2)), 'head/scalar': np.float32(3)}
  params = trees.unflatten({path: jnp.asarray(leaf) for path, leaf in leaves.items()})
  updates = jax.tree.map(jnp.ones_like, params)
  for stacked, head, expected in (
    ([True, True], True, ([[5, 5], [1, 1]], [[2, 2], [2, 2]], 3)),
    ([False, True], False, ([[1, 1], [1, 1]], [[1, 1], [1, 1]], 1)),
    ([True, False], True, ([[5, 5], [1, 1]], [[2, 2], [2, 2]], 3)),
  ):
    matches = {path: np.array(stacked if 'scanned' in path else [head]) for path in leaves}
    by_row = rows.by_row(lambda update, param: update * jnp.sqrt(jnp.sum(param**2)), matches)
    state = by_row.init(params)
    scaled, state = by_row.update(updates, state, params)
    assert not jax.tree.leaves(state)
    for path, want in zip(leaves, expected, strict=True):
      np.testing.assert_allclose(trees.flatten(scaled)[path], want, rtol=1e-6)
