import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dnt import errors, trees
from dnt.models import depth
from dnt.optim import rows


def test_names_are_those_of_the_unrolled_layout(network):
  places = rows.places(network.stack(network.tree(0)), network.scanned)
  names = {path: rows.names(path, place, network.scanned) for path, place in places.items()}
  assert names['stage1/scanned/conv/kernel'] == ('stage1/block002/conv/kernel', 'stage1/block003/conv/kernel')
  assert names['head/bias'] == ('head/bias',)
  assert {name for row in names.values() for name in row} == trees.flatten(network.tree(0)).keys()


def test_kernel_ends_are_the_first_and_last_entries_that_hold_a_kernel():
  names = ('scalar', 'stem', 'body', 'head', 'temperature')  # the scalars are parameters of the model itself
  entries = tuple(depth.Entry(name, name) for name in names)
  layer = {'kernel': 0, 'bias': 0}
  params = {'scalar': 0, 'temperature': 0, 'stem': layer, 'body': {'conv1': layer}, 'head': layer}
  assert rows.kernel_ends(rows.places(params, entries)) == (1, 3)
  with pytest.raises(errors.InputError, match="called 'kernel'"):
    rows.kernel_ends(rows.places({'scalar': 0, 'head': {'bias': 0}}, entries))


def test_only_a_leaf_of_that_name_is_a_kernel():
  assert rows.is_kernel('kernel') and rows.is_kernel('head/kernel')
  assert not rows.is_kernel('head/kernel_scale') and not rows.is_kernel('kernel/bias')


def test_along_multiplies_one_value_or_one_a_row():
  leaf = jnp.ones((2, 3, 4))
  np.testing.assert_array_equal(rows.along(jnp.array(5.0), leaf) * leaf, np.full((2, 3, 4), 5.0))
  np.testing.assert_array_equal((rows.along(jnp.array([1.0, 2.0]), leaf) * leaf)[1], np.full((3, 4), 2.0))


def test_by_row_sees_a_row_where_the_leaf_is_stacked():
  params = {
    'stage1': {'scanned': {'kernel': jnp.array([[3.0, 4.0], [0.6, 0.8]])}},
    'head': {'kernel': jnp.ones((2, 2))},
  }
  updates = {'stage1': {'scanned': {'kernel': jnp.ones((2, 2))}}, 'head': {'kernel': jnp.ones((2, 2))}}
  trust = rows.by_row(optax.scale_by_trust_ratio())
  scaled, _ = trust.update(updates, trust.init(params), params)
  expected = np.array([[5.0, 5.0], [1.0, 1.0]]) / np.sqrt(2)
  np.testing.assert_allclose(scaled['stage1']['scanned']['kernel'], expected, rtol=1e-6)
  np.testing.assert_allclose(scaled['head']['kernel'], np.ones((2, 2)), rtol=1e-6)
