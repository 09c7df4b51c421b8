import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import config, errors, models, trees
from dnt.models import depth


def make(num_classes=10, **options):
  cfg = config.default()
  cfg.model.update({'name': 'densenet', **options})
  return models.make(cfg.model, num_classes)


def parameters(shape=(32, 32, 3), num_classes=10, **options):
  return sum(row.parameters for row in depth.trace(make(num_classes, **options), shape).table)


# Torchvision's layer names to dnt's.
RENAME = [
  (r'^features\.(conv|norm)0$', r'stem.\1'),
  (r'^features\.norm5$', 'head.norm'),
  (r'^classifier$', 'head.dense'),
  (r'^features\.denseblock(\d)\.denselayer(\d+)', lambda m: f'stage{m[1]}.block{int(m[2]):03d}'),
  (r'^features\.', ''),
]


def torch_densenet121(net, x):
  """Huang et al. 2017, table 1."""
  F = net.torch.nn.functional

  def norm_relu_conv(norm, conv, x, features, size):
    return net.conv(conv, F.relu(net.norm(norm, x)), features, size)

  x = F.relu(net.norm('features.norm0', net.conv('features.conv0', x, 64, 7, 2)))
  x = F.max_pool2d(x, 3, 2, 1)
  for stage, count in enumerate((6, 12, 24, 16), start=1):
    for layer in range(1, count + 1):
      name = f'features.denseblock{stage}.denselayer{layer}'
      y = norm_relu_conv(f'{name}.norm1', f'{name}.conv1', x, 128, 1)
      y = norm_relu_conv(f'{name}.norm2', f'{name}.conv2', y, 32, 3)
      x = net.torch.cat([x, y], 1)
    if stage < 4:
      name = f'features.transition{stage}'
      x = F.avg_pool2d(norm_relu_conv(f'{name}.norm', f'{name}.conv', x, x.shape[1] // 2, 1), 2)
  x = F.relu(net.norm('features.norm5', x)).mean((2, 3))
  return net.dense('classifier', x, 1000)


@pytest.mark.thorough
def test_densenet121_equals_torch(torch_logits):
  x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
  want, variables = torch_logits(torch_densenet121, x, RENAME)
  variables = trees.unflatten(variables)
  model = make(1000, stem='imagenet')
  abstract = depth.trace(model, (64, 64, 3)).variables
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, abstract)
  apply = jax.jit(functools.partial(model.apply, train=False))
  got = apply(variables, x)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def cifar_count(layers, k, bottleneck, theta):
  """Huang et al. 2017, sections 3 and 4.1, summed by hand."""
  channels = 2 * k if bottleneck else 16
  total = 27 * channels
  for stage in range(3):
    for _ in range((layers - 4) // (6 if bottleneck else 3)):
      total += 2 * channels
      total += channels * 4 * k + 2 * 4 * k + 9 * 4 * k * k if bottleneck else 9 * channels * k
      channels += k
    total += 2 * channels
    if stage < 2:
      total += channels * int(channels * theta)
      channels = int(channels * theta)
  return total + channels * 10 + 10


@pytest.mark.thorough
def test_parameter_counts_are_the_papers():
  bc100 = parameters()
  assert bc100 == cifar_count(100, 12, True, 0.5)
  assert round(bc100 / 1e6, 1) == 0.8
  plain40 = parameters(depth=40, bottleneck=False, compression=1.0)
  assert plain40 == cifar_count(40, 12, False, 1.0)
  assert round(plain40 / 1e6, 1) == 1.0
  small = parameters(depth=10, growth_rate=5, compression=0.3)
  assert small == cifar_count(10, 5, True, 0.3)
  assert parameters((64, 64, 3), 1000, stem='imagenet', depth=121) == 7978856


def test_the_widest_imagenet_densenet_counts_as_torchvisions():
  assert parameters((32, 32, 3), 1000, stem='imagenet', depth=161) == 28681000


def test_layers_and_transitions_are_entries():
  names = [entry.name for entry in depth.trace(make(depth=16, growth_rate=4), (8, 8, 3)).entries]
  stages = [f'stage{s}/block{b:03d}' for s in (1, 2, 3) for b in (1, 2)]
  assert names == ['stem', *stages[:2], 'transition1', *stages[2:4], 'transition2', *stages[4:], 'head']


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'scan': True}, 'input channels'),
    ({'depth': 101}, r'101 .*6n \+ 4 .*depth is 100$'),
    ({'depth': 41, 'bottleneck': False}, r'41 .*3n \+ 4 .*depth is 40$'),
    ({'depth': 120, 'stem': 'imagenet'}, '120 .*depth is 121$'),
    ({'compression': 1.5}, r'compression=1\.5 .*at most 1\b'),
    ({'stem': 'imagenet', 'bottleneck': False}, 'bottleneck=False .*ImageNet'),
  ],
)
def test_options_that_do_not_fit_are_refused(options, message):
  with pytest.raises(errors.InputError, match=message):
    make(**options)


def test_modules_built_by_hand_are_what_they_say():
  clone = make(stem='imagenet').clone(depth=161)
  assert clone == make(stem='imagenet', depth=161).clone(parts=clone.parts)
  assert clone.resolved() == (161, 48)
  with pytest.raises(errors.InputError, match="stem of densenet 'imagent'.* 'imagenet'"):
    clone.clone(stem='imagent')


def test_a_compression_that_leaves_no_channels_is_refused():
  # The stem has 2k = 8 channels, each of the two layers of a stage adds k: 16, of which one is left, and then 9.
  for compression, said in ((0.06, '16 channels after stage1; .* 1/16 '), (0.1, '9 channels after stage2; .* 1/9 ')):
    with pytest.raises(errors.InputError, match=f'config.model.compression={compression} .*{said}'):
      depth.trace(make(depth=16, growth_rate=4, compression=compression), (8, 8, 3))
  assert parameters((8, 8, 3), depth=16, growth_rate=4, compression=0.12)
