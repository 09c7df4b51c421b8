"""Chooses options that are likely to fix a network, by the verdict on it."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dnt import config as schema
from dnt import errors, models
from dnt.config import keys, typed
from dnt.diagnostics import first_steps
from dnt.diagnostics.verdicts import Kind, Verdict
from dnt.optim import schedules

HEALTHY_UPDATE = 1e-3  # update over parameter norm of a first step, for the suggested rate
BATCH_NORM_OFFERED_FROM = 16  # fewest images of its statistics with which batch_norm is offered
# The initializer with which each activation keeps the norm of a signal.
FITTING = {
  'relu': 'he',
  'leaky_relu': 'he',
  'gelu': 'he',
  'silu': 'he',
  'sigmoid': 'glorot',
  'tanh': 'orthogonal',
  'identity': 'orthogonal',
}


def choose(config: typed.Config, examination: first_steps.Examination, verdict: Verdict) -> list[dict[str, Any]]:
  """Returns at most three sets of overrides that are likely to fix a network, the likeliest first.

  Each set changes the config.

  Args:
    config: a validated training config.
    examination: its examination.
    verdict: the verdict on it.

  Returns:
    `{'section.key': value}` each; empty for a trainable network, and if no option can affect the problem (such as
    inside a user's own module, or inside a network of pretrained weights).
  """
  model, rate = config.model, schedules.peak_rate(config.optim)
  tenth, hundredth = (float(f'{rate / factor:.2g}') for factor in (10, 100))  # no digits of floating point
  few = norm_batch(config) < BATCH_NORM_OFFERED_FROM
  norm = {'model.norm': 'layer_norm' if model.norm == 'batch_norm' or few else 'batch_norm'}
  init = {'model.initializer': FITTING[model.activation], 'model.init_gain': 1.0}
  fits = (model.initializer, model.init_gain) == tuple(init.values())
  relu = {'model.activation': 'relu', 'model.initializer': 'he', 'model.init_gain': 1.0}
  bypass = shortcut(config, len(examination.entries))
  both = bypass | (norm if bypass and model.norm == 'none' else {})
  adam = {'optim.name': 'adamw', 'optim.learning_rate': 1e-3}
  clip = {'clip.name': 'global_norm', 'optim.learning_rate': tenth}
  if verdict.kind == Kind.TRAINABLE:
    offered = []
  elif verdict.kind == Kind.LARGE_STEP:
    ratios = np.median(examination.update_ratios, 0)
    moved = int(np.argmax(ratios > 0))  # a warm-up may start at a rate of zero
    healthy = examination.learning_rates[moved] * HEALTHY_UPDATE
    sized = float(f'{healthy / ratios[moved]:.0e}') if ratios[moved] > 0 else rate
    offered = [{'optim.learning_rate': each} for each in (sized, tenth, hundredth) if each < rate] + [clip]
  elif verdict.kind == Kind.DEAD:
    offered = [init, norm, {'model.activation': 'leaky_relu'} if model.activation == 'relu' else relu]
  elif model.activation == 'sigmoid' and verdict.kind != Kind.EXPLODING:
    offered = [relu | norm, norm, both, adam]
  elif fits:
    offered = [both, norm, clip if verdict.kind == Kind.EXPLODING else adam, init]
  else:
    offered = [init, norm, both, clip if verdict.kind == Kind.EXPLODING else adam]
  return keep_buildable(config, offered)[:3]


def keep_buildable(config: typed.Config, offered: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns what of each set of overrides changes the config, without repetitions and without what cannot be built.

  Args:
    config: a validated training config.
    offered: `{'section.key': value}` each.
  """
  chosen: list[dict[str, Any]] = []
  for overrides in offered:
    changed = {key: value for key, value in overrides.items() if keys.get(config, key) != value}
    if changed and changed not in chosen and _can_be_built(config, changed):
      chosen.append(changed)
  return chosen


def norm_batch(config: typed.Config) -> int:
  """Returns the number of images from which batch_norm takes its statistics."""
  return first_steps.micro_batch(config) // (len(jax.devices()) if config.model.norm_sync == 'device' else 1)


def shortcut(config: typed.Config, entries: int) -> dict[str, Any]:
  """Returns overrides that let the signal and the gradient bypass the layers."""
  model = config.model
  if model.name == 'mlp' and model.block in (None, 'plain'):
    return {'model.block': 'residual'}
  if model.name == 'plain':
    # The width counts channels there and is a factor on 16 here.
    return {'model.name': 'resnet'} | ({'model.width': max(1, model.width // 16)} if model.width else {})
  if model.name == 'resnet':
    return {'model.residual_scalar': 0.0}
  if model.name == 'highway' or model.block == 'highway':
    return {'model.gate_bias': -round(float(np.log(entries)), 1)}  # each gate passes a fraction of 1 / entries
  return {}


def flags(overrides: Mapping[str, Any]) -> str:
  """Formats overrides as flags of a command line, for a shell."""
  return shlex.join(f'--config.{key}={value}' for key, value in overrides.items())


def _can_be_built(config: typed.Config, overrides: Mapping[str, Any]) -> bool:
  if config.train.init_from and any(key.startswith('model.') for key in overrides):
    return False  # pretrained weights are those of one network
  try:
    models.check(schema.override(config, overrides, 'a remedy').model)
  except errors.InputError:
    return False
  return True
