"""What the first steps, a trial and the data come to together."""

import numpy as np
import pytest

from dnt import config as schema
from dnt.diagnostics import diagnosis, first_steps, labels, trial
from dnt.diagnostics.verdicts import Kind
from dnt.training import datasets
from tests.diagnostics.examinations import LOST, examination, tried


@pytest.mark.parametrize(
  ('losses', 'batch', 'finding', 'kind', 'state'),
  [
    ([[2.3, 2.3], [2.3, np.nan], [2.3, 2.3]], 64, None, 'step too large', trial.DOUBTFUL),
    ([[2.3, 2.3]], 64, None, Kind.STUCK, trial.SICK),
    ([[2.3, 2.3]], 64, 'unexplained labels', 'trainable', trial.SICK),
    ([[2.3, 2.3]], 8, 'unexplained labels', 'trainable', trial.SICK),
    ([[2.3, 2.3]], 64, 'unequal classes', Kind.STUCK, trial.SICK),
    ([[2.3, 2.3]], 8, 'unequal classes', Kind.SMALL_BATCH, trial.SICK),
  ],
  ids=['one of three diverges', 'no cause', 'labels', 'labels, not the small batch', 'not the labels', 'small batch'],
)
def test_what_joins_to_a_diagnosis(monkeypatch, losses, batch, finding, kind, state):
  learns = tried(np.linspace(2.3, 0.1, 300), np.full(300, 0.9))
  result = tried() if len(losses) == 1 else learns
  found = [labels.Finding(finding, '')] if finding else []
  seen = examination()._replace(losses=np.array(losses))
  monkeypatch.setattr(first_steps, 'examine', lambda *_: seen)
  monkeypatch.setattr(trial, 'run', lambda *_: result)
  monkeypatch.setattr(labels, 'find', lambda *_: found)
  config = schema.default()
  config.train.batch_size = batch
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
