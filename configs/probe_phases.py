"""The edge of chaos: gradients vanish on one side of it and explode on the other (Schoenholz et al. 2017).

  python -m dnt.probe --config=configs/probe_phases.py

Expected: the measured dots have the color of the background, which shows theory, and are white along the line. At
sigma_b^2 = 0.1, tanh is critical at sigma_w^2 = 1.986. ReLU's edge is one point: sigma_w^2 = 2 without biases. The run
takes about 15 s of processor time.
"""

from dnt import config as schema


def get_config():
  config = schema.default('signal')
  config.signal.activations = ('tanh', 'relu')
  config.signal.blocks = ('plain',)
  config.signal.norms = ('none',)
  config.signal.weight_variances = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
  config.signal.bias_variances = (0.0, 0.05, 0.1, 0.2, 0.3)
  config.signal.singular_values = 0
  return config
