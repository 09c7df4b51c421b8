"""The slope of the sigmoid is at most 1/4: gradients vanish at every weight variance that anyone would start from.

  python -m dnt.probe --config=configs/probe_sigmoid.py

Expected: from the last layer to the first, the gradient's norm is multiplied by 8e-16, 9e-13, 5e-10 and 1e-5 for
sigma_w^2 of 1, 2, 4 and 16: by 0.24 to 0.63 per layer, within 0.1 % of theory. The edge of chaos is at sigma_w^2 = 103.
The run takes about 15 s of processor time.
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
