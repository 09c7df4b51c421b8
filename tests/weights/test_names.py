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
  result = {name: draw.normal(size=shapes.get(name.split('/')[1], (4,))) for name in network.tensors().values()}
  return result | {name: abs(value) for name, value in result.items() if name.endswith('variance')}


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
      lambda t: t.update({'conv1/bias': t['conv1/bias'] * np.complex64(1)}),
      'here .*toy.* complex numbers: conv1/bias$',
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


@pytest.mark.parametrize(
  ('head', 'other'),
  [
    (('fc.weight', 'fc.bias'), ()),
    ((), ()),
    (('fc.weight', 'fc.bias', 'head.weight'), ()),  # which of them to take is not for dnt to say
    (('extra.weight',), ()),
    (('fc.1.weight', 'fc.1.bias'), ('fc.1.bias', 'fc.1.weight')),
    (('classifier.weight', 'classifier.bias'), ('classifier.bias', 'classifier.weight')),
    (('head.fc.weight',), ('head.fc.weight',)),
    (('fc.weight',), ()),  # the file may be damaged
  ],
)
def test_a_head_is_another_if_it_has_no_tensor_of_the_networks_own(head, other):
  network = next(each for each in names.networks('torch') if each.title == 'resnet-18 (PyTorch)')
  backbone = [name for name in network.tensors().values() if not name.startswith('fc.')]
  assert tuple(names.other_head([*backbone, *head], network)) == other


def test_torch_tensors_there_and_back_are_the_same(resnet18):
  network = names.identify(names.current_names(resnet18, 'torch', 'here'), 'torch', 'here')
  variables = names.to_variables(names.current_names(resnet18, 'torch', 'here'), network, 'here')
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
  assert names.current_names(old | untouched | counters, 'torch', 'here') == new | untouched
  assert names.current_names({'probs/kernel': 1, 'conv1/bias': 2}, 'keras', 'here') == {
    'predictions/kernel': 1,
    'conv1/bias': 2,
  }


@pytest.mark.parametrize(
  'prefix',
  [
    'module.',
    '_orig_mod.',
    'model.',
    'module._orig_mod.',
    '_orig_mod.module.',
    'model._orig_mod.',
    'module.model.module.',
  ],
)
def test_what_stands_around_a_network_is_taken_off_its_names(prefix):
  given = {f'{prefix}conv1.weight': 1, f'{prefix}layer1.0.bn1.bias': 2, f'{prefix}bn1.num_batches_tracked': 3}
  want = {'conv1.weight': 1, 'layer1.0.bn1.bias': 2}
  assert names.current_names({**given, 'n_averaged': 4}, 'torch', 'here') == want


def test_compiled_inner_modules_and_names_that_only_look_like_prefixes():
  given = {'model.layer1._orig_mod.0.conv1.weight': 1, 'model_ema.conv1.weight': 2, 'features.model.weight': 3}
  want = {'layer1.0.conv1.weight': 1, 'model_ema.conv1.weight': 2, 'features.model.weight': 3}
  assert names.current_names(given, 'torch', 'here') == want
  assert names.current_names({'model/kernel': 1}, 'keras', 'here') == {'model/kernel': 1}


def test_two_networks_of_the_same_names_are_refused():
  given = {'model.conv1.weight': 1, 'module.conv1.weight': 2}
  with pytest.raises(errors.InputError, match=r'^here .* model\.conv1\.weight .* module\.conv1\.weight'):
    names.current_names(given, 'torch', 'here')


def test_a_prefix_that_dnt_does_not_know_is_named(resnet18):
  given = names.current_names({f'encoder_q.{name}': value for name, value in resnet18.items()}, 'torch', 'here')
  with pytest.raises(errors.InputError, match=r"; 'encoder_q\.' may be a prefix"):
    names.identify(given, 'torch', 'here')


@pytest.mark.parametrize(
  'said',
  [
    'resnet18',
    'ResNet-18',
    'tv_resnet18',
    'gluon_resnet18_v1b',
    'hf-hub:timm/resnet18.a1_in1k',
    'resnet',
    'my baseline',
    '',
  ],
)
def test_an_architecture_of_the_same_network_or_of_no_meaning_is_taken(resnet18, said):
  assert names.identify(names.current_names(resnet18, 'torch', 'x'), 'torch', 'x', [said]).model['depth'] == 18


@pytest.mark.parametrize(
  'said',
  [
    'resnetblur18',
    'resnet18d',
    'resnet18_gn',
    'resnet34',
    'wide_resnet50_2',
    'res2net50_26w_4s',
  ],
)
def test_another_architecture_is_refused_by_its_name(resnet18, said):
  with pytest.raises(errors.InputError, match=f'^here .*{said}.* resnet-18'):
    names.identify(names.current_names(resnet18, 'torch', 'here'), 'torch', 'here', [said])


def test_an_unknown_network_is_named_if_something_says_it():
  with pytest.raises(errors.InputError, match="'vit_base_patch16_224'"):
    names.identify(['cls_token', 'pos_embed'], 'torch', 'here', ['vit_base_patch16_224'])


def blocks(counts, parts, width, group):
  """The tensors by which a ResNet of such blocks is told from others; empty but for their shapes."""
  shapes = {1: (width, 64, 1, 1), 2: (width, group, 3, 3), 3: (256, width, 1, 1)}
  return {
    f'layer{stage}.{block}.conv{part}.weight': np.broadcast_to(np.float32(0), shapes[part])
    for stage, count in enumerate(counts, start=1)
    for block in range(count)
    for part in range(1, parts + 1)
  }


@pytest.mark.parametrize(
  ('tensors', 'said'),
  [
    (blocks((3, 4, 6, 3), 3, 128, 128), 'wide_resnet50_2'),
    (blocks((3, 4, 23, 3), 3, 128, 128), 'wide_resnet101_2'),
    (blocks((3, 4, 6, 3), 3, 128, 4), 'resnext50_32x4d'),
    (blocks((3, 4, 23, 3), 3, 256, 8), 'resnext101_32x8d'),
    (blocks((3, 4, 23, 3), 3, 256, 4), 'resnext101_64x4d'),
    (blocks((2, 2, 2, 2), 3, 64, 64), 'resnet26'),
    (blocks((1, 1, 1, 1), 2, 64, 64), 'resnet10'),
    (blocks((3, 24, 36, 3), 3, 64, 64), 'resnet200'),
  ],
)
def test_a_resnet_of_other_blocks_is_refused_by_its_name(tensors, said):
  network = names.networks('torch')[2]
  with pytest.raises(errors.InputError, match=f'^here is a {said} .*resnet-50'):
    names.to_variables(tensors, network, 'here')


def test_a_densenet_of_other_blocks_is_refused_by_its_name():
  """Huang et al. 2017, table 1."""
  network = names.networks('torch')[-1]
  for layers, counts in ((161, (6, 12, 36, 24)), (169, (6, 12, 32, 32)), (201, (6, 12, 48, 32))):
    listed = ((stage, layer) for stage, count in enumerate(counts, start=1) for layer in range(1, count + 1))
    tensors = {f'features.denseblock{stage}.denselayer{layer}.conv1.weight': np.zeros(1) for stage, layer in listed}
    with pytest.raises(errors.InputError, match=f'^here is a densenet{layers} '):
      names.to_variables(tensors, network, 'here')


@pytest.mark.parametrize(
  ('tensor', 'value', 'said'),
  [
    ('layer3.0.conv1.weight', np.nan, 'NaN: layer3.0.conv1.weight$'),
    ('fc.bias', -np.inf, 'infinite.*: fc.bias$'),
    ('fc.weight', 1e300, 'too large for float32: fc.weight$'),
    ('layer1.0.bn1.running_var', -1e-3, 'negative variance: layer1.0.bn1.running_var$'),
  ],
)
def test_values_of_no_trained_network_are_refused_by_name(resnet18, tensor, value, said):
  tensors = names.current_names(resnet18, 'torch', 'here')
  tensors[tensor] = tensors[tensor].astype(np.float64)
  tensors[tensor].flat[0] = value
  with pytest.raises(errors.InputError, match=f'^here .*{said}'):
    names.to_variables(tensors, names.identify(tensors, 'torch', 'here'), 'here')


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
