import logging
import shutil

import pytest
from PIL import Image

from dnt import errors
from tests.data.sources.folders import load, names_of


def test_a_class_of_other_files_says_which(data, class_folders):
  root = class_folders({'train/ant': 2, 'train/bee': 0, 'val/ant': 1})
  for index in range(3):
    (root / 'train/bee' / f'{index}.HEIC').write_bytes(b'x')
  with pytest.raises(errors.InputError, match=r'train/bee .*no images .* 3 \.heic'):
    load(data, root)


def test_names_that_end_in_a_number_make_no_list_of_suffixes(data, class_folders):
  root = class_folders({'train/ant': 0, 'train/bee': 1, 'val/ant': 1})
  for index in range(20):
    (root / 'train/ant' / f'1.2.840.{index}').write_bytes(b'DICM')
    (root / 'train/ant' / f'1.{index}. dr. smith').write_bytes(b'DICM')
  with pytest.raises(errors.InputError, match=r'train/ant holds no images .*, but 40 without a known suffix$'):
    load(data, root)


def test_of_many_suffixes_the_most_frequent_are_named(data, class_folders, caplog):
  root = class_folders({'train/ant': 1, 'train/bee': 1, 'val/ant': 1})
  for index in range(20):
    (root / 'train/ant' / f'a.x{index}').write_bytes(b'')
    (root / 'train/ant' / f'{index}.txt').write_bytes(b'')
  with caplog.at_level(logging.INFO, 'dnt'):
    load(data, root)
  assert 'not read: 20 .txt, 1 .x0, 1 .x1, ' in caplog.text
  assert caplog.text.rstrip().endswith('1 .x14 and 13 more')


def test_copies_and_previews_of_systems_do_not_count(data, class_folders):
  root = class_folders({'train/ant': 3, 'train/bee': 3, 'val/ant': 2})
  for place in ('train/ant/.ipynb_checkpoints', 'train/bee/@eaDir', 'val/ant/__MACOSX', 'val/@eaDir', '__MACOSX/train'):
    (root / place).mkdir(parents=True)
    shutil.copy(root / 'train/ant/0.jpg', root / place / 'copy.jpg')
  shutil.copy(root / 'train/ant/0.jpg', root / 'train/ant/._0.jpg')

  assert names_of(load(data, root)) == [f'{name}/{index}.jpg' for name in ('ant', 'bee') for index in range(3)]
  assert names_of(load(data, root, 'val')) == ['ant/0.jpg', 'ant/1.jpg']


def test_links_are_followed_and_no_image_is_read_twice(data, class_folders):
  store = class_folders({'old': 4, 'whole': 3}, 'store')
  root = class_folders({'train/ant/z': 2, 'train/bee': 1, 'val/ant': 1})
  (root / 'train/ant/linked').symlink_to(store / 'old')
  (root / 'train/ant/a').symlink_to(root / 'train/ant/z')  # its images are found at z/
  (root / 'train/ant/z/up').symlink_to(root)
  (root / 'train/ant/self').symlink_to('self')
  (root / 'train/bee/one.jpg').symlink_to(store / 'old/0.jpg')
  (store / 'old/circle').symlink_to(root / 'train/ant')
  (root / 'val/bee').symlink_to(store / 'whole')
  train = load(data, root)

  expected = ['bee/0.jpg', 'bee/one.jpg', 'z/0.jpg', 'z/1.jpg', *(f'linked/{index}.jpg' for index in range(4))]
  assert names_of(train) == sorted(expected)
  assert names_of(load(data, root, 'val')) == ['ant/0.jpg', 'bee/0.jpg', 'bee/1.jpg', 'bee/2.jpg']
  assert all(image.mode == 'RGB' for image, _ in train)


@pytest.mark.parametrize('suffix', ['.jfif', '.JPE', '.apng', '.pbm', '.pnm', '.tga', '.dib', '.jp2', '.pcx'])
def test_other_suffixes_that_pillow_reads_are_images(data, class_folders, suffix):
  root = class_folders({'train/ant': 1, 'train/bee': 1, 'val/ant': 1})
  Image.open(root / 'train/ant/0.jpg').convert('1' if suffix == '.pbm' else 'RGB').save(root / f'train/ant/1{suffix}')
  train = load(data, root)

  assert names_of(train) == sorted(['ant/0.jpg', f'ant/1{suffix}', 'bee/0.jpg'])
  assert all(image.mode == 'RGB' for image, _ in train)
