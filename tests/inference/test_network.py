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

pytestmark = pytest.mark.usefixtures('unoptimized', 'undrawn')


@pytest.fixture
def scans(tmp_path):
  """Folders of pictures of different sizes, two classes; gray, coloured and with a palette."""
  draw = np.random.default_rng(0)
  for label, name in enumerate(('cat', 'dog')):
    folder = tmp_path / 'scans' / name
    folder.mkdir(parents=True)
    for index in range(6):
      size = (int(draw.integers(9, 30)), int(draw.integers(9, 30)))
      shape = size if index % 2 else (*size, 3)
      pixels = draw.integers(100 * label, 100 * label + 100, shape, np.uint8)
      image = Image.fromarray(pixels)
      (image.convert('P') if index == 4 else image).save(folder / f'{index}.png')
  return tmp_path / 'scans'


def logits(network, pictures):
  return np.asarray(
    jax.jit(lambda variables, x: network.model.apply(variables, network.preprocess(x), train=False))(
      network.variables, pictures
    )
  )


@pytest.mark.thorough
def test_a_killed_run_of_a_folder_is_evaluated_to_the_same_confusion(tiny, scans, tmp_path):
  tiny.data.update({'source': f'folder:{scans}', 'augment': 'resized_crop_flip', 'image_size': 8, 'workers': 0})
  tiny.data.update({'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.4), 'interpolation': 'bicubic', 'eval_crop': 0.7})
  tiny.eval.splits, tiny.checkpoint.every, tiny.train.batch_size = ('val', 'train'), '2', 8
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
    assert len(found.pictures) == 6 and not found.unreadable
    np.add.at(confusion[label], logits(network, found.pictures).argmax(-1), 1)
  np.testing.assert_array_equal(confusion, wanted['val'] + wanted['train'])


@pytest.mark.parametrize(('augment', 'resize'), [('resized_crop_flip', None), ('none', 'center_crop')])
def test_pictures_are_those_of_the_evaluation_bit_by_bit(tiny, scans, saved, augment, resize):
  tiny.data.update({'source': f'folder:{scans}', 'augment': augment, 'image_size': 8, 'workers': 0})
  with tiny.data.ignore_type():
    tiny.data.eval_resize = resize
  tiny.data.update({'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.4)})
  tiny.eval.splits = ('val',)
  _, _, data = saved(tiny)
  found = inference.read(inference.load(str(scans.parent / 'run')), data.evaluation['val'].pictures.paths)
  assert found.paths == data.evaluation['val'].pictures.paths
  for path, picture in zip(found.paths, found.pictures, strict=True):
    image = Image.open(path).convert('RGB')  # torchvision's Resize(8 / 0.875) and CenterCrop(8)
    short = min(image.size)
    image = image.resize([9 * side // short for side in image.size], Image.Resampling.BILINEAR)
    left, top = (round((side - 8) / 2) for side in image.size)
    np.testing.assert_array_equal(picture, np.asarray(image.crop((left, top, left + 8, top + 8))))


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
  pictures = [inference.read(network, inference.find(str(scans))).pictures for network in (own, given)]
  np.testing.assert_array_equal(*pictures)
  np.testing.assert_array_equal(logits(own, pictures[0]), logits(given, pictures[1]))
  del described['label_names']
  described['pretrained_cfg']['crop_mode'] = 'squash'
  files.write_json(tmp_path / 'config.json', described)
  given = inference.load(str(path))
  assert given.class_names == tuple(f'class {index}' for index in range(10))
  found = inference.read(given, inference.find(str(scans)))
  squashed = Image.open(found.paths[0]).convert('RGB').resize((32, 32), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(found.pictures[0], squashed)
  described['pretrained_cfg']['crop_mode'] = 'border'
  files.write_json(tmp_path / 'config.json', described)
  with pytest.raises(errors.InputError, match=r"center_crop, squash .*'border'"):
    inference.load(str(path))


def test_gray_networks_take_gray_pictures_and_what_cannot_be_read_is_named(tiny, saved, scans, tmp_path):
  tiny.data.source, tiny.data.image_size = 'digits', None
  saved(tiny)
  network = inference.load(str(tmp_path / 'run'))
  assert network.image_shape == (8, 8, 1)
  good = str(scans / 'cat' / '0.png')
  for name, content in (('empty.png', b''), ('text.jpg', b'not a picture'), ('cut.png', b'\x89PNG\r\n\x1a\n')):
    (tmp_path / name).write_bytes(content)
  bad = [str(tmp_path / name) for name in ('empty.png', 'text.jpg', 'cut.png', 'absent.png')]
  found = inference.read(network, [bad[0], good, *bad[1:], good])
  assert found.paths == (good, good)
  gray = Image.open(good).convert('L').resize((8, 8), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(found.pictures[0, ..., 0], gray)
  assert list(found.unreadable) == bad
  for path, reason in found.unreadable.items():
    assert re.search(f'cannot read .*{path} ', reason) and '\n' not in reason
  assert inference.read(network, bad).pictures.shape == (0, 8, 8, 1)


def test_a_checkpoint_older_than_the_record_of_the_shape(tiny, saved, tmp_path, monkeypatch):
  monkeypatch.setattr(record.Record, 'history', lambda self: {})
  saved(tiny)
  network = inference.load(str(tmp_path / 'run'))
  assert network.image_shape == (8, 8, 3)
  assert network.class_names[9] == 'class 9'
  path = tmp_path / 'run' / 'config.json'
  config = json.loads(path.read_text())
  config['data']['image_size'] = None
  path.write_text(json.dumps(config))
  with pytest.raises(errors.InputError, match=f'data.image_size in {path} '):
    inference.load(str(tmp_path / 'run'))


def test_pictures_by_file_folder_and_glob(scans, tmp_path):
  (scans / 'notes.txt').write_text('')
  (scans / '.hidden.png').write_text('')
  every = tuple(sorted(str(path) for path in scans.glob('*/*.png')))
  assert inference.find(str(scans)) == inference.find(str(scans / '**' / '*.png')) == every
  assert inference.find(str(scans / 'cat')) == every[:6]
  assert inference.find(every[3]) == every[3:4]
  assert inference.find(str(scans / 'notes.txt')) == (str(scans / 'notes.txt'),), 'what is named is tried'
  (tmp_path / 'empty').mkdir()
  for text, said in ((tmp_path / 'empty', 'empty .*no '), (scans / '*.bmp', r'no .* at .*\*\.bmp')):
    with pytest.raises(errors.InputError, match=said):
      inference.find(str(text))


def test_keras_resnet50_knows_cars():
  weights, cars = os.environ.get('DNT_RESNET50_KERAS'), os.environ.get('DNT_CARS_DIR')
  if not weights or not cars:
    pytest.skip('DNT_RESNET50_KERAS and DNT_CARS_DIR are not set')
  network = inference.load(f'tfjs:{weights}')
  paths = sorted(str(path) for path in pathlib.Path(cars).glob('cars_test/*.jpg'))[:8]
  best = logits(network, inference.read(network, paths).pictures).argmax(-1)
  assert np.isin(best, (511, 656, 717, 817)).mean() >= 0.5, best
