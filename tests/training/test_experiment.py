"""From a config to what a program computes with."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dnt import config as schema
from dnt import errors
from dnt.parallel import multihost
from dnt.training import experiment


def build(config):
  data = experiment.load_data(config, ('test',))
  return experiment.make(experiment.resolve(config, data), data.spec)


def test_splits_are_read_once_and_named(tiny):
  data = experiment.load_data(tiny, ('test', 'train', 'train[:25%]'))
  assert list(data.evaluation) == ['test', 'train', 'train[:25%]']
  assert data.evaluation['train'] is data.train
  assert len(data.evaluation['train[:25%]']) == 16
  assert data.spec == experiment.DataSpec(64, (8, 8, 3), data.train.class_names)
  assert data.spec.steps_per_epoch(24) == 64 / 24


def test_splits_of_other_classes_are_refused(tiny, monkeypatch):
  read = experiment.sources.read

  def other_test(available, config, split):
    found = read(available, config, split)
    return found if split == 'train' else dataclasses.replace(found, class_names=(*found.class_names[:-1], 'other'))

  monkeypatch.setattr(experiment.sources, 'read', other_test)
  with pytest.raises(errors.InputError, match="'test' of synthetic .*classes.* 'train'"):
    experiment.load_data(tiny, ('test',))


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
    experiment.load_data(tiny, (), find=lambda *_: pytest.fail('it reads the data'))


def test_resolved_config_has_everything_filled_in_and_the_given_one_stays(tiny):
  tiny.train.steps, tiny.train.epochs = None, 2.5
  before = tiny.to_dict()
  data = experiment.load_data(tiny, ('test',))
  resolved = experiment.resolve(tiny, data)
  assert tiny.to_dict() == before
  assert resolved.train.steps == 10
  assert resolved.model.num_classes == 10
  images = np.stack([data.train[index][0] for index in range(64)]) / 255
  np.testing.assert_allclose(resolved.data.mean, images.mean((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(resolved.data.std, images.std((0, 1, 2)), rtol=1e-5)
  assert resolved.model.block == 'plain', "the model's own default"


def test_data_of_one_class_is_refused(tiny):
  data = experiment.load_data(tiny, ())
  alone = data._replace(spec=data.spec._replace(class_names=('cat',)))
  with pytest.raises(errors.InputError, match="^synthetic has only one class, 'cat': there is nothing to learn"):
    experiment.resolve(tiny, alone)


def test_val_is_held_out_of_train_where_the_data_has_none(tiny):
  tiny.eval.splits, tiny.data.val_fraction = ('val',), 0.25
  data = experiment.load_data(tiny, ('val',), test=True)
  assert (len(data.train), list(data.evaluation), len(data.evaluation['val'])) == (44, ['val', 'test'], 20)
  pixels = {image.tobytes() for image in data.train.images}
  assert not pixels & {image.tobytes() for image in data.evaluation['val'].images}
  assert experiment.resolve(tiny, data).data.hold_out is True
  assert len(experiment.load_data(tiny, ()).train) == 44, 'whatever a program evaluates'
  tiny.eval.splits = ('test',)
  data = experiment.load_data(tiny, ('test',), test=True)
  assert (len(data.train), list(data.evaluation)) == (64, ['test'])
  assert experiment.resolve(tiny, data).data.hold_out is False
  tiny.data.hold_out = True
  assert len(experiment.load_data(tiny, ('test',)).train) == 44
  tiny.data.hold_out, tiny.eval.splits = False, ('val',)
  with pytest.raises(errors.InputError, match="'val'"):
    experiment.load_data(tiny, ('val',))


def test_a_val_of_its_own_is_taken_and_a_test_split_without_labels_passed_over(tiny, tmp_path):
  for index, name in enumerate(('train/cat', 'train/dog', 'valid/cat', 'valid/dog', 'test')):
    for place in range(3):
      path = tmp_path / name / f'{place}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.new('RGB', (8, 8), (index, place, 0)).save(path)
  tiny.data.source, tiny.eval.splits = f'folder:{tmp_path}', ('val',)
  data = experiment.load_data(tiny, ('val',), test=True)
  assert (len(data.train), list(data.evaluation), data.held_out) == (6, ['val'], False)
  with pytest.raises(errors.InputError, match='labels'):
    experiment.load_data(tiny, ('test',))


@pytest.mark.parametrize(
  ('train', 'splits', 'metric', 'ranks'),
  [
    ('train', ('val', 'test'), 'accuracy', 'val/accuracy'),
    ('train', ('test', 'val'), 'loss', 'val/loss'),
    ('train', ('test',), 'accuracy', 'accuracy'),
    ('train', ('test[:50%]', 'train[:50%]'), 'loss', 'loss'),
    ('train[:50%]', ('train[49%:]', 'train[50%:]'), 'accuracy', 'train[50%:]/accuracy'),
    ('train', ('val', 'test'), 'test/loss', 'test/loss'),
  ],
)
def test_a_split_ranks_that_is_no_test_split_and_no_training_data(tiny, train, splits, metric, ranks):
  tiny.data.train_split, tiny.eval.splits, tiny.checkpoint.best_metric = train, splits, metric
  data = experiment.load_data(tiny, splits)
  resolved = experiment.rank(experiment.resolve(tiny, data), data)
  assert resolved.checkpoint.best_metric == ranks
  schema.validate(resolved)
  assert experiment.rank(resolved, data) == resolved
  tiny.train.patience = 1
  if '/' not in ranks:
    with pytest.raises(errors.InputError, match='patience .*test'):
      experiment.rank(experiment.resolve(tiny, data), data)


@pytest.mark.parametrize(('train', 'ranks'), [('all', 'accuracy'), ('train', 'val/accuracy')])
def test_a_split_that_training_images_contain_does_not_rank(tiny, tmp_path, train, ranks):
  for label in ('cat', 'dog'):
    (tmp_path / label).mkdir()
    for index in range(5):
      Image.new('RGB', (8, 8), (index, 0, len(label))).save(tmp_path / label / f'{index}.png')
  tiny.data.update({'source': f'folder:{tmp_path}', 'train_split': train, 'mean': (0.5,) * 3, 'std': (0.2,) * 3})
  tiny.eval.splits, tiny.checkpoint.best_metric = ('val',), 'accuracy'
  data = experiment.load_data(tiny, ('val',))
  assert experiment.rank(experiment.resolve(tiny, data), data).checkpoint.best_metric == ranks


def test_a_split_that_is_not_evaluated_cannot_rank(tiny):
  tiny.checkpoint.best_metric = 'val/loss'
  data = experiment.load_data(tiny, ('test',))
  with pytest.raises(errors.InputError, match=r"'val/loss' .*set config\.eval\.splits=\('test', 'val'\)$"):
    experiment.rank(experiment.resolve(tiny, data), data)


def test_balanced_classes_are_resolved_into_weights_that_can_be_given_again(tiny):
  tiny.loss.balance_classes = True
  data = experiment.load_data(tiny, ())
  resolved = experiment.resolve(tiny, data)
  counts = np.bincount(data.train.labels, minlength=10)
  assert len(set(counts)) > 1
  np.testing.assert_allclose(np.asarray(resolved.loss.class_weights) * counts, 6.4)
  schema.validate(resolved)
  assert experiment.resolve(resolved, data).loss == resolved.loss


def test_a_wrong_number_of_class_weights_is_refused_before_anything_is_computed(tiny):
  tiny.loss.class_weights = (1.0, 2.0)
  data = experiment.load_data(tiny, ())
  with pytest.raises(errors.InputError, match='2 weights, but the model has 10 classes'):
    experiment.make(experiment.resolve(tiny, data), data.spec)


@pytest.mark.parametrize(
  ('options', 'trains'),
  [
    ({'trainable': 'all'}, True),
    ({'trainable': 'head'}, False),
    ({'trainable': 'stage3/.*'}, True),
    ({'trainable': 'head', 'unfreeze': (('50%', 'top:1'),)}, True),
    ({'trainable': 'head', 'unfreeze': (('1000', 'all'),)}, True),  # a run that is shortened for a trial
    ({'trainable': 'head', 'frozen_norm': 'affine_only'}, True),
    ({'trainable': 'head', 'frozen_norm': 'batch'}, False),
  ],
)
def test_rates_of_entries_that_never_train_are_refused(tiny, options, trains):
  tiny.model.update({'name': 'resnet', 'depth': 8, 'width': None})
  tiny.finetune.update({'rates': (('stage3/.*', 0.1),), **options})
  refusal = pytest.raises(errors.InputError, match=r"rates: 'stage3/\.\*' .* no entry that trains: head$")
  with contextlib.nullcontext() if trains else refusal:
    build(tiny)


def test_given_statistics_and_steps_are_kept(tiny):
  tiny.data.mean, tiny.data.std = (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)
  resolved = experiment.resolve(tiny, experiment.load_data(tiny, ()))
  assert (tuple(resolved.data.mean), tuple(resolved.data.std)) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
  assert resolved.train.steps == 6


def test_too_few_epochs_for_one_step_are_one_step(tiny):
  tiny.train.steps, tiny.train.epochs = None, 0.01
  assert experiment.resolve(tiny, experiment.load_data(tiny, ())).train.steps == 1


def test_head_of_other_classes_is_refused(tiny):
  tiny.model.num_classes = 7
  with pytest.raises(
    errors.InputError, match=r'num_classes=7.* synthetic .*10 classes; leave config\.model\.num_classes unset'
  ):
    experiment.resolve(tiny, experiment.load_data(tiny, ()))


def test_events_follow_epochs(tiny):
  run = build(tiny)
  assert run.steps_per_epoch == 4
  every = run.every('1 epochs')
  assert [step for step in range(1, 10) if every.due(step)] == [4, 8]


def test_abstract_state_is_the_state_undrawn(tiny):
  tiny.ema.decay = 0.9
  run = build(tiny)
  abstract = run.abstract_state()
  state = run.make_state(run.init_variables())
  assert jax.tree.structure(abstract) == jax.tree.structure(state)
  described = jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.asarray(leaf).dtype), state)
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract) == described
