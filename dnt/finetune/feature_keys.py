"""Computes the keys of the feature cache: digests of everything that features depend on.

That is the prefix, its weights, the code and the program of a user's own network, the precision, the images and their
preprocessing.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dnt import trees
from dnt.config import schema, typed
from dnt.data import examples
from dnt.finetune import feature_files, frozen_prefix
from dnt.models import freeze
from dnt.parallel import agreement
from dnt.training import experiment


def network(prefix: frozen_prefix.Prefix, variables: Any) -> list[Any]:
  """Returns what identifies the network up to the end of its prefix, as JSON values.

  Args:
    prefix: the prefix.
    variables: variables of the whole network.
  """
  model, below = prefix.run.config.model, frozenset(prefix.names)
  weights = {name: trees.split(tree, lambda path: freeze.is_below(path, below))[0] for name, tree in variables.items()}
  # Neither changes the features.
  options = {key: value for key, value in model.to_dict().items() if key not in ('folder', 'norm_sync')}
  code = agreement.own_code(model.name, model.folder)
  if ':' in model.name:  # Python may have imported it before it changed, or from no file
    code['program'] = _program(prefix, variables)
  precision = jax.config.jax_default_matmul_precision  # ty: ignore[missing-attribute]  # jax adds its options later
  # Accelerators round products of float32 by default.
  return [options, prefix.names, prefix.pooled, trees.sha256(weights), code, jax.default_backend(), precision]


def _program(prefix: frozen_prefix.Prefix, variables: Any) -> str:
  """Returns a digest of the program that computes the features of an image."""
  run = prefix.run
  image = jax.ShapeDtypeStruct((1, *run.spec.image_shape), jnp.dtype(run.config.model.dtype))
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
  program = jax.jit(lambda variables, image: frozen_prefix.features(prefix, variables, image))
  return hashlib.sha256(program.lower(shapes, image).as_text().encode()).hexdigest()


def split(about: Sequence[Any], run: experiment.Experiment, source: examples.Examples, views: int) -> list[Any]:
  """Returns what identifies the features of a split, as JSON values.

  Args:
    about: what identifies the network, from `network`.
    run: the experiment.
    source: the images.
    views: number of training views; 0 for one evaluation view.
  """
  drawn = [views, run.config.seed] if views and frozen_prefix.is_augmented(run) else [views]
  return [*about, drawn, _seen(run.config.data), source.name, source.split, _fingerprint(source)]


def key(identity: Sequence[Any]) -> str:
  """Returns the key of features that are kept in files of today's format."""
  return hashlib.sha256(json.dumps([feature_files.FORMAT, *identity], default=str).encode()).hexdigest()[:32]


def _seen(data: typed.Data) -> dict[str, Any]:
  """Returns the options of `config.data` that features depend on.

  It leaves out what decides only how images are loaded, or which of them a split has, which `_fingerprint` says.
  """
  options = schema.SCHEMA['data']
  return {
    key: data[key] for key in data if options[key].role != 'loading' and key not in ('hold_out', 'images_per_class')
  }


def _fingerprint(source: examples.Examples) -> Any:
  """Returns an identity of the images: a hash of their bytes in memory, or their files' names, sizes and times."""
  if source.images is not None:
    return hashlib.sha256(np.ascontiguousarray(source.images).data).hexdigest()
  # Labels that are not known are stored with the images, and only `places` change them. Files may hold more images than
  # those at `indices`.
  places, indices, paths = (getattr(source.store, name, None) for name in ('places', 'indices', 'paths'))
  boxes = getattr(source.store, 'boxes', None)
  cropped = () if boxes is None else (boxes,)  # what has no boxes keeps its key
  digests = [
    None if numbers is None else hashlib.sha256(np.asarray(numbers, np.int64).tobytes()).hexdigest()
    for numbers in (source.labels, places, indices, *cropped)
  ]
  stats = [(path, os.stat(path)) for path in paths or ()]
  return [len(source), *digests, [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]]
