"""Writes the record of a run, `metrics.jsonl`, and TensorBoard's event files beside it.

Plots, reports and tables are made from the jsonl file.
"""

import contextlib
import json
import logging
import math
import os
import pathlib
import re
from collections.abc import Generator, Iterable, Mapping
from typing import Any

import numpy as np

from dnt import errors, files
from dnt import workdir as workdir_lib
from dnt.parallel import multihost
from dnt.reporting import metric_names, tensorboard

_log = logging.getLogger(__name__)

CHANGED = 'changed'  # in the lines of `Writer.note`


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """Reads the lines of a run's `metrics.jsonl`, oldest first; returns an empty list if there is no file.

  It leaves out a last line that is incomplete because the process was cut off while writing it, and with a message what
  else is damaged at the end.

  Raises:
    errors.InputError: a line is not a JSON object with a step.
  """
  path = pathlib.Path(workdir) / workdir_lib.METRICS
  if not path.exists():
    return []
  lines, records, bad = path.read_bytes().split(b'\n'), [], []
  for number, line in enumerate(lines, 1):
    if not line and number == len(lines):
      break
    try:
      record = json.loads(line)
      record['step'] = int(record['step'])
      if not all(value is None or isinstance(value, int | float) for name, value in record.items() if name != CHANGED):
        raise ValueError
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
      bad.append(number)
      continue
    if bad:
      raise errors.InputError(f'{path}:{bad[0]} is not a JSON object with a step; delete that line')
    records.append(record)
  if bad and (len(bad) > 1 or not lines[-1]):
    _log.info(f'{path} is damaged from line {bad[0]} on; these lines are left out')
  return records


def evaluations(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """Returns the lines of evaluations, of the result of `read`."""
  return [record for record in records if _is_evaluation(record)]


def last_evaluation(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the last evaluation in one line: splits that are evaluated only at the end have a line of their own.

  Args:
    records: the result of `read`.

  Returns:
    `step`, `epoch` and the metrics; empty if there was no evaluation.
  """
  evaluated, last = evaluations(records), {}
  for record in evaluated:
    if record['step'] == evaluated[-1]['step']:
      last |= record
  return last


class Writer:
  """Appends to `metrics.jsonl` and to TensorBoard's event files; only the first process writes."""

  def __init__(
    self,
    workdir: str | os.PathLike,
    start_step: int,
    evaluated_at: int | None = None,
    trained_at: int | None = None,
  ):
    """Opens the record at the step from which the run continues.

    Lines after `start_step` come from a run that was cut off after its last checkpoint. The writer drops them, since
    the run takes these steps (and writes their lines) again; also those of `note` at `start_step`, which say how these
    steps differ. A run from step 0 starts an empty record.

    Args:
      workdir: an existing, writable directory.
      start_step: the step of the restored state; 0 for a new run.
      evaluated_at: the step of its last evaluation; a later one is dropped too, as it will be done again. None:
        `start_step`.
      trained_at: the step of its last training line, likewise.
    """
    self._path = pathlib.Path(workdir) / workdir_lib.METRICS
    self._writes = multihost.is_lead()
    self._start_step = start_step
    self._board: tensorboard.Board | None = None
    self._has_board = self._writes
    if not self._writes:
      return
    evaluated, trained = (start_step if at is None else min(at, start_step) for at in (evaluated_at, trained_at))

    def remains(record):
      if CHANGED in record:
        return record['step'] < start_step
      if _is_evaluation(record):
        return record['step'] <= evaluated
      return record['step'] <= (trained if metric_names.is_training(record) else start_step)

    kept = [record for record in read(workdir) if remains(record)] if start_step else []
    files.write(self._path, ''.join(_line(record) for record in kept))
    self._file = self._path.open('ab', buffering=0)

  def write(self, step: int, epoch: float, values: Mapping[str, Any]) -> None:
    """Appends one line.

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
    self._append(record)
    self._to_board(record)

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
    with self._trying():
      if self._board is not None:
        self._board.close()

  def _append(self, record: Mapping[str, Any]) -> None:
    try:
      files.append(self._file, _line(record).encode())
    except OSError as error:
      raise errors.RunError(f'{self._path} cannot be written ({error.strerror})') from error

  def _to_board(self, record: Mapping[str, Any]) -> None:
    with self._trying():
      if self._has_board:
        # The first line makes the board, so that the first step does not wait for the import.
        self._board = self._board or tensorboard.Board(self._path.parent, self._start_step)
        held = {name: value for name, value in record.items() if name != 'step' and value is not None}
        if _is_evaluation(record):
          # Lines of training have `train/loss` too; as one tag they would be one curve.
          held = {re.sub('^train/', 'train_evaluated/', name): value for name, value in held.items()}
        self._board.write(record['step'], held)

  @contextlib.contextmanager
  def _trying(self) -> Generator[None]:
    """Ends the events for TensorBoard with a line if they cannot be written; `metrics.jsonl` has them too."""
    try:
      yield
    except OSError as error:
      broken, self._board, self._has_board = self._board, None, False
      with contextlib.suppress(OSError):
        if broken is not None:
          broken.close()
      _log.info(f"TensorBoard's event files in {self._path.parent} end here ({error.strerror})")


def _is_evaluation(record: Mapping[str, Any]) -> bool:
  has_accuracy = any(metric_names.parse(name).quantity == 'accuracy' for name in record)
  return has_accuracy and not metric_names.is_training(record)


def _number(value: Any) -> int | float | None:
  """Converts a scalar to a JSON value; a float32 becomes the shortest decimal that reads back as the same float32."""
  if isinstance(value, int | np.integer):
    return int(value)
  value = value if isinstance(value, float) else np.asarray(value)[()]
  value = float(str(value)) if isinstance(value, np.float32) else float(value)
  return value if math.isfinite(value) else None


def _line(record: Mapping[str, Any]) -> str:
  return json.dumps(record, allow_nan=False) + '\n'
