"""Runs on cached features against the same runs on images."""

import os
import pathlib
import shutil
import time

import jax
import numpy as np
import pytest

from dnt import errors, loop, trees
from dnt.checkpoints import format
from dnt.data import order, resident
from dnt.finetune import feature_cache, feature_files
from dnt.parallel import mesh as mesh_lib
from dnt.reporting import metrics
from dnt.training import datasets, experiment, open_options, record
from tests.finetune.features import OWN_NETWORKS, files, held

pytestmark = pytest.mark.usefixtures('undrawn')


def run(config, workdir):
  summary = loop.train(config, workdir, record.Clock(0.0), 'test')
  return summary, format.read_parameters(workdir / 'checkpoints' / '6').value


def close(a, b, rtol=1e-4):
  a, b = trees.flatten(a), trees.flatten(b)
  assert a.keys() == b.keys()
  for path in a:
    np.testing.assert_allclose(a[path], b[path], rtol=rtol, atol=1e-5, err_msg=path)


@pytest.mark.thorough
@pytest.mark.parametrize(('trainable', 'resize'), [('head', 'squash'), ('top:1', 'squash'), ('head', 'center_crop')])
def test_cached_and_uncached_runs_end_equal_and_the_second_finds_its_features(
  config, tmp_path, console, trainable, resize
):
  config.finetune.trainable, config.data.eval_resize, config.data.eval_crop = trainable, resize, 0.6
  cached, parameters = run(config, tmp_path / 'cached')
  assert len(files(config)) == 2
  shape = (1, 1, 64) if trainable == 'head' else (4, 4, 32)
  assert {held(path).shape for path in files(config)} == {(40, *shape)}
  output = console.readouterr().out
  assert output.count('kept as') == 2
  again, same = run(config, tmp_path / 'again')
  assert again['params_sha256'] == cached['params_sha256'] and len(files(config)) == 2
  assert console.readouterr().out.count('found in') == 2
  config.finetune.cached_views = 0
  uncached, expected = run(config, tmp_path / 'uncached')
  assert 'features' not in console.readouterr().out
  close(parameters.params, expected.params)
  close(parameters.batch_stats, expected.batch_stats)
  assert cached['last'].keys() == uncached['last'].keys()
  for name in ('test/loss', 'test/accuracy', 'test/calibration_error', 'test/auroc'):
    assert cached['last'][name] == pytest.approx(uncached['last'][name], rel=1e-4)
  # Telemetry of what is left out would be that of other images.
  shown = [
    {key for line in metrics.read(tmp_path / name) for key in line if key.endswith('gradient_norm') and '/' in key}
    for name in ('cached', 'uncached')
  ]
  assert shown[0] == shown[1]
  rms = {key for line in metrics.read(tmp_path / 'cached') for key in line if key.endswith('activation_rms')}
  assert 'telemetry/head/activation_rms' in rms and 'telemetry/stem/activation_rms' not in rms


@pytest.mark.thorough
def test_features_are_made_anew_when_what_they_depend_on_changes(config, tmp_path):
  config.train.steps = 1
  loop.train(config, tmp_path / '0', record.Clock(0.0), 'test')
  count = len(files(config))
  config.optim.learning_rate = 0.01
  loop.train(config, tmp_path / '1', record.Clock(0.0), 'test')
  assert len(files(config)) == count
  for number, (key, value) in enumerate({'seed': 1, 'data.seed': 1, 'data.image_size': 12}.items()):
    section, _, name = key.rpartition('.')
    (config[section] if section else config)[name] = value
    loop.train(config, tmp_path / f'changed{number}', record.Clock(0.0), 'test')
    assert len(files(config)) == count + 2 * (number + 1), key


@pytest.mark.thorough
def test_features_of_fewer_images_are_others_and_those_of_the_evaluation_are_shared(config, tmp_path):
  config.train.steps, config.data.mean, config.data.std = 1, (0.5,) * 3, (0.25,) * 3
  for number, config.data.images_per_class in enumerate((2, 3, 2, None)):
    loop.train(config, tmp_path / str(number), record.Clock(0.0), 'test')
  assert sorted(len(held(path)) for path in files(config)) == [20, 30, 40, 40]


@pytest.mark.thorough
def test_augmented_views_take_turns_by_epoch(config, tmp_path):
  config.data.augment, config.data.crop_padding = 'pad_crop_flip', 2
  config.finetune.cached_views = 2
  run(config, tmp_path / 'run')
  sizes = {len(held(path)): held(path) for path in files(config)}
  assert set(sizes) == {40, 80}, 'evaluation sees no augmentation'
  first, second = np.split(sizes[80], 2)
  assert np.mean(np.any(first != second, axis=(1, 2, 3))) > 0.8

  labels = np.arange(40, dtype=np.int32)
  mesh = mesh_lib.make_mesh(config.mesh)
  loader = resident.TrainLoader(np.arange(80, dtype=np.float32)[:, None], labels, 3, 8, mesh, views=2)
  for step in (0, 4, 5, 9, 10, 14):  # epochs 0, 1 and 2
    batch = jax.device_get(loader.batch_at(loader.arrays(step, 1), np.int32(step)))
    epoch = step // 5
    expected = order.order(3, epoch, 40)[step * 8 % 40 :][:8]
    np.testing.assert_array_equal(batch['label'], expected)
    np.testing.assert_array_equal(batch['image'][:, 0], expected + epoch % 2 * 40)


@pytest.mark.thorough
def test_a_run_on_features_goes_on(config, tmp_path):
  config.checkpoint.every = '3'
  whole, _ = run(config, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '6')
  (tmp_path / 'run' / 'summary.json').unlink()
  assert run(config, tmp_path / 'run')[0]['params_sha256'] == whole['params_sha256']


@pytest.mark.thorough
def test_two_processes_compute_the_features_that_one_finds(config_file, tmp_path, start, finish, load_config, console):
  options = {'finetune.trainable': 'head', 'finetune.cache_dir': str(tmp_path / 'features'), 'data.augment': 'none'}
  path = config_file('cached', options | {'train.steps': 2, 'eval.every': '0', 'telemetry.every': '0'})
  flags = [f'--config={path}', f'--workdir={tmp_path / "two"}']
  output = finish(start(['launch/local.sh', '-n', '2', '--devices-per-process=1', '--', *flags]))
  assert output.count('kept as') == 2, output
  loop.train(load_config(path), tmp_path / 'one', record.Clock(0.0), 'test')
  assert console.readouterr().out.count('found in') == 2
  one, two = (format.read_parameters(tmp_path / name / 'checkpoints' / '2').value for name in ('one', 'two'))
  close(one.params, two.params)


@pytest.mark.parametrize('large', ['train', 'test'])
def test_images_are_used_where_the_features_of_a_split_are_too_large(
  own, config, tmp_path, console, monkeypatch, large
):
  def given():
    run, data = own(OWN_NETWORKS, 'Pooling')
    parts = {split: data.train.part(split, 0, 40 if split == large else 39) for split in ('train', 'test')}
    return run, data._replace(train=parts['train'], evaluation={'test': parts['test']})

  monkeypatch.setattr(feature_cache, 'LARGEST', 40 * 4 * (4 * 4 * 6 + 1) - 1)  # bytes of float32 features and labels
  monkeypatch.setattr(feature_cache, '_compute', None)  # no split is begun before all are looked at
  (run, data), mesh = given(), mesh_lib.make_mesh(config.mesh)
  assert feature_cache.use(run, data, mesh, tmp_path / 'run') == (run, data)
  assert feature_cache.use_blank(run, data) == (run, data)
  assert console.readouterr().out.count(f'features are not cached: the features of {large} take ') == 2
  config.finetune.cached_views = 1
  with pytest.raises(errors.InputError, match=f'cached_views=1: the features of {large} .* images, or set .* to 0'):
    feature_cache.use(*given(), mesh, tmp_path / 'run')
  with pytest.raises(errors.InputError, match=f'cached_views=1: the features of {large} '):
    feature_cache.use_blank(*given())
  monkeypatch.setattr(feature_cache, 'LARGEST', feature_cache.LARGEST + 1)
  _, blank = feature_cache.use_blank(*given())
  assert blank.train.shape == (4, 4, 6)


def test_features_of_a_users_own_network_are_made_anew_when_its_code_changes(own, config, tmp_path):
  mesh = mesh_lib.make_mesh(config.mesh)

  def features(text):
    _, data = feature_cache.use(*own(text, 'Pooling'), mesh, tmp_path / 'run')
    return data.train.images

  first = features(OWN_NETWORKS)
  np.testing.assert_array_equal(features(OWN_NETWORKS), first)
  assert len(files(config)) == 1
  other = features(OWN_NETWORKS.replace("name='body'", "padding='CIRCULAR', name='body'"))
  assert len(files(config)) == 2 and not np.allclose(other, first)


def test_features_of_code_that_changed_after_its_import_are_not_those_of_the_new_code(own, config, tmp_path):
  changed = OWN_NETWORKS.replace("name='body'", "padding='CIRCULAR', name='body'")
  older, mesh = own(OWN_NETWORKS, 'Pooling'), mesh_lib.make_mesh(config.mesh)
  (tmp_path / 'cached_nets.py').write_text(changed)
  found = []
  for network in (older, own(changed, 'Pooling')):
    _, data = feature_cache.use(*network, mesh, tmp_path / 'run')
    found.append(data.train.images)
  assert len(files(config)) == 2 and not np.allclose(*found)


def cut_off(content):
  """In the middle of a block."""
  return content[: len(content) * 5 // 8]


def half_zeroed(content):
  """As file systems leave it after a power loss."""
  return content[: len(content) // 2] + bytes(len(content) - len(content) // 2)


def flipped(content):
  place = len(content) * 5 // 8
  return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


@pytest.mark.thorough
@pytest.mark.parametrize('views', [0, 2])
@pytest.mark.parametrize('spoil', [cut_off, half_zeroed, flipped])
def test_features_that_were_cut_off_or_damaged_are_computed_anew_from_there(
  config, tmp_path, console, monkeypatch, views, spoil
):
  config.train.steps, config.eval.batch_size = 1, 8
  if views:
    config.data.augment, config.finetune.cached_views = 'pad_crop_flip', views
  whole, _ = loop.train(config, tmp_path / 'a', record.Clock(0.0), 'test'), console.readouterr()
  kept = {path: path.read_bytes() for path in files(config)}
  longest = max(kept, key=lambda path: len(kept[path]))
  longest.write_bytes(spoil(kept[longest]))
  computed = []
  compute = feature_cache._compute
  monkeypatch.setattr(feature_cache, '_compute', lambda *args: computed.append(args[-1]) or compute(*args))
  again = loop.train(config, tmp_path / 'b', record.Clock(0.0), 'test')
  records = 80 if views else 40
  # The start of the block with the damage, of 5 or 10.
  assert computed == [(32 if views else 16) if spoil is half_zeroed else (48 if views else 24)]
  said = 'continuing from' if spoil is cut_off else 'damaged after example'
  assert f'{said} {computed[0]} of {records}' in console.readouterr().out
  assert again['params_sha256'] == whole['params_sha256']
  assert {path: path.read_bytes() for path in files(config)} == kept


@pytest.mark.thorough
def test_features_that_are_found_have_the_labels_of_today(config, tmp_path):
  data = datasets.load(config, ())
  run, mesh = experiment.make(open_options.resolve(config, data), data.spec), mesh_lib.make_mesh(config.mesh)
  _, cached = feature_cache.use(run, data, mesh, tmp_path / 'one')
  np.testing.assert_array_equal(cached.train.labels, data.train.labels)
  reversed_ = data.train.relabelled(np.arange(10, dtype=np.int32)[::-1], data.train.class_names[::-1])
  _, found = feature_cache.use(run, data._replace(train=reversed_), mesh, tmp_path / 'two')
  assert len(files(config)) == 1
  np.testing.assert_array_equal(found.train.labels, 9 - data.train.labels)


@pytest.mark.thorough
def test_other_batches_go_on_from_the_middle_of_one(config, tmp_path):
  config.train.steps, config.eval.batch_size = 1, 8
  loop.train(config, tmp_path / 'a', record.Clock(0.0), 'test')
  (first, expected), _ = ((path, held(path)) for path in files(config))
  first.write_bytes(first.read_bytes()[:-1])
  config.eval.batch_size = 20
  loop.train(config, tmp_path / 'b', record.Clock(0.0), 'test')
  np.testing.assert_allclose(held(first), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize('problem', ['file', 'limit', 'full'])
def test_features_that_cannot_be_kept_do_not_stop_a_run(config, tmp_path, console, monkeypatch, problem):
  config.train.steps = 1
  if problem == 'file':
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('HOME', str(tmp_path))
    config.finetune.cache_dir = '~/file/features'
    said = str(tmp_path / 'file')
  elif problem == 'limit':
    monkeypatch.setenv('DNT_CACHE_GB', '1e-6')
    said = 'DNT_CACHE_GB'
  else:

    def write(*_):
      raise OSError(28, 'No space left on device')

    monkeypatch.setattr(feature_files.Writer, 'write', write)
    said = 'No space left'
  loop.train(config, tmp_path / 'b', record.Clock(0.0), 'test')
  output = console.readouterr().out
  lines = [line for line in output.splitlines() if 'not kept' in line]
  assert len(lines) == (1 if problem == 'file' else 2) and all(said in line for line in lines)
  assert 'step 1' in output and not files(config)


@pytest.mark.parametrize('problem', ['Disk quota exceeded', 'No such file or directory'])
def test_keeping_that_fails_at_its_end_is_one_line(tmp_path, console, monkeypatch, problem):
  path, features, labels = tmp_path / 'cache' / 'a.features', np.ones((4, 6), np.float32), np.zeros(4, np.int32)

  def fsync(_):
    raise OSError(122, problem)

  with feature_cache._Keeper(feature_cache._Place(path, feature_files.header(key='a')), 'train') as keeper:
    keeper.start(feature_files.Found(0, 0, False), 1000)
    keeper.write(0, features, labels)
    assert keeper.path == path
    if 'quota' in problem:
      monkeypatch.setattr(os, 'fsync', fsync)
    else:
      shutil.rmtree(path.parent)
    keeper.hold(features)
  assert keeper.path is None and not path.exists()
  assert console.readouterr().out == f'features of train are not kept in {path.parent}: {problem}\n'


@pytest.mark.thorough
def test_features_that_a_run_uses_remain(config, tmp_path, monkeypatch):
  config.train.steps = 1
  removed = []
  train = feature_cache.use

  def use(*args):
    result = train(*args)
    removed.extend(feature_files.remove(path) for path in files(config))
    return result

  monkeypatch.setattr(feature_cache, 'use', use)
  loop.train(config, tmp_path / 'a', record.Clock(0.0), 'test')  # computes them
  loop.train(config, tmp_path / 'b', record.Clock(0.0), 'test')  # reads them
  assert removed == [False] * 4


@pytest.mark.thorough
def test_features_that_nobody_used_for_long_are_removed(config, tmp_path):
  config.train.steps = 1
  loop.train(config, tmp_path / 'a', record.Clock(0.0), 'test')
  old, recent = (pathlib.Path(config.finetune.cache_dir) / f'{digit * 32}.features' for digit in '01')
  for path, days in ((old, 31), (recent, 29)):
    path.write_bytes(b'')
    os.utime(path, 2 * (time.time() - days * 86400,))
  loop.train(config, tmp_path / 'b', record.Clock(0.0), 'test')
  assert recent.exists() and not old.exists() and len(files(config)) == 3
