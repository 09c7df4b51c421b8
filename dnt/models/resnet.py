"""Residual networks: CIFAR and ImageNet, post- and pre-activation, wide, with stochastic depth."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax

from dnt import config, errors
from dnt.models import blocks, plain
from dnt.models import stage as stage_lib

BLOCKS: dict[str, type[blocks.Residual]] = {
  'basic': blocks.Basic,
  'bottleneck': blocks.Bottleneck,
  'preact_basic': blocks.PreactBasic,
  'preact_bottleneck': blocks.PreactBottleneck,
}
# Numbers of blocks in each stage by depth (He et al. 2015, table 1).
IMAGENET_BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
IMAGENET_BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class Resolved(NamedTuple):
  """The options of a `ResNet` that may be left open, with the values that the network uses."""

  depth: int
  block: str
  shortcut: str
  stride_on: str | None


class ResNet(nn.Module):
  """A stem, three (CIFAR) or four (ImageNet) stages of residual blocks, and a head.

  In pre-activation networks the first norm and activation are those of the first block. He et al. 2016 (appendix) have
  them right after the first convolution, before the paths split: here, the max-pool of the imagenet stem comes before
  them, and in networks of preact_basic blocks whose first block keeps its shape, its shortcut carries the output of the
  stem without them.

  Options that the chosen block does not have must stay None; setting them raises an error.

  Attributes:
    num_classes: number of classes.
    parts: layer constructors, see `parts.Parts`.
    depth: CIFAR: 6n + 2 with basic blocks (with preact_basic also 6n + 4, which is how papers count wide networks),
      9n + 2 with bottlenecks; ImageNet: 18, 34, 50, 101 or 152. None: 20 (CIFAR) or 50 (ImageNet).
    width: factor on the number of channels of the blocks; with bottlenecks only on the inner channels (Zagoruyko and
      Komodakis 2016: WRN-28-10, WRN-50-2).
    block: basic, bottleneck, preact_basic or preact_bottleneck; None: basic, or the ImageNet depth's block.
    stem: cifar or imagenet.
    shortcut: 'A' or 'B', see `blocks.Shortcut`; None: 'A' for basic blocks on CIFAR, else 'B', as in the papers, but
      for preact_basic on CIFAR: 'B' is that of wide networks, where He et al. 2016 have 'A'.
    stride_on: for bottlenecks: convolution with the stride, '3x3' (torchvision) or '1x1' (the papers); None: '3x3'.
    zero_init_last_norm: whether the scale of each branch's last norm starts at zero.
    residual_scalar: initial value of a learned factor on each branch; None: no factor.
    stochastic_depth: probability of dropping the last block; it grows linearly with depth (Huang et al. 2016, eq. 4).
    scan: see `stage.Stage`.
    remat: see `stage.Stage`.

  Raises:
    errors.InputError: the block, stem, shortcut or `stride_on` is unknown, the depth does not fit, or the block does
      not have an option that is set.
  """

  num_classes: int
  parts: blocks.Parts
  depth: int | None = None
  width: int = 1
  block: str | None = None
  stem: str = 'cifar'
  shortcut: str | None = None
  stride_on: str | None = None
  zero_init_last_norm: bool = False
  residual_scalar: float | None = None
  stochastic_depth: float = 0.0
  scan: bool = False
  remat: bool = False

  def __post_init__(self):
    depth, block, shortcut, stride_on = self.resolved()
    for option, value, valid in (
      ('stem', self.stem, config.STEMS),
      ('block', block, BLOCKS),
      ('shortcut', shortcut, config.SHORTCUTS),
      ('stride_on', stride_on or '3x3', config.STRIDES_ON),
    ):
      if value not in valid:
        raise errors.unknown(f'{option} of resnet', value, valid)
    if stride_on and not block.endswith('bottleneck'):
      raise errors.InputError(f'config.model.stride_on needs bottlenecks; block={block!r} has none')
    if self.zero_init_last_norm and block.startswith('preact'):
      raise errors.InputError(
        f'config.model.zero_init_last_norm needs a branch that ends with a norm, which block={block!r} has not; '
        'residual_scalar=0 starts its branches at zero'
      )
    blocks_per_stage(self.stem, block, depth)
    super().__post_init__()

  @nn.nowrap
  def resolved(self) -> Resolved:
    """Returns the options that may be left open, as the network uses them; the fields keep what is open for `clone`."""
    imagenet = self.stem == 'imagenet'
    depth = self.depth or (50 if imagenet else 20)
    block = self.block or ('bottleneck' if imagenet and depth in IMAGENET_BOTTLENECK else 'basic')
    shortcut = self.shortcut or ('A' if block == 'basic' and not imagenet else 'B')
    return Resolved(depth, block, shortcut, self.stride_on or ('3x3' if block.endswith('bottleneck') else None))

  @property
  def head_pools(self) -> bool:
    """Whether the head reads only the mean of its input over all positions: not if norm and activation come first."""
    return self.resolved().block in ('basic', 'bottleneck')

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    options = self.resolved()
    preact, bottleneck = options.block.startswith('preact'), options.block.endswith('bottleneck')
    counts = blocks_per_stage(self.stem, options.block, options.depth)
    rates = [self.stochastic_depth * (index + 1) / sum(counts) for index in range(sum(counts))]
    base = 16 if self.stem == 'cifar' else 64
    x = blocks.Stem(self.parts, base, self.stem, activate=not preact, name='stem')(x, train)
    for stage, count in enumerate(counts):
      channels = base * 2**stage
      block = functools.partial(
        BLOCKS[options.block],
        self.parts,
        features=channels * (4 if bottleneck else self.width),
        inner=channels * self.width if bottleneck else None,
        shortcut=options.shortcut,
        stride_on=options.stride_on,
        zero_init_last_norm=self.zero_init_last_norm,
        residual_scalar=self.residual_scalar,
      )
      x = stage_lib.Stage(
        functools.partial(block, stride=1 if stage == 0 else 2),
        block,
        count,
        drop_rates=tuple(rates[sum(counts[:stage]) :][:count]) if self.stochastic_depth else (),
        scan=self.scan,
        remat=self.remat,
        name=f'stage{stage + 1}',
      )(x, train)
    return blocks.Head(self.parts, self.num_classes, activate=preact, name='head')(x, train)


def blocks_per_stage(stem: str, block: str, layers: int) -> tuple[int, ...]:
  """Returns the number of blocks in each stage.

  Args:
    stem: 'cifar' or 'imagenet'.
    block: a key of `BLOCKS`.
    layers: the depth of the network.

  Raises:
    errors.InputError: the depth is invalid; the message names the nearest valid one.
  """
  bottleneck = block.endswith('bottleneck')
  if stem == 'cifar':
    extra = (2, 4) if block == 'preact_basic' else (2,)
    return (plain.blocks_per_stage(f'resnet with {block} blocks', layers, 9 if bottleneck else 6, extra),) * 3
  known = IMAGENET_BOTTLENECK if bottleneck else IMAGENET_BASIC
  return plain.known_stages(f'an ImageNet resnet with {block} blocks', layers, known)
