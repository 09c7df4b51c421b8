"""Labels that images do not explain, and other oddities of the data."""

import numpy as np
import pytest

from dnt import config as schema
from dnt.data import examples
from dnt.diagnostics import labels
from dnt.training import datasets


@pytest.fixture(scope='module')
def digits():
  return datasets.load(schema.default(), ()).train


def relabel(train, changed):
  return examples.in_memory(train.name, train.split, train.images, changed, train.class_names)


def kinds(train, rms=1.0):
  return [finding.kind for finding in labels.find(train, rms)]


def test_nothing_is_said_of_usual_data(digits):
  assert kinds(digits) == []


@pytest.mark.parametrize('seed', range(5))
def test_shuffled_labels(digits, seed):
  changed = np.random.default_rng(seed).permutation(digits.labels)
  assert kinds(relabel(digits, changed)) == ['unexplained labels']


@pytest.mark.parametrize('offset', [-1, 1])
def test_labels_that_are_off_by_one(digits, offset):
  assert kinds(relabel(digits, np.roll(digits.labels, offset))) == ['shifted labels']


def test_a_list_that_begins_with_one_class(digits):
  halves = digits.labels // 5
  first, second = (np.flatnonzero(halves == half) for half in (0, 1))
  order = np.concatenate([first[:585], second[:15], first[585:], second[15:]])
  listed = digits.take('train', order)
  assert kinds(relabel(listed, halves[order])) == []
  assert kinds(relabel(listed, np.random.default_rng(0).permutation(halves))) == ['unexplained labels']


def test_a_rare_class_is_explained_too(digits):
  rare = np.flatnonzero(digits.labels == 7)[:60]
  kept = np.concatenate([np.flatnonzero(digits.labels != 7)[:1140], rare])
  train = digits.take('train', kept)
  given = (train.labels == 7).astype(train.labels.dtype)
  assert kinds(relabel(train, given)) == []
  assert kinds(relabel(train, np.random.default_rng(0).permutation(given))) == ['unexplained labels']


def test_labels_under_other_names_are_as_good(digits):
  assert kinds(relabel(digits, (digits.labels + 1) % 10)) == []


def test_one_class_alone(digits):
  (finding,) = labels.find(relabel(digits, np.full_like(digits.labels, 3)), 1.0)
  assert finding.kind == 'one class' and 'class 3' in finding.text


def test_unequal_classes(digits):
  rare = np.flatnonzero(digits.labels == 0)[2:]
  few = digits.take('train', np.setdiff1d(np.arange(len(digits)), rare))
  (finding,) = labels.find(few, 1.0)
  assert finding.kind == 'unequal classes' and 'balance_classes' in finding.text and ' 2:' in finding.text


@pytest.mark.parametrize(('rms', 'found'), [(0.01, True), (0.2, False), (3.0, False), (130.0, True)])
def test_the_scale_of_the_images(digits, rms, found):
  assert kinds(digits, rms) == ['input scale'] * found


def test_streamed_images_of_several_sizes(digits, tmp_path):
  from PIL import Image

  for index in range(120):
    image, label = digits[index]
    folder = tmp_path / 'train' / str(label % 2)
    folder.mkdir(parents=True, exist_ok=True)
    image.resize((8 + index % 3, 8)).save(folder / f'{index}.png')
  config = schema.default()
  config.data.update({'source': f'folder:{tmp_path}', 'image_size': 8, 'placement': 'stream', 'workers': 0})
  Image.init()
  assert kinds(datasets.load(config, ()).train) == []


def test_classes_that_differ_in_brightness_alone(digits):
  rng = np.random.default_rng(0)
  given = np.arange(400) % 10
  images = np.clip(22 * given[:, None, None, None] + 20 + rng.integers(-5, 6, (400, 8, 8, 1)), 0, 255).astype(np.uint8)
  train = examples.in_memory('bright', 'train', images, given, digits.class_names)
  assert kinds(train) == []
