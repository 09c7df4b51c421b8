"""Why a network does not train: each cause by what shows it, and which of several comes first."""

import numpy as np
import pytest

from dnt import config as schema
from dnt.diagnostics import causes, doctor
from dnt.diagnostics.verdicts import Kind
from tests.diagnostics.examinations import LOST, examination, tried


def find(overrides=(), result=None, **changes):
  config = schema.override(schema.default(), dict(overrides), 'test')
  return [cause.kind for cause in causes.find(config, examination(**changes), result or tried())]


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


def test_faults_with_which_a_network_may_train():
  faults = {'dead': [0.0, 1.0, np.nan], 'outputs': PROBABILITIES}
  assert [cause.kind for cause in causes.find_faults(examination(**faults))] == [Kind.SQUASHED, 'dead']
  assert causes.find_faults(examination(**LOST)) == []


@pytest.mark.parametrize(
  ('limits', 'classes', 'squashed'),
  [
    ((0.0, 1.0), 10, True),
    ((0.0, 1.0), 2, True),
    ((-0.01, 0.01), 10, True),
    ((-1.0, 1.0), 10, True),
    ((-2.0, 2.0), 1000, True),
    ((-30.0, 30.0), 10, False),
    ((-30.0, 30.0), 1000, False),
    ((-np.inf, 1.0), 10, False),
    ((0.0, 1.0), 1, False),
  ],
)
def test_outputs_whose_range_keeps_the_loss_high_are_squashed(limits, classes, squashed):
  outputs = np.random.default_rng(0).normal(size=(8, classes)) / 100
  found = causes.find_faults(examination(outputs=outputs)._replace(output_range=limits))
  assert [cause.kind for cause in found] == [Kind.SQUASHED] * squashed
  assert not squashed or f'between {limits[0]:.3g} and {limits[1]:.3g}' in found[0].reason


def test_labels_that_cannot_be_learned_leave_no_cause_that_the_outcome_alone_shows():
  def unlearnable(overrides=(), result=None, **changes):
    config = schema.override(schema.default(), dict(overrides), 'test')
    found = causes.find(config, examination(**changes), result or tried(), learnable=False)
    return [cause.kind for cause in found]

  harmless = {
    'a small batch': ({'train.batch_size': 8}, None, {}),
    'alike at the last entries': ({}, None, {'cosine': [0.5, 0.95, 0.99]}),
    'large updates': ({}, None, {'ratios': [0.5, 0.5], 'losses': [2.3, 2.5]}),
    'a leap': ({}, tried([2.3, 9.0] + [2.31] * 298), {}),
    'an accuracy that falls': ({}, tried(accuracies=[0.2] * 150 + [0.1] * 150), {}),
  }
  for name, (overrides, result, changes) in harmless.items():
    assert find(overrides, result, **changes) != [Kind.STUCK], name
    assert unlearnable(overrides, result, **changes) == [Kind.STUCK], name
  assert unlearnable({}, tried([2.3, 9.0] + [50.0] * 298)) == [Kind.LARGE_STEP], 'it diverges'
  assert unlearnable(ratios=[1e-7, 1e-7]) == [Kind.SMALL_STEP], 'nothing moves'
  assert unlearnable(**LOST)[0] == Kind.VANISHING


@pytest.mark.parametrize(
  ('steps', 'shrinkage', 'found'), [(2, 0.5, True), (2, 0.85, False), (300, 0.5, False), (1, 0.95, False)]
)
def test_few_steps_need_shrink_the_kernels_no_further_than_their_decay_does(steps, shrinkage, found):
  """A decay of 3 and a rate of 0.1 take 30 % at each step."""
  decay = {'optim.name': 'adamw', 'optim.learning_rate': 0.1, 'optim.weight_decay': 3.0}
  short = tried([2.3] * steps, stopped='time', shrinkage=shrinkage)
  assert (Kind.DECAY in find(decay, short, ratios=[0.5, 0.5])) == found


def test_unusual_options_are_named_where_no_cause_was_found():
  def said(**overrides):
    config = schema.override(schema.default(), {key.replace('__', '.'): value for key, value in overrides.items()}, '')
    (cause,) = causes.find(config, examination(), tried())
    assert cause.kind == Kind.STUCK
    return cause.reason

  assert said().endswith('no cause was found')
  assert said(loss__label_smoothing=0.99).endswith('try the default of config.loss.label_smoothing')
  both = said(loss__class_weights=(1e5, *[1.0] * 9), optim__name='adamw', optim__b1=0.9999)
  assert both.endswith('try the defaults of config.loss.class_weights, config.optim.b1')
  assert said(optim__name='adamw', optim__epsilon=1e-8).endswith('no cause was found'), 'it is that anyhow'


def test_a_loss_that_falls_without_the_accuracy_is_said():
  (cause,) = causes.find(schema.default(), examination(), tried(np.linspace(5.0, 0.01, 300)))
  assert cause.kind == Kind.STUCK and 'config.loss' in cause.reason


def entropy(*parts):
  return -np.sum(np.array(parts) * np.log(parts))


def test_of_unequal_classes_a_loss_stays_at_guessing_below_that_of_equal_ones():
  """90 % of the images are of one of two classes: networks start at log 2, and guessing has 0.325."""
  uniform, guessing = np.log(2), entropy(0.9, 0.1)
  stuck = tried([uniform, 0.4, *[guessing] * 298], [0.9] * 300)._replace(chance=0.9)

  def found(result, **changes):
    each = examination(losses=[uniform, 0.4], guessing=guessing, **changes)._replace(uniform_loss=uniform)
    return causes.find(schema.default(), each, result)

  assert found(stuck, cosine=[0.5, 0.95, 0.99])[0].kind == 'collapsing to one direction'
  assert found(stuck, ratios=[0.5, 0.5])[0].kind == 'step too large'
  (nothing,) = found(stuck)
  assert nothing.kind == Kind.STUCK and 'config.loss' not in nothing.reason, 'the loss falls to that of guessing alone'
  falls = stuck._replace(losses=np.linspace(uniform, 0.01, 300))
  assert 'config.loss' in found(falls)[0].reason
  broken = tried([uniform, 0.6, 0.5, 0.45, 0.4, 0.4, 0.4], stopped='not finite')
  assert found(broken)[0].kind == 'step too large', 'it was not better than guessing'


def test_of_very_unequal_classes_a_start_at_equal_ones_is_no_divergence():
  """One image of 100 is of the second class: guessing has 0.056, and the loss falls from log 2 on its way there."""
  falls = tried(np.linspace(np.log(2), 0.2, 300), [0.99] * 300)._replace(chance=0.99)
  each = examination(guessing=entropy(0.99, 0.01), ratios=[0.05, 0.05])._replace(uniform_loss=np.log(2))
  assert [cause.kind for cause in causes.find(schema.default(), each, falls)] == [Kind.STUCK]


def test_a_long_warm_up_is_said():
  (cause,) = causes.find(schema.default(), examination(), tried()._replace(reached=0.01))
  assert cause.kind == Kind.STUCK and 'config.schedule.warmup' in cause.reason


def test_all_causes_are_named_by_which_stops_training_first():
  broken = tried([2.3, 1e9], stopped='not finite')
  found = find({'optim.weight_decay': 100.0, 'train.batch_size': 2}, broken, rms=130.0, ratios=[10.0, 90.0])
  assert found[:4] == [Kind.SCALE, Kind.DECAY, 'step too large', Kind.SMALL_BATCH]


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
