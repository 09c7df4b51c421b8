"""Names why a network does not train, ordered by which problem stops training first, each with its evidence in a line.

The causes come from the first ten steps with telemetry (`first_steps.Examination`) and from the trial (`trial.Trial`).
"""

from typing import Any

import numpy as np

from dnt import config as schema
from dnt import errors
from dnt.config import implied, keys, typed
from dnt.diagnostics import doctor, first_steps, labels, remedies, trial
from dnt.diagnostics.verdicts import Kind, Verdict
from dnt.optim import schedules
from dnt.training import telemetry

# Why updates may be small.
FOLLOWS_FROM = {Kind.DEAD, Kind.CUT_OFF, Kind.SQUASHED, Kind.SCALE, Kind.CLIPPED, Kind.VANISHING}
PULLED = 3.0  # e-folds by which weight decay alone would shrink the kernels in a trial
MOSTLY = 0.3  # part of the weight decay in an update, from which it can be the cause
WHOLLY = 1.0  # the same, from which it is, even if the gradients keep the kernels from shrinking
SHRUNK = 0.3  # norm of the kernels after a trial over that before, from which decay counts as winning
SHRINKS = 0.9  # the same, from which it does after any number of steps
STILL = 0.03  # fraction of their norm by which updates can move parameters in a trial that is too slow
RISEN = 1.5  # loss over the uniform one, or of the first step if that is more, from which steps count as too large
STAYS = 0.9  # loss over that of guessing, from which it has not fallen
LEAP = 2.0  # highest loss over the uniform one or of the first step, from which steps count as too large
ALIKE_DISTANCE = 0.1  # distance (1 - cosine) of two images at the last entries over that of the images themselves
BATCH_NORM_BLAMED_TO = 8  # most images of its statistics with which batch_norm is blamed
MUCH = 1e-2  # update over parameter norm of the median entry that makes a loss far above guessing its work
APART = 30.0  # update ratio of an entry over that of the median one, from which it is named
FALLEN = 0.1  # how much accuracy, on the way from chance to 1, a network has lost since its best steps
RISING = 0.5  # fraction of the peak rate, below which a trial shows the warm-up alone
FALLS = 0.8  # last losses over the first ones and that of guessing, from which the loss falls
NOISE = 0.05  # change of an accuracy over a window that may be chance
WINDOW = 20  # steps over which an accuracy on the way is measured
BOUNDED = 0.1  # least loss that the range of the logits allows over the uniform one, from which they are squashed
# Options that can keep a network from training; what is sound has their defaults.
USUAL = (
  'model.norm_epsilon',
  'loss.label_smoothing',
  'loss.class_weights',
  'optim.b1',
  'optim.b2',
  'optim.epsilon',
  'finetune.head_lr_mult',
  'finetune.layer_decay',
  'finetune.rates',
)


def find(
  config: typed.Config, examination: first_steps.Examination, tried: trial.Trial, learnable: bool = True
) -> list[Verdict]:
  """Returns why a network does not train, at least one cause, ordered by which problem stops training first.

  Args:
    config: a validated training config.
    examination: its first steps.
    tried: its trial.
    learnable: whether the labels can be learned; if not, what a network has that does not learn is no cause where one
      that trains may have it too.
  """
  seen = _seen(examination, learnable)
  lost = (Kind.VANISHING, Kind.EXPLODING, Kind.COLLAPSING)
  signals = [each for each in (seen, _lost_inside(examination)) if each and each.kind in lost]
  found = [
    *find_faults(examination),
    _scaled(examination),
    *(signal for signal in signals if signal.kind == Kind.EXPLODING),
    _decayed(config, examination, tried),
    _diverged(examination, tried, learnable),
    _clipped(config, examination),
    *signals,
    _small_batch(config, examination) if learnable else None,
    seen,
    _alike(examination, tried) if learnable else None,  # which leaves little of the gradient, and so of the steps
    _still(examination, tried),
    _fell_back(tried) if learnable else None,
  ]
  causes: dict[Kind, Verdict] = {}
  for cause in found:
    if cause:
      causes.setdefault(cause.kind, cause)
  if FOLLOWS_FROM & causes.keys():
    causes.pop(Kind.SMALL_STEP, None)
  if causes:
    return list(causes.values())
  return [Verdict(Kind.STUCK, None, f'{trial.course(tried)}; {_open(config, examination, tried)}')]


def usual(config: typed.Config, rule: str | None = None) -> dict[str, Any]:
  """Returns the defaults of the options in `USUAL` that a config sets to something else, by key.

  Args:
    config: a validated training config.
    rule: the optimizer, whose epsilon it compares; None: that of the config.
  """
  default = schema.default()
  defaults = {key: keys.get(default, key) for key in USUAL}
  optim = config.optim.to_dict() | {'name': rule or config.optim.name}
  if implied.rule(optim) == implied.rule(optim | {'epsilon': None}):  # a config may set it to what it is anyhow
    del defaults['optim.epsilon']
  return {key: value for key, value in defaults.items() if keys.get(config, key) != value}


def _open(config: typed.Config, examination: first_steps.Examination, tried: trial.Trial) -> str:
  """Returns in words what is left to say where no cause was found."""
  if tried.reached < RISING:
    risen = f'the learning rate has risen to {100 * tried.reached:.2g} % of its peak by then'
    return f'{risen}: a shorter config.schedule.warmup would show more'
  first, last = tried.losses[: trial.LAST_TRIED].mean(), tried.losses[-trial.LAST_TRIED :].mean()
  if last < FALLS * min(examination.guessing_loss, first):
    return 'the loss falls without the accuracy: it asks for something else (config.loss, or what a label stands for)'
  if others := usual(config):
    names = errors.list_names([f'config.{key}' for key in others])
    return f'no cause was found, but not every option is as usual: try the default{"s"[: len(others) - 1]} of {names}'
  return 'no cause was found'


def find_faults(examination: first_steps.Examination) -> list[Verdict]:
  """Returns faults of the network itself, with which it may still train; empty if there are none."""
  seen = _seen(examination)
  found = [_squashed(examination), seen if seen and seen.kind in (Kind.DEAD, Kind.CUT_OFF) else None]
  return [cause for cause in found if cause]


def _seen(examination: first_steps.Examination, learnable: bool = True) -> Verdict | None:
  verdict = doctor.judge(examination, learnable)
  return None if verdict.kind == Kind.TRAINABLE else verdict


def _squashed(examination: first_steps.Examination) -> Verdict | None:
  logits = examination.outputs
  if not np.isfinite(logits).all():
    return None
  if (logits >= 0).all():
    if np.allclose(logits.sum(1), 1, atol=1e-2):
      return Verdict(Kind.SQUASHED, None, 'the outputs are probabilities already; the loss takes logits')
    before = np.median(examination.columns['activation_rms'][:, -1])  # of the last entry, before what follows it
    alike = np.ptp(logits, 1).max() == 0 and logits.any()  # all classes the same: no relu needs to be behind that
    if (logits == 0).mean() > 0.2 and before > 0 and not alike:
      share = 100 * (logits == 0).mean()
      return Verdict(
        Kind.SQUASHED, None, f'no output is negative, and {share:.0f} % are zero: logits must not pass a relu'
      )
  elif np.abs(logits).max() <= 1 and (np.abs(logits) > 0.99).mean() > 0.5:
    return Verdict(Kind.SQUASHED, None, 'most outputs are 1 or -1: logits must not pass a tanh')
  low, high = examination.output_range
  classes = logits.shape[1]
  least = float(np.log1p((classes - 1) * np.exp(low - high)))  # with the right logit at one end, the rest at the other
  if least <= BOUNDED * np.log(classes):
    return None
  reason = f'the outputs lie between {low:.3g} and {high:.3g} with any parameters, and the loss above {least:.2g}'
  return Verdict(Kind.SQUASHED, None, f'{reason}: logits must not pass a sigmoid, a tanh or another limit')


def _scaled(examination: first_steps.Examination) -> Verdict | None:
  finding = labels.find_scale(examination.input_rms)
  return Verdict(Kind.SCALE, None, finding.text) if finding else None


def _decayed(config: typed.Config, examination: first_steps.Examination, tried: trial.Trial) -> Verdict | None:
  optim = config.optim
  momentum = implied.rule(optim)['momentum'] if optim.name == 'sgd' else 0.0
  step = schedules.peak_rate(optim) * optim.weight_decay / (1 - momentum)
  part = _part_of_decay(optim, examination)
  if step * trial.STEPS < PULLED or part < MOSTLY:
    return None
  pulled = optim.weight_decay / (1 - momentum) * tried.learning_rates.sum() if tried.stopped == 'time' else PULLED
  shrunk = min(SHRUNK ** min(1, pulled / PULLED), SHRINKS)  # few steps can shrink them little
  if np.isfinite(tried.shrinkage) and tried.shrinkage > shrunk and step < 1 and part < WHOLLY:
    return None
  reason = f'it takes {100 * min(step, 1):.3g} % of the kernels at each step'
  if np.isfinite(tried.shrinkage):
    reason += f', whose norm is {100 * tried.shrinkage:.2g} % of what it was after {len(tried.losses)} steps'
  return Verdict(Kind.DECAY, None, reason)


def _usual_update(examination: first_steps.Examination) -> float:
  """Returns the update of the median entry over the norm of its parameters, for a learning rate of 1; NaN: unknown."""
  moving = examination.learning_rates > 0
  if not moving.any():
    return np.nan
  return float(np.median(np.median(examination.update_ratios, 0)[moving] / examination.learning_rates[moving]))


def _part_of_decay(optim: typed.Optim, examination: first_steps.Examination) -> float:
  """Returns the part of the weight decay in the first update, of the median entry."""
  ratios = np.median(examination.update_ratios, 0)
  moved = np.flatnonzero(examination.learning_rates > 0)
  if not moved.size or not ratios[moved[0]] > 0:
    return 0.0
  return float(examination.learning_rates[moved[0]] * optim.weight_decay / ratios[moved[0]])


def _diverged(examination: first_steps.Examination, tried: trial.Trial, learnable: bool) -> Verdict | None:
  ratio = float(np.median(examination.update_ratios))
  moved = 'updates of parameters that start at zero' if np.isnan(ratio) else f'updates of {ratio:.1e} of the parameters'
  by_entry = np.nan_to_num(np.median(examination.columns['first_update_ratio'], 0), posinf=0.0)
  at = int(np.argmax(by_entry))
  entry = examination.entries[at] if by_entry[at] > max(doctor.RATIO, APART * ratio) else None
  if entry:
    moved += f', {by_entry[at]:.1e} of those of {entry}'
  if tried.stopped == 'not finite' and not len(tried.losses):
    return Verdict(Kind.EXPLODING, None, 'the first loss is not finite, before any update')
  if tried.stopped == 'not finite' and _was_well(examination, tried):
    reason = f'{trial.course(tried)}, with {moved}: a gradient that is not finite, such as of a norm or a root at zero?'
    return Verdict(Kind.EXPLODING, None, reason)
  if tried.stopped == 'not finite':
    return Verdict(Kind.LARGE_STEP, entry, f'the loss is not finite after step {len(tried.losses)}, with {moved}')
  first, last = tried.losses[0], float(np.median(tried.losses[-trial.LAST_TRIED :]))
  # A network starts near the uniform loss, which is more than that of guessing if classes are unequal. Where the first
  # loss is large, the loss stays above it without large steps too.
  uniform = examination.uniform_loss
  above = max(uniform, min(first, 2 * uniform) if ratio >= MUCH else first)
  if last > RISEN * above:
    return Verdict(Kind.LARGE_STEP, entry, f'{trial.course(tried)}, with {moved}')
  stays = learnable and last > (first / 2 if first / 2 > STAYS * uniform else STAYS * examination.guessing_loss)
  if ratio > doctor.RATIO and stays:
    return Verdict(Kind.LARGE_STEP, entry, f'{trial.course(tried)}, with {moved}')
  highest = float(tried.losses.max())
  if highest > LEAP * max(uniform, first) and stays:
    return Verdict(Kind.LARGE_STEP, entry, f'{trial.course(tried)}, and was {highest:.3g} in between, with {moved}')
  return None


def _was_well(examination: first_steps.Examination, tried: trial.Trial) -> bool:
  """Whether the loss of a trial was below that of guessing, without a rise, and no updates large, to the end."""
  losses, rates = tried.losses, tried.learning_rates
  if len(losses) < 2 * doctor.LAST_EXAMINED or _usual_update(examination) * rates[-1] >= doctor.RATIO:
    return False
  before, after = losses[: -doctor.LAST_EXAMINED], losses[-doctor.LAST_EXAMINED :]
  return after.max() < min(examination.guessing_loss, 1.1 * before.min() + 0.1)


def _clipped(config: typed.Config, examination: first_steps.Examination) -> Verdict | None:
  if config.clip.name == 'none' or examination.scale_free or 'clip_factor' not in examination.columns:
    return None
  factor = float(np.nanmedian(examination.columns['clip_factor']))
  if not (factor <= telemetry.TIGHT and reach(examination) <= STILL):
    return None
  return Verdict(Kind.CLIPPED, None, f'it leaves {100 * factor:.2g} % of the gradient, so that {_reaches(examination)}')


def _small_batch(config: typed.Config, examination: first_steps.Examination) -> Verdict | None:
  size = remedies.norm_batch(config)
  if not examination.batch_statistics or size > BATCH_NORM_BLAMED_TO:
    return None
  return Verdict(Kind.SMALL_BATCH, None, f'batch_norm takes its statistics from {size} images')


def _still(examination: first_steps.Examination, tried: trial.Trial) -> Verdict | None:
  if not reach(examination) <= STILL:
    return None
  return Verdict(Kind.SMALL_STEP, None, f'{trial.course(tried)}, as {_reaches(examination)}')


def _lost_inside(examination: first_steps.Examination) -> Verdict | None:
  """Detects a signal that is lost within the first entry or the last: from the images, or to the logits."""
  rms = np.median(examination.columns['activation_rms'], 0)
  measured = np.flatnonzero(~np.isnan(rms))
  if len(measured) < 2:
    return None
  logits = float(np.sqrt(np.mean(np.square(examination.outputs))))
  for at, before, after in (
    (measured[0], examination.input_rms, rms[measured[0]]),
    (measured[-1], rms[measured[-2]], logits),
  ):
    # What is lost before it is not its work: biases come after a signal that has vanished.
    sizes = f'from {before:.1e} to {after:.1e}'
    if 0 < after < doctor.VANISHING * min(before, 1.0):
      return Verdict(Kind.VANISHING, examination.entries[at], f'within it the signal shrinks {sizes}')
    if after > doctor.EXPLODING * max(before, 1.0):
      return Verdict(Kind.EXPLODING, examination.entries[at], f'within it the signal grows {sizes}')
  return None


def _alike(examination: first_steps.Examination, tried: trial.Trial) -> Verdict | None:
  """Detects images that have become alike at the last entries of a network whose loss stays at that of guessing."""
  apart = 1 - np.median(examination.columns['cosine'], 0)
  hidden = np.flatnonzero(~np.isnan(apart))[:-1]  # without the logits
  limit = ALIKE_DISTANCE * (1 - examination.input_cosine)
  if not hidden.size or not -np.inf < apart[hidden[-1]] <= limit:
    return None
  if not len(tried.losses) or tried.losses[-trial.LAST_TRIED :].mean() < STAYS * examination.guessing_loss:
    return None
  at = hidden[int(np.argmax(apart[hidden] <= limit))]
  reason = (
    f'different images enter the network with cosine {examination.input_cosine:.2f} and leave the last entries with '
    f'cosine {1 - apart[hidden[-1]]:.3f}; {trial.course(tried)}'
  )
  return Verdict(Kind.COLLAPSING, examination.entries[at], reason)


def _fell_back(tried: trial.Trial) -> Verdict | None:
  if len(tried.accuracies) < 2 * WINDOW or tried.chance >= 1:
    return None
  windows = (slice(end - WINDOW, end) for end in range(WINDOW, len(tried.accuracies) + 1))
  means = np.array([trial.mean(tried.accuracies[window], tried.weights[window]) for window in windows])
  best, last = ((value - tried.chance) / (1 - tried.chance) for value in (means.max(), means[-1]))
  if best - last < FALLEN or means.max() - means[-1] < NOISE:
    return None
  at = int(means.argmax()) + WINDOW
  reason = (
    f'the {trial.accuracy_name(tried)} falls from {100 * means.max():.0f} % at step {at} to {100 * means[-1]:.0f} %'
  )
  return Verdict(Kind.LARGE_STEP, None, reason)


def reach(examination: first_steps.Examination) -> float:
  """Returns by which fraction of their norm the updates of a trial can move the parameters of the median entry.

  It is NaN, unknown, where all that trains starts at zero, and where the first steps have no learning rate.
  """
  return _usual_update(examination) * examination.peak_rate * trial.STEPS


def _reaches(examination: first_steps.Examination) -> str:
  return f'{trial.STEPS} steps move the parameters by {100 * reach(examination):.2g} % of their norm at most'
