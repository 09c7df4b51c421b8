"""Computes the output of the frozen prefix for each image once and caches it on disk.

The prefix is the entries before the first one that trains. A cached run reads the prefix's output instead of images,
and the prefix entries pass it on unchanged. Step, evaluation and telemetry therefore work as in any other run. The
cache key is a digest of everything the features depend on: the prefix, its weights, the code of a user's own network,
the images and their preprocessing.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors as flax_errors
from jax.sharding import Mesh

from dnt import errors, files, trees
from dnt.config import implied, typed
from dnt.data import examples, pipeline
from dnt.data.transforms import images
from dnt.finetune import feature_files
from dnt.models import depth, freeze, initializers
from dnt.parallel import agreement, multihost
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.reporting import progress
from dnt.training import experiment, initialize

_log = logging.getLogger(__name__)
FOLDER = 'features'  # of the cache folder
LARGEST = 2**33  # largest size in bytes of a split's features, which are held on the device
SHAKEN = 0.1  # standard deviation of the noise that `_suffices` adds to parameters
_WITHOUT_DIGESTS = 2  # the version of feature files before digests
CLOSE = 1e-4  # logits that differ by at most this fraction of the largest one count as equal
# What the code of a network raises for features in place of the images that it was written for.
_MISFIT = (
  ArithmeticError,
  AssertionError,
  AttributeError,
  LookupError,
  RuntimeError,
  TypeError,
  ValueError,
  errors.InputError,
  flax_errors.FlaxError,
)


class _Prefix(NamedTuple):
  """The frozen prefix of a run, with its variables.

  Attributes:
    names: names of its entries, in depth order.
    variables: variables of the whole network, on the mesh.
    pooled: whether the cache keeps only the mean of its output over all positions.
  """

  names: tuple[str, ...]
  variables: Any
  pooled: bool


def use(
  run: experiment.Experiment, data: experiment.Data, mesh: Mesh, workdir: pathlib.Path
) -> tuple[experiment.Experiment, experiment.Data]:
  """Returns the run on cached features, which are computed if missing, or unchanged if it has no prefix to cache.

  Args:
    run: the experiment.
    data: its images and pretrained weights.
    mesh: the device mesh.
    workdir: workdir of the run, which may hold a checkpoint.

  Raises:
    errors.InputError: this run cannot satisfy `config.finetune.cached_views`, or `cache_dir` is an address.
  """
  views = _views(run)
  if not views:
    return run, data
  given = run.config.finetune.cache_dir
  files.check_path(given, 'config.finetune.cache_dir')
  names = _prefix(run)
  skipped = frozenset(names)
  cached = experiment.make(run.config, data.spec, skipped, run.trace)
  variables = initialize.load_start(run, workdir, data.weights)
  placed = mesh_lib.place(variables, mesh_lib.replicated(mesh))
  pooled = _is_pooled(run, names)
  fits = _fits(run, cached, placed, names[-1], pooled)
  if not (fits and _suffices(run, cached, data, mesh, placed, names[-1], pooled)):
    _decline(run, names[-1], pooled)
    return run, data
  prefix = _Prefix(names, placed, pooled)
  weights = {
    name: trees.split(tree, lambda path: freeze.is_below(path, skipped))[0] for name, tree in variables.items()
  }
  # Neither changes the features, and another identity would leave those of earlier runs unused.
  network = {key: value for key, value in run.config.model.to_dict().items() if key not in ('folder', 'norm_sync')}
  about = [network, names, pooled, trees.sha256(weights)]
  if code := agreement.own_code(run.config.model.name, run.config.model.folder):
    about.append(code)
  directory = pathlib.Path(os.path.expanduser(given)) if given else files.cache_folder(FOLDER)
  for name in feature_files.LIMITS:
    feature_files.limit(name)  # on every process, so that all stop if it is not valid
  if directory is None:
    _log.info('features are not kept: there is no home folder; set config.finetune.cache_dir')
  elif multihost.is_lead():
    try:
      directory.mkdir(parents=True, exist_ok=True)
      feature_files.make_room(directory)
    except OSError as error:
      _log.info(f'features are not kept in {directory}: {error.strerror}')
      directory = None

  def features(source, views):
    """Returns the features of a split: one evaluation view if `views` is 0, else that many training views."""
    return _load(run, source, views, mesh, prefix, directory, about)

  return cached, _replace(run, data, views, features)


def _decline(run: experiment.Experiment, name: str, pooled: bool) -> None:
  """Logs that the output of an entry cannot take the place of the images.

  Raises:
    errors.InputError: the config asks for it.
  """
  kept = 'the mean over all positions of the output' if pooled else 'the output'
  problem = (
    f'{kept} of {name} does not hold all that later entries read. The usual cause is something that the module '
    'computes between its entries, such as nn.relu or a pooling that is a plain function: move it into an entry'
  )
  if run.config.finetune.cached_views is not None:
    raise errors.InputError(
      f'config.finetune.cached_views={run.config.finetune.cached_views}: {problem}, or set the option to 0'
    )
  _log.info(f'features are not cached: {problem}')


def _replace(
  run: experiment.Experiment, data: experiment.Data, views: int, features: Callable[[Any, int], examples.Examples]
) -> experiment.Data:
  """Returns the data with features in place of the images."""
  evaluation = {split: features(source, 0) for split, source in data.evaluation.items()}
  # Without augmentation one view serves both, if evaluation resizes images as training does.
  as_evaluated = not _is_augmented(run) and implied.eval_resize(run.config.data) == 'squash'
  training = features(data.train, 0 if as_evaluated else views)
  return data._replace(train=training, evaluation=evaluation)


def use_blank(run: experiment.Experiment, data: experiment.Data) -> tuple[experiment.Experiment, experiment.Data]:
  """Returns the run as `use` does, on features that are zeros of the right shape; computes nothing.

  Of what later entries read, it looks at the shapes alone.
  """
  views = _views(run)
  if not views:
    return run, data
  names = _prefix(run)
  cached, pooled = experiment.make(run.config, data.spec, frozenset(names), run.trace), _is_pooled(run, names)
  if not _fits(run, cached, jax.eval_shape(run.init_variables), names[-1], pooled):
    _decline(run, names[-1], pooled)
    return run, data
  shape = _shape(run, names, pooled)

  def blank(source, views):
    views = max(views, 1)
    features, labels = np.zeros((views * len(source), *shape), np.float32), np.zeros(len(source), np.int32)
    return examples.Examples(source.name, source.split, source.class_names, shape, features, labels, views)

  return cached, _replace(run, data, views, blank)


def _shape(run: experiment.Experiment, names: tuple[str, ...], pooled: bool) -> Any:
  """Returns the shape of the features of an image."""
  last = next(row.shape for row in run.table if row.entry.name == names[-1])
  assert last is not None  # the last entry of a prefix is called
  return (1, 1, last[-1]) if pooled else last


def _is_augmented(run: experiment.Experiment) -> bool:
  data = run.config.data
  return data.augment != 'none' or data.policy != 'none' or data.erasing > 0


def _prefix(run: experiment.Experiment) -> tuple[str, ...]:
  """Returns the names of the entries before the first that trains; empty if they cannot be skipped.

  Those without parameters right before it, such as a dropout, belong to what trains.
  """
  phase, names = run.phases[0], []
  if len(run.phases) > 1 or not phase.partition.frozen or phase.partition.norm != 'running':
    return ()
  for row in run.table:
    if row.entry.name not in phase.partition.frozen:
      break
    if row.shape is None:  # a parameter that the model itself owns
      return ()
    names.append(row.entry.name)
  return tuple(names)


def _views(run: experiment.Experiment) -> int:
  """Returns the number of views of each image to cache; 0 turns caching off."""
  requested = run.config.finetune.cached_views
  if requested == 0:
    return 0
  possible, augmented = bool(_prefix(run)), _is_augmented(run)
  mixed = run.config.data.mixup > 0 or run.config.data.cutmix > 0
  if requested is None:
    return int(possible and not augmented and not mixed)
  if mixed:
    raise errors.InputError(
      f'config.finetune.cached_views={requested}: config.data.mixup and cutmix mix images anew at every step, so '
      'that there are no views to cache; set it to 0'
    )
  if not possible:
    raise errors.InputError(
      f'config.finetune.cached_views={requested} needs a frozen prefix: entries before the first that trains, in a '
      "single phase, with config.finetune.frozen_norm='running'; set it to 0"
    )
  if requested > 1 and not augmented:
    raise errors.InputError(
      f"config.finetune.cached_views={requested}: without augmentation (config.data.augment='none') all views are "
      'equal; set it to 1'
    )
  return requested


def _output(run: experiment.Experiment, variables: Any, x: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
  """Returns an entry's output for preprocessed images in evaluation mode, and the logits."""
  result = []

  def watch(call, module):
    output = call()
    if '/'.join(module.path) == name:
      result.append(output)
    return output

  with depth.intercept(watch):
    logits = run.model.apply(variables, x, train=False)
  return result[-1], logits


def _is_pooled(run: experiment.Experiment, names: tuple[str, ...]) -> bool:
  """Returns whether to keep only the features' mean over all positions, smaller by the number of positions.

  The network must say that this is all its head reads (`head_pools`), and only the head may be left to run. No
  measurement could tell: a head may read the positions of some images, or for some parameters, only.
  """
  *_, last, _ = run.table  # the head comes last
  maps = last.shape is not None and len(last.shape) == 3
  return maps and names[-1] == last.entry.name and getattr(run.model, 'head_pools', False)


def _pool(features: jax.Array, pooled: bool) -> jax.Array:
  """Returns what the cache keeps of an entry's output."""
  return jnp.mean(features, (1, 2), keepdims=True) if pooled else features


def _from_features(
  run: experiment.Experiment, cached: experiment.Experiment, variables: Any, features: jax.Array
) -> jax.Array:
  """Returns the logits that the cached run computes in evaluation mode."""
  with cached.phases[0].partition.running():
    return run.model.apply(variables, features, train=False)


def _fits(run: experiment.Experiment, cached: experiment.Experiment, variables: Any, name: str, pooled: bool) -> bool:
  """Returns whether the output of an entry is one array, which the network takes in place of an image; by shapes.

  Args:
    run: the experiment.
    cached: the same on features.
    variables: variables of the whole network, or their shapes.
    name: the last entry of the prefix.
    pooled: whether the features are the mean of its output over all positions.
  """
  x = jax.ShapeDtypeStruct((run.config.eval.batch_size, *run.spec.image_shape), jnp.dtype(run.config.model.dtype))
  features, _ = jax.eval_shape(lambda variables, x: _output(run, variables, x, name), variables, x)
  if not isinstance(features, jax.ShapeDtypeStruct):
    return False
  try:
    jax.eval_shape(lambda variables, x: _from_features(run, cached, variables, _pool(x, pooled)), variables, features)
  except _MISFIT:
    return False
  return True


def _suffices(
  run: experiment.Experiment,
  cached: experiment.Experiment,
  data: experiment.Data,
  mesh: Mesh,
  variables: Any,
  name: str,
  pooled: bool,
) -> bool:
  """Returns whether the network, which fits, computes the same logits from the features of a batch as from its images.

  We perturb the parameters after the prefix, because zero-initialized ones would hide their effect.
  """
  skipped = cached.phases[0].partition.skipped
  behind, before = trees.split(variables['params'], lambda path: not freeze.is_below(path, skipped))
  keys = jax.random.split(jax.random.key(0, impl=initializers.PRNG), len(trees.flatten(behind)))
  shaken = {
    path: leaf + SHAKEN * jax.random.normal(key, leaf.shape, leaf.dtype)
    for key, (path, leaf) in zip(keys, trees.flatten(behind).items(), strict=True)
  }
  variables = variables | {'params': trees.merge(before, trees.unflatten(shaken))}

  with contextlib.closing(pipeline.make_eval_loader(run.config, data.train, mesh)) as loader:

    def program(variables, arrays):
      x = run.preprocess(loader.batch_at(arrays, jnp.int32(0)), None)
      features, whole = _output(run, variables, x, name)
      return whole, _from_features(run, cached, variables, _pool(features, pooled))

    program = compile_lib.jit(program, mesh, out_shardings=mesh_lib.replicated(mesh))
    whole, result = jax.device_get(program(variables, loader.arrays(0, 1)))
  return bool(np.abs(result - whole).max() <= CLOSE * np.abs(whole).max())


def _load(
  run: experiment.Experiment,
  source: examples.Examples,
  views: int,
  mesh: Mesh,
  prefix: _Prefix,
  directory: pathlib.Path | None,
  about: list[Any],
) -> examples.Examples:
  """Returns the features of a split; reads them from disk or computes them. They are not kept without a directory."""
  shape = _shape(run, prefix.names, prefix.pooled)
  whole, record = max(views, 1) * len(source), feature_files.record(shape)
  if whole * record.itemsize > LARGEST:
    raise errors.InputError(
      f'the features of {source.split} take {whole * record.itemsize / 1e9:.1f} GB, of at most {LARGEST / 1e9:.1f}: '
      'set config.finetune.cached_views to 0, or to fewer views'
    )
  # We fill the arrays in place: features take most of a run's memory, and joining parts would hold them twice.
  features, labels = np.empty((whole, *shape), np.float32), np.empty(whole, np.int32)
  place = _place(run, source, views, directory, about, features.shape) if directory else None
  held = _read(place, features, labels, source.split)
  if multihost.least(held.count) < whole:
    _grow(run, source, views, mesh, prefix, place, features, labels)
  elif place:
    _log.info(f'features of {source.split}: found in {place.path}')
  # Every view has the same labels. Those of the source count: the features may have been kept under another order.
  labels = labels[: len(source)] if source.labels is None else source.labels
  return examples.Examples(source.name, source.split, source.class_names, shape, features, labels, max(views, 1))


class _Place(NamedTuple):
  """Where the features of a split are kept: the path of the file and the header that it must have."""

  path: pathlib.Path
  header: bytes


def _place(
  run: experiment.Experiment,
  source: examples.Examples,
  views: int,
  directory: pathlib.Path,
  about: list[Any],
  shape: tuple[int, ...],
) -> _Place:
  """Returns where the features of a split, of the given shape, are kept; removes the file of an older version."""
  seen, fingerprint = _seen(run.config.data), _fingerprint(source)
  drawn = [views, run.config.seed] if views else [0]

  def path(version):
    identity = json.dumps([version, *about, drawn, seen, source.name, source.split, fingerprint], default=str)
    return directory / f'{hashlib.sha256(identity.encode()).hexdigest()[:32]}.features'

  if multihost.is_lead() and feature_files.remove(path(_WITHOUT_DIGESTS)):
    _log.info(
      f'features of {source.split}: the file of an older version, {path(_WITHOUT_DIGESTS).name}, has no digests and is '
      'computed anew'
    )
  result = path(feature_files.FORMAT)
  described = {'data': source.name, 'split': source.split, 'records': shape[0], 'shape': shape[1:]}
  return _Place(result, feature_files.header(key=result.stem, **described))


def _read(place: _Place | None, features: np.ndarray, labels: np.ndarray, split: str) -> feature_files.Found:
  """Reads what is kept of the features into the arrays."""
  nothing = feature_files.Found(0, 0, False)
  try:
    return feature_files.read(*place, features, labels) if place else nothing
  except OSError as error:
    _log.info(f'features of {split} cannot be read ({error})')
    return nothing


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


def _grow(
  run: experiment.Experiment,
  source: examples.Examples,
  views: int,
  mesh: Mesh,
  prefix: _Prefix,
  place: _Place | None,
  features: np.ndarray,
  labels: np.ndarray,
) -> None:
  """Computes the features that the file does not hold yet, fills the arrays, and appends each batch to the file."""
  split, (whole, size) = source.split, (len(labels), run.config.eval.batch_size)
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
    for new, label in _compute(run, source, views, mesh, prefix, done) if known < whole else ():
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
  run: experiment.Experiment,
  source: examples.Examples,
  views: int,
  mesh: Mesh,
  prefix: _Prefix,
  done: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields features and labels batch by batch, starting at example `done` counted over all views."""
  key, _ = jax.random.split(jax.random.key(run.config.seed, impl=initializers.PRNG))
  for view in range(done // len(source), max(views, 1)):
    loader = pipeline.make_view_loader(run.config, source, mesh, view) if views else None
    with contextlib.closing(loader or pipeline.make_eval_loader(run.config, source, mesh)) as loader:

      def program(variables, arrays, step, loader=loader, view=view):
        batch = loader.batch_at(arrays, step)
        count = batch['label'].shape[0]
        place = {'epoch': jnp.full(count, view, jnp.int32), 'position': step * count + jnp.arange(count)}
        x = run.preprocess(batch | place, key if views else None)
        features, _ = _output(run, variables, x, prefix.names[-1])
        return _pool(features, prefix.pooled).astype(jnp.float32), batch['label']

      program = compile_lib.jit(program, mesh, out_shardings=mesh_lib.replicated(mesh))
      first = max(done - view * len(source), 0) // run.config.eval.batch_size
      for step in range(first, loader.steps):
        features, label = jax.device_get(program(prefix.variables, loader.arrays(step, 1), np.int32(step)))
        left = len(source) - step * len(label)
        yield features[:left], label[:left]


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
