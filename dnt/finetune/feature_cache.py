"""Computes the features of each image, the output of the frozen prefix, once, and caches them on disk."""

import contextlib
import logging
import os
import pathlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dnt import files
from dnt.config import implied
from dnt.data import examples, pipeline
from dnt.finetune import feature_files, feature_keys, frozen_prefix
from dnt.models import initializers
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import multihost
from dnt.reporting import progress
from dnt.training import datasets, experiment, initialize

_log = logging.getLogger(__name__)
FOLDER = 'features'  # of the cache folder
LARGEST = 2**33  # largest size in bytes of a split's features, which are held on the device


class _Cache(NamedTuple):
  """Computes and keeps the features of a run.

  Attributes:
    prefix: the frozen prefix.
    variables: variables of the whole network, on the mesh.
    mesh: the device mesh.
    about: what identifies the network, from `feature_keys.network`.
    folder: of the files; None if they are not kept.
  """

  prefix: frozen_prefix.Prefix
  variables: Any
  mesh: Mesh
  about: list[Any]
  folder: pathlib.Path | None


def use(
  run: experiment.Experiment, data: datasets.Data, mesh: Mesh, workdir: pathlib.Path
) -> tuple[experiment.Experiment, datasets.Data]:
  """Returns the run on cached features, which are computed if missing, or unchanged if it has no prefix to cache.

  Args:
    run: the experiment.
    data: its images and pretrained weights.
    mesh: the device mesh.
    workdir: workdir of the run, which may hold a checkpoint.

  Raises:
    errors.InputError: this run cannot satisfy `config.finetune.cached_views`, or `cache_dir` is an address.
  """
  views = frozen_prefix.views(run)
  if not views:
    return run, data
  files.check_path(run.config.finetune.cache_dir, 'config.finetune.cache_dir')
  prefix = frozen_prefix.find(run)
  if problem := _excess(prefix, data, views):
    frozen_prefix.decline(prefix, problem)
    return run, data
  variables = mesh_lib.place(initialize.load_start(run, workdir, data.weights), mesh_lib.replicated(mesh))
  if not (frozen_prefix.fits(prefix, variables) and frozen_prefix.suffices(prefix, variables, data, mesh)):
    frozen_prefix.decline(prefix, frozen_prefix.lack(prefix))
    return run, data
  about = feature_keys.network(prefix, variables)
  cache = _Cache(prefix, variables, mesh, about, _folder(run.config.finetune.cache_dir))
  return prefix.cached, _replace(run, data, views, lambda source, views: _load(cache, source, views))


def use_blank(run: experiment.Experiment, data: datasets.Data) -> tuple[experiment.Experiment, datasets.Data]:
  """Returns the run as `use` does, on features that are zeros of the right shape; computes nothing.

  Of what later entries read, it looks at the shapes alone.
  """
  views = frozen_prefix.views(run)
  if not views:
    return run, data
  prefix = frozen_prefix.find(run)
  problem = _excess(prefix, data, views)
  if not problem and not frozen_prefix.fits(prefix, jax.eval_shape(run.init_variables)):
    problem = frozen_prefix.lack(prefix)
  if problem:
    frozen_prefix.decline(prefix, problem)
    return run, data

  def blank(source, views):
    views = max(views, 1)
    features, labels = np.zeros((views * len(source), *prefix.shape), np.float32), np.zeros(len(source), np.int32)
    return examples.Examples(source.name, source.split, source.class_names, prefix.shape, features, labels, views)

  return prefix.cached, _replace(run, data, views, blank)


def _excess(prefix: frozen_prefix.Prefix, data: datasets.Data, views: int) -> str:
  """Says that the features of a split take more than `LARGEST`, for `frozen_prefix.decline`; '' if they do not."""
  size = feature_files.record(prefix.shape).itemsize
  counts = [(source.split, len(source)) for source in data.evaluation.values()]
  counts.append((data.train.split, max(_training_views(prefix.run, views), 1) * len(data.train)))
  split, most = max(counts, key=lambda each: each[1])
  if most * size <= LARGEST:
    return ''
  remedy = 'use fewer images or views' if views > 1 else 'use fewer images'
  return f'the features of {split} take {most * size / 1e9:.1f} GB, of at most {LARGEST / 1e9:.1f} GB: {remedy}'


def _training_views(run: experiment.Experiment, views: int) -> int:
  """Returns the number of views of the training images; 0: the one view that an evaluation sees."""
  # Without augmentation one view serves both, if evaluation resizes images as training does.
  as_evaluated = not frozen_prefix.is_augmented(run) and implied.eval_resize(run.config.data) == 'squash'
  return 0 if as_evaluated else views


def _replace(
  run: experiment.Experiment, data: datasets.Data, views: int, features: Callable[[Any, int], examples.Examples]
) -> datasets.Data:
  """Returns the data with features in place of the images."""
  evaluation = {split: features(source, 0) for split, source in data.evaluation.items()}
  training = features(data.train, _training_views(run, views))
  return data._replace(train=training, evaluation=evaluation)


def _folder(given: str | None) -> pathlib.Path | None:
  """Returns the folder for features, with room made for more; None if none can be kept."""
  folder = pathlib.Path(os.path.expanduser(given)) if given else files.cache_folder(FOLDER)
  for name in feature_files.LIMITS:
    feature_files.limit(name)  # on every process, so that all stop if it is not valid
  if folder is None:
    _log.info('features are not kept: there is no home folder; set config.finetune.cache_dir')
  elif multihost.is_lead():
    try:
      folder.mkdir(parents=True, exist_ok=True)
      feature_files.make_room(folder)
    except OSError as error:
      _log.info(f'features are not kept in {folder}: {error.strerror}')
      return None
  return folder


def _load(cache: _Cache, source: examples.Examples, views: int) -> examples.Examples:
  """Returns the features of a split; reads them from disk or computes them.

  Args:
    cache: the cache.
    source: the images.
    views: number of training views; 0 for one evaluation view.
  """
  shape, whole = cache.prefix.shape, max(views, 1) * len(source)
  # We fill the arrays in place: features take most of a run's memory, and joining parts would hold them twice.
  features, labels = np.empty((whole, *shape), np.float32), np.empty(whole, np.int32)
  place = _place(cache, cache.folder, source, views) if cache.folder else None
  held = _read(place, features, labels, source.split)
  if multihost.least(held.count) < whole:
    _grow(cache, source, views, place, features, labels)
  elif place:
    _log.info(f'features of {source.split}: found in {place.path}')
  # Every view has the same labels. Those of the source count: the features may have been kept under another order.
  labels = labels[: len(source)] if source.labels is None else source.labels
  return examples.Examples(source.name, source.split, source.class_names, shape, features, labels, max(views, 1))


class _Place(NamedTuple):
  """Where the features of a split are kept: the path of the file and the header that it must have."""

  path: pathlib.Path
  header: bytes


def _place(cache: _Cache, folder: pathlib.Path, source: examples.Examples, views: int) -> _Place:
  """Returns where the features of a split are kept."""
  key = feature_keys.key(feature_keys.split(cache.about, cache.prefix.run, source, views))
  records = max(views, 1) * len(source)
  described = {'data': source.name, 'split': source.split, 'records': records, 'shape': cache.prefix.shape}
  return _Place(feature_files.path_of(folder, key), feature_files.header(key=key, **described))


def _read(place: _Place | None, features: np.ndarray, labels: np.ndarray, split: str) -> feature_files.Found:
  """Reads what is kept of the features into the arrays."""
  nothing = feature_files.Found(0, 0, False)
  try:
    return feature_files.read(*place, features, labels) if place else nothing
  except OSError as error:
    _log.info(f'features of {split} cannot be read ({error})')
    return nothing


def _grow(
  cache: _Cache,
  source: examples.Examples,
  views: int,
  place: _Place | None,
  features: np.ndarray,
  labels: np.ndarray,
) -> None:
  """Computes the features that the file does not hold yet, fills the arrays, and appends each batch to the file."""
  split, (whole, size) = source.split, (len(labels), cache.prefix.run.config.eval.batch_size)
  with _Keeper(place, split) as keeper:
    multihost.barrier('dnt: features have one writer')  # the run before it has ended when the others read
    held = _read(place, features, labels, split)
    keeper.start(held, features.nbytes + labels.nbytes)
    known = multihost.least(held.count)
    done = known - known % len(source) % size  # the start of a batch
    if held.damaged:
      _log.info(
        f'features of {split}: the file is damaged after example {held.count} of {whole}; computed anew from there'
      )
    elif known:
      _log.info(f'features of {split}: continuing from {done} of {whole}')
    line = progress.Count(f'features of {split}', whole, done)
    for new, label in _compute(cache, source, views, done) if known < whole else ():
      keeper.write(done, new, label)
      fresh = max(known - done, 0)  # all processes read the examples before `known`
      features[done + fresh : done + len(label)], labels[done + fresh : done + len(label)] = new[fresh:], label[fresh:]
      done += len(label)
      line.update(done)
    line.close()
    keeper.hold(features)
  if keeper.path:
    _log.info(f'features of {split}: {features.nbytes / 1e6:,.0f} MB kept as {keeper.path}')


class _Keeper:
  """Keeps features on disk, on the lead process, as the only writer of their file.

  A disk that is full or cannot be written ends the keeping with a line, and not the run.
  """

  def __init__(self, place: _Place | None, split: str):
    self._place, self._split = place if multihost.is_lead() else None, split
    self._stack, self._writer = contextlib.ExitStack(), None

  def __enter__(self) -> '_Keeper':
    with self._trying():
      if self._place:
        self._stack.enter_context(feature_files.growing(self._place.path, self._wait))
    return self

  def __exit__(self, *_: object) -> None:
    with self._trying():
      if self._writer:
        self._writer.close()
    self._stack.close()

  @property
  def path(self) -> pathlib.Path | None:
    """Returns the path of the file; None if the features are not kept, or by another process."""
    return self._place and self._place.path

  def start(self, held: feature_files.Found, whole: int) -> None:
    """Prepares to append to what the file holds, until it takes `whole` bytes."""
    with self._trying():
      if self._place:
        path = self._place.path
        if problem := feature_files.make_room(path.parent, max(whole - held.size, 0), path):
          raise OSError(None, problem)
        self._writer = feature_files.Writer(*self._place, held)

  def write(self, start: int, features: np.ndarray, labels: np.ndarray) -> None:
    """Appends the features from example `start` on."""
    with self._trying():
      if self._writer:
        self._writer.write(start, features, labels)

  def hold(self, features: np.ndarray) -> None:
    """Keeps other processes from removing the file while `features` lives."""
    with self._trying():
      if self._place:
        feature_files.hold(self._place.path, features)

  def _wait(self) -> None:
    _log.info(f'features of {self._split}: another run computes them; waiting for it')

  @contextlib.contextmanager
  def _trying(self) -> Generator[None]:
    try:
      yield
    except OSError as error:
      assert self._place is not None
      _log.info(f'features of {self._split} are not kept in {self._place.path.parent}: {error.strerror}')
      path, writer, self._place, self._writer = self._place.path, self._writer, None, None
      if writer:
        writer.abandon()
        with contextlib.suppress(OSError):
          path.unlink()  # leaves the room on the disk to the run


def _compute(
  cache: _Cache, source: examples.Examples, views: int, done: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields features and labels batch by batch, starting at example `done` counted over all views."""
  run, mesh = cache.prefix.run, cache.mesh
  key, _ = jax.random.split(jax.random.key(run.config.seed, impl=initializers.PRNG))
  for view in range(done // len(source), max(views, 1)):
    loader = pipeline.make_view_loader(run.config, source, mesh, view) if views else None
    with contextlib.closing(loader or pipeline.make_eval_loader(run.config, source, mesh)) as loader:

      def program(variables, arrays, step, loader=loader, view=view):
        batch = loader.batch_at(arrays, step)
        count = batch['label'].shape[0]
        place = {'epoch': jnp.full(count, view, jnp.int32), 'position': step * count + jnp.arange(count)}
        x = run.preprocess(batch | place, key if views else None)
        return frozen_prefix.features(cache.prefix, variables, x).astype(jnp.float32), batch['label']

      program = compile_lib.jit(program, mesh, out_shardings=mesh_lib.replicated(mesh))
      first = max(done - view * len(source), 0) // run.config.eval.batch_size
      for step in range(first, loader.steps):
        features, label = jax.device_get(program(cache.variables, loader.arrays(step, 1), np.int32(step)))
        left = len(source) - step * len(label)
        yield features[:left], label[:left]
