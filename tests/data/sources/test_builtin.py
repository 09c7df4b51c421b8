import numpy as np
import pytest

from dnt import errors
from dnt.parallel import capacity
from tests.data import loading


def test_digits_are_those_of_scikit_learn(data):
  """All 1797 images with their labels, in both splits together, scaled from 0..16 to 0..255."""
  datasets = pytest.importorskip('sklearn.datasets')
  digits = datasets.load_digits()
  train, test = loading.load(data, 'train', seed=0), loading.load(data, 'test', seed=0)
  scaled = np.round(digits.images * 255 / 16).astype(np.uint8)

  expected = sorted((int(label), image.tobytes()) for label, image in zip(digits.target, scaled, strict=True))
  found = sorted((label, image.tobytes()) for part in (train, test) for image, label in part)
  assert found == expected
  assert train.shape == (8, 8, 1)
  assert train.images.max() == 255
  assert train.class_names == tuple('0123456789')


def test_digits_are_split_class_by_class(data):
  train, test = loading.load(data, 'train', seed=0), loading.load(data, 'test', seed=0)
  fraction = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))

  np.testing.assert_allclose(fraction, 0.2, atol=0.003)


def test_digits_split_by_the_seed(data):
  first, again, other = (loading.load(data, 'test', seed).images for seed in (0, 0, 1))

  np.testing.assert_array_equal(first, again)
  assert first.shape != other.shape or (first != other).any()


def test_synthetic_images_tell_their_class(data):
  """The nearest mean training image of a class names the class of nearly every test image."""
  data.source = 'synthetic'
  data.synthetic_classes, data.synthetic_examples, data.image_size = 5, 200, 16
  train, test = loading.load(data, 'train', 0), loading.load(data, 'test', 0)
  means = np.stack([train.images[train.labels == label].mean(0) for label in range(5)])
  distances = ((test.images[:, None] - means) ** 2).sum((2, 3, 4))

  assert (distances.argmin(1) == test.labels).mean() > 0.99
  assert train.shape == (16, 16, 3)
  assert len(train) == len(test) == 200
  assert train.class_names == ('class0', 'class1', 'class2', 'class3', 'class4')


def test_synthetic_images_depend_on_seed_split_and_number_alone(data):
  data.source = 'synthetic'
  data.synthetic_examples = 20
  train = loading.load(data, 'train', 0).images
  data.synthetic_examples = 30

  np.testing.assert_array_equal(loading.load(data, 'train', 0).images[:20], train)
  assert (loading.load(data, 'test', 0).images[:20] != train).any()
  assert (loading.load(data, 'train', 1).images[:20] != train).any()


@pytest.mark.parametrize(
  'changes', [{'synthetic_examples': 2**31 - 1}, {'image_size': 2**31 - 1}, {'synthetic_classes': 10_000}]
)
def test_synthetic_images_beyond_memory_are_refused(data, changes, monkeypatch):
  monkeypatch.setattr(capacity, 'host', lambda: 10**8)
  data.source = 'synthetic'
  data.update(changes)
  with pytest.raises(errors.InputError, match='synthetic images .*config.data.synthetic_examples'):
    loading.load(data, 'train', 0)
