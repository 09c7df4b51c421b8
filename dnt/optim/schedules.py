"""Builds learning rate schedules: a shape, optionally after a warm-up."""

import jax.numpy as jnp
import optax

from dnt import config as schema
from dnt import errors
from dnt.config import typed


def peak_rate(optim: typed.Optim) -> float:
  """Returns `optim.learning_rate`; 0 if a range test has yet to find it."""
  return 0.0 if optim.learning_rate == schema.AUTO else optim.learning_rate


def make(config: typed.Schedule, peak: float, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
  """Returns the learning rate as a function of the number of completed steps.

  With t completed steps, W warm-up steps and N steps in the run, the shapes over t' = t - W and T = N - W match torch:

  - constant: the peak.
  - piecewise: `MultiStepLR`; boundaries count from the start of the run. A boundary beyond its end has no effect, so
    that a run can be shortened. Two boundaries may fall on one step when durations round to it.
  - cosine: `CosineAnnealingLR(T_max=T, eta_min=final * peak)`.
  - linear: `LinearLR(1, final, total_iters=T)`.
  - one_cycle (Smith and Topin 2017): a cosine rise of R steps, then a cosine fall of T - R. The same as
    `OneCycleLR(total_steps=T + 1, pct_start=(R + 1) / (T + 1))`: torch counts values, not the steps between them.

  As in torch, step N would be the first at the final value, and the last step of the run is N - 1.
  The warm-up is linear from `warmup_start` x peak to the shape's first value (Goyal et al. 2017), or constant at
  `warmup_start` x peak (He et al. 2015, section 4.2). A run with fewer steps than its warm-up ends within it.

  Args:
    config: the section `schedule` of a validated config.
    peak: the highest learning rate.
    total_steps: steps of the run.
    steps_per_epoch: steps in one pass over the training split.

  Returns:
    `step -> float32 scalar`; step is an integer, or an integer scalar inside jit.

  Raises:
    errors.InputError: the rise leaves no step for the fall, or boundaries are missing, not sorted, or inside the
      warm-up; or the constant warm-up has `warmup_start` 0.
  """

  def steps(duration):
    return schema.duration(str(duration), total_steps, steps_per_epoch)

  warmup, rise = steps(config.warmup), steps(config.one_cycle_rise)
  left = total_steps - warmup
  if left <= 0:
    shape = optax.constant_schedule(peak)  # which the run does not reach
  elif config.name == 'constant':
    shape = optax.constant_schedule(peak)
  elif config.name == 'piecewise':
    shape = _piecewise(peak, config.factor, [steps(b) for b in config.boundaries], warmup)
  elif config.name == 'cosine':
    shape = optax.cosine_decay_schedule(peak, left, config.final)
  elif config.name == 'linear':
    shape = optax.linear_schedule(peak, config.final * peak, left)
  elif config.name == 'one_cycle':
    shape = _one_cycle(peak, config, rise, left)
  else:
    raise errors.unknown('schedule', config.name, schema.SCHEMA['schedule']['name'].choices)
  if warmup:
    first = config.one_cycle_start * peak if config.name == 'one_cycle' and rise else peak
    shape = optax.join_schedules([_warmup(peak, config, first, warmup), shape], [warmup])
  return lambda step: jnp.asarray(shape(step), jnp.float32)


def _warmup(peak: float, config: typed.Schedule, first: float, steps: int) -> optax.Schedule:
  if config.warmup_shape == 'linear':
    return optax.linear_schedule(config.warmup_start * peak, first, steps)
  if not config.warmup_start:
    raise errors.InputError(
      "schedule.warmup_shape='constant' needs schedule.warmup_start above 0: at 0 the warm-up trains nothing"
    )
  return optax.constant_schedule(config.warmup_start * peak)


def _piecewise(peak: float, factor: float, boundaries: list[int], warmup: int) -> optax.Schedule:
  if not boundaries:
    raise errors.InputError("schedule.name='piecewise' needs schedule.boundaries, such as ('50%', '75%')")
  if boundaries != sorted(boundaries):
    raise errors.InputError(f'schedule.boundaries must not decrease; in steps they are {boundaries}')
  if boundaries[0] < warmup:
    raise errors.InputError(
      f'schedule.boundaries has step {boundaries[0]}, inside the warm-up of {warmup} steps; '
      'move it behind the warm-up, or shorten the warm-up'
    )
  return optax.piecewise_constant_schedule(peak, {b - warmup: factor ** boundaries.count(b) for b in boundaries})


def _one_cycle(peak: float, config: typed.Schedule, rise: int, steps: int) -> optax.Schedule:
  if rise >= steps:
    raise errors.InputError(
      f'schedule.one_cycle_rise={config.one_cycle_rise!r} is {rise} steps, but the run has {steps} after its warm-up; '
      'shorten the rise'
    )
  fall = optax.cosine_decay_schedule(peak, steps - rise, config.final)
  if not rise:
    return fall
  start = config.one_cycle_start
  return optax.join_schedules([optax.cosine_decay_schedule(start * peak, rise, 1 / start), fall], [rise])
