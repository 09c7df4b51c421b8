"""Which output takes the place of the images."""

import jax
import numpy as np
import pytest

from dnt import errors, loop
from dnt.finetune import feature_cache, frozen_prefix
from dnt.parallel import mesh as mesh_lib
from dnt.training import datasets, experiment, open_options, record
from tests.finetune.features import OWN_NETWORKS, files, held

pytestmark = pytest.mark.usefixtures('undrawn')


@pytest.mark.thorough
def test_a_head_that_starts_at_zero_does_not_hide_what_blocks_read(config, saved, tmp_path):
  config.train.steps, config.finetune.trainable = 1, 'all'
  saved(config, tmp_path / 'other')
  config.data.synthetic_classes, config.train.init_from, config.finetune.trainable = 4, str(tmp_path / 'other'), 'top:1'
  loop.train(config, tmp_path / 'run', record.Clock(0.0), 'test')
  assert {held(path).shape for path in files(config)} == {(40, 4, 4, 32)}


def test_augmentation_is_not_cached_unasked(config, tmp_path):
  config.data.augment, config.train.steps = 'pad_crop_flip', 1
  loop.train(config, tmp_path / 'run', record.Clock(0.0), 'test')
  assert not files(config)


@pytest.mark.thorough
@pytest.mark.parametrize(
  ('name', 'shape'), [('Pooling', (4, 4, 6)), ('Stating', (1, 1, 6)), ('Reading', (4, 4, 6)), ('Lying', None)]
)
def test_of_a_users_own_network_whole_features_are_kept_unless_it_says_that_its_head_pools(
  config, tmp_path, console, monkeypatch, name, shape
):
  (tmp_path / 'own_networks.py').write_text(OWN_NETWORKS)
  monkeypatch.syspath_prepend(tmp_path)
  with config.model.ignore_type():
    config.model.update({'name': f'own_networks:{name}', 'depth': None})
  config.finetune.trainable, config.train.steps = 'answer', 1
  loop.train(config, tmp_path / 'run', record.Clock(0.0), 'test')
  if shape is None:
    assert not files(config) and 'the mean over all positions' in console.readouterr().out
  else:
    assert {held(path).shape for path in files(config)} == {(40, *shape)}


UNCACHEABLE = """
import flax.linen as nn
import jax
import jax.numpy as jnp

class Encoder(nn.Module):
  pair: bool = False

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(6, (3, 3), (2, 2), name='conv')(x)
    return (x, x.mean((1, 2))) if self.pair else x

class Named(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = nn.relu(Encoder(name='first')(x=x))
    return nn.Dense(self.num_classes, name='answer')(Encoder(name='second')(x=x).mean((1, 2)))

class Pair(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    _, pooled = Encoder(pair=True, name='body')(x)
    return nn.Dense(self.num_classes, name='answer')(pooled)

class Twice(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    y = Encoder(name='body')(x)
    z = nn.Conv(4, (3, 3), name='answer_images')(x)
    return nn.Dense(self.num_classes, name='answer')(jnp.concatenate([y.mean((1, 2)), z.mean((1, 2))], -1))

class Fed(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = x + Shift(name='body')()
    return nn.Dense(self.num_classes, name='answer')(x.mean((1, 2)))

class Noisy(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    if train:
      x = x + 0.5 * jax.random.normal(self.make_rng('dropout'), x.shape)
    x = Encoder(name='body')(x)
    x = nn.Dropout(0.5, deterministic=not train, name='answer_dropout')(x.mean((1, 2)))
    return nn.Dense(self.num_classes, name='answer')(x)

class Dropping(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    if train:
      x = x * jax.random.bernoulli(self.make_rng('dropout'), 0.9, (x.shape[0], 8, 8, 1))
    x = Encoder(name='body')(x)
    return nn.Dense(self.num_classes, name='answer')(x.mean((1, 2)))

class Shift(nn.Module):
  @nn.compact
  def __call__(self):
    return self.param('shift', nn.initializers.ones_init(), (1, 8, 8, 3))
"""


@pytest.mark.parametrize(
  ('name', 'last'),
  [('Named', 'second'), *((name, 'body') for name in ('Pair', 'Twice', 'Fed', 'Noisy', 'Dropping'))],
)
def test_of_a_network_that_cannot_take_features_the_images_are_used(own, config, tmp_path, console, name, last):
  run, data = own(UNCACHEABLE, name)
  assert feature_cache.use(run, data, mesh_lib.make_mesh(config.mesh), tmp_path / 'run') == (run, data)
  said = f'features are not cached: the output of {last} does not hold all that later entries read. The usual cause is '
  assert said in console.readouterr().out and not files(config)
  if name not in ('Named', 'Noisy'):  # of which the shapes fit
    assert feature_cache.use_blank(run, data) == (run, data)
  config.finetune.cached_views = 1
  run, data = own(UNCACHEABLE, name)
  with pytest.raises(errors.InputError, match=f'cached_views=1: the output of {last} .*nn.relu .*, or set .* to 0'):
    feature_cache.use(run, data, mesh_lib.make_mesh(config.mesh), tmp_path / 'run')


LIFTED = """
import flax.linen as nn

class Block(nn.Module):
  features: int = 6

  @nn.compact
  def __call__(self, x, train):
    return nn.relu(nn.Conv(self.features, (3, 3), name='output')(x))

class Row(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return nn.Conv(3, (3, 3))(x), None

class Net(nn.Module):
  num_classes: int
  block = Block

  @nn.compact
  def __call__(self, x, train):
    for number in (1, 2):
      x = self.block(name=f'body{number}')(x, train)
    return nn.Dense(self.num_classes, name='answer')(x.mean((1, 2)))

class Remat(Net):
  block = nn.remat(Block, static_argnums=(2,))

class Jit(Net):
  block = nn.jit(Block, static_argnums=(2,))

class Scan(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    rows = nn.scan(Row, variable_axes={'params': 0}, split_rngs={'params': True}, length=2)
    x, _ = rows(name='body')(x, None)
    return nn.Dense(self.num_classes, name='answer')(x.mean((1, 2)))
"""


@pytest.mark.parametrize('name', ['Remat', 'Jit'])
def test_features_of_entries_inside_remat_and_jit_are_those_without(own, name):
  run, data = own(LIFTED, 'Net')
  variables, images = run.init_variables(), (data.train.images[:2] / 255).astype(np.float32)
  expected = frozen_prefix.features(frozen_prefix.find(run), variables, images)
  run, _ = own(LIFTED, name)
  assert frozen_prefix.fits(frozen_prefix.find(run), jax.eval_shape(run.init_variables))
  found = frozen_prefix.features(frozen_prefix.find(run), variables, images)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  assert found.shape == (2, 8, 8, 6) and found.any()


def test_a_frozen_block_that_is_computed_again_is_cached(config):
  config.model.remat = True
  data = datasets.load(config, ())
  run = experiment.make(open_options.resolve(config, data), data.spec)
  prefix = frozen_prefix.find(run)
  assert '/' in prefix.names[-1]  # a block of a stage
  images = (data.train.images[:2] / 255).astype(np.float32)
  found = jax.jit(lambda variables: frozen_prefix.features(prefix, variables, images))(run.init_variables())
  assert found.shape == (2, 1, 1, 64) and np.isfinite(found).all()


def test_an_entry_that_is_a_scan_has_no_features(own, config, console):
  run, data = own(LIFTED, 'Scan')
  assert feature_cache.use_blank(run, data) == (run, data)
  assert 'features are not cached: the output of body' in console.readouterr().out
  config.finetune.cached_views = 1
  run, data = own(LIFTED, 'Scan')
  with pytest.raises(errors.InputError, match='itself an nn.scan or nn.vmap has no output to keep: put it into an'):
    feature_cache.use_blank(run, data)


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    ({'finetune.trainable': 'all'}, 'cached_views=1 .*frozen'),
    ({'finetune.frozen_norm': 'batch'}, 'cached_views=1 .*frozen'),
    ({'finetune.unfreeze': (('50%', 'all'),)}, 'cached_views=1 .*frozen'),
    ({'finetune.cached_views': 3}, 'cached_views=3.* equal'),
    ({'data.mixup': 0.2}, 'mixup'),
    ({'finetune.cache_dir': 'gs://bucket/mine'}, 'config.finetune.cache_dir=gs://bucket/mine is the address'),
  ],
)
def test_what_cannot_be_cached_is_refused(config, tmp_path, monkeypatch, options, said):
  monkeypatch.chdir(tmp_path)
  config.finetune.cached_views = 1
  for key, value in options.items():
    section, _, name = key.partition('.')
    config[section][name] = value
  with pytest.raises(errors.InputError, match=said):
    loop.train(config, tmp_path / 'run', record.Clock(0.0), 'test')
  assert not (tmp_path / 'gs:').exists()
