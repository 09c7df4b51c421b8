import jax
import jax.numpy as jnp
import optax
import pytest

from dnt import config, errors
from dnt.parallel import mesh as meshes
from dnt.parallel import sharding

pytestmark = pytest.mark.usefixtures('eight_devices')


def shape(*size, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(size, dtype)


PARAMS = {
  'stem': {'kernel': shape(3, 3, 64, 64)},
  'stage1': {'scanned': {'conv1': {'kernel': shape(6, 3, 3, 64, 64)}}},
  'head': {'kernel': shape(512, 10), 'bias': shape(10)},
}
STEM, SCANNED, HEAD = 'stem/kernel', 'stage1/scanned/conv1/kernel', 'head/kernel'


def make_mesh(fsdp):
  options = config.default()
  options.mesh.fsdp = fsdp
  return meshes.make_mesh(options.mesh)


@pytest.mark.parametrize(
  ('rules', 'axes'),
  [
    ((), {HEAD: None, STEM: 3, SCANNED: 4}),  # by size: the head is small
    ((('head/kernel', 0),), {HEAD: 0, STEM: 3, SCANNED: 4}),
    ((('stem/.*', 'whole'), ('s.*/kernel', 2)), {HEAD: None, STEM: None, SCANNED: 3}),
    ((('stage1/.*', -2), ('s.*', 2)), {HEAD: None, SCANNED: 3, STEM: 2}),
  ],
)
def test_the_first_rule_that_matches_a_whole_path_names_its_axis(rules, axes):
  assert sharding.match(rules, PARAMS, fsdp=4) == {'head/bias': None, **axes}


@pytest.mark.parametrize(
  ('rule', 'words'),
  [
    (('head', 0), ('head', 'no parameter', HEAD)),
    (('head/kernel', 2), (HEAD, 'axis 2', 'valid: 0, whole')),
    (('head/kernel', -3), (HEAD, 'axis -', 'valid: 0, whole')),
    (('head/kernel', 1), (HEAD, 'size 10', 'config.mesh.fsdp=4', 'valid: 0, whole')),
    (('stage1/.*', 4), (SCANNED, 'axis 4', 'valid: 2, 3, whole')),
  ],
)
def test_a_rule_that_cannot_be_followed_is_refused(rule, words):
  with pytest.raises(errors.InputError, match='config.sharding') as refused:
    sharding.match((rule,), PARAMS, fsdp=4)
  assert all(word in str(refused.value) for word in words), refused.value


def test_moments_and_averages_follow_the_rule_of_their_parameter():
  axes = sharding.match((('head/kernel', 0), (STEM, 'whole')), PARAMS, fsdp=4)
  params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), PARAMS)
  state = {'params': params, 'ema': {'params': params}, 'opt_state': optax.adamw(1e-3).init(params)}
  found = jax.tree.map(lambda each: tuple(each.spec), meshes.parameter_shardings(make_mesh(4), state, axes))
  for tree in (found['params'], found['ema']['params'], found['opt_state'][0].mu, found['opt_state'][0].nu):
    assert tree['head'] == {'kernel': ('fsdp',), 'bias': ()}
    assert tree['stem']['kernel'] == ()
    assert tree['stage1']['scanned']['conv1']['kernel'] == (None, None, None, None, 'fsdp')


@pytest.mark.parametrize(
  ('rule', 'head', 'other'), [((HEAD, 0), ('fsdp',), (None, 'fsdp')), (('aux/' + HEAD, 0), (None, 'fsdp'), ('fsdp',))]
)
def test_a_rule_is_for_the_whole_path_of_a_parameter(rule, head, other):
  kernel = {'head': {'kernel': shape(128, 256)}}
  params = {**kernel, 'aux': kernel}
  axes = sharding.match((rule,), params, fsdp=4)
  state = {'params': params, 'ema': {'params': params}, 'opt_state': jax.eval_shape(optax.adamw(1e-3).init, params)}
  found = jax.tree.map(lambda each: tuple(each.spec), meshes.parameter_shardings(make_mesh(4), state, axes))
  for tree in (found['params'], found['ema']['params'], found['opt_state'][0].mu, found['opt_state'][0].nu):
    assert tree == {'head': {'kernel': head}, 'aux': {'head': {'kernel': other}}}


def test_the_table_has_the_bytes_of_each_device():
  axes = sharding.match(((STEM, 'whole'), ('head/kernel', 0)), PARAMS, fsdp=4)
  assert sharding.table(make_mesh(4), PARAMS, axes) == [
    ('head/bias', (10,), None, 40),
    (HEAD, (512, 10), 0, 512 * 10),
    (SCANNED, (6, 3, 3, 64, 64), 4, 6 * 9 * 64 * 64),
    (STEM, (3, 3, 64, 64), None, 4 * 9 * 64 * 64),
  ]
  assert all(row.axis is None for row in sharding.table(make_mesh(1), PARAMS, axes))
