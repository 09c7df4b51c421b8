import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import config, errors, models, trees
from dnt.models import blocks, depth, parts
from dnt.models import stage as stage_lib

SHAPE = (8, 8, 3)


def make(**options):
  cfg = config.default()
  cfg.model.update(options)
  return models.make(cfg.model, 5)


def test_entries_are_in_depth_order_in_both_layouts():
  names = ['stem'] + [f'stage{s}/block{b:03d}' for s in (1, 2, 3) for b in (1, 2, 3)] + ['head']
  unrolled = depth.trace(make(depth=20), SHAPE).entries
  assert [e.name for e in unrolled] == [e.path for e in unrolled] == names
  assert all(e.row is None for e in unrolled)
  scanned = depth.trace(make(depth=20, scan=True), SHAPE).entries
  assert [e.name for e in scanned] == names
  assert scanned[4:7] == (
    depth.Entry('stage2/block001', 'stage2/block001'),
    depth.Entry('stage2/block002', 'stage2/scanned', 0),
    depth.Entry('stage2/block003', 'stage2/scanned', 1),
  )


@pytest.mark.parametrize('scan', [False, True])
def test_every_leaf_belongs_to_its_entry(scan):
  model = make(depth=20, scan=scan)
  entries = depth.trace(model, SHAPE).entries
  variables = models.init(depth.trace(model, SHAPE), 0)
  for collection in ('params', 'batch_stats'):
    leaves = trees.flatten(variables[collection])
    for path, owners in depth.find_owners(entries, leaves).items():
      leaf = leaves[path]
      if trees.is_scanned(path):
        assert len(owners) == leaf.shape[0] == 2
        assert [entries[i].row for i in owners] == [0, 1]
      else:
        assert len(owners) == 1
      assert all(path.startswith(entries[i].path) for i in owners)
  with pytest.raises(errors.InputError, match="'stage4/block001/conv1/kernel'.* no entry"):
    depth.find_owners(entries, ['head/kernel', 'stage4/block001/conv1/kernel'])


def test_owners_are_found_by_whole_names():
  names = ('shift', 'stem', 'stage1/scanned', 'stage1/scanned', 'stem1', 'head')
  entries = [depth.Entry(str(i), path) for i, path in enumerate(names)]
  places = {'shift': (0,), 'stem/kernel': (1,), 'stage1/scanned/conv/kernel': (2, 3), 'stem1/conv/bias': (4,)}
  assert depth.find_owners(entries, places) == places
  for stranger in ('ste', 'stage1/kernel', 'shift1'):
    with pytest.raises(errors.InputError, match=f"^'{stranger}' belongs to no entry"):
      depth.find_owners(entries, [stranger])


def test_table_of_resnet20():
  rows = {row.entry.name: row for row in depth.trace(make(depth=20), (32, 32, 3)).table}
  assert rows['stem'].shape == (32, 32, 16)
  assert rows['stage2/block001'].shape == (16, 16, 32)
  assert rows['head'].shape == (5,)
  assert rows['stage2/block001'].parameters == 9 * (16 * 32 + 32 * 32) + 4 * 32
  assert rows['stage2/block001'].flops == 2 * 16 * 16 * 9 * (16 * 32 + 32 * 32)
  # 40.55 M multiply-adds in the convolutions, as fvcore counts them for this network, and the head.
  convolutions = 32**2 * 9 * 3 * 16 + 32**2 * 9 * 16**2 * 6 + 16**2 * 9 * (16 * 32 + 32**2 * 5)
  convolutions += 8**2 * 9 * (32 * 64 + 64**2 * 5)
  assert sum(row.flops for row in rows.values()) == 2 * (convolutions + 64 * 5)
  assert rows == {row.entry.name: row for row in depth.trace(make(depth=20, remat=True), (32, 32, 3)).table}


def test_table_is_the_same_scanned():
  def rows(**options):
    table = depth.trace(make(**options), SHAPE).table
    return [(row.entry.name, row.shape, row.parameters, row.flops) for row in table]

  for options in ({'depth': 20}, {'name': 'mlp', 'depth': 6, 'width': 8}):
    assert rows(**options) == rows(**options, scan=True)


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
  rows = depth.trace(Odd(sizes), SHAPE).table
  assert [row.entry.name for row in rows] == ['shift', 'z_first', 'tower_0', 'tower_1', 'a_last']
  assert [row.shape for row in rows] == [None, (4,), (4,), (4,), (5,)]
  assert [row.parameters for row in rows] == [4, 192 * 4 + 4, 20, 20, 25]
  assert [row.flops for row in rows] == [0, 2 * 192 * 4, 2 * 2 * 16, 2 * 16, 2 * 20]
  entries = tuple(row.entry for row in rows)
  places = {'shift': (0,), 'tower_1/kernel': (3,)}
  assert depth.find_owners(entries, places) == places


class Tied(nn.Module):
  """Multiplies outside of its entries, by its own parameter and by that of an entry."""

  @nn.compact
  def __call__(self, x, train):
    x = x.reshape(x.shape[0], -1) @ self.param('own', nn.initializers.ones_init(), (192, 8))
    dense = nn.Dense(4, use_bias=False, name='dense')
    return dense(x) @ jnp.ones((4, 5))


def test_products_outside_of_entries_are_counted():
  trace = depth.trace(Tied(), SHAPE)
  assert [row.flops for row in trace.table] == [0, 2 * 8 * 4]
  assert trace.outside == 2 * 192 * 8 + 2 * 4 * 5
  assert depth.trace(Branching(), SHAPE).outside == 0


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
    x = stage_lib.Stage(unit, unit, 3, scan=True, name='stage')(x, train)
    return nn.Dense(5, name='out')(x)

  def flat(self, x):
    return x.reshape(x.shape[0], -1)


def test_a_stage_deep_inside_belongs_to_its_direct_submodule():
  model = Branching()
  (row,) = depth.trace(model, SHAPE).table
  assert row.entry == depth.Entry('inner', 'inner')
  assert row.shape == (5,)
  assert row.flops == 2 * (4 * 192**2 + 192 * 5)
  variables = models.init(depth.trace(model, SHAPE), 0)
  assert variables['params']['inner']['stage']['scanned']['dense']['kernel'].shape == (2, 192, 192)
  path = 'inner/stage/scanned/dense/kernel'
  assert depth.find_owners([row.entry], [path]) == {path: (0,)}
  assert model.apply(variables, np.ones((2, *SHAPE), np.float32), train=False).shape == (2, 5)


class Caching(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    self.variable('cache', 'last', jnp.zeros, ())
    return nn.Dense(5)(x.reshape(x.shape[0], -1))


class Pooling(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(4, (3, 3), (4, 4), name='body')(x)
    x = nn.Conv(4, (3, 3), padding='VALID', name='neck')(x)
    return nn.Dense(5, name='head')(x.mean((1, 2)))


@pytest.mark.parametrize(
  ('model', 'size', 'said'),
  [
    (make(name='densenet', stem='imagenet'), 8, r"8x8x3 .*'transition2' .* 0x0x256: "),
    (Pooling(), 5, r"5x5x3 .*'neck' .* 0x0x4: "),
  ],
)
def test_a_network_that_leaves_nothing_of_the_images_is_refused(model, size, said):
  with pytest.raises(errors.InputError, match=f'{said}.*config.data.image_size'):
    depth.trace(model, (size, size, 3))


def test_foreign_collections_are_refused():
  with pytest.raises(errors.InputError, match="collection 'cache'"):
    depth.trace(Caching(), SHAPE)


class Normalized(nn.Module):
  """Wraps layers in flax's normalizations of kernels."""

  spectral: bool

  @nn.compact
  def __call__(self, x, train):
    x = x.mean((1, 2))
    if self.spectral:
      return nn.SpectralNorm(nn.Dense(5), name='body')(x, update_stats=train)
    return nn.WeightNorm(nn.Dense(5), name='body')(x)


class Named(nn.Module):
  name_of_layer: str

  @nn.compact
  def __call__(self, x, train):
    return nn.Dense(5, name=self.name_of_layer)(x.mean((1, 2)))


class Boxed(nn.Module):
  """Has parameters that are more than arrays."""

  kind: str

  @nn.compact
  def __call__(self, x, train):
    if self.kind == 'tuple':
      kernel, _ = self.param('pair', lambda key: (jnp.ones((3, 5)), jnp.zeros(5)))
      return x.mean((1, 2)) @ kernel
    kernel = nn.with_partitioning(nn.initializers.lecun_normal(), (None, 'model'))
    return nn.Dense(5, kernel_init=kernel, name='layer')(x.mean((1, 2)))


@pytest.mark.parametrize(
  ('model', 'said'),
  [
    (Normalized(True), "'body > Dense_0/kernel/sigma': '/' .*SpectralNorm"),
    (Normalized(False), "'body > Dense_0/kernel/scale': '/' .*WeightNorm"),
    (Named('a/b'), "'a/b > bias': '/'"),
    (Named('scanned'), "'scanned > bias': .*'scanned' .*another"),
    (Boxed('tuple'), "'pair > 0': .*arrays"),
    (Boxed('partitioned'), "'layer > kernel > value': .*arrays"),
  ],
)
def test_variables_that_no_path_names_are_refused(model, said):
  with pytest.raises(errors.InputError, match=said) as caught:
    depth.trace(model, SHAPE)
  assert '\n' not in str(caught.value)
