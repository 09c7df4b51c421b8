"""From a config to what a program computes with."""

import contextlib

import jax
import jax.numpy as jnp
import pytest

from dnt import errors
from dnt.training import datasets, experiment, open_options


def build(config):
  data = datasets.load(config, ('test',))
  return experiment.make(open_options.resolve(config, data), data.spec)


def test_a_wrong_number_of_class_weights_is_refused_before_anything_is_computed(tiny):
  tiny.loss.class_weights = (1.0, 2.0)
  data = datasets.load(tiny, ())
  with pytest.raises(errors.InputError, match='2 weights, but the model has 10 classes'):
    experiment.make(open_options.resolve(tiny, data), data.spec)


@pytest.mark.parametrize(
  ('options', 'trains'),
  [
    ({'trainable': 'all'}, True),
    ({'trainable': 'head'}, False),
    ({'trainable': 'stage3/.*'}, True),
    ({'trainable': 'head', 'unfreeze': (('50%', 'top:1'),)}, True),
    ({'trainable': 'head', 'unfreeze': (('1000', 'all'),)}, True),  # a run that is shortened for a trial
    ({'trainable': 'head', 'frozen_norm': 'affine_only'}, True),
    ({'trainable': 'head', 'frozen_norm': 'batch'}, False),
  ],
)
def test_rates_of_entries_that_never_train_are_refused(tiny, options, trains):
  tiny.model.update({'name': 'resnet', 'depth': 8, 'width': None})
  tiny.finetune.update({'rates': (('stage3/.*', 0.1),), **options})
  refusal = pytest.raises(errors.InputError, match=r"rates: 'stage3/\.\*' .* no entry that trains: head$")
  with contextlib.nullcontext() if trains else refusal:
    build(tiny)


def test_events_follow_epochs(tiny):
  run = build(tiny)
  assert run.steps_per_epoch == 4
  every = run.every('1 epochs')
  assert [step for step in range(1, 10) if every.due(step)] == [4, 8]


def test_abstract_state_is_the_state_undrawn(tiny):
  tiny.ema.decay = 0.9
  run = build(tiny)
  abstract = run.abstract_state()
  state = run.make_state(run.init_variables())
  assert jax.tree.structure(abstract) == jax.tree.structure(state)
  described = jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.asarray(leaf).dtype), state)
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract) == described
