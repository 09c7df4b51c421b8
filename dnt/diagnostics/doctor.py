"""Judges a network by the first steps of its training: whether it will train, and if not, where it fails."""

from collections.abc import Mapping

import numpy as np

from dnt.diagnostics import first_steps
from dnt.diagnostics.verdicts import Kind, Verdict
from dnt.training import telemetry

# A signal or gradient may shrink or grow by this factor from end to end before it counts as lost.
VANISHING, EXPLODING = telemetry.VANISHING, 1e3
FAINT = 1e-5  # limit for the product of both factors, which sets the size of the gradients at the kernels
MOVES = telemetry.UPDATE_RATIOS[0]  # update over parameter norm of an entry that trains although the signal vanishes
ABRUPT = 1e-12  # a signal or gradient of this size does not become zero in one entry by shrinking
COLLAPSED = 0.9999  # cosine of two different images
ALIKE_AT_GUESSING = 0.98  # the same, if the first steps do not lower a loss that is that of guessing or the uniform one
GUESSING = 0.02  # largest distance from one of these losses, as a fraction of it, that counts as guessing
DEAD = 0.9  # fraction of an entry's units that are dead, or of its activations that are saturated
GROWN = 10.0  # loss after the first steps over the loss before
RATIO = 0.1  # update over parameter norm, of the median entry, if the loss stays above the uniform one
LAST_EXAMINED = 3  # number of the last of the first steps whose mean loss measures the result of the first steps


def judge(examination: first_steps.Examination, learnable: bool = True) -> Verdict:
  """Returns the verdict on an examination: the first problem, in an order where earlier problems cause later ones.

  Args:
    examination: the first steps.
    learnable: whether the labels can be learned; if not, a loss that stays says nothing of the network.
  """
  typical = {name: np.median(column, axis=0) for name, column in examination.columns.items()}
  rms, gradient = typical['activation_rms'], typical['output_gradient_norm']
  # A branch whose last kernel starts at zero outputs zero but is not dead: its parameters have a gradient.
  waking = (rms == 0) & (typical['gradient_norm'] > 0)
  measured = np.flatnonzero(~np.isnan(rms) & ~np.isnan(gradient))
  hidden = np.array([place for place in measured[:-1] if not waking[place]], int)  # without the logits, the last output
  faded = np.min(rms, where=rms > 0, initial=1.0) < ABRUPT  # if so, a value of zero has shrunk to zero
  return (
    (None if faded else _dead(examination, typical, waking))
    or _not_finite(examination, 'signal', rms, measured)
    or _not_finite(examination, 'gradient', gradient, measured[::-1])
    or (None if faded else _cut_off(examination, typical, measured))
    or (_lost(examination, typical, hidden) if len(hidden) else None)
    or (_collapsed(examination, typical['cosine'], hidden, learnable) if len(hidden) else None)
    or _stepped(examination, learnable)
  )


def _dead(
  examination: first_steps.Examination, typical: Mapping[str, np.ndarray], waking: np.ndarray
) -> Verdict | None:
  for name, what in (('dead', 'units are zero for the whole batch'), ('saturated', 'activations are saturated')):
    if name in typical:
      sick = (typical[name] > DEAD) & ~waking
      if sick.any():
        at = int(np.argmax(sick))
        return Verdict(Kind.DEAD, examination.entries[at], f'{100 * typical[name][at]:.0f} % of its {what}')
  return None


def _not_finite(examination: first_steps.Examination, name: str, norms: np.ndarray, path: np.ndarray) -> Verdict | None:
  at = next((place for place in path if not np.isfinite(norms[place])), None)
  return None if at is None else Verdict(Kind.EXPLODING, examination.entries[at], f'the {name} is not finite')


def _cut_off(
  examination: first_steps.Examination, typical: Mapping[str, np.ndarray], measured: np.ndarray
) -> Verdict | None:
  """Detects what lets no gradient pass in a user's own module: dead units outside of any entry, or `stop_gradient`."""
  gradient, losses = typical['output_gradient_norm'], examination.losses[:, 0]
  nothing = not np.nan_to_num(typical['gradient_norm'], nan=0.0).any() and not gradient[measured].any()
  # The last entry alone may start at zero. A loss of zero leaves nothing to pass on.
  if nothing and (typical['activation_rms'][measured[-2:]] > 0).any() and (losses > 0).all():
    reason = 'no gradient reaches any entry from the loss, which the signal reaches (stop_gradient or round behind it?)'
    return Verdict(Kind.CUT_OFF, examination.entries[measured[-1]], reason)
  for at, after in zip(measured[-2::-1], measured[:0:-1], strict=True):
    if gradient[measured[0]] == gradient[at] == 0 and gradient[after] > ABRUPT:
      if not np.median(examination.columns['cosine'][:, after]) > COLLAPSED:  # images differ behind it
        reason = f'no gradient reaches it from {examination.entries[after]}, which its signal reaches (stop_gradient?)'
        return Verdict(Kind.CUT_OFF, examination.entries[at], reason)
      reason = f'no gradient reaches it from {examination.entries[after]}, because the units between are dead'
      return Verdict(Kind.DEAD, examination.entries[at], reason)
  return None


def _lost(
  examination: first_steps.Examination, typical: Mapping[str, np.ndarray], hidden: np.ndarray
) -> Verdict | None:
  """Detects a signal that vanishes or explodes from the first hidden entry to the last, or a gradient on the way back.

  The reported entry is the first with half of the excessive change, on a log scale.
  """
  moved = typical['update_ratio'][hidden]
  rates = np.mean(examination.learning_rates) or np.inf
  moves = examination.scale_free and np.nanmin(moved, initial=np.inf) * examination.peak_rate / rates > MOVES
  ends = {}
  for name, path in (('signal', hidden), ('gradient', hidden[::-1])):
    norms = typical['activation_rms' if name == 'signal' else 'output_gradient_norm']
    start = norms[path[0]]
    ratios = norms[path] / start if start > 0 else np.zeros(len(path))
    ends[name] = path, ratios
    if ratios[-1] < VANISHING and not moves:
      at = path[int(np.argmax(ratios < np.sqrt(VANISHING)))]
      return Verdict(Kind.VANISHING, examination.entries[at], f'the {name} {_shrinks(ratios[-1])}')
    if ratios[-1] > EXPLODING:
      at = path[int(np.argmax(ratios > np.sqrt(EXPLODING)))]
      return Verdict(Kind.EXPLODING, examination.entries[at], f'the {name} grows to {ratios[-1]:.1e} times its size')
  signal, back = (ratios[-1] for _, ratios in ends.values())
  if signal * back < FAINT and not moves:
    path, ratios = ends['signal' if signal < back else 'gradient']
    at = path[int(np.argmax(ratios < FAINT**0.25))]
    return Verdict(
      Kind.VANISHING, examination.entries[at], f'the signal {_shrinks(signal)}, the gradient {_shrinks(back)}'
    )
  return None


def _shrinks(ratio: float) -> str:
  return f'shrinks to {ratio:.1e} of its size' if ratio > 0 else 'shrinks until a float32 cannot hold its square'


def _collapsed(
  examination: first_steps.Examination, cosine: np.ndarray, hidden: np.ndarray, learnable: bool
) -> Verdict | None:
  before, after = _losses(examination)
  guesses = (examination.uniform_loss, examination.guessing_loss)
  stands = learnable and after >= before and any(abs(before - guess) < GUESSING * guess for guess in guesses)
  limit = ALIKE_AT_GUESSING if stands else COLLAPSED
  if not np.inf > cosine[hidden[-1]] > limit > examination.input_cosine:
    return None
  at = hidden[int(np.argmax(cosine[hidden] > limit))]
  reason = (
    f'different images enter the network with cosine {examination.input_cosine:.2f} and leave this entry with '
    f'cosine {cosine[at]:.5f}'
  )
  if stands:
    reason += f', and {first_steps.COUNT} steps do not lower the loss ({before:.3g}, then {after:.3g})'
  return Verdict(Kind.COLLAPSING, examination.entries[at], reason)


def _losses(examination: first_steps.Examination) -> tuple[float, float]:
  """Returns the loss of the first step and the loss after the first steps, as medians over the seeds."""
  return float(np.median(examination.losses[:, 0])), float(np.median(last_loss(examination)))


def last_loss(examination: first_steps.Examination) -> np.ndarray:
  """Returns the mean loss of the last few of the first steps, by seed."""
  return np.mean(examination.losses[:, -LAST_EXAMINED:], axis=1)


def _stepped(examination: first_steps.Examination, learnable: bool) -> Verdict:
  before, after = _losses(examination)
  ratio = float(np.median(examination.update_ratios))
  reason = f'the loss goes from {before:.3g} to {after:.3g} in {first_steps.COUNT} steps'
  # Large updates alone do no harm: a linear classifier starts with them. The start lies near the uniform loss, which is
  # more than that of guessing where classes are unequal.
  large = not np.isfinite(examination.losses).all() or after > GROWN * max(before, examination.uniform_loss)
  if large or (learnable and ratio > RATIO and after > examination.uniform_loss):
    moves = '' if np.isnan(ratio) else f', which move parameters by {ratio:.1e} of their norm'
    return Verdict(Kind.LARGE_STEP, None, reason + moves)
  return Verdict(Kind.TRAINABLE, None, reason)
