"""Computes the keys of the feature cache: digests of everything that features depend on.

That is the prefix, its weights, the code of a user's own network, the precision, the images and their preprocessing.
What an older version did not know is left out where it has the usual value, so that older features are found (those of
accelerators are not, whose precision it did not know).
"""

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dnt import trees
from dnt.config import implied, typed
from dnt.data import examples
from dnt.data.transforms import images
from dnt.finetune import frozen_prefix
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
  # Neither changes the features, and another identity would leave those of earlier runs unused.
  options = {key: value for key, value in model.to_dict().items() if key not in ('folder', 'norm_sync')}
  identity = [options, prefix.names, prefix.pooled, trees.sha256(weights)]
  if code := agreement.own_code(model.name, model.folder):
    identity.append(code)
  precision = jax.config.jax_default_matmul_precision  # ty: ignore[missing-attribute]  # jax adds its options later
  if (computed := [jax.default_backend(), precision]) != ['cpu', None]:
    identity.append(computed)  # accelerators round products of float32 by default
  return identity


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


def key(version: int, identity: Sequence[Any]) -> str:
  """Returns the key of features that are kept in files of a version."""
  return hashlib.sha256(json.dumps([version, *identity], default=str).encode()).hexdigest()[:32]


def _seen(data: typed.Data) -> dict[str, Any]:
  """Returns the options of `config.data` that features depend on.

  It leaves out `eval_resize` if it has the value that `augment` implies, what decides only which images a split has
  (`hold_out`, `images_per_class`), and the usual decoding, so that older features, without these keys, match.
  """
  left_out = ('workers', 'placement', 'eval_resize', 'hold_out', 'images_per_class', 'image_bits', 'exif_rotation')
  seen = {key: data[key] for key in data if key not in left_out}
  if (how := images.decoding(data)) != images.USUAL:
    seen['decoding'] = how
  if data.crop_to_box and data.exif_rotation:  # older versions turned the image first
    seen['cropped'] = 'before it is turned'
  resize = implied.eval_resize(data)
  return seen if resize == implied.eval_resize(seen) else {**seen, 'eval_resize': resize}


def _fingerprint(source: examples.Examples) -> Any:
  """Returns an identity of the images: a hash of their bytes in memory, or their files' names, sizes and times."""
  if source.images is not None:
    return hashlib.sha256(np.ascontiguousarray(source.images).data).hexdigest()
  paths = getattr(source.store, 'paths', None)
  drawn = np.asarray(getattr(source.store, 'indices', ()))  # of files that hold more images than these
  if source.labels is not None:
    labels = hashlib.sha256(source.labels.tobytes() + drawn.tobytes()).hexdigest()
  else:  # they are stored with the images, and only these change them
    places = getattr(source.store, 'places', None)
    labels = None if places is None else places.tolist()
    if not np.array_equal(drawn, np.arange(len(source.store.source))):  # that of a whole split is without them
      labels = [labels, hashlib.sha256(drawn.astype(np.int64).tobytes()).hexdigest()]
  if paths is None:
    return [len(source), labels]
  stats = [os.stat(path) for path in paths]
  files = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in zip(paths, stats, strict=True)]
  # Older versions read gray ones of 16 bits in which 0 is white as negatives.
  tiff = any(path.lower().endswith(('.tif', '.tiff')) for path in paths)
  return [labels, files, 'no negatives'] if tiff else [labels, files]
