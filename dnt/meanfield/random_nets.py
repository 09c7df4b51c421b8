"""Runs random dense networks of equal layers, many at once, and computes products with their Jacobians.

A layer is that of `blocks.DenseUnit` with the weights of mean field theory: W_ij ~ N(0, sigma_w^2 / N), b_i ~ N(0,
sigma_b^2), and the gates of a highway layer like W.

Each pass over the depth draws the weights of a layer again from the key where it uses them, so that memory does not
grow with depth. All networks of one depth and key use the same draw, scaled, since drawing takes most of the time.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dnt.models import activations, norms

GUARD = 1  # vectors of a Lanczos block beyond the requested ones
ENOUGH = 6  # Lanczos iterations that find singular values to about a percent


class Weights(NamedTuple):
  """Holds standard normal draws of one layer: kernels [N, N] (over sqrt(N)), biases [N], gates [N, N].

  Without highway layers the gates are [0, N].
  """

  kernel: jax.Array
  bias: jax.Array
  gate: jax.Array


class Network(NamedTuple):
  """Describes all networks of some activations x blocks x norms, of one depth.

  An array of their signals is [G, B, N]: G stands for the four axes of `grid` (activation, block, norm, variances), and
  the axes of input and unit follow.

  Attributes:
    activations: A names.
    blocks: K of plain, residual, highway.
    norms: M of batch_norm, layer_norm, rms_norm, none.
    depth: number of layers.
    width: number of units, N.
    gate_bias: bias of the gates of highway layers.
  """

  activations: tuple[str, ...]
  blocks: tuple[str, ...]
  norms: tuple[str, ...]
  depth: int
  width: int
  gate_bias: float

  def grid(self, variances: jax.Array) -> tuple[int, int, int, int]:
    """Returns (A, K, M, S) for variances [S, 2]."""
    return len(self.activations), len(self.blocks), len(self.norms), len(variances)

  def draw(self, key: jax.Array, index: jax.Array) -> Weights:
    """Draws the weights of layer `index`."""
    rows = 2 * self.width + 1 if 'highway' in self.blocks else self.width + 1
    values = jax.random.normal(jax.random.fold_in(key, index), (rows, self.width))  # one draw compiles faster
    kernels = values[1:] / math.sqrt(self.width)
    return Weights(kernels[: self.width], values[0], kernels[self.width :])

  def layer(self, weights: Weights, variances: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the layer's output and its pre-activations before the norm, both in x's shape.

    Args:
      weights: weights of the layer.
      variances: (sigma_w^2, sigma_b^2) [S, 2].
      x: [G, B, N].
    """
    weight, bias = (jnp.sqrt(column).reshape(1, 1, 1, -1, 1, 1) for column in variances.T)
    h = _matmul(x, weights.kernel) * weight + bias * weights.bias.reshape(1, 1, 1, 1, 1, -1)
    z = jnp.stack([_normalized(norm, h[:, :, at]) for at, norm in enumerate(self.norms)], 2)
    y = jnp.stack([activations.make(name)(z[at]) for at, name in enumerate(self.activations)])
    outputs = []
    for at, block in enumerate(self.blocks):
      output = y[:, at]
      if block == 'residual':
        output = x[:, at] + output
      elif block == 'highway':
        gate = jax.nn.sigmoid(_matmul(x[:, at], weights.gate) * weight[0] + self.gate_bias)
        output = output * gate + x[:, at] * (1 - gate)
      outputs.append(output)
    return jnp.stack(outputs, 1), h


def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return jnp.tensordot(x, kernel, 1, precision='highest')


def _normalized(norm: str, h: jax.Array) -> jax.Array:
  """Applies any of `dnt.config.NORMS` except group_norm, with scale one and bias zero, to h [..., B, N]."""
  one, zero = jnp.ones(h.shape[-1]), jnp.zeros(h.shape[-1])
  if norm == 'none':
    return h
  if norm == 'layer_norm':
    return norms.layer_norm(h, one, zero)
  if norm == 'rms_norm':
    return norms.rms_norm(h, one)
  batches = h.reshape(-1, *h.shape[-2:])
  return jax.vmap(lambda h: norms.batch_norm(h, one, zero, *norms.batch_statistics(h)))(batches).reshape(h.shape)


class Signals(NamedTuple):
  """Holds the signals of a forward pass by layer.

  Attributes:
    inputs: inputs of each layer, [depth, G, B, N].
    log_q: logarithm of the mean square q of the pre-activations [depth, G]; q may be too small for a float32.
    cosine: mean cosine c of the angle between the pre-activations of two inputs [depth, G]; NaN for one input, or if
      one of them is zero.
  """

  inputs: jax.Array
  log_q: jax.Array
  cosine: jax.Array


def forward(network: Network, key: jax.Array, variances: jax.Array, x: jax.Array) -> Signals:
  """Returns the signals of all layers for inputs x [G, B, N]."""

  def body(x, index):
    output, h = network.layer(network.draw(key, index), variances, x)
    largest = jnp.max(jnp.abs(h), -1, keepdims=True)
    unit = h / largest  # its squares are in range
    square = jnp.mean(jnp.square(unit), -1, keepdims=True)
    inputs = h.shape[-2]
    resultant = jnp.sum(unit * lax.rsqrt(square), -2)
    cosine = (jnp.mean(jnp.square(resultant), -1) - inputs) / (inputs * (inputs - 1)) if inputs > 1 else jnp.nan
    log_squares = jnp.where(largest > 0, jnp.log(square) + 2 * jnp.log(largest), -jnp.inf)
    log_q = jax.nn.logsumexp(log_squares, (-2, -1)) - math.log(inputs)
    return output, Signals(x, log_q, jnp.broadcast_to(cosine, h.shape[:-2]))

  return lax.scan(body, x, jnp.arange(network.depth))[1]


def push(
  network: Network, key: jax.Array, variances: jax.Array, inputs: jax.Array, tangents: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Multiplies the Jacobian with vectors, from the input to the output.

  Args:
    network: the networks.
    key: key of the seed.
    variances: [S, 2].
    inputs: inputs of every layer, from `forward`.
    tangents: [V, G, B, N].

  Returns:
    The V products over their common norm, and the natural logarithm of that norm [G], which may be too large or too
    small for a float32.
  """

  def body(carry, at):
    tangents, logarithm = carry
    index, x = at
    weights = network.draw(key, index)
    _, product = jax.linearize(lambda x: network.layer(weights, variances, x)[0], x)
    tangents, grown = _unit(jax.vmap(product)(tangents))
    return (tangents, logarithm + grown), None

  steps = (jnp.arange(network.depth), inputs)
  return lax.scan(body, (tangents, jnp.zeros(inputs.shape[1:-2])), steps)[0]


def pull(
  network: Network, key: jax.Array, variances: jax.Array, inputs: jax.Array, cotangents: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Multiplies the transposed Jacobian with vectors, from the output to the input; see `push`.

  Returns:
    The V products over their common norm, and the logarithm of that norm at the input of every layer [depth, G],
    where `cotangents` are scaled to norm one.
  """

  def body(carry, at):
    cotangents, logarithm = carry
    index, x = at
    weights = network.draw(key, index)
    _, product = jax.vjp(lambda x: network.layer(weights, variances, x)[0], x)
    cotangents, grown = _unit(jax.vmap(lambda g: product(g)[0])(cotangents))
    logarithm = logarithm + grown
    return (cotangents, logarithm), logarithm

  steps = (jnp.arange(network.depth), inputs)
  (cotangents, _), norms_by_layer = lax.scan(
    body, (_unit(cotangents)[0], jnp.zeros(inputs.shape[1:-2])), steps, reverse=True
  )
  return cotangents, norms_by_layer


def _unit(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns V vectors over their common norm, and its logarithm [G]; vectors [V, G, B, N]."""
  norm = jnp.sqrt(jnp.sum(jnp.square(vectors), (0, -2, -1)))
  return vectors / jnp.where(norm > 0, norm, 1.0)[None, ..., None, None], jnp.log(norm)


def lanczos(width: int, count: int, iterations: int) -> tuple[int, int]:
  """Returns the vectors of a Lanczos block and the number of blocks.

  There are no more blocks than the units allow. Where these would be too few for the values, one block of all units is
  the whole Jacobian.

  Args:
    width: number of units.
    count: number of singular values.
    iterations: the most blocks to take.
  """
  block = count + GUARD
  most = width // block
  return (block, min(iterations, most)) if min(iterations, ENOUGH) <= most else (width, 1)


def singular_values(
  network: Network, key: jax.Array, variances: jax.Array, x: jax.Array, count: int, iterations: int
) -> jax.Array:
  """Returns natural logarithms of the largest singular values of the Jacobian of the first input's output, [G, count].

  Block Lanczos on J^T J with full reorthogonalization (Golub and Van Loan, Matrix Computations, 10.3), and the
  singular values of J on the space at its end, which approach those of J from below. See `lanczos` for its size.
  The other inputs are held fixed; they matter to batch_norm.

  Args:
    network: the networks.
    key: key of the seed.
    variances: [S, 2].
    x: inputs [G, B, N].
    count: number of singular values.
    iterations: the most of them; each passes the depth twice.
  """
  inputs = forward(network, key, variances, x).inputs
  block, iterations = lanczos(network.width, count, iterations)

  def first(product, vectors):
    whole = jnp.zeros((block, *x.shape)).at[..., 0, :].set(vectors)
    vectors, logarithm = product(network, key, variances, inputs, whole)
    return vectors[..., 0, :], logarithm

  def orthonormal(vectors, basis):
    for _ in range(3):  # twice is enough, unless the space holds all images: then it starts from what rounding leaves
      parts = jnp.einsum('u...n,v...n->uv...', basis, vectors, precision='highest')
      vectors = vectors - jnp.einsum('uv...,u...n->v...n', parts, basis, precision='highest')
      vectors = jnp.moveaxis(jnp.linalg.qr(jnp.moveaxis(vectors, 0, -1))[0], -1, 0)
    return vectors

  def iterate(carry, index):
    basis, vectors = carry
    basis = lax.dynamic_update_slice_in_dim(basis, vectors, index * block, 0)
    images, logarithm = first(push, vectors)
    return (basis, orthonormal(first(pull, images)[0], basis)), (images, logarithm)

  start = jax.random.normal(jax.random.fold_in(key, network.depth + 1), (block, network.width))
  start = jnp.broadcast_to(start[:, None, None, None, None], (block, *x.shape[:-2], network.width))
  basis = jnp.zeros((iterations * block, *start.shape[1:]))
  steps = jnp.arange(iterations)
  images, logarithms = lax.scan(iterate, (basis, orthonormal(start, basis)), steps)[1]
  largest = jnp.max(logarithms, 0)  # [G]
  images = images * jnp.exp(logarithms - largest[None])[:, None, ..., None]
  images = jnp.moveaxis(images.reshape(-1, *images.shape[2:]), 0, -2)  # J times the basis
  # Those of the products of images would be wrong below 3e-4 of the largest.
  values = jnp.linalg.svd(images, compute_uv=False)[..., :count]
  return largest[..., None] + jnp.log(jnp.maximum(values, jnp.finfo(jnp.float32).tiny))


def draw_signals(
  network: Network, key: jax.Array, variances: jax.Array, inputs: int, correlation: float
) -> tuple[jax.Array, jax.Array]:
  """Draws Gaussian inputs of unit variance, each pair with this correlation, and independent cotangents.

  Both are [G, B, N], the same for all networks.
  """
  values = jax.random.normal(jax.random.fold_in(key, network.depth), (1 + 2 * inputs, network.width))
  x = math.sqrt(correlation) * values[:1] + math.sqrt(1 - correlation) * values[1 : 1 + inputs]
  shape = (*network.grid(variances), inputs, network.width)
  return jnp.broadcast_to(x, shape), jnp.broadcast_to(values[1 + inputs :], shape)
