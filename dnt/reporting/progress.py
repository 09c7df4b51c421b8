"""Shows the progress of a run or of a count of images, and formats metrics and durations."""

import collections
import math
import time
from collections.abc import Callable, Mapping

from dnt.config import measures
from dnt.reporting import metric_names, terminal


class Progress:
  """Shows the progress line of a run."""

  def __init__(
    self,
    total_steps: int,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      total_steps: steps of the whole run.
      clock: returns increasing seconds.
    """
    self._total = total_steps
    self._clock = clock
    self._status = terminal.StatusLine(clock)
    self._began = math.inf  # time of the first update
    # (time, step) of the second half of that time, one a second, for the ETA.
    self._recent: collections.deque[tuple[float, int]] = collections.deque()

  def update(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
    """Shows the position of the run, if the last update was long enough ago.

    Args:
      step: optimizer steps done.
      epoch: passes over the training split done.
      values: `loss`, `accuracy` (in [0, 1]) and those of `metric_names.SPEED`, if they are known.
    """
    now = self._clock()
    self._began = min(self._began, now)
    if not self._recent or now - self._recent[-1][0] >= 1.0:
      self._recent.append((now, step))
    # Long enough that evaluations count with their share: after one, a short window would take it for the usual step.
    window = min(max((now - self._began) / 2, 60.0), 3600.0)
    while len(self._recent) > 1 and now - self._recent[1][0] >= window:
      self._recent.popleft()
    self._status.update(self._format(now, step, epoch, values), at_once=step >= self._total)

  def close(self) -> None:
    """Closes the progress line and leaves its last state on screen."""
    self._status.close(leave=True)

  def _format(self, now: float, step: int, epoch: float, values: Mapping[str, float]) -> str:
    parts = [f'step {step}/{self._total}', f'epoch {epoch:.1f}']
    if 'loss' in values:
      parts.append(f'loss {values["loss"]:.4f}')
    if 'accuracy' in values:
      parts.append(f'accuracy {100 * values["accuracy"]:.2f} %')
    if 'images_per_second' in values:
      parts.append(f'{values["images_per_second"]:,.0f} images/s')
    for name, shown in (('input_wait', 'data wait'), ('mfu', 'MFU')):
      if values.get(name, 0.0) >= 0.005:
        parts.append(f'{shown} {format_value(name, values[name])}')
    if values.get('compile_seconds', 0.0) >= 0.5:
      parts.append(f'compilation {format_duration(values["compile_seconds"])}')
    then, first = self._recent[0]
    if first < step < self._total:
      parts.append(f'ETA {format_duration((self._total - step) * (now - then) / (step - first))}')
    return '  '.join(parts)


class Count:
  """Shows a status line that counts images: how many are done, how many per second, and the remaining time.

  It prints `what 320/999  12 images/s  ETA 57 s`, and nothing before the first and after the last image, or where the
  work is short.
  """

  def __init__(
    self,
    what: str,
    total: int,
    done: int = 0,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      what: text in front of the count.
      total: total number of images.
      done: number of images that were done before; they do not count for the rate.
      clock: returns increasing seconds.
    """
    self._what, self._total, self._first = what, total, done
    self._clock, self._start = clock, clock()
    self._status = terminal.StatusLine(clock, at_start=False)

  def update(self, done: int) -> None:
    """Shows that `done` images are done, if the last update was long enough ago."""
    if self._first < done < self._total:
      rate = (done - self._first) / max(self._clock() - self._start, 1e-9)
      pace = f'{format_value("images_per_second", rate)} images/s  ETA {format_duration((self._total - done) / rate)}'
      self._status.update(f'{self._what} {done}/{self._total}  {pace}')

  def close(self) -> None:
    """Clears the status line."""
    self._status.close()


def format_value(name: str, value: float | None) -> str:
  """Formats a metric: accuracies and fractions of time in percent, learning rates short, others with four decimals."""
  if value is None or not math.isfinite(value):
    return 'not finite'
  quantity = metric_names.parse(name).quantity
  if quantity in measures.FRACTIONS:
    return f'{100 * value:.2f} %'
  if quantity in ('input_wait', 'mfu'):
    return f'{100 * value:.0f} %'
  if quantity == 'learning_rate':
    return f'{value:.3g}'
  return f'{value:,.0f}' if quantity == 'images_per_second' else f'{value:.4f}'


def format_values(values: Mapping[str, float | None]) -> str:
  """Formats metrics by name as one line; a balanced accuracy only if it differs from the accuracy beside it."""
  shown = {name: format_value(name, value) for name, value in values.items()}

  def repeats(name):
    balanced = 'balanced_accuracy'
    return name.endswith(balanced) and shown[name] == shown.get(f'{name.removesuffix(balanced)}accuracy')

  return '  '.join(f'{name} {text}' for name, text in shown.items() if not repeats(name))


def format_duration(seconds: float) -> str:
  """Formats seconds in words: '8 s', '3 min 05 s', '2 h 04 min', '3 d 02 h'."""
  seconds = max(round(seconds), 0)
  for size, unit, smaller, name in ((86400, 'd', 3600, 'h'), (3600, 'h', 60, 'min'), (60, 'min', 1, 's')):
    if seconds >= size:
      return f'{seconds // size} {unit} {seconds % size // smaller:02d} {name}'
  return f'{seconds} s'
