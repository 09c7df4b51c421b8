"""Networks whose first entries do not train."""

import importlib
import sys

import pytest

from dnt.training import datasets, experiment, open_options


@pytest.fixture
def config(tiny, tmp_path):
  """ResNet-8 whose head trains, on features kept in the test's own folder."""
  tiny.model.name, tiny.model.depth, tiny.model.width = 'resnet', 8, None
  tiny.finetune.trainable, tiny.finetune.cache_dir = 'head', str(tmp_path / 'features')
  tiny.data.synthetic_examples, tiny.train.steps = 40, 6  # two epochs and a half of batches that do not divide them
  tiny.eval.every, tiny.checkpoint.every, tiny.telemetry.every = '0', '0', '3'
  return tiny


@pytest.fixture
def own(config, tmp_path, monkeypatch):
  """Makes a class of a module of the user's own the network of the config."""

  def write(text, name):
    (tmp_path / 'cached_nets.py').write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'cached_nets', raising=False)
    importlib.invalidate_caches()
    with config.model.ignore_type():
      config.model.update({'name': f'cached_nets:{name}', 'depth': None})
    config.finetune.trainable = 'answer.*'
    data = datasets.load(config, ())
    return experiment.make(open_options.resolve(config, data), data.spec), data

  return write
