"""Why a network does not train: each cause by what shows it, and which of several comes first."""

import jax
import numpy as np
import pytest

from dnt import config as schema
from dnt.diagnostics import causes, cures, diagnosis, doctor, first_steps, labels, lr_find, trial
from dnt.diagnostics.verdicts import Kind, Verdict
from dnt.training import datasets


def examination(**changes):
  """Of a network whose first two steps show nothing unusual, but for what is given."""
  columns = {
    'activation_rms': [1.0, 1.0, 1.0],
    'output_gradient_norm': [1.0, 1.0, 1.0],
    'gradient_norm': [1.0, 1.0, 1.0],
    'cosine': [0.5, 0.5, 0.5],
    'update_ratio': [1e-3, 1e-3, 1e-3],
    'first_update_ratio': [1e-3, 1e-3, 1e-3],
  }
  given = {
    'ratios': [1e-3, 1e-3],
    'rates': [0.1, 0.1],
    'peak': 0.1,
    'scale_free': False,
    'rms': 1.0,
    'outputs': np.eye(3) - 0.5,
    'losses': [2.3, 2.3],
    'batch_statistics': True,
  } | {name: value for name, value in changes.items() if name not in doctor.telemetry.metric_names.QUANTITIES}
  columns |= {name: value for name, value in changes.items() if name in (*columns, 'clip_factor', 'dead')}
  return first_steps.Examination(
    ('stem', 'block', 'head'),
    {name: np.array([values]) for name, values in columns.items()},
    0.3,
    np.array([given['losses']]),
    np.array([given['ratios']]),
    np.array(given['rates']),
    given['peak'],
    given['scale_free'],
    np.log(10),
    given['rms'],
    given['outputs'],
    given['batch_statistics'],
  )


def tried(losses=(2.3,) * 300, accuracies=None, stopped='complete', shrinkage=1.0):
  losses = np.array(losses, float)
  accuracies = np.full(len(losses), 0.1) if accuracies is None else np.array(accuracies, float)
  return trial.Trial(losses, accuracies, np.full(len(losses), 0.1), 1.0, shrinkage, 0.1, stopped, 1.0)


def find(overrides=(), result=None, **changes):
  config = schema.override(schema.default(), dict(overrides), 'test')
  return [cause.kind for cause in causes.find(config, examination(**changes), result or tried())]


LOST = {'activation_rms': [1.0, 1e-6, 1.0]}
PROBABILITIES = np.full((4, 10), 0.1)


@pytest.mark.parametrize(
  ('overrides', 'result', 'changes', 'kind'),
  [
    ({}, None, {'dead': [0.0, 1.0, np.nan]}, 'dead'),
    ({}, None, {'output_gradient_norm': [0.0, 1.0, 1.0]}, 'cut off'),
    ({}, None, LOST, 'vanishing'),
    ({}, None, {'output_gradient_norm': [1e6, 1.0, 1.0]}, 'exploding'),
    ({}, tried([2.3, 12.0, 2.4e9], stopped='not finite'), LOST, 'step too large'),
    ({}, tried([2.3, 9.0] + [50.0] * 298), {}, 'step too large'),
    ({}, tried([], stopped='not finite'), {}, 'exploding'),
    ({}, tried([2.3, 2.0, 1.5, 1.2, 1.0, 0.9, 0.8], stopped='not finite'), {}, 'exploding'),
    ({}, tried([2.3, 2.0, 1.5, 1.2, 1.0, 0.9, 4.0], stopped='not finite'), {}, 'step too large'),
    ({}, tried([2.3, 2.0, 1.5, 1.2, 1.0, 0.9, 0.8], stopped='not finite'), {'ratios': [0.5, 0.5]}, 'step too large'),
    ({'optim.learning_rate': 100.0}, tried([2.3], stopped='not finite'), {'ratios': [39.0, 1e5]}, 'step too large'),
    ({}, tried([2.3, 9.0] + [2.31] * 298), {}, 'step too large'),
    ({}, None, {'cosine': [0.5, 0.95, 0.99]}, 'collapsing to one direction'),
    ({}, None, {'cosine': [0.5, 0.95, 0.99], 'ratios': [1e-7, 1e-7]}, 'collapsing to one direction'),
    ({}, tried(accuracies=[0.5] * 150 + [0.1] * 150), {}, 'step too large'),
    ({}, None, {'outputs': PROBABILITIES}, Kind.SQUASHED),
    ({}, None, {'outputs': np.maximum(np.eye(3) - 0.5, 0)}, Kind.SQUASHED),
    ({}, None, {'outputs': np.sign(np.eye(3) - 0.5)}, Kind.SQUASHED),
    ({}, None, {'outputs': np.repeat([[0.0], [0.3]], 10, 1)}, Kind.STUCK),
    ({}, None, {'rms': 130.0}, Kind.SCALE),
    ({}, None, {'rms': 1e-3}, Kind.SCALE),
    ({'optim.weight_decay': 1.0}, tried(shrinkage=1e-3), {'ratios': [0.1, 0.1]}, Kind.DECAY),
    ({'optim.weight_decay': 100.0}, tried([2.3], stopped='not finite'), {'ratios': [10.0, 90.0]}, Kind.DECAY),
    ({'clip.name': 'global_norm'}, None, {'clip_factor': [1e-4] * 3, 'ratios': [1e-8] * 2}, Kind.CLIPPED),
    ({'train.batch_size': 2}, None, {}, Kind.SMALL_BATCH),
    ({}, None, {'ratios': [1e-7, 1e-7]}, Kind.SMALL_STEP),
    ({}, None, {}, Kind.STUCK),
  ],
)
def test_what_shows_a_cause(overrides, result, changes, kind):
  assert find(overrides, result, **changes)[0] == kind


def test_what_looks_alike_is_not_a_cause():
  assert Kind.DECAY not in find({'optim.weight_decay': 0.5}, ratios=[0.1] * 2), 'the kernels have kept their norm'
  assert Kind.DECAY in find({'optim.weight_decay': 0.5}, ratios=[0.05] * 2), 'gradients hold their norm against it'
  assert Kind.CLIPPED not in find({'clip.name': 'global_norm'}, clip_factor=[1e-4] * 3), 'the updates are large enough'
  assert Kind.CLIPPED not in find(
    {'clip.name': 'global_norm'}, clip_factor=[1e-4] * 3, ratios=[1e-8] * 2, scale_free=True
  ), 'a rule that divides by the size of the gradient undoes it'
  assert Kind.SMALL_BATCH not in find({'train.batch_size': 2}, batch_statistics=False)
  assert Kind.SMALL_BATCH in find({'train.batch_size': 32, 'train.accumulate': 16})
  assert 'collapsing to one direction' not in find((), tried([1.5] * 300), cosine=[0.5, 0.95, 0.99]), 'it learns'
  assert find((), tried([], stopped='not finite'), cosine=[0.5, 0.95, 0.99]) == ['exploding'], 'no loss stays'
  assert find(cosine=[0.5, np.inf, 0.5]) == [Kind.STUCK], 'a cosine that is not finite says nothing'
  assert Kind.SMALL_STEP not in find(ratios=[0.0, 1e-3], rates=[0.0, 0.1]), 'a warm-up begins at rate zero'


@pytest.mark.usefixtures('eight_devices')
def test_each_device_may_take_statistics_of_its_own():
  assert Kind.SMALL_BATCH not in find({'train.batch_size': 32})
  assert Kind.SMALL_BATCH in find({'train.batch_size': 32, 'model.norm_sync': 'device'})
  assert Kind.SMALL_BATCH not in find({'train.batch_size': 128, 'model.norm_sync': 'device'})


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


def test_a_head_that_starts_at_zero_does_not_say_that_its_steps_are_small():
  """Its updates are a fraction of their own sum, at any learning rate."""
  unknown = {'ratios': [np.nan, np.nan]}
  assert find(**unknown) == [Kind.STUCK]
  assert find({'clip.name': 'global_norm'}, None, clip_factor=[1e-4] * 3, **unknown) == [Kind.STUCK]
  assert find((), None, ratios=[0.0, 0.0], rates=[0.0, 0.0]) == [Kind.STUCK], 'no step has been taken yet'
  broken = tried([2.3, 90.0], stopped='not finite')
  (cause,) = causes.find(schema.default(), examination(**unknown), broken)
  assert cause.kind == Kind.LARGE_STEP and 'nan' not in cause.reason
  assert 'nan' not in doctor.judge(examination(losses=[2.3, np.inf], **unknown)).reason
  learns = tried([2.3, 2.0, 1.5, 1.2, 1.0, 0.9, 0.8], stopped='not finite')
  assert find((), learns, **unknown) == ['exploding']


@pytest.mark.parametrize('ratio', [np.nan, 0.0])
def test_no_rate_follows_from_updates_that_were_not_seen(ratio):
  found = [Verdict(Kind.SMALL_STEP, None, '')]
  offered = cures.offer(schema.default(), examination(ratios=[ratio, ratio]), found)
  assert {overrides[cures.RATE] for overrides in offered if cures.RATE in overrides} == {1e-3}
  # 300 steps of 1e-6 move the parameters by 3e-4 of their norm; to one digit.
  first, *_ = cures.offer(schema.default(), examination(ratios=[1e-6, 1e-6]), found)
  assert first == {cures.RATE: 300.0}


def test_faults_with_which_a_network_may_train():
  faults = {'dead': [0.0, 1.0, np.nan], 'outputs': PROBABILITIES}
  assert [cause.kind for cause in causes.find_faults(examination(**faults))] == [Kind.SQUASHED, 'dead']
  assert causes.find_faults(examination(**LOST)) == []


def test_a_loss_that_falls_without_the_accuracy_is_said():
  (cause,) = causes.find(schema.default(), examination(), tried(np.linspace(5.0, 0.01, 300)))
  assert cause.kind == Kind.STUCK and 'config.loss' in cause.reason


def test_a_long_warm_up_is_said():
  (cause,) = causes.find(schema.default(), examination(), tried()._replace(reached=0.01))
  assert cause.kind == Kind.STUCK and 'config.schedule.warmup' in cause.reason


@pytest.mark.parametrize(
  ('losses', 'finding', 'kind', 'state'),
  [
    ([[2.3, 2.3], [2.3, np.nan], [2.3, 2.3]], None, 'step too large', trial.DOUBTFUL),
    ([[2.3, 2.3]], None, Kind.STUCK, trial.SICK),
    ([[2.3, 2.3]], 'unexplained labels', 'trainable', trial.SICK),
    ([[2.3, 2.3]], 'unequal classes', Kind.STUCK, trial.SICK),
  ],
  ids=['one of three diverges', 'no cause', 'the labels are the cause', 'they are not'],
)
def test_what_joins_to_a_diagnosis(monkeypatch, losses, finding, kind, state):
  learns = tried(np.linspace(2.3, 0.1, 300), np.full(300, 0.9))
  result = tried() if len(losses) == 1 else learns
  found = [labels.Finding(finding, '')] if finding else []
  seen = examination()._replace(losses=np.array(losses))
  monkeypatch.setattr(first_steps, 'examine', lambda *_: seen)
  monkeypatch.setattr(trial, 'run', lambda *_: result)
  monkeypatch.setattr(labels, 'find', lambda *_: found)
  config = schema.default()
  diagnosed = diagnosis.make(config, datasets.load(config, ()))
  assert (diagnosed.verdict.kind, diagnosed.state) == (kind, state), diagnosed.verdict
  assert bool(diagnosed.causes) == (kind != Kind.TRAINABLE)


@pytest.mark.parametrize(
  ('accuracies', 'shown', 'state'),
  [
    ([0.29, 0.1, 0.1], {}, trial.SICK),
    ([0.33, 0.9, 0.9], {}, trial.HEALTHY),
    ([0.9], {}, trial.HEALTHY),
    ([0.1, 0.9, 0.9], {}, trial.DOUBTFUL),
    ([0.1, 0.1, 0.1], {}, trial.SICK),
    ([0.1], LOST, trial.SICK),
  ],
  ids=['unclear, then bad', 'unclear, then good', 'good', 'bad, then good', 'bad', 'bad as the first steps show'],
)
def test_other_initializations_are_tried_where_the_first_does_not_decide(monkeypatch, accuracies, shown, state):
  asked = []

  def run(config, data, seconds, log):
    asked.append(config.seed)
    return tried(accuracies=[accuracies[len(asked) - 1]] * 300)

  monkeypatch.setattr(first_steps, 'examine', lambda *_: examination(**shown))
  monkeypatch.setattr(trial, 'run', run)
  monkeypatch.setattr(labels, 'find', lambda *_: [])
  config = schema.default()
  diagnosed = diagnosis.make(config, datasets.load(config, ()))
  assert asked == [*range(len(accuracies))] and diagnosed.state == state
  assert diagnosed.trial.accuracies[0] == min(accuracies)


def test_another_initialization_than_that_of_the_largest_seed_is_that_of_0(monkeypatch):
  asked = []
  monkeypatch.setattr(first_steps, 'examine', lambda *_: examination())
  monkeypatch.setattr(trial, 'run', lambda config, *_: asked.append(config.seed) or tried(accuracies=[0.1] * 300))
  monkeypatch.setattr(labels, 'find', lambda *_: [])
  config = schema.default()
  config.seed = 2**32 - 1
  diagnosis.make(config, datasets.load(config, ()))
  assert asked == [2**32 - 1, 0, 1]


def test_another_initialization_is_not_tried_without_time(monkeypatch):
  slow = tried(accuracies=[0.29] * 300)._replace(seconds=40.0)
  monkeypatch.setattr(first_steps, 'examine', lambda *_: examination())
  monkeypatch.setattr(trial, 'run', lambda *_: slow)
  config = schema.default()
  assert diagnosis.make(config, datasets.load(config, ()), seconds=60.0).trial == slow


def test_all_causes_are_named_by_which_stops_training_first():
  broken = tried([2.3, 1e9], stopped='not finite')
  found = find({'optim.weight_decay': 100.0, 'train.batch_size': 2}, broken, rms=130.0, ratios=[10.0, 90.0])
  assert found[:4] == [Kind.SCALE, Kind.DECAY, 'step too large', Kind.SMALL_BATCH]


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


@pytest.mark.parametrize(
  ('changes', 'kind', 'entry'),
  [
    ({'activation_rms': [1e-6, 1e-6, 1e-6]}, 'vanishing', 'stem'),
    ({'outputs': 1e-7 * (np.eye(10) - 0.5)}, 'vanishing', 'head'),
    ({'outputs': 1e6 * (np.eye(10) - 0.5)}, 'exploding', 'head'),
    ({'outputs': np.zeros((4, 10)), 'activation_rms': [1.0, 1.0, 0.0]}, Kind.STUCK, None),
  ],
)
def test_a_signal_that_is_lost_within_one_entry(changes, kind, entry):
  found = causes.find(schema.default(), examination(**changes), tried())
  assert (found[0].kind, found[0].entry) == (kind, entry)


def test_a_rate_that_is_too_large_for_one_entry_is_said_with_it():
  broken = tried([2.3, 30.0], stopped='not finite')
  (cause,) = causes.find(schema.default(), examination(first_update_ratio=[1e-3, 2.0, 1e-3]), broken)
  assert (cause.kind, cause.entry) == ('step too large', 'block') and '2.0e+00' in cause.reason


def test_a_loss_that_is_large_from_the_first_step_on_is_not_the_work_of_small_steps():
  large = tried([900.0] * 300)
  assert find((), large) == [Kind.STUCK]
  assert find((), large, ratios=[0.05, 0.05]) == ['step too large']
  falls = tried([46.0, 140.0, *np.linspace(40, 3.3, 298)])
  assert find((), falls) == [Kind.STUCK], 'it has fallen far below its first value'


def test_a_change_of_accuracy_within_its_noise_is_no_fall():
  falls = tried(accuracies=[0.96] * 150 + [0.95] * 150)._replace(chance=0.95)
  assert 'step too large' not in find((), falls)


def test_small_steps_that_follow_from_a_cause_are_no_cause():
  found = find((), None, **LOST, ratios=[1e-8, 1e-8])
  assert found[0] == 'vanishing' and Kind.SMALL_STEP not in found


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
