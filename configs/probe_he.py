"""ReLU keeps the norms of signal and gradient over 50 layers at sigma_w^2 = 2 (He et al. 2015), and only there.

  python -m dnt.probe --config=configs/probe_he.py

Expected: from the last layer to the first, the gradient's norm is multiplied by 3e-8, 7e-4, 0.96, 250 and 2e4 for
sigma_w^2 of 1, 1.5, 2, 2.5 and 3; the rates per layer are within 0.6 % of theory. q, of squares, falls and grows as the
square of the norm does. The run takes about 20 s of processor time.
"""

from dnt import config as schema


def get_config():
  config = schema.default('signal')
  config.signal.activations = ('relu',)
  config.signal.blocks = ('plain',)
  config.signal.norms = ('none',)
  config.signal.depths = (50,)
  config.signal.weight_variances = (1.0, 1.5, 2.0, 2.5, 3.0)
  config.signal.bias_variances = (0.0,)
  config.signal.width = 512
  config.signal.seeds = 20
  return config
