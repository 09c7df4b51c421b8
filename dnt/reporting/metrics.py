"""Writes the record of a run, `metrics.jsonl`, TensorBoard's event files beside it, and the terminal's progress line.

The jsonl file is the record; everything else (plots, reports, tables) is made from it.
"""

import collections
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import numpy as np

from dnt import errors, files
from dnt import workdir as workdir_lib
from dnt.parallel import multihost
from dnt.reporting import terminal


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

  def __init__(self, workdir: str | os.PathLike, start_step: int):
    """Opens the record at the step from which the run continues.

    Lines after `start_step` come from a run that was cut off after its last checkpoint. The writer drops them, since
    the run takes these steps (and writes their lines) again. A run from step 0 starts an empty record.

    Args:
      workdir: an existing, writable directory.
      start_step: the step of the restored state; 0 for a new run.
    """
    self._path = pathlib.Path(workdir) / workdir_lib.METRICS
    self._writes = multihost.is_lead()
    self._start_step = start_step
    self._board = None
    if not self._writes:
      return
    kept = [record for record in read(workdir) if record['step'] <= start_step] if start_step else []
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
    try:
      self._file.write(_line(record))
      self._file.flush()
      self._to_board(record)
    except OSError as error:
      raise errors.RunError(f'{self._path} could not be written ({error.strerror})') from error

  def close(self) -> None:
    """Flushes and closes the files."""
    if not self._writes or self._file.closed:
      return
    self._file.close()
    if self._board is not None:
      self._board.close()

  def _to_board(self, record: Mapping[str, Any]) -> None:
    if self._board is None:
      self._board = _make_board(self._path.parent, self._start_step)
    from tensorboardX.proto import summary_pb2

    # Write one event per line: `add_scalar` makes one per metric, 0.1 ms each, and telemetry has hundreds of metrics.
    held = {name: value for name, value in record.items() if name != 'step' and value is not None}
    values = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in held.items()]
    self._board.file_writer.add_summary(summary_pb2.Summary(value=values), record['step'])


def _make_board(workdir: pathlib.Path, start_step: int) -> Any:
  # tensorboardX imports torch if it is installed, which takes seconds and is of no use here.
  hidden = 'torch' not in sys.modules
  if hidden:
    sys.modules['torch'] = None
  try:
    import tensorboardX
  finally:
    if hidden:
      del sys.modules['torch']
  # purge_step: TensorBoard hides the events that a cut-off run wrote from this step on.
  return tensorboardX.SummaryWriter(str(workdir), purge_step=start_step + 1 if start_step else None, flush_secs=10)


def _number(value: Any) -> int | float | None:
  """Converts a scalar to a JSON value; a float32 becomes the shortest decimal that reads back as the same float32."""
  if isinstance(value, int | np.integer):
    return int(value)
  value = value if isinstance(value, float) else np.asarray(value)[()]
  value = float(str(value)) if isinstance(value, np.float32) else float(value)
  return value if math.isfinite(value) else None


def _line(record: Mapping[str, Any]) -> str:
  return json.dumps(record, allow_nan=False) + '\n'


class Progress:
  """Shows the progress line of a run on the terminal of its first process."""

  def __init__(
    self,
    total_steps: int,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      total_steps: steps of the whole run.
      stream: where to print; None: the standard output.
      clock: returns increasing seconds.
    """
    self._total = total_steps
    self._clock = clock
    self._status = terminal.StatusLine(stream, clock) if multihost.is_lead() else None
    # (time, step) over the last minute, from which the ETA is computed.
    self._recent: collections.deque[tuple[float, int]] = collections.deque()

  def update(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
    """Shows the position of the run, if the last update was long enough ago.

    Args:
      step: optimizer steps done.
      epoch: passes over the training split done.
      values: `loss`, `accuracy` (in [0, 1]) and `images_per_second`, as far as they are known.
    """
    if self._status is None:
      return
    now = self._clock()
    self._recent.append((now, step))
    while len(self._recent) > 2 and now - self._recent[0][0] > 60:
      self._recent.popleft()
    self._status.update(self._format(step, epoch, values), at_once=step >= self._total)

  def print(self, text: str) -> None:
    """Prints lines of their own above the progress line."""
    if self._status is not None:
      self._status.print(text)

  def close(self) -> None:
    """Closes the progress line and leaves its last state on screen."""
    if self._status is not None:
      self._status.close(leave=True)

  def _format(self, step: int, epoch: float, values: Mapping[str, float]) -> str:
    parts = [f'step {step}/{self._total}', f'epoch {epoch:.1f}']
    if 'loss' in values:
      parts.append(f'loss {values["loss"]:.4f}')
    if 'accuracy' in values:
      parts.append(f'accuracy {100 * values["accuracy"]:.2f} %')
    if 'images_per_second' in values:
      parts.append(f'{values["images_per_second"]:,.0f} images/s')
    (then, first), (now, last) = self._recent[0], self._recent[-1]
    if last > first:
      parts.append(f'ETA {duration((self._total - step) * (now - then) / (last - first))}')
    return '  '.join(parts)


class Count:
  """Shows a status line that counts images: how many are done, how many per second, and the remaining time.

  It prints `what 320/999  12 images/s  ETA 57 s`, and nothing before the first and after the last image.
  """

  def __init__(
    self,
    what: str,
    total: int,
    done: int = 0,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      what: what the images are counted for.
      total: number of all images.
      done: number of images that were done before; they do not count for the rate.
      stream: where to print; None: the standard output.
      clock: returns increasing seconds.
    """
    self._what, self._total, self._first = what, total, done
    self._clock, self._start = clock, clock()
    self._status = terminal.StatusLine(stream, clock)

  def update(self, done: int) -> None:
    """Shows that `done` images are done, if the last update was long enough ago."""
    if self._first < done < self._total:
      rate = (done - self._first) / max(self._clock() - self._start, 1e-9)
      pace = f'{figure("images_per_second", rate)} images/s  ETA {duration((self._total - done) / rate)}'
      self._status.update(f'{self._what} {done}/{self._total}  {pace}')

  def print(self, text: str) -> None:
    """Prints lines of their own above the status line."""
    self._status.print(text)

  def close(self) -> None:
    """Clears the status line."""
    self._status.close()


def figure(name: str, value: float | None) -> str:
  """Formats a metric for people: accuracies in percent, learning rates short, all others with four decimals."""
  if value is None or not math.isfinite(value):
    return 'not finite'
  if name.endswith('accuracy'):
    return f'{100 * value:.2f} %'
  if name.endswith('learning_rate'):
    return f'{value:.3g}'
  return f'{value:,.0f}' if name == 'images_per_second' else f'{value:.4f}'


def duration(seconds: float) -> str:
  """Formats seconds in words: '8 s', '3 min 05 s', '2 h 04 min', '3 d 02 h'."""
  seconds = max(round(seconds), 0)
  for size, unit, smaller, name in ((86400, 'd', 3600, 'h'), (3600, 'h', 60, 'min'), (60, 'min', 1, 's')):
    if seconds >= size:
      return f'{seconds // size} {unit} {seconds % size // smaller:02d} {name}'
  return f'{seconds} s'
