"""The pictures of a split that excite each channel of an entry, and each class, most: exact, in one pass.

How much a picture excites a channel is the largest activation of that channel at any place. For a class it is the
logarithm of its probability, which orders pictures as the probability does and does not round to one for many of them.
Of pictures that excite it equally the earlier one in the split comes first, whatever the size of a batch.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dnt.data import pipeline
from dnt.explanation import cam
from dnt.models import depth
from dnt.parallel import compile as compile_lib


class Top(NamedTuple):
  """The pictures with the largest scores, of n channels or classes.

  Attributes:
    scores: float32 [n, count], falling.
    pictures: int32 [n, count], places in the split.
  """

  scores: Any
  pictures: Any


def excitement(model: Any, entry: depth.Entry, variables: Mapping[str, Any], images: jax.Array) -> dict[str, jax.Array]:
  """How much each picture excites each channel and class: float32 `channels` [B, K] and `classes` [B, classes].

  Args:
    model: called as `model(x, train)`.
    entry: of its depth list, with an output [h, w, K].
    variables: `params` and `batch_stats`, in the model's layout.
    images: [B, H, W, C], preprocessed.
  """
  logits, activations = cam.outputs(model, entry, variables, images)
  return {
    'channels': jnp.max(activations.astype(jnp.float32), (1, 2)),
    'classes': jax.nn.log_softmax(logits.astype(jnp.float32)),
  }


def find(
  step: Callable[[Any, pipeline.Batch], Mapping[str, jax.Array]], feed: Any, variables: Any, examples: int, count: int
) -> dict[str, Top]:
  """The pictures with the largest scores over one pass of a feed.

  Args:
    step: `(variables, batch) -> {name: float32 [B, n]}`, pure: the scores of each picture.
    feed: of `pipeline.make_eval_feed`; the caller closes it.
    variables: that `step` takes.
    examples: of the split.
    count: pictures to find; of a smaller split, all.
  """
  count = min(count, examples)

  def update(variables, arrays, step_index, found):
    batch = feed.batch_at(arrays, step_index)
    size = batch['mask'].shape[0]
    places = step_index * size + jnp.arange(size, dtype=jnp.int32)
    scores = step(variables, batch)
    return {name: _merge(top, scores[name], places, batch['mask']) for name, top in found.items()}

  shapes = jax.eval_shape(lambda: step(variables, feed.batch_at(feed.arrays(0, 1), np.int32(0))))
  found = {
    name: Top(np.full((leaf.shape[1], count), -np.inf, np.float32), np.full((leaf.shape[1], count), -1, np.int32))
    for name, leaf in shapes.items()
  }
  program = compile_lib.jit(update)
  for index in range(feed.steps):
    found = program(variables, feed.arrays(index, 1), np.int32(index), found)
  return jax.device_get(found)


def _merge(found: Top, scores: jax.Array, places: jax.Array, mask: jax.Array) -> Top:
  """The best of those found and a batch; `top_k` takes the first of equals, and those found were earlier."""
  new = jnp.where(mask[:, None], scores.astype(jnp.float32), -jnp.inf).T
  everything = jnp.concatenate([found.scores, new], 1)
  pictures = jnp.concatenate([found.pictures, jnp.broadcast_to(places[None], new.shape)], 1)
  values, at = jax.lax.top_k(everything, found.scores.shape[1])
  return Top(values, jnp.take_along_axis(pictures, at, 1))
