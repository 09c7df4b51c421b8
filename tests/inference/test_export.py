"""What other programs get: the same logits, and back again the same leaves."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from safetensors import numpy as safetensors_numpy

from dnt import config as schema
from dnt import errors, files, inference, trees
from dnt.inference import export
from dnt.training import initialize
from dnt.weights import preprocessing, pretrained
from tests.references import weights


def redrawn(variables):
  """The variables with kernels, scales and running statistics as a trained network has them, drawn by NumPy."""

  def drawn(path, leaf):
    low, high = (-0.5, 0.5) if path.endswith('bias') else (0.5, 1.5)
    if path.endswith('kernel'):
      high = np.sqrt(6 / np.prod(leaf.shape[-4:-1]))
      low = -high
    return weights.uniform(path, leaf.shape, low, high)

  return trees.map_with_path(drawn, variables)


def network_of(run, variables=None):
  def preprocess(images):
    return run.preprocess({'image': images}, None)

  shape, names = run.spec.image_shape, run.spec.class_names
  return inference.Network(run.config, run.model, run.table, variables, preprocess, shape, names, 'here', 1, False)


def write(folder, run, variables):
  network = network_of(run, variables)
  tensors = export.torch_tensors(network)
  files.write(folder / 'model.safetensors', safetensors_numpy.save(tensors, metadata={'format': 'pt'}))
  files.write_json(folder / 'config.json', export.timm_config(network))
  return folder / 'model.safetensors'


def assert_loads(path, described):
  """As load_state_dict(strict=True) demands it, and of the same dtypes."""
  tensors = safetensors_numpy.load_file(path)
  assert {name: (str(value.dtype), value.shape) for name, value in tensors.items()} == described


@pytest.mark.thorough
def test_torch_loads_the_tensors_and_dnt_loads_them_back(
  described, imagenet, build, images, normalized, logits, torch_logits, tmp_path
):
  imagenet.model.scan = True
  run = build(imagenet)
  variables = redrawn(run.init_variables())
  path = write(tmp_path, run, variables)

  options = {'depth': 18, 'classes': 10}
  assert_loads(path, described('resnet', **options))
  tensors = safetensors_numpy.load_file(path)
  x = normalized(images, run.config.data.mean, run.config.data.std)
  want = torch_logits('resnet', options, tensors, x)
  got = logits(run, variables, images)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * max(1, np.abs(want).max()))

  back = initialize.load_variables(run, pretrained.Source(str(path)))
  jax.tree.map(np.testing.assert_array_equal, back, variables)
  given = pretrained.Source(str(path))
  assert given.class_names == run.spec.class_names
  assert given.preprocessing.mean == tuple(run.config.data.mean)
  assert given.preprocessing.image_size == 32


def test_densenet_goes_there_and_back(described, imagenet, build, tmp_path):
  imagenet.model.update({'name': 'densenet', 'depth': 121})
  run = build(imagenet)
  variables = redrawn(run.init_variables())
  path = write(tmp_path, run, variables)
  assert_loads(path, described('densenet', classes=10))
  jax.tree.map(np.testing.assert_array_equal, pretrained.Source(str(path)).variables, variables)


@pytest.mark.parametrize(
  ('augment', 'resize', 'crop_mode', 'crop_pct'),
  [
    ('none', None, 'squash', 1.0),
    ('none', 'center_crop', 'center', 0.9),
    ('resized_crop_flip', None, 'center', 0.9),
    ('resized_crop_flip', 'squash', 'squash', 1.0),
  ],
)
def test_timm_is_told_how_images_are_prepared(imagenet, build, augment, resize, crop_mode, crop_pct):
  with imagenet.data.ignore_type():
    imagenet.data.eval_resize = resize
  imagenet.data.update({'augment': augment, 'eval_crop': 0.9, 'interpolation': 'bicubic'})
  imagenet.data.update({'mean': (0.1, 0.2, 0.3), 'std': (0.4, 0.5, 0.6)})
  found = export.timm_config(network_of(build(imagenet)))
  assert found['architecture'] == 'resnet18'
  assert found['num_classes'] == len(found['label_names']) == 10
  assert found['pretrained_cfg'] == {
    'architecture': 'resnet18',
    'num_classes': 10,
    'input_size': [3, 32, 32],
    'interpolation': 'bicubic',
    'crop_pct': crop_pct,
    'crop_mode': crop_mode,
    'mean': [0.1, 0.2, 0.3],
    'std': [0.4, 0.5, 0.6],
    'first_conv': 'conv1',
    'classifier': 'fc',
  }


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    ({'stem': 'cifar', 'depth': 20}, r'torchvision .*resnet .*depth 20\b.* resnet-18 .*--format=stablehlo'),
    ({'norm': 'group_norm'}, r"resnet-18 .*norm='batch_norm' \(now 'group_norm'\).* --format=stablehlo"),
    ({'depth': 50, 'stride_on': '1x1'}, r"stride_on='3x3' \(now '1x1'\)"),
    ({'residual_scalar': 0.5}, r'residual_scalar=None \(now 0.5\)'),
  ],
)
def test_a_network_that_torchvision_lacks_is_refused(imagenet, build, options, said):
  imagenet.model.update(options)
  network = network_of(build(imagenet))
  with pytest.raises(errors.InputError, match=said):
    export.timm_config(network)


@pytest.mark.thorough
def test_the_program_gives_the_same_logits_for_any_number_of_images(tiny, build, logits):
  tiny.model.width = None
  tiny.model.update({'name': 'resnet', 'depth': 14, 'scan': True})
  run = build(tiny)
  variables = redrawn(run.init_variables())
  program = jax_export.deserialize(bytearray(export.stablehlo(network_of(run, variables))))
  assert program.platforms == export.PLATFORMS
  for count in (1, 3):
    images = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), np.uint8)
    want = logits(run, variables, images)
    np.testing.assert_allclose(program.call(images), want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_flax_paths_are_unrolled_and_float32(tiny, build):
  tiny.model.width = None
  tiny.model.update({'name': 'resnet', 'depth': 14, 'scan': True})
  run = build(tiny)
  variables = redrawn(run.init_variables())
  variables['params']['head']['dense']['bias'] = jnp.asarray(variables['params']['head']['dense']['bias'], jnp.bfloat16)
  found = export.flax_tensors(network_of(run, variables))
  assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
  scanned = variables['params']['stage2']['scanned']['conv1']['kernel']
  np.testing.assert_array_equal(found['params/stage2/block002/conv1/kernel'], scanned[0])
  np.testing.assert_array_equal(found['params/head/dense/bias'], variables['params']['head']['dense']['bias'])
  statistics = variables['batch_stats']['stem']['norm']['var']
  np.testing.assert_array_equal(found['batch_stats/stem/norm/var'], statistics)
  tiny.model.scan = False
  unrolled = build(tiny).init_variables()
  assert {*found} == {'/'.join(each.key for each in path) for path, _ in jax.tree.leaves_with_path(unrolled)}


OWN = """
import flax.linen as nn
import jax

class Net(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    x = x.mean((1, 2))
    x = {}
    return nn.Dense(self.num_classes, name='head')(x)
"""


@pytest.mark.parametrize(
  ('line', 'place', 'said'),
  [
    ('x[: min(4, x.shape[0])]', r':11: ', "'b' < '4'"),
    ('sum(x[i : i + 1] for i in range(x.shape[0])) + x', r':11: ', 'integer'),
    ('jax.pure_callback(lambda y: y, x, x)', '', 'callback'),
  ],
)
def test_an_own_module_that_needs_to_know_the_number_of_images_is_refused(
  tiny, build, tmp_path, monkeypatch, line, place, said
):
  name = f'counting{len(line)}'
  (tmp_path / f'{name}.py').write_text(OWN.format(line))
  monkeypatch.syspath_prepend(tmp_path)
  tiny.model.update({'name': f'{name}:Net', 'depth': None, 'width': None})
  run = build(tiny)
  where = re.escape(str(tmp_path / f'{name}.py')) + place if place else ''
  with pytest.raises(errors.InputError, match=f'^{name}:Net cannot .*x.shape.0.*tpu; {where}.*{said}') as found:
    export.stablehlo(network_of(run, run.init_variables()))
  assert '\n' not in str(found.value)


def test_the_program_comes_with_how_to_call_it(tiny, build):
  run = build(tiny)
  found = export.stablehlo_description(network_of(run))
  assert found['input'] == {'shape': ['b', 8, 8, 3], 'dtype': 'uint8', 'channels': 'red first'}
  assert found['output']['shape'] == ['b', 10]
  assert found['class_names'] == list(run.spec.class_names)
  data = run.config.data
  assert found['preprocessing'] == {
    'exif_rotation': False,
    'image_bits': 16,
    'crop_to_box': False,
    'input_size': [3, 8, 8],
    'interpolation': 'bilinear',
    'crop_pct': 1.0,
    'crop_mode': 'squash',
    'normalized_inside': True,
    'mean': list(data.mean),
    'std': list(data.std),
  }
  assert preprocessing.of_run(data).image_size == 8


def test_other_ways_to_read_images_are_said(tiny, build, caplog):
  network = network_of(build(tiny))
  with caplog.at_level(logging.INFO, 'dnt'):
    export.say_decoding(network)
    assert not caplog.text
    config = schema.copy_unlocked(network.config)
    config.data.update({'exif_rotation': True, 'image_bits': 12, 'crop_to_box': True})
    network = network._replace(config=config, image_shape=(8, 8, 1))
    export.say_decoding(network)
  found = export.stablehlo_description(network)
  assert (found['preprocessing']['exif_rotation'], found['preprocessing']['image_bits']) == (True, 12)
  assert found['preprocessing']['crop_to_box'] is True
  assert found['input']['channels'] == 'gray'
  (line,) = caplog.messages
  assert re.search(r'EXIF .*data.exif_rotation.* 12 bits .*data.image_bits.* box .*data.crop_to_box', line)
