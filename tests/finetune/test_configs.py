"""The transfer configs at full size: valid programs, and what trains in each strategy."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import config as schema
from dnt import trees
from dnt.comparison import plan
from dnt.training import datasets, experiment
from tests.data import loading

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
SMALLEST_CLASS = {'cars': 18, 'mri': 121, 'fashion': 6000}
TRAINABLE = {'scratch': 269_722 - 6 * 65, 'head': 8196, 'top2': 8196 + 2 * 4_462_592, 'all': 23_508_032 + 8196}


@pytest.fixture
def planned(load_config, tmp_path):
  """The runs of a config, checked: all variants with the first seed, then with the next."""

  def make(name):
    path = CONFIGS / name
    assert len(path.read_text().splitlines()) <= 60
    config = load_config(path)
    schema.validate(config)
    assert len(config.seeds) >= 3
    return plan.make(config, tmp_path)

  return make


def trained(config, spec):
  """How many parameters train, of a valid program."""
  config.data.mean, config.data.std, config.train.steps = (
    (0.5,) * spec.image_shape[-1],
    (0.5,) * spec.image_shape[-1],
    10,
  )
  made = experiment.make(config, spec)
  state = made.abstract_state()
  batch = {'image': jax.ShapeDtypeStruct((config.train.batch_size, *made.spec.image_shape), jnp.uint8)}
  batch |= {name: jax.ShapeDtypeStruct(batch['image'].shape[:1], jnp.int32) for name in ('label', 'epoch', 'position')}
  after, _ = jax.eval_shape(made.phases[0].train_step, state, batch)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  return trees.count(made.phases[0].partition.split(state.params)[0])


@pytest.mark.thorough
def test_mri(planned):
  runs = planned('transfer_mri_resnet50.py')
  assert len(runs) == 12
  assert all(run.config.loss.balance_classes for run in runs)
  found = {}
  for run in runs[:4]:
    shape = (run.config.data.image_size,) * 2 + (3,)
    found[run.variant] = trained(run.config, datasets.Spec(1000, shape, tuple('abcd')))
  assert found == TRAINABLE


def test_digits(planned):
  runs = planned('transfer_digits.py')
  assert len(runs) == 15
  runs = {run.variant: run for run in runs[:5]}
  assert next(iter(runs)) == 'pretrain'
  digits = {name: run for name, run in runs.items() if run.config.data.source == 'digits'}
  assert {name for name, run in digits.items() if run.source is runs['pretrain']} == digits.keys() - {'scratch'}
  assert {run.config.data.train_split for run in digits.values()} == {'train[:100]'}
  labels = loading.load(digits['scratch'].config.data, 'train[:100]', 0).labels
  assert len(labels) == 100 and set(np.unique(labels)) == set(range(10))

  found = {}
  for name, run in runs.items():
    shape = (run.config.data.image_size,) * 2 + (1,)
    found[name] = trained(run.config, datasets.Spec(100, shape, tuple('0123456789')))
  assert found['pretrain'] == found['scratch'] == found['all'] > found.pop('head') > 0


@pytest.mark.thorough
def test_the_rule(planned):
  runs = planned('compare_transfer_rule.py')
  assert len(runs) == 180
  cells = {run.variant: run.config for run in runs}
  for name, config in cells.items():
    data, count, cut = name.split('_')
    budget = config.train.steps, config.data.images_per_class
    assert budget == (cells[f'{data}_{count}_head'].train.steps, None if count == 'all' else int(count))
    assert (config.data.images_per_class or 0) <= SMALLEST_CLASS[data]
    assert config.train.steps == max(200, -(-10 * images(config) // 32))
    assert config.optim.learning_rate * config.finetune.head_lr_mult == pytest.approx(1e-3)
  found = {}
  for cut in ('head', 'top1', 'top2', 'top4', 'all'):
    config = cells[f'mri_all_{cut}']
    found[cut] = trained(config, datasets.Spec(1000, (224, 224, 3), tuple('abcd')))
  assert [found[cut] for cut in ('head', 'top2', 'all')] == [TRAINABLE[cut] for cut in ('head', 'top2', 'all')]
  assert list(found.values()) == sorted(found.values()) and len(set(found.values())) == 5


def images(config):
  """How many images a cell of the rule trains on."""
  classes, every = {'cars': (196, 6146), 'folder': (4, 1000), 'idx': (10, 60_000)}[config.data.source.partition(':')[0]]
  return config.data.images_per_class * classes if config.data.images_per_class else every
