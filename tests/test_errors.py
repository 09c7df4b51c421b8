import errno
import os
import pickle
import re

import pytest

from dnt import config as schema
from dnt import errors, models

KEYS = list(schema.OPTIONS['train'])
CHOICES = {key: list(map(str, option.choices)) for key, option in schema.OPTIONS['train'].items() if option.choices}


def test_unknown_names_the_nearest_and_lists_the_valid_ones():
  error = errors.unknown('norm', 'bach_norm', ['layer_norm', 'batch_norm'])
  assert isinstance(error, errors.InputError)
  assert re.fullmatch(".*norm 'bach_norm'.* 'batch_norm'.* batch_norm, layer_norm", str(error))


def test_unknown_guesses_nothing_where_nothing_is_near():
  message = str(errors.unknown('model', 'xyz', ('plain', 'mlp')))
  assert "model 'xyz'" in message and message.endswith(' mlp, plain')
  assert message.count('plain') == message.count('mlp') == 1


def test_unknown_among_many_lists_the_nearest_alone():
  message = str(errors.unknown('config key', 'train.stepz', ['train.steps', *(f'model.option{i}' for i in range(60))]))
  assert re.search("config key 'train.stepz'.* 'train.steps'.* train.steps, ", message)
  assert message.endswith(' 56 more') and message.count(', ') == 4


def test_unknown_with_nothing_to_choose_from():
  for name in ('shrt', 'none'):
    assert re.fullmatch(f"unknown form '{name}'.* there is none", str(errors.unknown('form', name, [])))


def test_a_missing_option_is_bad_input_a_missing_attribute_and_a_missing_key():
  error = pickle.loads(pickle.dumps(errors.UnknownKeyError("unknown config key 'a'")))
  assert isinstance(error, errors.InputError) and isinstance(error, AttributeError) and isinstance(error, KeyError)
  assert str(error) == "unknown config key 'a'"


def test_the_two_errors_are_told_apart():
  assert not issubclass(errors.InputError, errors.RunError) and not issubclass(errors.RunError, errors.InputError)


@pytest.mark.parametrize(
  ('name', 'valid', 'meant'),
  [
    ('optim.lr', KEYS, 'optim.learning_rate'),
    ('lr', KEYS, 'optim.learning_rate'),
    ('train.lr', KEYS, 'optim.learning_rate'),
    ('optim.learning-rate', KEYS, 'optim.learning_rate'),
    ('optim.wd', KEYS, 'optim.weight_decay'),
    ('batch', KEYS, 'train.batch_size'),
    ('batch_size', KEYS, 'train.batch_size'),
    ('eval.bs', KEYS, 'eval.batch_size'),
    ('epochs', KEYS, 'train.epochs'),
    ('steps', KEYS, 'train.steps'),
    ('optim', KEYS, 'optim.name'),
    ('scheduler', KEYS, 'schedule.name'),
    ('model.init', KEYS, 'model.initializer'),
    ('base.optim.lr', [f'base.{key}' for key in KEYS], 'base.optim.learning_rate'),
    ('lr', [f'--config.{key}' for key in KEYS], '--config.optim.learning_rate'),
    ('xavier', CHOICES['model.initializer'], 'glorot'),
    ('kaiming', CHOICES['model.initializer'], 'he'),
    ('bn', CHOICES['model.norm'], 'batch_norm'),
    ('adam', CHOICES['optim.name'], 'adamw'),
    ('AdamW', CHOICES['optim.name'], 'adamw'),
    ('swish', CHOICES['model.activation'], 'silu'),
    ('step', CHOICES['schedule.name'], 'piecewise'),
    ('None', CHOICES['clip.name'], 'none'),
    ('resnet50', models.MODELS, 'resnet'),
    ('vgg16', models.MODELS, 'plain'),
  ],
)
def test_names_that_the_field_uses_are_understood(name, valid, meant):
  assert f'did you mean {meant!r}?' in str(errors.unknown('name', name, valid))


@pytest.mark.parametrize(
  ('name', 'meant'),
  [
    ('train.monitor', 'checkpoint.best_metric'),
    ('train.num_epochs', 'train.epochs'),
    ('train.log_interval', 'train.log_every'),
    ('data.validation_split', 'data.val_fraction'),
    ('checkpoint.save_top_k', 'checkpoint.keep'),
    ('model.bn', 'model.norm'),
    ('train.seed', 'seed'),
    ('data.batch_size', 'train.batch_size'),
    ('data.num_classes', 'model.num_classes'),
    ('model.depht', 'model.depth'),
    ('trian.steps', 'train.steps'),
    ('optim.stpes', 'train.steps'),
    ('data.imagesize', 'data.image_size'),
  ],
)
def test_what_is_near_is_meant(name, meant):
  assert f'did you mean {meant!r}?' in str(errors.unknown('config key', name, KEYS))


@pytest.mark.parametrize('name', ['train.verbose', 'train.callbacks', 'loss.name', 'clip.value', 'model.heads'])
def test_a_section_alone_makes_nothing_near_and_its_options_are_listed(name):
  section = name.partition('.')[0]
  options = ', '.join(sorted(key for key in KEYS if key.startswith(f'{section}.')))
  message = str(errors.unknown('config key', name, KEYS))
  assert message.startswith(f"unknown config key '{name}'. Valid: {options} and ")


@pytest.mark.parametrize('key', ['train.{}', 'base.train.{}', '{}', 'config.{}'])
@pytest.mark.parametrize(
  ('name', 'answer'),
  [
    ('resume', 'the same command resumes a run; train.init_from '),
    ('dropout', 'no network of dnt has dropout; '),
    ('output_dir', '--workdir '),
    ('gpus', 'a run takes all devices'),
    ('evaluate', '--mode=evaluate '),
  ],
)
def test_what_dnt_does_otherwise_is_said(key, name, answer):
  what = 'flag' if key == '{}' else 'config key'
  message = str(errors.unknown(what, key.format(name), KEYS))
  assert message.startswith(f'unknown {what} {key.format(name)!r}: {answer}')


def test_what_is_no_option_gets_no_answer():
  assert "'tests'?" in str(errors.unknown('split of digits', 'test', ['tests', 'train']))


def test_answers_name_options_of_dnt():
  named = {key for answer in errors._ANSWERS.values() for key in re.findall(r'\b[a-z]+\.[a-z_]+', answer)}
  assert named and named - {'dnt.main'} <= set(KEYS)


def test_names_that_the_field_uses_stand_for_names_of_dnt():
  known = {*KEYS, *models.MODELS, *(name for names in CHOICES.values() for name in names)}
  assert set(errors._OTHER_NAMES) <= known


def test_a_file_that_cannot_be_opened_for_want_of_open_files_says_what_to_raise():
  error = errors.of_file(OSError(errno.EMFILE, os.strerror(errno.EMFILE), 'a.json'))
  assert re.fullmatch('a.json: Too many open files; .*`ulimit -n`.*', str(error))
