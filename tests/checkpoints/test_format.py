"""What is read back of a checkpoint: all of it, or what is wrong with it."""

import collections
import gc
import json

import jax
import jax.numpy as jnp
import optax
import pytest

from dnt import checkpoints, errors
from dnt import config as schema
from dnt.checkpoints import format
from tests.checkpoints import states

# Tasks that a failing read leaves behind in TensorStore are reported when they are collected.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def test_older_checkpoints_have_the_metric_that_ranked_them(tmp_path):
  config = schema.default().to_dict()
  config['eval']['splits'], config['ema']['decay'], config['checkpoint']['best_metric'] = ['val', 'test'], 0.9, 'loss'
  for step, meta in ((1, {'config': config}), (2, {})):
    path = tmp_path / 'checkpoints' / str(step) / 'meta' / 'meta.json'
    path.parent.mkdir(parents=True)
    envelope = {'meta': meta, 'metric': 0.25 * step, 'leaves': {}}
    path.write_text(json.dumps({**envelope, 'sha256': format._sha256(envelope)}))
  assert checkpoints.choose_step(tmp_path, 'best', 'val_ema/loss') == 1
  with pytest.raises(errors.InputError, match='test/loss'):
    checkpoints.choose_step(tmp_path, 'best', 'test/loss')


def _refused(run, state, *patterns):
  saved = checkpoints.Checkpoints(run, states.options())
  with pytest.raises(errors.InputError) as caught:
    saved.restore_latest(lambda step: states.abstract(state))
  message = str(caught.value)
  assert '\n' not in message and 'another --workdir' in message and 'config.json' in message
  for pattern in patterns:
    assert pattern in message
  assert states.names(run) == ['1', '2', '3'], 'what was saved stays'
  saved.close()


def test_missing_and_unexpected_leaves_are_named(run):
  state = states.make()
  params = dict(state.params, extra={'kernel': jnp.ones(2)})
  del params['stem']
  _refused(run, state.replace(params=params), 'missing: params/extra/kernel', 'unexpected: params/stem/kernel')


def test_another_shape_is_named(run):
  wider = states.make(width=6)
  _refused(run, wider, 'shape', 'params/head/kernel (8, 5), not (6, 5)', 'params/stem/kernel (9, 9, 3, 8), not')


def test_another_dtype_is_named(run):
  state = states.make()
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params)
  _refused(run, state.replace(params=low), 'dtype', 'params/head/bias float32, not bfloat16')


def test_another_optimizer_is_named(run):
  _refused(
    run, states.make(optimizer=optax.adam(0.1)), 'missing: opt_state/0/count', 'unexpected: opt_state/momentum/trace'
  )


def test_long_lists_are_cut(run):
  state = states.make()
  many = dict(state.params, **{f'block{i:03d}': jnp.ones(1) for i in range(50)})
  _refused(run, state.replace(params=many), 'missing: params/block000, ', 'params/block007', '42 more')


@pytest.mark.thorough
def test_every_single_flipped_byte_is_caught_or_harmless(run):
  """Restores either the very bits that were saved or refuses: bytes over the whole of every file of a checkpoint."""
  abstract, expected = states.abstract(states.make()), states.make(3)
  step = run / 'checkpoints/3'
  files = sorted(path for path in step.rglob('*') if path.is_file() and path.stat().st_size)
  outcomes = collections.Counter()
  for number, path in enumerate(files):
    original = path.read_bytes()
    for at in {0, len(original) // 3, len(original) * (number + 1) // (len(files) + 1), len(original) - 1}:
      states.flip(path, at)
      try:
        read = format.read_state(step, abstract)
        problem = format.compare_digests(read)
        state, meta = read.value
      except format.DamagedError as error:
        problem = error
      outcomes[problem is not None] += 1
      if problem is None:
        states.assert_same(state, expected)
        assert meta == {'at': 3}
      path.write_bytes(original)
  gc.collect()
  assert outcomes[True] > 5
