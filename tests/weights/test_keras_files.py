import io
import json
import pathlib
import sys
import zipfile

import numpy as np
import pytest

from dnt import errors
from dnt.weights import keras_files

TENSORS = {
  'conv1/kernel': np.arange(24, dtype=np.float32).reshape(2, 2, 3, 2),
  'conv1/bias': np.array([5, 6], np.float32),
  'bn_conv1/gamma': np.array([7, 8], np.float32),
  'bn_conv1/moving_mean': np.array([9, 10], np.float32),
  'bn_conv1/moving_variance': np.array([11, 12], np.float32),
}


def assert_read(found, tensors=TENSORS):
  assert found.keys() == tensors.keys()
  for name, value in tensors.items():
    assert found[name].dtype == np.float32
    np.testing.assert_array_equal(found[name], value)


@pytest.fixture
def tfjs(tmp_path):
  """Writes the tensors in two groups, the first in two shards; returns the folder."""

  def write(tensors=TENSORS, folder=tmp_path / 'model'):
    folder.mkdir()
    names = list(tensors)
    groups = []
    for number, part in enumerate((names[:2], names[2:]), start=1):
      packed = b''.join(tensors[name].astype('<f4').tobytes() for name in part)
      middle = len(packed) // 2 + 1 if number == 1 else len(packed)  # a shard may end inside a number
      paths = []
      for index, piece in enumerate(filter(None, (packed[:middle], packed[middle:])), start=1):
        paths.append(f'group{number}-shard{index}.bin')
        (folder / paths[-1]).write_bytes(piece)
      weights = [{'name': name, 'shape': list(tensors[name].shape), 'dtype': 'float32'} for name in part]
      groups.append({'paths': paths, 'weights': weights})
    (folder / 'model.json').write_text(json.dumps({'modelTopology': {}, 'weightsManifest': groups}))
    return folder

  return write


def test_tfjs(tfjs):
  assert_read(keras_files.read_tfjs(tfjs()))


@pytest.mark.parametrize(
  ('damage', 'said'),
  [
    (lambda f: (f / 'group1-shard2.bin').unlink(), r'cannot read .*group1-shard2\.bin '),
    (
      lambda f: (f / 'group2-shard1.bin').write_bytes(b'1234'),
      r'model\.json .*4 bytes .*group2-shard1\.bin .*24\b.* again',
    ),
    (lambda f: (f / 'group1-shard1.bin').write_bytes(bytes(4000)), r'group1-shard1\.bin .*104'),
    (lambda f: (f / 'model.json').write_text('{'), r'cannot read .*model\.json'),
    (lambda f: (f / 'model.json').write_text('{}'), r'shards .*model\.json'),
    (lambda f: (f / 'model.json').unlink(), r'cannot read .*model\.json'),
  ],
)
def test_a_damaged_folder_is_refused(tfjs, damage, said):
  folder = tfjs()
  damage(folder)
  with pytest.raises(errors.InputError, match=said):
    keras_files.read_tfjs(folder)


def test_quantized_weights_are_refused(tfjs):
  folder = tfjs()
  content = json.loads((folder / 'model.json').read_text())
  content['weightsManifest'][0]['weights'][0]['quantization'] = {'dtype': 'uint8', 'scale': 0.1, 'min': 0}
  (folder / 'model.json').write_text(json.dumps(content))
  with pytest.raises(errors.InputError, match=r'quantized .*conv1/kernel.* float32'):
    keras_files.read_tfjs(folder)


@pytest.mark.parametrize(
  ('content', 'names'),
  [
    (['tench', 'goldfish'], ('tench', 'goldfish')),
    ({'1': ['n01443537', 'goldfish'], '0': ['n01440764', 'tench']}, ('tench', 'goldfish')),
    ({'0': 'tench', '1': 'goldfish'}, ('tench', 'goldfish')),
    (None, ()),
  ],
)
def test_class_names(tmp_path, content, names):
  if content is not None:
    (tmp_path / 'labels.json').write_text(json.dumps(content))
  assert keras_files.class_names(tmp_path) == names


def test_class_names_with_a_byte_order_mark(tmp_path):
  (tmp_path / 'labels.json').write_text('["café", "tea"]', 'utf-8-sig')
  assert keras_files.class_names(tmp_path) == ('café', 'tea')


@pytest.mark.parametrize('content', ['3', '[1, 2]', '{"a": "tench"}', '[', '{"0": []}'])
def test_class_names_that_are_none_are_refused(tmp_path, content):
  (tmp_path / 'labels.json').write_text(content)
  with pytest.raises(errors.InputError, match=r'labels\.json'):
    keras_files.class_names(tmp_path)


KERAS_1 = {'kernel': 'W', 'bias': 'b', 'moving_mean': 'running_mean', 'moving_variance': 'running_std'}
# How the datasets of a layer are called: Keras 2, its second model in a process, Keras 1.
SPELLINGS = {
  'keras2': lambda layer, tensor: f'{layer}/{tensor}:0',
  'again': lambda layer, tensor: f'{layer}_1/{tensor}:0',
  'keras1': lambda layer, tensor: f'{layer}_{KERAS_1.get(tensor, tensor)}_1:0',
}


@pytest.fixture
def h5(tmp_path):
  """Writes the tensors as a `.h5` file; returns its path."""
  h5py = pytest.importorskip('h5py')

  def write(spelling='keras2', whole_model=False):
    path = tmp_path / f'{spelling}.h5'
    with h5py.File(path, 'w') as file:
      root = file.create_group('model_weights') if whole_model else file
      root.create_group('activation_1')  # a layer without weights
      for name, value in TENSORS.items():
        layer, tensor = name.split('/')
        root.require_group(layer)[SPELLINGS[spelling](layer, tensor)] = value
    return path

  return write


@pytest.mark.parametrize('spelling', SPELLINGS)
@pytest.mark.parametrize('whole_model', [False, True])
def test_h5(h5, spelling, whole_model):
  assert_read(keras_files.read_h5(h5(spelling, whole_model)))


@pytest.mark.parametrize('spelling', ['keras2', 'keras1'])
def test_a_model_among_the_layers_of_h5(h5, spelling):
  h5py, path = pytest.importorskip('h5py'), h5(spelling, whole_model=True)
  with h5py.File(path, 'a') as file:
    inner = file.create_group('model_weights/resnet50')
    for layer in ('conv1', 'bn_conv1'):  # whose datasets, not groups, are in that of the model
      for name in list(file[f'model_weights/{layer}']):
        file.move(f'model_weights/{layer}/{name}', f'model_weights/resnet50/{name}')
      del file[f'model_weights/{layer}']
    assert ('conv1' if spelling == 'keras2' else 'conv1_W_1:0') in inner
    file['model_weights/predictions/predictions/kernel:0'] = np.ones((2, 2), np.float32)
  assert_read(keras_files.read_h5(path), TENSORS | {'predictions/kernel': np.ones((2, 2), np.float32)})


def test_layers_with_several_kernels_are_no_models(tmp_path):
  h5py = pytest.importorskip('h5py')
  names = [f'block{n}_sepconv/block{n}_sepconv/{kind}_kernel:0' for n in (1, 2) for kind in ('depthwise', 'pointwise')]
  with h5py.File(tmp_path / 'xception.h5', 'w') as file:
    for number, name in enumerate(names):
      file[f'model_weights/{name}'] = np.full(3, number, np.float32)
  found = keras_files.read_h5(tmp_path / 'xception.h5')
  assert {name: value[0] for name, value in found.items()} == {
    f'block{n}_sepconv/{kind}_kernel': 2 * (n - 1) + (kind == 'pointwise')
    for n in (1, 2)
    for kind in ('depthwise', 'pointwise')
  }


def test_two_models_with_layers_of_one_name_are_refused(h5):
  h5py, path = pytest.importorskip('h5py'), h5()
  with h5py.File(path, 'a') as file:
    for tensor in ('kernel', 'bias'):
      for layer in ('conv1', 'conv2'):
        file[f'other/{layer}/{tensor}:0'] = np.zeros(2, np.float32)
  with pytest.raises(errors.InputError, match=r"keras2\.h5 holds several tensors 'conv1/\w+', .*save one alone"):
    keras_files.read_h5(path)


def test_a_damaged_h5_file_is_refused(h5):
  path = h5()
  path.write_bytes(path.read_bytes()[:-2000])
  with pytest.raises(errors.InputError, match=r'keras2\.h5 .*damaged'):
    keras_files.read_h5(path)


@pytest.mark.parametrize('read', [keras_files.read_h5, keras_files.read_keras])
def test_h5_without_h5py_is_refused_in_words(read, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'h5py', None)
  with pytest.raises(errors.InputError, match='pip install h5py'):
    read(tmp_path / 'model.h5')


# A model that Keras 3.15.1 saved, compressed afterwards: a convolution, a norm, a convolution
# without bias, a norm without scale, and a dense layer. Its tensors count on: 0, 1, 2, ...
KERAS_3 = pathlib.Path(__file__).with_name('keras3.keras')


def counted():
  shapes = {
    'conv1_conv/kernel': (2, 2, 3, 2),
    'conv1_conv/bias': (2,),
    'conv1_bn/gamma': (2,),
    'conv1_bn/beta': (2,),
    'conv1_bn/moving_mean': (2,),
    'conv1_bn/moving_variance': (2,),
    'second/kernel': (1, 1, 2, 2),
    'unscaled/0': (2,),
    'unscaled/1': (2,),
    'unscaled/2': (2,),
    'predictions/kernel': (2, 2),
    'predictions/bias': (2,),
  }
  result, start = {}, 0
  for name, shape in shapes.items():
    result[name] = np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape)
    start += result[name].size
  return result


@pytest.fixture
def keras_3(tmp_path):
  """Writes a copy of `KERAS_3`, or its weights alone, with or without the names of layers in the weights."""
  h5py = pytest.importorskip('h5py')

  def write(suffix, named=True, wrapped=False):
    with zipfile.ZipFile(KERAS_3) as archive:
      files = {name: archive.read(name) for name in archive.namelist()}
    weights = io.BytesIO(files['model.weights.h5'])
    with h5py.File(weights, 'a') as file:
      for layer in [] if named else file['layers'].values():
        layer['vars'].attrs.pop('name', None)
      if wrapped:  # a model inside of one
        file.move('layers', 'inner')
        file.create_group('layers/functional')
        file.move('inner', 'layers/functional/layers')
      file['optimizer/vars/more'] = np.zeros(3)
    path = tmp_path / f'model{suffix}'
    if suffix == '.weights.h5':
      path.write_bytes(weights.getvalue())
      return path
    with zipfile.ZipFile(path, 'w') as archive:
      for name, content in (files | {'model.weights.h5': weights.getvalue()}).items():
        archive.writestr(name, content)
    return path

  return write


def test_keras_3(keras_3):
  pytest.importorskip('h5py')
  assert_read(keras_files.read_keras(KERAS_3), counted())
  assert_read(keras_files.read_keras(keras_3('.keras')), counted())
  assert_read(keras_files.read_h5(keras_3('.weights.h5')), counted())
  assert_read(keras_files.read_h5(keras_3('.weights.h5', wrapped=True)), counted())


def test_keras_3_from_before_weights_had_names(keras_3):
  assert_read(keras_files.read_keras(keras_3('.keras', named=False)), counted())
  with pytest.raises(errors.InputError, match=r'no names of layers.*\.keras'):
    keras_files.read_h5(keras_3('.weights.h5', named=False))


@pytest.mark.parametrize(
  'damage',
  [
    lambda content: content[: len(content) // 2],
    lambda content: b'no archive',
    lambda content: content.replace(b'config.json', b'konfig.json'),
  ],
)
def test_a_damaged_keras_file_is_refused(tmp_path, damage):
  pytest.importorskip('h5py')
  path = tmp_path / 'model.keras'
  path.write_bytes(damage(KERAS_3.read_bytes()))
  with pytest.raises(errors.InputError, match=r'model\.keras .*damaged'):
    keras_files.read_keras(path)
