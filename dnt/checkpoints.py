"""Checkpoints of a whole run under `<workdir>/checkpoints`: one Orbax manager, strict restore, damage passed over.

A checkpoint is `<step>/state`, the leaves of the train state as nested dicts (so that reading needs none of the classes
that made it), and `<step>/meta/meta.json`: what the loop gives, the metric that ranks it, and the shape, dtype and
digest of each leaf, which does not depend on how it was sharded: one flipped bit shows at restore, on any number of
devices.

With several processes every public call is made by all of them; what one finds damaged, all pass over. They must share
the file system of the workdir.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import logging as std_logging
import os
import pathlib
import secrets
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from dnt import errors, trees
from dnt.parallel import multihost

DIRECTORY = 'checkpoints'
META_FILE = 'meta.json'
LISTED = 8  # paths named in a message, of each kind


@dataclasses.dataclass(frozen=True)
class Parameters:
  """What `load_parameters` reads from a run: numpy arrays, whole on every process.

  Attributes:
    step: the checkpoint's step.
    params: nested dicts.
    batch_stats: nested dicts; empty without BatchNorm.
    ema: `{'params': ..., 'batch_stats': ...}`; empty when the run kept no average.
    meta: what was given to `save`.
  """

  step: int
  params: dict[str, Any]
  batch_stats: dict[str, Any]
  ema: dict[str, Any]
  meta: dict[str, Any]


class _DamagedError(Exception):
  """A committed checkpoint that cannot be read back as it was written."""


def better(best_metric: str, value: float | None, than: float | None) -> bool:
  """Whether a metric improved: lower for a name that ends in 'loss', higher for any other; never by a NaN."""
  if value is None or np.isnan(value):
    return False
  return than is None or (value < than if best_metric.endswith('loss') else value > than)


class Checkpoints:
  """The checkpoints of one run: the newest `config.keep`, and the best by `config.best_metric`."""

  def __init__(self, workdir: str | os.PathLike, config: ml_collections.ConfigDict):
    """Makes sure that checkpoints can be written.

    Args:
      workdir: directory of the run, made when missing.
      config: the `checkpoint` section of the config.

    Raises:
      errors.InputError: the workdir cannot be written, or the processes do not share it.
    """
    self._directory = pathlib.Path(workdir).absolute() / DIRECTORY
    self._config = config
    self._metrics: dict[int, float | None] = {}
    _check_writable(self._directory)

  @functools.cached_property
  def _manager(self):
    # Made by the first save: the first step of a run does not wait for the import.
    import orbax.checkpoint as ocp

    class Manager(ocp.CheckpointManager):
      def reached_preemption(self, step: int) -> bool:
        return False  # the loop asks by its own dense counter; a second one would move the agreed step

    _silence_background()
    registry = ocp.DefaultCheckpointHandlerRegistry()
    state_handler = ocp.PyTreeCheckpointHandler()
    meta_handler = ocp.JsonCheckpointHandler(filename=META_FILE)
    registry.add('state', ocp.args.PyTreeSave, state_handler)
    registry.add('state', ocp.args.PyTreeRestore, state_handler)
    registry.add('meta', ocp.args.JsonSave, meta_handler)
    registry.add('meta', ocp.args.JsonRestore, meta_handler)
    self._metrics |= {step: _metric(self._directory / str(step)) for step in _steps(self._directory)}
    return Manager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        save_decision_policy=ocp.checkpoint_managers.FixedIntervalPolicy(1),  # the loop decides
        preservation_policy=_Preserve(self._config.keep, self._best_of),
        cleanup_tmp_directories=True,
        save_root_metadata=False,
      ),
      handler_registry=registry,
    )

  @property
  def latest_step(self) -> int | None:
    """The newest step on disk or being written; None without one."""
    return max(self._all_steps(), default=None)

  @property
  def best_step(self) -> int | None:
    """The step with the best metric, the first of equals; None when no checkpoint has one."""
    steps = self._all_steps()
    self._metrics |= {step: _metric(self._directory / str(step)) for step in steps if step not in self._metrics}
    return self._best_of(steps)

  def save(self, step: int, state: Any, meta: Mapping[str, Any], metric: float | None = None) -> bool:
    """Starts to write a checkpoint; returns once the state is copied, so that its buffers may be donated.

    Args:
      step: optimizer steps done.
      state: pytree of arrays, checked to be finite first.
      meta: JSON values.
      metric: what ranks this checkpoint; None: it cannot be the best.

    Returns:
      Whether it is saved now; False when this step was saved before.

    Raises:
      errors.RunError: the state is not finite (nothing is written, what was saved stays), or an earlier checkpoint
        could not be written.
    """
    import orbax.checkpoint as ocp

    if step in self._all_steps():
      return False
    leaves = _flatten(state)
    self._check_room(leaves)
    envelope = {'meta': dict(meta), 'metric': metric, 'leaves': self._inspect(step, leaves)}
    envelope['sha256'] = _sha256(envelope)
    self._metrics[step] = metric
    self._write(
      self._manager.save,
      step,
      args=ocp.args.Composite(state=ocp.args.PyTreeSave(trees.unflatten(leaves)), meta=ocp.args.JsonSave(envelope)),
    )
    return True

  def restore_latest(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
    """The newest checkpoint that reads back as it was written; damaged newer ones are moved aside, one line each.

    Args:
      abstract_state: the state's pytree with `jax.ShapeDtypeStruct` leaves (or arrays) that carry the shardings to
        restore onto; they need not be those it was saved from.

    Returns:
      (state, meta), or None when nothing was ever saved.

    Raises:
      errors.InputError: the checkpoint is of another network or optimizer, or all of them are damaged; everything saved
        stays as it is.
    """
    if not self._all_steps():
      return None
    found, damaged = _newest_good(self._directory, lambda path: _read_state(path, abstract_state))
    for step, reason in damaged:
      aside = self._move_aside(step)
      _say(f'checkpoint {step} is damaged ({reason}); moved to {aside}, going on from step {found.step}')
    if damaged and '_manager' in self.__dict__:
      self._manager.reload()
    return found.value

  def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
    """(state, meta) of one step; see `restore_latest`.

    Raises:
      errors.InputError: no such checkpoint, it is damaged, or it is of another network or optimizer.
    """
    steps = self._all_steps()
    if step not in steps:
      raise errors.unknown(f'checkpoint in {self._directory}', str(step), map(str, steps))
    found, _ = _newest_good(self._directory, lambda path: _read_state(path, abstract_state), only=step)
    return found.value

  def wait(self) -> None:
    """Blocks until what is being saved is on disk.

    Raises:
      errors.RunError: it could not be written.
    """
    if '_manager' in self.__dict__:
      self._write(self._manager.wait_until_finished)

  def close(self) -> None:
    """Waits as `wait` does, and ends the writing threads."""
    if '_manager' in self.__dict__:
      self._write(self._manager.close)

  def _all_steps(self) -> list[int]:
    if '_manager' in self.__dict__:
      return sorted(self._manager.all_steps())
    return multihost.broadcast_from_lead(_steps(self._directory))

  def _best_of(self, steps: Sequence[int]) -> int | None:
    best = None
    for step in sorted(steps):
      if better(self._config.best_metric, self._metrics.get(step), self._metrics[best] if best is not None else None):
        best = step
    return best

  def _check_room(self, leaves: Mapping[str, jax.Array]) -> None:
    # Found only by the writing threads, both would show as pages of tracebacks, or as minutes of waiting.
    problem = None
    if multihost.is_lead():
      needed = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())
      try:
        free = shutil.disk_usage(self._directory).free
      except OSError as error:
        problem = errors.RunError(f'{self._directory} is gone ({error.strerror}); no checkpoint can be written')
      else:
        if free < needed:
          problem = errors.RunError(
            f'a checkpoint needs {needed / 1e6:.0f} MB and the disk of {self._directory} has {free / 1e6:.0f} MB left; '
            'make room and run the same command again'
          )
    problem = _agree(problem)
    if problem is not None:
      raise problem

  def _inspect(self, step: int, leaves: Mapping[str, jax.Array]) -> dict[str, Any]:
    inspected = _inspect(leaves)
    bad = [path for path, (_, finite) in inspected.items() if not finite]
    if bad:
      raise errors.RunError(f'the state after step {step} is not finite and was not saved ({_list(bad)})')
    return {
      path: {'shape': list(leaf.shape), 'dtype': str(leaf.dtype), 'digest': inspected[path][0]}
      for path, leaf in leaves.items()
    }

  def _move_aside(self, step: int) -> pathlib.Path:
    aside = self._directory / f'{step}.damaged'
    if multihost.is_lead():
      number = 2
      while aside.exists():
        aside = self._directory / f'{step}.damaged-{number}'
        number += 1
      (self._directory / str(step)).rename(aside)
    multihost.barrier('dnt: moved a damaged checkpoint aside')  # nobody lists the directory before
    return aside

  def _write(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    try:
      call(*args, **kwargs)
    except Exception as error:
      reason = str(error).strip().splitlines() or [type(error).__name__]
      raise errors.RunError(f'a checkpoint could not be written to {self._directory}: {reason[0]}') from error


@dataclasses.dataclass(frozen=True)
class _Preserve:
  """Orbax's preservation policy: the newest `keep`, and the best."""

  keep: int
  best_of: Callable[[Sequence[int]], int | None]

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = {*sorted(steps)[-self.keep :], self.best_of(steps)}
    return [step in kept for step in steps]


def load_parameters(workdir: str | os.PathLike, step: int | None = None) -> Parameters:
  """Parameters and statistics of another run, without the config or the classes that made it.

  A damaged checkpoint is passed over for the one before, said in one line; nothing on disk is changed.

  Args:
    workdir: of a dnt run.
    step: which checkpoint; the newest when not given.

  Raises:
    errors.InputError: there is no checkpoint, no such step, or they are damaged.
  """
  directory = pathlib.Path(workdir).absolute() / DIRECTORY
  steps = multihost.broadcast_from_lead(_steps(directory))
  if not steps:
    raise errors.InputError(f'there is no checkpoint in {directory}; give the workdir of a dnt run that saved one')
  if step is not None and step not in steps:
    raise errors.unknown(f'checkpoint in {directory}', str(step), map(str, steps))
  found, damaged = _newest_good(directory, _read_parameters, only=step)
  for bad, reason in damaged:
    _say(f'checkpoint {bad} in {directory} is damaged ({reason}); taking step {found.step}')
  return found.value


@dataclasses.dataclass(frozen=True)
class _Found:
  step: int
  value: Any


def _newest_good(
  directory: pathlib.Path, read: Callable[[pathlib.Path], Any], only: int | None = None
) -> tuple[_Found, list[tuple[int, str]]]:
  """The newest checkpoint that `read` accepts, and the newer damaged ones with the reasons; agreed by all processes.

  Args:
    directory: of the checkpoints, at least one.
    read: path to (leaves by path, their record in the envelope, what to return); local to the process.
    only: look at this step alone.
  """
  damaged = []
  for step in [only] if only is not None else reversed(multihost.broadcast_from_lead(_steps(directory))):
    problem, read_back = None, None
    try:
      read_back = read(directory / str(step))
    except (_DamagedError, errors.InputError) as error:
      problem = error
    problem = _agree(problem)
    if problem is None:
      leaves, record, value = read_back
      problem = _agree(_compare_digests(leaves, record))
    if problem is None:
      return _Found(step, value), damaged
    if isinstance(problem, errors.InputError):
      raise problem
    damaged.append((step, str(problem)))
  listed = '; '.join(f'{step}: {reason}' for step, reason in damaged)
  raise errors.InputError(
    f'every checkpoint in {directory} is damaged ({listed}). Restore them from a backup, give another --workdir, or '
    f'delete {directory} to start again'
  )


def _read_state(path: pathlib.Path, abstract_state: Any) -> tuple[dict[str, Any], dict[str, Any], Any]:
  envelope = _read_envelope(path)
  expected = _flatten(abstract_state)
  _check_strictly(path, expected, envelope['leaves'])

  def abstract(leaf):
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  leaves = _read_leaves(path, {name: abstract(leaf) for name, leaf in expected.items()})
  _, structure = jax.tree.flatten(abstract_state)
  state = jax.tree.unflatten(structure, [leaves[name] for name in _paths(abstract_state)])
  return leaves, envelope['leaves'], (state, envelope['meta'])


def _read_parameters(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any], Any]:
  envelope = _read_envelope(path)
  record = {
    name: entry for name, entry in envelope['leaves'].items() if name.split('/')[0] in ('params', 'batch_stats', 'ema')
  }
  leaves = _read_leaves(
    path, {name: jax.ShapeDtypeStruct(tuple(entry['shape']), entry['dtype']) for name, entry in record.items()}
  )
  tree = trees.unflatten(leaves)
  value = Parameters(
    step=int(path.name),
    params=tree['params'],
    batch_stats=tree.get('batch_stats', {}),
    ema=tree.get('ema', {}),
    meta=envelope['meta'],
  )
  return leaves, record, value


def _read_envelope(path: pathlib.Path) -> dict[str, Any]:
  file = path / 'meta' / META_FILE
  try:
    envelope = json.loads(file.read_bytes())
    good = envelope.pop('sha256') == _sha256(envelope)
  except PermissionError as error:
    raise errors.InputError(f'{file} cannot be read ({error.strerror}); check its owner and mode') from error
  except FileNotFoundError as error:
    raise _DamagedError(f'{file.relative_to(path)} is missing') from error
  except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
    raise _DamagedError(f'{file.relative_to(path)} cannot be read') from error
  if not good:
    raise _DamagedError(f'{file.relative_to(path)} is not what was written')
  return envelope


def _read_leaves(path: pathlib.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
  """Reads leaves by path: onto the sharding each carries, or as numpy arrays without one."""
  import orbax.checkpoint as ocp

  _silence_background()

  def restore_args(leaf):
    if leaf.sharding is None:
      return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)

  # Each process reads by itself, so that one that fails does not leave the others in a barrier.
  process = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=process, active_processes={process}, barrier_sync_key_prefix=f'dnt_read_{process}'
  )
  item = trees.unflatten(wanted)
  checkpointer = ocp.Checkpointer(
    ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone
  )
  try:
    restored = checkpointer.restore(
      path / 'state',
      args=ocp.args.PyTreeRestore(item=item, restore_args=jax.tree.map(restore_args, item), partial_restore=True),
    )
    return {name: trees.flatten(restored)[name] for name in wanted}
  except (MemoryError, jax.errors.JaxRuntimeError):
    raise
  except PermissionError as error:
    raise errors.InputError(f'{path} cannot be read ({error.strerror}); check its owner and mode') from error
  except Exception as error:
    # Orbax and TensorStore raise a dozen types for a file that is cut short, missing or changed.
    raise _DamagedError('state cannot be read') from error
  finally:
    checkpointer.close()


@functools.cache
def _silence_background() -> None:
  """Keeps Orbax's threads from printing what the calls here raise, in one line, as `RunError` or as damage.

  When one of many reads or writes fails, the others end later and find their event loop closed or nobody waiting for
  them: pages of tracebacks that say nothing more.
  """
  hook = sys.unraisablehook

  def unraisable(event):
    closed = isinstance(event.exc_value, RuntimeError) and 'Event loop is closed' in str(event.exc_value)
    if not closed and not any('orbax' in frame.filename for frame in traceback.extract_tb(event.exc_traceback)):
      hook(event)

  sys.unraisablehook = unraisable
  logging.get_absl_logger().addFilter(lambda record: not (record.exc_info and 'orbax' in record.pathname))
  logger = std_logging.getLogger('asyncio')
  logger.addFilter(lambda record: 'exception was never retrieved' not in record.getMessage())


def _check_strictly(path: pathlib.Path, expected: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
  both = [name for name in expected if name in saved]
  shapes = [
    f'{name} {tuple(saved[name]["shape"])}, not {expected[name].shape}'
    for name in both
    if tuple(saved[name]['shape']) != expected[name].shape
  ]
  dtypes = [
    f'{name} {saved[name]["dtype"]}, not {expected[name].dtype}'
    for name in both
    if saved[name]['dtype'] != str(expected[name].dtype)
  ]
  problems = {
    'missing': [name for name in expected if name not in saved],
    'unexpected': [name for name in saved if name not in expected],
    'of another shape': shapes,
    'of another dtype': dtypes,
  }
  found = [f'{what}: {_list(names)}' for what, names in problems.items() if names]
  if found:
    workdir = path.parent.parent
    raise errors.InputError(
      f'checkpoint {path} is not of this network and optimizer; {"; ".join(found)}. '
      f'Give another --workdir, or the config that made it ({workdir / "config.json"})'
    )


def _compare_digests(leaves: Mapping[str, Any], record: Mapping[str, Any]) -> _DamagedError | None:
  changed = [path for path, (digest, _) in _inspect(leaves).items() if digest != record[path]['digest']]
  return _DamagedError(f'not what was written: {_list(changed)}') if changed else None


def _inspect(leaves: Mapping[str, Any]) -> dict[str, tuple[int, bool]]:
  """(digest, whether all numbers are finite) of each leaf.

  The digest is the sum modulo 2^32 of the leaf's 32-bit words, each times an odd weight, 2 x position + 1: any order of
  summation, over any shards, gives the same, and a change of one word always changes it. It is summed on the host,
  where the values go anyway to be written: a program for each shape would take a deep network seconds to compile.

  Args:
    leaves: arrays on the mesh, of which each process sums its own shards, or whole numpy arrays.
  """
  shards = {path: _shards(leaf) for path, leaf in leaves.items()}
  for _, values in itertools.chain.from_iterable(shards.values()):
    if isinstance(values, jax.Array):
      values.copy_to_host_async()
  found = np.zeros((len(leaves), 2), np.uint32)  # digest, shards that are not finite
  for row, (path, leaf) in zip(found, leaves.items(), strict=True):
    for index, values in shards[path]:
      digest, finite = _inspect_shard(leaf.shape, index, np.asarray(values))
      row += np.array([digest, not finite], np.uint32)
  if any(isinstance(leaf, jax.Array) for leaf in leaves.values()) and jax.process_count() > 1:
    found = multihost_utils.process_allgather(found).sum(0, dtype=np.uint32)
  return {path: (int(digest), not bad) for path, (digest, bad) in zip(leaves, found, strict=True)}


def _shards(leaf: Any) -> list[tuple[tuple[slice, ...], Any]]:
  """(where, values) of the parts that this process counts for: together the processes count each number once."""
  if isinstance(leaf, jax.Array):
    return [(shard.index, shard.data) for shard in leaf.addressable_shards if shard.replica_id == 0]
  return [((slice(None),) * leaf.ndim, leaf)]


def _inspect_shard(shape: tuple[int, ...], index: tuple[slice, ...], values: np.ndarray) -> tuple[int, bool]:
  finite = not jnp.issubdtype(values.dtype, jnp.inexact) or bool(np.isfinite(values).all())
  size = values.dtype.itemsize
  words = np.ascontiguousarray(values).view(f'u{min(size, 4)}').astype(np.uint32, copy=False)
  if size > 4:
    shape, index = (*shape, size // 4), (*index, slice(None))
  position, stride = np.zeros((), np.uint32), 1
  for axis in reversed(range(len(shape))):
    along = np.arange(*index[axis].indices(shape[axis]), dtype=np.uint32) * np.uint32(stride % 2**32)
    position = along.reshape(-1, *[1] * (len(shape) - 1 - axis)) + position
    stride *= shape[axis]
  words = words.reshape(position.shape)
  return int(np.sum(words * (position * np.uint32(2) + np.uint32(1)), dtype=np.uint32)), finite


def _paths(tree: Any) -> list[str]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves]


def _flatten(tree: Any) -> dict[str, Any]:
  return dict(zip(_paths(tree), jax.tree.leaves(tree), strict=True))


def _sha256(envelope: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(envelope, sort_keys=True).encode()).hexdigest()


def _metric(path: pathlib.Path) -> float | None:
  try:
    return _read_envelope(path)['metric']
  except _DamagedError:
    return None  # restoring it will say so


def _steps(directory: pathlib.Path) -> list[int]:
  """Committed steps: Orbax writes elsewhere and renames."""
  try:
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit() and path.is_dir())
  except (FileNotFoundError, NotADirectoryError):
    return []
  except PermissionError as error:
    raise errors.InputError(f'{directory} cannot be read ({error.strerror}); check its owner and mode') from error


def _list(names: Sequence[str]) -> str:
  more = f' and {len(names) - LISTED} more' if len(names) > LISTED else ''
  return ', '.join(names[:LISTED]) + more


def _say(line: str) -> None:
  if multihost.is_lead():
    print(line, flush=True)


def _check_writable(directory: pathlib.Path) -> None:
  probe = directory / f'.writable-{multihost.broadcast_from_lead(secrets.token_hex(4))}'
  problem = None
  if multihost.is_lead():
    try:
      directory.mkdir(parents=True, exist_ok=True)
      probe.touch()
    except OSError as error:
      problem = errors.InputError(
        f'workdir {directory.parent} cannot be written ({error.strerror}); give another with --workdir'
      )
  problem = _agree(problem)
  if problem is not None:
    raise problem
  if not probe.exists():
    problem = errors.InputError(
      f'process {jax.process_index()} does not see the files of process 0 in {directory.parent}; '
      'give a --workdir on a file system that all processes share'
    )
  problem = _agree(problem)
  if multihost.is_lead():
    probe.unlink()
  if problem is not None:
    raise problem


def _agree(problem: Exception | None) -> Exception | None:
  """The gravest problem of any process, on every process: damage before any other before none."""
  if jax.process_count() == 1:
    return problem
  kinds = (type(None), errors.RunError, errors.InputError, _DamagedError)
  mine = kinds.index(type(problem))
  all_of_them = multihost_utils.process_allgather(np.int32(mine))
  process = int(np.argmax(all_of_them))
  return problem if all_of_them[process] == mine else kinds[all_of_them[process]](f'as process {process} found')
