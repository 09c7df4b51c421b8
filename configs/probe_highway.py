"""Highway layers with gates that start nearly closed are nearly the identity, and keep the gradient over 50 layers.

  python -m dnt.probe --config=configs/probe_highway.py
  python -m dnt.probe --config=configs/probe_highway.py --config.signal.gate_bias=4.0    nearly plain layers

Expected: from the last layer to the first, the gradient's norm is multiplied by 0.77 to 0.86 (plain layers: 1e-15 to
9), and the largest singular values of the whole network are 0.90 to 0.98. The run takes about 20 s of processor time.
"""

from dnt import config as schema


def get_config():
  config = schema.default('signal')
  config.signal.activations = ('tanh', 'relu')
  config.signal.blocks = ('plain', 'highway')
  config.signal.norms = ('none',)
  config.signal.depths = (50,)
  config.signal.weight_variances = (0.5, 1.0, 2.0)
  config.signal.bias_variances = (0.0,)
  config.signal.gate_bias = -6.0
  return config
