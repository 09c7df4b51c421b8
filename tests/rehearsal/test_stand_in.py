"""Splits of the right size in place of images that are not here."""

import pytest

from dnt import config as schema
from dnt import errors
from dnt.rehearsal import stand_in
from dnt.training import datasets, open_options


def test_imagenet_needs_no_files():
  config = schema.default()
  config.data.source, config.data.image_size, config.eval.splits = 'tfds:imagenet2012', 224, ('validation',)
  config.data.augment = 'resized_crop_flip'
  config, data = stand_in.load(config, None)
  assert (len(data.train), len(data.evaluation['validation'])) == (1_281_167, 50_000)
  assert data.spec.image_shape == (224, 224, 3)
  assert len(data.spec.class_names) == 1000
  assert data.train.images is None  # as in a run, it is streamed
  resolved = open_options.resolve(config, data)
  assert resolved.train.steps == round(resolved.train.epochs * 1_281_167 / resolved.train.batch_size)


def test_val_is_held_out_of_cifar_as_in_a_run_and_lives_on_the_device():
  config = schema.default()
  config.data.source, config.data.val_fraction = 'tfds:cifar10', 0.1
  _, data = stand_in.load(config, None)
  assert {split: len(each) for split, each in data.evaluation.items()} == {'val': 5000, 'test': 10_000}
  assert data.train.images.shape == (45_000, 32, 32, 3)


def test_a_synthetic_split_is_that_of_the_config(tiny):
  real = datasets.load(tiny, tiny.eval.splits, test=True)
  _, data = stand_in.load(tiny, None)
  assert data.spec.image_shape == real.spec.image_shape
  assert [len(data.train), len(data.evaluation['test'])] == [len(real.train), len(real.evaluation['test'])]


def test_the_size_of_other_data_comes_from_the_command_line(tmp_path):
  config = schema.default()
  config.data.source = f'folder:{tmp_path / "absent"}'
  with pytest.raises(errors.InputError, match='--stand_in'):
    stand_in.load(config, None)
  with pytest.raises(errors.InputError, match='image_size'):
    stand_in.load(config, stand_in.parse('3000:7'))
  config.data.image_size, config.loss.balance_classes = 64, True
  config, data = stand_in.load(config, stand_in.parse('3000:7'))
  assert len(data.train) + len(data.evaluation['val']) == 3000
  assert len(open_options.resolve(config, data).loss.class_weights) == 7


@pytest.mark.parametrize(
  ('train_split', 'count'), [('train', 3000), ('extra', 3000), ('all', 3000), ('extra[:50%]', 1500)]
)
def test_the_size_is_that_of_the_training_split_by_any_name(train_split, count):
  config = schema.default()
  config.data.source, config.data.image_size, config.data.train_split = 'tfds:svhn_cropped', 32, train_split
  config.eval.splits = ('train[:10%]', 'test')
  _, data = stand_in.load(config, stand_in.parse('3000:10'))
  assert (len(data.train), len(data.evaluation['test']), len(data.evaluation['train[:10%]'])) == (count, 300, 300)


@pytest.mark.parametrize('text', ['', '10', '10:1', '0:10', 'a:b', '10:10:10'])
def test_a_size_that_is_none_is_refused(text):
  with pytest.raises(errors.InputError, match='1281167:1000'):
    stand_in.parse(text)


def test_images_of_each_class_are_as_many_as_in_a_run():
  config = schema.default()
  config.data.source, config.data.images_per_class = 'tfds:imagenet2012', 10
  config.data.image_size, config.data.augment, config.eval.splits = 224, 'resized_crop_flip', ('validation',)
  _, data = stand_in.load(config, None)
  assert (len(data.train), len(data.evaluation['validation'])) == (10_000, 50_000)
