import jax
import numpy as np
import pytest

from dnt import config, errors, models, trees
from dnt.models import depth

SHAPE = (8, 8, 3)


def make(name='plain', **options):
  cfg = config.default()
  cfg.model.update({'name': name, **options})
  return models.make(cfg.model, 10)


@pytest.mark.thorough
@pytest.mark.parametrize('layers', [20, 56])
def test_a_plain_net_is_a_resnet_without_shortcuts(layers):
  """Identity shortcuts own nothing: the same leaves, entries and first values, another function."""
  plain, resnet = make(depth=layers), make('resnet', depth=layers)
  assert depth.trace(plain, SHAPE).table == depth.trace(resnet, SHAPE).table
  if layers == 20:
    one, two = models.init(depth.trace(plain, SHAPE), 0), models.init(depth.trace(resnet, SHAPE), 0)
    assert trees.sha256(one) == trees.sha256(two)
    x = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    logits = [jax.jit(lambda v, x, m=m: m.apply(v, x, train=False))(one, x) for m in (plain, resnet)]
    assert not np.allclose(*logits)


def test_width_is_the_channels_of_the_first_stage():
  shapes = [row.shape for row in depth.trace(make(depth=8, width=6), SHAPE).table]
  assert shapes == [(8, 8, 6), (8, 8, 6), (4, 4, 12), (2, 2, 24), (10,)]


@pytest.mark.parametrize('layers', [8, 50])
def test_the_depth_is_the_number_of_kernels(layers):
  leaves = trees.flatten(depth.trace(make(depth=layers), SHAPE).variables)
  assert sum(path.endswith('/kernel') for path in leaves) == layers


@pytest.mark.parametrize(('layers', 'nearest'), [(2, 8), (19, 20), (57, 56), (111, 110)])
def test_the_nearest_valid_depth_is_named(layers, nearest):
  with pytest.raises(errors.InputError, match=f'6n \\+ 2 .*depth is {nearest}$'):
    make(depth=layers)
