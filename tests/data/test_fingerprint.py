import json
import os
import shutil
import unicodedata

import numpy as np
import pytest

from dnt.data import examples, fingerprint
from dnt.data.transforms import images
from tests.data import loading


def of(data, split='train', **options):
  for name, value in options.items():
    data[name] = value
  return fingerprint.of({split: loading.load(data, split, data.seed)})[split]


@pytest.fixture
def folder(class_folders):
  return class_folders({'train/cat': 5, 'train/dog': 5, 'val/cat': 2, 'val/dog': 2})


def test_a_folder_that_is_moved_or_copied_keeps_its_fingerprint(data, folder, tmp_path):
  before = of(data, source=f'folder:{folder}')
  assert before['images'] == 10
  assert json.loads(json.dumps(before)) == before

  shutil.copytree(folder, tmp_path / 'deeper' / 'copy')
  assert of(data, source=f'folder:{tmp_path / "deeper" / "copy"}') == before
  os.utime(folder / 'train' / 'cat' / '0.jpg', (1, 1))
  folder.rename(tmp_path / 'moved')
  assert of(data, source=f'folder:{tmp_path / "moved"}') == before


def test_another_unicode_form_of_a_name_is_the_same_name(data, class_folders):
  composed, decomposed = (unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD'))
  folder = class_folders({f'train/{composed}': 3, 'train/ant': 2, f'val/{composed}': 1})
  before = of(data, source=f'folder:{folder}')
  (folder / 'train' / composed).rename(folder / 'train' / decomposed)
  assert of(data) == before


@pytest.mark.parametrize(
  'change, differs',
  [
    (lambda folder: (folder / 'train/cat/0.jpg').rename(folder / 'train/cat/00.jpg'), {'content'}),
    (lambda folder: (folder / 'train/cat/0.jpg').write_bytes(b'other'), {'content'}),
    (lambda folder: (folder / 'train/cat/0.jpg').rename(folder / 'train/dog/9.jpg'), {'content', 'labels'}),
    (lambda folder: (folder / 'train/cat/0.jpg').unlink(), {'images', 'content', 'labels'}),
    (lambda folder: (folder / 'val/cat/0.jpg').unlink(), set()),
  ],
)
def test_changed_files_of_the_split_change_its_fingerprint(data, folder, change, differs):
  before = of(data, source=f'folder:{folder}')
  change(folder)
  after = of(data)
  assert {name for name in before if after[name] != before[name]} == differs


def test_another_draw_of_the_split_is_other_data(data, class_folders):
  folder = class_folders({'cat': 10, 'dog': 10})
  before = of(data, source=f'folder:{folder}')
  assert of(data, seed=1)['content'] != before['content']


def test_images_that_cannot_be_decoded_and_links_that_lead_nowhere_have_one(data, folder):
  for path in (folder / 'train' / 'cat').iterdir():
    path.write_bytes(b'no image')
  (folder / 'train' / 'dog' / '0.jpg').unlink()
  (folder / 'train' / 'dog' / '0.jpg').symlink_to('/nowhere/0.jpg')
  assert of(data, source=f'folder:{folder}')['images'] == 10


@pytest.mark.parametrize('source', ['digits', 'synthetic'])
def test_arrays_are_known_by_their_pixels(data, source):
  data.synthetic_examples = 50
  before = of(data, source=source)
  assert of(data) == before
  assert of(data, 'test') != before
  assert of(data, seed=1) != before


@pytest.mark.parametrize('what', ['image', 'label'])
def test_one_pixel_or_label_changes_it(what):
  images, labels = np.zeros((20, 4, 4, 1), np.uint8), np.zeros(20, np.int32)
  before = fingerprint.of({'train': examples.in_memory('mine', 'train', images, labels, ('a', 'b'))})['train']
  (images if what == 'image' else labels)[7] = 1
  after = fingerprint.of({'train': examples.in_memory('mine', 'train', images, labels, ('a', 'b'))})['train']
  assert [name for name in before if after[name] != before[name]] == ['content' if what == 'image' else 'labels']


def test_boxes_count_as_labels():
  from dnt.data.sources import cars

  def with_box(bottom):
    labels = np.zeros(2, np.int32)
    boxes = np.array([[0, bottom, 0, 9], [0, 9, 0, 9]])
    store = cars.Boxed(('/here/1.jpg', '/here/2.jpg'), labels, images.USUAL, boxes)
    split = examples.Examples('cars', 'train', ('a', 'b'), (None, None, 3), store, labels)
    return fingerprint.of({'train': split})['train']

  assert with_box(8)['labels'] != with_box(9)['labels']


def test_a_prepared_set_has_one_fingerprint_streamed_or_in_memory(data, prepared, make_image):
  pytest.importorskip('tensorflow_datasets')
  folder = prepared([make_image(6, 5, seed=seed) for seed in range(8)], [0, 1, 2, 0, 1, 2, 0, 1])
  held = of(data, 'train[2:]', source='tfds:toy', dir=str(folder))
  streamed = of(data, 'train[2:]', placement='stream')
  assert held == streamed
  assert held['images'] == 6
  shard = next(folder.glob('toy/*/*00000-of*'))
  shard.write_bytes(shard.read_bytes() + b'more')
  assert fingerprint.of({'a': loading.load(data, 'train[2:]', 0)})['a'] != streamed


def test_a_set_that_was_shuffled_is_other_data_than_in_its_order(data, prepared, make_image):
  pytest.importorskip('tensorflow_datasets')
  folder = prepared([make_image(6, 5, seed=seed) for seed in range(8)], [0, 0, 0, 1, 1, 1, 2, 2])
  options = {'source': 'tfds:toy', 'dir': str(folder), 'hold_out': True, 'placement': 'stream'}
  before = of(data, 'val', **options)
  assert before['labels'] is None
  about = folder / 'toy' / '1.0.0' / 'dataset_info.json'
  about.write_text(json.dumps(json.loads(about.read_text()) | {'disableShuffling': True}))
  after = of(data, 'val')
  assert None not in {after['labels'], of(data, 'train')['labels']} and after != before
  assert of(data, 'val', placement='device') == after


def test_large_sets_are_sampled(monkeypatch):
  sizes = []
  monkeypatch.setattr(fingerprint, 'MOST_SIZES', 100)
  monkeypatch.setattr(fingerprint, '_size', lambda path: sizes.append(path) or 1)
  from dnt.data.sources import folder

  labels = np.zeros(1001, np.int32)
  store = folder.Files(tuple(f'/here/{number}.jpg' for number in range(1001)), labels, images.USUAL)
  split = examples.Examples('folder', 'train', ('a', 'b'), (None, None, 3), store, labels)
  assert fingerprint.of({'train': split})['train']['images'] == 1001
  assert 50 < len(sizes) <= 100

  monkeypatch.setattr(fingerprint, 'MOST_BYTES', 100)
  many = examples.in_memory('mine', 'train', np.zeros((50, 4, 4, 1), np.uint8), np.zeros(50), ('a', 'b'))
  assert fingerprint.of({'train': many})['train']['images'] == 50
