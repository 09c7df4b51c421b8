import json
import logging
import re

import numpy as np
import pytest
from PIL import Image

from dnt import config, errors
from dnt.data import sources
from dnt.data.sources import registry
from tests.data import loading


def test_every_source_says_what_it_read(data, caplog):
  data.source, data.synthetic_classes, data.synthetic_examples = 'synthetic', 3, 10
  with caplog.at_level(logging.INFO, 'dnt'):
    for split in ('train', 'train[:50%]', 'test'):
      loading.load(data, split, 0)
  train, test = (record.getMessage() for record in caplog.records)
  assert train == 'train from synthetic: 3 classes, 10 images (3 to 4 per class)'
  assert test.startswith('test from synthetic')


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ('digit', "'digit'.* 'digits'"),
    ('cifarbinary:/data', "'cifarbinary.* 'cifar_binary:<dir>'"),
    ('folder', "no folder.* 'folder:<dir>'.* 'folder' with config.data.dir"),
    ('cars:', "no folder.* 'cars:<dir>'.* 'cars' with config.data.dir"),
    ('tfds:', "'tfds:'.* 'tfds:<name>'"),
    ('digits:/data', "'digits:/data'.* 'digits'"),
  ],
)
def test_an_unknown_source_is_refused(data, source, message):
  data.source = source
  with pytest.raises(errors.InputError, match=message):
    loading.load(data, 'train', 0)


def test_a_folder_beside_the_source_is_the_one_in_it(data, tmp_path):
  for label in ('cat', 'dog'):
    for index in range(3):
      path = tmp_path / label / f'{index}.png'
      path.parent.mkdir(exist_ok=True)
      Image.new('RGB', (8, 8), (index, 0, 0)).save(path)
  found = []
  for data.source, data.dir in ((f'folder:{tmp_path}', ''), ('folder', str(tmp_path))):
    found.append(loading.load(data, 'train', 0))
  assert found[0].store.paths == found[1].store.paths
  assert found[0].name == found[1].name
  for kind in ('folder', 'idx', 'cars', 'cifar_binary'):
    data.source = f'{kind}:{tmp_path}'
    with pytest.raises(errors.InputError, match=f"='{kind}:.*' .*config.data.dir='.*' .*two folders"):
      loading.load(data, 'train', 0)


def test_an_unknown_split_names_the_nearest(data):
  with pytest.raises(errors.InputError, match=r"split of digits 'tests'.* 'test'.* test, train"):
    loading.load(data, 'tests[:50%]', 0)
  with pytest.raises(errors.InputError, match=r"'validation'. Valid: test, train, val$"):
    loading.load(data, 'validation', 0)
  data.hold_out = False
  with pytest.raises(errors.InputError, match=r"'validation'. Valid: test, train$"):
    loading.load(data, 'validation', 0)


def test_what_is_held_out_is_said_and_what_is_left(data, class_folders, caplog):
  folder = class_folders({'train/ant': 4, 'train/bee': 10, 'test/ant': 1})
  data.hold_out, data.val_fraction = True, 0.47  # no other test reads these splits of digits in this process
  for data.source in (f'folder:{folder}', 'digits'):
    caplog.clear()
    with caplog.at_level(logging.INFO, 'dnt'):
      for split in ('train[:50%]', 'val', 'train'):
        loading.load(data, split, 0)
    train, val = (record.getMessage() for record in caplog.records)
    if data.source == 'digits':
      counts = np.bincount(loading.load(data, 'val', 0).labels)
      assert (
        val == f'val from train of digits: 10 classes, {sum(counts)} images ({min(counts)} to {max(counts)} per class)'
      )
      assert re.fullmatch(r'train from digits: 10 .*; without val: 10 classes, \d+ images \(.* per class\)', train)
    else:
      whole = f'train from {folder}/train: 2 classes, 14 images (4 to 10 per class)'
      assert train == f'{whole}; without val: 2 classes, 7 images (2 to 5 per class)'
      assert val == f'val from train of folder:{folder}: 2 classes, 7 images (2 to 5 per class)'


def test_what_is_held_out_is_a_fraction_of_each_class_and_all_else_trains(data):
  whole, test = loading.load(data, 'train', 0), loading.load(data, 'test', 0)
  data.hold_out, data.val_fraction = True, 0.25
  train, val = loading.load(data, 'train', 0), loading.load(data, 'val', 0)
  assert len(train) + len(val) == len(whole)
  counts, every = (np.bincount(each.labels, minlength=10) for each in (val, whole))
  np.testing.assert_allclose(counts, every / 4, atol=0.5)
  rows = sorted([*map(bytes, train.images), *map(bytes, val.images)])
  assert rows == sorted(map(bytes, whole.images))
  np.testing.assert_array_equal(loading.load(data, 'test', 0).images, test.images)
  part = loading.load(data, 'train[:10%]', 0)
  np.testing.assert_array_equal(part.images, train.images[: len(part)])
  assert (val.split, loading.load(data, 'val[:50%]', 0).split) == ('val', 'val[:50%]')


def test_a_val_split_that_is_not_held_out_names_the_option(data):
  data.source, data.hold_out = 'synthetic', False
  with pytest.raises(errors.InputError, match="no split 'val'.*data.hold_out=False"):
    loading.load(data, 'val', 0)


def test_what_is_held_out_depends_on_the_seed_of_the_data(data):
  data.source, data.hold_out, data.synthetic_examples = 'synthetic', True, 50
  data.seed = 1
  first, again, other = (loading.load(data, 'val', seed).labels for seed in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other)


def test_files_are_held_out_with_their_labels(data, class_folders):
  folder = class_folders({'train/cat': 8, 'train/dog': 8, 'test/cat': 2, 'test/dog': 2})
  data.source, data.hold_out, data.val_fraction = f'folder:{folder}', True, 0.25
  train, val = loading.load(data, 'train', 0), loading.load(data, 'val', 0)
  assert (len(train), len(val)) == (12, 4) and not {*train.store.paths} & {*val.store.paths}
  for split in (train, val):
    for path, label in zip(split.store.paths, split.labels, strict=True):
      assert f'/{split.class_names[label]}/' in path
  np.testing.assert_array_equal(val[0][0], Image.open(val.store.paths[0]))


@pytest.mark.parametrize('kind', ['folder', 'cars'])
def test_class_folders_from_which_val_is_drawn_hold_nothing_more_out(data, class_folders, kind):
  folder = class_folders({'train/ant': 10, 'train/bee': 20, 'test': 1})
  data.source, data.val_fraction = f'{kind}:{folder}', 0.3
  drawn = [loading.load(data, split, 0).store.paths for split in ('train', 'val')]
  data.hold_out = True
  assert [loading.load(data, split, 0).store.paths for split in ('train', 'val')] == drawn
  assert {*drawn[0]} | {*drawn[1]} == {str(path) for path in (folder / 'train').rglob('*.jpg')}


@pytest.mark.parametrize('kind', ['folder', 'cars'])
def test_class_folders_from_which_nothing_is_drawn_train_as_a_whole(data, class_folders, kind, caplog):
  folder = class_folders({'train/ant': 1, 'train/bee': 20, 'test': 1})
  (folder / 'notes').mkdir()
  data.source = f'{kind}:{folder}'
  available = sources.find(data, 0)
  with caplog.at_level(logging.INFO, 'dnt'):
    half, whole = (sources.read(sources.undrawn(available), data, split) for split in ('train[:50%]', 'train'))
  assert whole.store.paths == sources.read(available, data, 'all').store.paths, 'in the order of all versions'
  assert {*whole.store.paths} == {str(path) for path in (folder / 'train').rglob('*.jpg')}
  assert (whole.split, whole.name, half.store.paths) == ('train', data.source, whole.store.paths[:10])
  line = f'train from {folder}/train: 2 classes, 21 images (1 to 20 per class); not read: the folder notes/'
  assert caplog.records[0].getMessage().startswith(line)
  assert {*available} - {*sources.undrawn(available)} == {'val'}


def test_the_only_image_of_a_class_trains_where_val_is_held_out(data, class_folders, caplog):
  folder = class_folders({'train/ant': 1, 'train/bee': 4, 'test/bee': 1})
  data.source, data.hold_out, data.val_fraction = f'folder:{folder}', True, 0.25
  with caplog.at_level(logging.INFO, 'dnt'):
    train, val = loading.load(data, 'train', 0), loading.load(data, 'val', 0)
  assert (np.bincount(train.labels).tolist(), val.labels.tolist()) == ([1, 3], [1])
  assert caplog.records[-1].getMessage().endswith("; none of 'ant', whose only image is in train")


def test_a_test_split_that_the_data_lacks_names_the_way_to_train_on_all_images(data, class_folders):
  data.source = f'folder:{class_folders({"ant": 2, "bee": 2})}'
  with pytest.raises(errors.InputError, match=r"no split 'test' .*train, val, all.*eval\.splits=\('train',\)"):
    loading.load(data, 'test', 0)


def test_a_val_of_the_data_gives_way_to_one_that_is_held_out_and_the_line_says_so(data, class_folders, caplog):
  folder = class_folders({'train/ant': 4, 'train/bee': 4, 'valid/ant': 1, 'valid/bee': 1})
  data.source, data.hold_out, data.val_fraction = f'folder:{folder}', True, 0.25
  with caplog.at_level(logging.INFO, 'dnt'):
    train, val = loading.load(data, 'train', 0), loading.load(data, 'val', 0)
  assert (len(train), len(val)) == (6, 2) and all('/train/' in path for path in val.store.paths)
  assert caplog.records[-1].getMessage().endswith(f'; not read: the val that folder:{folder} has')


def test_a_test_folder_without_labels_is_not_all_of_the_class_folders_beside_it(data, class_folders):
  data.source = f'folder:{class_folders({"train/ant": 2, "train/bee": 2, "test": 1})}'
  available = sources.find(data, 0)
  assert sources.choose(available, ('test[:50%]', 'val')) == {'test[:50%]': 'test[:50%]', 'val': 'val'}
  assert sources.choose(available, ('val[:50%]', 'test')) == {'val[:50%]': 'all[:50%]'}


def test_a_set_whose_labels_are_not_known_gives_its_end(data, prepared, make_image):
  pytest.importorskip('tensorflow_datasets')
  images = [make_image(6, 5, seed=seed) for seed in range(8)]
  data.source, data.dir = 'tfds:toy', str(prepared(images, [0, 1, 2, 0, 1, 2, 0, 1]))
  data.hold_out, data.val_fraction = True, 0.25
  for data.placement in ('device', 'stream'):
    train, val = loading.load(data, 'train', 0), loading.load(data, 'val', 0)
    assert (len(train), len(val)) == (6, 2)
    for index in range(2):
      np.testing.assert_array_equal(val[index][0], images[6 + index])


def test_a_set_that_was_prepared_in_order_gives_images_of_all_classes_the_same_for_every_seed(
  data, prepared, make_image
):
  pytest.importorskip('tensorflow_datasets')
  images = [make_image(6, 5, seed=seed) for seed in range(30)]
  folder = prepared(images, np.repeat([0, 1, 2], 10))
  about = folder / 'toy' / '1.0.0' / 'dataset_info.json'
  about.write_text(json.dumps(json.loads(about.read_text()) | {'disableShuffling': True}))
  data.source, data.dir, data.hold_out, data.val_fraction = 'tfds:toy', str(folder), True, 0.4
  found = {}
  for data.placement in ('device', 'stream'):
    for data.seed in (0, 1):
      parts = [loading.load(data, split, data.seed) for split in ('train', 'val')]
      found[data.placement, data.seed] = [
        [(np.asarray(image).tobytes(), label) for image, label in part] for part in parts
      ]
  train, val = found['stream', 0]
  assert all(each == [train, val] for each in found.values())
  assert (len(train), len(val)) == (18, 12)
  whole = [(image.tobytes(), label) for image, label in zip(images, np.repeat([0, 1, 2], 10), strict=True)]
  assert sorted(train + val) == sorted(whole)
  assert {label for _, label in train} == {label for _, label in val} == {0, 1, 2}
  data.hold_out = False
  assert [(np.asarray(image).tobytes(), label) for image, label in loading.load(data, 'train', 0)] == whole


def test_a_validation_split_is_val_whatever_the_set_calls_it(data, monkeypatch):
  splits = {'train': lambda: 1, 'validation': lambda: 2}
  monkeypatch.setitem(registry.SOURCES, 'digits', (lambda *_: splits, ''))
  assert registry.find(data, 0)['val']() == 2
  splits['val'] = lambda: 3
  assert registry.find(data, 0)['val']() == 3


def test_names_are_the_forms_of_the_schema():
  forms = ['digits', 'synthetic', 'tfds:<name>', 'cifar_binary:<dir>', 'idx:<dir>', 'folder:<dir>', 'cars:<dir>']
  assert sources.names() == forms
  help_text = config.OPTIONS['train']['data.source'].help
  assert all(form in help_text for form in forms)


def test_boxes_are_refused_where_there_are_none(data):
  data.crop_to_box = True
  with pytest.raises(errors.InputError, match='crop_to_box .*boxes.* digits .*cars:<dir>'):
    loading.load(data, 'train', 0)


def test_images_of_each_class_are_of_the_slice_that_trains_and_not_of_val(data):
  data.hold_out, data.train_split = True, 'train[:50%]'
  half, val, test = (loading.load(data, split, 0) for split in ('train[:50%]', 'val', 'test'))
  data.images_per_class = 5
  few = loading.load(data, 'train[:50%]', 0)
  assert (len(few), few.split) == (50, 'train[:50%]')
  assert {*map(bytes, few.images)} < {*map(bytes, half.images)}
  for split, before in (('val', val), ('test', test)):
    np.testing.assert_array_equal(loading.load(data, split, 0).images, before.images)
  assert len(loading.load(data, 'train[50%:]', 0)) > 500, 'what does not train is whole'
