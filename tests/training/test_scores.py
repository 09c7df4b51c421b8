"""Figures of a classifier against scikit-learn's and brute force."""

import json
import re

import jax
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from dnt.data import examples
from dnt.training import scores


def drawn(examples, classes, seed=0, decimals=None):
  """Probabilities that favour the label, coarse ones with many ties, and labels."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, examples)
  logits = rng.normal(size=(examples, classes)) + 1.5 * np.eye(classes)[labels]
  probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  return np.asarray(probabilities if decimals is None else np.round(probabilities, decimals), np.float32), labels


@pytest.mark.parametrize('decimals', [None, 1, 0], ids=['distinct', 'ties', 'nearly all tied'])
@pytest.mark.parametrize('classes', [2, 7])
def test_auroc_is_that_of_scikit_learn(classes, decimals):
  probabilities, labels = drawn(301, classes, classes, decimals)
  areas = scores.auroc(probabilities, labels)
  expected = [sklearn_metrics.roc_auc_score(labels == label, probabilities[:, label]) for label in range(classes)]
  np.testing.assert_allclose(areas, expected, rtol=1e-12)


def test_auroc_of_a_few_by_hand():
  # Class 0 holds 0.9 and 0.4 against 0.4 and 0.1: of four pairs three are right and one is tied.
  probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.4, 0.6], [0.1, 0.9]], np.float32)
  np.testing.assert_array_equal(scores.auroc(probabilities, np.array([0, 0, 1, 1])), [3.5 / 4, 3.5 / 4])


def test_log_odds_are_those_of_float64():
  logits = np.random.default_rng(0).normal(0, 20, (200, 7)).astype(np.float32)
  logits[:50] *= 30
  logits[50:60, 2], logits[60:70, :6] = -np.inf, -np.inf
  wide = logits.astype(np.float64)
  expected = [wide[:, label] - np.logaddexp.reduce(np.delete(wide, label, 1), 1) for label in range(7)]
  np.testing.assert_allclose(jax.jit(scores.log_odds)(logits), np.stack(expected, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('logits', [(np.nan, 0, 1), (np.inf, 0, 1), (-np.inf,) * 3])
def test_log_odds_are_not_finite_where_the_probabilities_are_not(logits):
  assert np.isnan(jax.nn.softmax(np.array([logits]))).all() and np.isnan(scores.log_odds(np.array([logits]))).all()


def test_confident_predictions_do_not_tie():
  """Of two classes each has the area of the other, which float32 probabilities near 1 do not give."""
  few = scores.log_odds(np.array([[25, 0], [20, 0], [-5, 0]], np.float32))
  np.testing.assert_array_equal(scores.auroc(np.asarray(few), np.array([0, 1, 1])), [1, 1])
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 2, 400)
  logits = (25 * rng.normal(size=(400, 2)) + 30 * np.eye(2)[labels]).astype(np.float32)
  areas = scores.auroc(np.asarray(jax.jit(scores.log_odds)(logits)), labels)
  assert areas[0] == areas[1]
  assert areas[1] == pytest.approx(sklearn_metrics.roc_auc_score(labels, logits[:, 1] - logits[:, 0]), rel=1e-12)
  assert 0.5 < areas[1] < 0.99


def test_auroc_needs_the_class_others_and_numbers():
  probabilities, _ = drawn(6, 3)
  assert np.isnan(scores.auroc(probabilities, np.zeros(6, int))).all()
  areas = scores.auroc(probabilities, np.array([0, 0, 0, 1, 1, 1]))
  assert np.isfinite(areas[:2]).all() and np.isnan(areas[2])
  probabilities[0, 1] = np.nan
  np.testing.assert_array_equal(np.isnan(scores.auroc(probabilities, np.array([0, 0, 0, 1, 1, 1]))), [0, 1, 1])


def brute_force_calibration_error(confidence, correct):
  """Guo et al. 2017, equation 3, bin by bin; bin m holds ((m - 1) / 15, m / 15]."""
  error = 0.0
  for low, high in zip(np.linspace(0, 1, 16)[:-1], np.linspace(0, 1, 16)[1:], strict=True):
    inside = (confidence > np.float32(low)) & (confidence <= np.float32(high))
    if inside.any():
      gap = abs(correct[inside].mean(dtype=np.float64) - confidence[inside].mean(dtype=np.float64))
      error += inside.mean() * gap
  return error


@pytest.mark.parametrize('decimals', [None, 1], ids=['anywhere', 'at edges of bins too'])
def test_calibration_error_is_that_of_its_definition(decimals):
  probabilities, labels = drawn(500, 4, decimals=decimals)
  confidence, correct = probabilities.max(1), (probabilities.argmax(1) == labels).astype(np.float32)
  confidence[:15] = np.linspace(0, 1, 16, dtype=np.float32)[1:]
  step, total = jax.jit(scores.calibration_gaps), 0
  for part in np.split(np.arange(600), 6):  # the last batch is padded
    rows = part % 500
    total = total + np.asarray(step(confidence[rows], correct[rows], part < 500))
  assert total.shape == (15,) and total.dtype == np.float32
  assert scores.calibration_error(total, 500) == pytest.approx(
    brute_force_calibration_error(confidence, correct), abs=1e-6
  )


def test_calibration_is_perfect_or_the_opposite():
  always, mask = np.ones(4, np.float32), np.ones(4, bool)
  assert scores.calibration_error(scores.calibration_gaps(always, always, mask), 4) == 0
  assert scores.calibration_error(scores.calibration_gaps(always, 0 * always, mask), 4) == 1


def test_a_confidence_that_is_no_number_does_not_pass_for_calibrated():
  gaps = scores.calibration_gaps(np.array([0.5, np.nan], np.float32), np.ones(2, np.float32), np.ones(2, bool))
  assert np.isnan(scores.calibration_error(np.asarray(gaps), 2))


def test_figures_of_each_class_are_those_of_scikit_learn():
  probabilities, labels = drawn(301, 5)
  predicted = probabilities.argmax(1)
  matrix = sklearn_metrics.confusion_matrix(labels, predicted)
  found = scores.per_class(matrix, np.linspace(0, 1, 5))
  assert found['examples'] == np.bincount(labels).tolist()
  np.testing.assert_allclose(found['sensitivity'], sklearn_metrics.recall_score(labels, predicted, average=None))
  specificity = [sklearn_metrics.recall_score(labels != label, predicted != label) for label in range(5)]
  np.testing.assert_allclose(found['specificity'], specificity)
  assert found['auroc'] == [0, 0.25, 0.5, 0.75, 1]


def test_what_is_not_defined_is_none():
  matrix = np.array([[3, 1, 0], [0, 2, 1], [0, 0, 0]], np.int32)
  found = scores.per_class(matrix, np.array([0.75, np.nan, np.nan]))
  assert found == {
    'examples': [4, 3, 0],
    'sensitivity': [0.75, 2 / 3, None],
    'specificity': [1.0, 0.75, None],
    'auroc': [0.75, None, None],
  }
  json.dumps(found, allow_nan=False)
  alone = scores.per_class(np.array([[3, 1], [0, 0]]), np.full(2, np.nan))
  assert alone['sensitivity'] == [0.75, None] and alone['specificity'] == alone['auroc'] == [None, None]


def test_balanced_accuracy_is_that_of_scikit_learn():
  probabilities, labels = drawn(301, 5)
  labels[labels == 3] = 1  # a class without examples, which is predicted
  predicted = probabilities.argmax(1)
  matrix = sklearn_metrics.confusion_matrix(labels, predicted, labels=range(5))
  with pytest.warns(UserWarning, match='y_pred contains classes not in y_true'):
    expected = sklearn_metrics.balanced_accuracy_score(labels, predicted)
  assert scores.balanced_accuracy(matrix) == pytest.approx(expected, rel=1e-12)
  # All of 9 and none of 1: an accuracy of 0.9 without any skill.
  assert scores.balanced_accuracy(np.array([[9, 0], [1, 0]], np.int32)) == 0.5
  assert np.isnan(scores.balanced_accuracy(np.zeros((2, 2), np.int32)))


@pytest.mark.parametrize(
  ('quantity', 'count', 'classes', 'reason'),
  [
    ('top5_accuracy', 200, 99, '^top5_accuracy is measured from 100 classes on, and mine has 99$'),
    ('top5_accuracy', 200, 100, '^$'),
    ('auroc', 201, 100, '^auroc is not measured above 20,000 images x classes, and val has 201 images x 100$'),
    ('auroc', 200, 100, '^$'),
    ('auroc', 1, 2, '^auroc compares classes, and val has images of one alone$'),
    ('balanced_accuracy', 1, 2, '^$'),
    ('loss', 201, 100, '^$'),
  ],
)
def test_what_a_split_does_not_have_has_a_reason(monkeypatch, quantity, count, classes, reason):
  monkeypatch.setattr(scores, 'LARGEST', 20_000)
  labels, names = np.arange(count) % classes, tuple(map(str, range(classes)))
  source = examples.in_memory('mine', 'val', np.zeros((count, 1, 1, 1), np.uint8), labels, names)
  assert re.search(reason, scores.why_not_measured(quantity, source))
