import logging

import numpy as np
import pytest
from PIL import Image

from dnt import config, errors
from dnt.data import sources


def test_a_slice_holds_those_examples(data):
  whole, part = sources.load(data, 'train', 0), sources.load(data, 'train[10%:-80%]', 0)
  start, stop = round(0.1 * len(whole)), len(whole) - round(0.8 * len(whole))

  np.testing.assert_array_equal(part.images, whole.images[start:stop])
  np.testing.assert_array_equal(part.labels, whole.labels[start:stop])
  assert part.split == 'train[10%:-80%]'
  image, label = part[0]
  np.testing.assert_array_equal(image, whole.images[start, ..., 0])
  assert label == whole.labels[start]


def test_every_source_says_what_it_read(data, caplog):
  data.source, data.synthetic_classes, data.synthetic_examples = 'synthetic', 3, 10
  with caplog.at_level(logging.INFO, 'dnt'):
    for split in ('train', 'train[:50%]', 'test'):
      sources.load(data, split, 0)
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
    sources.load(data, 'train', 0)


def test_a_folder_beside_the_source_is_the_one_in_it(data, tmp_path):
  for label in ('cat', 'dog'):
    for index in range(3):
      path = tmp_path / label / f'{index}.png'
      path.parent.mkdir(exist_ok=True)
      Image.new('RGB', (8, 8), (index, 0, 0)).save(path)
  found = []
  for data.source, data.dir in ((f'folder:{tmp_path}', ''), ('folder', str(tmp_path))):
    found.append(sources.load(data, 'train', 0))
  assert found[0].store.paths == found[1].store.paths
  assert found[0].name == found[1].name
  for kind in ('folder', 'idx', 'cars', 'cifar_binary'):
    data.source = f'{kind}:{tmp_path}'
    with pytest.raises(errors.InputError, match=f"='{kind}:.*' .*config.data.dir='.*' .*two folders"):
      sources.load(data, 'train', 0)


def test_an_unknown_split_names_the_nearest(data):
  with pytest.raises(errors.InputError, match=r"split of digits 'tests'.* 'test'.* test, train"):
    sources.load(data, 'tests[:50%]', 0)


def test_names_are_the_forms_of_the_schema():
  forms = ['digits', 'synthetic', 'tfds:<name>', 'cifar_binary:<dir>', 'idx:<dir>', 'folder:<dir>', 'cars:<dir>']
  assert sources.names() == forms
  help_text = dict(config.options())['data.source'].help
  assert all(form in help_text for form in forms)


def test_boxes_are_refused_where_there_are_none(data):
  data.crop_to_box = True
  with pytest.raises(errors.InputError, match='crop_to_box .*boxes.* digits .*cars:<dir>'):
    sources.load(data, 'train', 0)
