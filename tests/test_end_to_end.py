"""Every training config: shrunk, it trains two steps and evaluates; at full size, it is a valid program."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import pytest

from dnt import config as schema
from dnt import loop, models, trees
from dnt.models import densenet, resnet
from dnt.reporting import metrics
from dnt.training import datasets, experiment, record
from dnt.weights import names

# What the configs' sources hold: training examples, image shape, classes.
SOURCES = {
  'digits': (1437, (8, 8, 1), 10),
  'tfds:fashion_mnist': (60_000, (28, 28, 1), 10),
  'tfds:cifar10': (50_000, (32, 32, 3), 10),
  'tfds:imagenet2012': (1_281_167, (224, 224, 3), 1000),
  'folder': (1000, (224, 224, 3), 4),
}
# The smallest network of each family: the blocks are the same, there are fewer of them.
SHALLOWEST = {
  'digits_resnet20': 8,
  'fashion_mnist_resnet20': 8,
  'cifar_plain20': 8,
  'cifar_plain56': 8,
  'cifar_resnet20': 8,
  'cifar_resnet56': 8,
  'cifar_resnet110': 8,
  'cifar_resnet1202': 14,  # the smallest with something to scan
  'cifar_preact164': 11,
  'cifar_densenet_bc100': 10,
  'cifar_highway32': 8,
  'imagenet_resnet50': 14,
  'imagenet_densenet121': 13,
  'transfer_folder': 8,
}
# By figures of the papers: parameters in millions, as they round them.
PARAMETERS = {
  'cifar_plain20': '0.27',
  'cifar_plain56': '0.85',
  'cifar_resnet20': '0.27',
  'cifar_resnet56': '0.85',
  'cifar_resnet110': '1.7',
  'cifar_resnet1202': '19.4',
  'cifar_preact164': '1.7',
  'cifar_densenet_bc100': '0.8',
  'imagenet_resnet50': '25.557032',
  'imagenet_densenet121': '7.978856',
}
CONFIGS = sorted((pathlib.Path(__file__).parents[1] / 'configs').glob('*.py'))
PATHS = [path for path in CONFIGS if schema.kind(runpy.run_path(str(path))['get_config']()) == 'train']


QUICK = ('cifar_plain20', 'cifar_resnet56', 'digits_resnet20')  # by default; the others are thorough
PARAMS = [pytest.param(path, id=path.stem, marks=() if path.stem in QUICK else pytest.mark.thorough) for path in PATHS]


@pytest.fixture(params=PARAMS)
def path(request):
  return request.param


@pytest.mark.usefixtures('undrawn')
def test_shrunk_config_trains_and_evaluates(path, load_config, tmp_path, monkeypatch, saved):
  monkeypatch.setitem(densenet.IMAGENET, 13, (1, 1, 1, 1))  # what is published takes minutes to compile
  monkeypatch.setitem(resnet.IMAGENET_BOTTLENECK, 14, (1, 1, 1, 1))
  config = load_config(path)
  config.data.source = 'synthetic'
  config.data.synthetic_examples = 20
  config.data.image_size = 32 if config.model.stem == 'imagenet' else 8
  config.data.crop_padding = 1
  config.data.workers = 0
  config.lr_find.steps = 20
  if config.model.name == models.PRETRAINED:
    other = schema.default()
    other.data.update({'source': 'synthetic', 'synthetic_examples': 20, 'image_size': 8})
    other.model.depth = SHALLOWEST[path.stem]
    saved(other, tmp_path / 'other')
    config.train.init_from = str(tmp_path / 'other')
  else:
    config.model.depth = SHALLOWEST[path.stem]
  config.train.batch_size = config.eval.batch_size = 8
  config.train.steps = 2
  config.train.log_every = '2'
  config.eval.splits = ('test',)
  schema.validate(config)
  summary = loop.train(config, tmp_path, record.Clock(0.0), 'test')
  assert summary['step'] == 2
  assert summary['finished']
  lines = metrics.read(tmp_path)
  assert sum('train/loss' in line for line in lines) == 1
  assert sum('test/accuracy' in line for line in lines) == 1
  assert lines[-1]['test/loss'] > 0


def test_full_size_config_is_a_valid_program(path, load_config):
  config = load_config(path)
  schema.validate(config)
  if config.model.name == models.PRETRAINED:
    config.model.update(next(each for each in names.networks('torch') if each.title == 'resnet-50 (PyTorch)').model)
  examples, shape, classes = SOURCES[config.data.source]
  if not config.data.mean:
    config.data.mean = config.data.std = (0.5,) * shape[-1]
  if config.train.steps is None:
    config.train.steps = round(config.train.epochs * examples / config.train.batch_size)
  run = experiment.make(config, datasets.Spec(examples, shape, tuple(map(str, range(classes)))))
  state = run.abstract_state()
  size = config.train.batch_size
  batch = {'image': jax.ShapeDtypeStruct((size, *shape), jnp.uint8)}
  batch |= {name: jax.ShapeDtypeStruct((size,), jnp.int32) for name in ('label', 'epoch', 'position')}
  after, found = jax.eval_shape(run.phases[0].train_step, state, batch)
  same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after)
  assert all(jax.tree.leaves(same))
  assert all(value.shape == () for value in found.values())
  count = trees.count(state.params)
  assert count == sum(row.parameters for row in run.table)
  if path.stem in PARAMETERS:
    decimals = len(PARAMETERS[path.stem].partition('.')[2])
    assert f'{count / 1e6:.{decimals}f}' == PARAMETERS[path.stem]
