"""The configs that come with dnt."""

import ast
import re

import pytest

from dnt import config as schema
from dnt.comparison import plan
from dnt.config import keys
from dnt.data import splits
from dnt.models import depth
from dnt.optim import lr_multipliers
from tests.conftest import CONFIGS

ALL = sorted(CONFIGS.glob('*.py'))
TRAINING = [path for path in ALL if not path.name.startswith('probe_')]


@pytest.mark.parametrize('path', ALL, ids=lambda path: path.stem)
def test_a_config_is_short_and_its_docstring_says_what_to_expect(path):
  text = path.read_text()
  assert len(text.splitlines()) <= 60
  said = ' '.join((ast.get_docstring(ast.parse(text)) or '').split())
  assert re.search(r'\b(Expected|Published)\b.*\d', said) or 'No figure was measured' in said


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


@pytest.mark.parametrize('path', TRAINING, ids=lambda path: path.stem)
def test_a_form_changes_every_variant(path, load_config, tmp_path):
  config = load_config(path)
  for form, changes in config.get('forms', {}).items():
    runs = plan.make(config, tmp_path, form)
    kept = {run.variant for run in runs if any(keys.get(run.config, key) != value for key, value in changes.items())}
    assert kept == {name for name in config.variants if name.startswith('fashion_')}, 'drawings have 96 pixels'


def test_the_rates_of_transfer_folder_are_those_that_its_docstring_names(load_config):
  path = CONFIGS / 'transfer_folder.py'
  entries = [depth.Entry(name, name) for name in ('stem', 'block', 'head')]
  stem, block, head = lr_multipliers.factors(load_config(path).finetune, entries, (0, 1, 2))
  assert f'The head has {head / block:g} times the rate of the entry before it' in ' '.join(path.read_text().split())
  assert stem / block == pytest.approx(1 - 1 / 5)  # smaller by a fifth
