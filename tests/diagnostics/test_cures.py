"""What is offered against a cause, and where it leads."""

import jax
import numpy as np
import pytest

from dnt import config as schema
from dnt.diagnostics import cures, lr_find, trial
from dnt.diagnostics.verdicts import Kind, Verdict
from dnt.training import datasets
from tests.diagnostics.examinations import examination


def larger(**overrides):
  """What is offered against a small batch beside another norm."""
  config = schema.override(schema.default(), {f'train.{key}': value for key, value in overrides.items()}, 'test')
  config.model.norm_sync = 'device' if len(jax.devices()) > 1 else 'global'
  _, offered, *_ = cures.offer(config, examination(), [Verdict(Kind.SMALL_BATCH, None, '')])
  return offered


def test_a_batch_that_is_large_enough_is_only_taken_in_larger_parts():
  assert larger(batch_size=4) == {'train.batch_size': 32}
  assert larger(batch_size=16, accumulate=4) == {'train.batch_size': 32, 'train.accumulate': 1}
  assert larger(batch_size=256, accumulate=64) == {'train.accumulate': 8}
  assert larger(batch_size=100, accumulate=20) == {'train.accumulate': 2}, '3 does not divide it, and 4 leaves 25'
  assert larger(batch_size=40, accumulate=8) == {'train.accumulate': 1}


@pytest.mark.usefixtures('eight_devices')
def test_each_device_gets_a_large_enough_part():
  assert larger(batch_size=64) == {'train.batch_size': 256}
  assert larger(batch_size=512, accumulate=8) == {'train.accumulate': 2}


@pytest.mark.parametrize('ratio', [np.nan, 0.0])
def test_no_rate_follows_from_updates_that_were_not_seen(ratio):
  found = [Verdict(Kind.SMALL_STEP, None, '')]
  offered = cures.offer(schema.default(), examination(ratios=[ratio, ratio]), found)
  assert {overrides[cures.RATE] for overrides in offered if cures.RATE in overrides} == {1e-3}
  # 300 steps of 1e-6 move the parameters by 3e-4 of their norm; to one digit.
  first, *_ = cures.offer(schema.default(), examination(ratios=[1e-6, 1e-6]), found)
  assert first == {cures.RATE: 300.0}


@pytest.mark.parametrize('kind', [*Kind][1:])
def test_an_offer_changes_the_config_and_can_be_built(kind):
  config = schema.override(schema.default(), {'model.norm': 'none', 'train.batch_size': 4}, 'test')
  if kind == Kind.CLIPPED:
    config.clip.name = 'global_norm'
  found = Verdict(kind, 'block', '')
  offered = cures.offer(config, examination(), [found])
  assert 1 <= len(offered) <= cures.MOST
  for overrides in offered:
    changed = schema.override(config, overrides, 'test')
    schema.validate(changed)
    assert changed.to_dict() != config.to_dict()
  assert cures.offer(config, examination(), []) == []


def test_an_offer_answers_the_cause_alone_first_and_all_causes_together_later():
  decay = {'optim.weight_decay': 10.0}
  config = schema.override(schema.default(), decay | {'clip.name': 'value', 'clip.threshold': 1e-6}, 'test')
  found = [Verdict(kind, None, '') for kind in (Kind.DECAY, Kind.CLIPPED)]
  first, second, *_ = cures.offer(config, examination(), found)
  assert first == {'optim.weight_decay': cures.USUAL_DECAY}
  assert second == first | {'clip.name': 'none'}


def test_of_ones_own_module_no_option_of_a_network_of_dnt_is_offered(wide_network):
  offered = cures.offer(wide_network, examination(), [Verdict(Kind.VANISHING, None, '')])
  assert offered and not any(key.startswith('model.') for each in offered for key in each)


@pytest.mark.parametrize('kind', [*Kind][1:])
def test_of_pretrained_weights_no_other_network_is_offered(kind):
  given = {'model.name': 'pretrained', 'train.init_from': 'runs/other', 'train.batch_size': 4}
  config = schema.override(schema.default(), given, 'test')
  offered = cures.offer(config, examination(), [Verdict(kind, 'block', '')])
  assert not any(key.startswith('model.') for overrides in offered for key in overrides)
  inside = ('dead', Kind.CUT_OFF, Kind.SQUASHED)
  assert bool(offered) == (kind not in inside)


@pytest.mark.thorough
def test_a_range_test_of_a_cure_starts_from_pretrained_weights(tiny, saved, tmp_path, monkeypatch):
  _, expected, _ = saved(tiny)
  tiny.train.init_from, tiny.seed = str(tmp_path / 'run'), 1
  started = []

  def sweep(run, mesh, state, loader):
    started.append(state.params)
    return lr_find.Sweep(None, *[np.ones(1)] * 3, '', {}, True)

  monkeypatch.setattr(lr_find, 'sweep', sweep)
  assert cures._find_rates(tiny, datasets.load(tiny, ())) == []
  jax.tree.map(np.testing.assert_array_equal, started[0], expected.params)


@pytest.mark.thorough
def test_a_cure_is_tried_with_a_rate_that_suits_it(tiny):
  """Against a rate of 1e-12 no change of the network helps, until a range test finds a rate."""
  tiny.optim.learning_rate = 1e-12
  data = datasets.load(tiny, ())
  said = []
  found = cures.try_out(tiny, data, {'model.norm': 'layer_norm'}, 60, said.append)
  assert found.state == trial.HEALTHY
  assert found.overrides.keys() == {'model.norm', cures.RATE} and found.overrides[cures.RATE] > 1e-5
  assert any('range test' in text for text in said)


def test_cures_are_ranked_by_where_they_lead(tiny):
  data = datasets.load(tiny, ())
  refused = cures.try_out(tiny, data, {'model.block': 'nonsense'}, 60)
  assert refused.state == 'cannot be run' and 'nonsense' in refused.reason
  sick = cures.Tried({}, trial.SICK, 0.1, 300, '')
  far, less = (cures.Tried({'a': 1, 'b': 2}, trial.HEALTHY, learnt, 300, '') for learnt in (0.99, 0.6))
  small = far._replace(overrides={'a': 1}, learnt=0.97)
  assert cures.rank([refused, sick, less, far, small]) == [small, far, less, sick, refused]


def test_all_causes_together_leave_out_rates_that_follow_from_another():
  config = schema.override(schema.default(), {'model.init_gain': 0.1, 'model.norm': 'none'}, 'test')
  found = [Verdict(kind, None, '') for kind in ('vanishing', Kind.SMALL_STEP)]
  *others, sound = cures.offer(config, examination(), found)
  assert not any(cures.RATE in overrides for overrides in others)
  assert sound['optim.learning_rate'] == 1e-3


def test_what_is_sound_has_usual_values_where_others_can_harm():
  odd = {'model.norm_epsilon': 1e4, 'finetune.rates': (('head', 1e4),), 'loss.label_smoothing': 0.9}
  config = schema.override(schema.default(), odd, 'test')
  sound = cures.offer(config, examination(), [Verdict(Kind.VANISHING, None, '')])[-1]
  assert {key: sound[key] for key in odd} == {
    'model.norm_epsilon': schema.default().model.norm_epsilon,
    'finetune.rates': (),
    'loss.label_smoothing': 0.0,
  }
  assert 'optim.epsilon' not in sound


@pytest.mark.parametrize(('epsilon', 'offered'), [(None, False), (1e-8, False), (1e-2, True)])
def test_what_an_option_is_anyhow_is_no_change(epsilon, offered):
  config = schema.override(schema.default(), {'optim.name': 'adamw', 'optim.epsilon': epsilon}, 'test')
  sound = cures.offer(config, examination(), [Verdict(Kind.VANISHING, None, '')])[-1]
  assert ('optim.epsilon' in sound) == offered and sound.get('optim.epsilon') is None
