import numpy as np

from dnt.data import order


def test_an_epoch_visits_every_example_once():
  visited = order.order(seed=3, epoch=2, count=1000)

  assert visited.dtype == np.int32
  np.testing.assert_array_equal(np.sort(visited), np.arange(1000))


def test_order_is_a_function_of_seed_and_epoch():
  first = order.order(0, 0, 500)

  np.testing.assert_array_equal(first, order.order(0, 0, 500))
  assert (first != order.order(0, 1, 500)).mean() > 0.9
  assert (first != order.order(1, 0, 500)).mean() > 0.9


def test_order_stays_what_it_was():
  """A run must be resumable under other versions of NumPy and of this program."""
  np.testing.assert_array_equal(order.order(7, 3, 10), [2, 0, 7, 3, 5, 4, 8, 9, 1, 6])


def test_order_is_uniform():
  """Where example 0 lands, over many epochs: chi-squared over 10 places, 9 degrees of freedom, 99.9 % at 27.9."""
  places = [int(np.argmin(order.order(0, epoch, 10))) for epoch in range(2000)]
  counts = np.bincount(places, minlength=10)

  assert ((counts - 200) ** 2 / 200).sum() < 27.9


def test_streams_of_different_purpose_and_place_differ():
  draws = {
    tuple(order.generator(0, purpose, major, minor).integers(0, 2**32, 4))
    for purpose in (order.ORDER, order.CROP, order.SPLIT, order.IMAGES)
    for major in range(3)
    for minor in range(3)
  }

  assert len(draws) == 36


def test_stratified_takes_the_same_fraction_of_each_class():
  labels = np.repeat([0, 1, 2], [100, 10, 2])
  first, second = order.stratified(labels, 0.2, seed=0)

  np.testing.assert_array_equal(np.bincount(labels[second]), [20, 2, 1])
  np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(112))
  assert len(np.unique(labels[first[:20]])) > 1, 'a slice must hold several classes'


def test_stratified_depends_on_the_seed():
  labels = np.arange(100) % 2

  np.testing.assert_array_equal(order.stratified(labels, 0.5, 0)[1], order.stratified(labels, 0.5, 0)[1])
  assert set(order.stratified(labels, 0.5, 0)[1]) != set(order.stratified(labels, 0.5, 1)[1])
