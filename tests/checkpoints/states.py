"""States as runs save them, and the files of their checkpoints."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dnt import checkpoints, config


class State(flax.struct.PyTreeNode):
  step: jax.Array
  params: dict
  batch_stats: dict
  opt_state: tuple
  ema: dict


def _params(seed, width=8):
  normal = np.random.default_rng(seed).normal
  return {
    'stem': {'kernel': jnp.asarray(normal(size=(9, 9, 3, width)), jnp.float32)},
    'head': {'kernel': jnp.asarray(normal(size=(width, 5)), jnp.float32), 'bias': jnp.zeros(5)},
  }


def make(step=0, width=8, optimizer=None):
  params = _params(step, width)
  optimizer = optimizer or optax.named_chain(('momentum', optax.trace(0.9)), ('rate', optax.scale_by_schedule(abs)))
  stats = {'stem': {'mean': jnp.full(width, step, jnp.float32), 'var': jnp.ones(width)}}
  return State(jnp.int32(step), params, stats, optimizer.init(params), {'params': params, 'batch_stats': stats})


def options(keep=3):
  options = config.default()
  options.checkpoint.keep = keep
  return options.checkpoint


def abstract(state, sharding=None):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def save(workdir, steps, keep=3, metrics=None, best_metric='test/accuracy'):
  saved = checkpoints.Checkpoints(workdir, options(keep), best_metric)
  for step in steps:
    saved.save(step, make(step), {'at': step})
    if metrics and metrics[step] is not None:
      saved.rate(step, {'at': step}, {best_metric: metrics[step]})
  saved.close()


def names(workdir):
  return sorted(path.name for path in (workdir / 'checkpoints').iterdir())


def flip(path, at=None):
  data = bytearray(path.read_bytes())
  data[len(data) // 2 if at is None else at] ^= 0x10
  path.write_bytes(data)
