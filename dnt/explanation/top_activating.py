"""Finds the images of a split that activate each channel of an entry, and each class, most: exactly, in one pass.

A channel's score for an image is its largest activation at any position. A class's score is the log odds of its
probability, which give the same order but do not round to one value for many images.
Images with equal scores keep their order in the split, for any batch size.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from scipy import special

from dnt import config as schema
from dnt import inference
from dnt.data import examples, pipeline
from dnt.data.transforms import images
from dnt.explanation import cam, maps, sheet
from dnt.models import depth
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.reporting import progress
from dnt.training import scores as scores_lib

DRAWN = 10  # number of channels, and of classes, in the plots


class Top(NamedTuple):
  """The images with the largest scores for n channels or classes.

  Attributes:
    scores: float32 [n, count], in decreasing order.
    indices: int32 [n, count], indices of the images in the split.
  """

  scores: Any
  indices: Any


def score_images(
  model: Any, entry: depth.Entry, variables: Mapping[str, Any], images: jax.Array
) -> dict[str, jax.Array]:
  """Returns each image's scores for channels and classes: float32 `channels` [B, K] and `classes` [B, classes].

  Args:
    model: a module with the call `model(x, train)`.
    entry: an entry of its depth list, from `cam.choose`.
    variables: `params` and `batch_stats`, in the model's layout.
    images: [B, H, W, C], preprocessed.
  """
  logits, activations = cam.outputs(model, entry, variables, images)
  return {
    'channels': jnp.max(activations.astype(jnp.float32), (1, 2)),
    'classes': scores_lib.log_odds(logits),
  }


def find(
  step: Callable[[Any, pipeline.Batch], Mapping[str, jax.Array]],
  loader: Any,
  mesh: Mesh,
  variables: Any,
  examples: int,
  count: int,
  seen: Callable[[int], None],
) -> dict[str, Top]:
  """Finds the images with the largest scores over one pass of a loader.

  Args:
    step: `(variables, batch) -> {name: float32 [B, n]}`, pure; computes the scores of each image.
    loader: from `pipeline.make_eval_loader`; the caller closes it.
    mesh: mesh of the loader.
    variables: first argument of `step`, on the mesh.
    examples: number of examples in the split.
    count: number of images to find; a smaller split yields all its images.
    seen: called after each batch with the number of images so far.
  """
  count = min(count, examples)

  def update(variables, arrays, step_index, best):
    batch = loader.batch_at(arrays, step_index)
    size = batch['mask'].shape[0]
    places = step_index * size + jnp.arange(size, dtype=jnp.int32)
    scores = step(variables, batch)
    return {name: _merge(top, scores[name], places, batch['mask']) for name, top in best.items()}

  def shapes(variables, arrays):
    return step(variables, loader.batch_at(arrays, np.int32(0)))

  replicated = mesh_lib.replicated(mesh)
  best = {
    name: Top(np.full((leaf.shape[1], count), -np.inf, np.float32), np.full((leaf.shape[1], count), -1, np.int32))
    for name, leaf in jax.eval_shape(shapes, variables, loader.shapes()).items()
  }
  best = mesh_lib.place(best, replicated)
  program = compile_lib.jit(update, mesh, out_shardings=replicated)
  for index in range(loader.steps):
    best = program(variables, loader.arrays(index, 1), np.int32(index), best)
    seen(examples * (index + 1) // loader.steps)
  return jax.device_get(best)


def _merge(best: Top, scores: jax.Array, places: jax.Array, mask: jax.Array) -> Top:
  """Merges the best images so far with a batch; `top_k` prefers the first of equal scores, so earlier images win.

  A score that is not a number comes after the others; to `top_k` it would be the largest.
  """
  scores = scores.astype(jnp.float32).T
  everything = jnp.concatenate([best.scores, scores], 1)
  new = jnp.broadcast_to(jnp.where(mask, places, -1), scores.shape)
  indices = jnp.concatenate([best.indices, new], 1)
  # Only what is no image comes last, also after an image with a score of -inf.
  lowest = jnp.finfo(jnp.float32).min
  ranked = jnp.where(indices < 0, -jnp.inf, jnp.nan_to_num(everything, nan=lowest))
  _, at = jax.lax.top_k(ranked, best.scores.shape[1])
  return Top(jnp.take_along_axis(everything, at, 1), jnp.take_along_axis(indices, at, 1))


def search(
  network: inference.Network, mesh: Mesh, entry: depth.Entry, source: examples.Examples, count: int
) -> dict[str, Top]:
  """Finds the images of a split that activate each channel of an entry and each class of a network most.

  Args:
    network: the network, with variables on the mesh.
    mesh: mesh whose devices share each batch.
    entry: an entry of the depth list, from `cam.choose`.
    source: the split, from `inference.load_split`.
    count: number of images to find for each channel and class.

  Returns:
    `channels` and `classes`, see `score_images`.
  """
  config = schema.copy_unlocked(network.config)
  # The run may have used another number of devices.
  config.eval.batch_size = mesh_lib.divisible(config.eval.batch_size, mesh)

  def step(variables, batch):
    return score_images(network.model, entry, variables, network.preprocess(batch['image']))

  line = progress.Count('searched', len(source))
  with contextlib.closing(line), contextlib.closing(pipeline.make_eval_loader(config, source, mesh)) as loader:
    return find(step, loader, mesh, network.variables, len(source), count, line.update)


def to_json(network: inference.Network, source: examples.Examples, best: Mapping[str, Top]) -> dict[str, Any]:
  """Returns the results for all channels and classes as JSON; their images are places in the split, described once."""
  places = sorted({int(place) for top in best.values() for place in top.indices.flat})
  paths = inference.paths_of(source)
  named = {}
  for place in places:
    named[place] = {} if paths is None else {'path': paths[place]}
    if source.labels is not None:
      named[place]['class'] = network.class_names[source.labels[place]]
  channels, classes = best['channels'], best['classes']
  return {
    'split': source.split,
    'examples': len(source),
    'channels': [
      {'channel': index, 'images': indices.tolist(), 'activations': scores.tolist()}
      for index, (indices, scores) in enumerate(zip(channels.indices, channels.scores, strict=True))
    ],
    'classes': [
      {'class': name, 'images': indices.tolist(), 'probabilities': special.expit(scores).tolist()}
      for name, indices, scores in zip(network.class_names, classes.indices, classes.scores, strict=True)
    ],
    'images': named,
  }


def make_tiles(
  network: inference.Network,
  mesh: Mesh,
  entry: depth.Entry,
  explainer: maps.Explainer,
  source: examples.Examples,
  best: Mapping[str, Top],
) -> dict[str, list[list[sheet.Tile]]]:
  """Builds one row of image tiles for each of the `DRAWN` channels, and classes, with the highest peak.

  The map over a channel's images is its positive activation; the map over a class's images is the class's map.

  Args:
    network: the network, with variables on the mesh.
    mesh: mesh whose devices share each batch.
    entry: the searched entry.
    explainer: explainer of the same network, for the maps of classes.
    source: the searched split.
    best: from `search`.
  """
  size = network.image_shape[:2]
  transform = pipeline.eval_transform(network.config.data, size)

  def activation(variables, batch, channels):
    _, output = cam.outputs(network.model, entry, variables, network.preprocess(batch))
    chosen = jnp.take_along_axis(output.astype(jnp.float32), channels[:, None, None, None], 3)[..., 0]
    return cam.upsample(jax.nn.relu(chosen), size)

  program = functools.partial(compile_lib.jit(activation, mesh), network.variables)
  together = mesh_lib.divisible(maps.BATCH, mesh)
  maps_of = {
    'channels': lambda shown, channels: maps.in_batches(program, mesh, together, shown, channels),
    'classes': lambda shown, classes: explainer.maps(shown, classes).values,
  }

  def title(name, index, score, label):
    title = f'channel {index}: {score:.3g}'
    if name == 'classes':
      title = f'{sheet.short(network.class_names[index])}: {progress.format_value("accuracy", special.expit(score))}'
    return f'{title}\ntrue: {sheet.short(network.class_names[label])}'

  rows = {}
  for name, top in best.items():
    chosen = np.argsort(-top.scores[:, 0], kind='stable')[:DRAWN].astype(np.int32)
    places, scores = top.indices[chosen], top.scores[chosen]
    read = [source[int(place)] for place in places.flat]
    shown = np.stack([images.to_array(transform(image, None)) for image, _ in read])
    wanted = np.repeat(chosen, places.shape[1])
    titles = [title(name, *each) for each in zip(wanted, scores.flat, (label for _, label in read), strict=True)]
    row = list(map(sheet.Tile, titles, shown, maps_of[name](shown, wanted)))
    rows[name] = [row[start : start + places.shape[1]] for start in range(0, len(row), places.shape[1])]
  return rows
