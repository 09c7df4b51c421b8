"""BatchNorm statistics of each device in runs that begin with trained weights: what is frozen takes none."""

import json

import jax
import numpy as np
import pytest

from dnt import checkpoints, loop, trees
from dnt.reporting import metrics
from dnt.training import record

pytestmark = [pytest.mark.usefixtures('eight_devices', 'undrawn'), pytest.mark.thorough]
OPEN = ('stage2/block001', 'stage3/block001', 'head')  # top:2


@pytest.fixture
def train(tiny, saved, tmp_path, monkeypatch):
  """Trains a ResNet-8 from the weights of another run, on four devices; returns the loss of each step."""
  devices = jax.devices()[:4]
  monkeypatch.setattr(jax, 'devices', lambda: devices)
  tiny.model.update({'name': 'resnet', 'depth': 8, 'width': None})
  saved(tiny, tmp_path / 'given')
  tiny.train.init_from, tiny.schedule.name = str(tmp_path / 'given'), 'constant'
  tiny.train.log_every, tiny.telemetry.every = '1', '0'
  tiny.finetune.cache_dir = str(tmp_path / 'features')

  def run(name, sync='device', steps=6, **options):
    tiny.model.norm_sync, tiny.train.steps = sync, steps
    tiny.finetune.update(options)
    assert loop.train(tiny, tmp_path / name, record.Clock(0.0), 'test')['finished']
    return np.array([line['train/loss'] for line in metrics.read(tmp_path / name) if 'train/loss' in line])

  return run


def moved(workdir, part):
  """The leaves of `params` or `batch_stats` that are others than those that the run began with."""
  before, after = (
    trees.flatten(getattr(checkpoints.load_parameters(each), part)) for each in (workdir.parent / 'given', workdir)
  )
  return {path for path, leaf in after.items() if not np.array_equal(leaf, before[path])}


def is_open(path):
  return path.startswith(tuple(f'{entry}/' for entry in OPEN))


def test_where_every_norm_is_frozen_it_changes_nothing(train, tmp_path):
  losses = {sync: train(sync, sync, trainable='head', frozen_norm='running') for sync in ('device', 'global')}
  np.testing.assert_array_equal(losses['device'], losses['global'])
  assert not moved(tmp_path / 'device', 'batch_stats')
  assert {path.split('/')[0] for path in moved(tmp_path / 'device', 'params')} == {'head'}


@pytest.mark.parametrize('frozen_norm', ['running', 'batch', 'affine_only'])
def test_frozen_norms_do_as_they_are_told(train, tmp_path, frozen_norm):
  losses = train('run', trainable='head', unfreeze=(('3', 'top:2'),), frozen_norm=frozen_norm, layer_decay=0.5)
  assert np.isfinite(losses).all() and len(losses) == 6
  statistics, parameters = (moved(tmp_path / 'run', part) for part in ('batch_stats', 'params'))
  assert any(map(is_open, statistics)) and any(map(is_open, parameters))
  assert all(map(is_open, statistics)) == (frozen_norm != 'batch')
  others = {path.split('/')[-1] for path in parameters if not is_open(path)}
  assert others == ({'scale', 'bias'} if frozen_norm == 'affine_only' else set())


def test_a_run_of_two_phases_goes_on_bit_for_bit(train, tmp_path):
  options = {'trainable': 'head', 'unfreeze': (('3', 'top:2'),), 'layer_decay': 0.5}
  train('whole', **options)
  for steps in (3, 6):
    train('parts', steps=steps, **options)
  digests = {json.loads((tmp_path / name / 'summary.json').read_text())['params_sha256'] for name in ('whole', 'parts')}
  assert len(digests) == 1


def test_a_network_that_comes_with_its_weights_keeps_it(train, tiny, tmp_path):
  tiny.model.name = 'pretrained'
  with tiny.model.ignore_type():
    tiny.model.depth = None
  train('run', trainable='top:2')
  model = json.loads((tmp_path / 'run' / 'config.json').read_text())['model']
  assert (model['name'], model['depth'], model['norm_sync']) == ('resnet', 8, 'device')
  assert {*filter(is_open, moved(tmp_path / 'run', 'batch_stats'))}
