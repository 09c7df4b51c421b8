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
