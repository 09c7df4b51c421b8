import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from dnt import errors
from dnt.data import sources

MRI = os.environ.get('DNT_MRI_DIR')


def load(data, root, split='train', seed=0):
  data.source = f'folder:{root}'
  return sources.load(data, split, seed)


def test_splits_are_the_folders_and_classes_their_folders(data, class_folders):
  root = class_folders({'train/bee': 3, 'train/ant': 2, 'val/ant': 1, 'val/bee': 1, 'test/bee': 2})
  train, val, test = (load(data, root, split) for split in ('train', 'val', 'test'))

  assert train.class_names == val.class_names == test.class_names == ('ant', 'bee')
  np.testing.assert_array_equal(np.bincount(train.labels), [2, 3])
  np.testing.assert_array_equal(np.sort(val.labels), [0, 1])
  np.testing.assert_array_equal(test.labels, [1, 1])


def test_an_example_is_its_file_decoded(data, class_folders):
  root = class_folders({'train/ant': 3, 'train/bee': 3, 'val/ant': 1})
  train = load(data, root)

  for (image, label), path in zip(train, train.store.paths, strict=True):
    np.testing.assert_array_equal(image, np.asarray(Image.open(path)))
    assert train.class_names[label] == pathlib.Path(path).parent.name
  assert train.images is None
  assert train.shape == (None, None, 3)


def test_without_splits_one_is_drawn_class_by_class(data, class_folders):
  root = class_folders({'ant': 10, 'bee': 20})
  data.val_fraction = 0.3
  train, val = load(data, root), load(data, root, 'val')

  np.testing.assert_array_equal(np.bincount(train.labels), [7, 14])
  np.testing.assert_array_equal(np.bincount(val.labels), [3, 6])
  assert {*train.store.paths} | {*val.store.paths} == {str(path) for path in root.rglob('*.jpg')}
  assert val.store.paths == load(data, root, 'val').store.paths
  assert {*val.store.paths} != {*load(data, root, 'val', seed=1).store.paths}


def test_a_train_folder_alone_is_split_too(data, class_folders):
  root = class_folders({'train/ant': 5, 'train/bee': 5})

  assert (len(load(data, root)), len(load(data, root, 'val'))) == (8, 2)


def test_a_slice_of_a_folder_holds_several_classes(data, class_folders):
  root = class_folders({'train/ant': 20, 'train/bee': 20, 'val/ant': 1})

  assert len(np.unique(load(data, root, 'train[:25%]').labels)) == 2


@pytest.mark.parametrize(
  ('counts', 'message'),
  [
    ({'train/ant': 2, 'train/bee': 0, 'val/ant': 1}, r'train/bee .*no '),
    ({'train/ant': 2, 'train/bee': 2, 'val/ant': 0, 'val/bee': 1}, r'val/ant .*no '),
    ({'train/ant': 2, 'train/bee': 2, 'val/cow': 1, 'val/bee': 1}, r"val .*'cow'.* train/"),
    ({'val/ant': 2, 'val/bee': 2}, r'val/ .*no train/'),
    ({'train/ant': 2, 'val/ant': 2}, r"at least two.* 'ant'"),
    ({'ant': 2, 'bee': 1}, r'bee .*one .*val split'),
    ({'.': 3}, 'at least two.* none'),
  ],
)
def test_a_layout_that_cannot_be_is_refused(data, class_folders, counts, message):
  root = class_folders({k: v for k, v in counts.items() if k != '.'} or {'.hidden': 1})

  with pytest.raises(errors.InputError, match=message):
    load(data, root)


def test_a_missing_folder_says_what_was_expected(data, tmp_path):
  with pytest.raises(errors.InputError, match=r'absent .*exist.* train/<class>/'):
    load(data, tmp_path / 'absent')


def test_a_truncated_image_is_named_when_it_is_read(data, class_folders):
  root = class_folders({'train/ant': 2, 'train/bee': 2, 'val/ant': 1})
  path = root / 'train' / 'bee' / '1.jpg'
  path.write_bytes(path.read_bytes()[:200])
  train = load(data, root)
  broken = train.store.paths.index(str(path))

  assert train[(broken + 1) % 4][0].mode == 'RGB'
  with pytest.raises(errors.InputError, match=r'cannot read .*train/bee/1\.jpg .*remove it'):
    train[broken]


def test_device_placement_is_refused(data, class_folders):
  data.placement = 'device'
  with pytest.raises(errors.InputError, match="placement='device' .*folder:.* size"):
    load(data, class_folders({'ant': 2, 'bee': 2}))


@pytest.mark.skipif(not MRI, reason='DNT_MRI_DIR does not name the folder of MRI scans')
def test_the_mri_scans_are_read(data):
  train, val = load(data, MRI), load(data, MRI, 'val')

  assert train.class_names == ('glioma_tumor', 'meningioma_tumor', 'no_tumor', 'pituitary_tumor')
  assert (len(train), len(val)) == (1000, 400)
  image, _ = train[0]
  assert image.dtype == np.uint8
  assert max(image.shape[:2]) <= 256
  assert (image[..., 0] == image[..., 1]).all(), 'gray scans have three equal channels'
