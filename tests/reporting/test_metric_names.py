import math

import pytest

from dnt.reporting import metric_names
from dnt.reporting.metric_names import EntryRow, Metric


@pytest.mark.parametrize(
  ('name', 'metric'),
  [
    ('step', Metric('step')),
    ('images_per_second', Metric('images_per_second')),
    ('train/loss', Metric('loss', split='train')),
    ('train[:50%]_ema/top5_accuracy', Metric('top5_accuracy', split='train[:50%]_ema')),
    ('telemetry/stem/zero', Metric('zero', entry='stem')),
    ('telemetry/stage1/block001/gradient_norm', Metric('gradient_norm', entry='stage1/block001')),
  ],
)
def test_a_name_says_what_its_metric_is_of(name, metric):
  assert metric_names.parse(name) == metric


def test_rows_have_the_names_of_metrics_and_are_read_back():
  rows = [EntryRow('stem', zero=0.25, clip_factor=1.0), EntryRow('stage1/block001', output_gradient_norm=2.0)]
  metrics = metric_names.to_metrics(rows)
  assert metrics == {
    'telemetry/stem/zero': 0.25,
    'telemetry/stem/clip_factor': 1.0,
    'telemetry/stage1/block001/output_gradient_norm': 2.0,
  }
  others = {'step': 3, 'epoch': 0.1, 'train/loss': 2.0, 'telemetry/stem/unknown': 1.0}
  assert metric_names.from_metrics(others | metrics) == rows
  (row,) = metric_names.from_metrics({'telemetry/head/dead': None})
  assert row.entry == 'head' and math.isnan(row.dead) and row.zero is None


def test_the_names_that_users_rely_on_stay():
  assert set(metric_names.QUANTITIES) == {
    'output_gradient_norm',
    'gradient_norm',
    'parameter_norm',
    'update_ratio',
    'activation_mean',
    'activation_rms',
    'zero',
    'dead',
    'saturated',
    'clip_factor',
  }
