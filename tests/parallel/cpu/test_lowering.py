"""What a program holds depends on the platform that it is lowered for, not on the machine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from dnt.models import conv
from dnt.parallel import cpu
from dnt.parallel.cpu import lowering
from dnt.training import experiment

IMAGE, KERNEL = np.ones((2, 6, 6, 3), np.float32), np.ones((3, 3, 3, 4), np.float32)
# Dimension numbers of the convolutions that XLA's library for CPU takes.
FAST = '[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]'


def text(fn, *args, platforms=('cpu',)):
  return jax.jit(fn).trace(*args).lower(lowering_platforms=platforms).as_text()


def convolutions(program):
  """How many there are, and how many in the form for CPU."""
  found = [line for line in program.splitlines() if 'stablehlo.convolution' in line]
  return len(found), sum(FAST in line for line in found)


@pytest.mark.parametrize('step', ['train_step', 'telemetry_step'])
def test_a_train_step_lowered_for_another_platform_carries_nothing_for_cpu(tiny, step):
  tiny.model.update({'name': 'resnet', 'depth': 8, 'width': None})
  tiny.train.accumulate = 2  # a loop around the gradient
  data = experiment.load_data(tiny, ())
  run = experiment.make(experiment.resolve(tiny, data), data.spec)
  size = tiny.train.batch_size
  batch = {name: jax.ShapeDtypeStruct((size,), jnp.int32) for name in ('label', 'epoch', 'position')}
  batch['image'] = jax.ShapeDtypeStruct((size, *data.spec.image_shape), jnp.uint8)
  lower = functools.partial(text, getattr(run.phases[0], step), run.abstract_state(), batch)

  program = lower()
  count, fast = convolutions(program)
  assert count == fast == 20  # forward 7; backward without the gradient of the images
  assert 'optimization_barrier' in program and 'stablehlo.case' not in program
  for platform in ('tpu', 'cuda', 'rocm'):
    program = lower(platforms=(platform,))
    assert 'optimization_barrier' not in program and 'stablehlo.case' not in program
    assert convolutions(program)[0] == count
    assert convolutions(program)[1] < count / 2, 'the backward passes are those of XLA'


def gradient(x, kernel):
  return jax.grad(lambda x, kernel: jnp.sum(jnp.sin(conv.conv2d(x, kernel))), (0, 1))(x, kernel)


def test_a_program_for_several_platforms_is_the_one_for_accelerators():
  def exported(fn):
    return export.export(jax.jit(fn), platforms=('cpu', 'cuda', 'tpu'))(IMAGE, KERNEL).mlir_module()

  assert '= stablehlo.optimization_barrier' not in exported(conv.conv2d)  # text also tells the place in the source
  program = exported(gradient)
  assert '= stablehlo.optimization_barrier' not in program
  count, fast = convolutions(program)  # jax itself lowers each convolution by platform
  assert count == 3 * fast > 0


def test_tricks_can_be_turned_off(monkeypatch):
  def program():
    return text(lambda x, kernel: gradient(x, kernel), IMAGE, KERNEL)  # a function that jax has not seen

  assert convolutions(program()) == (3, 3) and 'optimization_barrier' in program()
  monkeypatch.setenv(cpu.VARIABLE, 'barriers')
  assert convolutions(program()) == (3, 3) and 'optimization_barrier' not in program()
  monkeypatch.setenv(cpu.VARIABLE, 'convolutions,barriers')
  assert convolutions(program()) == (3, 1) and 'optimization_barrier' not in program()


def test_a_barrier_is_the_identity_under_all_transformations():
  x = jnp.arange(6.0).reshape(2, 3)

  def fn(x):
    return lowering.barrier(x) ** 2

  np.testing.assert_array_equal(fn(x), x**2)
  np.testing.assert_array_equal(jax.jit(jax.vmap(fn))(x), x**2)
  for derivative in (jax.jacfwd, jax.jacrev):
    np.testing.assert_array_equal(jax.jit(jax.vmap(jax.vmap(derivative(fn))))(x), 2 * x)
  looped = jax.grad(lambda x: lax.scan(lambda x, _: (jax.checkpoint(fn)(x), None), x, length=2)[0].sum())
  np.testing.assert_allclose(jax.jit(looped)(x), 4 * x**3)
  assert 'optimization_barrier' in text(lambda x: jax.vmap(fn)(x), x)


@pytest.mark.parametrize('axes', [(0, None, None), (None, 1, None), (1, None, 2), (None, None, 0)])
def test_a_choice_is_made_in_batches_too(axes):
  rng = np.random.default_rng(0)
  shapes = [(2, 3), (3, 4), (2, 4)]
  args = [
    rng.normal(size=shape if axis is None else (*shape[:axis], 5, *shape[axis:])).astype(np.float32)
    for shape, axis in zip(shapes, axes, strict=True)
  ]

  def transposed(x, kernel, g):
    return g @ kernel.T

  def choose(x, kernel, g):
    return lowering.choose(x, kernel, g, on_cpu=lambda *args: 2 * transposed(*args), elsewhere=transposed, like=0)

  wanted = jax.vmap(transposed, axes)(*args) if axes != (0, None, None) else np.stack([args[2] @ args[1].T] * 5)
  scale = 2 if jax.default_backend() == 'cpu' else 1
  np.testing.assert_allclose(jax.jit(jax.vmap(choose, axes))(*args), scale * wanted, rtol=1e-5)
