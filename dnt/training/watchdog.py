"""Says what every process does when a part of the run takes ten times as long as usual; the run itself goes on.

A thread of the lead looks at the run's clock twice a second, so that a step does nothing for it. `parallel.peers` knows
what the other processes do.
"""

import logging
import statistics
import threading
import time

from dnt.parallel import activity, multihost, peers
from dnt.training import record

FACTOR = 10  # times the usual duration after which a part of the run is late
LEAST = 3.0  # seconds before which nothing is late
SAMPLES = 3  # durations from which the usual one is known
_POLL = 0.5  # seconds between two looks at the clock
_SILENT = 3 * peers.BEAT  # seconds without a message after which a process does not answer
_LAPS = {  # the clock's name of each phase, and the words for its part of the run
  activity.READ: ('train', 'the step after'),
  activity.WAIT: ('train', 'the step after'),
  activity.EVALUATE: ('evaluate', 'the evaluation after'),
  activity.SAVE: ('checkpoint', 'the checkpoint of'),
}
_log = logging.getLogger(__name__)


class Watchdog:
  """Context in which the run is watched; it does nothing in processes that are not the lead."""

  def __init__(self, clock: record.Clock):
    self._clock, self._ended = clock, threading.Event()
    self._mark, self._again = clock.mark, 0.0  # when the present part began, and its seconds at which to speak again
    self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)

  def __enter__(self) -> 'Watchdog':
    if multihost.is_lead():
      self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._ended.set()
    if self._thread.is_alive():
      self._thread.join()
      self._note_progress()

  def _watch(self) -> None:
    while not self._ended.wait(_POLL):
      self._look()

  def _look(self) -> None:
    """Logs what the processes do if the present part of the run is late, and again whenever its time has doubled."""
    self._note_progress()
    mark, own = self._mark, activity.describe()
    name, part = _LAPS.get(own['phase'], ('', ''))
    laps, seconds = [*self._clock.laps[name]] if name else [], time.monotonic() - mark
    if len(laps) < SAMPLES:
      return
    usual = statistics.median(lap / parts for lap, parts in laps) * max(parts for _, parts in laps)
    if seconds < max(FACTOR * usual, LEAST, self._again):
      return
    self._again = 2 * seconds
    _log.info('\n'.join(_describe(f'{part} step {own["step"]} takes {seconds:.1f} s, {usual:.2g} s is usual', own)))

  def _note_progress(self) -> None:
    """Logs that the run goes on if the part that was late has ended."""
    mark = self._clock.mark
    if mark != self._mark:
      if self._again:
        _log.info(f'the run goes on after {mark - self._mark:.1f} s')
      self._mark, self._again = mark, 0.0


def _describe(late: str, own: activity.Description) -> list[str]:
  """Returns lines that say what is late, whom it waits for, and what every process does."""
  watched = peers.current()
  if watched is None:
    return [f'{late}: the process {_text(own)}']
  everyone = {0: (own, 0.0), **watched.describe()}
  last = max(description['step'] for description, _ in everyone.values())
  slow = [
    watched.name(process)
    for process, (description, silent) in everyone.items()
    if silent > _SILENT or description['phase'] != activity.WAIT or description['step'] < last
  ]
  waits = f'; waiting for {", ".join(slow)}' if 0 < len(slow) < len(everyone) else ''
  lines = [
    f'  {watched.name(process)} {_text(description, silent)}' for process, (description, silent) in everyone.items()
  ]
  return [f'{late}{waits}', *lines]


def _text(description: activity.Description, silent: float = 0.0) -> str:
  shown = f'{description["phase"]} after step {description["step"]} for {description["seconds"]:.1f} s'
  shown = f'{shown}, at {description["at"]}'
  return f'has not answered for {silent:.1f} s; its last message: {shown}' if silent > _SILENT else shown
