import json
import re

import numpy as np
import pytest
from PIL import Image

from dnt import config as schema
from dnt import errors
from dnt.training import datasets, open_options


def test_resolved_config_has_everything_filled_in_and_the_given_one_stays(tiny):
  tiny.train.steps, tiny.train.epochs = None, 2.5
  before = tiny.to_dict()
  data = datasets.load(tiny, ('test',))
  resolved = open_options.resolve(tiny, data)
  assert tiny.to_dict() == before
  assert resolved.train.steps == 10
  assert resolved.model.num_classes == 10
  images = np.stack([data.train[index][0] for index in range(64)]) / 255
  np.testing.assert_allclose(resolved.data.mean, images.mean((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(resolved.data.std, images.std((0, 1, 2)), rtol=1e-5)
  assert resolved.model.block == 'plain', "the model's own default"


def test_data_of_one_class_is_refused(tiny):
  data = datasets.load(tiny, ())
  alone = data._replace(spec=data.spec._replace(class_names=('cat',)))
  with pytest.raises(errors.InputError, match="^synthetic has only one class, 'cat': there is nothing to learn"):
    open_options.resolve(tiny, alone)


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
  data = datasets.load(tiny, splits)
  resolved = open_options.rank(open_options.resolve(tiny, data), data)
  assert resolved.checkpoint.best_metric == ranks
  schema.validate(resolved)
  assert open_options.rank(resolved, data) == resolved
  tiny.train.patience = 1
  if '/' not in ranks:
    with pytest.raises(errors.InputError, match='patience .*test'):
      open_options.rank(open_options.resolve(tiny, data), data)


@pytest.mark.parametrize(('train', 'ranks'), [('all', 'accuracy'), ('train', 'val/accuracy')])
def test_a_split_that_training_images_contain_does_not_rank(tiny, tmp_path, train, ranks):
  for label in ('cat', 'dog'):
    (tmp_path / label).mkdir()
    for index in range(5):
      Image.new('RGB', (8, 8), (index, 0, len(label))).save(tmp_path / label / f'{index}.png')
  tiny.data.update({'source': f'folder:{tmp_path}', 'train_split': train, 'mean': (0.5,) * 3, 'std': (0.2,) * 3})
  tiny.eval.splits, tiny.checkpoint.best_metric = ('val',), 'accuracy'
  data = datasets.load(tiny, ('val',))
  assert open_options.rank(open_options.resolve(tiny, data), data).checkpoint.best_metric == ranks


def test_a_split_that_is_not_evaluated_cannot_rank(tiny):
  tiny.checkpoint.best_metric = 'val/loss'
  data = datasets.load(tiny, ('test',))
  with pytest.raises(errors.InputError, match=r"'val/loss' .*set config\.eval\.splits=\('test', 'val'\)$"):
    open_options.rank(open_options.resolve(tiny, data), data)


@pytest.mark.parametrize('metric', ['top5_accuracy', 'val/top5_accuracy'])
def test_a_metric_that_the_split_does_not_have_cannot_rank(tiny, metric):
  tiny.eval.splits, tiny.checkpoint.best_metric = ('val',), metric
  data = datasets.load(tiny, ('val',))
  why = (
    f"^config.checkpoint.best_metric='{metric}': top5_accuracy is measured from 100 classes on, and synthetic has 10"
  )
  with pytest.raises(errors.InputError, match=why):
    open_options.rank(open_options.resolve(tiny, data), data)
  tiny.checkpoint.best_metric = 'auroc'
  assert open_options.rank(open_options.resolve(tiny, data), data).checkpoint.best_metric == 'val/auroc'


def test_balanced_classes_are_resolved_into_weights_that_can_be_given_again(tiny):
  tiny.loss.balance_classes = True
  data = datasets.load(tiny, ())
  resolved = open_options.resolve(tiny, data)
  counts = np.bincount(data.train.labels, minlength=10)
  assert len(set(counts)) > 1
  np.testing.assert_allclose(np.asarray(resolved.loss.class_weights) * counts, 6.4)
  schema.validate(resolved)
  assert open_options.resolve(resolved, data).loss == resolved.loss


@pytest.fixture
def described(tiny, tmp_path):
  """Weights, which are not read here, and timm's description of them."""
  tiny.train.init_from = str(tmp_path / 'model.safetensors')
  tiny.data.image_size = None
  (tmp_path / 'model.safetensors').touch()

  def write(**cfg):
    (tmp_path / 'config.json').write_text(json.dumps({'pretrained_cfg': cfg}))
    return tiny

  return write


@pytest.mark.parametrize(
  ('mode', 'crop', 'augment', 'wanted'),
  [
    ('border', 0.9, 'none', 'squash'),
    ('squash', 0.9, 'none', 'squash'),
    ('border', 1.0, 'resized_crop_flip', 'center_crop'),
  ],
)
def test_a_resize_that_dnt_does_not_have_is_said(described, console, mode, crop, augment, wanted):
  config = described(input_size=[3, 8, 8], crop_mode=mode, crop_pct=crop)
  config.data.augment, config.data.workers = augment, 0
  resolved = open_options.resolve(config, datasets.load(config, ()))
  assert (resolved.data.image_size, resolved.data.eval_resize, resolved.data.eval_crop) == (8, wanted, 0.875)
  (line,) = (line for line in console.readouterr().out.splitlines() if 'resizes' in line)
  assert re.search(rf"\(crop_mode '{mode}.*evaluation uses {wanted}; set config\.data\.eval_resize", line)
  config.data.eval_resize, config.data.mean, config.data.std = 'squash', (0.5,) * 3, (0.2,) * 3
  open_options.resolve(config, datasets.load(config, ()))
  assert 'resizes' not in console.readouterr().out


def test_weights_for_images_that_are_not_square_need_a_size(described):
  config = described(input_size=[3, 8, 16])
  with pytest.raises(errors.InputError, match=r'8 x 16 pixels.* set config\.data\.image_size'):
    datasets.load(config, ())
  config.data.image_size = 8
  assert datasets.load(config, ()).spec.image_shape == (8, 8, 3)


def test_given_statistics_and_steps_are_kept(tiny):
  tiny.data.mean, tiny.data.std = (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)
  resolved = open_options.resolve(tiny, datasets.load(tiny, ()))
  assert (tuple(resolved.data.mean), tuple(resolved.data.std)) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
  assert resolved.train.steps == 6


def test_too_few_epochs_for_one_step_are_one_step(tiny):
  tiny.train.steps, tiny.train.epochs = None, 0.01
  assert open_options.resolve(tiny, datasets.load(tiny, ())).train.steps == 1


def test_head_of_other_classes_is_refused(tiny):
  tiny.model.num_classes = 7
  with pytest.raises(
    errors.InputError, match=r'num_classes=7.* synthetic .*10 classes; leave config\.model\.num_classes unset'
  ):
    open_options.resolve(tiny, datasets.load(tiny, ()))


@pytest.mark.parametrize('epochs', [1, 3, 5])
def test_epochs_are_as_many_steps_as_the_duration_of_them(tiny, epochs):
  """40 images in batches of 16: 2.5 steps an epoch."""
  tiny.data.synthetic_examples, tiny.train.batch_size = 40, 16
  tiny.train.steps, tiny.train.epochs = None, float(epochs)
  data = datasets.load(tiny, ())
  steps = open_options.resolve(tiny, data).train.steps
  assert steps == schema.duration(f'{epochs} epochs', steps, data.spec.steps_per_epoch(16)) == int(2.5 * epochs + 0.5)
