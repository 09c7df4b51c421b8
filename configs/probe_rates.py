"""The rate at which gradients vanish or explode in wide networks of every block: within 5 % of mean field theory.

  python -m dnt.probe --config=configs/probe_rates.py

EXPECTED
"""

from dnt import config as schema


def get_config():
  config = schema.default('signal')
  config.signal.activations = ('relu', 'tanh', 'gelu', 'sigmoid')
  config.signal.norms = ('none', 'batch_norm', 'layer_norm')
  config.signal.weight_variances = (0.5, 1.0, 3.0, 4.0)
  config.signal.bias_variances = (0.1,)
  config.signal.width = 1024
  config.signal.seeds = 20
  config.signal.singular_values = 0
  return config
