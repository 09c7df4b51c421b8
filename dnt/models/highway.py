"""Convolutional highway networks (Srivastava et al. 2015) in the layout of the CIFAR plain networks."""

import functools

import flax.linen as nn
import jax

from dnt.models import blocks, plain
from dnt.models import stage as stage_lib


class Highway(nn.Module):
  """A 3x3 stem, three stages of 2n highway layers at 1, 2 and 4 times the width, and a head.

  A highway layer keeps its shape, so the first layer of the second and third stage is an ordinary strided convolution.
  The depth counts a layer's transform and gate convolutions as one.

  Attributes:
    num_classes: number of classes.
    parts: layer constructors, see `parts.Parts`.
    depth: number of layers, 6n + 2.
    width: number of channels in the first stage.
    gate_bias: initial bias of the gates; a negative bias makes a deep network pass its input through at first.
    scan: see `stage.Stage`.
    remat: see `stage.Stage`.

  Raises:
    errors.InputError: the depth has another form.
  """

  num_classes: int
  parts: blocks.Parts
  depth: int = 32
  width: int = 16
  gate_bias: float = -2.0
  scan: bool = False
  remat: bool = False
  head_pools = True  # the head reads only the mean of its input over all positions

  def __post_init__(self):
    plain.blocks_per_stage('highway', self.depth, 6)
    super().__post_init__()

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    count = 2 * plain.blocks_per_stage('highway', self.depth, 6)
    block = functools.partial(blocks.Highway, self.parts, self.gate_bias)
    x = blocks.Stem(self.parts, self.width, name='stem')(x, train)
    for stage in range(3):
      first = block if stage == 0 else functools.partial(blocks.Transition, self.parts, self.width * 2**stage, 2)
      x = stage_lib.Stage(first, block, count, scan=self.scan, remat=self.remat, name=f'stage{stage + 1}')(x, train)
    return blocks.Head(self.parts, self.num_classes, name='head')(x, train)
