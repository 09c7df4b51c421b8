"""Writes the record of a run, `metrics.jsonl`, and TensorBoard's event files beside it.

Plots, reports and tables are made from the jsonl file.
"""

import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dnt import errors, files
from dnt import workdir as workdir_lib
from dnt.parallel import multihost

CHANGED = 'changed'  # in the lines of `Writer.note`


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """Reads the lines of a run's `metrics.jsonl`, oldest first; returns an empty list if there is no file.

  It leaves out a last line that is incomplete because the process was cut off while writing it.

  Raises:
    errors.InputError: a line is not a JSON object with a step.
  """
  path = pathlib.Path(workdir) / workdir_lib.METRICS
  if not path.exists():
    return []
  lines = path.read_text().splitlines()
  records = []
  for number, line in enumerate(lines, 1):
    try:
      record = json.loads(line)
      record['step'] = int(record['step'])
    except (ValueError, TypeError, KeyError):
      if number == len(lines):
        break
      raise errors.InputError(f'{path}:{number} is not a JSON object with a step; delete that line') from None
    records.append(record)
  return records


class Writer:
  """Appends to `metrics.jsonl` and to TensorBoard's event files; only the first process writes."""

  def __init__(self, workdir: str | os.PathLike, start_step: int, evaluated_at: int | None = None):
    """Opens the record at the step from which the run continues.

    Lines after `start_step` come from a run that was cut off after its last checkpoint. The writer drops them, since
    the run takes these steps (and writes their lines) again; also those of `note` at `start_step`, which say how these
    steps differ. A run from step 0 starts an empty record.

    Args:
      workdir: an existing, writable directory.
      start_step: the step of the restored state; 0 for a new run.
      evaluated_at: the step of its last evaluation; a later one is dropped too, as it will be done again. None:
        `start_step`.
    """
    self._path = pathlib.Path(workdir) / workdir_lib.METRICS
    self._writes = multihost.is_lead()
    self._start_step = start_step
    self._board = None
    if not self._writes:
      return
    evaluated = start_step if evaluated_at is None else min(evaluated_at, start_step)

    def remains(record):
      last = start_step - 1 if CHANGED in record else evaluated if _is_evaluation(record) else start_step
      return record['step'] <= last

    kept = [record for record in read(workdir) if remains(record)] if start_step else []
    files.write(self._path, ''.join(_line(record) for record in kept))
    self._file = self._path.open('a', encoding='utf-8')

  def write(self, step: int, epoch: float, values: Mapping[str, Any]) -> None:
    """Appends one line and flushes it.

    Args:
      step: optimizer steps done.
      epoch: passes over the training split done, a fraction within one.
      values: name (`train/loss`) to a number; accuracies in [0, 1]. NaN and infinities become null, as JSON has
        neither, and TensorBoard does not get them.

    Raises:
      errors.RunError: the line could not be written; the disk may be full.
    """
    if not self._writes:
      return
    record = {'step': int(step), 'epoch': _number(epoch)} | {name: _number(value) for name, value in values.items()}
    self._append(record, self._to_board)

  def note(self, step: int, epoch: float, changed: Mapping[str, Any]) -> None:
    """Appends a line of what differs in config and data from `step` on.

    Args:
      step: optimizer steps done.
      epoch: passes over the training split done.
      changed: `was` and `now` by key, in JSON values.

    Raises:
      errors.RunError: as in `write`.
    """
    if self._writes:
      self._append({'step': step, 'epoch': _number(epoch), CHANGED: changed})

  def close(self) -> None:
    """Flushes and closes the files."""
    if not self._writes or self._file.closed:
      return
    self._file.close()
    if self._board is not None:
      self._board.close()

  def _append(self, record: Mapping[str, Any], also: Callable[[Mapping[str, Any]], None] = lambda record: None) -> None:
    try:
      self._file.write(_line(record))
      self._file.flush()
      also(record)
    except OSError as error:
      raise errors.RunError(f'{self._path} cannot be written ({error.strerror})') from error

  def _to_board(self, record: Mapping[str, Any]) -> None:
    if self._board is None:
      self._board = _make_board(self._path.parent, self._start_step)
    from tensorboardX.proto import summary_pb2

    # Write one event per line: `add_scalar` makes one per metric, 0.1 ms each, and telemetry has hundreds of metrics.
    held = {name: value for name, value in record.items() if name != 'step' and value is not None}
    summary = summary_pb2.Summary  # ty: ignore[missing-attribute]  # protobuf makes the classes at run time
    values = [summary.Value(tag=name, simple_value=value) for name, value in held.items()]
    self._board.file_writer.add_summary(summary(value=values), record['step'])


def _make_board(workdir: pathlib.Path, start_step: int) -> Any:
  # tensorboardX imports torch if it is installed, which takes seconds and is of no use here.
  hidden = 'torch' not in sys.modules
  if hidden:
    sys.modules['torch'] = None  # ty: ignore[invalid-assignment]  # typeshed lacks None, which forbids the import
  try:
    import tensorboardX
  finally:
    if hidden:
      del sys.modules['torch']
  # purge_step: TensorBoard hides the events that a cut-off run wrote from this step on.
  return tensorboardX.SummaryWriter(str(workdir), purge_step=start_step + 1 if start_step else None, flush_secs=10)


def _is_evaluation(record: Mapping[str, Any]) -> bool:
  return any(name.endswith('/calibration_error') for name in record)  # training lines have none


def _number(value: Any) -> int | float | None:
  """Converts a scalar to a JSON value; a float32 becomes the shortest decimal that reads back as the same float32."""
  if isinstance(value, int | np.integer):
    return int(value)
  value = value if isinstance(value, float) else np.asarray(value)[()]
  value = float(str(value)) if isinstance(value, np.float32) else float(value)
  return value if math.isfinite(value) else None


def _line(record: Mapping[str, Any]) -> str:
  return json.dumps(record, allow_nan=False) + '\n'
