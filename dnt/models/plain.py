"""The plain networks of He et al. 2015, section 4.2: CIFAR ResNets without shortcuts."""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax

from dnt import errors
from dnt.models import blocks
from dnt.models import depth as depth_lib
from dnt.models import stage as stage_lib


def blocks_per_stage(what: str, layers: int, each: int, extra: tuple[int, ...] = (2,)) -> int:
  """Returns the number n of blocks per stage, from layers = `each` * n + `extra`.

  Args:
    what: the network, for the message.
    layers: the depth of the network.
    each: number of layers that one more block in every stage adds.
    extra: number of layers outside the blocks; several values if papers count differently.

  Raises:
    errors.InputError: the depth is invalid; the message names the nearest valid one.
  """
  for rest in extra:
    if layers > rest and (layers - rest) % each == 0:
      return (layers - rest) // each
  built = min(layers, depth_lib.LAYERS)
  nearest_counts = ((rest, max(1, (built - rest) // each)) for rest in extra)
  valid = (each * n + rest for rest, below in nearest_counts for n in (below, below + 1))
  nearest = min(
    (candidate for candidate in valid if candidate <= depth_lib.LAYERS), key=lambda candidate: abs(candidate - layers)
  )
  rules = ' or '.join(f'{each}n + {rest}' for rest in extra)
  raise errors.InputError(
    f'config.model.depth={layers} does not fit {what}, which has {rules} layers; the nearest valid depth is {nearest}'
  )


def known_stages(what: str, layers: int, known: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
  """Returns the number of blocks in each stage of a network with a fixed list of depths.

  Args:
    what: the network, for the message.
    layers: the depth of the network.
    known: number of blocks in each stage by depth.

  Raises:
    errors.InputError: the depth is invalid; the message names the nearest valid one.
  """
  if layers not in known:
    nearest = min(known, key=lambda candidate: abs(candidate - layers))
    raise errors.InputError(
      f'config.model.depth={layers} does not fit {what}, which has {", ".join(map(str, known))} layers; '
      f'the nearest valid depth is {nearest}'
    )
  return known[layers]


class Plain(nn.Module):
  """A 3x3 stem, three stages of n blocks of two 3x3 convolutions at 1, 2 and 4 times the width, and a head.

  Attributes:
    num_classes: number of classes.
    parts: layer constructors, see `parts.Parts`.
    depth: number of layers, 6n + 2.
    width: number of channels in the first stage.
    scan: see `stage.Stage`.
    remat: see `stage.Stage`.

  Raises:
    errors.InputError: the depth has another form.
  """

  num_classes: int
  parts: blocks.Parts
  depth: int = 20
  width: int = 16
  scan: bool = False
  remat: bool = False
  head_pools = True  # the head reads only the mean of its input over all positions

  def __post_init__(self):
    blocks_per_stage('plain', self.depth, 6)
    super().__post_init__()

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    count = blocks_per_stage('plain', self.depth, 6)
    x = blocks.Stem(self.parts, self.width, name='stem')(x, train)
    for stage in range(3):
      block = functools.partial(blocks.Plain, self.parts, self.width * 2**stage)
      first = functools.partial(block, stride=1 if stage == 0 else 2)
      x = stage_lib.Stage(first, block, count, scan=self.scan, remat=self.remat, name=f'stage{stage + 1}')(x, train)
    return blocks.Head(self.parts, self.num_classes, name='head')(x, train)
