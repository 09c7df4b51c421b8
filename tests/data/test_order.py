import numpy as np
import pytest

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
    for purpose in (order.ORDER, order.CROP, order.SPLIT, order.IMAGES, order.SHOTS)
    for major in range(3)
    for minor in range(3)
  }

  assert len(draws) == 45


def test_stratified_takes_the_same_fraction_of_each_class():
  labels = np.repeat([0, 1, 2], [100, 10, 2])
  first, second = order.stratified(labels, 0.2, seed=0)

  np.testing.assert_array_equal(np.bincount(labels[second]), [20, 2, 1])
  np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(112))
  assert len(np.unique(labels[first[:20]])) > 1, 'a slice must hold several classes'


@pytest.mark.parametrize('labels', [np.arange(60) % 7 * 3, np.repeat([5, 1, 3], [2, 3, 90]), np.zeros(5, np.int32)])
def test_stratified_draws_what_it_always_drew(labels):
  """A run that continues must find the same images held out, of each class the first ones of the random order."""
  shuffled = order.permutation(order.philox(4, order.SPLIT), len(labels)).tolist()
  expected = set[int]()
  for label in {*labels.tolist()}:
    members = [index for index in shuffled if labels[index] == label]
    expected |= {*members[: min(max(round(len(members) * 0.3), 1), len(members) - 1)]}
  first, second = order.stratified(labels, 0.3, seed=4)

  assert second.tolist() == [index for index in shuffled if index in expected]
  assert first.tolist() == [index for index in shuffled if index not in expected]


def test_stratified_looks_at_the_labels_once_for_all_classes():
  reads = []

  class Labels(np.ndarray):
    def __getitem__(self, index):
      reads.append(index)
      return np.asarray(super().__getitem__(index))

  order.stratified((np.arange(600) % 300).view(Labels), 0.5, seed=0)
  assert len(reads) == 1


def test_stratified_depends_on_the_seed():
  labels = np.arange(100) % 2

  np.testing.assert_array_equal(order.stratified(labels, 0.5, 0)[1], order.stratified(labels, 0.5, 0)[1])
  assert set(order.stratified(labels, 0.5, 0)[1]) != set(order.stratified(labels, 0.5, 1)[1])


def test_balanced_draws_as_many_of_each_class_however_unequal_they_are(monkeypatch):
  labels = np.repeat([0, 1, 2], [500, 30, 7])
  for block in (1, 10, 1000):
    monkeypatch.setattr(order, 'BLOCK', block)
    indices, drawn = order.balanced(lambda places: labels[places], len(labels), 3, 6, seed=0)
    np.testing.assert_array_equal(labels[indices], drawn)
    np.testing.assert_array_equal(np.bincount(drawn), [6, 6, 6])
    assert len(np.unique(indices)) == 18
    assert len(np.unique(drawn[:9])) > 1, 'in random order'
  _, all_of_two = order.balanced(lambda places: labels[places], len(labels), 3, 8, seed=0)
  np.testing.assert_array_equal(np.bincount(all_of_two), [8, 8, 7])


def test_balanced_depends_on_the_seed_and_the_fewer_are_among_the_more():
  labels = np.arange(300) % 3

  def draw(each, seed):
    return order.balanced(lambda places: labels[places], 300, 3, each, seed)[0].tolist()

  assert draw(5, 0) == draw(5, 0)
  assert set(draw(5, 0)) != set(draw(5, 1))
  assert set(draw(5, 0)) < set(draw(10, 0))


def test_balanced_looks_up_no_more_labels_than_it_needs(monkeypatch):
  monkeypatch.setattr(order, 'BLOCK', 10)
  looked = []
  order.balanced(lambda places: looked.extend(places) or np.array(places) % 2, 10_000, 2, 3, seed=0)
  assert 6 <= len(looked) <= 50
