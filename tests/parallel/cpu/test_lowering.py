"""What a program holds depends on the platform that it is lowered for, not on the machine."""

import contextlib
import functools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from dnt.data import pipeline
from dnt.models import conv
from dnt.parallel import cpu
from dnt.parallel import mesh as mesh_lib
from dnt.parallel.cpu import lowering
from dnt.training import datasets, experiment, open_options, steps

IMAGE, KERNEL = np.ones((2, 6, 6, 3), np.float32), np.ones((3, 3, 3, 4), np.float32)
# Dimension numbers of the convolutions that XLA's library for CPU takes.
FAST = '[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]'


def text(fn, *args, platforms=('cpu',)):
  return jax.jit(fn).trace(*args).lower(lowering_platforms=platforms).as_text()


def convolutions(program):
  """How many there are, and how many in the form for CPU."""
  found = [line for line in program.splitlines() if 'stablehlo.convolution' in line]
  return len(found), sum(FAST in line for line in found)


@pytest.mark.thorough
@pytest.mark.parametrize('step', ['train_step', 'telemetry_step'])
def test_a_train_step_lowered_for_another_platform_carries_nothing_for_cpu(tiny, step):
  tiny.model.update({'name': 'resnet', 'depth': 8, 'width': None})
  tiny.train.accumulate = 2  # a loop around the gradient
  data = datasets.load(tiny, ())
  run = experiment.make(open_options.resolve(tiny, data), data.spec)
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


def convolve(x, kernel, layout, stride=1, padding='SAME', **kwargs):
  strides = (stride,) * (x.ndim - 2)
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout, **kwargs)


# What users' own networks hold: [shape of x, shape of the kernel, function].
IMAGES = ('NHWC', 'HWIO', 'NHWC')
OTHERS = {
  'plain': ((2, 6, 5, 3), (3, 2, 3, 4), functools.partial(convolve, layout=IMAGES)),
  'grouped': ((2, 6, 5, 4), (3, 3, 2, 6), functools.partial(convolve, layout=IMAGES, feature_group_count=2)),
  'depthwise': ((2, 6, 5, 4), (3, 3, 1, 4), functools.partial(convolve, layout=IMAGES, feature_group_count=4)),
  'dilated': ((2, 6, 5, 3), (3, 3, 3, 4), functools.partial(convolve, layout=IMAGES, rhs_dilation=(2, 2))),
  'channels first': ((2, 3, 6, 5), (4, 3, 3, 3), functools.partial(convolve, layout=('NCHW', 'OIHW', 'NCHW'))),
  'one-dimensional': ((2, 9, 3), (3, 3, 4), functools.partial(convolve, layout=('NWC', 'WIO', 'NWC'))),
  'transposed': ((2, 3, 4, 3), (2, 2, 3, 4), lambda x, kernel: lax.conv_transpose(x, kernel, (2, 2), 'SAME')),
  'in batches': ((5, 2, 6, 5, 3), (5, 3, 3, 3, 4), jax.vmap(functools.partial(convolve, layout=IMAGES))),
}


# A convolution as the library for CPU takes it, with any number of spatial dimensions.
FAST_FORM = re.compile(r'dim_numbers = \[b, ([\d, ]+), f\]x\[\1, i, o\]->\[b, \1, f\]')


@pytest.mark.parametrize('kind', OTHERS)
def test_every_convolution_in_a_loop_has_the_form_of_the_library_and_the_values_of_jax(kind, monkeypatch):
  rng = np.random.default_rng(0)
  *shapes, fn = OTHERS[kind]
  x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in shapes)

  def outputs(x, kernel):
    return fn(x, kernel), *jax.grad(lambda x, kernel: jnp.sum(jnp.sin(fn(x, kernel))), (0, 1))(x, kernel)

  def compile_loop():
    def looped(x, kernel, count):
      total = jax.tree.map(jnp.zeros_like, outputs(x, kernel))
      return lax.fori_loop(0, count, lambda _, total: jax.tree.map(jnp.add, total, outputs(x, kernel)), total)

    program = text(looped, x, kernel, 1)
    return jax.jit(looped)(x, kernel, 1), program.count('stablehlo.convolution'), len(FAST_FORM.findall(program))

  got, count, fast = compile_loop()
  assert count == fast >= 3
  monkeypatch.setenv(cpu.VARIABLE, 'convolutions')
  wanted, count, fast = compile_loop()
  assert fast < count
  for a, b in zip(got, wanted, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


# One of the three passes of each has its window at one place only.
PRODUCTS = {
  '1x1': ((3, 6, 5, 4), (1, 1, 4, 7), functools.partial(convolve, layout=IMAGES)),
  '1x1, every second place': ((3, 6, 5, 4), (1, 1, 4, 7), functools.partial(convolve, layout=IMAGES, stride=2)),
  '1x1, every third place': ((3, 6, 7, 4), (1, 1, 4, 7), functools.partial(convolve, layout=IMAGES, stride=3)),
  '1x1, channels first': ((3, 4, 6, 5), (7, 4, 1, 1), functools.partial(convolve, layout=('NCHW', 'OIHW', 'NCHW'))),
  'one-dimensional': ((3, 9, 4), (1, 4, 7), functools.partial(convolve, layout=('NWC', 'WIO', 'NWC'))),
  'the whole image': ((3, 6, 5, 4), (6, 5, 4, 7), functools.partial(convolve, layout=IMAGES, padding='VALID')),
  'part of the image': (
    (3, 6, 5, 4),
    (2, 3, 4, 7),
    functools.partial(convolve, layout=IMAGES, padding=[(-1, -2), (0, 0)], rhs_dilation=(2, 2)),
  ),
}


@pytest.mark.parametrize('kind', PRODUCTS)
def test_a_window_at_one_place_is_a_matrix_product_with_the_values_of_jax(kind, monkeypatch):
  rng = np.random.default_rng(0)
  *shapes, fn = PRODUCTS[kind]
  x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in shapes)

  def run():
    def passes(x, kernel):
      y, backward = jax.vjp(fn, x, kernel)
      return y, *backward(jnp.cos(y))

    program = text(passes, x, kernel)
    return jax.jit(passes)(x, kernel), program.count('stablehlo.dot_general'), program.count('stablehlo.convolution')

  got, products, others = run()
  assert (products, others) == (1, 2)
  monkeypatch.setenv(cpu.VARIABLE, 'convolutions')
  wanted, products, others = run()
  assert (products, others) == (0, 3)
  for a, b in zip(got, wanted, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_a_convolution_without_spatial_dimensions_is_a_matrix_product():
  x, kernel = np.arange(6.0, dtype=np.float32).reshape(2, 3), np.arange(12.0, dtype=np.float32).reshape(4, 3)
  np.testing.assert_allclose(jax.jit(lambda x, kernel: lax.conv(x, kernel, (), 'VALID'))(x, kernel), x @ kernel.T)


@pytest.mark.usefixtures('optimized')
def test_a_users_own_convolutions_are_fast_inside_the_loop_of_steps(tiny, own_network):
  data = datasets.load(tiny, ())
  run = experiment.make(open_options.resolve(tiny, data), data.spec)
  mesh = mesh_lib.make_mesh(tiny.mesh)
  with contextlib.closing(pipeline.make_train_loader(run.config, data.train, mesh)) as loader:
    program = steps.make_train_steps(run.phases[0].train_step, loader.batch_at, 3)
    lowered = text(program, run.abstract_state(), loader.shapes(), np.int32(1))
  assert 'stablehlo.while' in lowered
  count, fast = convolutions(lowered)
  assert count == fast == 2  # forward, and backward to the kernel


WITHOUT_THE_RULE = """
import jax
from jax.interpreters import mlir

del mlir._platform_specific_lowerings  # as a version of jax may do
from dnt.models import conv
from dnt.parallel import compile as compile_lib

x, kernel = jax.numpy.ones((1, 4, 4, 2)), jax.numpy.ones((3, 3, 2, 1))
for _ in range(2):
  print(float(compile_lib.jit(jax.grad(lambda x: conv.conv2d(x, kernel).sum()))(x).sum()))
"""


@pytest.mark.thorough
def test_a_version_of_jax_without_the_rule_keeps_its_own_convolutions_with_one_warning():
  done = subprocess.run([sys.executable, '-c', WITHOUT_THE_RULE], capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  first, second = map(float, done.stdout.split())
  assert first == second == 2 * (4 * 3 - 2) ** 2  # windows that hold each place, for both channels
  assert done.stderr.count('convolutions') == 1 and 'untested' in done.stderr
