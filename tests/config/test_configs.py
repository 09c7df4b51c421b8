"""The configs that come with dnt."""

import pytest

from dnt import config as schema
from dnt.data import splits
from tests.conftest import CONFIGS

TRAINING = sorted(path for path in CONFIGS.glob('*.py') if not path.name.startswith('probe_'))


@pytest.mark.parametrize('path', TRAINING, ids=lambda path: path.stem)
def test_no_config_chooses_by_the_test_split(path, load_config):
  config = load_config(path)
  compares = schema.kind(config) == 'compare'
  config = config.base if compares else config
  named, _, _ = config.checkpoint.best_metric.rpartition('/')
  assert not named or not splits.parse(named).is_test
  if not compares:  # comparisons show test curves, and choose nothing
    assert not any(splits.parse(split).is_test for split in config.eval.splits)
  assert config.data.hold_out is None and not (compares and config.train.patience)
