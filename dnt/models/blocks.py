"""The repeated blocks of the networks, and their stems, transitions and heads.

The call is `block(x, train, keep)`; `keep` [B] scales the residual branch of each example (stochastic depth, see
`stage.Stage`), or is None. Blocks without a residual branch accept `keep` too and always receive None.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dnt import errors
from dnt.models import parts as parts_lib

Keep = jax.Array | None
Parts = parts_lib.Parts


class Stem(nn.Module):
  """The first convolution: 3x3 ('cifar'), or 7x7 with stride 2 and a 3x3 max-pool with stride 2 ('imagenet').

  Attributes:
    parts: layer constructors, see `parts.Parts`.
    features: number of output channels.
    kind: 'cifar' or 'imagenet'.
    activate: whether norm and activation follow the convolution; False for networks whose blocks begin with them.
  """

  parts: Parts
  features: int
  kind: str = 'cifar'
  activate: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    kernel, stride = (3, 1) if self.kind == 'cifar' else (7, 2)
    x = x.astype(self.parts.dtype)
    x = self.parts.conv(self.features, (kernel, kernel), strides=(stride, stride), name='conv')(x)
    if self.activate:
      x = self.parts.activation()(self.parts.norm(name='norm')(x, train))
    if self.kind == 'cifar':
      return x
    return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


class Head(nn.Module):
  """Global average pooling and the last dense layer; float32 logits [B, classes].

  Attributes:
    parts: layer constructors, see `parts.Parts`.
    num_classes: number of classes.
    activate: whether norm and activation precede the pooling, for networks whose blocks begin with them.
  """

  parts: Parts
  num_classes: int
  activate: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    if self.activate:
      x = self.parts.activation()(self.parts.norm(name='norm')(x, train))
    if x.ndim == 4:
      x = jnp.mean(x, (1, 2))
    return self.parts.dense(self.num_classes, name='dense')(x).astype(jnp.float32)


class Plain(nn.Module):
  """Two 3x3 convolutions, each with norm and activation: a residual block without its shortcut.

  Attributes:
    parts: layer constructors, see `parts.Parts`.
    features: number of output channels.
    stride: stride of the first convolution.
  """

  parts: Parts
  features: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, keep: Keep = None) -> jax.Array:
    for index, stride in enumerate((self.stride, 1), start=1):
      x = self.parts.conv(self.features, (3, 3), strides=(stride, stride), name=f'conv{index}')(x)
      x = self.parts.activation()(self.parts.norm(name=f'norm{index}')(x, train))
    return x


class Shortcut(nn.Module):
  """Maps x to the shape of the branch's output: identity if the shape is equal, else 'A' or 'B' (He et al. 2015, 4.1).

  Attributes:
    parts: layer constructors, see `parts.Parts`.
    features: number of output channels.
    stride: stride of the block.
    kind: 'A' (every stride-th pixel, zeros for the new channels) or 'B' (1x1 convolution).
    normalize: whether a norm follows the convolution.
  """

  parts: Parts
  features: int
  stride: int
  kind: str
  normalize: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    if self.stride == 1 and x.shape[-1] == self.features:
      return x
    if self.kind == 'A':
      x = x[:, :: self.stride, :: self.stride]
      return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.features - x.shape[-1])))
    x = self.parts.conv(self.features, (1, 1), strides=(self.stride, self.stride), name='conv')(x)
    return self.parts.norm(name='norm')(x, train) if self.normalize else x


class Residual(nn.Module):
  """Base class with the options of all residual blocks, y = shortcut(x) + F(x).

  Attributes:
    parts: layer constructors, see `parts.Parts`.
    features: number of output channels.
    inner: for bottlenecks: number of channels between the two 1x1 convolutions.
    stride: stride of the block.
    shortcut: see `Shortcut`.
    stride_on: for bottlenecks: which convolution has the stride, '3x3' or '1x1'.
    zero_init_last_norm: whether the scale of the branch's last norm starts at zero (Goyal et al. 2017).
    residual_scalar: initial value of a learned factor on the branch; None: no factor. Zero gives SkipInit (De and
      Smith 2020) and ReZero (Bachlechner et al. 2020).
  """

  parts: Parts
  features: int
  inner: int | None = None
  stride: int = 1
  shortcut: str = 'B'
  stride_on: str | None = None
  zero_init_last_norm: bool = False
  residual_scalar: float | None = None


def _conv(block: Residual, number: int, features: int, size: int, stride: int = 1) -> nn.Module:
  return block.parts.conv(features, (size, size), strides=(stride, stride), name=f'conv{number}')


def _norm_act(block: Residual, number: int, x: jax.Array, train: bool) -> jax.Array:
  return block.parts.activation()(block.parts.norm(name=f'norm{number}')(x, train))


def _last_norm(block: Residual, number: int, x: jax.Array, train: bool) -> jax.Array:
  if not block.zero_init_last_norm:
    return block.parts.norm(name=f'norm{number}')(x, train)
  norm = block.parts.norm(scale_init=nn.initializers.zeros_init(), name=f'norm{number}')
  if norm.kind == 'none':
    raise errors.InputError(
      "config.model.zero_init_last_norm has nothing to act on with norm='none'; residual_scalar=0 starts the branches "
      'at zero'
    )
  return norm(x, train)


def _shortcut(block: Residual, x: jax.Array, train: bool, normalize: bool) -> jax.Array:
  return Shortcut(block.parts, block.features, block.stride, block.shortcut, normalize, name='shortcut')(x, train)


def _add(block: Residual, shortcut: jax.Array, branch: jax.Array, keep: Keep) -> jax.Array:
  dtype = branch.dtype
  if block.residual_scalar is not None:
    scalar = block.param('residual_scalar', nn.initializers.constant(block.residual_scalar), (), jnp.float32)
    branch = branch * scalar  # in float32, as its gradient sums over the whole batch
  if keep is not None:
    branch = branch * keep.reshape(-1, 1, 1, 1)
  return shortcut + branch.astype(dtype)


def _strides(block: Residual) -> tuple[int, int]:
  """Returns the strides of the first 1x1 and of the 3x3 convolution of a bottleneck."""
  return (block.stride, 1) if block.stride_on == '1x1' else (1, block.stride)


class Basic(Residual):
  """Two 3x3 convolutions (He et al. 2015, figure 5 left)."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, keep: Keep = None) -> jax.Array:
    y = _norm_act(self, 1, _conv(self, 1, self.features, 3, self.stride)(x), train)
    y = _last_norm(self, 2, _conv(self, 2, self.features, 3)(y), train)
    return self.parts.activation()(_add(self, _shortcut(self, x, train, normalize=True), y, keep))


class Bottleneck(Residual):
  """1x1, 3x3 and 1x1 convolutions (He et al. 2015, figure 5 right)."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, keep: Keep = None) -> jax.Array:
    assert self.inner is not None  # a bottleneck is made with it
    strides = _strides(self)
    y = _norm_act(self, 1, _conv(self, 1, self.inner, 1, strides[0])(x), train)
    y = _norm_act(self, 2, _conv(self, 2, self.inner, 3, strides[1])(y), train)
    y = _last_norm(self, 3, _conv(self, 3, self.features, 1)(y), train)
    return self.parts.activation()(_add(self, _shortcut(self, x, train, normalize=True), y, keep))


class PreactBasic(Residual):
  """Norm and activation before each of two 3x3 convolutions (He et al. 2016, figure 1b).

  If the shape changes, the shortcut also starts after the first norm and activation, as in the authors' code. Else it
  carries the input as it is, in the first block too, see `resnet.ResNet`.
  """

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, keep: Keep = None) -> jax.Array:
    y = _norm_act(self, 1, x, train)
    shortcut = _preact_shortcut(self, x, y, train)
    y = _conv(self, 1, self.features, 3, self.stride)(y)
    y = _conv(self, 2, self.features, 3)(_norm_act(self, 2, y, train))
    return _add(self, shortcut, y, keep)


class PreactBottleneck(Residual):
  """Norm and activation before each of a 1x1, a 3x3 and a 1x1 convolution (He et al. 2016, section 4.1).

  If the shape changes, the shortcut also starts after the first norm and activation, as in the authors' code.
  """

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, keep: Keep = None) -> jax.Array:
    assert self.inner is not None  # a bottleneck is made with it
    strides = _strides(self)
    y = _norm_act(self, 1, x, train)
    shortcut = _preact_shortcut(self, x, y, train)
    y = _conv(self, 1, self.inner, 1, strides[0])(y)
    y = _conv(self, 2, self.inner, 3, strides[1])(_norm_act(self, 2, y, train))
    y = _conv(self, 3, self.features, 1)(_norm_act(self, 3, y, train))
    return _add(self, shortcut, y, keep)


def _preact_shortcut(block: Residual, x: jax.Array, activated: jax.Array, train: bool) -> jax.Array:
  changes = block.stride != 1 or x.shape[-1] != block.features
  return _shortcut(block, activated if changes else x, train, normalize=False)


class Highway(nn.Module):
  """Computes y = H(x) T(x) + x (1 - T(x)) with 3x3 convolutions H and T (Srivastava et al. 2015, eq. 3).

  It keeps the shape. H has the norm and the activation, T a sigmoid and a separate bias.

  Attributes:
    parts: layer constructors, see `parts.Parts`.
    gate_bias: initial bias of T; if it is negative, the block starts near the identity.
  """

  parts: Parts
  gate_bias: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, keep: Keep = None) -> jax.Array:
    features = x.shape[-1]
    y = self.parts.conv(features, (3, 3), name='conv')(x)
    y = self.parts.activation()(self.parts.norm(name='norm')(y, train))
    bias_init = nn.initializers.constant(self.gate_bias)
    # No norm follows the gate, to undo the scale of a standardized kernel.
    plain = {'weight_standardization': False, 'use_bias': True, 'bias_init': bias_init}
    gate = jax.nn.sigmoid(self.parts.conv(features, (3, 3), **plain, name='gate')(x))
    return y * gate + x * (1 - gate)


class Transition(nn.Module):
  """A 3x3 convolution with norm and activation, with which a highway network changes its shape.

  Attributes:
    parts: layer constructors, see `parts.Parts`.
    features: number of output channels.
    stride: stride of the convolution.
  """

  parts: Parts
  features: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, keep: Keep = None) -> jax.Array:
    x = self.parts.conv(self.features, (3, 3), strides=(self.stride, self.stride), name='conv')(x)
    return self.parts.activation()(self.parts.norm(name='norm')(x, train))


class DenseLayer(nn.Module):
  """Appends `growth_rate` channels computed from all earlier ones (Huang et al. 2017, sections 3 and 4).

  Attributes:
    parts: layer constructors, see `parts.Parts`.
    growth_rate: number of channels it appends.
    bottleneck: whether a 1x1 convolution to 4 * growth_rate channels comes first.
  """

  parts: Parts
  growth_rate: int
  bottleneck: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, keep: Keep = None) -> jax.Array:
    act, conv, norm = self.parts.activation, self.parts.conv, self.parts.norm
    y = act()(norm(name='norm1')(x, train))
    if self.bottleneck:
      y = conv(4 * self.growth_rate, (1, 1), name='conv1')(y)
      y = act()(norm(name='norm2')(y, train))
    y = conv(self.growth_rate, (3, 3), name='conv2' if self.bottleneck else 'conv1')(y)
    return jnp.concatenate([x, y], -1)


class DenseTransition(nn.Module):
  """A 1x1 convolution to fewer channels and 2x2 average pooling between two dense blocks.

  Attributes:
    parts: layer constructors, see `parts.Parts`.
    features: number of output channels.
  """

  parts: Parts
  features: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = self.parts.activation()(self.parts.norm(name='norm')(x, train))
    x = self.parts.conv(self.features, (1, 1), name='conv')(x)
    return nn.avg_pool(x, (2, 2), (2, 2))


class DenseUnit(nn.Module):
  """A dense layer with norm and activation, H; it computes H(x), x + H(x), or the highway form of `Highway`.

  Attributes:
    parts: layer constructors, see `parts.Parts`.
    width: number of units.
    kind: 'plain', 'residual' or 'highway'; the last two keep the width.
    gate_bias: for highway: initial bias of the gate.
  """

  parts: Parts
  width: int
  kind: str = 'plain'
  gate_bias: float | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool, keep: Keep = None) -> jax.Array:
    y = self.parts.dense(self.width, name='dense')(x)
    y = self.parts.activation()(self.parts.norm(name='norm')(y, train))
    if self.kind == 'residual':
      return x + y
    if self.kind == 'highway':
      assert self.gate_bias is not None  # a highway network is made with it
      bias_init = nn.initializers.constant(self.gate_bias)
      gate = jax.nn.sigmoid(self.parts.dense(self.width, bias_init=bias_init, name='gate')(x))
      return y * gate + x * (1 - gate)
    return y
