import re

import ml_collections
import numpy as np
import pytest

from dnt import config as schema
from dnt import errors

OPTIONS = schema.OPTIONS['train']


@pytest.mark.parametrize(
  ('key', 'near'),
  [('optim.learning_rte', 'optim.learning_rate'), ('modle', 'model.name'), ('train.epoch', 'train.epochs')],
)
def test_an_unlocked_config_with_an_unknown_key_is_refused_with_the_nearest(key, near):
  config = schema.default()
  config.unlock()
  config.update_from_flattened_dict({key: 1})
  with pytest.raises(errors.InputError, match=f"key '{key}'") as error:
    schema.validate(config)
  section = near.split('.')[0]
  assert re.search(rf"'{key}'.* '{section}\.", str(error.value))
  if key != 'modle':
    assert f" '{near}'" in str(error.value).partition(' Valid')[0]


def test_an_unknown_section_is_refused_even_when_empty():
  config = schema.default()
  config.unlock()
  config.optimizer = ml_collections.ConfigDict()
  with pytest.raises(errors.InputError, match="config key 'optimizer'"):
    schema.validate(config)


@pytest.mark.parametrize('key', ['optim.momentum', 'model.depth', 'seed'])
def test_a_missing_key_is_refused(key):
  config = schema.default().unlock()
  *section, name = key.split('.')
  del (config[section[0]] if section else config)[name]
  with pytest.raises(errors.InputError, match=f"'{key}' .*missing.* dnt.config.default"):
    schema.validate(config)


@pytest.mark.parametrize('key', [key for key, option in OPTIONS.items() if option.type is not dict])
def test_a_value_of_another_type_is_refused(key, refusal):
  kind = OPTIONS[key].type
  others = [True, 3, 0.5, 'text', (1,), [1], {'a': 1}]
  for value in others:
    if type(value) is kind or (kind is float and type(value) is int):
      continue
    message = refusal(key, value)
    assert message and (key in message), (key, value, message)
  assert (refusal(key, None) is None) == isinstance(OPTIONS[key].default, type)


def test_an_integer_will_do_for_a_float_but_not_the_reverse(refusal):
  assert refusal('train.epochs', 3) is None
  assert re.search(r'train\.batch_size .*int, not float.*\b128\.0\b', refusal('train.batch_size', 128.0))


@pytest.mark.parametrize('key', [key for key, option in OPTIONS.items() if option.type is float])
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_numbers_are_finite(key, value, refusal):
  assert re.search(f'{key}.* finite', refusal(key, value))


@pytest.mark.parametrize('key', [key for key, option in OPTIONS.items() if option.choices])
def test_choices_are_a_closed_set(key, refusal):
  for choice in OPTIONS[key].choices:
    assert refusal(key, choice) is None
  nearly = OPTIONS[key].choices[0] + 'x'
  message = refusal(key, nearly)
  assert re.match(f".*config.{key} '{nearly}'", message)
  assert all(choice in message for choice in OPTIONS[key].choices)


def test_class_weights_are_given_or_balanced_but_not_both():
  config = schema.default()
  config.loss.balance_classes = True
  schema.validate(config)
  config.loss.class_weights = (1.0, 2.0)
  with pytest.raises(errors.InputError, match='class_weights and .*balance_classes=True'):
    schema.validate(config)
  comparison = schema.default('compare')
  comparison.base = config
  with pytest.raises(errors.InputError, match='balance_classes=True'):
    schema.validate(comparison)


@pytest.mark.parametrize(
  ('columns', 'message'),
  [
    (
      ('accuracy', 'aurok'),
      r"config.columns 'aurok'.* 'auroc'.* accuracy, auroc, ",
    ),
    (('loss', 'loss'), r"config.columns=\('loss', 'loss'\) .*twice"),
    ((), r'config.columns=\(\) .*at least one'),
    ((1,), "config.columns '1'"),
  ],
)
def test_columns_of_a_comparison_are_figures_that_there_are(columns, message):
  config = schema.default('compare')
  schema.validate(config)
  config.columns = columns
  with pytest.raises(errors.InputError, match=message):
    schema.validate(config)


def test_options_of_a_module_of_the_users_own_are_free_but_a_dict(refusal):
  given = {'hidden': 3, 'rate': 0.5, 'bias': None, 'sizes': [1, (2, True)], 'inner': {'any': 'thing', 'none': {}}}
  assert refusal('model.options', given) is None
  assert re.search(r'config\.model\.options .*dict, not int.*3', refusal('model.options', 3))


@pytest.mark.parametrize(
  ('given', 'place'),
  [
    ({'act': len}, 'act=<built-in function len>'),
    ({'net': dict}, "net=<class 'dict'>"),
    ({'dtype': np.dtype('float32')}, "dtype=dtype('float32')"),
    ({'inner': {'sizes': [1, {2}]}}, 'inner.sizes[1]={2}'),
    ({'rate': float('nan')}, 'rate=nan'),
    ({'inner': {'names': [{3: 'three'}]}}, 'inner.names[0]'),
  ],
)
def test_an_option_of_a_module_that_json_lacks_is_refused(given, place, refusal):
  message = refusal('model.options', given)
  assert message and message.startswith(f'config.model.options.{place} ')
  assert 'texts' in message and 'config.json' in message


def test_what_a_comparison_sets_is_what_json_has():
  config = schema.default('compare')
  config.variants = {'deep': {'model.options': {'act': len}}}
  with pytest.raises(
    errors.InputError, match=r'config\.variants\.deep\.model\.options\.act=<built-in function len> must'
  ):
    schema.validate(config)
  config.variants = {3: {}}
  with pytest.raises(errors.InputError, match=r'config\.variants .*3.* texts'):
    schema.validate(config)
