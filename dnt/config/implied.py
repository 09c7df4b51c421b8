"""Derives the values of options that are not set from other options of the config."""

from collections.abc import Mapping
from typing import Any

import ml_collections


def eval_resize(data: Mapping[str, Any] | ml_collections.ConfigDict) -> str:
  """Returns how evaluation resizes images: `data.eval_resize`, or what `data.augment` implies if that is not set.

  Args:
    data: the `data` section of a config.
  """
  if data['eval_resize'] is not None:
    return data['eval_resize']
  return 'center_crop' if data['augment'] == 'resized_crop_flip' else 'squash'


def clip_threshold(clip: Mapping[str, Any] | ml_collections.ConfigDict) -> float:
  """Returns where gradients are clipped: `clip.threshold`, or what `clip.name` implies if that is not set.

  For adaptive clipping it is a fraction of the norm of the parameters: that of Brock et al. 2021 for large batches.

  Args:
    clip: the `clip` section of a config.
  """
  if clip['threshold'] is not None:
    return clip['threshold']
  return 0.01 if clip['name'] == 'adaptive' else 1.0


def rule(optim: Mapping[str, Any] | ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns `momentum`, `nesterov` and `epsilon` of the optimizer, or what `optim.name` implies where they are not set.

  They are those of Jordan et al. 2024 for Muon, and of the code of You et al. 2020 for LAMB.

  Args:
    optim: the `optim` section of a config.
  """
  usual = {'momentum': 0.9, 'nesterov': False, 'epsilon': 1e-8}
  own = {'muon': {'momentum': 0.95, 'nesterov': True}, 'lamb': {'epsilon': 1e-6}}.get(optim['name'], {})
  return {key: value if optim[key] is None else optim[key] for key, value in (usual | own).items()}
