import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dnt import config, errors
from dnt.models import norms
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as meshes

CHANNELS = 12


def example(batch, offset=0.0, spatial=(5, 4)):
  """x, scale and bias; `offset` is the mean of x, whose deviation is about 1."""
  rng = np.random.default_rng(batch)
  x = offset + rng.normal(size=(batch, *spatial, CHANNELS))
  scale, bias = rng.uniform(0.5, 1.5, CHANNELS), rng.normal(size=CHANNELS)
  return [value.astype(np.float32) for value in (x, scale, bias)]


def ours(norm, *inputs):
  """The output and the gradients of all inputs for a cotangent that differs at each output."""

  @jax.jit
  def run(*inputs):
    y, pullback = jax.vjp(norm, *inputs)
    return y, *pullback(jnp.sin(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))

  return [np.asarray(value, np.float32) for value in run(*inputs)]


@pytest.fixture
def theirs(torch_reference):
  """The same of `norm(torch.nn.functional, ...)`, reckoned in float64: what both float32 results should be."""

  def run(norm, *inputs, channels_first=False):
    def compute(torch):
      given = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in inputs]
      x = given[0].movedim(-1, 1) if channels_first else given[0]
      y = norm(torch.nn.functional, x, *given[1:])
      y = y.movedim(1, -1) if channels_first else y
      y.backward(torch.sin(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape))
      return [value.float() for value in (y, *(value.grad for value in given))]

    return torch_reference(compute)

  return run


def close(got, want, tolerance=1e-5):
  """Within `tolerance` of the largest value of each array."""
  for name, a, b in zip(('y', 'x', 'scale', 'bias'), got, want, strict=False):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max()), err_msg=name)


def batch_norm(x, scale, bias):
  return norms.batch_norm(x, scale, bias, *norms.batch_statistics(x))


def torch_batch_norm(F, x, scale, bias):
  return F.batch_norm(x, None, None, scale, bias, training=True, eps=1e-5)


def torch_layer_norm(F, x, scale, bias):
  return F.layer_norm(x, x.shape[-1:], scale, bias, 1e-5)


def torch_group_norm(F, x, scale, bias):
  return F.group_norm(x, 3, scale, bias, 1e-5)


def torch_rms_norm(F, x, scale):
  return F.rms_norm(x, x.shape[-1:], scale, 1e-5)


KINDS = {
  'batch_norm': (batch_norm, torch_batch_norm, True),
  'layer_norm': (norms.layer_norm, torch_layer_norm, False),
  'group_norm': (functools.partial(norms.group_norm, groups=3), torch_group_norm, True),
  'rms_norm': (norms.rms_norm, torch_rms_norm, False),
}


@pytest.mark.parametrize('batch', [1, 2, 8])
@pytest.mark.parametrize('kind', KINDS)
def test_value_and_gradients_equal_torch(theirs, kind, batch):
  norm, reference, channels_first = KINDS[kind]
  inputs = example(batch)[: 2 if kind == 'rms_norm' else 3]
  close(ours(norm, *inputs), theirs(reference, *inputs, channels_first=channels_first))


@pytest.mark.parametrize('kind', KINDS)
def test_a_large_mean_costs_no_more_digits_than_float32_holds(theirs, kind):
  """x = 1000 + noise: its own rounding is 3e-5, so that E[x^2] - E[x]^2 would be off by 0.1 and worse."""
  norm, reference, channels_first = KINDS[kind]
  inputs = example(8, offset=1000.0)[: 2 if kind == 'rms_norm' else 3]
  close(ours(norm, *inputs), theirs(reference, *inputs, channels_first=channels_first), 2e-4)


@pytest.mark.parametrize('shape', [(2,), (3, 7)])
def test_norms_of_dense_layers_equal_torch(theirs, shape):
  x, scale, bias = example(shape[0], spatial=shape[1:])
  close(ours(batch_norm, x, scale, bias), theirs(torch_batch_norm, x, scale, bias, channels_first=True), 5e-5)
  close(ours(norms.layer_norm, x, scale, bias), theirs(torch_layer_norm, x, scale, bias))
  group = functools.partial(norms.group_norm, groups=3)
  close(ours(group, x, scale, bias), theirs(torch_group_norm, x, scale, bias, channels_first=True))


def torch_trains(torch, batches):
  """Output and statistics after each batch."""
  module, found = torch.nn.BatchNorm2d(CHANNELS, momentum=0.1), []
  for x, scale, bias in batches:
    module.weight.data, module.bias.data = torch.tensor(scale), torch.tensor(bias)
    y = module(torch.tensor(x).movedim(-1, 1)).movedim(1, -1)
    found += [y, module.running_mean.clone(), module.running_var.clone()]
  return found


def test_running_statistics_and_both_modes_equal_torch(torch_reference, theirs):
  module = norms.Norm('batch_norm', momentum=0.9)
  batches = [example(batch, offset=3.0) for batch in (2, 8)]
  expected = iter(torch_reference(lambda torch: torch_trains(torch, batches)))
  variables = module.init(jax.random.key(0), example(2)[0], train=False)
  for x, scale, bias in batches:
    variables = {**variables, 'params': {'scale': scale, 'bias': bias}}
    y, updates = module.apply(variables, x, train=True, mutable=['batch_stats'])
    np.testing.assert_allclose(y, next(expected), rtol=1e-5, atol=1e-5)
    variables = {**variables, **updates}
    stats = variables['batch_stats']
    np.testing.assert_allclose(stats['mean'], next(expected), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats['var'], next(expected), rtol=1e-5, atol=1e-6)
  x = example(1)[0]

  def running(x, scale, bias):
    return module.apply({'params': {'scale': scale, 'bias': bias}, **updates}, x, train=False)

  def torch_running(F, x, scale, bias):
    mean, var = (x.new_tensor(np.array(stats[name])) for name in ('mean', 'var'))
    return F.batch_norm(x, mean, var, scale, bias, training=False, eps=1e-5)

  close(ours(running, x, scale, bias), theirs(torch_running, x, scale, bias, channels_first=True))


@pytest.mark.parametrize('kind', KINDS)
def test_bfloat16_in_and_out_has_float32_statistics(kind):
  """The result is the float32 result of the same bfloat16 input, rounded once."""
  norm, inputs = KINDS[kind][0], example(8, offset=20.0)[: 2 if kind == 'rms_norm' else 3]
  x = jnp.asarray(inputs[0], jnp.bfloat16)
  y = jax.jit(norm)(x, *inputs[1:])
  assert y.dtype == jnp.bfloat16
  want = jax.jit(norm)(x.astype(jnp.float32), *inputs[1:]).astype(jnp.bfloat16)
  np.testing.assert_array_equal(y.astype(jnp.float32), want.astype(jnp.float32))
  gradients = jax.grad(lambda *a: jnp.sum(norm(*a).astype(jnp.float32) ** 2), argnums=(0, 1))(x, *inputs[1:])
  assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]
  mean, var = norms.batch_statistics(x)
  assert mean.dtype == var.dtype == jnp.float32


@pytest.mark.usefixtures('eight_devices')
@pytest.mark.parametrize('devices', [2, 8])
def test_batch_statistics_are_over_the_global_batch(devices):
  x, scale, bias = example(8, offset=1.0)
  x += np.arange(8, dtype=np.float32).reshape(8, 1, 1, 1)  # each device's own statistics would differ
  mesh = jax.make_mesh((devices, 1), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)
  sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
  module = norms.Norm('batch_norm')
  variables = module.init(jax.random.key(0), x, train=False)

  @jax.jit
  def step(x, scale, bias):
    def loss(x, scale, bias):
      params = {'scale': scale, 'bias': bias}
      y, updates = module.apply({**variables, 'params': params}, x, train=True, mutable=['batch_stats'])
      return jnp.sum(jnp.sin(3 * y)), (y, updates)

    return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(x, scale, bias)

  one, many = step(x, scale, bias), step(sharded, scale, bias)
  assert len(many[0][0].sharding.device_set) == devices
  for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def defined_by(x, scale, bias, parts, epsilon):
  """batch_norm in float64, over each of so many parts of x: y and the new running statistics after (0, 1)."""
  split = x.astype(np.float64).reshape(parts, -1, CHANNELS)
  mean, count = split.mean(1, keepdims=True), split.shape[1]
  y = (split - mean) / np.sqrt(split.var(1, keepdims=True) + epsilon) * scale + bias
  var = split.var(1).mean(0) * count / (count - 1)
  return y.reshape(x.shape), {'mean': 0.1 * mean.mean((0, 1)), 'var': 0.9 + 0.1 * var}


@pytest.mark.usefixtures('all_devices')
@pytest.mark.parametrize('sync', ['global', 'device'])
@pytest.mark.parametrize(('devices', 'fsdp'), [(1, 1), (2, 1), (4, 1), (4, 2), (4, 4)])
def test_sync_says_whose_examples_give_the_statistics(sync, devices, fsdp, request, monkeypatch):
  if devices > 1:
    request.getfixturevalue('eight_devices')
  everything = jax.devices()
  monkeypatch.setattr(jax, 'devices', lambda: everything[:devices])
  options = config.default()
  options.mesh.fsdp = fsdp
  mesh = meshes.make_mesh(options.mesh)
  x, scale, bias = example(8, offset=3.0)
  x += np.arange(8, dtype=np.float32).reshape(8, 1, 1, 1)
  module = norms.Norm('batch_norm', epsilon=0.5, sync=sync)
  variables = module.init(jax.random.key(0), x, train=False)
  variables = {**variables, 'params': {'scale': scale, 'bias': bias}}
  program = compile_lib.jit(lambda x: module.apply(variables, x, train=True, mutable=['batch_stats']), mesh)
  y, updates = program(jax.device_put(x, meshes.batch_sharding(mesh)))
  expected, stats = defined_by(x, scale, bias, devices if sync == 'device' else 1, 0.5)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
  for name, value in stats.items():
    np.testing.assert_allclose(updates['batch_stats'][name], value, rtol=1e-5)
  if devices > 1:
    other, _ = defined_by(x, scale, bias, 1 if sync == 'device' else devices, 0.5)
    assert np.abs(other - expected).max() > 0.1


@pytest.mark.parametrize('parts', [1, 2, 4])
def test_parts_of_a_batch_are_batches_of_their_own(parts):
  x, scale, bias = example(8, offset=3.0)

  def together(x, scale, bias):
    return norms.batch_norm_in_parts(x, scale, bias, parts=parts)[0]

  def apart(x, scale, bias):
    return jnp.concatenate([batch_norm(each, scale, bias) for each in jnp.split(x, parts)])

  close(ours(together, x, scale, bias), ours(apart, x, scale, bias))
  y = together(jnp.asarray(x, jnp.bfloat16), scale, bias)
  assert y.dtype == jnp.bfloat16


@pytest.mark.usefixtures('eight_devices')
def test_one_value_a_channel_on_each_device_is_refused():
  module, x = norms.Norm('batch_norm', sync='device'), np.ones((8, CHANNELS), np.float32)
  variables = module.init(jax.random.key(0), x, train=False)
  program = compile_lib.jit(
    lambda x: module.apply(variables, x, train=True, mutable=['batch_stats']),
    meshes.make_mesh(config.default().mesh),
  )
  with pytest.raises(errors.InputError, match='one value a channel'):
    program(x)


@pytest.mark.thorough
def test_forward_mode_equals_reverse_mode():
  x, scale, bias = example(2)
  tangent = np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape)
  for norm in (batch_norm, norms.layer_norm, functools.partial(norms.group_norm, groups=3)):
    y, dy = jax.jvp(lambda x, norm=norm: norm(x, scale, bias), (x,), (tangent,))
    weights = np.sin(tangent)
    (dx,) = jax.vjp(lambda x, norm=norm: norm(x, scale, bias), x)[1](weights)
    np.testing.assert_allclose(np.vdot(weights, dy), np.vdot(dx, tangent), rtol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize('parts', [1, 2])
def test_second_derivatives_of_batch_norm_are_those_of_its_formula(parts):
  """Training that takes a gradient of a gradient needs them, and so does everything that measures curvature."""
  rng = np.random.default_rng(0)
  x, weights = (rng.normal(size=(2 * parts, 2, 2)).astype(np.float32) for _ in range(2))
  scale, bias = np.array([0.5, 1.5], np.float32), np.array([0.1, -0.2], np.float32)

  def formula(x, scale, bias):
    split = x.reshape(parts, -1, 2)
    mean = jnp.mean(split, 1, keepdims=True)
    var = jnp.mean((split - mean) ** 2, 1, keepdims=True)
    return ((split - mean) / jnp.sqrt(var + 1e-5) * scale[None, None] + bias[None, None]).reshape(x.shape)

  def in_parts(x, scale, bias):
    return norms.batch_norm_in_parts(x, scale, bias, parts=parts)[0]

  def second(norm):
    hessian = jax.hessian(lambda *inputs: jnp.sum(jnp.sin(norm(*inputs) * weights)), argnums=(0, 1))
    return jax.tree.leaves(jax.jit(hessian)(x, scale, bias))

  for got, want in zip(second(batch_norm if parts == 1 else in_parts), second(formula), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize('shape', [(3, 3, 4, 6), (1, 1, 8, 2), (10, 3)])
def test_weight_standardization_is_the_formula(shape):
  kernel = (2 + 0.1 * np.random.default_rng(0).normal(size=shape)).astype(np.float32)
  flat = kernel.astype(np.float64).reshape(-1, shape[-1])
  want = ((flat - flat.mean(0)[None]) / flat.std(0)[None]).reshape(shape)
  got = norms.weight_standardize(jnp.asarray(kernel))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
  assert norms.weight_standardize(jnp.asarray(kernel, jnp.bfloat16)).dtype == jnp.bfloat16
  constant = jnp.full(shape, 3.0)
  np.testing.assert_array_equal(norms.weight_standardize(constant), 0)


@pytest.mark.parametrize('kind', KINDS)
def test_the_epsilon_of_a_module_is_in_its_formula(kind):
  """On values whose variance, or mean square, is about this epsilon; batch_norm of an evaluation with that of 1."""
  x = 0.5 * example(8)[0]
  module = norms.Norm(kind, epsilon=0.25, groups=3)
  y = module.apply(module.init(jax.random.key(0), x, train=False), x, train=False)
  if kind == 'batch_norm':
    want = x / np.sqrt(1 + 0.25)
  else:
    grouped = x.reshape(8, 20, 3, 4) if kind == 'group_norm' else x
    axes = (1, 3) if kind == 'group_norm' else -1
    centered = grouped - (0 if kind == 'rms_norm' else grouped.mean(axes, keepdims=True))
    want = (centered / np.sqrt(np.mean(centered**2, axes, keepdims=True) + 0.25)).reshape(x.shape)
  np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', config.NORMS)
def test_module_owns_what_its_kind_needs(kind):
  x = example(2)[0]
  variables = norms.Norm(kind, groups=3, scale_init=jax.nn.initializers.zeros).init(jax.random.key(0), x, train=True)
  params = {'none': (), 'rms_norm': ('scale',)}.get(kind, ('bias', 'scale'))
  assert tuple(sorted(variables.get('params', {}))) == params
  assert ('batch_stats' in variables) == (kind == 'batch_norm')
  if kind == 'batch_norm':  # initialization moves nothing
    np.testing.assert_array_equal(variables['batch_stats']['mean'], 0)
    np.testing.assert_array_equal(variables['batch_stats']['var'], 1)
  y = norms.Norm(kind, groups=3).apply(variables, x, train=False)
  np.testing.assert_array_equal(y, x if kind == 'none' else 0)


def test_bad_norms_are_refused():
  x, scale, bias = example(1, spatial=())
  with pytest.raises(errors.InputError, match=r'12 channels .*5 groups.* config.model.norm_groups'):
    norms.group_norm(x, scale, bias, groups=5)
  with pytest.raises(errors.InputError, match=r'groups of one value .*smaller config.model.norm_groups'):
    norms.group_norm(x, scale, bias, groups=12)
  with pytest.raises(errors.InputError, match="'batchnorm'.* 'batch_norm'"):
    norms.Norm('batchnorm').init(jax.random.key(0), x, train=True)
  with pytest.raises(errors.InputError, match="sync of a norm 'devices'.* 'device'"):
    norms.Norm('batch_norm', sync='devices').init(jax.random.key(0), x, train=True)
  module = norms.Norm('batch_norm')
  variables = module.init(jax.random.key(0), x, train=True)
  with pytest.raises(errors.InputError, match='batch_norm .*one value'):
    module.apply(variables, x, train=True, mutable=['batch_stats'])
