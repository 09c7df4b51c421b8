import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dnt import config, errors, models, trees
from dnt.models import depth
from dnt.models import stage as stage_lib
from tests.references import weights


def make(num_classes=10, **options):
  cfg = config.default()
  cfg.model.update({'name': 'resnet', **options})
  return models.make(cfg.model, num_classes)


def parameters(shape=(32, 32, 3), num_classes=10, **options):
  return sum(row.parameters for row in depth.trace(make(num_classes, **options), shape).table)


# Torchvision's layer names to dnt's.
RENAME = [
  (r'^conv1$', 'stem.conv'),
  (r'^bn1$', 'stem.norm'),
  (r'^fc$', 'head.dense'),
  (r'^layer(\d)\.(\d+)\.', lambda m: f'stage{m[1]}.block{int(m[2]) + 1:03d}.'),
  (r'\.bn(\d)$', r'.norm\1'),
  (r'\.downsample\.0$', '.shortcut.conv'),
  (r'\.downsample\.1$', '.shortcut.norm'),
]


def torch_resnet50(net, x, stride_on):
  """He et al. 2015, table 1."""
  F = net.torch.nn.functional
  x = F.max_pool2d(F.relu(net.norm('bn1', net.conv('conv1', x, 64, 7, 2))), 3, 2, 1)
  for stage, count in enumerate((3, 4, 6, 3)):
    for block in range(count):
      name, stride = f'layer{stage + 1}.{block}', 2 if stage and not block else 1
      first, second = (stride, 1) if stride_on == '1x1' else (1, stride)
      y = F.relu(net.norm(f'{name}.bn1', net.conv(f'{name}.conv1', x, 64 * 2**stage, 1, first)))
      y = F.relu(net.norm(f'{name}.bn2', net.conv(f'{name}.conv2', y, 64 * 2**stage, 3, second)))
      y = net.norm(f'{name}.bn3', net.conv(f'{name}.conv3', y, 256 * 2**stage, 1))
      if not block:
        x = net.norm(f'{name}.downsample.1', net.conv(f'{name}.downsample.0', x, 256 * 2**stage, 1, stride))
      x = F.relu(x + y)
  return net.dense('fc', x.mean((2, 3)), 1000)


@pytest.mark.thorough
@pytest.mark.parametrize('stride_on', ['3x3', '1x1'])
def test_resnet50_equals_torch(torch_logits, stride_on):
  x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
  want, variables = torch_logits(functools.partial(torch_resnet50, stride_on=stride_on), x, RENAME)
  variables = trees.unflatten(variables)
  model = make(1000, stem='imagenet', depth=50, stride_on=stride_on)
  abstract = depth.trace(model, (64, 64, 3)).variables
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, abstract)
  apply = jax.jit(functools.partial(model.apply, train=False))
  got = apply(variables, x)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def torch_resnet20(net, x):
  """He et al. 2015, section 4.2, identity shortcuts."""
  F = net.torch.nn.functional
  x = F.relu(net.norm('bn1', net.conv('conv1', x, 16, 3)))
  for stage in range(3):
    for block in range(3):
      name, stride, features = f'layer{stage + 1}.{block}', 2 if stage and not block else 1, 16 * 2**stage
      y = F.relu(net.norm(f'{name}.bn1', net.conv(f'{name}.conv1', x, features, 3, stride)))
      y = net.norm(f'{name}.bn2', net.conv(f'{name}.conv2', y, features, 3))
      x = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, features - x.shape[1]))
      x = F.relu(x + y)
  return net.dense('fc', x.mean((2, 3)), 10)


def condensed(gradient):
  """Its largest size, a thousand of its values, and for each place along each axis the sum over all others.

  The sums have random signs and are divided by the root of their count: as far off as a value where all values are.
  """
  draw = np.random.default_rng(gradient.size)
  values = draw.permutation(gradient.reshape(-1))[:1000]
  signed = draw.choice((-1, 1), gradient.shape) * gradient.astype(np.float64)
  sums = [np.moveaxis(signed, axis, 0).reshape(count, -1).sum(1) for axis, count in enumerate(gradient.shape)]
  roots = [np.sqrt(gradient.size / count) for count in gradient.shape]
  largest = np.abs(gradient).max()
  return np.concatenate([[largest], values, *(s / root for s, root in zip(sums, roots, strict=True))], dtype=np.float32)


@pytest.mark.thorough
def test_resnet20_trains_as_in_torch(torch_reference, torch_network, to_dnt):
  """Logits, moved statistics and gradients of one training step."""
  # With this seed no ReLU's input is so near 0 that rounding could switch its gradient.
  x = np.random.default_rng(86).normal(size=(8, 16, 16, 3)).astype(np.float32)
  labels = np.arange(8)

  def compute(torch):
    net = torch_network(torch, training=True)
    logits = torch_resnet20(net, torch.from_numpy(x.transpose(0, 3, 1, 2)))
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
    moved = to_dnt({name: w.numpy() for name, w in net.weights.items() if w.grad is None}, RENAME)
    gradients = to_dnt({name: w.grad.numpy() for name, w in net.weights.items() if w.grad is not None}, RENAME)
    gradients = {path: condensed(gradient) for path, gradient in gradients.items()}
    return {'logits': logits, 'weights': weights.describe(net.weights), **moved, **gradients}

  moved = torch_reference(compute)
  want, drawn = moved.pop('logits'), weights.drawn(weights.described(moved.pop('weights')))
  variables = trees.unflatten(to_dnt(drawn, RENAME))
  gradients = {path: moved.pop(path) for path in list(moved) if path.startswith('params/')}

  model = make(depth=20)

  def loss_fn(params):
    logits, updates = model.apply({**variables, 'params': params}, x, train=True, mutable=['batch_stats'])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), (logits, updates)

  step = jax.jit(jax.grad(loss_fn, has_aux=True))
  got, (logits, updates) = step(variables['params'])
  np.testing.assert_allclose(logits, want, rtol=0, atol=1e-5 * np.abs(want).max())
  updates = trees.flatten(updates)
  assert set(updates) == set(moved)
  for path, leaf in updates.items():
    np.testing.assert_allclose(leaf, moved[path], rtol=1e-5, atol=1e-5, err_msg=path)
  got = trees.flatten({'params': got})
  assert set(got) == set(gradients)
  for path, leaf in got.items():
    scale = gradients[path][0]
    np.testing.assert_allclose(condensed(np.asarray(leaf)), gradients[path], rtol=0, atol=1e-4 * scale, err_msg=path)


@pytest.mark.parametrize(
  ('layers', 'want'),
  [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7), pytest.param(1202, 19.4, marks=pytest.mark.slow)],
)
def test_cifar_parameter_counts_are_the_papers(layers, want):
  """He et al. 2015, table 6, and the sum over layers."""
  got = parameters(depth=layers, scan=True)
  assert abs(got / 1e6 - want) <= (0.005 if want < 1 else 0.05)
  n = (layers - 2) // 6
  kernels = 9 * (3 * 16 + 16**2 * 2 * n + 16 * 32 + 32**2 * (2 * n - 1) + 32 * 64 + 64**2 * (2 * n - 1))
  assert got == kernels + 2 * (16 + 2 * n * (16 + 32 + 64)) + 64 * 10 + 10


@pytest.mark.parametrize(
  ('layers', 'want'), [(18, 11689512), (34, 21797672), (50, 25557032), (101, 44549160), (152, 60192808)]
)
def test_imagenet_parameter_counts_are_torchvisions(layers, want):
  assert parameters((224, 224, 3), 1000, depth=layers, stem='imagenet', scan=True) == want


@pytest.mark.thorough
def test_other_parameter_counts():
  # He et al. 2016, table 1: 1.7 M; exactly, the sum over 18 blocks a stage.
  exact, before = 9 * 3 * 16 + 2 * 256 + 256 * 10 + 10, 16
  for inner in (16, 32, 64):
    for _ in range(18):
      exact += before * inner + 9 * inner**2 + inner * 4 * inner + 2 * (before + 2 * inner)
      exact += 0 if before == 4 * inner else before * 4 * inner
      before = 4 * inner
  assert parameters(block='preact_bottleneck', depth=164) == exact
  assert round(exact / 1e6, 1) == 1.7
  # Zagoruyko and Komodakis 2016: 36.5 M and 11.0 M (the first exactly as in the authors' code); torchvision's WRN-50-2.
  assert parameters(block='preact_basic', depth=28, width=10) == 36479194
  assert round(parameters(block='preact_basic', depth=16, width=8) / 1e6, 1) == 11.0
  assert parameters((64, 64, 3), 1000, stem='imagenet', depth=50, width=2) == 68883240


@pytest.mark.thorough
def test_with_rms_norm_only_the_dense_layer_has_biases():
  counts = {norm: parameters((14, 14, 1), depth=8, norm=norm, norm_groups=8) for norm in config.NORMS}
  of_norm = 16 + 2 * (16 + 32 + 64)  # one value per channel of the seven convolutions
  kernels = 9 * (16 + 2 * 16**2 + 16 * 32 + 32**2 + 32 * 64 + 64**2)
  assert counts['rms_norm'] == counts['none'] == kernels + of_norm + 64 * 10 + 10 == 74_762
  others = {counts[norm] for norm in ('batch_norm', 'layer_norm', 'group_norm')}
  assert others == {kernels + 2 * of_norm + 64 * 10 + 10} == {75_002}
  trace = depth.trace(make(norm='rms_norm', depth=8), (14, 14, 1))
  assert [path for path in trees.flatten(trace.variables['params']) if path.endswith('bias')] == ['head/dense/bias']


@pytest.mark.thorough
def test_preactivation_has_the_projections_of_wide_networks_unless_it_is_asked_for_those_of_he_et_al():
  counts = {kind: parameters(block='preact_basic', depth=110, shortcut=kind, scan=True) for kind in (None, 'A', 'B')}
  assert counts[None] == counts['B'] == counts['A'] + 16 * 32 + 32 * 64


def test_defaults_are_the_papers():
  def chosen(**options):
    cfg = config.default()
    cfg.model.update({'name': 'resnet', **options})
    resolved = models.resolved_options(cfg.model)
    return tuple(resolved[key] for key in ('depth', 'block', 'shortcut', 'stride_on'))

  assert chosen() == (20, 'basic', 'A', None)
  assert chosen(block='bottleneck', depth=29) == (29, 'bottleneck', 'B', '3x3')
  assert chosen(block='preact_basic', depth=110) == (110, 'preact_basic', 'B', None), 'of wide networks'
  assert chosen(stem='imagenet') == (50, 'bottleneck', 'B', '3x3')
  assert chosen(stem='imagenet', depth=34) == (34, 'basic', 'B', None)
  assert chosen(stem='imagenet', depth=101, stride_on='1x1') == (101, 'bottleneck', 'B', '1x1')


def test_a_clone_with_another_block_has_the_defaults_of_that_block():
  clone = make().clone(block='bottleneck', depth=29)
  assert clone == make(block='bottleneck', depth=29).clone(parts=clone.parts)
  assert clone.resolved() == (29, 'bottleneck', 'B', '3x3')


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'stem': 'imagent'}, "stem of resnet 'imagent'.* 'imagenet'"),
    ({'shortcut': 'C'}, "shortcut of resnet 'C'.*Valid: A, B"),
    ({'block': 'bottleneck', 'depth': 29, 'stride_on': '2x2'}, "stride_on of resnet '2x2'.*Valid: 1x1, 3x3"),
  ],
)
def test_words_that_are_unknown_are_refused_in_modules_built_by_hand(options, message):
  with pytest.raises(errors.InputError, match=message):
    make().clone(**options)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'depth': 54}, '54 .*6n \\+ 2 .*depth is 56$'),
    ({'depth': 1}, 'depth is 8$'),
    ({'depth': 21}, '21 .*depth is 20$'),
    ({'depth': 165, 'block': 'preact_bottleneck'}, '9n \\+ 2 .*depth is 164$'),
    ({'depth': 27, 'block': 'preact_basic'}, '6n \\+ 2 or 6n \\+ 4 .*depth is 26$'),
    ({'depth': 51, 'stem': 'imagenet', 'block': 'bottleneck'}, '50, 101, 152 .*depth is 50$'),
    ({'depth': 20, 'stem': 'imagenet'}, '18, 34 .*depth is 18$'),
    ({'block': 'basics'}, "block of resnet 'basics'.* 'basic'"),
    ({'stride_on': '1x1'}, "stride_on .*bottleneck.* block='basic'"),
    ({'block': 'preact_basic', 'zero_init_last_norm': True}, 'residual_scalar=0'),
  ],
)
def test_options_that_do_not_fit_are_refused(options, message):
  with pytest.raises(errors.InputError, match=message):
    make(**options)


def test_stochastic_depth_grows_linearly_over_all_blocks():
  """Huang et al. 2016, eq. 4: the l-th of L blocks survives with 1 - l / L (1 - p_L)."""
  rates = []

  def record(next_fun, args, kwargs, context):
    if isinstance(context.module, stage_lib.Stage):
      rates.extend(context.module.drop_rates)
    return next_fun(*args, **kwargs)

  model = make(depth=20, stochastic_depth=0.5)
  with nn.intercept_methods(record):
    jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  np.testing.assert_allclose(rates, [0.5 * (i + 1) / 9 for i in range(9)])
