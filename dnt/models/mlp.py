"""Multilayer perceptrons of any depth and width, for experiments on gradients and signals."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax

from dnt import errors
from dnt.models import blocks
from dnt.models import stage as stage_lib

BLOCKS = ('plain', 'residual', 'highway')


class Resolved(NamedTuple):
  """The options of an `Mlp` that may be left open, with the values that the network uses."""

  gate_bias: float | None


class Mlp(nn.Module):
  """Dense layers on the flattened image: a stem, `depth` - 2 equal blocks and a head.

  Attributes:
    num_classes: number of classes.
    parts: layer constructors, see `parts.Parts`.
    depth: number of dense layers, including the head; 1 is a linear classifier.
    width: number of units in each hidden layer.
    block: type of the layers between stem and head: plain, residual (x + H(x)) or highway (Srivastava et al. 2015).
    gate_bias: for highway: initial bias of the gates; None: -2.
    scan: see `stage.Stage`.
    remat: see `stage.Stage`.

  Raises:
    errors.InputError: the block is unknown, or `gate_bias` is set for a block without gates.
  """

  num_classes: int
  parts: blocks.Parts
  depth: int = 4
  width: int = 128
  block: str = 'plain'
  gate_bias: float | None = None
  scan: bool = False
  remat: bool = False

  def __post_init__(self):
    if self.block not in BLOCKS:
      raise errors.unknown('block of mlp', self.block, BLOCKS)
    if self.block != 'highway' and self.gate_bias is not None:
      raise errors.InputError(f"config.model.gate_bias needs block='highway'; block={self.block!r} has no gates")
    super().__post_init__()

  @nn.nowrap
  def resolved(self) -> Resolved:
    """Returns the option that may be left open, as the network uses it; the field keeps what is open for `clone`."""
    return Resolved(-2.0 if self.block == 'highway' and self.gate_bias is None else self.gate_bias)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = x.reshape(x.shape[0], -1).astype(self.parts.dtype)
    if self.depth > 1:
      x = blocks.DenseUnit(self.parts, self.width, name='stem')(x, train)
    if self.depth > 2:
      unit = functools.partial(blocks.DenseUnit, self.parts, self.width, self.block, self.resolved().gate_bias)
      x = stage_lib.Stage(unit, unit, self.depth - 2, scan=self.scan, remat=self.remat, name='stage1')(x, train)
    return blocks.Head(self.parts, self.num_classes, name='head')(x, train)
