"""Features on disk: a file of equal records, an example each, that grows while they are computed.

Its length says how far that has come, so that what an interrupted run has computed is not computed again.
"""

import contextlib
import fcntl
import pathlib
from collections.abc import Callable, Iterator

import numpy as np


def record(shape: tuple[int, ...]) -> np.dtype:
  """The dtype of a record: `label` int32, and `features` float32 of the shape."""
  return np.dtype([('label', '<i4'), ('features', '<f4', shape)])


def count(path: pathlib.Path, dtype: np.dtype) -> int:
  """Whole records in the file; none where there is no file."""
  return path.stat().st_size // dtype.itemsize if path.exists() else 0


def read(path: pathlib.Path, dtype: np.dtype, records: int) -> tuple[np.ndarray, np.ndarray]:
  """The first records, in memory: features float32 [records, ...] and labels int32 [records].

  Raises:
    OSError: the file cannot be read.
    ValueError: it holds fewer.
  """
  if not records:
    return np.empty((0, *dtype['features'].shape), np.float32), np.empty(0, np.int32)
  held = np.memmap(path, dtype, 'r', shape=(records,))
  return np.array(held['features']), np.array(held['label'])


@contextlib.contextmanager
def growing(
  path: pathlib.Path, dtype: np.dtype, wait: Callable[[], None]
) -> Iterator[Callable[[int, np.ndarray, np.ndarray], None]]:
  """Opens the file for one process at a time to add records to.

  Args:
    path: of the file, made with its folder where it is not there.
    dtype: of `record`.
    wait: called before this waits for another process that adds to the file.

  Yields:
    `write(start, features, labels)`: records from number `start` on; those that were behind it are gone.

  Raises:
    OSError: the file cannot be written.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('ab') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      wait()
      fcntl.flock(file, fcntl.LOCK_EX)

    def write(start, features, labels):
      records = np.empty(len(labels), dtype)
      records['features'], records['label'] = features, labels
      file.truncate(start * dtype.itemsize)
      file.write(records.tobytes())
      file.flush()

    yield write
