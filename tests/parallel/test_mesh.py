import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import mesh_utils

from dnt import config, errors
from dnt.models import conv, norms
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as meshes

pytestmark = pytest.mark.usefixtures('all_devices')


def make_mesh(fsdp):
  options = config.default()
  options.mesh.fsdp = fsdp
  return meshes.make_mesh(options.mesh)


@pytest.mark.usefixtures('eight_devices')
def test_mesh_splits_all_devices_over_two_axes():
  for fsdp in (1, 2, 4, 8):
    mesh = make_mesh(fsdp)
    assert dict(mesh.shape) == {'data': 8 // fsdp, 'fsdp': fsdp}
    assert [device.id for device in mesh.devices.flat] == list(range(8))


@dataclasses.dataclass(frozen=True)
class Fake:
  """A device of a slice."""

  id: int
  process_index: int
  slice_index: int
  platform: str = 'gpu'  # on TPUs, jax also orders the devices of a slice, by their coordinates
  device_kind: str = 'fake'


@pytest.mark.usefixtures('eight_devices')
@pytest.mark.parametrize(('fsdp', 'spans'), [(1, False), (2, False), (4, False), (8, True)])
def test_slices_split_the_data_axis(monkeypatch, caplog, fsdp, spans):
  """Two slices of two processes each, whose numbers are not in the order of the slices."""
  devices = [Fake(i, process, process % 2) for i, process in enumerate((0, 0, 1, 1, 2, 2, 3, 3))]
  monkeypatch.setattr(jax, 'devices', lambda: devices)
  monkeypatch.setattr(meshes, 'Mesh', lambda devices, *_, **__: devices)
  with caplog.at_level('INFO'):
    found = make_mesh(fsdp)
  assert found.shape == (8 // fsdp, fsdp)
  assert [device.slice_index for device in found.flat] == [0] * 4 + [1] * 4
  processes = [device.process_index for device in found.flat]
  assert [process for process, _ in itertools.groupby(processes)] == [0, 2, 1, 3], 'its rows are contiguous'
  assert ('spans slices' in caplog.text) == spans
  if not spans:
    theirs = mesh_utils.create_hybrid_device_mesh((4 // fsdp, fsdp), (2, 1), devices)
    assert (found == theirs).all()


@pytest.mark.usefixtures('eight_devices')
def test_fsdp_that_does_not_divide_names_what_does():
  with pytest.raises(errors.InputError, match=r'config.mesh.fsdp=3 .*8 devices.* 1, 2, 4, 8'):
    make_mesh(3)


@pytest.mark.usefixtures('eight_devices')
def test_batch_lies_in_row_order_over_both_axes():
  mesh = make_mesh(4)
  batch = jax.device_put(np.arange(16), meshes.batch_sharding(mesh))
  by_device = {shard.device.id: shard.data.tolist() for shard in batch.addressable_shards}
  assert by_device == {i: [2 * i, 2 * i + 1] for i in range(8)}


def spec(tree, fsdp=4):
  return jax.tree.map(lambda sharding: tuple(sharding.spec), meshes.parameter_shardings(make_mesh(fsdp), tree))


@pytest.mark.usefixtures('eight_devices')
def test_large_leaves_split_on_their_largest_axis_that_divides():
  shapes = {
    'wide': jax.ShapeDtypeStruct((3, 3, 64, 128), jnp.float32),
    'equal': jax.ShapeDtypeStruct((128, 128), jnp.float32),
    'odd': jax.ShapeDtypeStruct((64, 1001), jnp.float32),
    'indivisible': jax.ShapeDtypeStruct((333, 333), jnp.float32),
    'small': jax.ShapeDtypeStruct((meshes.SMALLEST_SPLIT_LEAF - 4,), jnp.float32),
    'smallest': jax.ShapeDtypeStruct((meshes.SMALLEST_SPLIT_LEAF,), jnp.float32),
  }
  assert spec(shapes) == {
    'wide': (None, None, None, 'fsdp'),
    'equal': (None, 'fsdp'),
    'odd': ('fsdp',),
    'indivisible': (),
    'small': (),
    'smallest': ('fsdp',),
  }
  assert set(spec(shapes, fsdp=1).values()) == {()}


@pytest.mark.usefixtures('eight_devices')
def test_row_axis_of_scanned_leaves_stays_whole():
  kernel = jax.ShapeDtypeStruct((400, 3, 3, 16, 64), jnp.float32)
  assert spec({'stage1': {'scanned': {'conv1': {'kernel': kernel}}}})['stage1']['scanned']['conv1']['kernel'] == (
    None,
    None,
    None,
    None,
    'fsdp',
  )
  assert spec({'stage1': {'kernel': kernel}})['stage1']['kernel'] == ('fsdp',)


@pytest.mark.usefixtures('eight_devices')
def test_optimizer_state_lies_as_its_parameters_do():
  params = {'stem': {'kernel': jnp.ones((3, 3, 64, 64)), 'bias': jnp.ones((64,))}}
  opt_state = spec(optax.adamw(1e-3).init(params))
  for moment in (opt_state[0].mu, opt_state[0].nu):
    assert moment == spec(params) == {'stem': {'kernel': (None, None, None, 'fsdp'), 'bias': ()}}


@pytest.mark.usefixtures('eight_devices')
def test_a_gradient_that_comes_back_is_split_as_its_parameter():
  """What is computed is split by examples alone: no activation is exchanged between the layers."""
  mesh, random = make_mesh(4), np.random.default_rng(0)
  params = {name: random.normal(0, 0.1, (128, 128)).astype(np.float32) for name in ('first', 'second')}
  images = random.normal(size=(32, 128)).astype(np.float32)
  shardings = meshes.parameter_shardings(mesh, params)

  def gradient(params, images):
    def loss(params):
      params = meshes.gather_for_use(params)
      return jnp.mean(jnp.tanh(images @ params['first']) @ params['second'] ** 2)

    return jax.grad(loss)(params)

  program = compile_lib.jit(gradient, mesh).lower(
    meshes.shapes(params, shardings), meshes.shapes(images, meshes.batch_sharding(mesh))
  )
  program = program.compile()
  assert program.output_shardings == shardings
  found = set(re.findall(r'(all-[a-z]+|reduce-scatter|collective-permute)(?:-start)?\(', program.as_text()))
  assert found == {'all-gather', 'all-reduce'}
  placed = meshes.place(params, shardings), meshes.place(images, meshes.batch_sharding(mesh))
  expected = jax.jit(gradient)(params, images)
  for name, leaf in program(*placed).items():
    np.testing.assert_allclose(leaf, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures('eight_devices')
def test_check_batch_names_the_nearest_sizes():
  mesh = make_mesh(2)
  meshes.check_batch('config.train.batch_size', 128, mesh)
  meshes.check_batch('config.train.batch_size', 128, mesh, accumulate=4)
  with pytest.raises(errors.InputError, match=r'config.eval.batch_size=100 .*8 devices.* 96 and 104'):
    meshes.check_batch('config.eval.batch_size', 100, mesh)
  with pytest.raises(errors.InputError, match=r'8 devices x 3 micro-batches = 24.* 120 and 144'):
    meshes.check_batch('config.train.batch_size', 128, mesh, accumulate=3)
  with pytest.raises(errors.InputError, match=r'batch_size=5 .*8 devices.* 8$'):
    meshes.check_batch('config.train.batch_size', 5, mesh)


@pytest.mark.usefixtures('eight_devices')
def test_place_and_gather_are_inverse_and_donation_leaves_the_host_values_alone():
  mesh = make_mesh(4)
  tree = {'kernel': np.arange(2.0**14, dtype=np.float32).reshape(128, 128), 'step': np.int32(7)}
  placed = meshes.place(tree, meshes.parameter_shardings(mesh, tree))
  assert placed['kernel'].addressable_shards[0].data.shape == (128, 32)
  assert placed['step'].dtype == jnp.int32
  doubled = jax.jit(lambda x: jax.tree.map(lambda leaf: 2 * leaf, x), donate_argnums=0)(placed)
  assert placed['kernel'].is_deleted()
  result = meshes.gather(doubled)
  assert isinstance(result['kernel'], np.ndarray)
  np.testing.assert_array_equal(result['kernel'], 2 * np.arange(2.0**14).reshape(128, 128))
  np.testing.assert_array_equal(tree['kernel'], np.arange(2.0**14).reshape(128, 128))


def small_net(params, images):
  """Two convolutions with batch norm, and a smooth activation: the derivative of ReLU jumps where rounding decides."""
  x = conv.conv2d(images, params['stem'])
  x, _ = normalized(x)
  x = conv.conv2d(jnp.tanh(x), params['wide'], strides=(2, 2), padding=((1, 1), (1, 1)))
  x, mean = normalized(x)
  return jnp.mean(jnp.tanh(x), (1, 2)) @ params['head'], mean


def normalized(x):
  mean, var = norms.batch_statistics(x)
  return norms.batch_norm(x, jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1]), mean, var), mean


def plain_net(params, images, groups=1):
  """The same with lax and jnp alone, in the dtype of its inputs; statistics over each of `groups` parts of a batch."""

  def convolve(x, kernel, stride):
    return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  def normalize(x):
    parts = x.reshape(groups, -1, *x.shape[1:])
    mean, var = jnp.mean(parts, (1, 2, 3), keepdims=True), jnp.var(parts, (1, 2, 3), keepdims=True)
    return ((parts - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape), jnp.mean(mean, (0, 1, 2, 3))

  x, _ = normalize(convolve(images, params['stem'], 1))
  x, mean = normalize(convolve(jnp.tanh(x), params['wide'], 2))
  return jnp.mean(jnp.tanh(x), (1, 2)) @ params['head'], mean


def make_step(optimizer, mesh=None, net=small_net):
  def step(params, opt_state, images, labels):
    if mesh is not None:
      images, labels = meshes.constrain_batch((images, labels), mesh)

    def loss_fn(params):
      logits, mean = net(params, images)
      return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)), mean

    (loss, mean), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss, mean

  return step


def in_float64(optimizer, params, images, labels, steps, **options):
  """Loss, mean and parameters after each step, computed in float64 on one device, without dnt's parts."""
  with jax.enable_x64(True):
    params, images = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (params, images))
    step = jax.jit(make_step(optimizer, net=functools.partial(plain_net, **options)))
    state, found = (params, optimizer.init(params)), []
    for _ in range(steps):
      *state, loss, mean = step(*state, images, labels)
      found.append(jax.device_get({'loss': loss, 'mean': mean, **state[0]}))
  return found


# Terms of the longest sums on the way from an image to a gradient and back: convolutions, statistics, pooling, loss.
LONGEST = (9 * 3, 32 * 8 * 8, 9 * 16, 32 * 4 * 4, 4 * 4, 128, 32)


def bound(step):
  """How far float32 may be off after `step` steps, relative to the largest number.

  A sum of n terms loses at most n u of the sum of their sizes, whatever their order (Higham 2002, section 4.2), with
  u = 2^-24; each is met once on the way forward and once on the way back.
  """
  return step * 2 * sum(LONGEST) * 2.0**-24


def worst(found, reference):
  """The largest error of any leaf, relative to the largest number of that leaf."""
  return max(np.max(np.abs(found[name] - value)) / np.max(np.abs(value)) for name, value in reference.items())


@pytest.mark.thorough
@pytest.mark.parametrize('fsdp', [1, 4])
def test_data_parallel_and_fsdp_compute_what_float64_does_on_one_device(fsdp, request):
  if fsdp > 1:
    request.getfixturevalue('eight_devices')
  mesh = make_mesh(fsdp)
  random = np.random.default_rng(0)
  params = {
    'stem': random.normal(0, 0.3, (3, 3, 3, 16)).astype(np.float32),
    'wide': random.normal(0, 0.1, (3, 3, 16, 128)).astype(np.float32),
    'head': random.normal(0, 0.1, (128, 10)).astype(np.float32),
  }
  images, labels = random.normal(size=(32, 8, 8, 3)).astype(np.float32), random.integers(0, 10, 32).astype(np.int32)
  optimizer = optax.sgd(0.1, momentum=0.9)
  expected = in_float64(optimizer, params, images, labels, 3)
  # What must not pass: statistics of each device's own examples.
  assert worst(in_float64(optimizer, params, images, labels, 1, groups=8)[0], expected[0]) > 10 * bound(1)
  alone = (params, optimizer.init(params))
  state = (alone[0], jax.device_get(alone[1]))
  shardings = meshes.parameter_shardings(mesh, state)
  assert (shardings[0]['wide'].spec[-1:] == ('fsdp',)) == (fsdp > 1)
  state = meshes.place(state, shardings)
  step = jax.jit(make_step(optimizer))
  sharded_step = jax.jit(make_step(optimizer, mesh), out_shardings=(*shardings, None, None))
  for number, reference in enumerate(expected, start=1):
    *alone, loss, mean = step(*alone, images, labels)
    assert worst({'loss': loss, 'mean': mean, **alone[0]}, reference) < bound(number)
    *state, loss, mean = sharded_step(*state, images, labels)
    assert worst({'loss': loss, 'mean': mean, **meshes.gather(state[0])}, reference) < bound(number)
  assert state[0]['wide'].sharding == shardings[0]['wide']


@pytest.mark.usefixtures('eight_devices')
def test_rows_that_the_devices_can_share():
  mesh = make_mesh(2)
  assert [meshes.divisible(count, mesh) for count in (1, 8, 9)] == [8, 8, 16]
