"""Computes which events are due at which step of a run, and how many steps fit in before the next event."""

from dnt.training import experiment, periodic


class Calendar:
  """Schedules the recurring events of a run. The schedule is the same after a resume, so the same programs run.

  Attributes:
    total: the last step.
  """

  def __init__(self, run: experiment.Experiment):
    """Args: run: the experiment, whose config holds the periods."""
    config = run.config
    self.total: int = config.train.steps
    self._evaluation, self._checkpoint = run.every(config.eval.every), run.every(config.checkpoint.every)
    self._telemetry, self._log = run.every(config.telemetry.every), run.every(config.train.log_every)
    self._dispatch = periodic.Every(config.train.steps_per_dispatch)
    self._starts = [phase.start for phase in run.phases]

  def evaluates(self, step: int) -> bool:
    """Returns whether an evaluation is due after `step` steps."""
    return self._evaluation.due(step) or step == self.total

  def saves(self, step: int) -> bool:
    """Returns whether a checkpoint is due after `step` steps."""
    return self._checkpoint.due(step)

  def shows_telemetry(self, step: int) -> bool:
    """Returns whether step number `step` records telemetry; such a step runs as a program of its own."""
    return self._telemetry.due(step)

  def steps_at_once(self, step: int, most: int) -> int:
    """Returns how many steps the run may take after `step` before another event is due.

    Args:
      step: steps done, less than `total`.
      most: the largest number of steps that the loader supplies at once.
    """
    if self.shows_telemetry(step + 1):
      return 1
    events = (self._evaluation, self._checkpoint, self._log, self._dispatch)
    upcoming = [at for event in events if (at := event.next(step)) is not None]
    upcoming += [start for start in self._starts if start > step]
    if (shown := self._telemetry.next(step)) is not None:
      upcoming.append(shown - 1)
    return min(self.total - step, most, min(upcoming) - step)
