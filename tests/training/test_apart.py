"""Evaluation of a run on labelled data in a folder of its own, against that of the same images in its own data."""

import json
import logging
import re
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from dnt import errors, loop
from dnt.parallel import multihost
from dnt.training import apart, evaluate
from tests.data import loading

pytestmark = pytest.mark.usefixtures('undrawn')
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD'))
NAMES = ('ant', 'bee', COMPOSED)


@pytest.fixture
def run(tiny, saved, tmp_path):
  """A run on a folder of three classes, not trained; returns its config."""
  draw = np.random.default_rng(0)
  for split, count in (('train', 4), ('val', 1)):
    for name in NAMES:
      folder = tmp_path / 'own' / split / name
      folder.mkdir(parents=True)
      for index in range(count):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f'{index}.png')
  tiny.data.source, tiny.data.workers, tiny.eval.splits = f'folder:{tmp_path / "own"}', 0, ('val',)
  tiny.data.mean, tiny.data.std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
  tiny.checkpoint.best_metric = 'accuracy'
  saved(tiny)
  return tiny


def confusion(config, tmp_path, source, *splits):
  """Evaluates, and returns the confusion by split."""
  config.data.source, config.eval.splits = f'folder:{source}', splits
  metrics = evaluate.evaluate(config, tmp_path / 'run')
  written = json.loads((tmp_path / 'run' / 'evaluation.json').read_text())
  assert written['class_names'] == list(NAMES) and written['data'] == config.data.source
  assert {name.partition('/')[0] for name in metrics if '/' in name} == written['per_class'].keys()
  return {split: np.array(matrix) for split, matrix in written['confusion'].items()}


@pytest.mark.thorough
def test_a_run_on_gray_images_is_evaluated_on_a_folder(tiny, saved, tmp_path):
  tiny.data.source, tiny.eval.splits = 'digits', ('test[:40]',)
  saved(tiny)
  expected = evaluate.evaluate(tiny, tmp_path / 'run')
  digits = loading.load(tiny.data, 'test[:40]', 0)
  for name in digits.class_names:
    (tmp_path / 'scans' / 'test' / name).mkdir(parents=True)
  for index in range(40):
    image, label = digits[index]
    image.convert('RGB').save(tmp_path / 'scans' / 'test' / digits.class_names[label] / f'{index}.png')
  tiny.data.source, tiny.eval.splits = f'folder:{tmp_path / "scans"}', ('test',)
  found = evaluate.evaluate(tiny, tmp_path / 'run')
  assert found['test/loss'] == pytest.approx(expected['test[:40]/loss'], rel=1e-5)
  assert found['test/accuracy'] == expected['test[:40]/accuracy']


def test_a_split_that_has_changed_since_the_run_is_said(run, tmp_path, caplog):
  run.train.steps, run.train.batch_size, run.eval.every, run.checkpoint.every = 1, 8, '1', '1'
  loop.train(run, tmp_path / 'whole')
  caplog.set_level(logging.INFO, 'dnt')
  evaluate.evaluate(run, tmp_path / 'whole')
  assert 'not as' not in caplog.text
  shutil.copy(tmp_path / 'own' / 'train' / 'ant' / '0.png', tmp_path / 'own' / 'val' / 'ant' / '9.png')
  evaluate.evaluate(run, tmp_path / 'whole')
  assert re.search('not as the run.*: the images of val; ', caplog.text)


def test_no_val_is_drawn_from_images_that_all_trained(run, tmp_path):
  """Also where one of them is lost, so that no record says what the rest was."""
  run.data.source, run.eval.splits = f'folder:{tmp_path / "own" / "train"}', ('train',)
  run.train.steps, run.train.batch_size, run.eval.every, run.checkpoint.every = 1, 8, '1', '1'
  loop.train(run, tmp_path / 'whole')
  run.eval.splits = ('val',)
  for _ in range(2):
    with pytest.raises(errors.InputError, match="split.* 'val'"):
      evaluate.evaluate(run, tmp_path / 'whole')
    (tmp_path / 'own' / 'train' / 'ant' / '0.png').unlink(missing_ok=True)
  run.eval.splits = ('all',)
  assert evaluate.evaluate(run, tmp_path / 'whole')['all/loss'] > 0


def test_another_val_does_not_take_the_place_of_the_one_that_was_held_out(run, tmp_path):
  run.data.hold_out, run.data.val_fraction = True, 0.25
  run.train.steps, run.train.batch_size, run.eval.every, run.checkpoint.every = 1, 8, '1', '1'
  loop.train(run, tmp_path / 'whole')
  shutil.rmtree(tmp_path / 'own' / 'train')  # `val/`, which the run has never read, is still there
  with pytest.raises(errors.InputError, match='train'):
    evaluate.evaluate(run, tmp_path / 'whole')


def test_only_lines_on_what_is_evaluated_are_logged(run, tmp_path, caplog):
  run.train.steps, run.train.batch_size, run.eval.every, run.checkpoint.every = 1, 8, '1', '1'
  loop.train(run, tmp_path / 'whole')
  shutil.copytree(tmp_path / 'own' / 'train', tmp_path / 'alone')
  (tmp_path / 'alone' / 'ant' / '0.png').unlink()  # the images are no longer those of the run
  for split in ('train', 'test'):
    shutil.copytree(tmp_path / 'own' / 'val', tmp_path / 'whole set' / split)
  for place, split in (('alone', 'all'), ('whole set', 'test')):
    run.data.source, run.eval.splits = f'folder:{tmp_path / place}', ('test',)
    caplog.clear()
    with caplog.at_level(logging.INFO, 'dnt'):
      evaluate.evaluate(run, tmp_path / 'whole')
    read = [message for each in caplog.records if 'images (' in (message := each.getMessage())]
    assert len(read) == 1 and read[0].startswith(f'{split} from {tmp_path / place}')


@pytest.mark.parametrize(
  ('base', 'asked', 'found'),
  [
    ('', 'test', 'test'),
    ('', 'val', 'val'),
    ('test', 'test', 'test'),
    ('test', 'val', 'test'),
    ('Testing', 'test', 'test'),
    ('test/test', 'test', 'test'),
    ('val', 'test', 'val'),
  ],
)
def test_a_test_set_without_training_images_is_evaluated(run, tmp_path, base, asked, found, caplog):
  expected = confusion(run, tmp_path, tmp_path / 'own', 'train')['train']
  shutil.copytree(tmp_path / 'own' / 'train', tmp_path / 'other' / base)
  run.data.mean = run.data.std = ()  # those of the run
  run.data.image_size = None
  result = confusion(run, tmp_path, tmp_path / 'other', asked)

  assert result.keys() == {found}
  np.testing.assert_array_equal(result[found], expected)


def test_a_slice_of_class_folders_is_a_slice_of_all(run, tmp_path):
  shutil.copytree(tmp_path / 'own' / 'train', tmp_path / 'other')
  assert confusion(run, tmp_path, tmp_path / 'other', 'test[:50%]')['test[:50%]'].sum() == 6


def test_other_data_is_evaluated_as_a_whole(run, tmp_path):
  shutil.copytree(tmp_path / 'own' / 'train', tmp_path / 'other' / 'train')
  run.data.images_per_class = 9  # more than there are
  assert confusion(run, tmp_path, tmp_path / 'other', 'train')['train'].sum() == 12


def test_classes_may_be_lacking_have_one_image_or_another_form_of_their_name(run, tmp_path):
  expected = confusion(run, tmp_path, tmp_path / 'own', 'val')['val']
  shutil.copytree(tmp_path / 'own' / 'val' / COMPOSED, tmp_path / 'other' / 'test' / DECOMPOSED)
  result = confusion(run, tmp_path, tmp_path / 'other', 'test')['test']
  np.testing.assert_array_equal(result, expected * [[0], [0], [1]])
  shutil.copytree(tmp_path / 'own' / 'val' / 'ant', tmp_path / 'other' / 'test' / 'ant')
  result = confusion(run, tmp_path, tmp_path / 'other' / 'test', 'test')['test']
  np.testing.assert_array_equal(result, expected * [[1], [0], [1]])


def test_other_classes_are_refused(run, tmp_path):
  shutil.copytree(tmp_path / 'own' / 'train', tmp_path / 'other')
  (tmp_path / 'other' / 'ant').rename(tmp_path / 'other' / 'z_ant')
  with pytest.raises(errors.InputError, match='z_ant; missing: ant'):
    confusion(run, tmp_path, tmp_path / 'other', 'test')


def test_what_is_only_for_training_does_not_matter(run, tmp_path):
  for split in ('one', 'two', 'three'):
    shutil.copytree(tmp_path / 'own' / 'train' / 'ant', tmp_path / 'other' / 'ant' / split)
  run.train.batch_size, run.loss.balance_classes = 1, True
  run.schedule.update({'name': 'piecewise', 'warmup': '1 epochs', 'boundaries': ('13 steps',)})  # of 12 images
  shutil.copytree(tmp_path / 'own' / 'train' / 'bee', tmp_path / 'other' / 'bee')
  assert confusion(run, tmp_path, tmp_path / 'other', 'test')['test'].sum() == 16


def test_the_runs_own_data_in_another_place_keeps_its_splits(run, tmp_path):
  (tmp_path / 'own' / 'train').rename(tmp_path / 'classes')
  run.data.source, run.train.steps = f'folder:{tmp_path / "classes"}', 2
  shutil.rmtree(tmp_path / 'run')
  loop.train(run, tmp_path / 'run')
  expected = confusion(run, tmp_path, tmp_path / 'classes', 'val')
  (tmp_path / 'classes').rename(tmp_path / 'moved')
  np.testing.assert_array_equal(confusion(run, tmp_path, tmp_path / 'moved', 'val')['val'], expected['val'])
  assert expected['val'].sum() < 12
  shutil.rmtree(tmp_path / 'moved' / 'bee')
  assert confusion(run, tmp_path, tmp_path / 'moved', 'val')['val'].sum() == 8


@pytest.mark.parametrize(('flat', 'said'), [(True, 'have no labels'), (False, "no split 'test'")])
def test_training_images_of_a_run_that_were_moved_are_no_test_set(run, tmp_path, flat, said):
  (tmp_path / 'own' / 'val').rename(tmp_path / 'unused')
  if flat:
    (tmp_path / 'own' / 'test').mkdir()
    shutil.copy(tmp_path / 'own' / 'train' / 'ant' / '0.png', tmp_path / 'own' / 'test')
  shutil.rmtree(tmp_path / 'run')
  run.train.steps, run.train.batch_size, run.eval.every, run.checkpoint.every = 1, 8, '1', '1'
  loop.train(run, tmp_path / 'run')
  (tmp_path / 'own').rename(tmp_path / 'moved')
  for splits in (('test',), ('val', 'test')):
    with pytest.raises(errors.InputError, match=said):
      confusion(run, tmp_path, tmp_path / 'moved', *splits)


def test_images_of_a_run_on_whole_class_folders_that_were_moved_are_no_test_set(run, tmp_path):
  (tmp_path / 'own' / 'train').rename(tmp_path / 'classes')
  shutil.rmtree(tmp_path / 'run')
  run.data.source, run.eval.splits, run.train.steps, run.eval.every = (
    f'folder:{tmp_path / "classes"}',
    ('train',),
    1,
    '1',
  )
  loop.train(run, tmp_path / 'run')
  (tmp_path / 'classes').rename(tmp_path / 'moved')
  with pytest.raises(errors.InputError, match="no split 'test'"):
    confusion(run, tmp_path, tmp_path / 'moved', 'test')
  assert confusion(run, tmp_path, tmp_path / 'moved', 'train')['train'].sum() == 12


def test_an_unlabelled_test_folder_of_other_data_is_no_name_for_its_class_folders(run, tmp_path):
  shutil.copytree(tmp_path / 'own' / 'val', tmp_path / 'other' / 'train')
  (tmp_path / 'other' / 'test').mkdir()
  shutil.copy(tmp_path / 'own' / 'val' / 'ant' / '0.png', tmp_path / 'other' / 'test')
  with pytest.raises(errors.InputError, match='have no labels'):
    confusion(run, tmp_path, tmp_path / 'other', 'test')
  assert confusion(run, tmp_path, tmp_path / 'other', 'val')['val'].sum() == 3


@pytest.mark.parametrize('case', ['other data', 'own data', 'own data without training images'])
def test_processes_with_other_images_do_not_evaluate(run, tmp_path, monkeypatch, case):
  source, split = tmp_path / 'own', 'val'
  if case == 'other data':
    source, split = shutil.copytree(tmp_path / 'own' / 'val', tmp_path / 'other' / 'test').parent, 'test'
  elif case != 'own data':
    (tmp_path / 'own' / 'train').rename(tmp_path / 'elsewhere')
  monkeypatch.setattr(multihost, 'is_single', lambda: False)
  more = f'the number of images of {split}'

  def gather(value):
    return [value, {**value, more: value[more] + 1} if isinstance(value, dict) else value]

  monkeypatch.setattr(multihost, 'gather_from_all', gather)
  with pytest.raises(errors.InputError, match=f'differ: {more} is 3 on process 0 and 4 on process 1'):
    confusion(run, tmp_path, source, split)
  assert not (tmp_path / 'run' / 'evaluation.json').exists()


def test_all_processes_take_the_data_for_that_of_the_run_if_it_is_in_place_for_the_lead(run, tmp_path, monkeypatch):
  expected = confusion(run, tmp_path, tmp_path / 'own', 'val')
  (tmp_path / 'own').rename(tmp_path / 'moved')
  ask = multihost.broadcast_from_lead
  monkeypatch.setattr(multihost, 'broadcast_from_lead', lambda value: True if value is False else ask(value))
  for name in ('_may_be_own', '_read'):
    monkeypatch.setattr(apart, name, lambda *_: pytest.fail('the lead does not'))
  found = confusion(run, tmp_path, tmp_path / 'moved', 'val')
  np.testing.assert_array_equal(found['val'], expected['val'])


def test_training_images_that_are_gone_are_not_needed(run, tmp_path):
  expected = confusion(run, tmp_path, tmp_path / 'own', 'val')['val']
  run.data.mean = run.data.std = ()
  (tmp_path / 'own' / 'train').rename(tmp_path / 'elsewhere')
  np.testing.assert_array_equal(confusion(run, tmp_path, tmp_path / 'own', 'val')['val'], expected)
  with pytest.raises(errors.InputError, match='no train/'):
    confusion(run, tmp_path, tmp_path / 'own', 'test')
