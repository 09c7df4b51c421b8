"""Defines the format of one checkpoint on disk, and reads it back exactly or not at all.

A checkpoint has two parts. `state` holds the leaves of the train state as nested dicts, so that reading needs none of
the classes that made it. The envelope `meta/meta.json` holds the format number, the loop's metadata, the metrics of
the state, the shape, dtype and digest of each leaf, and the envelope's own SHA-256.

All functions except `compare_digests` are local to the process.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import logging as std_logging
import pathlib
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from dnt import buckets, errors, files, trees
from dnt import workdir as workdir_lib
from dnt.checkpoints import digests
from dnt.config import older

_STEP = re.compile(r'0|[1-9][0-9]*')
META_FILE = 'meta.json'
_COMMITTED = 'commit_success.txt'  # in a bucket, Orbax writes it last


@dataclasses.dataclass(frozen=True)
class Parameters:
  """The result of `load_parameters`: numpy arrays, whole on every process.

  Attributes:
    step: the checkpoint's step.
    params: nested dicts.
    batch_stats: nested dicts; empty without BatchNorm.
    ema: `{'params': ..., 'batch_stats': ...}`; empty if the run kept no average.
    meta: the `meta` that `save` received.
  """

  step: int
  params: dict[str, Any]
  batch_stats: dict[str, Any]
  ema: dict[str, Any]
  meta: dict[str, Any]


class Restored(NamedTuple):
  """The result of `read_state`: the state on the devices, and the `meta` that `save` received."""

  state: Any
  meta: dict[str, Any]


class Misfit(NamedTuple):
  """Describes how the leaves of a checkpoint differ from those of the state to restore.

  Attributes:
    text: names the leaves.
    of_network: whether parameters or BatchNorm statistics of the network are among them.
  """

  text: str
  of_network: bool


class DamagedError(Exception):
  """Raised if a committed checkpoint does not read back as it was written."""


@dataclasses.dataclass(frozen=True)
class ReadBack:
  """A checkpoint that was read, but whose digests are not compared yet.

  Attributes:
    leaves: leaves by path, as on disk.
    record: the envelope's entry for each leaf.
    value: the caller's result, built from the leaves.
  """

  leaves: dict[str, Any]
  record: dict[str, Any]
  value: Any


def make_envelope(
  meta: Mapping[str, Any], leaves: Mapping[str, Any], sums: Mapping[str, digests.Digest]
) -> dict[str, Any]:
  """Makes the envelope of a checkpoint, which has no metrics yet.

  Args:
    meta: the loop's metadata, JSON values.
    leaves: leaves of the state by path.
    sums: result of `digests.inspect(leaves)`.
  """
  record = {
    path: {'shape': list(leaf.shape), 'dtype': str(leaf.dtype), 'digest': sums[path].value}
    for path, leaf in leaves.items()
  }
  # A deep copy, because the loop changes `meta` while Orbax writes it in the background.
  envelope = {
    'format': workdir_lib.FORMAT,
    'meta': copy.deepcopy(dict(meta)),
    'metric': None,
    'leaves': record,
    'metrics': {},
  }
  return {**envelope, 'sha256': _sha256(envelope)}


def replace_meta(
  path: pathlib.Path, meta: Mapping[str, Any], metrics: Mapping[str, float], metric: float | None
) -> None:
  """Replaces the loop's metadata and the metrics of a checkpoint; a reader sees the whole old or new envelope.

  Args:
    path: path of the checkpoint.
    meta: as for `make_envelope`.
    metrics: metrics of the state by name.
    metric: the one of them that ranks the checkpoint, for older versions, which read no other.

  Raises:
    DamagedError: its envelope cannot be read.
    OSError: it cannot be written.
  """
  envelope = _read_envelope(path) | {'meta': dict(meta), 'metric': metric, 'metrics': dict(metrics)}
  file, text = path / 'meta' / META_FILE, json.dumps({**envelope, 'sha256': _sha256(envelope)})
  if buckets.address(file):
    file.write_text(text)  # an object is replaced as a whole
  else:
    files.write(file, text)


def read_state(path: pathlib.Path, abstract_state: Any) -> ReadBack:
  """Reads a whole state; the `value` of the result is a `Restored`.

  Args:
    path: path of the checkpoint.
    abstract_state: pytree of `jax.ShapeDtypeStruct`s (or arrays) with the shardings to read onto; a leaf without a
      sharding goes to the first device of this process.

  Raises:
    DamagedError: the checkpoint cannot be read.
    errors.InputError: the checkpoint holds other leaves; in this case only the envelope was read.
  """
  envelope = _read_envelope(path)
  expected = flatten(abstract_state)
  on_disk = {older.leaf(name, envelope['format']): name for name in envelope['leaves']}
  if misfit := _compare(expected, envelope):
    workdir = path.parent.parent
    raise errors.InputError(
      f'checkpoint {path} belongs to another network or optimizer; {misfit.text}. '
      f'Give another --workdir, or use the config that made it ({workdir / workdir_lib.CONFIG})'
    )

  def abstract(leaf):
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  leaves = _read_leaves(path, {on_disk[name]: abstract(leaf) for name, leaf in expected.items()})
  _, structure = jax.tree.flatten(abstract_state)
  state = jax.tree.unflatten(structure, [leaves[on_disk[name]] for name in _paths(abstract_state)])
  return ReadBack(leaves, envelope['leaves'], Restored(state, envelope['meta']))


def find_misfit(path: pathlib.Path, abstract_state: Any) -> Misfit | None:
  """Returns how a checkpoint differs from the state that `read_state` is to read, or None; reads no array.

  Raises:
    DamagedError: its envelope cannot be read.
  """
  return _compare(flatten(abstract_state), _read_envelope(path))


def read_parameters(path: pathlib.Path) -> ReadBack:
  """Reads parameters and batch statistics as numpy arrays; the `value` of the result is a `Parameters`.

  Raises:
    DamagedError: the checkpoint cannot be read.
  """
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
    ema={'batch_stats': {}, **tree['ema']} if 'ema' in tree else {},  # an empty dict has no leaves on disk
    meta=envelope['meta'],
  )
  return ReadBack(leaves, record, value)


def read_meta(path: pathlib.Path) -> dict[str, Any]:
  """Returns the `meta` that `save` received, without reading any array.

  Raises:
    DamagedError: it cannot be read.
  """
  return _read_envelope(path)['meta']


def identify(path: pathlib.Path) -> str | None:
  """Returns what is equal for all who see the same values at a path: '' if there are none; None: it cannot be read."""
  try:
    record = _read_envelope(path)['leaves']
  except (DamagedError, errors.InputError) as error:
    return '' if isinstance(error.__cause__, FileNotFoundError) else None
  return _sha256(record)


def newest_meta(directory: pathlib.Path, steps: Sequence[int]) -> dict[str, Any]:
  """Returns the `meta` of the newest step whose `meta` is not damaged (a restore reports the damage), else {}."""
  for step in reversed(steps):
    with contextlib.suppress(DamagedError):
      return read_meta(directory / str(step))
  return {}


def _read_envelope(path: pathlib.Path) -> dict[str, Any]:
  """Reads the envelope; that of an older version has the present format but for the names of its leaves."""
  file = path / 'meta' / META_FILE
  try:
    envelope = json.loads(file.read_bytes())
    good = envelope.pop('sha256') == _sha256(envelope)
  except PermissionError as error:
    raise errors.InputError(f'{file} cannot be read ({error.strerror}); check its owner and mode') from error
  except FileNotFoundError as error:
    raise DamagedError(f'{file.relative_to(path)} is missing') from error
  except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
    _check_answer(path)
    raise DamagedError(f'{file.relative_to(path)} cannot be read') from error
  if not good:
    raise DamagedError(f'{file.relative_to(path)} differs from what was written')
  workdir_lib.check_number(envelope.get('format', 1), f'checkpoint {path}')
  return older.envelope(envelope, int(path.name))


def _check_answer(path: pathlib.Path) -> None:
  """Raises an `errors.InputError` if the bucket of a checkpoint does not answer; then it need not be damaged."""
  if where := buckets.address(path):
    try:
      buckets.Folder(where).versions()
    except OSError as error:
      raise errors.InputError(f'{where} cannot be read ({error.strerror})') from error


def _read_leaves(path: pathlib.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
  """Reads leaves by path, each onto its own sharding, or as a numpy array if it has none."""
  import orbax.checkpoint as ocp

  silence_background()

  def restore_args(leaf):
    if leaf.sharding is None:
      return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)

  # Each process reads on its own, so that the others do not wait in a barrier if one fails.
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
    leaves = trees.flatten(restored)
    return {name: leaves[name] for name in wanted}
  except (MemoryError, jax.errors.JaxRuntimeError):
    raise
  except PermissionError as error:
    raise errors.InputError(f'{path} cannot be read ({error.strerror}); check its owner and mode') from error
  except Exception as error:
    # Orbax and TensorStore raise a dozen types for a file that is truncated, missing or changed.
    _check_answer(path)
    raise DamagedError('state cannot be read') from error
  finally:
    checkpointer.close()


def compare_digests(read: ReadBack) -> DamagedError | None:
  """Returns an error if a leaf differs from what was written, else None; all processes must call it together."""
  changed = [
    path for path, digest in digests.inspect(read.leaves).items() if digest.value != read.record[path]['digest']
  ]
  return (
    DamagedError(f'the digests of these leaves differ from what was written: {errors.list_names(changed)}')
    if changed
    else None
  )


@functools.cache
def silence_background() -> None:
  """Silences tracebacks of Orbax's threads; the calls here already report the error in one line, or as damage.

  If one of many reads or writes fails, the others end later, when their event loop is closed or nobody waits for them.
  They then print pages of tracebacks without any new information.
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


def _compare(expected: Mapping[str, Any], envelope: Mapping[str, Any]) -> Misfit | None:
  saved = {older.leaf(name, envelope['format']): leaf for name, leaf in envelope['leaves'].items()}
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
  result = [f'{what}: {errors.list_names(names)}' for what, names in problems.items() if names]
  parts = {name.partition('/')[0] for names in problems.values() for name in names}
  return Misfit('; '.join(result), bool(parts & {'params', 'batch_stats'})) if result else None


def _paths(tree: Any) -> list[str]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves]


def flatten(tree: Any) -> dict[str, Any]:
  """Flattens any pytree to `{path: leaf}`, in the order of the tree; `trees.flatten` takes only nested dicts."""
  return dict(zip(_paths(tree), jax.tree.leaves(tree), strict=True))


def _sha256(envelope: Mapping[str, Any]) -> str:
  # Keeps the order of the keys, so that the text is the same before writing and after reading.
  return hashlib.sha256(json.dumps(envelope).encode()).hexdigest()


def metrics_of(path: pathlib.Path) -> dict[str, float]:
  """Returns the metrics of a checkpoint by name; {} if it was not evaluated, or is damaged, which a restore reports."""
  try:
    return _read_envelope(path)['metrics']
  except DamagedError:
    return {}


def steps_in(directory: pathlib.Path) -> list[int]:
  """Lists the committed steps: Orbax writes to another name and renames when it is done, or writes `_COMMITTED`.

  Folders with other names, such as 077, are none of dnt's.

  Raises:
    errors.InputError: the folder cannot be read.
  """
  if where := buckets.address(directory):
    return sorted(int(name) for name in buckets.Folder(where).folders_with(_COMMITTED) if _STEP.fullmatch(name))
  try:
    return sorted(int(path.name) for path in directory.iterdir() if _STEP.fullmatch(path.name) and path.is_dir())
  except (FileNotFoundError, NotADirectoryError):
    return []
  except PermissionError as error:
    raise errors.InputError(f'{directory} cannot be read ({error.strerror}); check its owner and mode') from error
