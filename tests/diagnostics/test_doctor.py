"""The doctor on a labelled set: networks known to train and networks known not to, and the twins that mend them."""

import json

import numpy as np
import pytest

from dnt import config as schema
from dnt import experiment
from dnt.diagnostics import doctor, doctor_report

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
"""
CUSTOM = {'model.name': 'biasednets:Biased', 'model.depth': None, 'model.width': None, 'model.scan': False}


def mlp(depth, activation='relu', initializer='he', norm='none', **options):
  return {
    'model.name': 'mlp',
    'model.depth': depth,
    'model.width': 64,
    'model.scan': True,
    'model.activation': activation,
    'model.initializer': initializer,
    'model.norm': norm,
    'optim.learning_rate': 0.05,
    **{key.replace('__', '.'): value for key, value in options.items()},
  }


def net(name, depth, **options):
  return {
    'model.name': name,
    'model.depth': depth,
    'optim.learning_rate': 0.05,
    **{key.replace('__', '.'): value for key, value in options.items()},
  }


RESIDUAL = {'model__block': 'residual'}
HIGHWAY = {'model__block': 'highway'}
# name: (overrides, what the doctor may say)
QUICK = {
  'mlp of 4 layers': (mlp(4), 'trainable'),
  'he relu 10 deep': (mlp(10), 'trainable'),
  'sigmoid 30 deep': (mlp(30, 'sigmoid', 'glorot'), 'vanishing'),
  'rate 10': (mlp(4, optim__learning_rate=10.0), 'step too large'),
  'dead by bias': ({**CUSTOM, 'model.options': {'bias': -100.0}}, 'dead'),
  'not dead': (CUSTOM, 'trainable'),
}
FULL = QUICK | {
  'glorot relu 100 deep': (mlp(100, initializer='glorot'), 'vanishing'),
  'he relu 100 deep': (mlp(100, model__width=256, optim__learning_rate=1e-3), 'trainable'),
  'batch norm 30 deep': (mlp(30, norm='batch_norm'), 'trainable'),
  'tanh at gain 3': (mlp(50, 'tanh', 'lecun', model__init_gain=3.0), 'exploding'),
  'residual with layer norm 30 deep': (mlp(30, norm='layer_norm', **RESIDUAL), 'trainable'),
  'highway 50 deep': (mlp(50, 'tanh', 'lecun', **HIGHWAY), 'trainable'),
  'tanh 30 deep': (mlp(30, 'tanh', 'lecun'), 'trainable'),
  'orthogonal tanh 50 deep': (mlp(50, 'tanh', 'orthogonal'), 'trainable'),
  'orthogonal linear 100 deep': (mlp(100, 'identity', 'orthogonal', optim__learning_rate=1e-3), 'trainable'),
  'plain-20': (net('plain', 20), 'trainable'),
  'resnet-20': (net('resnet', 20), 'trainable'),
  'resnet-14 with group norm': (net('resnet', 14, model__norm='group_norm', model__norm_groups=8), 'trainable'),
  'resnet-20 without norm, SkipInit': (net('resnet', 20, model__norm='none', model__residual_scalar=0.0), 'trainable'),
  'densenet': (net('densenet', 10, model__growth_rate=8, model__bottleneck=True), 'trainable'),
  'convolutional highway': (net('highway', 14, model__width=16), 'trainable'),
  'sigmoid 3 deep': (mlp(3, 'sigmoid', 'glorot'), 'trainable'),
  'rate 0.1': (mlp(4, optim__learning_rate=0.1), 'trainable'),
  'adamw': (mlp(10, optim__name='adamw', optim__learning_rate=1e-3), 'trainable'),
  'sigmoid 30 deep with batch norm': (mlp(30, 'sigmoid', 'glorot', 'batch_norm'), 'trainable'),
  'tiny init': (mlp(20, model__init_gain=0.01), 'vanishing'),
  'tiny init of tanh': (mlp(50, 'tanh', 'lecun', model__init_gain=0.5), 'vanishing'),
  'large init': (mlp(30, model__init_gain=3.0), 'exploding'),
  'large linear init': (mlp(50, 'identity', 'lecun', model__init_gain=1.5), 'exploding'),
  'gelu at lecun 100 deep': (mlp(100, 'gelu', 'lecun'), 'vanishing'),
  'batch norm 100 deep': (mlp(100, norm='batch_norm'), 'exploding'),
  'he relu 300 deep': (mlp(300, model__width=256), 'collapsing'),
  'rate 1000 of resnet-14': (net('resnet', 14, optim__learning_rate=1000.0), 'step too large'),
  'rate 1 of adamw': (mlp(10, optim__name='adamw', optim__learning_rate=1.0), 'step too large'),
  'plain-110 without norm': (net('plain', 110, model__norm='none', model__scan=True), 'collapsing'),
  'saturated tanh': (mlp(5, 'tanh', 'lecun', model__init_gain=100.0), 'dead'),
}


@pytest.fixture
def digits(tmp_path, monkeypatch):
  """Makes a training config on digits from overrides."""
  (tmp_path / 'biasednets.py').write_text(NETS)
  monkeypatch.syspath_prepend(tmp_path)

  def make(overrides):
    config = schema.default()
    config.data.source = 'digits'
    config.train.batch_size, config.train.steps = 64, 100
    return doctor.apply(config, overrides)

  return make


@pytest.fixture(scope='module')
def pictures():
  return experiment.load_data(schema.default(), ())


@pytest.mark.parametrize('name', QUICK)
def test_labelled_networks(digits, pictures, name, one_device):
  overrides, label = QUICK[name]
  verdict = doctor.judge(doctor.examine(digits(overrides), pictures, seeds=2))
  assert verdict.kind == label, verdict


@pytest.mark.slow
@pytest.mark.parametrize('name', FULL)
def test_all_labelled_networks(digits, pictures, name, one_device):
  overrides, label = FULL[name]
  verdict = doctor.judge(doctor.examine(digits(overrides), pictures, seeds=3))
  assert verdict.kind == label, verdict


def test_the_set_is_large_enough_and_has_every_verdict():
  assert len(FULL) >= 30
  assert {label for _, label in FULL.values()} == set(doctor.VERDICTS)


def test_where_it_begins(digits, pictures, one_device):
  verdict = doctor.judge(doctor.examine(digits(FULL['dead by bias'][0]), pictures, seeds=1))
  assert verdict.entry == 'layer3', 'its relu stands outside of layer2, whose own output is not zero'


@pytest.mark.slow
def test_what_is_offered_mends(digits, pictures, tmp_path, capsys, one_device):
  config = digits(FULL['sigmoid 30 deep'][0])
  content = doctor_report.run(config, tmp_path, seeds=1, trying=True)
  assert content == json.loads((tmp_path / 'probe.json').read_text())
  assert content['verdict']['kind'] == 'vanishing'
  best = content['tried'][0]
  assert best['verdict']['kind'] == 'trainable'
  losses = [each['loss'] for each in content['tried'] if each['verdict']['kind'] == 'trainable']
  assert losses == sorted(losses)
  assert (tmp_path / 'probe.png').exists()
  out = capsys.readouterr().out
  assert 'verdict: vanishing from' in out
  assert '--config.model.norm=batch_norm' in out


@pytest.mark.parametrize('kind', doctor.VERDICTS)
def test_offers_change_the_config_and_are_valid(digits, kind):
  for overrides in ({}, mlp(30), net('plain', 20, model__width=16)):
    config = digits(overrides)
    offered = doctor.remedies(config, kind)
    assert bool(offered) == (kind != 'trainable')
    for each in offered:
      assert doctor.apply(config, each).to_dict() != config.to_dict()


def examination(**changes):
  """A healthy one of four entries and one seed, with other columns."""
  columns = {
    'activation_rms': [1.0, 1.0, 1.0, 1.0],
    'backward': [1.0, 1.0, 1.0, 1.0],
    'cosine': [0.5, 0.5, 0.5, 0.5],
    'dead': [0.0, 0.0, 0.0, np.nan],
  }
  losses = changes.pop('losses', [2.3, 1.0])
  columns = {name: np.array([values]) for name, values in (columns | changes).items()}
  names = ('stem', 'block', 'last', 'head')
  return doctor.Examination(names, columns, 0.3, np.array([losses]), np.full((1, 2), 1e-3), 2.3)


@pytest.mark.parametrize(
  ('changes', 'kind', 'entry'),
  [
    ({}, 'trainable', None),
    ({'dead': [0.0, 0.95, 0.99, np.nan]}, 'dead', 'block'),
    ({'activation_rms': [1.0, 0.1, 1e-6, 1.0]}, 'vanishing', 'last'),
    ({'activation_rms': [1.0, 1e3, 1e6, 1.0]}, 'exploding', 'block'),
    ({'activation_rms': [1.0, np.nan, np.nan, np.nan]}, 'exploding', 'block'),
    ({'backward': [1e-6, 1e-3, 1e-1, 1.0]}, 'vanishing', 'block'),
    ({'backward': [1e6, 1e3, 1e1, 1.0]}, 'exploding', 'block'),
    ({'cosine': [0.5, 0.9999, 0.9999, 0.5]}, 'collapsing', 'block'),
    ({'losses': [2.3, 9.0]}, 'step too large', None),
    ({'losses': [2.3, np.nan]}, 'step too large', None),
  ],
)
def test_judgement(changes, kind, entry):
  verdict = doctor.judge(examination(**changes))
  assert (verdict.kind, verdict.entry) == (kind, entry)
