"""DenseNet and DenseNet-BC (Huang et al. 2017), CIFAR and ImageNet."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax

from dnt import config, errors
from dnt.models import blocks, plain
from dnt.models import stage as stage_lib

# Numbers of dense layers in each stage by depth (table 1; 161 is torchvision's, from an earlier version of the paper).
# All use bottlenecks.
IMAGENET = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32), 161: (6, 12, 36, 24)}


class Resolved(NamedTuple):
  """The options of a `DenseNet` that may be left open, with the values that the network uses."""

  depth: int
  growth_rate: int


class DenseNet(nn.Module):
  """A stem, dense stages with transitions between them, and a head; each dense layer is an entry.

  Attributes:
    num_classes: number of classes.
    parts: layer constructors, see `parts.Parts`.
    depth: CIFAR: 6n + 4 with bottlenecks, 3n + 4 without (n dense layers per stage); ImageNet: 121, 161, 169 or 201.
      None: 100 (CIFAR) or 121 (ImageNet).
    growth_rate: number of channels each dense layer adds (k); None: 12 (CIFAR), 32 (ImageNet), 48 (ImageNet, 161).
    compression: fraction of channels that a transition keeps (theta).
    bottleneck: whether a 1x1 convolution precedes each 3x3 one (-B).
    stem: cifar or imagenet. It has 2k channels with bottlenecks, 16 without.
    scan: must be False, because every layer has another shape.
    remat: see `stage.Stage`.

  Raises:
    errors.InputError: the stem is unknown, the depth is invalid, the compression is above 1 or (at tracing) leaves no
      channel, an ImageNet network has no bottlenecks, or `scan` is set.
  """

  num_classes: int
  parts: blocks.Parts
  depth: int | None = None
  growth_rate: int | None = None
  compression: float = 0.5
  bottleneck: bool = True
  stem: str = 'cifar'
  scan: bool = False
  remat: bool = False

  def __post_init__(self):
    if self.stem not in config.STEMS:
      raise errors.unknown('stem of densenet', self.stem, config.STEMS)
    if self.scan:
      raise errors.InputError(
        'config.model.scan=True is not possible with densenet: each layer of a stage has more input channels than the '
        'one before, so that no two are equal; keep scan=False'
      )
    if self.compression > 1:
      raise errors.InputError(f'config.model.compression={self.compression} must be at most 1 (keep all channels)')
    if self.stem == 'imagenet' and not self.bottleneck:
      raise errors.InputError('config.model.bottleneck=False is not possible with an ImageNet densenet')
    layers_per_stage(self.stem, self.bottleneck, self.resolved().depth)
    super().__post_init__()

  @nn.nowrap
  def resolved(self) -> Resolved:
    """Returns the options that may be left open, as the network uses them; the fields keep what is open for `clone`."""
    imagenet = self.stem == 'imagenet'
    depth = self.depth or (121 if imagenet else 100)
    return Resolved(depth, self.growth_rate or ((48 if depth == 161 else 32) if imagenet else 12))

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    depth, growth_rate = self.resolved()
    counts = layers_per_stage(self.stem, self.bottleneck, depth)
    stem = 2 * growth_rate if self.bottleneck else 16
    # The ImageNet stem normalizes before its pooling; with the CIFAR stem, the first layer normalizes.
    x = blocks.Stem(self.parts, stem, self.stem, activate=self.stem == 'imagenet', name='stem')(x, train)
    for stage, count in enumerate(counts, start=1):
      layer = functools.partial(blocks.DenseLayer, self.parts, growth_rate, self.bottleneck)
      x = stage_lib.Stage(layer, layer, count, remat=self.remat, name=f'stage{stage}')(x, train)
      if stage < len(counts):
        features = int(x.shape[-1] * self.compression)
        if not features:
          raise errors.InputError(
            f'config.model.compression={self.compression} leaves none of the {x.shape[-1]} channels after '
            f'stage{stage}; it must be at least 1/{x.shape[-1]} there'
          )
        x = blocks.DenseTransition(self.parts, features, name=f'transition{stage}')(x, train)
    return blocks.Head(self.parts, self.num_classes, activate=True, name='head')(x, train)


def layers_per_stage(stem: str, bottleneck: bool, layers: int) -> tuple[int, ...]:
  """Returns the number of dense layers in each stage.

  Args:
    stem: 'cifar' or 'imagenet'.
    bottleneck: whether a dense layer has two convolutions.
    layers: the depth of the network.

  Raises:
    errors.InputError: the depth is invalid; the message names the nearest valid one.
  """
  if stem == 'cifar':
    what = f'densenet {"with" if bottleneck else "without"} bottlenecks'
    return (plain.blocks_per_stage(what, layers, 6 if bottleneck else 3, (4,)),) * 3
  return plain.known_stages('an ImageNet densenet', layers, IMAGENET)
