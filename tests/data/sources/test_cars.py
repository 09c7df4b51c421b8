import logging
import os
import pathlib
import re

import numpy as np
import pytest
from PIL import Image
from scipy import io

from dnt import errors
from dnt.data import sources
from dnt.data.sources import cars
from dnt.data.transforms import images
from tests.data import loading

CARS = os.environ.get('DNT_CARS_DIR')
NAMES = ('AM General Hummer SUV 2000', 'Acura RL Sedan 2012', 'Ram C/V Cargo Van Minivan 2012')
# (x1, y1, x2, y2) as MATLAB counts: the first pixel is 1, the last one is in the box; one reaches beyond the image.
BOXES = [(3, 2, 12, 9), (1, 1, 24, 20), (5, 4, 30, 40), (2, 7, 2, 7)]
FIELDS = ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2', 'class', 'fname')


def annotations(path, labels, fields=FIELDS):
  table = np.empty((1, len(labels)), [(name, 'O') for name in fields])
  for index, label in enumerate(labels):
    values = dict(zip(FIELDS, (*map(float, BOXES[index]), float(label), f'{index + 1:05}.jpg'), strict=True))
    table[0, index] = tuple(values[name] for name in fields)
  path.parent.mkdir(parents=True, exist_ok=True)
  io.savemat(path, {'annotations': table})


@pytest.fixture
def devkit(tmp_path, make_image):
  """`devkit(...)`: four images to train on, two to test on, with all files of the archives; returns the folder."""

  def make(train='cars_train', test='cars_test', mat='devkit', test_mat=None):
    root = tmp_path / 'cars'
    for folder, count in ((train, 4), (test, 2)):
      (root / folder).mkdir(parents=True)
      for index in range(count):
        Image.fromarray(make_image(20, 24, seed=index)).save(root / folder / f'{index + 1:05}.jpg')
    annotations(root / mat / 'cars_train_annos.mat', [2, 1, 3, 2])
    annotations(root / (test_mat or mat) / 'cars_test_annos_withlabels.mat', [3, 1])
    io.savemat(root / mat / 'cars_meta.mat', {'class_names': np.array([NAMES], object)})
    return root

  return make


def load(data, root, split='train', seed=0):
  data.source = f'cars:{root}'
  return loading.load(data, split, seed)


def by_file(examples):
  return dict(zip([path.rpartition('/')[2] for path in examples.store.paths], examples, strict=True))


@pytest.mark.parametrize(
  'layout',
  [
    {},
    {'test_mat': '.'},
    {'mat': '.'},
    {'train': 'cars_train/cars_train', 'test': 'cars_test/cars_test', 'mat': 'car_devkit/devkit', 'test_mat': '.'},
    {'train': 'cars_train/cars_train', 'mat': 'devkit/devkit'},
  ],
  ids=['official', 'test labels at the root', 'all at the root', 'Kaggle', 'nested in part'],
)
def test_every_layout_of_the_archives_is_read(data, devkit, layout):
  root = devkit(**layout)
  train, test = load(data, root), load(data, root, 'test')

  assert train.class_names == test.class_names == NAMES
  assert train.shape == (None, None, 3)
  assert {name: label for name, (_, label) in by_file(train).items()} == {
    '00001.jpg': 1,
    '00002.jpg': 0,
    '00003.jpg': 2,
    '00004.jpg': 1,
  }
  assert {name: label for name, (_, label) in by_file(test).items()} == {'00001.jpg': 2, '00002.jpg': 0}
  for path, (image, label), known in zip(train.store.paths, train, train.labels, strict=True):
    np.testing.assert_array_equal(image, np.asarray(Image.open(path)))
    assert label == known


def test_a_line_for_each_split_says_what_was_read(data, devkit, caplog, make_image):
  root = devkit()
  Image.fromarray(make_image(20, 24)).save(root / 'cars_train' / '00099.jpg')
  (root / 'cars_train' / 'notes.txt').write_text('')
  with caplog.at_level(logging.INFO, 'dnt'):
    for split in ('train', 'test', 'train[:50%]'):
      load(data, root, split)
  train, test = (record.getMessage() for record in caplog.records)
  for part in (str(root / 'cars_train'), '3 classes', '4 images', '1 to 2 per class', 'not read: 1 without a label'):
    assert part in train
  assert '2 of 3 classes, 2 images (1 per class)' in test and 'not read' not in test


def test_boxes_are_cut_out_when_asked_for(data, devkit):
  root = devkit()
  whole = by_file(load(data, root))
  data.crop_to_box = True
  found = by_file(load(data, root))

  for (name, (image, label)), (x1, y1, x2, y2) in zip(sorted(found.items()), BOXES, strict=True):
    np.testing.assert_array_equal(image, np.asarray(whole[name][0])[y1 - 1 : y2, x1 - 1 : x2])
    assert label == whole[name][1]
  part = load(data, root, 'train[50%:]')
  for name, (image, _) in by_file(part).items():
    np.testing.assert_array_equal(image, found[name][0])


@pytest.mark.parametrize('depth', [8, 16])
@pytest.mark.parametrize(('orientation', 'upright'), [(1, lambda x: x), (6, lambda x: np.rot90(x, -1)), (4, np.flipud)])
def test_a_box_is_cut_out_before_the_image_is_turned(tmp_path, deep_png, make_image, depth, orientation, upright):
  path, pixels, exif = tmp_path / 'car.png', make_image(20, 40), Image.Exif()
  exif[0x0112] = orientation
  if depth == 16:
    path.write_bytes(deep_png(pixels.astype(int) << 8, exif=exif.tobytes().removeprefix(b'Exif\0\0')))
  else:
    Image.fromarray(pixels).save(path, exif=exif)
  cropped = np.ascontiguousarray(pixels[2:8, 30:38])
  for rotate, expected in ((False, cropped), (True, upright(cropped))):
    how = images.Decoding(16, rotate)
    boxed = cars.Boxed((str(path),), np.array([5]), how, np.array([[2, 8, 30, 38]]))
    image, label = boxed[0]
    np.testing.assert_array_equal(image, expected)
    assert label == 5
    np.testing.assert_array_equal(
      boxed.in_channels(1)[0][0], Image.fromarray(np.ascontiguousarray(expected)).convert('L')
    )


def test_a_box_outside_of_its_image_is_named(data, devkit, monkeypatch):
  monkeypatch.setitem(globals(), 'BOXES', [(100, 1, 120, 9)] * 4)
  data.crop_to_box = True
  train = load(data, devkit())
  with pytest.raises(errors.InputError, match=r'box of .*\.jpg, rows 0 to 9 and columns 99 to 120'):
    train[0]


def test_the_order_is_drawn_once(data, devkit):
  root = devkit()
  first = load(data, root).store.paths

  assert load(data, root).store.paths == first
  assert any(load(data, root, seed=seed).store.paths != first for seed in range(1, 5))
  assert load(data, root, 'train[:50%]').store.paths == first[:2]


@pytest.mark.parametrize('base', ['.', 'car_data', 'car_data/car_data'])
def test_class_folders_are_read(data, class_folders, base):
  root = class_folders({f'{base}/train/Acura': 3, f'{base}/train/BMW': 2, f'{base}/test/BMW': 2})
  train, test = load(data, root), load(data, root, 'test')

  assert train.class_names == test.class_names == ('Acura', 'BMW')
  assert train.name == f'cars:{root}'
  np.testing.assert_array_equal(np.sort(train.labels), [0, 0, 0, 1, 1])
  np.testing.assert_array_equal(test.labels, [1, 1])
  with pytest.raises(errors.InputError, match=f"split of .*{re.escape(str(root))} 'val'"):
    load(data, root, 'val')


def test_other_splits_of_class_folders_are_read_too(data, class_folders):
  root = class_folders({f'{split}/{name}': 2 for split in ('train', 'valid', 'test') for name in ('Acura', 'BMW')})
  assert [len(load(data, root, split)) for split in ('train', 'val', 'test')] == [4, 4, 4]


@pytest.mark.parametrize('kind', ['archives', 'class folders'])
def test_a_test_set_alone_is_read(data, devkit, class_folders, kind):
  if kind == 'archives':
    root = devkit()
    for name in ('cars_train', 'devkit/cars_train_annos.mat'):
      (root / name).rename(root.parent / pathlib.Path(name).name)
  else:
    root = class_folders({'car_data/test/Acura': 1, 'car_data/test/BMW': 2})
  data.source = f'cars:{root}'
  available = sources.find(data, 0)

  assert sources.choose(available, ('val', 'test[:50%]')) == {'test': 'test'}
  np.testing.assert_array_equal(np.sort(load(data, root, 'test').labels), [0, 2] if kind == 'archives' else [0, 1, 1])
  with pytest.raises(errors.InputError, match='train'):
    load(data, root)


def test_class_folders_have_no_boxes(data, class_folders):
  root = class_folders({'train/Acura': 1, 'train/BMW': 1, 'test/BMW': 1})
  data.crop_to_box = True
  with pytest.raises(errors.InputError, match=rf'crop_to_box .*{re.escape(str(root))} .*class folders'):
    load(data, root)


@pytest.mark.parametrize(
  ('split', 'file', 'message'),
  [
    ('train', 'devkit/cars_meta.mat', "'train' .*cars_meta.mat .*{root}/devkit/cars_meta.mat$"),
    ('train', 'devkit/cars_train_annos.mat', 'cars_train_annos.mat .*{root}/devkit/cars_train_annos.mat$'),
    ('test', 'devkit/cars_test_annos_withlabels.mat', ' {root}/devkit/cars_test_annos_withlabels.mat$'),
    ('train', 'cars_train', '00001.jpg.* {root}/cars_train$'),
    ('test', 'cars_test', '00001.jpg.* {root}/cars_test$'),
    ('train', 'cars_train/00002.jpg', '{root}/cars_train .*00002.jpg .*4 '),
  ],
)
def test_what_is_missing_is_named_with_its_place(data, devkit, split, file, message):
  root = devkit()
  (root / file).rename(root / 'elsewhere')
  with pytest.raises(errors.InputError, match=message.format(root=re.escape(str(root)))):
    load(data, root, split)
  if file != 'devkit/cars_meta.mat':  # which both splits need
    load(data, root, 'test' if split == 'train' else 'train')


def test_test_annotations_without_labels_are_not_enough(data, devkit):
  root = devkit()
  labelled = root / 'devkit' / 'cars_test_annos_withlabels.mat'
  labelled.unlink()
  unlabelled = [name for name in FIELDS if name != 'class']
  annotations(root / 'devkit' / 'cars_test_annos.mat', [1, 1], unlabelled)
  with pytest.raises(errors.InputError, match=rf' {re.escape(str(labelled))} .*cars_test_annos\.mat.* no labels'):
    load(data, root, 'test')
  annotations(labelled, [1, 1], unlabelled)
  with pytest.raises(errors.InputError, match=f'{re.escape(str(labelled))} .*no class.* with labels'):
    load(data, root, 'test')


@pytest.mark.parametrize('content', [b'', b'<!DOCTYPE html><p>not found', b'MATLAB 5.0 MAT-file' + bytes(200)])
def test_a_damaged_mat_file_is_named(data, devkit, content):
  root = devkit()
  path = root / 'devkit' / 'cars_train_annos.mat'
  path.write_bytes(content)
  with pytest.raises(errors.InputError, match=f'^{re.escape(str(path))} .*devkit.* fetch it again'):
    load(data, root)


def test_classes_beyond_the_names_are_refused(data, devkit):
  root = devkit()
  annotations(root / 'devkit' / 'cars_train_annos.mat', [2, 1, 4, 2])
  with pytest.raises(errors.InputError, match=r'cars_train_annos\.mat .*1 to 4.*cars_meta\.mat .*3\b'):
    load(data, root)


def test_a_folder_of_something_else_says_what_was_expected(data, tmp_path):
  for root, message in ((tmp_path / 'absent', 'exist'), (tmp_path, 'Stanford Cars')):
    with pytest.raises(
      errors.InputError, match=f'{re.escape(str(root))} .*{message}.* cars_train/, cars_test/ and devkit/'
    ):
      load(data, root)


@pytest.mark.skipif(not CARS, reason='DNT_CARS_DIR does not name the folder of Stanford Cars')
def test_the_real_cars_are_read(data):
  train, test = load(data, CARS), load(data, CARS, 'test')

  assert (len(train), len(test), train.num_classes) == (6146, 999, 196)
  assert (np.bincount(train.labels, minlength=196).min(), np.bincount(test.labels, minlength=196).min()) == (18, 3)
  assert train.class_names[0] == 'AM General Hummer SUV 2000'
  data.crop_to_box = True
  for whole, cropped in ((train, load(data, CARS)), (test, load(data, CARS, 'test'))):
    assert whole[0][0].mode == 'RGB'
    np.testing.assert_array_equal(whole[0][0], cropped[0][0])  # these are cut to their boxes already
