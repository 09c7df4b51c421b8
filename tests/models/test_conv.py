import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dnt import errors
from dnt.models import conv, norms

LAYOUT = ('NHWC', 'HWIO', 'NHWC')
CASES = [
  (1, 1, 'SAME'),
  (1, 2, 'SAME'),
  (3, 1, 'SAME'),
  (3, 2, 'SAME'),
  (7, 1, 'SAME'),
  (7, 2, 'SAME'),
  (3, 2, ((0, 0), (0, 0))),
  (3, 1, ((2, 2), (2, 2))),
  (1, 2, ((1, 1), (1, 1))),  # padding beyond the kernel: the gradient is cropped
]


def draw(*shape):
  return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def with_gradients(f, x, kernel):
  """The value, and both gradients of a loss that weighs every output differently."""
  y, pullback = jax.vjp(f, x, kernel)
  return y, *pullback(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


def close(got, want):
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(('size', 'stride', 'padding'), CASES)
def test_value_and_gradients_equal_those_of_lax_and_torch(torch_reference, size, stride, padding):
  x, kernel = draw(2, 9, 8, 4), draw(size, size, 4, 8)
  ours = functools.partial(conv.conv2d, strides=(stride, stride), padding=padding)
  pads = ((size // 2, size // 2),) * 2 if padding == 'SAME' else padding
  plain = functools.partial(
    lax.conv_general_dilated,
    window_strides=(stride, stride),
    padding=pads,
    dimension_numbers=LAYOUT,
  )
  got = jax.jit(functools.partial(with_gradients, ours))(x, kernel)
  close(got, jax.jit(functools.partial(with_gradients, plain))(x, kernel))

  def compute(torch):
    tx = torch.tensor(x.transpose(0, 3, 1, 2)).requires_grad_()
    tk = torch.tensor(kernel.transpose(3, 2, 0, 1)).requires_grad_()
    ty = torch.nn.functional.conv2d(tx, tk, stride=stride, padding=pads[0][0]).permute(0, 2, 3, 1)
    ty.backward(torch.sin(torch.arange(ty.numel())).reshape(ty.shape))
    return ty, tx.grad.permute(0, 2, 3, 1), tk.grad.permute(2, 3, 1, 0)

  close(got, torch_reference(compute))


@pytest.mark.parametrize('padding', [((0, 1), (2, 0)), ((3, 2), (0, 1))])
@pytest.mark.parametrize('strides', [(2, 1), (3, 2)])
def test_uneven_strides_and_padding_equal_those_of_lax(strides, padding):
  x, kernel = draw(3, 10, 7, 3), draw(3, 2, 3, 5)
  plain = functools.partial(lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=LAYOUT)
  ours = functools.partial(conv.conv2d, strides=strides, padding=padding)
  close(with_gradients(ours, x, kernel), with_gradients(plain, x, kernel))


def test_gradients_have_the_gradients_of_lax():
  x, kernel = draw(2, 5, 5, 3), draw(3, 3, 3, 4)

  def penalty(convolve):
    gradients = jax.grad(lambda x, kernel: jnp.sum(jnp.tanh(convolve(x, kernel))), (0, 1))
    return jax.jit(jax.grad(lambda *args: sum(jnp.sum(each**2) for each in gradients(*args)), (0, 1)))(x, kernel)

  plain = functools.partial(lax.conv_general_dilated, window_strides=(2, 2), padding='SAME', dimension_numbers=LAYOUT)
  close(penalty(functools.partial(conv.conv2d, strides=(2, 2), padding=((1, 1), (1, 1)))), penalty(plain))


def test_scan_and_fori_loop_have_the_gradients_of_the_unrolled_network():
  x, kernels = draw(2, 6, 6, 4), 0.3 * draw(3, 3, 3, 4, 4)

  def unrolled(x, kernels):
    for kernel in kernels:
      x = jnp.tanh(conv.conv2d(x, kernel))
    return x

  def scanned(x, kernels):
    return lax.scan(lambda x, kernel: (jnp.tanh(conv.conv2d(x, kernel)), None), x, kernels)[0]

  want = with_gradients(unrolled, x, kernels)
  close(jax.jit(functools.partial(with_gradients, scanned))(x, kernels), want)

  def looped(x, kernels, count):
    zeros = (jnp.zeros_like(want[0]), jnp.zeros_like(x), jnp.zeros_like(kernels))

    def body(_, total):
      return jax.tree.map(jnp.add, total, with_gradients(unrolled, x, kernels))

    return lax.fori_loop(0, count, body, zeros)

  close(jax.jit(looped)(x, kernels, 2), [2 * value for value in want])


def test_backward_convolutions_are_written_as_the_cpu_library_wants_them():
  """NHWC x HWIO -> NHWC, transposes apart; XLA's own gradients permute the dimension numbers instead."""
  x, kernel = draw(2, 6, 6, 4), draw(3, 3, 4, 8)
  traced = jax.jit(functools.partial(with_gradients, functools.partial(conv.conv2d, strides=(2, 2)))).trace(x, kernel)
  text = traced.lower(lowering_platforms=('cpu',)).as_text()
  assert text.count('stablehlo.convolution') == 3
  assert text.count('dim_numbers = [b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]') == 3


def test_bfloat16_stays_bfloat16_through_both_passes():
  x, kernel = draw(2, 5, 5, 4), draw(3, 3, 4, 4)
  got = with_gradients(conv.conv2d, x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
  assert {value.dtype for value in got} == {jnp.dtype(jnp.bfloat16)}
  for a, b in zip(got, with_gradients(conv.conv2d, x, kernel), strict=True):
    np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * np.abs(b).max())


def test_shapes_that_do_not_fit_are_refused():
  with pytest.raises(errors.InputError, match='channels must be'):
    conv.conv2d(draw(1, 4, 4, 3), draw(3, 3, 4, 8))


@pytest.mark.thorough
def test_conv_module_owns_its_leaves_and_standardizes_its_kernel():
  x = draw(2, 5, 5, 4)
  module = conv.Conv(6, (3, 3), strides=(2, 2), weight_standardization=True, bias_init=nn.initializers.ones_init())
  variables = jax.jit(module.init)(jax.random.key(0), x)
  assert jax.tree.map(jnp.shape, variables) == {'params': {'kernel': (3, 3, 4, 6), 'bias': (6,)}}
  kernel = variables['params']['kernel']
  want = jax.jit(lambda k: conv.conv2d(x, norms.weight_standardize(k), strides=(2, 2)) + 1)(kernel)
  np.testing.assert_allclose(jax.jit(module.apply)(variables, x), want, rtol=1e-6, atol=1e-6)
  half = conv.Conv(6, (3, 3), use_bias=False, dtype=jnp.bfloat16)
  variables = jax.jit(half.init)(jax.random.key(0), x)
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables) == {
    'params': {'kernel': ((3, 3, 4, 6), jnp.dtype('float32'))}
  }
  assert jax.eval_shape(half.apply, variables, x).dtype == jnp.bfloat16


def test_the_gradient_of_a_bias_in_bfloat16_is_its_sum_over_all_positions():
  x, weights = draw(16, 16, 16, 3), np.random.default_rng(0).uniform(0.5, 1.5, (16, 16, 16, 4)).astype(np.float32)
  module = conv.Conv(4, (3, 3), dtype=jnp.bfloat16)
  variables = jax.jit(module.init)(jax.random.key(0), x)
  weights = jnp.asarray(weights, jnp.bfloat16)

  def total(variables, x, weights):
    return jnp.sum(module.apply(variables, x) * weights, dtype=jnp.float32)

  gradient = jax.jit(jax.grad(total))(variables, x, weights)['params']['bias']
  np.testing.assert_allclose(gradient, np.asarray(weights, np.float64).sum((0, 1, 2)), rtol=1e-5)
