"""The transfer configs at full size: valid programs, and what trains in each strategy."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from dnt import config as schema
from dnt import experiment, trees
from dnt.comparison import plan

pytestmark = pytest.mark.usefixtures('one_device')
CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
TRAINABLE = {'scratch': 269_722 - 6 * 65, 'head': 8196, 'top2': 8196 + 2 * 4_462_592, 'all': 23_508_032 + 8196}


def test_mri(load_config, tmp_path):
  path = CONFIGS / 'transfer_mri_resnet50.py'
  assert len(path.read_text().splitlines()) <= 60
  config = load_config(path)
  schema.validate(config)
  runs = plan.make(config, tmp_path)
  assert len(runs) == 12
  assert all(run.config.loss.balance_classes for run in runs)
  found = {}
  for run in runs[:4]:
    given = run.config
    given.data.mean, given.data.std, given.train.steps = (0.5,) * 3, (0.5,) * 3, 10
    made = experiment.make(given, experiment.DataSpec(1000, (given.data.image_size,) * 2 + (3,), tuple('abcd')))
    state = made.abstract_state()
    batch = {'image': jax.ShapeDtypeStruct((given.train.batch_size, *made.spec.image_shape), jnp.uint8)}
    batch |= {
      name: jax.ShapeDtypeStruct(batch['image'].shape[:1], jnp.int32) for name in ('label', 'epoch', 'position')
    }
    after, _ = jax.eval_shape(made.stages[0].train_step, state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    trainable, _ = made.stages[0].cut.split(state.params)
    found[run.variant] = trees.count(trainable)
  assert found == TRAINABLE
