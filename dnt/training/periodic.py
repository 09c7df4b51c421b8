"""Schedules a recurring event at the steps nearest to the multiples of a period, which may be fractional."""

import dataclasses

from dnt.config import durations


@dataclasses.dataclass(frozen=True)
class Every:
  """Represents a recurring event.

  Attributes:
    period: steps between two events (11.2 for an epoch of 11.2 steps); 0: never.
  """

  period: float

  def due(self, step: int) -> bool:
    """Returns whether the event is due after `step` steps; it is never due at 0."""
    return self.period > 0 and step > 0 and self.next(step - 1) == step

  def next(self, step: int) -> int | None:
    """Returns the first step after `step` at which the event is due; None if it never is."""
    if not self.period:
      return None
    count = max(1, int(step / self.period))
    while (at := durations.nearest(count * self.period)) <= step:
      count += 1
    return at
