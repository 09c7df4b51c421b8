"""Reads and writes the files of the feature cache, and keeps their folder within its limits.

A file holds a header line and then blocks of records, one record per example, appended as features are computed. Each
block has a digest, so that a run continues after the last block that is whole: where an interrupted run stopped, or
where the file was damaged later. A lock file beside it admits one writer. Whoever uses a file shares a lock on the file
itself, so that no other process removes it meanwhile.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import struct
import time
import weakref
from collections.abc import Callable, Generator
from typing import IO, Any, NamedTuple

import filelock
import numpy as np

from dnt import errors, files

FORMAT = 4  # version of the file contents and of what decides their key; increase it when they change
LIMITS = {'DNT_CACHE_GB': 20.0, 'DNT_CACHE_DAYS': 30.0}  # environment variables, with their defaults
_NAME = re.compile(r'[0-9a-f]{32}\.features')
_BLOCK = struct.Struct('<QQ32s')  # the place of the first record, the number of records, their digest


class Found(NamedTuple):
  """Holds how much of a file is whole: the number of records and of bytes; and whether what follows is damaged."""

  count: int
  size: int
  damaged: bool


class File(NamedTuple):
  """Describes a file of the cache: its size in bytes, when it was last used (Unix time), and its header."""

  path: pathlib.Path
  size: int
  used: float
  header: dict[str, Any]


def record(shape: tuple[int, ...]) -> np.dtype:
  """Returns the dtype of a record: `label` int32, and `features` float32 of `shape`."""
  return np.dtype([('label', '<i4'), ('features', '<f4', shape)])


def path_of(folder: pathlib.Path, key: str) -> pathlib.Path:
  """Returns the path of the file with a key, of 32 hexadecimal digits."""
  return folder / f'{key}.features'


def header(**about: Any) -> bytes:
  """Returns the first line of a file, which says what the file holds."""
  return json.dumps({'format': FORMAT, **about}).encode() + b'\n'


def read(path: pathlib.Path, head: bytes, features: np.ndarray, labels: np.ndarray) -> Found:
  """Reads the records at the start of a file that are as they were written; they remain in use while `features` lives.

  Args:
    path: path of the file, which need not exist.
    head: the header that it must have.
    features: float32 [records, ...], filled from the start.
    labels: int32 [records], filled likewise.

  Raises:
    OSError: the file cannot be read.
  """
  dtype, count, size = record(features.shape[1:]), 0, len(head)
  try:
    file = hold(path, features)
  except FileNotFoundError:
    return Found(0, 0, False)
  start = file.read(len(head))
  if start != head:
    return Found(0, 0, not head.startswith(start))
  while count < len(labels):
    block = file.read(_BLOCK.size)
    if len(block) < _BLOCK.size:
      return Found(count, size, False)
    first, records, digest = _BLOCK.unpack(block)
    if first != count or not 0 < records <= len(labels) - count:
      return Found(count, size, True)
    content = file.read(records * dtype.itemsize)
    if len(content) < records * dtype.itemsize:
      return Found(count, size, False)
    if _digest(first, records, content) != digest:
      return Found(count, size, True)
    held = np.frombuffer(content, dtype)
    features[count : count + records], labels[count : count + records] = held['features'], held['label']
    count, size = count + records, size + len(block) + len(content)
  with contextlib.suppress(OSError):  # a folder that can only be read
    os.utime(path)
  return Found(count, size, False)


def hold(path: pathlib.Path, features: np.ndarray) -> IO[bytes]:
  """Opens a file, and keeps other processes from removing it while `features` lives.

  Raises:
    OSError: the file cannot be read.
  """
  file = path.open('rb')
  weakref.finalize(features, file.close)
  with contextlib.suppress(OSError):  # a process is just removing it, or the file system has no locks
    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  return file


def _digest(first: int, records: int, content: bytes) -> bytes:
  return hashlib.sha256(struct.pack('<QQ', first, records) + content).digest()


@contextlib.contextmanager
def growing(path: pathlib.Path, wait: Callable[[], None]) -> Generator[None]:
  """Makes this process the only writer of a file, which may not exist yet.

  Args:
    path: path of the file; this function creates its folder if it is missing.
    wait: called before this function waits for another process that writes.

  Raises:
    OSError: the folder cannot be written, or has no locks.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  lock = filelock.FileLock(_lock_path(path))
  try:
    try:
      held = lock.acquire(blocking=False)
    except filelock.Timeout:
      wait()
      held = lock.acquire()
  except NotImplementedError as error:
    raise OSError(None, 'its file system has no locks') from error
  with held:
    yield


class Writer:
  """Appends blocks to a file; the caller is its only writer."""

  def __init__(self, path: pathlib.Path, head: bytes, found: Found):
    """Cuts the file after what is whole of it, and writes the header if nothing is.

    Raises:
      OSError: the file cannot be written.
    """
    self._count = found.count
    self._file = path.open('ab', buffering=0)
    self._file.truncate(found.size)
    if not found.size:
      files.append(self._file, head)

  def write(self, start: int, features: np.ndarray, labels: np.ndarray) -> None:
    """Appends a block of the records from `start` on, without those that the file holds already.

    Args:
      start: number of the first record; the file has all before it.
      features: float32 [n, ...], of the shape of the other records of the file.
      labels: int [n].

    Raises:
      OSError: the file cannot be written.
    """
    new = slice(max(self._count - start, 0), None)
    records = np.empty(len(labels[new]), record(features.shape[1:]))
    records['features'], records['label'] = features[new], labels[new]
    if len(records):
      content = records.tobytes()
      digest = _digest(self._count, len(records), content)
      files.append(self._file, _BLOCK.pack(self._count, len(records), digest) + content)
      self._count += len(records)

  def close(self) -> None:
    """Closes the file when all of it is on disk.

    Raises:
      OSError: the file cannot be written.
    """
    try:
      os.fsync(self._file.fileno())
    finally:
      self._file.close()

  def abandon(self) -> None:
    """Closes the file, whatever of it is on disk; it may be closed already."""
    with contextlib.suppress(OSError):
      self._file.close()


def limit(name: str) -> float:
  """Returns one of `LIMITS`, as the environment sets it.

  Raises:
    errors.InputError: it is not a number.
  """
  text = os.environ.get(name) or str(LIMITS[name])
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not value >= 0:
    raise errors.InputError(f'{name}={text} must be a number from 0 on')
  return value


def files_in(folder: pathlib.Path) -> list[File]:
  """Lists the files of the cache in a folder, which need not exist; the least recently used comes first.

  Raises:
    OSError: the folder cannot be read.
  """
  if not folder.is_dir():
    return []
  held = []
  for path in folder.iterdir():
    with contextlib.suppress(FileNotFoundError):  # another process has removed it
      if _NAME.fullmatch(path.name) and path.is_file():
        stat = path.stat()
        held.append(File(path, stat.st_size, stat.st_mtime, _header_of(path)))
  return sorted(held, key=lambda file: file.used)


def _header_of(path: pathlib.Path) -> dict[str, Any]:
  """Returns the header of a file; an empty one if the file is damaged."""
  try:
    with path.open('rb') as file:
      content = json.loads(file.readline(1 << 16))
  except (OSError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}


def make_room(folder: pathlib.Path, needed: int = 0, keep: pathlib.Path | None = None) -> str:
  """Removes files that were not used for too long, and the least recently used ones until `needed` more bytes fit.

  If they cannot fit, however many files go, it removes only those that were not used for too long.

  Args:
    folder: the folder of the cache.
    needed: bytes to write.
    keep: a file to leave.

  Returns:
    Why they do not fit; '' if they do.

  Raises:
    OSError: the folder cannot be read.
    errors.InputError: the environment sets a limit that is not a number.
  """
  most, oldest = limit('DNT_CACHE_GB') * 1e9, time.time() - limit('DNT_CACHE_DAYS') * 86400
  held = files_in(folder)
  total = sum(file.size for file in held)
  where = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
  removable = sum(file.size for file in held if file.path != keep)
  possible = total - removable + needed <= most and needed <= shutil.disk_usage(where).free + removable
  for file in held:
    fits = not possible or (total + needed <= most and needed <= shutil.disk_usage(where).free)
    if (not fits or file.used < oldest) and file.path != keep and remove(file.path):
      total -= file.size
  free = shutil.disk_usage(where).free
  if needed > free:
    return f'{math.ceil(needed / 1e6):,} MB do not fit on the disk, which has {free / 1e6:,.0f} MB left'
  if total + needed > most:
    return (
      f'with {math.ceil(needed / 1e6):,} MB more, the cache would take more than DNT_CACHE_GB={most / 1e9:g} allows'
    )
  return ''


def remove(path: pathlib.Path) -> bool:
  """Removes a file, unless a process uses it or writes to it; returns whether it did."""
  if not path.exists():
    return False
  try:
    with filelock.FileLock(_lock_path(path)).acquire(blocking=False), path.open('rb') as file:
      with contextlib.suppress(OSError):  # the file system has no locks
        try:
          fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
          return False
      path.unlink()
      # A process that already waits for this lock may become a second writer. Readers find the blocks that it spoils.
      _lock_path(path).unlink(missing_ok=True)
  except (OSError, NotImplementedError, filelock.Timeout):
    return False
  return True


def _lock_path(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f'{path.name}.lock')
