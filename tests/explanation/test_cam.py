"""Maps against torch's autograd on the same weights, against class activation mapping, and batch by batch."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import config as schema
from dnt import errors, models, trees
from dnt.explanation import cam
from dnt.models import depth, layouts

SHAPE, CLASSES = (16, 12, 3), 5
EPSILON = 1e-5


def network(scan):
  config = schema.default().model
  config.update({'name': 'resnet', 'depth': 20, 'shortcut': 'B', 'norm_epsilon': EPSILON, 'scan': scan})
  return models.make(config, CLASSES)


@pytest.fixture(scope='module')
def variables():
  """Of the unrolled network: statistics, scales and biases as a trained one has them."""
  draw = np.random.default_rng(0)
  ranges = {'scale': (0.5, 1.5), 'bias': (-0.5, 0.5), 'mean': (-0.5, 0.5), 'var': (0.5, 2)}

  def drawn(path, leaf):
    name = path.rpartition('/')[2]
    if name == 'kernel':
      return draw.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)
    return draw.uniform(*ranges[name], leaf.shape).astype(np.float32)

  return trees.map_with_path(drawn, depth.trace(network(scan=False), SHAPE).variables)


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(1).normal(size=(3, *SHAPE)).astype(np.float32)


def torch_explains(torch, variables, images, entry, targets):
  """Logits, what is explained and the map by each method, in float64."""
  F = torch.nn.functional
  leaves = {path: torch.from_numpy(np.asarray(leaf, np.float64)) for path, leaf in trees.flatten(variables).items()}

  def conv(x, name, stride=1):
    kernel = leaves[f'params/{name}/kernel'].permute(3, 2, 0, 1)
    return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

  def norm(x, name):
    mean, var = (leaves[f'batch_stats/{name}/{leaf}'] for leaf in ('mean', 'var'))
    scale, bias = (leaves[f'params/{name}/{leaf}'] for leaf in ('scale', 'bias'))
    return F.batch_norm(x, mean, var, scale, bias, eps=EPSILON)

  def block(x, name, stride):
    y = F.relu(norm(conv(x, f'{name}/conv1', stride), f'{name}/norm1'))
    y = norm(conv(y, f'{name}/conv2'), f'{name}/norm2')
    if f'params/{name}/shortcut/conv/kernel' in leaves:
      x = norm(conv(x, f'{name}/shortcut/conv', stride), f'{name}/shortcut/norm')
    return F.relu(x + y)

  x = torch.from_numpy(images.astype(np.float64)).permute(0, 3, 1, 2)
  outputs = {'stem': F.relu(norm(conv(x.requires_grad_(), 'stem/conv'), 'stem/norm'))}
  x = outputs['stem']
  for stage in (1, 2, 3):
    for number in (1, 2, 3):
      name = f'stage{stage}/block{number:03d}'
      x = outputs[name] = block(x, name, 2 if stage > 1 and number == 1 else 1)
  logits = x.mean((2, 3)) @ leaves['params/head/dense/kernel'] + leaves['params/head/dense/bias']
  targets = logits.argmax(1) if targets is None else torch.tensor(targets)
  score = logits.gather(1, targets[:, None]).sum()
  (gradient,) = torch.autograd.grad(score, outputs[entry])
  maps = {method: published(torch, method, outputs[entry].detach(), gradient) for method in cam.METHODS}
  return {'logits': logits, 'targets': targets, **maps}


def published(torch, method, a, g):
  """The maps as the papers write them, [B, K, h, w] to [B, h, w]."""
  if method == 'grad_cam':
    weights = g.mean((2, 3), keepdim=True)
  elif method == 'grad_cam_plus_plus':
    below = 2 * g**2 + a.sum((2, 3), keepdim=True) * g**3
    weights = (torch.where(g != 0, g**2 / below, 0) * torch.relu(g)).sum((2, 3), keepdim=True)
  else:
    weights = g if method == 'hires_cam' else torch.relu(g)
  return torch.relu((weights * a).sum(1))


def jit(function, *args):
  return jax.jit(functools.partial(function, *args))


@functools.cache
def compiled(name, scan):
  model = network(scan)
  return jit(cam.differentiate, model, cam.choose(depth.trace(model, SHAPE).table, name))


def assert_close(got, want, tolerance=1e-5):
  np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.thorough
@pytest.mark.parametrize(
  ('scan', 'name', 'targets'), [(False, 'stage3/block003', (4, 0, 2)), (True, 'stage2/block003', None)]
)
def test_maps_are_those_of_torch(torch_reference, variables, images, scan, name, targets):
  expected = torch_reference(
    functools.partial(torch_explains, variables=variables, images=images, entry=name, targets=targets)
  )
  if scan:
    variables = layouts.to_scanned(variables, depth.trace(network(scan=True), SHAPE).scanned)
  found = compiled(name, scan)(variables, images, targets and np.array(targets, np.int32))
  assert_close(found.logits, expected['logits'])
  np.testing.assert_array_equal(found.targets, expected['targets'])
  for method in cam.METHODS:
    want = expected[method]
    assert want.max() > 0
    assert_close(cam.weigh(method, found.activations, found.gradients), want)


def test_at_the_last_convolution_grad_cam_is_cam_and_hires_cam(variables, images):
  """After global average pooling and a linear layer (Zhou et al. 2016); up to the 1 / (h w) of the pooling."""
  assert cam.choose(depth.trace(network(scan=False), SHAPE).table, None).name == 'stage3/block003'
  found = compiled('stage3/block003', False)(variables, images, np.array((4, 0, 2), np.int32))
  grad_cam, hires_cam = (cam.weigh(method, found.activations, found.gradients) for method in ('grad_cam', 'hires_cam'))
  kernel = variables['params']['head']['dense']['kernel']
  mapped = np.einsum('bhwk,kb->bhw', found.activations, kernel[:, (4, 0, 2)])
  places = mapped.shape[1] * mapped.shape[2]
  assert_close(grad_cam * places, np.maximum(mapped, 0))
  assert_close(hires_cam, grad_cam, 1e-6)


@pytest.mark.parametrize(
  'options',
  [
    {'name': 'resnet', 'depth': 14, 'block': 'preact_basic'},
    {'name': 'resnet', 'depth': 14, 'block': 'preact_basic', 'scan': True},
    {'name': 'densenet', 'depth': 10, 'growth_rate': 4},
  ],
  ids=['preact', 'scanned', 'densenet'],
)
def test_grad_cam_is_cam_where_the_head_begins_with_norm_and_activation(images, options):
  """The map is of the activation that is pooled, not of the last block, on which the logits do not depend linearly."""
  config = schema.default().model
  config.update({'norm_epsilon': EPSILON, **options})
  model = models.make(config, CLASSES)
  trace = depth.trace(model, SHAPE)
  variables = models.init(trace, 0)
  draw = np.random.default_rng(0)
  parameters, (mean, var) = variables['params']['head'], draw.uniform(0.5, 2, 2)
  channels = parameters['norm']['scale'].shape
  parameters['norm'] = {name: draw.uniform(-1, 1, channels).astype(np.float32) for name in ('scale', 'bias')}
  variables['batch_stats']['head']['norm'] = {
    'mean': np.full(channels, mean, np.float32),
    'var': np.full(channels, var, np.float32),
  }
  entry, before = cam.choose(trace.table, None), cam.choose(trace.table, trace.table[-2].entry.name)
  assert entry.name == 'head' and before.name.startswith('stage3/')
  _, output = jit(cam.outputs, model, before)(variables, images)
  normalized = (np.asarray(output) - mean) / np.sqrt(var + EPSILON)
  pooled = np.maximum(normalized * parameters['norm']['scale'] + parameters['norm']['bias'], 0)
  found = jit(cam.differentiate, model, entry)(variables, images, np.array((4, 0, 2), np.int32))
  assert_close(found.activations, pooled)
  mapped = np.einsum('bhwk,kb->bhw', pooled, parameters['dense']['kernel'][:, (4, 0, 2)])
  places = mapped.shape[1] * mapped.shape[2]
  assert_close(cam.weigh('grad_cam', found.activations, found.gradients) * places, np.maximum(mapped, 0))
  assert_close(cam.weigh('hires_cam', found.activations, found.gradients) * places, np.maximum(mapped, 0))
  plain = jit(functools.partial(model.apply, train=False))(variables, images)
  assert_close(found.logits, plain)


class Twice(nn.Module):
  """A user's own network whose one convolution runs twice, and whose body returns more than an array."""

  repeated: bool = True

  @nn.compact
  def __call__(self, x, train):
    body = Body(name='body')
    x, _ = body(x)
    if self.repeated:
      x, _ = body(x)
    return nn.Dense(CLASSES, name='head')(x.mean((1, 2)))


class Body(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(3, (3, 3))(x))
    return x, x.sum()


def test_a_users_module(images):
  model = Twice(repeated=False)
  shapes = depth.trace(model, SHAPE).variables
  given = trees.map_with_path(
    lambda _, leaf: np.random.default_rng(0).normal(0, 0.3, leaf.shape).astype(np.float32), shapes
  )
  entry = cam.choose(depth.trace(model, SHAPE).table, None)
  assert entry.name == 'body'
  found = jit(cam.explain, model, entry, 'grad_cam')(given, images)
  x, _ = jit(Body().apply)({'params': given['params']['body']}, images)
  kernel = given['params']['head']['kernel'][:, np.asarray(found.targets)]
  want = np.maximum(np.einsum('bhwk,kb->bhw', x, kernel), 0) / (16 * 12)
  np.testing.assert_allclose(found.values, want, rtol=0, atol=1e-6)


def test_an_entry_that_is_called_twice_is_refused(images):
  model = Twice()
  given = depth.trace(model, SHAPE).variables
  with pytest.raises(errors.InputError, match="entry 'body' .*once"):
    jax.eval_shape(functools.partial(cam.explain, model, depth.Entry('body', 'body'), 'grad_cam'), given, images)


def test_maps_of_a_bfloat16_network_are_float32(images):
  config = schema.default().model
  config.update({'name': 'plain', 'depth': 8, 'width': 4, 'dtype': 'bfloat16'})
  model = models.make(config, CLASSES)
  entry = cam.choose(depth.trace(model, SHAPE).table, None)
  found = jax.eval_shape(
    functools.partial(cam.explain, model, entry, 'layer_cam'), depth.trace(model, SHAPE).variables, images
  )
  assert found.values.dtype == jnp.float32


@pytest.mark.parametrize(
  ('name', 'said'),
  [
    ('stage3/block03', "entry 'stage3/block03'.* 'stage3/block003'"),
    ('head', "'head' .*\\b5 .*nearest.*stage3/block003"),
  ],
)
def test_an_entry_that_cannot_be_mapped_is_refused(name, said):
  with pytest.raises(errors.InputError, match=said):
    cam.choose(depth.trace(network(scan=True), SHAPE).table, name)


def test_a_network_without_places_is_refused():
  config = schema.default().model
  config.update({'name': 'mlp', 'depth': 3, 'width': 4})
  table = depth.trace(models.make(config, CLASSES), SHAPE).table
  for name in (None, 'stem'):
    with pytest.raises(errors.InputError, match='no entry .*channels'):
      cam.choose(table, name)


@pytest.mark.parametrize('size', [(7, 7), (4, 3)])
def test_upsampling_is_torchs_bilinear(torch_reference, size):
  maps = np.random.default_rng(0).random((2, *size), np.float32)

  def compute(torch):
    return torch.nn.functional.interpolate(torch.from_numpy(maps)[:, None], (24, 31), mode='bilinear')[:, 0]

  want = torch_reference(compute)
  np.testing.assert_allclose(cam.upsample(maps, (24, 31)), want, atol=1e-6)


FUNCTIONS = """
import flax.linen as nn

class Net(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(nn.Conv(6, (3, 3), name='first')(x))
    x = nn.Conv(4, (3, 3), name='linear')(x)
    x = nn.BatchNorm(use_running_average=not train, name='last')(x)
    x = nn.max_pool(nn.silu(x), (2, 2), (2, 2))
    return nn.Dense(self.num_classes, name='answer')(x.mean((1, 2)))
"""


@pytest.mark.thorough
def test_an_activation_that_a_users_own_module_calls_is_the_output_of_the_entry_before(images, tmp_path, monkeypatch):
  (tmp_path / 'functionnets.py').write_text(FUNCTIONS)
  monkeypatch.syspath_prepend(tmp_path)
  config = schema.default().model
  config.update({'name': 'functionnets:Net', 'depth': None, 'width': None})
  model = models.make(config, CLASSES)
  entries = {entry.name: entry for entry in depth.trace(model, SHAPE).entries}
  variables = models.init(depth.trace(model, SHAPE), 0)
  found = {name: jax.jit(functools.partial(cam.differentiate, model, entries[name]))(variables, images) for name in
           ('first', 'linear', 'last')}  # fmt: skip

  def rest(x):
    x = nn.max_pool(x, (2, 2), (2, 2)).mean((1, 2))
    return nn.Dense(CLASSES).apply({'params': variables['params']['answer']}, x)

  plain, kept = model.apply(variables, images, train=False, capture_intermediates=True, mutable=['intermediates'])
  outputs = {name: kept['intermediates'][name]['__call__'][0] for name in found}
  wanted = {'first': nn.relu(outputs['first']), 'linear': outputs['linear'], 'last': nn.silu(outputs['last'])}
  for name, each in found.items():
    np.testing.assert_allclose(each.activations, wanted[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(each.logits, plain, rtol=1e-4, atol=1e-5)
  score, gradient = jax.value_and_grad(lambda x: rest(x)[jnp.arange(3), found['last'].targets].sum())(wanted['last'])
  np.testing.assert_allclose(found['last'].gradients, gradient, rtol=1e-4, atol=1e-6)
  assert score == pytest.approx(float(found['last'].logits.max(-1).sum()), rel=1e-4)
  _, output = jax.jit(functools.partial(cam.outputs, model, entries['last']))(variables, images)
  np.testing.assert_allclose(output, wanted['last'], rtol=1e-4, atol=1e-5)


def pre_activation(layer, x):
  x = x + layer('conv1')(nn.relu(x))
  return x + layer('conv2')(nn.relu(x))


BODIES = {
  'pre-activation': pre_activation,
  'concatenation': lambda layer, x: jnp.concatenate([x, layer('conv1')(nn.relu(x))], -1),
  'both signs': lambda layer, x: jnp.concatenate([nn.relu(x), nn.relu(-x)], -1),
  'past a part of the activation': lambda layer, x: layer('conv1')(2 * x) + nn.relu(2 * x),
  'weighted by its mean': lambda layer, x: nn.relu(x) * x.mean((1, 2), keepdims=True),
}


class Own(nn.Module):
  """A stem, and what a user's own module does after it."""

  body: str
  stem: type[nn.Module]

  calls_functions = True

  @nn.compact
  def __call__(self, x, train):
    x = BODIES[self.body](lambda name: nn.Conv(4, (3, 3), name=name), self.stem(4, (3, 3), name='stem')(x))
    return nn.Dense(CLASSES, name='answer')(x.mean((1, 2)))


@pytest.mark.parametrize(
  ('body', 'stem'), [*((body, nn.Conv) for body in BODIES), ('pre-activation', nn.remat(nn.Conv))]
)
def test_an_output_that_is_read_besides_the_activation_is_the_output_of_the_entry(images, body, stem):
  model = Own(body, stem)
  trace = depth.trace(model, SHAPE)
  variables = models.init(trace, 0)
  params, targets = variables['params'], jnp.array([3, 0, 2])
  found = jit(cam.differentiate, model, cam.choose(trace.table, 'stem'))(variables, images, targets)

  def rest(x):
    x = BODIES[body](lambda name: functools.partial(nn.Conv(4, (3, 3)).apply, {'params': params[name]}), x)
    return nn.Dense(CLASSES).apply({'params': params['answer']}, x.mean((1, 2)))

  @jax.jit
  def expected(images):
    output = nn.Conv(4, (3, 3)).apply({'params': params['stem']}, images)
    return output, jax.grad(lambda x: rest(x)[jnp.arange(3), targets].sum())(output)

  output, gradients = expected(images)
  assert_close(found.activations, output)
  assert_close(found.gradients, gradients)
