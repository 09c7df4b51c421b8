import gzip
import pathlib

import numpy as np
import pytest

from dnt import errors
from tests.data import loading

FASHION_MNIST = pathlib.Path('/usr/share/datasets/fashion-mnist')


@pytest.fixture
def folder(tmp_path, idx_bytes):
  """Seven training and five test images, 6 x 4, of 3 classes; one pair of files gzipped, one name in Kaggle's way."""
  generator = np.random.default_rng(0)
  train, test = (generator.integers(0, 256, (count, 6, 4), np.uint8) for count in (7, 5))
  labels = np.array([0, 1, 2, 0, 1, 2, 0], np.uint8)
  (tmp_path / 'train-images-idx3-ubyte').write_bytes(idx_bytes(train))
  (tmp_path / 'train-labels.idx1-ubyte').write_bytes(idx_bytes(labels))
  (tmp_path / 't10k-images-idx3-ubyte.gz').write_bytes(gzip.compress(idx_bytes(test)))
  (tmp_path / 't10k-labels-idx1-ubyte.gz').write_bytes(gzip.compress(idx_bytes(labels[:5])))
  return tmp_path, train, test, labels


def test_files_are_read_gzipped_or_not(data, folder):
  path, train, test, labels = folder
  data.source = f'idx:{path}'

  for split, images in (('train', train), ('test', test)):
    read = loading.load(data, split, 0)
    np.testing.assert_array_equal(read.images, images[..., None])
    np.testing.assert_array_equal(read.labels, labels[: len(images)])
    assert read.class_names == ('0', '1', '2')
    assert read.shape == (6, 4, 1)


@pytest.mark.parametrize(
  ('name', 'change', 'message'),
  [
    ('train-images-idx3-ubyte', lambda b: b[:-1], r'183 bytes.* 184 .*7, 6, 4'),
    ('train-images-idx3-ubyte', lambda b: b'\x00\x00\x0d' + b[3:], '00000d03.* 00000803'),
    ('train-images-idx3-ubyte', lambda b: b'', 'nothing'),
    ('train-labels.idx1-ubyte', lambda b: b[:7] + b'\x06' + b[8:-1], r'\b7 .*\b6 labels'),
    ('t10k-images-idx3-ubyte.gz', lambda b: b[:-20], 'unpacked'),
    ('t10k-images-idx3-ubyte.gz', lambda b: b'not gzip', 'unpacked'),
  ],
)
def test_a_damaged_file_is_refused(data, folder, name, change, message):
  path = folder[0] / name
  path.write_bytes(change(path.read_bytes()))
  data.source = f'idx:{folder[0]}'

  with pytest.raises(errors.InputError, match=message) as raised:
    loading.load(data, 'train' if name.startswith('train') else 'test', 0)
  assert name in str(raised.value)


def test_a_missing_file_is_named(data, folder):
  (folder[0] / 't10k-labels-idx1-ubyte.gz').unlink()
  data.source = f'idx:{folder[0]}'
  with pytest.raises(errors.InputError, match=r'no t10k-labels-idx1-ubyte\[\.gz\]'):
    loading.load(data, 'train', 0)

  data.source = f'idx:{folder[0]}/absent'
  with pytest.raises(errors.InputError, match='exist.* train-images-idx3-ubyte'):
    loading.load(data, 'train', 0)


def test_a_test_label_beyond_the_training_ones_is_refused(data, folder, idx_bytes):
  labels = np.array([0, 1, 2, 3, 0], np.uint8)
  (folder[0] / 't10k-labels-idx1-ubyte.gz').write_bytes(gzip.compress(idx_bytes(labels)))
  data.source = f'idx:{folder[0]}'

  with pytest.raises(errors.InputError, match=r'label 3\b.* 2$'):
    loading.load(data, 'test', 0)


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason='Debian package dataset-fashion-mnist is not installed')
def test_fashion_mnist_is_read(data):
  """Class counts, and the mean and deviation that its users quote (0.2860, 0.3530)."""
  data.source = f'idx:{FASHION_MNIST}'
  train, test = loading.load(data, 'train', 0), loading.load(data, 'test', 0)

  assert train.images.shape == (60_000, 28, 28, 1)
  np.testing.assert_array_equal(np.bincount(train.labels), [6000] * 10)
  np.testing.assert_array_equal(np.bincount(test.labels), [1000] * 10)
  assert abs(train.images.mean() / 255 - 0.2860) < 5e-5
  assert abs(train.images.std() / 255 - 0.3530) < 5e-5
