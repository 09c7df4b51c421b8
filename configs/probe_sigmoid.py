"""sigmoid' is at most 1/4: its gradients vanish at every weight variance that anyone would start from.

  python -m dnt.probe --config=configs/probe_sigmoid.py

EXPECTED
"""

from dnt import config as schema


def get_config():
  config = schema.default('signal')
  config.signal.activations = ('sigmoid', 'tanh')
  config.signal.blocks = ('plain',)
  config.signal.norms = ('none',)
  config.signal.weight_variances = (1.0, 2.0, 4.0, 16.0)
  config.signal.bias_variances = (0.0,)
  config.signal.seeds = 20
  return config
