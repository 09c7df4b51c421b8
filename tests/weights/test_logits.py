"""The same logits as where the weights come from: basic blocks are compared in test_exported."""

import io
import json
import os
import pathlib
import re
import zipfile

import numpy as np
import pytest

from dnt import trees
from dnt.data.transforms import images
from dnt.training import initialize
from dnt.weights import preprocessing, pretrained

KERAS_STATISTICS = ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3)


def of_1000_classes(config):
  """The config with as many classes as ImageNet has, so that the head comes too."""
  config.data.synthetic_classes = 1000
  return config


def assert_close(got, want):
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * max(1, np.abs(want).max()))


def assert_equal(got, want):
  got, want = trees.flatten(got), trees.flatten(want)
  assert got.keys() == want.keys()
  for path, leaf in want.items():
    np.testing.assert_array_equal(got[path], leaf, err_msg=path)


@pytest.mark.thorough
@pytest.mark.parametrize(('name', 'depth', 'scan'), [('resnet', 50, True), ('densenet', 121, False)])
def test_logits_are_those_of_torch(
  drawn, save, imagenet, build, images, normalized, logits, torch_logits, name, depth, scan
):
  options = {'depth': depth} if name == 'resnet' else {}
  tensors = drawn(name, **options)
  config = of_1000_classes(imagenet)
  config.model.update({'name': name, 'depth': depth, 'scan': scan})
  config.train.init_from = str(save(tensors))
  run = build(config)
  variables = initialize.load_variables(run, pretrained.Source(config.train.init_from))
  assert_close(logits(run, variables, images), torch_logits(name, options, tensors, normalized(images)))


def keras_name(name, new):
  """The Keras tensor of one of torchvision's, spelt out for itself: layer1.0.conv1.weight, res2a_branch2a/kernel."""
  layer, _, leaf = name.rpartition('.')
  norm = leaf.startswith('running') or 'bn' in layer or layer.endswith('downsample.1')
  tensor = {'weight': 'gamma', 'bias': 'beta', 'running_mean': 'moving_mean', 'running_var': 'moving_variance'}
  tensor = tensor[leaf] if norm else {'weight': 'kernel', 'bias': 'bias'}[leaf]
  if layer in ('conv1', 'bn1', 'fc'):
    plain = ('conv1_conv', 'conv1_bn', 'predictions') if new else ('conv1', 'bn_conv1', 'fc1000')
    return f'{plain[("conv1", "bn1", "fc").index(layer)]}/{tensor}'
  stage, block, part = re.fullmatch(r'layer(\d)\.(\d+)\.(.+)', layer).groups()
  branch = 0 if part.startswith('downsample') else int(part[-1])
  if new:
    return f'conv{int(stage) + 1}_block{int(block) + 1}_{branch}_{"bn" if norm else "conv"}/{tensor}'
  suffix = f'2{"abc"[branch - 1]}' if branch else '1'
  return f'{"bn" if norm else "res"}{int(stage) + 1}{"abcdef"[int(block)]}_branch{suffix}/{tensor}'


def keras_tensors(torch_tensors, new=False):
  """A torch network that takes blue first as Keras holds it."""
  tensors = {}
  for name, array in torch_tensors.items():
    if not name.endswith('num_batches_tracked'):
      array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
      tensors[keras_name(name, new)] = np.ascontiguousarray(array)
  return tensors


@pytest.fixture
def write_tfjs(tmp_path):
  """Writes tensors in TensorFlow.js' layers format; returns the folder."""

  def write(tensors, labels=None):
    folder = tmp_path / 'tfjs'
    folder.mkdir()
    weights = [{'name': name, 'shape': list(value.shape), 'dtype': 'float32'} for name, value in tensors.items()]
    (folder / 'shard1.bin').write_bytes(b''.join(value.tobytes() for value in tensors.values()))
    manifest = {'weightsManifest': [{'paths': ['shard1.bin'], 'weights': weights}]}
    (folder / 'model.json').write_text(json.dumps(manifest))
    if labels:
      (folder / 'labels.json').write_text(json.dumps(labels))
    return folder

  return write


KERAS_RESNET50 = {'depth': 50, 'stride_on': '1x1', 'bias': True, 'eps': 1e-3}


@pytest.fixture
def keras_resnet50(drawn):
  """Keras' ResNet-50 with drawn weights, as torch holds it."""
  tensors = drawn('resnet', **KERAS_RESNET50)
  # Its inputs are not divided by their spread.
  tensors['bn1.running_var'] *= 1e4
  return tensors


def of_keras(config):
  config.model.update({'depth': 50, 'stride_on': '1x1', 'norm_epsilon': 1e-3, 'scan': True})
  return config


def keras_images(images):
  """As keras.applications prepares them: blue, green, red, minus a mean each."""
  return images[..., ::-1].astype(np.float32) - np.array([103.939, 116.779, 123.68], np.float32).reshape(1, 1, 1, 3)


@pytest.mark.thorough
def test_logits_are_those_of_keras(keras_resnet50, write_tfjs, imagenet, build, images, logits, torch_logits):
  """Biases in the convolutions, stride on the 1x1, blue first: and labels come along."""
  config = of_keras(of_1000_classes(imagenet))
  labels = [f'class{index}' for index in range(1000)]  # the names of the data, so that the head is kept
  config.train.init_from = f'tfjs:{write_tfjs(keras_tensors(keras_resnet50), labels)}'
  run = build(config)
  assert (tuple(run.config.data.mean), tuple(run.config.data.std)) == KERAS_STATISTICS
  given = pretrained.Source(config.train.init_from)
  assert given.class_names == tuple(labels)
  variables = initialize.load_variables(run, pretrained.Source(config.train.init_from))
  want = torch_logits('resnet', KERAS_RESNET50, keras_resnet50, keras_images(images))
  assert_close(logits(run, variables, images), want)


@pytest.mark.thorough
def test_h5_with_newer_names_holds_the_same(keras_resnet50, write_tfjs, tmp_path):
  h5py = pytest.importorskip('h5py')
  with h5py.File(tmp_path / 'resnet50.h5', 'w') as file:
    for name, value in keras_tensors(keras_resnet50, new=True).items():
      layer, tensor = name.split('/')
      file.require_group(layer)[f'{layer}/{tensor}:0'] = value
  found = pretrained.Source(str(tmp_path / 'resnet50.h5'))
  assert_equal(found.variables, pretrained.Source(f'tfjs:{write_tfjs(keras_tensors(keras_resnet50))}').variables)
  assert found.preprocessing == preprocessing.KERAS
  assert found.decisive['norm_epsilon'] == 1.001e-5


@pytest.mark.thorough
def test_keras_3_holds_the_same(keras_resnet50, write_tfjs, tmp_path):
  h5py = pytest.importorskip('h5py')
  kinds = {'kernel': ('conv2d', 0), 'bias': ('conv2d', 1)}
  kinds |= {
    name: ('batch_normalization', i) for i, name in enumerate(('gamma', 'beta', 'moving_mean', 'moving_variance'))
  }
  weights, keys = io.BytesIO(), {}
  with h5py.File(weights, 'w') as file:
    for name, value in keras_tensors(keras_resnet50, new=True).items():
      layer, tensor = name.split('/')
      kind, index = kinds[tensor]
      kind = 'dense' if layer == 'predictions' else kind
      count = sum(key.startswith(kind) for key in keys.values())
      key = keys.setdefault(layer, f'{kind}_{count}' if count else kind)
      tensors = file.require_group(f'layers/{key}/vars')
      tensors.attrs['name'], tensors[str(index)] = layer, value
  (tmp_path / 'model.weights.h5').write_bytes(weights.getvalue())
  with zipfile.ZipFile(tmp_path / 'model.keras', 'w') as archive:
    archive.writestr('config.json', json.dumps({'config': {'layers': []}}))
    archive.writestr('model.weights.h5', weights.getvalue())
  expected = pretrained.Source(f'tfjs:{write_tfjs(keras_tensors(keras_resnet50))}').variables
  for name in ('model.weights.h5', 'model.keras'):
    found = pretrained.Source(str(tmp_path / name))
    assert_equal(found.variables, expected)
    assert (found.preprocessing, found.network['depth']) == (preprocessing.KERAS, 50)


def real_keras():
  where = os.environ.get('DNT_RESNET50_KERAS')
  if not where:
    pytest.skip('DNT_RESNET50_KERAS does not name the folder of the Keras ResNet-50 (model.json, shards, labels.json)')
  return pathlib.Path(where)


def real_tensors(folder):
  """Read for itself, in the order of the manifest."""
  (group,) = json.loads((folder / 'model.json').read_text())['weightsManifest']
  packed = b''.join((folder / name).read_bytes() for name in group['paths'])
  tensors, start = {}, 0
  for weight in group['weights']:
    value = np.frombuffer(packed, '<f4', int(np.prod(weight['shape'])), start)
    tensors[weight['name']] = value.reshape(weight['shape']).copy()
    start += value.nbytes
  return tensors


VEHICLES = {
  'beach_wagon',
  'cab',
  'convertible',
  'grille',
  'jeep',
  'limousine',
  'minivan',
  'moving_van',
  'pickup',
  'racer',
  'sports_car',
}


@pytest.mark.thorough
def test_the_real_keras_resnet50(real_logits, described, imagenet, build, logits):
  """Logits on photographs of cars (or, without them, on noise) are torch's; the cars are cars."""
  folder = real_keras()
  tensors = real_tensors(folder)
  state = {}
  for name, (dtype, shape) in described('resnet', **KERAS_RESNET50).items():
    state[name] = np.zeros(shape, dtype)
    if not name.endswith('num_batches_tracked'):
      array = tensors.pop(keras_name(name, new=False))
      state[name] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
  assert not tensors

  photographs = sorted(pathlib.Path(os.environ.get('DNT_CARS_DIR', '')).glob('cars_train/*.jpg'))[:4]
  noise = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), np.uint8)
  decoded = (images.decode(path, path.name) for path in photographs)
  images = np.stack([images.to_array(images.squash(image, None, (224, 224))) for image in decoded] or noise)

  config = of_keras(of_1000_classes(imagenet))
  config.train.init_from = f'tfjs:{folder}'
  run = build(config)
  got = logits(run, initialize.load_variables(run, pretrained.Source(config.train.init_from)), images)
  want = real_logits('resnet', KERAS_RESNET50, state, keras_images(images))
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
  if photographs:
    labels = pretrained.Source(config.train.init_from).class_names
    assert {labels[index] for index in got.argmax(-1)} <= VEHICLES
