"""What the doctor sees of networks that are not run."""

import numpy as np

from dnt.diagnostics import doctor, first_steps, trial


def examination(**changes):
  """Of a network whose first two steps show nothing unusual, but for what is given."""
  columns = {
    'activation_rms': [1.0, 1.0, 1.0],
    'output_gradient_norm': [1.0, 1.0, 1.0],
    'gradient_norm': [1.0, 1.0, 1.0],
    'cosine': [0.5, 0.5, 0.5],
    'update_ratio': [1e-3, 1e-3, 1e-3],
    'first_update_ratio': [1e-3, 1e-3, 1e-3],
  }
  given = {
    'ratios': [1e-3, 1e-3],
    'rates': [0.1, 0.1],
    'peak': 0.1,
    'scale_free': False,
    'rms': 1.0,
    'outputs': np.eye(3) - 0.5,
    'losses': [2.3, 2.3],
    'guessing': np.log(10),
    'batch_statistics': True,
  } | {name: value for name, value in changes.items() if name not in doctor.telemetry.metric_names.QUANTITIES}
  columns |= {name: value for name, value in changes.items() if name in (*columns, 'clip_factor', 'dead')}
  return first_steps.Examination(
    ('stem', 'block', 'head'),
    {name: np.array([values]) for name, values in columns.items()},
    0.3,
    np.array([given['losses']]),
    np.array([given['ratios']]),
    np.array(given['rates']),
    given['peak'],
    given['scale_free'],
    np.log(10),
    given['guessing'],
    given['rms'],
    given['outputs'],
    given['batch_statistics'],
  )


def tried(losses=(2.3,) * 300, accuracies=None, stopped='complete', shrinkage=1.0):
  losses = np.array(losses, float)
  ones = np.ones(len(losses))
  accuracies = 0.1 * ones if accuracies is None else np.array(accuracies, float)
  return trial.Trial(losses, accuracies, ones, 0.1 * ones, 1.0, shrinkage, 0.1, stopped, 1.0)


LOST = {'activation_rms': [1.0, 1e-6, 1.0]}
