import numpy as np
import pytest

from dnt import config, errors, models, trees
from dnt.models import depth
from dnt.weights import names


def build(network, classes=1000):
  model = config.default().model
  model.update(network.model)
  return models.make(model, classes)


def to_dnt(shape):
  """Of a torch weight, as dnt lays it out."""
  return {4: lambda o, i, h, w: (h, w, i, o), 2: lambda o, i: (i, o)}.get(len(shape), lambda *s: s)(*shape)


@pytest.mark.parametrize(('family', 'layers'), [('resnet', n) for n in (18, 34, 50, 101, 152)] + [('densenet', 121)])
def test_every_leaf_has_its_tensor_of_the_same_shape(described, family, layers):
  """Against torchvision's networks, written out, and dnt's own: both ways, nothing is left over."""
  tensors = described(family, depth=layers) if family == 'resnet' else described(family)
  given = {name: shape for name, (_, shape) in tensors.items() if not name.endswith('num_batches_tracked')}
  network = names.identify(given, 'torch', 'here')
  assert network.title == f'{family}-{layers} (PyTorch)'
  table = network.tensors()
  assert sorted(table.values()) == sorted(given)
  ours = trees.flatten(depth.trace(build(network), (64, 64, 3)).variables)
  assert {path: leaf.shape for path, leaf in ours.items()} == {path: to_dnt(given[n]) for path, n in table.items()}


@pytest.mark.parametrize('network', names.networks('torch') + names.networks('keras'), ids=lambda each: each.title)
def test_a_network_is_described_without_what_differs_from_run_to_run(network):
  assert set(network.model).isdisjoint(config.model_options('training', 'run'))


@pytest.mark.parametrize('network', names.networks('keras'), ids=lambda network: network.title)
def test_the_layers_of_keras_are_those_of_the_same_torch_network(network):
  model = network.model
  torch = next(each for each in names.networks('torch') if each.title.startswith(f'resnet-{model["depth"]} '))
  assert network.layers.keys() == torch.layers.keys()
  assert len(set(network.layers.values())) == len(network.layers)
  assert model == torch.model | {'stride_on': '1x1', 'norm_epsilon': model['norm_epsilon']}


def test_names_of_keras_as_they_are_published():
  """Keras 2.2.4's summary of ResNet50, and keras.applications' of 2020."""
  old, new, *_ = names.networks('keras')
  for network, listed in (
    (
      old,
      'conv1 bn_conv1 res2a_branch2a bn2a_branch2c res2a_branch1 bn3d_branch2b res4f_branch2c bn5c_branch2a fc1000',
    ),
    (
      new,
      'conv1_conv conv1_bn conv2_block1_0_conv conv2_block1_3_bn conv4_block6_2_conv conv5_block3_1_bn predictions',
    ),
  ):
    assert set(listed.split()) <= set(network.layers.values())
  assert old.layers['stage3/block006/conv3'] == 'res4f_branch2c'
  assert new.layers['stage1/block001/shortcut/norm'] == 'conv2_block1_0_bn'
  assert (old.model['norm_epsilon'], new.model['norm_epsilon']) == (1e-3, 1.001e-5)


def small_network():
  """Two layers, in the names of Keras."""
  return names.Network('toy', 'keras', {}, {'stem/conv': 'conv1', 'stem/norm': 'bn_conv1'})


def tensors_of(network, seed=0):
  draw = np.random.default_rng(seed)
  shapes = {'kernel': (3, 3, 3, 4)}
  return {name: draw.normal(size=shapes.get(name.split('/')[1], (4,))) for name in network.tensors().values()}


def test_a_bias_goes_into_the_mean_and_blue_comes_last():
  network = small_network()
  tensors = tensors_of(network)
  found = trees.flatten(names.to_variables(tensors, network, 'here'))
  assert set(found) == {
    'params/stem/conv/kernel',
    *(f'params/stem/norm/{name}' for name in ('scale', 'bias')),
    *(f'batch_stats/stem/norm/{name}' for name in ('mean', 'var')),
  }
  assert {leaf.dtype for leaf in found.values()} == {np.dtype(np.float32)}
  mean = np.float32(tensors['bn_conv1/moving_mean']) - np.float32(tensors['conv1/bias'])
  np.testing.assert_array_equal(found['batch_stats/stem/norm/mean'], mean)
  np.testing.assert_array_equal(found['params/stem/conv/kernel'], np.float32(tensors['conv1/kernel'])[:, :, ::-1])
  np.testing.assert_array_equal(found['params/stem/norm/scale'], np.float32(tensors['bn_conv1/gamma']))
  np.testing.assert_array_equal(found['batch_stats/stem/norm/var'], np.float32(tensors['bn_conv1/moving_variance']))


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (lambda t: t.pop('bn_conv1/gamma'), 'here .*toy.* missing: bn_conv1/gamma$'),
    (lambda t: t.update({'conv1/gamma': t['bn_conv1/gamma']}), 'here .*toy.* unexpected: conv1/gamma$'),
    (
      lambda t: t.update({'conv1/kernel': np.zeros((3, 4))}),
      r'here .*toy.* shape: conv1/kernel \(3, 4\).* 4 axes$',
    ),
    (
      lambda t: t.update({'conv1/bias': np.zeros(5)}),
      r'here .*read.* shape: conv1/bias \(5,\).* \(4,\) .*bn_conv1/moving_mean$',
    ),
    (
      lambda t: (t.pop('conv1/kernel'), t.pop('conv1/bias'), t.update(other=np.zeros(1))),
      'here .*toy.* missing: conv1/kernel, conv1/bias; unexpected: other$',
    ),
  ],
)
def test_what_is_not_whole_is_refused_by_name(change, said):
  network = small_network()
  tensors = tensors_of(network)
  change(tensors)
  with pytest.raises(errors.InputError, match=said):
    names.to_variables(tensors, network, 'here')


def test_torch_tensors_there_and_back_are_the_same(resnet18):
  network = names.identify(names.current_names(resnet18, 'torch'), 'torch', 'here')
  variables = names.to_variables(names.current_names(resnet18, 'torch'), network, 'here')
  back = names.from_variables(variables, network)
  assert back.keys() == resnet18.keys()
  for name, value in resnet18.items():
    assert back[name].dtype == value.dtype
    np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_older_names_are_brought_up_to_date():
  old = {'features.denseblock1.denselayer12.norm.1.weight': 1, 'features.denseblock1.denselayer12.conv.2.weight': 2}
  new = {'features.denseblock1.denselayer12.norm1.weight': 1, 'features.denseblock1.denselayer12.conv2.weight': 2}
  untouched = {'features.transition1.norm.weight': 3}
  counters = {'bn1.num_batches_tracked': 4}
  assert names.current_names(old | untouched | counters, 'torch') == new | untouched
  assert names.current_names({'probs/kernel': 1, 'conv1/bias': 2}, 'keras') == {
    'predictions/kernel': 1,
    'conv1/bias': 2,
  }


def test_an_unknown_network_is_refused_with_what_is_known():
  with pytest.raises(errors.InputError, match=r'^here .*6 tensors: t0, t1, t2, t3, \.\.\..*resnet-18'):
    names.identify([f't{index}' for index in range(6)], 'torch', 'here')


def test_differences_are_what_to_set():
  network = names.networks('keras')[0]
  assert names.differences(network.model, network.model) == ''
  other = network.model | {'norm_epsilon': 1e-5, 'stride_on': '3x3'}
  assert names.differences(network.model, other) == (
    "config.model.stride_on='1x1' (now '3x3'), config.model.norm_epsilon=0.001 (now 1e-05)"
  )
