"""Weights by one string: the same logits as where they come from, and every way in which they can be refused."""

import json
import os
import pathlib
import re
import sys
import types

import numpy as np
import pytest

from dnt import errors, files, initial, recorded, trees
from dnt.data import images
from dnt.transfer import preprocessing, pretrained

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


@pytest.mark.parametrize(
  ('name', 'depth', 'scan'), [('resnet', 18, False), ('resnet', 50, True), ('densenet', 121, False)]
)
def test_logits_are_those_of_torch(
  reference, drawn, save, imagenet, build, pictures, logits, torch_logits, name, depth, scan
):
  network = drawn(reference.ResNet(depth) if name == 'resnet' else reference.DenseNet121())
  config = of_1000_classes(imagenet)
  config.model.update({'name': name, 'depth': depth, 'scan': scan})
  config.train.init_from = str(save(network))
  run = build(config)
  variables = initial.load_variables(run, config.train.init_from)
  assert_close(logits(run, variables, pictures), torch_logits(network, pictures))


def test_pickles_hold_the_same_as_safetensors(resnet18, save):
  first = pretrained.load(str(save(resnet18)))
  for name, content in (('a.pth', resnet18), ('b.bin', {'state_dict': resnet18.state_dict()})):
    assert_equal(pretrained.load(str(save(content, name))).variables, first.variables)
  assert first.preprocessing == preprocessing.IMAGENET


def test_old_torchvision_names_of_densenet(reference, drawn, save):
  state = drawn(reference.DenseNet121(classes=3)).state_dict()
  old = {re.sub(r'(denselayer\d+\.(?:norm|conv))(\d)', r'\1.\2', name): value for name, value in state.items()}
  assert 'features.denseblock2.denselayer12.norm.2.running_var' in old
  found = [pretrained.load(str(save(each, f'{i}.safetensors'))).variables for i, each in enumerate((state, old))]
  assert_equal(*found)


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


def keras_tensors(network, new=False):
  """A torch network that takes blue first as Keras holds it."""
  tensors = {}
  for name, value in network.state_dict().items():
    if not name.endswith('num_batches_tracked'):
      array = value.numpy()
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


@pytest.fixture(scope='module')
def keras_resnet50(reference, drawn):
  """Keras' ResNet-50 with drawn weights, in torch."""
  network = drawn(reference.ResNet(50, stride_on='1x1', bias=True, eps=1e-3))
  # Its inputs are not divided by their spread.
  network.bn1.running_var *= 1e4
  return network


def of_keras(config, epsilon=1e-3):
  config.model.update({'depth': 50, 'stride_on': '1x1', 'norm_epsilon': epsilon})
  return config


def keras_logits(reference, network, pictures):
  """As keras.applications prepares them: blue, green, red, minus a mean each."""
  x = pictures[..., ::-1].astype(np.float32) - np.array([103.939, 116.779, 123.68], np.float32).reshape(1, 1, 1, 3)
  with reference.torch.no_grad():
    return network(reference.torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))).numpy()


def test_logits_are_those_of_keras(reference, keras_resnet50, write_tfjs, imagenet, build, pictures, logits):
  """Biases in the convolutions, stride on the 1x1, blue first: and labels come along."""
  config = of_keras(of_1000_classes(imagenet))
  labels = [f'class {index}' for index in range(1000)]
  config.train.init_from = f'tfjs:{write_tfjs(keras_tensors(keras_resnet50), labels)}'
  run = build(config)
  assert (tuple(run.config.data.mean), tuple(run.config.data.std)) == KERAS_STATISTICS
  given = pretrained.load(config.train.init_from)
  assert given.class_names == tuple(labels)
  variables = initial.load_variables(run, config.train.init_from)
  want = keras_logits(reference, keras_resnet50, pictures)
  assert_close(logits(run, variables, pictures), want)


@pytest.mark.parametrize('new', [False, True])
def test_h5_holds_the_same_as_tfjs(keras_resnet50, write_tfjs, tmp_path, new):
  h5py = pytest.importorskip('h5py')
  with h5py.File(tmp_path / 'resnet50.h5', 'w') as file:
    for name, value in keras_tensors(keras_resnet50, new).items():
      layer, tensor = name.split('/')
      file.require_group(layer)[f'{layer}/{tensor}:0'] = value
  found = pretrained.load(str(tmp_path / 'resnet50.h5'))
  assert_equal(found.variables, pretrained.load(f'tfjs:{write_tfjs(keras_tensors(keras_resnet50))}').variables)
  assert found.preprocessing == preprocessing.KERAS
  assert found.model['norm_epsilon'] == (1.001e-5 if new else 1e-3)


def test_the_hub_is_a_folder_with_timms_description(resnet18, save, monkeypatch, imagenet, build):
  path = save(resnet18, 'snapshot/model.safetensors')
  labels = [f'class {index}' for index in range(1000)]
  cfg = {'input_size': [3, 64, 64], 'interpolation': 'bicubic', 'crop_pct': 0.95, 'mean': [0.5] * 3, 'std': [0.25] * 3}
  path.with_name('config.json').write_text(json.dumps({'pretrained_cfg': cfg, 'label_names': labels}))
  served = types.SimpleNamespace(hf_hub_download=lambda name, file: str(path.with_name(file)))
  monkeypatch.setitem(sys.modules, 'huggingface_hub', served)
  imagenet.train.init_from = 'hf:timm/resnet18.toy'
  imagenet.data.image_size = None
  data = build(imagenet).config.data
  assert (data.image_size, data.interpolation, data.eval_crop) == (64, 'bicubic', 0.95)
  assert (tuple(data.mean), tuple(data.std)) == ((0.5,) * 3, (0.25,) * 3)
  given = pretrained.load('hf:timm/resnet18.toy')
  assert_equal(given.variables, pretrained.load(str(path)).variables)
  assert given.class_names == tuple(labels)


def test_what_the_user_sets_wins_and_the_config_records_what_ran(resnet18, save, imagenet, build, tmp_path):
  imagenet.train.init_from = str(save(resnet18))
  imagenet.data.update({'interpolation': 'bicubic', 'mean': (0.1, 0.2, 0.3), 'std': (1.0, 1.0, 1.0)})
  run = build(imagenet)
  assert run.spec.image_shape == (32, 32, 3)
  assert (run.config.data.interpolation, run.config.data.eval_crop) == ('bicubic', 0.875)
  assert tuple(run.config.data.mean) == (0.1, 0.2, 0.3)
  files.write_json(tmp_path / 'config.json', run.config.to_dict())
  assert recorded.get_config(str(tmp_path / 'config.json')).data.to_dict() == run.config.data.to_dict()


@pytest.mark.parametrize('init_from', ['', 'weights'])
def test_the_size_comes_with_the_weights(resnet18, save, imagenet, build, init_from):
  imagenet.data.image_size = None
  imagenet.train.init_from = init_from and str(save(resnet18))
  assert build(imagenet).spec.image_shape == ((224, 224, 3) if init_from else (32, 32, 3))


def test_a_head_of_other_classes_starts_from_the_seed(resnet18, save, imagenet, build, capsys):
  path = str(save(resnet18))
  run = build(imagenet)
  found, fresh = (trees.flatten(each) for each in (initial.load_variables(run, path), run.init_variables()))
  given = trees.flatten(pretrained.load(path).variables)
  for leaf in found:
    want = fresh if leaf.startswith('params/head/') else given
    np.testing.assert_array_equal(found[leaf], want[leaf], err_msg=leaf)
  assert capsys.readouterr().out == (
    f'{path} has 1000 classes and the data 10: params/head/dense/bias, params/head/dense/kernel start from '
    'config.seed\n'
  )


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (lambda s: s.pop('layer3.1.bn2.running_var'), 'is not a whole resnet-18 .*missing: layer3.1.bn2.running_var$'),
    (lambda s: s.update(extra=s['fc.bias'].clone()), 'is not a whole resnet-18 .*unexpected: extra$'),
    (lambda s: s.pop('fc.weight'), 'missing: fc.weight$'),
    (lambda s: s.update({'fc.bias': s['fc.bias'][:7].clone()}), r'params/head/dense/bias: \(7,\), wanted \(10,\)'),
    (
      lambda s: s.update({'layer4.0.conv2.weight': s['layer4.0.conv2.weight'][:, :8].clone()}),
      r'params/stage4/block001/conv2/kernel: \(3, 3, 8, 512\), wanted \(3, 3, 512, 512\)',
    ),
  ],
)
def test_a_file_that_is_not_whole_is_refused_by_name(resnet18, save, imagenet, build, change, said):
  state = dict(resnet18.state_dict())
  change(state)
  run = build(imagenet)
  with pytest.raises(errors.InputError, match=said):
    initial.load_variables(run, str(save(state)))


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    ({'depth': 34}, 'set config.model.depth=18 (now 34)'),
    ({'norm_epsilon': 1e-3, 'activation': 'gelu'}, "norm_epsilon=1e-05 (now 0.001), config.model.activation='relu'"),
    (
      {'depth': 50},
      "set config.model.depth=18 (now 50), config.model.block='basic' (now 'bottleneck')",
    ),
    (
      {'name': 'densenet', 'depth': 121},
      "set config.model.name='resnet' (now 'densenet'), config.model.depth=18 (now 121)",
    ),
    (
      {'name': 'mlp', 'depth': 3, 'stem': None},
      "config.model.name='resnet' (now 'mlp'), config.model.stem='imagenet' (now None), config.model.depth=18 (now 3)",
    ),
  ],
)
def test_weights_of_another_network_say_what_to_set(resnet18, save, imagenet, build, options, said):
  with imagenet.model.ignore_type():
    imagenet.model.update(options)
  run = build(imagenet)
  with pytest.raises(
    errors.InputError, match=re.escape('holds weights of another network than config.model; set ')
  ) as e:
    initial.load_variables(run, str(save(resnet18)))
  assert str(e.value).endswith(said) or said in str(e.value)


def test_keras_weights_say_what_to_set(keras_resnet50, write_tfjs, imagenet, build):
  text = f'tfjs:{write_tfjs(keras_tensors(keras_resnet50))}'
  imagenet.model.depth = 50
  with pytest.raises(errors.InputError) as caught:
    initial.load_variables(build(imagenet), text)
  assert str(caught.value) == (
    f"{text} holds weights of another network than config.model; set config.model.stride_on='1x1' (now '3x3'), "
    'config.model.norm_epsilon=0.001 (now 1e-05)'
  )


@pytest.mark.parametrize('text', ['resnet50', 'missing.safetensors', 'tfjs:missing', 'missing.pth', 'tfjs:'])
def test_nothing_there_says_what_it_takes(text):
  for read in (pretrained.load, pretrained.preprocessing):
    with pytest.raises(
      errors.InputError, match=r'there is nothing at .*; it takes a dnt workdir, .*hf:<owner>/<name>'
    ) as e:
      read(text)
    assert '\n' not in str(e.value)


def test_a_folder_that_is_no_workdir(tmp_path):
  with pytest.raises(errors.InputError, match='is no workdir of a dnt run'):
    pretrained.load(str(tmp_path))


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
    tensors[weight['name']] = value.reshape(weight['shape'])
    start += value.nbytes
  return tensors


CARS = {'beach_wagon', 'cab', 'convertible', 'grille', 'jeep', 'limousine', 'minivan', 'pickup', 'racer', 'sports_car'}


def test_the_real_keras_resnet50(reference, imagenet, build, logits):
  """Logits on photographs of cars (or, without them, on noise) are torch's; the cars are cars."""
  folder = real_keras()
  tensors = real_tensors(folder)
  network = reference.ResNet(50, stride_on='1x1', bias=True, eps=1e-3)
  state = network.state_dict()
  for name, value in state.items():
    if not name.endswith('num_batches_tracked'):
      array = tensors.pop(keras_name(name, new=False))
      value.copy_(reference.torch.from_numpy(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T))
  assert not tensors
  network.eval()

  photographs = sorted(pathlib.Path(os.environ.get('DNT_CARS_DIR', '')).glob('cars_train/*.jpg'))[:4]
  noise = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), np.uint8)
  pictures = np.stack([images.squash(images.decode(p, p.name), None, (224, 224)) for p in photographs] or noise)

  config = of_keras(of_1000_classes(imagenet))
  config.train.init_from = f'tfjs:{folder}'
  run = build(config)
  got = logits(run, initial.load_variables(run, config.train.init_from), pictures)
  np.testing.assert_allclose(got, keras_logits(reference, network, pictures), rtol=0, atol=1e-4)
  if photographs:
    labels = pretrained.load(config.train.init_from).class_names
    assert {labels[index] for index in got.argmax(-1)} <= CARS
