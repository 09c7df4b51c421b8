import dataclasses
import itertools

import pytest
from PIL import Image

from dnt import errors
from dnt.config import older
from dnt.data import fingerprint, sources
from dnt.parallel import multihost
from dnt.training import datasets, open_options


def test_splits_are_read_once_and_named(tiny):
  data = datasets.load(tiny, ('test', 'train', 'train[:25%]'))
  assert list(data.evaluation) == ['test', 'train', 'train[:25%]']
  assert data.evaluation['train'] is data.train
  assert len(data.evaluation['train[:25%]']) == 16
  assert data.spec == datasets.Spec(64, (8, 8, 3), data.train.class_names)
  assert data.spec.steps_per_epoch(24) == 64 / 24


def test_splits_of_other_classes_are_refused(tiny, monkeypatch):
  read = datasets.sources.read

  def other_test(available, config, split):
    found = read(available, config, split)
    return found if split == 'train' else dataclasses.replace(found, class_names=(*found.class_names[:-1], 'other'))

  monkeypatch.setattr(datasets.sources, 'read', other_test)
  with pytest.raises(errors.InputError, match="'test' of synthetic .*classes.* 'train'"):
    datasets.load(tiny, ('test',))


@pytest.mark.parametrize(
  ('call', 'answer', 'said'),
  [
    (0, [2, 'nothing at /weights'], 'process 1: nothing at /weights'),
    (1, {'whether config.train.init_from is a workdir': False}, 'a workdir is true on process 0 and false on process'),
    (2, [2, 'config.json is damaged'], 'process 1: config.json is damaged'),
  ],
)
def test_processes_agree_on_their_weights_before_they_read_data(tiny, saved, tmp_path, monkeypatch, call, answer, said):
  saved(tiny, tmp_path / 'weights')
  tiny.train.init_from, calls = str(tmp_path / 'weights'), []

  def gather(value):
    calls.append(value)
    return [value, answer if len(calls) == call + 1 else value]

  monkeypatch.setattr(multihost, 'is_single', lambda: False)
  monkeypatch.setattr(multihost, 'gather_from_all', gather)
  with pytest.raises(errors.InputError, match=said):
    datasets.load(tiny, (), find=lambda *_: pytest.fail('it reads the data'))


def test_val_is_held_out_of_train_where_the_data_has_none(tiny):
  tiny.eval.splits, tiny.data.val_fraction = ('val',), 0.25
  data = datasets.load(tiny, ('val',), test=True)
  assert (len(data.train), list(data.evaluation), len(data.evaluation['val'])) == (44, ['val', 'test'], 20)
  pixels = {image.tobytes() for image in data.train.images}
  assert not pixels & {image.tobytes() for image in data.evaluation['val'].images}
  assert open_options.resolve(tiny, data).data.hold_out is True
  assert len(datasets.load(tiny, ()).train) == 44, 'whatever a program evaluates'
  tiny.eval.splits = ('test',)
  data = datasets.load(tiny, ('test',), test=True)
  assert (len(data.train), list(data.evaluation)) == (64, ['test'])
  assert open_options.resolve(tiny, data).data.hold_out is False
  tiny.data.hold_out = True
  assert len(datasets.load(tiny, ('test',)).train) == 44
  tiny.data.hold_out, tiny.eval.splits = False, ('val',)
  with pytest.raises(errors.InputError, match="'val'"):
    datasets.load(tiny, ('val',))


def test_images_get_the_size_of_those_of_the_run_whose_weights_are_taken(tiny, saved, tmp_path):
  """It took its size from its data, and the new images differ in size."""
  tiny.data.source, tiny.data.image_size = 'digits', None
  saved(tiny, tmp_path / 'digits')
  for index, name in enumerate(('cat', 'dog') * 2):
    path = tmp_path / 'pets' / name / f'{index}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (20 + index, 30), (index, 0, 0)).save(path)
  tiny.data.source, tiny.eval.splits = f'folder:{tmp_path / "pets"}', ('val',)
  tiny.train.init_from = str(tmp_path / 'digits')
  data = datasets.load(tiny, ('val',))
  assert data.spec.image_shape == (8, 8, 1)
  assert open_options.resolve(tiny, data).data.image_size == 8
  tiny.data.image_size = 16
  assert datasets.load(tiny, ('val',)).spec.image_shape == (16, 16, 1), 'what the config sets counts'


@pytest.fixture
def pets(tiny, tmp_path):
  """A config whose data are class folders alone: four cats, ten dogs."""
  for index, name in enumerate(['cat'] * 4 + ['dog'] * 10):
    path = tmp_path / 'pets' / name / f'{index}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (8, 8), (index, 2 * index, 3 * index)).save(path)
  tiny.data.source = f'folder:{tmp_path / "pets"}'
  return tiny


@pytest.mark.parametrize('hold_out', [None, False])
def test_class_folders_of_a_run_that_asks_for_no_val_train_as_a_whole(pets, tmp_path, hold_out):
  pets.data.hold_out, pets.eval.splits = hold_out, ('train',)
  data = datasets.load(pets, ('train',), test=True)
  assert (len(data.train), list(data.evaluation), data.held_out) == (14, ['train'], False)
  assert open_options.resolve(pets, data).data.hold_out is False
  with pytest.raises(errors.InputError, match="split .*'val'"):
    datasets.load(pets, ('val',))
  for path in sorted((tmp_path / 'pets' / 'cat').iterdir())[1:]:
    path.unlink()
  assert len(datasets.load(pets, ('train',)).train) == 11, 'a rare class is no problem'


@pytest.mark.parametrize(
  ('hold_out', 'train_split', 'splits', 'recorded'),
  [
    (None, 'train', ('val',), True),
    (None, 'train', ('train', 'val[:50%]'), True),
    (True, 'train', ('train',), True),
    (False, 'train', ('val',), False),  # as runs of older versions recorded it
    (None, 'val', ('train',), True),
  ],
)
def test_class_folders_of_a_run_that_asks_for_val_are_drawn_as_ever(pets, hold_out, train_split, splits, recorded):
  pets.data.hold_out, pets.data.train_split, pets.eval.splits = hold_out, train_split, splits
  data = datasets.load(pets, ('train', 'val'))
  ever = sources.find(pets.data, pets.data.seed)
  assert [data.evaluation[split].store.paths for split in ('train', 'val')] == [
    ever[split]().store.paths for split in ('train', 'val')
  ]
  assert (len(data.evaluation['train']), len(data.evaluation['val'])) == (11, 3)
  assert data.held_out and open_options.resolve(pets, data).data.hold_out is recorded


def test_a_run_on_class_folders_that_goes_on_keeps_the_images_of_its_checkpoint(pets):
  ever = sources.find(pets.data, pets.data.seed)
  pets.data.hold_out = False
  for splits, (drawn, count) in itertools.product((('val',), ('train',)), ((True, 11), (False, 14))):
    pets.eval.splits = splits
    trained = ever['train' if drawn else 'all']()
    meta = {'data': fingerprint.of({'train': trained})}
    available, held_out = datasets.divide(pets, ever, meta)
    assert (len(available['train']()), held_out) == (count, drawn), (splits, drawn)
    _, held_out = datasets.divide(pets, ever, older.meta({'config': pets.to_dict()}, 1))
    assert held_out, 'of a version that recorded no images'
    meta['data']['train']['content'] = 'other images'
    _, held_out = datasets.divide(pets, ever, meta)
    assert not held_out, 'it may have trained on all of them'
    _, held_out = datasets.divide(pets, ever, {'data': meta['data'] | fingerprint.of({'val': ever['val']()})})
    assert held_out, 'it had a val'


def test_a_run_on_all_images_of_class_folders_goes_on_as_it_began(pets):
  """The images of `all` are the same whether a val is drawn or not."""
  ever = sources.find(pets.data, pets.data.seed)
  pets.data.train_split = 'all'
  for splits, drawn in ((('train',), False), (('val',), True)):
    pets.eval.splits = splits
    data = datasets.load(pets, splits)
    _, held_out = datasets.divide(pets, ever, {'data': data.fingerprint()})
    assert held_out is data.held_out is drawn
  pets.eval.splits = ('val',)  # of an evaluation afterwards
  assert not datasets.divide(pets, ever, {'data': fingerprint.of({'all': ever['all']()})})[1], 'all of them trained'
  pets.eval.splits = ('train',)
  recorded = fingerprint.of({'all': ever['all'](), 'train': ever['train']()})
  assert datasets.divide(pets, ever, {'data': recorded})[1], 'a version that always drew'


def test_a_val_of_its_own_is_taken_and_a_test_split_without_labels_passed_over(tiny, tmp_path):
  for index, name in enumerate(('train/cat', 'train/dog', 'valid/cat', 'valid/dog', 'test')):
    for place in range(3):
      path = tmp_path / name / f'{place}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.new('RGB', (8, 8), (index, place, 0)).save(path)
  tiny.data.source, tiny.eval.splits = f'folder:{tmp_path}', ('val',)
  data = datasets.load(tiny, ('val',), test=True)
  assert (len(data.train), list(data.evaluation), data.held_out) == (6, ['val'], False)
  with pytest.raises(errors.InputError, match='labels'):
    datasets.load(tiny, ('test',))
