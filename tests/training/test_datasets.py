import dataclasses

import pytest
from PIL import Image

from dnt import errors
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
