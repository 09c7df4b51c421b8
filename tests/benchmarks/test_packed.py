"""Data sets packed into small files come out as they went in."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from benchmarks import packed
from dnt import config as schema
from dnt.data.sources import cars
from dnt.weights import keras_files

LIMIT = 40_000
CLASSES = ('AM General Hummer', 'Ram C-V Cargo Van', 'smart fortwo')


@pytest.fixture
def images(tmp_path):
  folder = tmp_path / 'car_pictures'
  rng = np.random.default_rng(1)
  for split, count in (('train', 8), ('test', 3)):
    for label, name in enumerate(CLASSES):
      (folder / split / name).mkdir(parents=True)
      for index in range(count + label):
        size = (60, 90) if index else (150, 120)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / split / name / f'{index}.jpg')
  return folder


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.thorough
def test_cifar_comes_out_byte_for_byte_in_any_order_of_files(cifar, tmp_path, monkeypatch):
  monkeypatch.setattr(packed, 'TILES', 10)
  paths = packed.write('cifar', *packed.cifar_pieces(cifar), tmp_path / 'packs', LIMIT)
  assert len(paths) > 2
  assert all(path.stat().st_size <= LIMIT for path in paths)
  out = tmp_path / 'out'
  packed.unpack(paths[1:], out)
  assert re.search(f'cifar.* {len(paths) - 1} of {len(paths)} files', packed.where(out, 'cifar'))
  packed.unpack(packed.archives([tmp_path / 'packs']), out)
  assert packed.where(out, 'cifar') == out / 'cifar-10-batches-bin'
  assert contents(out / 'cifar-10-batches-bin') == contents(cifar)


def test_a_set_that_came_out_damaged_is_refused(cifar, tmp_path):
  pieces, about = packed.cifar_pieces(cifar)
  about['sha256']['test_batch.bin'] = '0'
  paths = packed.write('cifar', pieces, about, tmp_path / 'packs', 1e6)
  with pytest.raises(ValueError, match='test_batch.bin.* damaged'):
    packed.unpack(paths, tmp_path / 'out')
  assert re.search(
    f'{re.escape(str(tmp_path / "none"))}.* no cifar-10-batches-bin', packed.where(tmp_path / 'none', 'cifar')
  )


def test_cars_are_as_many_as_fit_of_all_classes(images, tmp_path):
  pieces, about = packed.cars_pieces(images, 60, 3 * LIMIT)
  paths = packed.write('cars', pieces, about, tmp_path / 'packs', LIMIT)
  assert all(path.stat().st_size <= LIMIT for path in paths)
  packed.unpack(paths, tmp_path / 'out')
  splits = cars.cars(str(tmp_path / 'out' / 'cars'), schema.default().data, 0)
  for split, before in (('train', 27), ('test', 12)):
    found = splits[split]()
    assert [name[4:] for name in found.class_names] == list(CLASSES)
    assert 3 <= len(found) < before
    assert np.ptp(np.bincount(found.labels)) <= 1
    assert all(min(found[index][0].size) == 60 for index in range(len(found)))
    assert about[split] == f'{len(found)} of {before} images'
  name = f'{CLASSES[0]}/1.jpg'  # small enough as it was
  assert (tmp_path / 'out/cars/train' / f'001 {name}').read_bytes() == (images / 'train' / name).read_bytes()


def test_weights_are_exact_but_for_the_rounding_of_kernels(tmp_path):
  folder, rng = tmp_path / 'weights', np.random.default_rng(2)
  folder.mkdir()
  tensors = {'conv1/kernel': rng.normal(size=(3, 3, 2, 4)), 'bn/moving_variance': 1e6 * rng.random(4) + 1}
  tensors = {name: tensor.astype('<f4') for name, tensor in tensors.items()}
  weights = [{'name': name, 'shape': list(tensor.shape), 'dtype': 'float32'} for name, tensor in tensors.items()]
  (folder / 'a.bin').write_bytes(b''.join(tensor.tobytes() for tensor in tensors.values()))
  content = {'modelTopology': {}, 'weightsManifest': [{'paths': ['a.bin'], 'weights': weights}]}
  (folder / 'model.json').write_text(json.dumps(content))
  (folder / 'labels.json').write_text('["cat"]')
  paths = packed.write('weights', *packed.weights_pieces(folder), tmp_path / 'packs', LIMIT)
  packed.unpack(paths, tmp_path / 'out')
  found = keras_files.read_tfjs(tmp_path / 'out' / 'resnet50')
  assert found.keys() == tensors.keys()
  assert np.array_equal(found['bn/moving_variance'], tensors['bn/moving_variance'])
  assert np.array_equal(found['conv1/kernel'], tensors['conv1/kernel'].astype(np.float16).astype(np.float32))
  assert sorted(contents(tmp_path / 'out' / 'resnet50')) == ['group1-shard1of1.bin', 'labels.json', 'model.json']


def test_a_piece_that_no_file_can_hold_is_refused(tmp_path):
  with pytest.raises(ValueError, match='big of cars'):
    packed.write('cars', [packed.Piece('big', bytes(LIMIT))], {}, tmp_path, LIMIT)


@pytest.mark.thorough
def test_the_program_packs_and_unpacks(cifar, tmp_path, run_program):
  code, output = run_program('benchmarks.pack', f'--cifar={cifar}', f'--output={tmp_path / "packs"}', '--limit_mb=0.2')
  assert code == 0, output
  assert 'cifar-1-of-6.zip  0.1 MB' in output
  code, output = run_program('benchmarks.pack', f'--unpack={tmp_path / "packs"}', f'--output={tmp_path / "out"}')
  assert code == 0, output
  assert '6 of 6 files' in output
  assert contents(tmp_path / 'out' / 'cifar-10-batches-bin') == contents(cifar)
