"""The doctor on a labelled set: networks that train, networks that do not, and twins of these that are mended."""

import numpy as np
import pytest

from dnt import config as schema
from dnt.data import pipeline
from dnt.diagnostics import cures, diagnosis, doctor, first_steps, trial
from dnt.diagnostics.verdicts import Kind
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.training import datasets, experiment, open_options, steps

NETS = """
import flax.linen as nn

class Biased(nn.Module):
  num_classes: int
  bias: float = 0.0

  @nn.compact
  def __call__(self, x, train):
    x = x.reshape(x.shape[0], -1)
    for index in range(3):
      bias = nn.initializers.constant(self.bias if index == 1 else 0.0)
      x = nn.relu(nn.Dense(32, bias_init=bias, name=f'layer{index + 1}')(x))
    return nn.Dense(self.num_classes, name='answer')(x)

class ZeroBranches(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    zeros = nn.initializers.zeros
    x = nn.Dense(32, name='stem')(x.reshape(x.shape[0], -1))
    for index in range(4):
      y = nn.relu(nn.Dense(32, name=f'in{index}')(x))
      x = x + nn.Dense(32, kernel_init=zeros, name=f'out{index}')(y)
    return nn.Dense(self.num_classes, kernel_init=zeros, name='answer')(x)
"""
STEPS = 300  # of training, after which a network that trains has learnt something
KINDS = WELL, VANISHING, EXPLODING, COLLAPSING, DEAD, TOO_LARGE = [*Kind][:6]


def network(name, rate=0.05, **options):
  """Overrides; `model__depth` stands for model.depth."""
  given = {key.replace('__', '.'): value for key, value in options.items()}
  return {'model.name': name, 'optim.learning_rate': rate} | given


def mlp(depth, activation='relu', initializer='he', norm='none', gain=1.0, **options):
  parts = {'model__activation': activation, 'model__initializer': initializer, 'model__norm': norm}
  size = {'model__depth': depth, 'model__width': 64, 'model__scan': True, 'model__init_gain': gain}
  return network('mlp', **(size | parts | options))


def resnet(depth, **options):
  return network('resnet', model__depth=depth, **options)


# The true size of their inputs: at 8 pixels the padding takes most of the signal of a plain network.
LARGE = {'data__image_size': 32, 'train__batch_size': 16, 'model__scan': True}
TANH50 = {'depth': 50, 'activation': 'tanh', 'initializer': 'lecun', 'rate': 1e-3}
HIGHWAY50 = {'depth': 50, 'activation': 'tanh', 'initializer': 'lecun', 'model__block': 'highway'}
WIDE100 = {'depth': 100, 'model__width': 256, 'rate': 1e-3}
RESIDUAL = {'model__block': 'residual', 'rate': 1e-3}
# name: (overrides, what the doctor must say). Twins that differ in their initialization alone share a program.
NETWORKS = {
  'mlp of 4 layers': (mlp(4), WELL),
  'rate 0.1': (mlp(4, rate=0.1), WELL),
  'rate 1': (mlp(4, rate=1.0), TOO_LARGE),
  'rate 10': (mlp(4, rate=10.0), TOO_LARGE),
  'he relu 10 deep': (mlp(10), WELL),
  'adamw': (mlp(10, rate=1e-3, optim__name='adamw'), WELL),
  'rate 1 of adamw': (mlp(10, rate=1.0, optim__name='adamw'), TOO_LARGE),
  'sigmoid 30 deep': (mlp(30, 'sigmoid', 'glorot'), VANISHING),
  'sigmoid 30 deep with batch norm': (mlp(30, 'sigmoid', 'glorot', 'batch_norm'), WELL),
  'sigmoid 3 deep': (mlp(3, 'sigmoid', 'glorot'), WELL),
  'sigmoid 6 deep': (mlp(6, 'sigmoid', 'glorot'), COLLAPSING),
  'glorot relu 100 deep': (mlp(initializer='glorot', **WIDE100), VANISHING),
  'he relu 100 deep': (mlp(**WIDE100), WELL),
  'glorot relu 26 deep': (mlp(26, initializer='glorot'), VANISHING),
  'glorot relu 30 deep with adamw': (mlp(30, initializer='glorot', rate=1e-3, optim__name='adamw'), WELL),
  'he relu 30 deep': (mlp(30, rate=3e-3), WELL),
  'tiny init': (mlp(30, gain=0.01, rate=3e-3), VANISHING),
  'large init': (mlp(30, gain=3.0, rate=3e-3), EXPLODING),
  'tanh at gain 3': (mlp(gain=3.0, **TANH50), EXPLODING),
  'tanh at gain 2': (mlp(gain=2.0, **TANH50), EXPLODING),
  'tanh at gain 1': (mlp(**TANH50), WELL),
  'orthogonal tanh': (mlp(**(TANH50 | {'initializer': 'orthogonal'})), WELL),
  'tiny init of tanh': (mlp(gain=0.5, **TANH50), VANISHING),
  'large linear init': (mlp(50, 'identity', 'orthogonal', gain=1.5, rate=1e-3), EXPLODING),
  'orthogonal linear 50 deep': (mlp(50, 'identity', 'orthogonal', rate=1e-3), WELL),
  'gelu at lecun 100 deep': (mlp(100, 'gelu', 'lecun', rate=1e-3), VANISHING),
  'gelu residual 100 deep': (mlp(100, 'gelu', 'lecun', 'layer_norm', **RESIDUAL), WELL),
  'batch norm 100 deep': (mlp(100, norm='batch_norm', rate=1e-3), EXPLODING),
  'batch norm 20 deep': (mlp(20, norm='batch_norm'), WELL),
  'batch norm residual 100 deep': (mlp(100, norm='batch_norm', **RESIDUAL), WELL),
  'residual with layer norm 30 deep': (mlp(30, norm='layer_norm', **RESIDUAL), WELL),
  'highway 50 deep': (mlp(model__gate_bias=-4.0, **HIGHWAY50), WELL),
  'highway 50 deep, gates too far open': (mlp(model__gate_bias=-1.0, **HIGHWAY50), VANISHING),
  'saturated tanh': (mlp(5, 'tanh', 'lecun', gain=100.0), DEAD),
  'tanh 5 deep': (mlp(5, 'tanh', 'lecun'), WELL),
  'dead by bias': (network('labellednets:Biased', model__options={'bias': -100.0}), DEAD),
  'not dead': (network('labellednets:Biased'), WELL),
  'branches that start at zero': (network('labellednets:ZeroBranches'), WELL),
  'plain-20': (network('plain', model__depth=20), WELL),
  'resnet-20': (resnet(20), WELL),
  'resnet-14 with group norm': (resnet(14, model__norm='group_norm', model__norm_groups=8), WELL),
  'resnet-20 without norm, SkipInit': (resnet(20, model__norm='none', model__residual_scalar=0.0), WELL),
  'rate 10 of resnet-14': (resnet(14, rate=10.0), TOO_LARGE),
  'densenet in bfloat16': (
    network('densenet', model__depth=10, model__growth_rate=8, model__bottleneck=True, model__dtype='bfloat16'),
    WELL,
  ),
  'convolutional highway': (network('highway', model__depth=14, model__width=16), WELL),
  'plain-110 without norm': (network('plain', model__depth=110, model__norm='none', **LARGE), COLLAPSING),
  'resnet-110': (resnet(110, **LARGE), WELL),
}
LATE = ('plain-110 without norm',)  # ten batches of 16 do not show whether the loss falls; the trial does
QUICK = (
  'mlp of 4 layers',
  'rate 10',
  'sigmoid 30 deep',
  'large init',
  'he relu 30 deep',
  'tiny init',
  'sigmoid 6 deep',
  'dead by bias',
  'not dead',
  'branches that start at zero',
)
SICK = tuple(name for name, (_, label) in NETWORKS.items() if label != WELL)


@pytest.fixture
def configured(tmp_path, monkeypatch):
  """Makes the training config of a name."""
  (tmp_path / 'labellednets.py').write_text(NETS)
  monkeypatch.syspath_prepend(tmp_path)

  def make(name):
    config = schema.default()
    config.train.batch_size, config.train.steps = 64, STEPS
    return schema.override(config, NETWORKS[name][0], 'test')

  return make


@pytest.fixture(scope='module')
def digits():
  """Images by their size: 8 pixels or 32."""
  loaded = {}

  def load(config):
    size = config.data.image_size
    return loaded.setdefault(size, datasets.load(config, ()))

  return load


def test_the_set_is_large_and_has_every_verdict():
  labels = [label for _, label in NETWORKS.values()]
  assert len(labels) >= 30
  assert set(labels) == set(KINDS) == {NETWORKS[name][1] for name in QUICK}
  assert labels.count(WELL) >= 15 <= len(SICK)


def check(config, data, name, seeds):
  if name not in LATE:
    verdict = doctor.judge(first_steps.examine(config, data, seeds))
    assert verdict.kind == NETWORKS[name][1], verdict
  found = diagnosis.make(config, data, seeds, seconds=600)  # a busy machine decides nothing
  assert found.verdict.kind == NETWORKS[name][1], found.verdict
  assert found.state == (trial.HEALTHY if NETWORKS[name][1] == WELL else trial.SICK)


@pytest.mark.thorough
@pytest.mark.parametrize('name', QUICK)
def test_labelled_networks(configured, digits, name):
  config = configured(name)
  check(config, digits(config), name, seeds=2)


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in NETWORKS if name not in QUICK])
def test_the_other_labelled_networks(configured, digits, name):
  config = configured(name)
  check(config, digits(config), name, seeds=3)


@pytest.mark.slow
@pytest.mark.parametrize('name', NETWORKS)
def test_the_labels_are_what_training_shows(configured, digits, name):
  config = configured(name)
  data = digits(config)
  run = experiment.make(open_options.resolve(config, data), data.spec)
  mesh = mesh_lib.make_mesh(config.mesh)
  loader = pipeline.make_train_loader(run.config, data.train, mesh)
  program = compile_lib.jit(steps.make_train_steps(run.phases[0].train_step, loader.batch_at, 10), donate_argnums=0)
  state = mesh_lib.place(run.make_state(run.init_variables()), mesh_lib.replicated(mesh))
  accuracies = []
  while len(accuracies) < STEPS:
    taken = min(10, loader.max_steps(len(accuracies)))
    state, metrics = program(state, loader.arrays(len(accuracies), taken), np.int32(taken))
    accuracies += np.asarray(metrics['accuracy'][:taken]).tolist()
  learnt = np.mean(accuracies[-20:])
  assert learnt > 0.3 if NETWORKS[name][1] == WELL else learnt < 0.2, learnt


@pytest.mark.slow
@pytest.mark.parametrize('name', SICK)
def test_what_is_offered_mends(configured, digits, name):
  config = configured(name)
  data = digits(config)
  found = diagnosis.make(config, data, seeds=1, seconds=600)
  offered = cures.offer(config, found.examination, found.causes)
  if ':' in config.model.name:
    assert not any(key.startswith('model.') for each in offered for key in each), 'no option reaches their inside'
    return
  tried = cures.rank([cures.try_out(config, data, each, seconds=600) for each in offered])
  assert tried[0].state == trial.HEALTHY, tried
