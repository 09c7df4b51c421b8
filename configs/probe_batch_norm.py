"""Batch norm makes the gradients of plain networks explode, at any weight variance (Yang et al. 2019).

  python -m dnt.probe --config=configs/probe_batch_norm.py

EXPECTED
"""

from dnt import config as schema


def get_config():
  config = schema.default('signal')
  config.signal.activations = ('relu', 'tanh', 'identity')
  config.signal.blocks = ('plain', 'residual')
  config.signal.norms = ('batch_norm', 'layer_norm')
  config.signal.depths = (32,)
  config.signal.weight_variances = (0.5, 2.0)
  config.signal.bias_variances = (0.0,)
  config.signal.batch_size = 32
  config.signal.singular_values = 0
  return config
