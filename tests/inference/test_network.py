"""A trained network without its data: the same logits as the run's evaluation, from its workdir and from files."""

import json
import os
import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import numpy as safetensors_numpy

from dnt import errors, files, inference, loop
from dnt.inference import export
from dnt.parallel import mesh as mesh_lib
from dnt.training import evaluate, record

pytestmark = pytest.mark.usefixtures('undrawn')


def logits(network, images):
  return np.asarray(
    jax.jit(lambda variables, x: network.model.apply(variables, network.preprocess(x), train=False))(
      network.variables, images
    )
  )


@pytest.mark.thorough
def test_a_killed_run_of_a_folder_is_evaluated_to_the_same_confusion(tiny, scans, tmp_path):
  tiny.data.update({'source': f'folder:{scans}', 'augment': 'resized_crop_flip', 'image_size': 8, 'workers': 0})
  tiny.data.update({'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.4), 'interpolation': 'bicubic', 'eval_crop': 0.7})
  tiny.eval.splits, tiny.checkpoint.every, tiny.train.batch_size = ('val', 'train'), '2', 8
  tiny.checkpoint.best_metric = 'accuracy'
  loop.train(tiny, tmp_path / 'run', record.Clock(0.0), 'test')
  for name in ('summary.json', 'metrics.jsonl'):
    (tmp_path / 'run' / name).unlink()
  mesh = mesh_lib.make_mesh(tiny.mesh)
  loaded = evaluate.load(tiny, tmp_path / 'run', mesh, ('val', 'train'))
  with evaluate.Evaluator(loaded.run, mesh, loaded.data.evaluation) as evaluator:
    wanted = evaluator(loaded.variables['']).confusion

  network = inference.load(str(tmp_path / 'run'), mesh)
  assert (network.step, network.averaged, network.origin) == (6, False, str(tmp_path / 'run'))
  assert (network.class_names, network.image_shape) == (('cat', 'dog'), (8, 8, 3))
  assert [row.entry.name for row in network.table] == ['stem', 'stage1/block001', 'head']
  confusion = np.zeros((2, 2), int)
  for label, name in enumerate(('cat', 'dog')):
    found = inference.read(network, inference.find(str(scans / name)))
    assert len(found.images) == 6 and not found.unreadable
    np.add.at(confusion[label], logits(network, found.images).argmax(-1), 1)
  np.testing.assert_array_equal(confusion, wanted['val'] + wanted['train'])


@pytest.mark.thorough
def test_the_averaged_weights_of_a_scanned_network(tiny, saved, tmp_path):
  tiny.model.update({'name': 'resnet', 'depth': 14, 'width': None, 'scan': True})
  tiny.ema.decay, tiny.data.image_size = 0.9, None
  run, state, data = saved(tiny)
  network = inference.load(str(tmp_path / 'run'))
  assert network.averaged and network.image_shape == (32, 32, 3)
  assert network.class_names == data.spec.class_names
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(network.variables))
  jax.tree.map(np.testing.assert_array_equal, network.variables, jax.device_get(state.ema))
  batch = {'image': data.evaluation['test'].images[:3]}
  want = jax.jit(lambda v, batch: run.model.apply(v, run.preprocess(batch, None), train=False))(state.ema, batch)
  np.testing.assert_array_equal(logits(network, batch['image']), want)


@pytest.mark.thorough
def test_weights_in_a_file_are_prepared_for_as_they_say(tiny, saved, scans, tmp_path):
  tiny.data.update({'augment': 'resized_crop_flip', 'image_size': 32, 'workers': 0, 'eval_crop': 0.8})
  tiny.model.update({'name': 'resnet', 'stem': 'imagenet', 'depth': 18, 'width': None})
  saved(tiny)
  own = inference.load(str(tmp_path / 'run'))
  path = tmp_path / 'model.safetensors'
  path.write_bytes(safetensors_numpy.save(export.torch_tensors(own)))
  described = export.timm_config(own)
  files.write_json(tmp_path / 'config.json', described)
  given = inference.load(str(path))
  assert (given.step, given.averaged, given.image_shape) == (None, False, (32, 32, 3))
  assert given.config.model.to_dict() == own.config.model.to_dict()
  assert given.class_names == own.class_names
  images = [inference.read(network, inference.find(str(scans))).images for network in (own, given)]
  np.testing.assert_array_equal(*images)
  np.testing.assert_array_equal(logits(own, images[0]), logits(given, images[1]))
  del described['label_names']
  described['pretrained_cfg'] |= {'crop_mode': 'squash', 'crop_pct': 1.0}
  files.write_json(tmp_path / 'config.json', described)
  given = inference.load(str(path))
  assert given.class_names == tuple(f'class {index}' for index in range(10))
  found = inference.read(given, inference.find(str(scans)))
  squashed = Image.open(found.paths[0]).convert('RGB').resize((32, 32), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(found.images[0], squashed)
  for other, said in (({'crop_mode': 'border'}, 'border'), ({'crop_pct': 0.9}, 'squash with crop_pct 0.9')):
    changed = {**described, 'pretrained_cfg': {**described['pretrained_cfg'], **other}}
    files.write_json(tmp_path / 'config.json', changed)
    with pytest.raises(errors.InputError, match=rf"center_crop or squash .*'{said}'"):
      inference.load(str(path))


@pytest.mark.parametrize('size', [8, None])
def test_a_checkpoint_older_than_the_record_of_the_shape(tiny, saved, tmp_path, monkeypatch, size):
  """Its config may have left the size open; then that in config.json counts."""
  whole = record.Record.history

  def history(rec):
    held = whole(rec)
    del held['image_shape']
    held['config']['data']['image_size'] = size
    return held

  monkeypatch.setattr(record.Record, 'history', history)
  saved(tiny)
  assert inference.load(str(tmp_path / 'run')).image_shape == (8, 8, 3)
  path = tmp_path / 'run' / 'config.json'
  config = json.loads(path.read_text())
  config['data']['image_size'] = None
  path.write_text(json.dumps(config))
  if size is None:
    with pytest.raises(errors.InputError, match=f'data.image_size in {re.escape(str(path))} '):
      inference.load(str(tmp_path / 'run'))


def test_keras_resnet50_knows_cars():
  weights, cars = os.environ.get('DNT_RESNET50_KERAS'), os.environ.get('DNT_CARS_DIR')
  if not weights or not cars:
    pytest.skip('DNT_RESNET50_KERAS and DNT_CARS_DIR are not set')
  network = inference.load(f'tfjs:{weights}')
  paths = sorted(str(path) for path in pathlib.Path(cars).glob('cars_test/*.jpg'))[:8]
  best = logits(network, inference.read(network, paths).images).argmax(-1)
  assert np.isin(best, (511, 656, 717, 817)).mean() >= 0.5, best
