import hashlib
import importlib.util
import json
import os
import pathlib
import pickle
import re
import resource
import sys

import numpy as np
import pytest

from dnt import errors
from tests.data import loading

pytest.importorskip('tensorflow_datasets')
WITHOUT_TENSORFLOW = importlib.util.find_spec('tensorflow') is None


def load(data, folder, name='toy', split='train'):
  data.source, data.dir = f'tfds:{name}', str(folder)
  return loading.load(data, split, 0)


@pytest.mark.parametrize('channels', [1, 3])
def test_a_prepared_set_is_decoded_into_memory(data, prepared, make_image, channels):
  images = [make_image(6, 5, channels, seed) for seed in range(7)]
  read = load(data, prepared(images, [0, 1, 2, 0, 1, 2, 0]))

  np.testing.assert_array_equal(read.images, images)
  np.testing.assert_array_equal(read.labels, [0, 1, 2, 0, 1, 2, 0])
  assert read.labels.dtype == np.int32
  assert read.class_names == ('ant', 'bee', 'cat')
  assert read.shape == (6, 5, channels)


def test_a_slice_is_that_of_the_split(data, prepared, make_image):
  images = [make_image(6, 5, 3, seed) for seed in range(7)]
  read = load(data, prepared(images, range(3, 10), names='0123456789'), split='train[2:-1]')

  np.testing.assert_array_equal(read.images, images[2:-1])
  np.testing.assert_array_equal(read.labels, [5, 6, 7, 8])


def test_streamed_records_are_read_one_by_one_here_and_in_a_worker(data, prepared, make_image):
  """What a worker gets is pickled; it must read the same without what this process has open."""
  images = [make_image(6, 5, 3, seed) for seed in range(7)]
  data.placement = 'stream'
  read = load(data, prepared(images, [0, 1, 2, 0, 1, 2, 0]), split='train[1:-1]')

  assert read.images is None
  assert read.shape == (6, 5, 3)
  assert len([*read]) == 5, 'reading must end with the slice'
  for source in (read, pickle.loads(pickle.dumps(read))):
    for index in (4, 0):
      found, label = source[index]
      np.testing.assert_array_equal(found, images[index + 1])
      assert label == (index + 1) % 3


def test_images_of_differing_sizes_are_streamed(data, prepared, make_image):
  images = [make_image(6 + seed, 5, 3, seed) for seed in range(4)]
  read = load(data, prepared(images, [0, 1, 2, 0], shape=(None, None, 3)))

  assert read.images is None
  assert read.shape == (None, None, 3)
  np.testing.assert_array_equal(read[3][0], images[3])


def test_a_set_beyond_the_limit_is_streamed(data, prepared, make_image, monkeypatch):
  from dnt.data import placement

  folder = prepared([make_image(6, 5)] * 4, [0, 1, 2, 0])
  monkeypatch.setattr(placement, 'RESIDENT_BYTES', 4 * 6 * 5 * 3 - 1)
  assert load(data, folder).images is None

  data.placement = 'device'
  assert load(data, folder).images is not None


def test_a_set_that_the_host_cannot_hold_is_refused_before_it_is_decoded(data, prepared, make_image, monkeypatch):
  from dnt.parallel import capacity

  folder = prepared([make_image(6, 5)] * 4, [0, 1, 2, 0])
  monkeypatch.setattr(capacity, 'host', lambda: 4 * 6 * 5 * 3)
  load(data, folder)
  monkeypatch.setattr(capacity, 'host', lambda: 4 * 6 * 5 * 3 - 1)
  for data.placement in ('auto', 'device'):
    with pytest.raises(errors.InputError, match='train, 4 images of 6 x 5 .*memory.* config.data.placement=stream'):
      load(data, folder)
  data.placement = 'stream'
  load(data, folder)


@pytest.mark.skipif(not WITHOUT_TENSORFLOW, reason='TensorFlow is installed')
def test_reading_imports_no_tensorflow(data, prepared, make_image):
  load(data, prepared([make_image(6, 5)] * 4, [0, 1, 2, 0]))

  assert 'tensorflow' not in sys.modules


@pytest.mark.skipif(not WITHOUT_TENSORFLOW, reason='TensorFlow is installed')
def test_an_unprepared_set_without_tensorflow_says_what_to_install(data, tmp_path):
  with pytest.raises(errors.InputError, match=rf'not prepared in {re.escape(str(tmp_path))}.* requirements-tfds\.txt'):
    load(data, tmp_path, 'mnist')


def fail_to_prepare(monkeypatch, error):
  """Makes TFDS believe in TensorFlow and fail to prepare anything with `error`."""
  import tensorflow_datasets

  def download_and_prepare(builder, **options):
    raise error

  monkeypatch.setattr(tensorflow_datasets.core.DatasetBuilder, 'download_and_prepare', download_and_prepare)
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name == 'tensorflow' or find_spec(name))


def test_without_a_network_the_archive_and_its_place_are_named(data, tmp_path, monkeypatch):
  fail_to_prepare(monkeypatch, OSError('no route to host'))
  place = tmp_path / 'downloads' / 'manual'

  with pytest.raises(errors.InputError) as raised:
    load(data, tmp_path, 'cifar10')
  assert 'no route to host' in str(raised.value)
  wanted = f'{place} .*https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz'
  assert re.search(wanted, str(raised.value))


def test_a_set_that_nobody_may_download_says_where_its_archives_go(data, tmp_path, monkeypatch):
  fail_to_prepare(monkeypatch, AssertionError('Manual directory does not exist'))

  with pytest.raises(errors.InputError, match=r'downloads/manual.*ILSVRC2012_img_train\.tar'):
    load(data, tmp_path, 'imagenet2012')


def test_an_address_is_no_folder_of_prepared_sets(data, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  fail_to_prepare(monkeypatch, AssertionError('prepared'))
  with pytest.raises(errors.InputError, match=r'^config\.data\.dir=gs://bucket/sets is the address.* mounted'):
    load(data, 'gs://bucket/sets', 'cifar10')
  assert not list(tmp_path.iterdir())


def test_an_unknown_set_names_the_nearest(data, tmp_path):
  with pytest.raises(errors.InputError, match=r"'cifar11'.* 'cifar10"):
    load(data, tmp_path, 'cifar11')


def test_an_unknown_split_names_the_nearest(data, prepared, make_image):
  with pytest.raises(errors.InputError, match=r"split of tfds:toy 'trian'.* 'train'"):
    load(data, prepared([make_image(6, 5)] * 4, [0, 1, 2, 0]), split='trian[:50%]')


def test_images_of_more_than_8_bits_are_refused(data, prepared, make_image):
  folder = prepared([make_image(6, 5)] * 4, [0, 1, 2, 0], dtype='uint16')
  with pytest.raises(errors.InputError, match='tfds:toy.* uint16 .*3 channels.* uint8'):
    load(data, folder)


def test_a_split_without_labels_is_refused(data, prepared, make_image):
  folder = prepared([make_image(6, 5)] * 4, [0, 1, -1, 0])
  with pytest.raises(errors.InputError, match='example 2 of tfds:toy train .*no label'):
    load(data, folder)


def test_a_damaged_file_is_refused(data, prepared, make_image):
  folder = prepared([make_image(6, 5)] * 4, [0, 1, 2, 0])
  path = folder / 'toy' / '1.0.0' / 'toy-train.array_record-00001-of-00002'
  path.write_bytes(path.read_bytes()[:50])
  with pytest.raises(errors.InputError, match='tfds:toy train .*read'):
    load(data, folder)


def test_more_files_are_read_than_may_be_open_at_first(data, prepared, make_image):
  images = [make_image(6, 5, 3, seed) for seed in range(4)]
  folder, limits = prepared(images, [0, 1, 2, 0]), resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1] - 1, limits[1]))
  try:
    load(data, folder)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_too_many_open_files_are_no_damage(data, prepared, make_image):
  data.placement = 'stream'
  read = load(data, prepared([make_image(6, 5)] * 4, [0, 1, 2, 0]))
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
  try:
    with pytest.raises(errors.InputError, match=r'Too many open files.* 2 files open; .*ulimit -n') as raised:
      read[0]
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
  assert 'prepare' not in str(raised.value)


def test_a_set_prepared_as_tfrecord_says_what_to_do(data, prepared, make_image):
  folder = prepared([make_image(6, 5)] * 4, [0, 1, 2, 0], file_format='tfrecord')
  with pytest.raises(errors.InputError, match=r'tfrecord.* config\.data\.dir'):
    load(data, folder)


def place_archive(archive, root):
  """Puts CIFAR-10's archive where TFDS' builder finds it.

  TFDS checks the official archive's digest in `downloads/manual`. One with the official files but packed anew has
  another digest, and is put where TFDS keeps what it has downloaded and checked.
  """
  import tensorflow_datasets
  from tensorflow_datasets.core.download import checksums, resource

  builder = tensorflow_datasets.builder('cifar10', data_dir=root, file_format='array_record')
  ((url, official),) = builder.url_infos.items()
  if checksums.compute_url_info(archive) == official:
    path = root / 'downloads' / 'manual' / official.filename
  else:
    path = root / 'downloads' / 'cifar10' / resource.get_dl_fname(url, official.checksum)
  path.parent.mkdir(parents=True)
  path.symlink_to(archive)
  if path.parent.name != 'manual':
    resource.write_info_file(
      url=url, path=path, dataset_name='cifar10', original_fname=official.filename, url_info=official
    )


@pytest.mark.slow
def test_the_real_builder_prepares_the_real_cifar10(data, tmp_path):
  """TFDS' own builder on the real archive, through the source, against the binary files: all 60,000 images."""
  pytest.importorskip('tensorflow', reason='TensorFlow (requirements-tfds.txt) is not installed')
  archive, binary = os.environ.get('DNT_CIFAR10_ARCHIVE'), os.environ.get('DNT_CIFAR10_DIR')
  if not archive or not pathlib.Path(archive).is_file():
    pytest.skip('DNT_CIFAR10_ARCHIVE does not name cifar-10-binary.tar.gz')
  if not binary or not pathlib.Path(binary).is_dir():
    pytest.skip('DNT_CIFAR10_DIR does not name a folder with the binary files')
  place_archive(pathlib.Path(archive).resolve(), tmp_path)

  for split, count in (('train', 50_000), ('test', 10_000)):
    prepared = load(data, tmp_path, 'cifar10', split)
    data.source = f'cifar_binary:{binary}'
    official = loading.load(data, split, 0)
    assert prepared.class_names == official.class_names
    assert digests(prepared) == digests(official)
    assert len(prepared) == count


def digests(part):
  """Sorted digests of image and label, of every example: TFDS shuffles when it prepares."""
  return sorted(hashlib.sha256(image.tobytes() + bytes([label])).hexdigest() for image, label in part)


@pytest.mark.slow
def test_an_archive_with_another_digest_is_refused_by_name(data, tmp_path):
  pytest.importorskip('tensorflow', reason='TensorFlow (requirements-tfds.txt) is not installed')
  manual = tmp_path / 'downloads' / 'manual'
  manual.mkdir(parents=True)
  (manual / 'cifar-10-binary.tar.gz').write_bytes(b'something else')

  with pytest.raises(errors.InputError, match=r'manual/cifar-10-binary\.tar\.gz.* checksum'):
    load(data, tmp_path, 'cifar10')


def test_a_set_without_labels_is_refused(data, prepared, make_image):
  folder = prepared([make_image(6, 5)] * 4, [0, 1, 2, 0])
  path = folder / 'toy' / '1.0.0' / 'features.json'
  features = json.loads(path.read_text())
  del features['featuresDict']['features']['label']
  path.write_text(json.dumps(features))

  with pytest.raises(errors.InputError, match=r"no image classification set.* label.* \['image'\]"):
    load(data, folder)


def test_a_set_that_cannot_be_asked_without_tensorflow_says_what_to_install(data, tmp_path):
  if not WITHOUT_TENSORFLOW:
    pytest.skip('TensorFlow is installed')
  with pytest.raises(errors.InputError, match=r"'tensorflow'.* requirements-tfds\.txt"):
    load(data, tmp_path, 'titanic')


def test_images_of_each_class_are_drawn_by_labels_that_are_stored_with_them(data, prepared, make_image):
  images, labels = [make_image(6, 5, 1, seed=seed) for seed in range(9)], [0, 1, 2, 0, 1, 2, 0, 0, 2]
  folder = prepared(images, labels)
  data.images_per_class = 2
  for data.placement in ('device', 'stream'):
    few = load(data, folder)
    np.testing.assert_array_equal(np.bincount(few.labels), [2, 2, 2])
    for index, label in enumerate(few.labels):
      image, read = few[index]
      same = [place for place in range(9) if np.array_equal(np.asarray(image).reshape(6, 5), images[place][..., 0])]
      assert [labels[place] for place in same] == [read] == [label]
  data.images_per_class = 3
  with pytest.raises(errors.InputError, match=r"train of tfds:toy has only 2 images of 'bee'"):
    load(data, folder)
  data.images_per_class, data.mean = None, (0.4, 0.5, 0.6)
  for data.placement in ('device', 'stream'):
    color = np.asarray(load(data, folder)[3][0])
    np.testing.assert_array_equal(color, np.repeat(images[3], 3, axis=-1))
