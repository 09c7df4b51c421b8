import jax
import numpy as np
import pytest

from dnt import config as schema
from dnt.data import order, resident
from dnt.parallel import mesh as meshes

pytestmark = pytest.mark.usefixtures('eight_devices')


def make(count, batch_size, seed=0):
  """A loader whose images hold their own number."""
  numbers = np.arange(count, dtype=np.int32)
  images = numbers.astype(np.uint8).reshape(-1, 1, 1, 1)
  return resident.TrainLoader(images, numbers, seed, batch_size, meshes.make_mesh(schema.default().mesh))


def visits(count, places):
  return [int(order.order(0, place // count, count)[place % count]) for place in places]


@pytest.mark.parametrize(('count', 'batch_size'), [(20, 8), (8, 8), (3, 16), (1, 8), (1000, 8)])
def test_one_call_covers_all_steps_it_promises(count, batch_size):
  """Whatever the size of the set, from any step: also sets smaller than a batch."""
  loader = make(count, batch_size)
  batch_at = jax.jit(loader.batch_at)
  step = 0
  for _ in range(3):
    steps = loader.max_steps(step)
    assert steps >= 1
    arrays = loader.arrays(step, steps)
    for s in {step, step + steps - 1}:
      places = range(s * batch_size, (s + 1) * batch_size)
      batch = jax.device_get(batch_at(arrays, s))
      np.testing.assert_array_equal(batch['label'], visits(count, places))
      np.testing.assert_array_equal(batch['epoch'], [place // count for place in places])
      np.testing.assert_array_equal(batch['position'], [place % count for place in places])
    step += steps
  assert batch_at._cache_size() == 1, 'every call must run the same compiled program'


def test_two_epochs_of_order_reach_at_least_one_epoch_ahead():
  loader = make(100, 8)

  assert [loader.max_steps(step) for step in (0, 12, 13)] == [25, 13, 24]


def test_more_steps_than_promised_are_refused():
  loader = make(20, 8)
  with pytest.raises(ValueError, match='2 epochs'):
    loader.arrays(0, loader.max_steps(0) + 1)


def test_places_beyond_int32_are_counted_right():
  """Step 10^9 of batches of 8: eight billion examples on."""
  loader, step = make(20, 8), 10**9
  batch = jax.device_get(jax.jit(loader.batch_at)(loader.arrays(step, 1), step))

  np.testing.assert_array_equal(batch['label'], visits(20, range(step * 8, step * 8 + 8)))


def test_images_and_labels_stay_together():
  loader = make(50, 16)
  batch = jax.device_get(jax.jit(loader.batch_at)(loader.arrays(2, 1), 2))

  np.testing.assert_array_equal(batch['image'].reshape(-1), batch['label'])


def test_evaluation_covers_all_its_steps_with_one_call():
  images = np.ones((20, 2, 2, 1), np.uint8)
  loader = resident.EvalLoader(images, np.arange(20, dtype=np.int32), 8, meshes.make_mesh(schema.default().mesh))

  assert loader.steps == 3
  assert loader.max_steps(0) == 3
  masks = [jax.device_get(jax.jit(loader.batch_at)(loader.arrays(0, 3), step))['mask'].sum() for step in range(3)]
  assert masks == [8, 8, 4]
