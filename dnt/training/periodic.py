"""When something happens in a run: at the steps nearest to the multiples of a period, which need not be whole."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Every:
  """A recurring event.

  Attributes:
    period: steps between two events (11.2 for an epoch of 11.2 steps); 0: never.
  """

  period: float

  def due(self, step: int) -> bool:
    """Whether the event falls on the moment when `step` steps are done; never at 0."""
    return self.period > 0 and step > 0 and self.next(step - 1) == step

  def next(self, step: int) -> int | None:
    """The first step after `step` on which the event falls; None when it never happens."""
    if not self.period:
      return None
    count = max(1, int(step / self.period))
    while (at := int(count * self.period + 0.5)) <= step:
      count += 1
    return at
