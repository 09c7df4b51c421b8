import logging
import os
import pathlib
import re
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from dnt import errors
from dnt.data import order, sources
from dnt.data.sources import folder as folder_lib
from tests.data.sources.folders import load, names_of

MRI = os.environ.get('DNT_MRI_DIR')


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


def test_the_only_image_of_a_class_trains_and_the_line_of_val_says_so(data, class_folders, caplog):
  root = class_folders({'train/ant': 5, 'train/bee': 1, 'train/cow': 10, 'train/owl': 1})
  with caplog.at_level(logging.INFO, 'dnt'):
    train, val = load(data, root), load(data, root, 'val')

  np.testing.assert_array_equal(np.bincount(train.labels), [4, 1, 8, 1])
  np.testing.assert_array_equal(np.bincount(val.labels, minlength=4), [1, 0, 2, 0])
  assert {'bee/0.jpg', 'owl/0.jpg'} <= {*names_of(train)}
  line = "2 of 4 classes, 3 images (1 to 2 per class); none of 'bee', 'owl', whose only image is in train"
  assert caplog.records[-1].getMessage().endswith(line)


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
    ({'ant': 1, 'bee': 1}, r"no class of .* has two images.*config\.eval\.splits=\('train',\)"),
    ({'.': 3}, 'at least two.* none'),
  ],
)
def test_a_layout_that_cannot_be_is_refused(data, class_folders, counts, message):
  root = class_folders({k: v for k, v in counts.items() if k != '.'} or {'.hidden': 1})

  with pytest.raises(errors.InputError, match=message):
    load(data, root)


@pytest.mark.parametrize(
  ('train', 'other', 'split'),
  [
    ('Training', 'Testing', 'test'),
    ('training_set', 'test_set', 'test'),
    ('TRAIN', 'VAL', 'val'),
    ('train', 'valid', 'val'),
    ('Train', 'Validation', 'val'),
    ('train-set', 'validation-set', 'val'),
    ('training_data', 'testing_data', 'test'),
    ('training_set/training_set', 'test_set/test_set', 'test'),
    ('train_images', 'test_images', 'test'),
    ('seg_train/seg_train', 'seg_test/seg_test', 'test'),
    ('my set-Training', 'my set-Valid', 'val'),
    ('train2017', 'val2017', 'val'),
    ('train_256x256', 'test_256x256', 'test'),
    ('train_split', 'val_split', 'val'),
    ('train', 'dev', 'val'),
    ('train', 'validate', 'val'),
  ],
)
def test_splits_have_the_names_that_people_give_them(data, class_folders, train, other, split):
  root = class_folders({f'{train}/bee': 3, f'{train}/ant': 2, f'{other}/ant': 1, f'{other}/bee': 2})
  read = {name: load(data, root, name) for name in ('train', split)}

  assert {name: names_of(each) for name, each in read.items()} == {
    'train': ['ant/0.jpg', 'ant/1.jpg', 'bee/0.jpg', 'bee/1.jpg', 'bee/2.jpg'],
    split: ['ant/0.jpg', 'bee/0.jpg', 'bee/1.jpg'],
  }
  assert read['train'].class_names == read[split].class_names == ('ant', 'bee')


def test_three_splits_by_other_names(data, class_folders):
  root = class_folders({f'{split}/{name}': 2 for split in ('Train', 'valid', 'Test') for name in ('ant', 'bee')})
  for split, folder in (('train', 'Train'), ('val', 'valid'), ('test', 'Test')):
    assert {pathlib.Path(path).parts[-3] for path in load(data, root, split).store.paths} == {folder}


@pytest.mark.parametrize(
  ('counts', 'message'),
  [
    ({'train/ant': 2, 'train/bee': 2, 'val/ant': 1, 'valid/ant': 1}, "two ways.* val/ or valid/ .*'val'"),
    (
      {'train/ant': 2, 'train/bee': 2, 'Training/ant': 2, 'Training/bee': 2},
      "two ways.* Training/ or train/ .*'train'",
    ),
    ({'train/steam': 2, 'train/diesel': 2, 'bus': 2, 'car': 2}, 'two ways.* diesel, steam .*/train.* bus, car, train'),
    ({'train': 2, 'bus': 2, 'car': 2}, 'train must hold one folder per class'),
    ({'Training': 2, 'Testing': 2}, 'Training must hold one folder per class'),
    ({'test': 2, 'control': 2}, 'test/ but no train/'),
    ({'Testing/ant': 2, 'Testing/bee': 2, 'other': 2}, 'Testing/ but no train/'),
    ({'train/ant': 2, 'train/bee': 2, 'eval/ant': 2, 'eval/bee': 2}, 'two ways.* rename eval/ to val or test'),
    (
      {f'{part}/{name}': 2 for part in ('01_train', '02_test') for name in ('ant', 'bee')},
      'two ways.* 01_train, 02_test holds the classes ant, bee',
    ),
    (
      {f'{fold}/{name}': 2 for fold in ('fold1', 'fold2') for name in ('ant', 'bee')},
      'two ways.* fold1, fold2 holds the classes ant, bee .*/fold1',
    ),
    (
      {'original/ant': 2, 'original/bee': 2, 'augmented/ant': 2, 'augmented/bee': 2, 'augmented/cow': 2},
      'two ways.* augmented, original holds the classes ant, bee',
    ),
    (
      {f'{kind}/{name}': 2 for kind in ('color', 'grayscale', 'segmented') for name in ('ant', 'bee')},
      'two ways.* color, grayscale, segmented holds the classes ant, bee',
    ),
    (
      {f'{kind}/{name}': 2 for kind in ('RGB_images', 'Gray scale', 'masks') for name in ('ant', 'bee')},
      'two ways.* Gray scale, RGB_images, masks holds the classes ant, bee',
    ),
    ({'ant': 2, 'bee': 2, 'insects/ant': 2, 'insects/bee': 2}, 'two ways.* insects/ is no class but holds others'),
    ({'ant': 2, 'bee': 2, 'insects/ant': 2}, 'two ways.* insects/ is no class'),
    (
      {f'{base}/{name}': 2 for base in ('insects', 'data/insects') for name in ('ant', 'bee')},
      'two ways.* data/ is no class',
    ),
    ({'ant': 2, 'bee': 2, 'archive/set/ant': 2, 'archive/set/bee': 2}, 'two ways.* archive/ is no class'),
    ({'ant': 2, 'bee': 2, 'set/train/ant': 2, 'set/train/bee': 2, 'set/val/ant': 1}, 'two ways.* set/ is no class'),
    ({'train2017': 2, 'val2017': 2, 'test2017': 2}, 'two ways.* test2017, train2017, val2017 are splits .*one folder'),
    ({'train2017': 2, 'val2017': 2, 'annotations': 0}, 'two ways.* train2017, val2017 are splits'),
    ({'images_train': 2, 'images_val': 2}, 'two ways.* images_train, images_val are splits'),
    ({'my_train': 2, 'my_test': 2, 'test_images': 2}, 'two ways.* my_test, my_train are splits'),
    ({'my_train_images': 2, 'my_test_images': 2}, 'two ways.* my_test_images, my_train_images are splits'),
    ({'x-train': 2, 'x-val/ant': 2, 'x-val/bee': 2}, 'two ways.* x-train, x-val are splits'),
    ({'Training': 2, 'Testing': 2, 'notes': 0}, 'two ways.* Testing, Training are splits'),
    (
      {f'{name}/{split}': 2 for name in ('ant', 'bee') for split in ('train', 'val')},
      'two ways.* ant, bee holds the splits train, val .*train/ant/',
    ),
  ],
)
def test_a_folder_of_two_readings_is_refused_with_the_way_out(data, class_folders, counts, message):
  root = class_folders(counts)
  with pytest.raises(errors.InputError, match=rf'{message}.*folder:{re.escape(str(root))}/\*'):
    load(data, root)


@pytest.mark.parametrize('base', ['train', 'val'])
@pytest.mark.parametrize(
  ('inside', 'said'), [(('train/ant', 'train/bee'), 'train/ is no class'), (('copy/bee',), 'copy/ is no class')]
)
def test_a_copy_inside_of_a_split_is_refused_too(data, class_folders, base, inside, said):
  root = class_folders(
    {f'{split}/{name}': 2 for split in ('train', 'val') for name in ('ant', 'bee')}
    | {f'{base}/{name}': 2 for name in inside}
  )
  base = root / base
  with pytest.raises(
    errors.InputError,
    match=rf'^{re.escape(str(base))} can be read in two ways: {said}.*folder:{re.escape(str(base))}/\*',
  ):
    load(data, root)


@pytest.mark.parametrize('base', ['.', 'train'])
def test_all_images_of_class_folders_are_a_split_too(data, class_folders, base):
  root = class_folders({f'{base}/ant': 5, f'{base}/bee': 1})
  whole = load(data, root, 'all')

  assert names_of(whole) == [*(f'ant/{index}.jpg' for index in range(5)), 'bee/0.jpg']
  assert whole.class_names == ('ant', 'bee')
  assert load(data, root, 'all', seed=1).store.paths != whole.store.paths


def test_splits_without_training_images_are_read(data, class_folders, caplog):
  root = class_folders({'Testing/bee': 3, 'valid/ant': 1, 'valid/bee': 1})
  with caplog.at_level(logging.INFO, 'dnt'):
    val, test = load(data, root, 'val'), load(data, root, 'test')

  assert val.class_names == test.class_names == ('ant', 'bee')
  assert (len(val), len(test)) == (2, 3)
  assert '1 of 2 classes, 3 images' in caplog.text
  with pytest.raises(errors.InputError, match='/ but no train/'):
    load(data, root)


def test_what_to_evaluate_of_other_data(data, class_folders):
  def choose(counts, *asked):
    data.source = f'folder:{class_folders(counts, str(len(counts)))}'
    return sources.choose(sources.find(data, 0), asked)

  assert choose({'ant': 2, 'bee': 2}, 'val[:10%]', 'test') == {'val[:10%]': 'all[:10%]'}
  splits = {'train/ant': 2, 'train/bee': 2, 'test/ant': 2}
  assert choose(splits, 'val') == {'test': 'test'}
  data.source = f'folder:{class_folders({}, "3")}'
  available = sources.find(data, 0)
  assert sources.choose(available, ('train', 'test[:2]')) == {'train': 'train', 'test[:2]': 'test[:2]'}


@pytest.mark.parametrize('names', [('train', 'bus', 'car'), ('test', 'train'), ('train/steam', 'train/diesel', 'bus')])
def test_a_star_makes_every_folder_a_class(data, class_folders, names):
  root = class_folders(dict.fromkeys(names, 4))
  train = load(data, f'{root}/*')

  assert train.class_names == tuple(sorted({name.partition('/')[0] for name in names}))
  for path, label in zip(train.store.paths, train.labels, strict=True):
    assert pathlib.Path(path).relative_to(root).parts[0] == train.class_names[label]


@pytest.mark.parametrize(
  'names',
  [
    ('invalid', 'valid'),
    ('resting', 'training', 'walking'),
    ('bullet_train', 'steam_train'),
    ('a_train', 'b_test'),
    ('test2', 'train1'),
    ('test_tube', 'train_station'),
  ],
)
def test_classes_may_have_names_of_splits_where_no_split_is(data, class_folders, names):
  assert load(data, class_folders(dict.fromkeys(names, 3))).class_names == names


@pytest.mark.parametrize(
  'counts',
  [
    {f'{name}/{batch}': 2 for name in ('ant', 'bee') for batch in ('new', 'old')},
    {'original/a': 2, 'original/b': 2, 'fake/a': 2, 'fake/b': 2},
    {'original/a': 2, 'original/b': 2, 'cropped/b': 2, 'cropped/c': 2},
    {f'{name}/{kind}': 2 for name in ('color', 'red', 'gray') for kind in ('new', 'old')},
    {f'{name}/{kind}': 2 for name in ('gray_wolf', 'color guard') for kind in ('new', 'old')},
    {'color': 2, 'gray': 2, 'segmented': 2},
    {f'{number}/{batch}': 2 for number in range(4) for batch in (1, 2)},
    {'ant/ant': 2, 'bee/bee': 2},
    {'ant': 2, 'bee': 2, 'cow/ant': 2, 'cow/calf': 2},
  ],
)
def test_classes_may_hold_folders(data, class_folders, counts):
  assert load(data, class_folders(counts)).class_names == tuple(sorted({name.partition('/')[0] for name in counts}))


def test_classes_may_hold_folders_of_splits_beside_images(data, class_folders):
  root = class_folders({f'{name}/{split}': 2 for name in ('ant', 'bee') for split in ('train', 'val')})
  shutil.copy(root / 'ant/train/0.jpg', root / 'ant/0.jpg')
  assert load(data, root).class_names == ('ant', 'bee')


def test_classes_may_have_numbers_and_names_of_splits(data, class_folders):
  assert load(data, class_folders({'train1': 3, 'train2': 3})).class_names == ('train1', 'train2')


@pytest.mark.parametrize('inside', ['train/ant', 'ant'])
def test_a_folder_that_holds_the_data_set_is_named(data, class_folders, inside):
  root = class_folders({f'set/{inside}': 2, f'set/{inside[:-3]}bee': 2, 'set/val/ant': 1})
  with pytest.raises(errors.InputError, match=f"at least two.*'folder:{re.escape(str(root))}/set'"):
    load(data, root)


def test_a_test_folder_of_no_class_is_refused_only_when_it_is_read(data, class_folders):
  """Keras' loader wants a folder around images without labels."""
  root = class_folders({'train/ant': 5, 'train/bee': 5, 'val/ant': 2, 'test/unknown': 3})

  assert (len(load(data, root)), len(load(data, root, 'val'))) == (10, 2)
  with pytest.raises(errors.InputError, match=r'test holds .* none of a class in train/.* no labels'):
    load(data, root, 'test')


@pytest.mark.parametrize(
  ('train', 'test'),
  [
    ('train', 'test'),
    ('asl_alphabet_train', 'asl_alphabet_test'),
    ('data-train', 'data-test'),
    ('seg_train/seg_train', 'seg_test/seg_test'),
    ('my_train_images', 'my_test_images'),
    ('train2017', 'test2017'),
  ],
)
def test_a_test_folder_without_classes_is_refused_only_when_it_is_read(data, class_folders, train, test):
  root = class_folders({f'{train}/ant': 5, f'{train}/bee': 5, test: 3})

  assert load(data, root).class_names == ('ant', 'bee')
  assert (len(load(data, root)), len(load(data, root, 'val'))) == (8, 2)
  with pytest.raises(errors.InputError, match='_?test.* holds no class folders.* no labels'):
    load(data, root, 'test')


def test_folders_whose_other_split_holds_classes_are_the_splits(data, class_folders):
  counts = {f'{split}/{name}': 2 for split in ('mask_train', 'seg_train', 'seg_test') for name in ('ant', 'bee')}
  root = class_folders(counts | {'mask_test': 2})
  assert {pathlib.Path(path).parts[-3] for path in load(data, root, 'test').store.paths} == {'seg_test'}


def test_a_split_that_is_a_link_to_train_overlaps_with_it_and_its_line_says_so(data, class_folders, caplog):
  root = class_folders({'train/ant': 3, 'train/bee': 3, 'test/ant': 2})
  (root / 'val').symlink_to('train')
  (root / 'test/bee').symlink_to(root / 'train/bee')
  with caplog.at_level(logging.INFO, 'dnt'):
    train, val, test = (load(data, root, split) for split in ('train', 'val', 'test'))

  assert val.overlaps(train) and train.overlaps(test)
  assert not load(data, root, 'val[:50%]').overlaps(load(data, root, 'val[50%:]'))
  read, *others = caplog.messages
  assert 'in train too' not in read
  assert [re.search(r'; (\d) of its images are in train too', line)[1] for line in others[:2]] == ['6', '3']


def test_a_split_of_its_own_overlaps_with_no_other(data, class_folders, caplog):
  root = class_folders({f'{split}/{name}': 2 for split in ('train', 'val') for name in ('ant', 'bee')})
  with caplog.at_level(logging.INFO, 'dnt'):
    assert not load(data, root, 'val').overlaps(load(data, root))
  assert 'in train too' not in caplog.text


@pytest.mark.parametrize(('link', 'target'), [('train/cow', 'train/ant'), ('train/bee/more', 'train/ant')])
def test_two_classes_that_lead_to_one_folder_are_refused(data, class_folders, link, target):
  root = class_folders({'train/ant': 2, 'train/bee': 2, 'val/ant': 1})
  (root / link).symlink_to(root / target)
  other = '/'.join(link.split('/')[:2])
  with pytest.raises(errors.InputError, match=f'train/ant and .*{other} both lead to .*{target}, by a link'):
    load(data, root)


def test_the_order_is_that_of_all_versions(data, class_folders):
  """Runs resume: the images sorted by path, class by class, in the random order of the seed."""
  root = class_folders({'train/bee': 11, 'train/Ant': 5, 'train/bee/sub.d': 2, 'val/bee': 4})
  for split in ('train', 'val'):
    paths = [str(path) for name in ('Ant', 'bee') for path in sorted((root / split / name).rglob('*.jpg'), key=str)]
    drawn = order.permutation(order.philox(3, order.SPLIT), len(paths))
    assert load(data, root, split, seed=3).store.paths == tuple(paths[index] for index in drawn)
  paths = [str(path) for name in ('Ant', 'bee') for path in sorted((root / 'train' / name).rglob('*.jpg'), key=str)]
  labels = np.repeat([0, 1], [5, 13])
  for split, drawn in zip(('train', 'val'), order.stratified(labels, data.val_fraction, 3), strict=True):
    read = load(data, root / 'train', split, seed=3)
    assert read.store.paths == tuple(paths[index] for index in drawn)
    np.testing.assert_array_equal(read.labels, labels[drawn])


def test_train_and_val_are_one_draw(data, class_folders, monkeypatch):
  draws, stratified = [], order.stratified
  monkeypatch.setattr(order, 'stratified', lambda *given: draws.append(given) or stratified(*given))
  splits = folder_lib.folder(str(class_folders({'ant': 5, 'bee': 5})), data, 0)
  assert (len(splits['train']()), len(splits['val']()), len(draws)) == (8, 2, 1)


def test_a_line_for_each_split_names_what_was_read_and_what_not(data, class_folders, caplog):
  root = class_folders({'Train/ant': 3, 'Train/bee': 5, 'valid/ant': 2, 'extra/deep': 2})
  for place in ('Train/ant/notes.txt', 'Train/ant/1.CR2', 'Train/bee/2.cr2', 'Train/bee/.hidden.jpg', 'Train/bee/none'):
    (root / place).write_bytes(b'')
  shutil.copy(root / 'Train/ant/0.jpg', root / 'Train/loose.jpg')
  with caplog.at_level(logging.INFO, 'dnt'):
    for split in ('train', 'train[:50%]', 'val', 'train'):
      load(data, root, split)

  train, val = (record.getMessage() for record in caplog.records)
  for part in (
    *(str(root / 'Train'), '2 classes', '8 images', '3 to 5 per', '1 .txt', '2 .cr2', '1 hidden', '1 images outside'),
    *('1 without a known suffix', 'the folder extra/'),
  ):
    assert part in train
  for part in ('val', str(root / 'valid'), '1 of 2 classes', '2 images', '2 per'):
    assert part in val
  assert 'not read' not in val


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD'))


def test_two_unicode_forms_of_a_name_are_one_class(data, class_folders):
  root = class_folders(
    {f'train/{COMPOSED}': 2, f'train/{DECOMPOSED}': 3, 'train/tea': 1, f'val/{DECOMPOSED}': 2, 'val/tea': 1}
  )
  train, val = load(data, root), load(data, root, 'val')

  assert train.class_names == val.class_names == (COMPOSED, 'tea')
  np.testing.assert_array_equal(np.bincount(train.labels), [5, 1])
  np.testing.assert_array_equal(np.bincount(val.labels), [2, 1])


def test_names_that_are_not_utf8_are_shown_escaped(data, class_folders, caplog):
  named = os.fsdecode(b'caf\xe9')
  root = class_folders({f'train/{named}': 2, 'train/tea': 2, f'val/{named}': 1})
  (root / 'train' / named / '0.jpg').rename(root / 'train' / named / os.fsdecode(b'\xe9.jpg'))
  with caplog.at_level(logging.INFO, 'dnt'):
    train, val = load(data, root), load(data, root, 'val')

  assert train.class_names == val.class_names == ('caf\\xe9', 'tea')
  assert {label for _, label in train} == {0, 1}
  caplog.text.encode()
  pathlib.Path(val.store.paths[0]).write_bytes(b'')
  with pytest.raises(errors.InputError, match=r'cannot read .*val/caf\\xe9/0\.jpg'):
    val[0]


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
