"""The trial: how long it goes on, and what it says of a training's chances."""

import dataclasses

import numpy as np
import pytest

from dnt.diagnostics import trial
from dnt.training import datasets, losses


def make(accuracies, stopped='complete', chance=0.1, losses=None, reached=1.0):
  values = np.array(accuracies, float)
  ones = np.ones(len(values))
  losses = ones if losses is None else np.array(losses)
  return trial.Trial(losses, values, ones, 0.1 * ones, reached, 1.0, chance, stopped, 1.0)


def run(config, **options):
  return trial.run(config, datasets.load(config, ()), **options)


def test_a_network_that_learns_settles_the_question_early_where_steps_are_long(tiny, monkeypatch):
  tiny.train.steps = 1000
  assert run(tiny).stopped == 'complete', 'a few networks fall back later'
  monkeypatch.setattr(trial, 'SHORT', 0.0)
  found = run(tiny)
  assert found.stopped == 'settled'
  assert trial.SURE <= len(found.losses) < trial.STEPS
  assert found.learnt > trial.SETTLED
  assert trial.state(trial.probability(found)) == trial.HEALTHY


def test_a_rate_that_diverges_ends_it_and_is_sick(tiny):
  tiny.model.norm, tiny.optim.learning_rate = 'none', 1e6
  found = run(tiny)
  assert found.stopped == 'not finite'
  assert np.isfinite(found.losses).all() and len(found.losses) < 50
  assert trial.state(trial.probability(found)) == trial.SICK


def test_a_rate_that_does_nothing_takes_all_steps(tiny):
  tiny.optim.learning_rate = 1e-12
  found = run(tiny)
  assert (found.stopped, len(found.losses)) == ('complete', trial.STEPS)
  assert found.shrinkage == pytest.approx(1.0, abs=1e-6)
  assert trial.state(trial.probability(found)) == trial.SICK


def test_weight_decay_shrinks_the_kernels(tiny, monkeypatch):
  monkeypatch.setattr(trial, 'SHORT', 0.0)
  tiny.optim.learning_rate, tiny.optim.weight_decay, tiny.optim.momentum = 0.01, 2.0, 0.0
  found = run(tiny)
  assert found.shrinkage == pytest.approx(np.exp(-0.02 * len(found.losses)), rel=0.2)


def test_time_ends_it(tiny):
  tiny.optim.learning_rate = 1e-12
  said = []
  found = run(tiny, seconds=0.0, log=said.append)
  assert found.stopped == 'time' and len(found.losses) == 2
  assert 'compiling' in said[0] and 'step 2 of 300' in said[-1]


def test_chance_is_the_most_frequent_class(tiny, change_splits):
  """Of 64 labels 48 are 3: three quarters, though there are ten classes."""
  labels = np.where(np.arange(64) % 4, 3, np.arange(64) % 3).astype(np.int32)
  change_splits(lambda split: dataclasses.replace(split, labels=labels))
  assert run(tiny, seconds=0.0).chance == pytest.approx(0.75)


@pytest.fixture
def unequal(tiny, change_splits):
  """Of 64 examples 58 are of the one class and 6 of the other."""
  labels = (np.arange(64) % 10 == 9).astype(np.int32)
  change_splits(lambda split: dataclasses.replace(split, labels=labels, class_names=('common', 'rare')))
  tiny.train.batch_size = 64
  return tiny


@pytest.mark.thorough
@pytest.mark.parametrize('accumulate', [1, 2])
def test_with_class_weights_each_example_counts_by_its_class(unequal, accumulate, monkeypatch):
  """A network that says 'common' of all images."""
  monkeypatch.setattr(losses, 'correct', lambda logits, labels: (labels == 0).astype(np.float32))
  unequal.train.accumulate = accumulate
  plain = run(unequal, seconds=0.0)
  assert (plain.chance, plain.accuracy) == pytest.approx((58 / 64, 58 / 64))
  unequal.loss.balance_classes = True
  weighted = run(unequal, seconds=0.0)
  assert (weighted.chance, weighted.accuracy) == pytest.approx((0.5, 0.5))
  np.testing.assert_allclose(weighted.weights, 64, rtol=1e-6)
  assert 'weighted accuracy to 50 %' in trial.course(weighted)
  unequal.loss.balance_classes, unequal.loss.class_weights = False, (1.0, 3.0)
  assert run(unequal, seconds=0.0).chance == pytest.approx(58 / (58 + 18))


def test_accuracies_are_averaged_by_the_weights_of_their_batches():
  """Of two batches the second holds no right example, but hardly any weight."""
  found = make([0.8, 0.0] * 150, chance=0.5)._replace(weights=np.array([1.0, 0.0] * 150))
  assert found.accuracy == pytest.approx(0.8) and found.learnt == pytest.approx(0.6)
  assert trial.state(trial.probability(found)) == trial.HEALTHY
  assert trial.is_settled([1.0, 0.0] * 50, [1.0, 0.0] * 50, np.full(300, 0.1), 0.5)
  assert trial.mean([0.3], [0.0]) == 0.0


@pytest.mark.parametrize(
  ('accuracies', 'rates', 'settled'),
  [
    ([0.9] * 99, [0.1] * 300, False),
    ([0.9] * 100, [0.1] * 300, True),
    ([0.4] * 100, [0.1] * 300, False),
    ([0.9] * 75 + [0.7] * 25, [0.1] * 300, False),
    ([0.9] * 100, np.linspace(0, 1, trial.STEPS), False),
    ([0.9] * 100, [0.1] * 150 + [1e4] * 150, False),
    ([0.9] * 100, [0.1] * 50 + [0.01] * 250, True),
  ],
  ids=['short', 'well', 'badly', 'falls', 'warm-up', 'rises later', 'decays'],
)
def test_what_settles_the_question(accuracies, rates, settled):
  assert trial.is_settled(accuracies, [1.0] * len(accuracies), np.array(rates), 0.1) == settled


def test_the_probability_falls_with_what_was_learnt_and_rises_with_doubt():
  accuracies = (0.1, 0.2, 0.3, 0.5, 0.9)
  found = [trial.probability(make([value] * trial.STEPS)) for value in accuracies]
  assert found == sorted(found, reverse=True)
  assert found[0] > trial.DOUBT[1] and found[-1] < trial.DOUBT[0]
  half = make([0.1] * 30 + [0.14] * 30, 'time')
  assert trial.probability(half) < trial.probability(make([0.12] * trial.STEPS))
  assert trial.probability(make([0.9] * 20, 'not finite')) > 0.95


@pytest.mark.parametrize(('chance', 'limit'), [(0.5, 7 / 12), (0.1, 0.25), (0.01, 0.025), (1.0, 1.0)])
def test_what_counts_as_failed_depends_on_the_number_of_classes(chance, limit):
  assert trial.limit(chance) == pytest.approx(limit)
  low, high = (make([chance + part * (limit - chance)] * trial.STEPS, chance=chance) for part in (0.3, 2.5))
  assert trial.state(trial.probability(high)) == trial.HEALTHY
  assert chance == 1 or trial.state(trial.probability(low)) == trial.SICK


def test_a_warm_up_that_is_longer_than_the_trial_leaves_the_question_open(tiny):
  tiny.train.steps, tiny.schedule.warmup = 100_000, '50000'
  tiny.optim.learning_rate = 1e-6
  found = run(tiny)
  assert found.reached == pytest.approx(trial.STEPS / 50_000, rel=0.01)
  assert trial.state(trial.probability(found)) == trial.DOUBTFUL
  assert trial.state(trial.probability(found._replace(reached=1.0))) == trial.SICK


def test_one_class_alone_is_learnt():
  assert make([1.0] * 300, chance=1.0).learnt == 1.0


def test_later_phases_are_trained_too(tiny):
  """The head alone learns at a rate at which the whole network diverges."""
  tiny.train.steps = 300
  tiny.model.norm = 'none'
  tiny.finetune.trainable, tiny.finetune.unfreeze = 'head', (('50%', 'all'),)
  tiny.finetune.rates = (('head', 1e-6),)
  tiny.optim.learning_rate = 1e5
  found = run(tiny)
  assert found.stopped == 'not finite' and len(found.losses) >= 150
