"""Defines a sequence of equal blocks as one part of a network, unrolled or scanned."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from dnt import errors, trees
from dnt.models import layouts

CAPTURES, GRADIENTS = 'telemetry', 'gradient_captures'  # see `captures`
# Collections that blocks may read and write inside a scanned stage; code that sows into another one must add it here.
COLLECTIONS = ('params', 'batch_stats', 'intermediates', 'perturbations', CAPTURES, GRADIENTS)
RNGS = ('stochastic_depth', 'dropout')  # those from which a network may draw, in training only


class Stage(nn.Module):
  """A sequence of blocks, unrolled or scanned, with stochastic depth.

  The stage calls each block as `block(x, train, keep)`. `keep` is float32 [B]: 1 / (1 - rate) if the example keeps
  this block's residual branch and 0 if it drops it (Huang et al. 2016, but per example, and scaled in training instead
  of in evaluation). It is None in evaluation or without stochastic depth.

  Initialization always uses the unrolled layout (`models.init` stacks the parameters afterwards), so that both
  layouts start with equal values.

  Attributes:
    first: `first(name=...)` makes the first block, which may change the shape.
    rest: `rest(name=...)` makes every other block; if `scan` is set, the block must keep shape and dtype.
    count: number of blocks.
    drop_rates: probability of dropping each block; empty turns stochastic depth off.
    scan: whether to run all blocks but the first as one scanned block; dropout inside then draws other masks.
    remat: whether to recompute the inside of each block in the backward pass.

  Raises:
    errors.InputError: the stage is scanned and its parameters are in the unrolled layout.
  """

  first: Callable[..., nn.Module]
  rest: Callable[..., nn.Module]
  count: int
  drop_rates: tuple[float, ...] = ()
  scan: bool = False
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    keep = self._keep(x.shape[0]) if train and self.drop_rates else None
    scanned = self.scan and self.count > 1 and not self.is_initializing()
    second, rest = (self.has_variable('params', name) for name in (layouts.block_name(2), trees.SCANNED))
    if scanned and second and not rest:
      raise errors.InputError(
        f'the parameters of the scanned {self.name} are in the unrolled layout, in which model.init draws them; '
        'dnt.models.init(dnt.models.depth.trace(model, image_shape), seed) gives those that the model applies'
      )

    def run(block, x, keep):
      return block(x, train, keep)

    def row(index):
      return None if keep is None else keep[index]

    outside = nn.remat(run) if self.remat else run
    x = outside(self.first(name=layouts.block_name(1)), x, row(0))
    if not scanned:
      for index in range(1, self.count):
        x = outside(self.rest(name=layouts.block_name(index + 1)), x, row(index))
      return x

    # Inside a scan, XLA cannot merge the recomputation with the forward pass, so remat needs no barriers.
    inside = nn.remat(run, prevent_cse=False) if self.remat else run

    def body(block, x, keep):
      return inside(block, x, keep), None

    rows = self.count - 1
    scan = nn.scan(body, variable_axes=dict.fromkeys(COLLECTIONS, 0), split_rngs=dict.fromkeys(RNGS, True), length=rows)
    x, _ = scan(self.rest(name=trees.SCANNED), x, row(slice(1, None)))
    return x

  def _keep(self, batch: int) -> jax.Array:
    """Draws float32 [count, batch] for all blocks at once, so that both layouts drop the same blocks."""
    key = self.make_rng('stochastic_depth')
    uniform = jax.vmap(lambda index: jax.random.uniform(jax.random.fold_in(key, index), (batch,), jnp.float32))
    survival = 1 - jnp.array(self.drop_rates, jnp.float32).reshape(-1, 1)
    return jnp.where(uniform(jnp.arange(self.count)) < survival, 1 / survival, 0.0)
