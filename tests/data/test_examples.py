import logging

import numpy as np
import pytest
from PIL import Image

from dnt import errors
from dnt.data import sources
from dnt.data.sources import registry
from tests.data import loading


def test_a_slice_holds_those_examples(data):
  whole, part = loading.load(data, 'train', 0), loading.load(data, 'train[10%:-80%]', 0)
  start, stop = round(0.1 * len(whole)), len(whole) - round(0.8 * len(whole))

  np.testing.assert_array_equal(part.images, whole.images[start:stop])
  np.testing.assert_array_equal(part.labels, whole.labels[start:stop])
  assert part.split == 'train[10%:-80%]'
  image, label = part[0]
  np.testing.assert_array_equal(image, whole.images[start, ..., 0])
  assert label == whole.labels[start]


def test_training_takes_as_many_images_of_each_class_as_asked_for(data):
  whole = loading.load(data, 'train', 0)
  data.images_per_class = 7
  few = loading.load(data, 'train', 0)
  np.testing.assert_array_equal(np.bincount(few.labels), [7] * 10)
  found = {image.tobytes(): label for image, label in zip(whole.images, whole.labels, strict=True)}
  assert [found[image.tobytes()] for image in few.images] == few.labels.tolist()
  np.testing.assert_array_equal(loading.load(data, 'train', 0).images, few.images)
  data.seed = 1
  assert not np.array_equal(loading.load(data, 'train', 0).images, few.images)
  data.seed, data.images_per_class = 0, 3
  assert {*map(bytes, loading.load(data, 'train', 0).images)} < {*map(bytes, few.images)}


def test_fewer_images_of_a_class_than_asked_for_are_refused_by_its_name(data, class_folders, caplog):
  data.source = f'folder:{class_folders({"train/ant": 4, "train/bee": 2, "train/cat": 9, "test/ant": 1})}'
  data.images_per_class = 3
  with pytest.raises(errors.InputError, match=r"images_per_class=3, but train of folder:.* only 2 images of 'bee'"):
    loading.load(data, 'train', 0)
  data.images_per_class = 2
  with caplog.at_level(logging.INFO, 'dnt'):
    few = loading.load(data, 'train', 0)
  assert [path.split('/')[-2] for path in few.store.paths] == [few.class_names[label] for label in few.labels]
  assert len(set(few.store.paths)) == 6
  assert caplog.records[-1].getMessage().endswith('15 images (2 to 9 per class); trains on 2 of each class')


@pytest.mark.parametrize('placement', ['device', 'stream'])
def test_a_class_of_which_the_data_has_no_image_is_left_out_by_name(data, prepared, make_image, caplog, placement):
  """As the letters of EMNIST in TFDS, which has 37 classes, of which 26 have images."""
  pytest.importorskip('tensorflow_datasets')
  images = [make_image(6, 5, seed=seed) for seed in range(10)]
  folder = prepared(images, [1, 3] * 4 + [4, 4], names=('N/A', 'a', 'none', 'b', 'c'))
  data.update({'source': 'tfds:toy', 'dir': str(folder), 'placement': placement, 'images_per_class': 2})
  with caplog.at_level(logging.INFO, 'dnt'):
    few = loading.load(data, 'train', 0)
  np.testing.assert_array_equal(np.bincount(few.labels), [0, 2, 0, 2, 2])
  if placement == 'device':  # the line is said once
    assert caplog.records[-1].getMessage().endswith("trains on 2 of each class but 'N/A', 'none': there is none")
  data.train_split = 'train[:-2]'
  with pytest.raises(
    errors.InputError, match=r"train\[:-2\] of tfds:toy has no image of 'N/A', 'none', 'c'; use a larger"
  ):
    loading.load(data, 'train[:-2]', 0)
  data.train_split, data.images_per_class = 'train', 3
  with pytest.raises(errors.InputError, match="only 2 images of 'c'; give at most this number"):
    loading.load(data, 'train', 0)


def test_images_that_were_drawn_may_be_those_of_another_slice(data):
  data.images_per_class = 2
  few, late = loading.load(data, 'train', 0), loading.load(data, 'train[90%:]', 0)
  assert few.overlaps(late) and late.overlaps(few)
  assert not few.overlaps(loading.load(data, 'test', 0))


def test_files_are_shared_whatever_the_names_of_the_splits(data, class_folders):
  data.source = f'folder:{class_folders({"ant": 10, "bee": 10})}'
  whole, train, val = (loading.load(data, split, 0) for split in ('all', 'train', 'val'))
  assert all(whole.overlaps(part) and part.overlaps(whole) for part in (train, val))
  assert not train.overlaps(val) and not val.overlaps(train)


@pytest.mark.parametrize('placement', ['stream', 'device'])
def test_a_split_overlaps_with_itself_under_another_name(data, prepared, make_image, monkeypatch, placement):
  pytest.importorskip('tensorflow_datasets')
  folder = prepared([make_image(6, 5, seed=seed) for seed in range(8)], [0, 1, 2, 0, 1, 2, 0, 1])
  data.source, data.dir, data.placement = 'tfds:toy', str(folder), placement
  read = sources.find(data, 0)['train']
  monkeypatch.setitem(registry.SOURCES, 'tfds', (lambda *_: {'validation': read}, '<name>'))
  trained = loading.load(data, 'validation[:50%]', 0)
  assert trained.overlaps(loading.load(data, 'val[3:]', 0)) and not trained.overlaps(loading.load(data, 'val[4:]', 0))


def test_gray_images_become_rgb_for_a_network_of_rgb(data):
  gray = loading.load(data, 'train[:9]', 0)
  data.mean, data.std = (0.4, 0.5, 0.6), (0.2, 0.2, 0.2)
  color = loading.load(data, 'train[:9]', 0)
  assert (gray.shape, color.shape) == ((8, 8, 1), (8, 8, 3))
  for channel in range(3):
    np.testing.assert_array_equal(color.images[..., channel], gray.images[..., 0])


@pytest.mark.parametrize('placement', ['device', 'stream'])
def test_color_images_become_gray_for_a_network_of_gray_ones(data, class_folders, placement):
  folders = class_folders(
    {f'{split}/{name}': 1 for split in ('train', 'val') for name in ('cat', 'dog')}
  )  # of one size
  data.source, data.mean, data.std = f'folder:{folders}', (0.4,), (0.2,)
  read = loading.load(data, 'train', 0)
  assert read.shape[-1] == 1
  for index, path in enumerate(read.store.paths):
    with Image.open(path) as image:
      np.testing.assert_array_equal(np.asarray(read[index][0]), np.asarray(image.convert('L')))


def test_color_images_in_memory_become_gray(data):
  data.source, data.synthetic_examples, data.image_size = 'synthetic', 4, 8
  color = loading.load(data, 'train', 0)
  data.mean, data.std = (0.4,), (0.2,)
  gray = loading.load(data, 'train', 0)
  assert (color.shape, gray.shape, gray.images.shape) == ((8, 8, 3), (8, 8, 1), (4, 8, 8, 1))
  luma = color.images @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2
  np.testing.assert_allclose(gray.images[..., 0], luma, atol=1)
