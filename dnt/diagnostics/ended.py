"""Says what went wrong in a run that has ended, and when, from its record, telemetry and checkpoints.

It uses the words of the doctor, which examines a network before it trains.
"""

import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from dnt import checkpoints, errors
from dnt import workdir as workdir_lib
from dnt.data import splits
from dnt.diagnostics import causes, doctor, trial
from dnt.diagnostics.verdicts import Kind
from dnt.reporting import metric_names, metrics
from dnt.weights import pretrained

SMOOTHED = 5  # lines of the record over which a loss is averaged
ABOVE = 1.05  # smoothed loss over its smallest value, from which it has begun to rise
GAP = 0.1  # accuracy of the training split above that of another, from which it is named
WORSE = 1.1  # last loss of a split over its smallest one, from which it is named


class Ended(NamedTuple):
  """Describes how a run has ended.

  Attributes:
    state: healthy, doubtful (it learns, but something is wrong) or sick.
    kind: what went wrong first; trainable if nothing did.
    entry: the entry where it begins, if telemetry shows it.
    step: the step at which it begins, 0 if it was there from the start; None for a run that is not sick.
    lines: what the record shows, one line each.
  """

  state: str
  kind: Kind
  entry: str | None
  step: int | None
  lines: tuple[str, ...]


def read(workdir: pathlib.Path) -> Ended:
  """Reads what a run has left.

  Args:
    workdir: folder of a run of `dnt.main`.

  Raises:
    errors.InputError: the folder holds no run, its config or record is damaged, or its record has no step.
  """
  if not (workdir / workdir_lib.CONFIG).exists():
    raise errors.InputError(f'{workdir} holds no run: there is no {workdir_lib.CONFIG}')
  config = pretrained.read_run_config(workdir)
  lines = [line for line in metrics.read(workdir) if 'train/loss' in line or not metric_names.is_training(line)]
  if not any(map(metric_names.is_training, lines)):
    raise errors.InputError(f'{workdir / workdir_lib.METRICS} has no line of training, so nothing can be said')
  return judge(config.to_dict(), lines, checkpoints.ReadOnly(workdir).steps())


def judge(config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], saved: Sequence[int]) -> Ended:
  """Judges a run by its record.

  Args:
    config: its config, in JSON values.
    lines: of its record, see `metrics.read`; some of them of training, each with its loss.
    saved: the steps of its checkpoints.
  """
  course, evaluated = _course(lines), [line for line in lines if not metric_names.is_training(line)]
  signal, lost = _signal(lines), _not_finite(evaluated)
  worse = _generalization(evaluated, config['data']['train_split'], course)
  classes = config['model']['num_classes']
  evaluations = _evaluations(evaluated)
  learning = _of_losses(course, classes, evaluations)
  first = _first(learning, signal)
  if lost and not first:
    first = _Finding(Kind.EXPLODING, min(lost.values()))
  messages = _overview(course, config, saved)
  if first and first.kind == Kind.LARGE_STEP:  # units that die after the loss has begun to rise are an effect
    messages += [first.reason, 'a smaller config.optim.learning_rate, a warm-up or clipping may help']
  if signal and (not first or first.kind != Kind.LARGE_STEP or signal.step <= first.step):
    messages.append(f'step {signal.step}: {signal.kind} from {signal.entry} on: {signal.reason}')
  messages += [f'{name} is not finite from the evaluation of step {step} on' for name, step in lost.items()]
  flattered = [each for each in evaluations if each.is_flattered(classes)]
  messages += [
    f'{each.split}/balanced_accuracy is {100 * each.balanced:.0f} % at step {each.step} (predicting one class alone '
    f'gives {100 / classes:.2g} %), though {each.split}/accuracy is {100 * each.accuracy:.0f} %'
    for each in flattered
  ]
  messages += worse
  if not first:
    fallen, early = _fallen(course, 1 / classes), _is_early(course, classes)
    messages += [fallen] if fallen else []
    messages += ['that is too early to say whether it learns'] if early else []
    doubtful = worse or fallen or signal or early or any(each.step >= trial.STEPS for each in flattered)
    return Ended(trial.DOUBTFUL if doubtful else trial.HEALTHY, Kind.TRAINABLE, None, None, tuple(messages))
  if good := _good(saved, first, learning, course, lost):
    messages.append(f'the checkpoint of step {good[-1]} is from before')
  return Ended(trial.SICK, first.kind, first.entry, first.step, tuple(messages))


class _Course(NamedTuple):
  """Describes how a training went, with one value for each line of training.

  Attributes:
    steps: the steps of the lines.
    losses: of the batches, [lines] float64; NaN where one is not finite.
    accuracies: of the batches, [lines] float64; 0 where a line has none.
    broken: place of the first loss that is not finite; None: all are.
    smooth: the losses before it, see `_smoothed`.
  """

  steps: list[int]
  losses: np.ndarray
  accuracies: np.ndarray
  broken: int | None
  smooth: np.ndarray

  def until(self, step: int) -> np.ndarray:
    """Returns which lines are of the last steps up to one, or to the line before it (else the first): bool [lines]."""
    steps = np.array(self.steps)
    latest = max((each for each in self.steps if each <= step), default=self.steps[0])
    return (steps <= latest) & (steps > latest - trial.LAST_TRIED)

  def best(self) -> int:
    """Returns the place of the line up to which the accuracy of the last steps was the highest.

    The last steps of a line before `trial.LAST_TRIED` would be few, so that it counts only if all lines are.
    """
    steps, sums = np.array(self.steps), np.cumsum([0.0, *self.accuracies])
    ends = np.arange(1, len(steps) + 1)
    starts = np.minimum(np.searchsorted(steps, steps - trial.LAST_TRIED, side='right'), ends - 1)
    means = (sums[ends] - sums[starts]) / (ends - starts)
    whole = steps >= min(trial.LAST_TRIED, steps[-1])
    return int(np.where(whole, means, -np.inf).argmax())


def _course(lines: Sequence[Mapping[str, Any]]) -> _Course:
  trained = [line for line in lines if metric_names.is_training(line)]
  losses = np.array([math.nan if line['train/loss'] is None else line['train/loss'] for line in trained], float)
  accuracies = np.array([line.get('train/accuracy') or 0.0 for line in trained], float)
  broken = next((place for place, loss in enumerate(losses) if not math.isfinite(loss)), None)
  return _Course([line['step'] for line in trained], losses, accuracies, broken, _smoothed(losses[:broken]))


def _overview(course: _Course, config: Mapping[str, Any], saved: Sequence[int]) -> list[str]:
  """Returns lines that say how far a run came, whatever is wrong with it."""
  steps, losses, uniform = course.steps, course.losses, math.log(config['model']['num_classes'])
  messages = [
    f'{steps[-1]} of {config["train"]["steps"]} steps, loss {losses[0]:.3g} to {losses[-1]:.3g} (uniform '
    f'prediction: {uniform:.3g}), accuracy of the batches {100 * course.accuracies[-1]:.0f} %'
  ]
  if saved:
    messages.append(f'checkpoints: {", ".join(map(str, saved))}')
  if course.broken is not None:
    since = steps[course.broken]
    later = f'the loss is not finite from step {since} on'
    messages.append('the first loss is not finite, before any update' if since == 1 else later)
  return messages


class _Finding(NamedTuple):
  """Describes what makes a run sick, or a sick signal of its telemetry.

  Attributes:
    kind: what is wrong.
    step: the step at which it begins; 0: it was there from the start.
    entry: the entry where it begins; None: only telemetry shows that.
    reason: what shows it; '' if other lines say it.
  """

  kind: Kind
  step: int
  entry: str | None = None
  reason: str = ''


class _Evaluation(NamedTuple):
  """Describes the last evaluation of a split.

  Attributes:
    split: its name.
    step: of the evaluation.
    accuracy: the fraction of its images that are right.
    balanced: its balanced accuracy.
    auroc: None if it was not measured.
  """

  split: str
  step: int
  accuracy: float
  balanced: float
  auroc: float | None

  def is_flattered(self, classes: int) -> bool:
    """Whether its accuracy shows learning only because classes are unequal: its balanced accuracy does not."""
    return self.balanced < trial.limit(1 / classes) <= self.accuracy


def _evaluations(evaluated: Sequence[Mapping[str, Any]]) -> list[_Evaluation]:
  """Returns the last evaluation of each split that has a balanced accuracy, which older versions did not measure.

  Those of averaged parameters are left out: they lag behind the network.
  """
  last = {}
  for line in evaluated:
    for name, value in line.items():
      split, _, quantity = name.rpartition('/')
      if quantity != 'balanced_accuracy' or split.endswith(metric_names.AVERAGED):
        continue
      if value is not None and (accuracy := line.get(f'{split}/accuracy')) is not None:
        last[split] = _Evaluation(split, line['step'], accuracy, value, line.get(f'{split}/auroc'))
  return list(last.values())


def _of_losses(course: _Course, classes: int, evaluations: Sequence[_Evaluation]) -> _Finding | None:
  """Returns what the losses and accuracies show to be wrong; None: the network learns.

  If the loss neither breaks nor rises, the first of these rules that holds decides whether the network is stuck:
    1. It learns if the balanced accuracy of an evaluation is at least `trial.limit`, and the accuracy of the batches,
       which class weights may cost, has not fallen since.
    2. It is stuck, predicting one class alone, if after `trial.STEPS` steps or more an evaluation is flattered by its
       accuracy, its AUROC is low, the accuracy of the batches is the same, and their loss no less than that of always
       predicting the frequencies of the classes. For that accuracy it is least with two classes: their entropy.
    3. It is stuck if the accuracy of the batches is below `trial.limit`, but for a short run whose loss falls,
       or that is too early to say (`_is_early`). If it had learnt, and the loss has risen since, the steps became too
       large.
  """
  steps, losses, smooth = course.steps, course.losses, course.smooth
  if course.broken == 0:  # without a line from before, nothing shows that the steps did it
    return _Finding(Kind.EXPLODING, 0 if steps[0] == 1 else steps[0])
  guessing, last = math.log(classes), course.until(steps[-1])
  if course.broken or losses[last].mean() > causes.RISEN * max(guessing, smooth.min()):
    return _too_large(course)
  accuracy, limit = course.accuracies[last].mean(), trial.limit(1 / classes)
  if any(
    each.balanced >= limit and accuracy > course.accuracies[course.until(each.step)].mean() - causes.NOISE
    for each in evaluations
  ):
    return None
  guesses = losses[last].mean() >= causes.STAYS * (special.entr(accuracy) + special.entr(1 - accuracy))
  alone = guesses and any(
    each.is_flattered(classes)
    and each.step >= trial.STEPS
    and (each.auroc or 0) < trial.limit(1 / 2)
    and abs(each.accuracy - accuracy) <= causes.NOISE
    for each in evaluations
  )
  if alone:
    return _Finding(Kind.STUCK, 0)
  lags = steps[-1] >= trial.STEPS or not (_falls(course, classes) or _is_early(course, classes))
  if accuracy < limit and lags:
    then = course.until(steps[course.best()])
    risen = losses[last].mean() > causes.RISEN * losses[then].mean()
    return _too_large(course) if course.accuracies[then].mean() >= limit and risen else _Finding(Kind.STUCK, 0)
  return None


def _too_large(course: _Course) -> _Finding:
  """Returns the finding of steps that became too large where the loss was about its smallest last."""
  rise = _rise(course.smooth)
  reason = f'the loss rises from step {course.steps[rise]} on, where it was {course.smooth[rise]:.3g}'
  return _Finding(Kind.LARGE_STEP, course.steps[rise], reason=reason)


def _fallen(course: _Course, guessing: float) -> str:
  """Says that the network has lost half of what it had learnt; '' if it has not.

  Args:
    course: of the training.
    guessing: the accuracy of guessing.
  """
  at = course.steps[course.best()]
  best, last = (course.accuracies[course.until(step)].mean() for step in (at, course.steps[-1]))
  if last - guessing >= (best - guessing) / 2 or best - last < causes.NOISE:
    return ''
  return f'the accuracy of the batches falls from {100 * best:.0f} % at step {at} to {100 * last:.0f} %'


def _is_early(course: _Course, classes: int) -> bool:
  """Whether the loss of a few steps, or of a short run with one line, is that of guessing: it shows nothing."""
  few = course.steps[-1] < (trial.STEPS if len(course.steps) == 1 else trial.LAST_TRIED)
  return few and course.broken is None and not _falls(course, classes)


def _falls(course: _Course, classes: int) -> bool:
  """Whether the loss of the last steps is below the first one, or below guessing: enough for a short run."""
  last = course.until(course.steps[-1])
  return course.losses[last].mean() < causes.FALLS * np.min(course.losses[~last][:1], initial=math.log(classes))


def _signal(lines: Sequence[Mapping[str, Any]]) -> _Finding | None:
  """Returns the first sick signal of the telemetry; None: it shows none."""
  for line in lines:
    step, found = line['step'], metric_names.from_metrics(line)
    for row in found:
      for value, what in ((row.dead, 'of its units are dead'), (row.saturated, 'of its activations are saturated')):
        if value is not None and value > doctor.DEAD:
          return _Finding(Kind.DEAD, step, row.entry, f'{100 * value:.0f} % {what}')
    norms = [(row.entry, row.output_gradient_norm) for row in found[:-1] if row.output_gradient_norm is not None]
    if len(norms) < 2:
      continue
    lost = next((entry for entry, norm in reversed(norms) if not math.isfinite(norm)), None)
    if lost:
      return _Finding(Kind.EXPLODING, step, lost, 'its gradient is not finite')
    (first, first_norm), (_, last_norm) = norms[0], norms[-1]
    if not last_norm:  # a head that starts at zero passes none on at first
      continue
    ratio = first_norm / last_norm
    if ratio < doctor.VANISHING:
      return _Finding(Kind.VANISHING, step, first, f'the gradient shrinks to {ratio:.1e} of its size on the way there')
    if ratio > doctor.EXPLODING:
      return _Finding(Kind.EXPLODING, step, first, f'the gradient grows to {ratio:.1e} times its size on the way there')
  return None


def _first(losses: _Finding | None, signal: _Finding | None) -> _Finding | None:
  """Returns what came first, the finding of the losses or the signal; None: a signal alone makes no run sick.

  A network that learns until its loss rises has learnt in spite of a gradient that vanishes, or of dead units.
  """
  if not losses or not signal:
    return losses
  if losses.kind == Kind.LARGE_STEP and (signal.kind != Kind.EXPLODING or signal.step > losses.step):
    return losses
  return signal if losses.kind == Kind.STUCK or signal.step <= losses.step else losses


def _good(
  saved: Sequence[int], first: _Finding, learning: _Finding | None, course: _Course, lost: Mapping[str, int]
) -> list[int]:
  """Returns the steps of the checkpoints from before anything was wrong.

  Args:
    saved: the steps of all.
    first: what went wrong first.
    learning: from `_of_losses`.
    course: of the training.
    lost: see `_not_finite`; an evaluation sees the checkpoint of its own step.
  """
  if course.broken == 0:  # the first loss is that of the start
    return []
  since = [each.step for each in (first, learning) if each]
  return [step for step in saved if all(step <= each for each in since) and step < min(lost.values(), default=math.inf)]


def _losses(evaluated: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float | None]]]:
  """Returns the losses of evaluations by name, each with its step; None: it is not finite."""
  found: dict[str, list[tuple[int, float | None]]] = {}
  for line in evaluated:
    for name, value in line.items():
      if name.endswith('/loss'):
        found.setdefault(name, []).append((line['step'], value))
  return found


def _not_finite(evaluated: Sequence[Mapping[str, Any]]) -> dict[str, int]:
  """Returns the losses that are not finite in their last evaluation, each with the step from which on none is."""
  found = {}
  for name, losses in _losses(evaluated).items():
    end = list(itertools.takewhile(lambda each: each[1] is None, reversed(losses)))
    if end:
      found[name] = end[-1][0]
  return found


def _generalization(evaluated: Sequence[Mapping[str, Any]], train_split: str, course: _Course) -> list[str]:
  """Returns a line for each split on which a run is worse than it was, or than on its training images.

  Args:
    evaluated: lines of evaluations.
    train_split: `config.data.train_split`; splits that share images with it are left out.
    course: of the training.
  """
  messages = []
  for name, losses in sorted(_losses(evaluated).items()):
    split = name.removesuffix('/loss')
    found = [(step, loss) for step, loss in losses if loss is not None]
    if losses[-1][1] is None or splits.parse(split.removesuffix(metric_names.AVERAGED)).overlaps(
      splits.parse(train_split)
    ):
      continue
    best_step, best = min(found, key=lambda each: each[1])
    if found[-1][1] > WORSE * best:
      before, after = (course.losses[course.until(step)].mean() for step in (best_step, course.steps[-1]))
      overfits = ': it overfits from there on' if after < WORSE * before else ''
      messages.append(f'{name} rises from {best:.3g} at step {best_step} to {found[-1][1]:.3g}{overfits}')
    accuracy = [line[f'{split}/accuracy'] for line in evaluated if line.get(f'{split}/accuracy') is not None]
    if accuracy and course.accuracies[-1] - accuracy[-1] > GAP:
      messages.append(
        f'{split}/accuracy is {100 * accuracy[-1]:.0f} %, that of the batches {100 * course.accuracies[-1]:.0f} %'
      )
  return messages


def _smoothed(losses: np.ndarray) -> np.ndarray:
  """Returns the mean of each loss and those before it, at most `SMOOTHED`."""
  return np.array([losses[max(0, end - SMOOTHED) : end].mean() for end in range(1, len(losses) + 1)] or [math.inf])


def _rise(smooth: np.ndarray) -> int:
  """Returns the last place at which a smoothed loss was about its smallest."""
  return int(np.flatnonzero(smooth <= ABOVE * smooth.min())[-1])


def text(workdir: pathlib.Path, found: Ended) -> str:
  """Formats what `read` returns as lines."""
  where = f' from {found.entry} on' if found.entry else ''
  when = '' if found.step is None else f', at step {found.step}' if found.step else ', from the start'
  return '\n'.join([f'{workdir}: {found.state}; {found.kind}{where}{when}', *(f'  {line}' for line in found.lines)])
