"""The verdicts of the doctor on what the first steps show."""

import numpy as np
import pytest

from dnt.diagnostics import doctor, first_steps


def examination(**changes):
  """A healthy one of five entries and one seed, with other columns."""
  columns = {
    'activation_rms': [1.0, 1.0, 1.0, 1.0, 1.0],
    'output_gradient_norm': [1.0, 1.0, 1.0, 1.0, 1.0],
    'gradient_norm': [1.0, 1.0, 1.0, 1.0, 1.0],
    'cosine': [0.5, 0.5, 0.5, 0.5, 0.5],
    'dead': [0.0, 0.0, 0.0, 0.0, np.nan],
    'update_ratio': [1e-3, 1e-3, 1e-3, 1e-3, 1e-3],
  }
  losses = [changes.pop('losses', [2.3, 1.0])]
  ratios = [changes.pop('ratios', [1e-3, 1e-3])]
  scale_free, guessing_loss = changes.pop('scale_free', False), changes.pop('guessing_loss', 2.3)
  columns = {name: np.array([values]) for name, values in (columns | changes).items()}
  names = ('stem', 'block', 'more', 'last', 'head')
  return first_steps.Examination(
    *(names, columns, 0.3, np.array(losses), np.array(ratios), np.full(2, 0.1), 0.1, scale_free),
    *(2.3, guessing_loss, 1.0, np.eye(3), True),
  )


NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
  ('changes', 'kind', 'entry'),
  [
    ({}, 'trainable', None),
    ({'dead': [0.0, 0.95, 0.99, 0.0, NAN]}, 'dead', 'block'),
    ({'saturated': [0.0, 0.2, 0.99, 0.0, NAN]}, 'dead', 'more'),
    ({'dead': [0.0, 1.0, 0.0, 0.0, NAN], 'activation_rms': [1.0, 0.0, 1.0, 1.0, 1.0]}, 'trainable', None),
    (
      {
        'dead': [0.0, 1.0, 0.0, 0.0, NAN],
        'activation_rms': [1.0, 0.0, 1.0, 1.0, 1.0],
        'gradient_norm': [1.0, 0.0, 1.0, 1.0, 1.0],
      },
      'dead',
      'block',
    ),
    ({'activation_rms': [1.0, 0.1, 1e-3, 1e-6, 1.0]}, 'vanishing', 'more'),
    ({'activation_rms': [1.0, 1e2, 1e4, 1e6, 1.0]}, 'exploding', 'block'),
    ({'activation_rms': [1.0, 1.0, INF, INF, INF]}, 'exploding', 'more'),
    ({'output_gradient_norm': [1e-6, 1e-4, 1e-1, 1.0, 1.0]}, 'vanishing', 'block'),
    ({'output_gradient_norm': [1e6, 1e4, 1e1, 1.0, 1.0]}, 'exploding', 'block'),
    ({'output_gradient_norm': [INF, INF, 1e9, 1.0, 1.0]}, 'exploding', 'block'),
    ({'activation_rms': [1.0, 1e-15, 0.0, 0.0, 1.0], 'dead': [0.0, 0.0, 1.0, 1.0, NAN]}, 'vanishing', 'block'),
    ({'activation_rms': [1.0, 0.1, 1e-3, 1e-6, 1.0], 'scale_free': True}, 'trainable', None),
    (
      {'activation_rms': [1.0, 0.1, 1e-3, 1e-6, 1.0], 'scale_free': True, 'update_ratio': [1.0, 1.0, 1e-6, 1.0, 1.0]},
      'vanishing',
      'more',
    ),
    ({'output_gradient_norm': [0.0, 0.0, 0.0, 0.0, 1.0]}, 'cut off', 'last'),
    ({'output_gradient_norm': [0.0, 0.0, 0.0, 0.0, 1.0], 'cosine': [0.5, 0.5, 0.5, 0.5, 1.0]}, 'dead', 'last'),
    ({'output_gradient_norm': [0.0, 0.0, 1e-15, 1.0, 1.0]}, 'vanishing', 'more'),
    ({'output_gradient_norm': [0.0] * 5, 'gradient_norm': [0.0, 0.0, NAN, 0.0, 0.0]}, 'cut off', 'head'),
    ({'output_gradient_norm': [0.0] * 5, 'gradient_norm': [0.0, 0.0, 0.0, 0.0, 1e-9]}, 'vanishing', 'last'),
    ({'output_gradient_norm': [0.0] * 5, 'gradient_norm': [0.0] * 5, 'losses': [0.0, 0.0]}, 'vanishing', 'last'),
    (
      {'output_gradient_norm': [0.0] * 5, 'gradient_norm': [0.0] * 5, 'activation_rms': [1.0, 1.0, 1.0, 1.0, 0.0]},
      'cut off',
      'head',
    ),
    (
      {'output_gradient_norm': [0.0] * 5, 'gradient_norm': [0.0] * 5, 'activation_rms': [1.0, 1.0, 1.0, 0.0, 0.0]},
      'vanishing',
      'last',
    ),
    ({'output_gradient_norm': [1.0, 0.0, 1.0, 1.0, 1.0]}, 'trainable', None),
    (
      {'activation_rms': [1.0, 0.1, 0.01, 2e-3, 1.0], 'output_gradient_norm': [3e-3, 0.01, 0.1, 1.0, 1.0]},
      'vanishing',
      'more',
    ),
    (
      {'activation_rms': [NAN, 1.0, 1.0, 1.0, 1.0], 'output_gradient_norm': [NAN, 1.0, 1.0, 1.0, 1.0]},
      'trainable',
      None,
    ),
    ({'cosine': [0.5, 0.99999, 0.99999, 0.99999, 0.5]}, 'collapsing to one direction', 'block'),
    ({'cosine': [0.5, 0.97, 0.985, 0.99, 0.5], 'losses': [2.3, 2.31]}, 'collapsing to one direction', 'more'),
    ({'cosine': [0.5, 0.97, 0.985, 0.99, 0.5], 'losses': [2.3, 2.25]}, 'trainable', None),
    ({'cosine': [0.5, 0.97, 0.985, 0.99, 0.5], 'losses': [9.0, 9.1]}, 'trainable', None),
    ({'cosine': [0.5, 0.9, 0.95, 0.97, 0.5], 'losses': [2.3, 2.31]}, 'trainable', None),
    ({'cosine': [NAN, NAN, NAN, NAN, NAN]}, 'trainable', None),
    ({'cosine': [0.5, 0.5, 0.5, INF, 0.5]}, 'trainable', None),
    ({'losses': [2.3, 90.0]}, 'step too large', None),
    ({'losses': [2.3, NAN]}, 'step too large', None),
    ({'ratios': [0.2, 0.3], 'losses': [2.3, 2.5]}, 'step too large', None),
    ({'ratios': [0.2, 0.3], 'losses': [2.3, 1.0]}, 'trainable', None),
  ],
)
def test_judgement(changes, kind, entry):
  verdict = doctor.judge(examination(**changes))
  assert (verdict.kind, verdict.entry) == (kind, entry), verdict
  assert verdict.reason
