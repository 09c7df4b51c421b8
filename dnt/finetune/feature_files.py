"""Reads and writes feature files: fixed-size records, one per example, appended as features are computed.

The file's length shows how many examples are done, so a run continues where an interrupted one stopped.
"""

import contextlib
import pathlib
from collections.abc import Callable, Generator

import filelock
import numpy as np


def record(shape: tuple[int, ...]) -> np.dtype:
  """Returns the dtype of a record: `label` int32, and `features` float32 of `shape`."""
  return np.dtype([('label', '<i4'), ('features', '<f4', shape)])


def count(path: pathlib.Path, dtype: np.dtype) -> int:
  """Returns the number of whole records in the file; 0 if there is no file."""
  return path.stat().st_size // dtype.itemsize if path.exists() else 0


def read(path: pathlib.Path, dtype: np.dtype, records: int) -> tuple[np.ndarray, np.ndarray]:
  """Reads the first records into memory: features float32 [records, ...] and labels int32 [records].

  Raises:
    OSError: the file cannot be read.
    ValueError: the file holds fewer records.
  """
  if not records:
    return np.empty((0, *dtype['features'].shape), np.float32), np.empty(0, np.int32)
  held = np.memmap(path, dtype, 'r', shape=(records,))
  return np.array(held['features']), np.array(held['label'])


@contextlib.contextmanager
def growing(
  path: pathlib.Path, dtype: np.dtype, wait: Callable[[], None]
) -> Generator[Callable[[int, np.ndarray, np.ndarray], None]]:
  """Opens the file to append records, with a lock that admits one process at a time.

  Args:
    path: path of the file; this function creates the file and its folder if they are missing.
    dtype: the dtype from `record`.
    wait: called before this function waits for another process that holds the lock.

  Yields:
    `write(start, features, labels)`: truncates the file to `start` records and appends the new ones.

  Raises:
    OSError: the file cannot be written.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  lock = filelock.FileLock(path.with_name(f'{path.name}.lock'))
  try:
    held = lock.acquire(blocking=False)
  except filelock.Timeout:
    wait()
    held = lock.acquire()
  with held, path.open('ab') as file:

    def write(start, features, labels):
      records = np.empty(len(labels), dtype)
      records['features'], records['label'] = features, labels
      file.truncate(start * dtype.itemsize)
      file.write(records.tobytes())
      file.flush()

    yield write
