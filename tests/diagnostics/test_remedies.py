"""What is offered to a network by the verdict on it."""

import shlex

import pytest

from dnt import config as schema
from dnt import models
from dnt.diagnostics import remedies
from dnt.diagnostics.verdicts import Kind, Verdict
from tests.diagnostics.examinations import examination


def test_flags_are_words_of_a_shell():
  overrides = {'data.mean': (), 'optim.name': 'adamw', 'finetune.rates': (('head', 10.0),)}
  assert shlex.split(remedies.flags(overrides)) == [f'--config.{key}={value}' for key, value in overrides.items()]
  assert "'--config.data.mean=()'" in remedies.flags(overrides)


MODELS = {
  'mlp': {'model.name': 'mlp', 'model.norm': 'none'},
  'sigmoid mlp': {'model.name': 'mlp', 'model.norm': 'none', 'model.activation': 'sigmoid'},
  'tanh at gain 3': {'model.name': 'mlp', 'model.norm': 'none', 'model.activation': 'tanh', 'model.init_gain': 3.0},
  'highway mlp': {'model.name': 'mlp', 'model.block': 'highway', 'model.norm': 'none'},
  'plain': {'model.name': 'plain', 'model.width': 32, 'model.norm': 'none'},
  'resnet': {'model.name': 'resnet', 'model.norm': 'none'},
  'batch of 4': {'model.name': 'resnet', 'model.norm': 'none', 'train.batch_size': 4},
  'preact resnet': {'model.name': 'resnet', 'model.depth': 11, 'model.block': 'preact_bottleneck'},
  'highway': {'model.name': 'highway'},
  'densenet': {'model.name': 'densenet'},
}


@pytest.mark.parametrize('kind', [*Kind][:6])
@pytest.mark.parametrize('name', MODELS)
def test_two_or_three_overrides_that_change_the_config_and_can_be_built(name, kind):
  config = schema.override(schema.default(), MODELS[name], 'test')
  offered = remedies.choose(config, examination(), Verdict(kind, 'block', ''))
  assert offered == [] if kind == Kind.TRAINABLE else 2 <= len(offered) <= 3
  for each in offered:
    changed = schema.override(config, each, 'test')
    assert changed.to_dict() != config.to_dict()
    models.make(changed.model, 10)
    assert None not in each.values(), 'a command line cannot say None'


def test_what_is_offered_fits_the_sickness():
  def offered(kind, found=None, **overrides):
    changes = {key.replace('__', '.'): value for key, value in overrides.items()}
    config = schema.override(schema.default(), changes, 'test')
    return remedies.choose(config, found or examination(), Verdict(kind, None, ''))

  assert offered('vanishing', model__norm='none', model__init_gain=0.01)[0] == {'model.init_gain': 1.0}
  assert offered('exploding', model__name='plain')[0] == {'model.name': 'resnet'}
  small = offered('vanishing', model__norm='none', train__batch_size=8)
  assert {'model.norm': 'layer_norm'} in small
  assert not any(each.get('model.norm') == 'batch_norm' for each in small)
  # A first update of 20 % of the parameters, after a step at rate zero: 0.1 / 200 makes it a thousandth.
  rates = offered('step too large', examination(ratios=[0.0, 0.2]))
  assert rates[0] == {'optim.learning_rate': pytest.approx(5e-4)}
