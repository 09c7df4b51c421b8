"""Reads a split of the data that a run was trained with, and predicts its images."""

import contextlib
import logging
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from dnt import buckets, checkpoints, errors, files
from dnt import config as schema
from dnt.data import class_order, examples, pipeline, sources
from dnt.data import splits as splits_lib
from dnt.data.sources import folder, image_files
from dnt.inference import network as network_lib
from dnt.inference import predictions
from dnt.parallel import mesh as mesh_lib
from dnt.training import datasets, evaluate

_log = logging.getLogger(__name__)


def load_split(network: network_lib.Network, split: str) -> examples.Examples:
  """Loads a split of a run's training data set.

  Args:
    network: the network of a run.
    split: name of the split, with slices as in `config.data.train_split`.

  Raises:
    errors.InputError: the data is missing or has no such split, or its image shape or class names no longer match the
      network.
  """
  data, available = network.config.data, _splits_of(network)
  if (name := splits_lib.parse(split).name) not in available:  # before `read` says what a training can do about it
    raise errors.unknown(f'split of {data.source}', name, available)
  source = sources.read(available, data, split)
  source = class_order.align(source, network.class_names if network.named else (), f'the run in {network.origin}')
  shape = pipeline.image_shape(data, source)
  if shape != network.image_shape or source.num_classes != len(network.class_names):
    raise errors.InputError(
      f'{data.source} is now another data set than {network.origin} was trained on: its images are '
      f'{"x".join(map(str, shape))} of {source.num_classes} classes, not {"x".join(map(str, network.image_shape))} '
      f'of {len(network.class_names)}'
    )
  return source


def _splits_of(network: network_lib.Network) -> examples.Splits:
  """Returns the splits of a run's data, with the `val` that it drew."""
  data, meta = network.config.data, checkpoints.read_meta(buckets.local(network.origin).expanduser())
  available, _ = datasets.divide(network.config, sources.find(data, data.seed), meta)
  return available


def paths_of(source: examples.Examples) -> tuple[str, ...] | None:
  """Returns the file of each image of a split, fit to be shown; None if its images are not in files of their own."""
  return tuple(map(files.readable, source.store.paths)) if isinstance(source.store, folder.Files) else None


def say_trained_on(network: network_lib.Network, paths: Sequence[str]) -> None:
  """Logs a line if images are among those that a run was trained on; only the files of its data folder are compared."""
  data = network.config.data
  where = data.source.partition(':')[2] or data.dir
  if network.step is None or not where:
    return
  base = pathlib.Path(where.removesuffix('/*')).expanduser().resolve()
  if not any(pathlib.Path(path).is_relative_to(base) for path in image_files.real_folders(paths).values()):
    return
  with contextlib.suppress(errors.InputError):  # what has changed since is not compared
    available, trained = _splits_of(network), splits_lib.parse(data.train_split)
    store = sources.locate(available, data, data.train_split).store
    if isinstance(store, folder.Files) and (seen := image_files.count_shared(paths, store.paths)):
      apart = [name for name in available if not splits_lib.parse(name).overlaps(trained)]
      apart = [f'--split={name}' for name in apart if _is_labelled(available, name)]
      hint = f'; {" or ".join(apart)} predicts those of a split alone' if apart else ''
      _log.info(
        f'{seen:,} of these {len(paths):,} images are among those that the run was trained on, and say little about '
        f'new ones{hint}'
      )


def _is_labelled(available: examples.Splits, name: str) -> bool:
  with contextlib.suppress(errors.InputError):  # it has no class folders
    return available[name]().labels is not None
  return False


class Ranked(NamedTuple):
  """The predictions for the images of a split, the largest loss first; of equals the first in the split.

  Attributes:
    places: int [N], the images by their index in the split; those without finite logits are not among them.
    labels: int32 [N].
    losses: float32 [N], the cross-entropy of each image, whose mean is the loss of an evaluation.
    indexes: class indexes, int32 [N, k], the most likely first.
    probabilities: float32 [N, k].
    lost: int [M], the images without finite logits.
  """

  places: np.ndarray
  labels: np.ndarray
  losses: np.ndarray
  indexes: np.ndarray
  probabilities: np.ndarray
  lost: np.ndarray


def predict_split(
  network: network_lib.Network, mesh: Mesh, source: examples.Examples, batch_size: int, top: int
) -> Ranked:
  """Predicts the images of a split as an evaluation reads them, and ranks them by their loss.

  Args:
    network: from `network.load`, on the mesh.
    mesh: mesh whose devices share each batch.
    source: the split, from `load_split`.
    batch_size: a multiple of the number of devices.
    top: number of classes for each image; the function uses at most as many as the network has.

  Raises:
    errors.InputError: an image cannot be read, as in an evaluation.
  """
  config = schema.copy_unlocked(network.config)
  config.eval.batch_size = min(batch_size, mesh_lib.divisible(len(source), mesh))
  count = min(top, len(network.class_names))

  def step(variables, batch):
    logits, indexes, probabilities = predictions.most_likely(network, variables, batch['image'], count)
    found = {
      'labels': batch['label'],
      'losses': optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).astype(jnp.float32),
      'indexes': indexes,
      'probabilities': probabilities.astype(jnp.float32),
    }
    return {}, found

  loader = pipeline.make_eval_loader(config, source, mesh)
  with contextlib.closing(evaluate.Pass(step, loader, mesh, f'predicted {source.split}')) as whole:
    _, rows = whole(network.variables)
  rows = {name: each[: len(source)] for name, each in rows.items()}  # padding rows come last
  good = np.all(np.isfinite(rows['probabilities']), axis=-1)
  order = np.argsort(-rows['losses'], kind='stable')
  order = order[good[order]]
  return Ranked(places=order, lost=np.flatnonzero(~good), **{name: each[order] for name, each in rows.items()})
