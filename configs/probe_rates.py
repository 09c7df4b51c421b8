"""The rate at which gradients vanish or explode in wide networks of every block: within 5 % of mean field theory.

  python -m dnt.probe --config=configs/probe_rates.py

Expected: 100 of 101 networks are within 5 % of theory, and 95 within 1 %; the exception is gelu in highways at
sigma_w^2 = 4, near their own edge. In 43 more, theory is within 0.05 of 1 x per layer, where a relative error means
little. The run takes about 3 minutes of processor time.
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
