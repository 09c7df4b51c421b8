"""x + F(x): with small branches, or with a norm in them, the first layer's gradient stays near the last one's.

  python -m dnt.probe --config=configs/probe_residual.py

EXPECTED
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
