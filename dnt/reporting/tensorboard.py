"""Writes TensorBoard's event files, in a thread of its own.

tensorboardX has the messages and the checksum. Its writers are not used: they pass events through a queue for
processes, which needs shared memory, and their thread prints a traceback if the disk is full.
"""

import os
import pathlib
import socket
import struct
import sys
import time
from collections.abc import Mapping
from concurrent import futures
from typing import Any

from dnt import files


class Board:
  """Appends to an event file of this process."""

  def __init__(self, folder: pathlib.Path, start_step: int):
    """Creates the file.

    Args:
      folder: an existing folder.
      start_step: the step from which the run continues; TensorBoard hides the events that a cut-off run wrote later.

    Raises:
      OSError: the file cannot be written.
    """
    self._event, self._checksum = _load()
    name = f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}'
    self._file = (folder / name).open('ab', buffering=0)
    self._thread = futures.ThreadPoolExecutor(1, 'tensorboard')  # the checksum, in Python, takes milliseconds
    self._last = self._submit(file_version='brain.Event:2')
    if start_step:
      self._last = self._submit(step=start_step + 1, session_log={'status': 1})  # START

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends one event with all values.

    Raises:
      OSError: an earlier event could not be written.
    """
    if self._last.done():
      self._last.result()
    # One event per line: one for each metric would take 0.1 ms each, and telemetry has hundreds of metrics.
    summary = {'value': [{'tag': name, 'simple_value': value} for name, value in values.items()]}
    self._last = self._submit(step=step, summary=summary)

  def close(self) -> None:
    """Closes the file.

    Raises:
      OSError: the last events could not be written.
    """
    self._thread.shutdown()
    self._file.close()
    self._last.result()

  def _submit(self, **fields: Any) -> futures.Future[None]:
    return self._thread.submit(self._append, self._event(wall_time=time.time(), **fields).SerializeToString())

  def _append(self, event: bytes) -> None:
    size = struct.pack('<Q', len(event))
    sums = [struct.pack('<I', self._checksum(part)) for part in (size, event)]
    files.append(self._file, size + sums[0] + event + sums[1])


def _load() -> tuple[Any, Any]:
  """Imports the class of events and the checksum."""
  # tensorboardX imports torch if it is installed, which takes seconds and is of no use here.
  hidden = 'torch' not in sys.modules
  if hidden:
    sys.modules['torch'] = None  # ty: ignore[invalid-assignment]  # typeshed lacks None, which forbids the import
  try:
    from tensorboardX import record_writer
    from tensorboardX.proto import event_pb2
  finally:
    if hidden:
      del sys.modules['torch']
  return event_pb2.Event, record_writer.masked_crc32c  # ty: ignore[missing-attribute]  # made at run time
