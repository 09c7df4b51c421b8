"""Residual networks with small or normalized branches: the first layer's gradient stays near the last one's.

  python -m dnt.probe --config=configs/probe_residual.py

Expected: from the last layer to the first, the gradient's norm is multiplied by 1.1 to 1.2 with branches of sigma_w^2 =
0.01, by 2.2 (ReLU) and 4.5 (tanh) with layer norm at any sigma_w^2, and by 1e4 and 14 at sigma_w^2 = 1 without a norm;
in plain networks at 0.01 by 3e-35 and 1e-30. The run takes about 20 s of processor time.
"""

from dnt import config as schema


def get_config():
  config = schema.default('signal')
  config.signal.activations = ('tanh', 'relu')
  config.signal.blocks = ('plain', 'residual')
  config.signal.norms = ('none', 'layer_norm')
  config.signal.depths = (30,)
  config.signal.weight_variances = (0.01, 0.1, 1.0)
  config.signal.bias_variances = (0.0,)
  return config
