"""Features that runs have kept, and networks that have some."""

import json
import pathlib

import numpy as np

from dnt.finetune import feature_files


def files(config):
  return sorted(pathlib.Path(config.finetune.cache_dir).glob('*.features'))


def held(path):
  """Returns the features of a whole file, float32 [records, ...]."""
  head = path.read_bytes().partition(b'\n')[0] + b'\n'
  about = json.loads(head)
  features, labels = np.empty((about['records'], *about['shape']), np.float32), np.empty(about['records'], np.int32)
  assert feature_files.read(path, head, features, labels) == (about['records'], path.stat().st_size, False)
  return features


OWN_NETWORKS = """
import flax.linen as nn

class Pooling(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(6, (3, 3), (2, 2), name='body')(inputs=x)
    return nn.Dense(self.num_classes, name='answer')(x.mean((1, 2)))

class Stating(Pooling):
  head_pools = True

class Reading(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = nn.Sequential([nn.Conv(6, (3, 3), (2, 2))], name='body')(x)
    return nn.Dense(self.num_classes, name='answer')(x.max((1, 2)))

class Lying(Reading):
  head_pools = True
"""
