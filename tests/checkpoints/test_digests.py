import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dnt import config
from dnt.checkpoints import digests
from dnt.parallel import mesh as mesh_lib


def _digests(values):
  return {path: digest for path, (digest, _) in digests.inspect(values).items()}


def test_digest_against_numpy():
  rng = np.random.default_rng(1)
  values = {
    'f32': rng.normal(size=(5, 7)).astype(np.float32),
    'bf16': rng.normal(size=(3, 4, 5)).astype(jnp.bfloat16),
    'i32': rng.integers(-9, 9, size=11, dtype=np.int32),
    'bool': rng.random(13) < 0.5,
    'scalar': np.float32(3.5),
    'empty': np.zeros((0, 3), np.float32),
  }

  def digest(array):
    array = array.astype(np.uint8) if array.dtype == np.bool_ else np.ascontiguousarray(array)
    words = np.atleast_1d(array).view(f'u{min(array.dtype.itemsize, 4)}').ravel().tolist()
    total = 0
    for position, word in enumerate(words):
      total += word * (2 * position + 1)
    return total % 2**32

  expected = {path: digest(value) for path, value in values.items()}
  assert _digests(values) == expected
  assert _digests({path: jnp.asarray(value) for path, value in values.items()}) == expected
  assert _digests({'f64': np.arange(5.0)}) == {'f64': digest(np.arange(5.0))}


def test_digest_sees_every_bit_and_every_move():
  value = np.arange(1, 65, dtype=np.float32)
  digest = _digests({'x': value})['x']
  for position in (0, 1, 31, 63):
    for bit in range(32):
      changed = value.copy()
      changed.view(np.uint32)[position] ^= np.uint32(1 << bit)
      assert _digests({'x': changed})['x'] != digest
  assert _digests({'x': value[::-1].copy()})['x'] != digest
  assert _digests({'x': value.reshape(8, 8)})['x'] == digest
  assert _digests({'x': value.reshape(8, 8).T.copy()})['x'] != digest
  assert _digests({'x': np.float32(0.0)}) != _digests({'x': np.float32(-0.0)})


def test_finite_or_not():
  values = {
    'fine': np.array([1.0, -0.0, 3e38], np.float32),
    'nan': np.array([1.0, np.nan], np.float32),
    'infinite': jnp.array([1.0, -jnp.inf], jnp.bfloat16),
    'whole': np.array([2**31 - 1], np.int32),
    'empty': np.zeros((0,), np.float32),
  }
  finite = {path: finite for path, (_, finite) in digests.inspect(values).items()}
  assert finite == {'fine': True, 'nan': False, 'infinite': False, 'whole': True, 'empty': True}


@pytest.mark.usefixtures('eight_devices')
def test_sharded_is_the_same():
  options = config.default()
  options.mesh.fsdp = 4
  mesh = mesh_lib.make_mesh(options.mesh)
  value = np.random.default_rng(0).normal(size=(8, 12, 5)).astype(np.float32)
  specs = [('data',), (None, 'fsdp'), ('data', 'fsdp'), (('data', 'fsdp'),), ()]
  for spec in specs:
    sharded = jax.device_put(value, NamedSharding(mesh, PartitionSpec(*spec)))
    assert _digests({'x': sharded}) == _digests({'x': value}), spec
