import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.utils import class_weight

from dnt import config as schema
from dnt import errors
from dnt.data import examples
from dnt.data.transforms import mixing
from dnt.training import losses

LOGITS = 3 * np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 5, 16).astype(np.int32)
WEIGHTS = (0.5, 2.0, 1.0, 0.0, 3.0)


def torch_losses(torch, logits, target, smoothing, weights, reduction='none'):
  """`target` is labels, or probabilities."""
  target = torch.tensor(target)
  return torch.nn.functional.cross_entropy(
    torch.as_tensor(logits),
    target if target.is_floating_point() else target.long(),
    weight=torch.tensor(weights) if weights else None,
    label_smoothing=smoothing,
    reduction=reduction,
  )


def mean(logits, smoothing, weights):
  values, weight = losses.cross_entropy(logits, jnp.asarray(LABELS), smoothing, weights)
  return jnp.sum(values) / jnp.sum(weight)


@pytest.mark.parametrize('weights', [(), WEIGHTS], ids=['equal', 'weighted'])
@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.9])
def test_mean_and_gradient_equal_torch(torch_reference, smoothing, weights):
  value, gradient = jax.value_and_grad(mean)(jnp.asarray(LOGITS), smoothing, weights)

  def compute(torch):
    logits = torch.tensor(LOGITS, requires_grad=True)
    loss = torch_losses(torch, logits, LABELS, smoothing, weights, 'mean')
    loss.backward()
    return loss, logits.grad

  expected, expected_gradient = torch_reference(compute)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('weights', [(), WEIGHTS], ids=['equal', 'weighted'])
def test_each_loss_equals_torch(torch_reference, weights):
  actual, weight = losses.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), 0.1, weights)
  expected = torch_reference(lambda torch: torch_losses(torch, LOGITS, LABELS, 0.1, weights))
  np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(weight, np.array(weights or (1.0,) * 5, np.float32)[LABELS])


def test_bfloat16_logits_are_reckoned_in_float32():
  logits = jnp.asarray(LOGITS, jnp.bfloat16)
  values, weight = losses.cross_entropy(logits, jnp.asarray(LABELS), 0.1, WEIGHTS)
  assert values.dtype == weight.dtype == jnp.float32
  np.testing.assert_array_equal(mean(logits, 0.1, WEIGHTS), mean(logits.astype(jnp.float32), 0.1, WEIGHTS))


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_huge_logits_are_finite(smoothing):
  logits = jnp.asarray([[1e30, 0.0, -1e30], [-1e4, 1e4, 0.0]], jnp.float32)
  labels = jnp.asarray([0, 0])
  values, _ = losses.cross_entropy(logits, labels, smoothing, ())
  gradient = jax.grad(lambda x: jnp.sum(losses.cross_entropy(x, labels, smoothing, ())[0]))(logits)
  assert np.isfinite(values).all() and np.isfinite(gradient).all()
  if not smoothing:
    np.testing.assert_allclose(values, [0.0, 2e4])


def test_a_class_that_is_masked_out_does_no_harm():
  values, _ = losses.cross_entropy(jnp.asarray([[0.0, 0.0, -jnp.inf]]), jnp.asarray([1]), 0.0, ())
  np.testing.assert_allclose(values, np.log(2), rtol=1e-6)


MIXED = mixing.Mixed(LABELS, np.roll(LABELS, 1), np.linspace(0, 1, 16, dtype=np.float32))


@pytest.mark.parametrize('weights', [(), WEIGHTS], ids=['equal', 'weighted'])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_a_mixture_has_the_mean_of_both_losses_and_weights(torch_reference, smoothing, weights):
  values, weight = losses.cross_entropy(jnp.asarray(LOGITS), MIXED, smoothing, weights)
  each = torch_reference(
    lambda torch: [torch_losses(torch, LOGITS, labels, smoothing, weights) for labels in (MIXED.first, MIXED.second)]
  )
  np.testing.assert_allclose(values, MIXED.fraction * each[0] + (1 - MIXED.fraction) * each[1], rtol=1e-5, atol=1e-6)
  of_class = np.array(weights or (1.0,) * 5, np.float32)
  expected = MIXED.fraction * of_class[MIXED.first] + (1 - MIXED.fraction) * of_class[MIXED.second]
  np.testing.assert_allclose(weight, expected, rtol=1e-6)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_a_mixture_is_the_cross_entropy_with_its_probabilities(torch_reference, smoothing):
  values, _ = losses.cross_entropy(jnp.asarray(LOGITS), MIXED, smoothing, ())
  one_hot = np.eye(5, dtype=np.float32)
  target = MIXED.fraction[:, None] * one_hot[MIXED.first] + (1 - MIXED.fraction)[:, None] * one_hot[MIXED.second]
  expected = torch_reference(lambda torch: torch_losses(torch, LOGITS, target, smoothing, ()))
  np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('weights', [(), WEIGHTS], ids=['equal', 'weighted'])
def test_a_fraction_of_one_is_no_mixture(weights):
  mixed = MIXED._replace(fraction=np.ones(16, np.float32))
  found = losses.cross_entropy(jnp.asarray(LOGITS), mixed, 0.1, weights)
  expected = losses.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), 0.1, weights)
  for value, other in zip(found, expected, strict=True):
    np.testing.assert_array_equal(value, other)


def test_a_mixture_is_right_by_its_larger_share():
  logits = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
  labels = mixing.Mixed(jnp.zeros(3, int), jnp.ones(3, int), jnp.asarray([0.7, 0.5, 0.3]))
  np.testing.assert_array_equal(losses.correct(logits, labels), [1.0, 1.0, 0.0])


def test_make_reads_the_config():
  config = schema.default().loss
  config.label_smoothing = 0.2
  config.class_weights = WEIGHTS
  actual = losses.make(config)(jnp.asarray(LOGITS), jnp.asarray(LABELS))
  expected = losses.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), 0.2, WEIGHTS)
  for value, other in zip(actual, expected, strict=True):
    np.testing.assert_array_equal(value, other)


def test_weights_that_are_not_one_a_class_are_refused_before_anything_runs():
  with pytest.raises(errors.InputError, match=r'class_weights .*\b2 .*\b5 classes'):
    jax.eval_shape(lambda x, y: losses.cross_entropy(x, y, 0.0, (1.0, 2.0)), LOGITS, LABELS)


def test_balanced_weights_are_those_of_scikit_learn(caplog):
  labels = np.repeat(np.arange(3, dtype=np.int32), (1, 6, 293))
  names = ('rare', 'some', 'many')
  source = examples.Examples('set', 'train', names, (1, 1, 1), np.zeros((300, 1, 1, 1), np.uint8), labels)
  found = losses.balanced_weights(source)
  expected = class_weight.compute_class_weight('balanced', classes=np.arange(3), y=labels)
  np.testing.assert_allclose(found, expected)
  assert all(type(value) is float for value in found), 'as JSON holds them'
  assert np.mean(np.asarray(found)[labels]) == pytest.approx(1)
  empty = dataclasses.replace(source, class_names=(*names, 'none', 'nor this'))
  with caplog.at_level(logging.INFO, 'dnt'):
    for _ in range(2):  # as the trials of a program
      assert losses.balanced_weights(empty) == (*found, 0, 0), 'as scikit-learn, which does not know of the others'
  assert caplog.text.count("train of set has no image of 'none', 'nor this': the weight is 0") == 1
  with pytest.raises(errors.InputError, match=r"train\[:9\] of set has no image of 'none', .* larger .*train_split"):
    losses.balanced_weights(dataclasses.replace(empty, split='train[:9]'))
  with pytest.raises(errors.InputError, match='labels of set'):
    losses.balanced_weights(dataclasses.replace(source, labels=None))


def split(labels, classes):
  images = np.zeros((len(labels), 1, 1, 3), np.uint8)
  return examples.in_memory('set', 'train', images, np.asarray(labels, np.int32), tuple(map(str, range(classes))))


def test_the_parts_of_the_classes_by_hand():
  unequal = split([0] * 9 + [1], 2)
  np.testing.assert_allclose(losses.shares(unequal, ()), [0.9, 0.1])
  np.testing.assert_allclose(losses.shares(unequal, (1.0, 3.0)), [0.75, 0.25])
  np.testing.assert_allclose(losses.shares(unequal, losses.balanced_weights(unequal)), [0.5, 0.5])
  np.testing.assert_allclose(losses.shares(split([0, 0, 1], 3), ()), [2 / 3, 1 / 3, 0])
  unknown = dataclasses.replace(unequal, labels=None)
  np.testing.assert_allclose(losses.shares(unknown, (1.0, 3.0)), [0.5, 0.5])


@pytest.mark.parametrize('balance', [False, True])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_no_constant_prediction_has_a_lower_loss_than_guessing(balance, smoothing):
  source = split([0] * 9 + [1], 2)
  weights = losses.balanced_weights(source) if balance else ()

  def of(probability):
    logits = jnp.tile(jnp.log(jnp.array([probability, 1 - probability])), (10, 1))
    values, weight = losses.cross_entropy(logits, jnp.asarray(source.labels), smoothing, weights)
    return float(jnp.sum(values) / jnp.sum(weight))

  config = schema.default().loss
  config.label_smoothing, config.class_weights = smoothing, weights
  uniform, guessing = losses.of_constant_predictions(config, source)
  assert uniform == pytest.approx(of(0.5), rel=1e-5)
  assert guessing == pytest.approx(min(map(of, np.linspace(0.005, 0.995, 199))), rel=1e-3)
  if not smoothing:
    assert (uniform, guessing) == pytest.approx((np.log(2), np.log(2) if balance else 0.32508), abs=1e-5)
  unknown = dataclasses.replace(source, labels=None)
  assert losses.of_constant_predictions(config, unknown) == pytest.approx((np.log(2), np.log(2)))


def test_correct_counts_the_largest_logit_and_of_equal_ones_the_first():
  logits = jnp.asarray([[1.0, 2.0, 0.0], [3.0, 3.0, 0.0], [3.0, 3.0, 0.0]])
  actual = losses.correct(logits, jnp.asarray([1, 0, 1]))
  assert actual.dtype == jnp.float32
  np.testing.assert_array_equal(actual, [1.0, 1.0, 0.0])
