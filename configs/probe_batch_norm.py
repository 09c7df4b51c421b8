"""Batch norm makes the gradients of plain networks explode, at any weight variance (Yang et al. 2019).

  python -m dnt.probe --config=configs/probe_batch_norm.py

Expected, at 32 inputs: the gradient grows 1.235 x per layer with ReLU (theory 1.233) and 1.10 x with tanh, at both
weight variances. Over 32 layers it grows 730 and 21 x, but only 10 and 7 x in residual networks. With layer norm and
ReLU it grows 1.0 x per layer. The run takes about 20 s of processor time.
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
