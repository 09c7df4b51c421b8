import importlib.util
import pathlib
import re

import ml_collections
import numpy as np
import pytest

from dnt import config as schema
from dnt import errors
from dnt.weights import preprocessing

OPTIONS = schema.OPTIONS['train']
CONFIGS = sorted((pathlib.Path(__file__).parents[1] / 'configs').glob('*.py'))


def refused(key, value):
  """The message with which `validate` refuses the value, or None."""
  config = schema.default().unlock()
  *sections, name = key.split('.')
  section = config
  for part in sections:
    section = section[part]
  del section[name]  # so that the new value is neither checked nor converted before
  section[name] = value
  try:
    schema.validate(config)
  except errors.InputError as error:
    return str(error)
  return None


def test_the_default_is_valid_locked_and_typed():
  config = schema.default()
  schema.validate(config)
  with pytest.raises(AttributeError, match='"learning_rate"'):
    config.optim.learning_rte = 0.1
  with pytest.raises(TypeError):
    config.train.batch_size = '128'


def test_defaults_are_not_shared():
  schema.default().model.options.unlock()['classes'] = 3
  first, second = schema.default(), schema.default()
  first.optim.learning_rate = 3.0
  assert second.optim.learning_rate == 0.1 and not second.model.options


@pytest.mark.parametrize('key', OPTIONS)
def test_every_option_has_help_and_a_default_of_its_own_kind(key):
  option = OPTIONS[key]
  assert option.help and option.type in (bool, int, float, str, tuple, dict)
  value = schema.default()
  for part in key.split('.'):
    value = value[part]
  if option.type is not dict:
    assert value == (None if isinstance(option.default, type) else option.default)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_is_valid(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  schema.validate(config)
  assert config.is_locked


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
def test_a_value_of_another_type_is_refused(key):
  kind = OPTIONS[key].type
  others = [True, 3, 0.5, 'text', (1,), [1], {'a': 1}]
  for value in others:
    if type(value) is kind or (kind is float and type(value) is int):
      continue
    message = refused(key, value)
    assert message and (key in message), (key, value, message)
  assert (refused(key, None) is None) == isinstance(OPTIONS[key].default, type)


def test_every_option_of_networks_and_data_says_what_it_decides():
  for key, option in OPTIONS.items():
    assert option.role in schema.ROLES.get(key.partition('.')[0], ('',)), key
  assert schema.model_options('function') == ('norm_epsilon', 'stride_on')
  assert set(schema.model_options('run')) == {'num_classes', 'dtype', 'scan', 'remat'}


def test_an_integer_will_do_for_a_float_but_not_the_reverse():
  assert refused('train.epochs', 3) is None
  assert re.search(r'train\.batch_size .*int, not float.*\b128\.0\b', refused('train.batch_size', 128.0))


@pytest.mark.parametrize('key', [key for key, option in OPTIONS.items() if option.type is float])
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_numbers_are_finite(key, value):
  assert re.search(f'{key}.* finite', refused(key, value))


@pytest.mark.parametrize('key', [key for key, option in OPTIONS.items() if option.choices])
def test_choices_are_a_closed_set(key):
  for choice in OPTIONS[key].choices:
    assert refused(key, choice) is None
  nearly = OPTIONS[key].choices[0] + 'x'
  message = refused(key, nearly)
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


def test_means_on_the_scale_of_bytes_are_refused_with_what_to_do():
  config = schema.default()
  config.data.mean, config.data.std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
  with pytest.raises(errors.InputError, match=r'data\.mean=\(123\.675, .* divide mean and std .* by 255'):
    schema.validate(config)
  for given in (preprocessing.IMAGENET, preprocessing.KERAS):
    config.data.mean, config.data.std = given.mean, given.std
    schema.validate(config)


# key: values at the edge that are valid, values just beyond it
EDGES = {
  'seed': ([0, 2**32 - 1], [-1, 2**32]),
  'data.seed': ([0, 2**63 - 1], [-1, 2**63]),
  'data.val_fraction': ([0.01, 0.99], [0.0, 1.0]),
  'data.images_per_class': ([1], [0]),
  'data.image_size': ([1], [0]),
  'data.workers': ([0], [-1]),
  'data.crop_padding': ([0], [-1]),
  'data.resized_crop_min_area': ([0.01, 1.0], [0.0, 1.1]),
  'data.eval_crop': ([1.0], [0.0, 1.1]),
  'data.rand_augment_ops': ([1], [0]),
  'data.rand_augment_magnitude': ([0, 30], [-1, 31]),
  'data.image_bits': ([8, 16], [7, 17]),
  'data.mixup': ([0.0, 2.0], [-0.1]),
  'data.cutmix': ([0.0, 2.0], [-0.1]),
  'data.erasing': ([0.0, 1.0], [-0.1, 1.1]),
  'data.mean': ([(0.0,), (0, 0.5, 1)], [('0.5',), (True,), (float('nan'),), (-0.1,), (0.5, 1.1)]),
  'data.std': ([(0.1,), (1 / 255,)], [(0.0,), (-0.5,), ('1',), (float('inf'),)]),
  'data.synthetic_examples': ([1], [0]),
  'data.synthetic_classes': ([2], [1]),
  'model.num_classes': ([2], [1]),
  'model.norm_epsilon': ([1e-12], [0.0, -1.0]),
  'model.norm_groups': ([1], [0]),
  'model.norm_momentum': ([0.0, 0.999], [1.0, -0.1]),
  'model.init_gain': ([1e-3], [0.0]),
  'model.depth': ([1], [0]),
  'model.width': ([1], [0]),
  'model.stochastic_depth': ([0.0, 0.9], [1.0, -0.1]),
  'model.growth_rate': ([1], [0]),
  'model.compression': ([0.5, 1.0], [0.0, 1.5]),
  'loss.label_smoothing': ([0.0, 0.9], [1.0, -0.1]),
  'loss.class_weights': ([(0, 1.0), (2.0, 3.0)], [(-1.0, 1.0), (0.0, 0.0), ('1', 2.0)]),
  'optim.learning_rate': ([0.0, 1e-9, 'auto'], [-0.1]),
  'optim.momentum': ([0.0, 0.99], [1.0, -0.1]),
  'optim.b1': ([0.0], [1.0]),
  'optim.b2': ([0.0], [1.0]),
  'optim.epsilon': ([1e-12], [0.0]),
  'optim.weight_decay': ([0.0], [-1e-4]),
  'optim.weight_decay_on': (['', 'conv[12]/kernel$'], ['(', '[a']),
  'schedule.warmup': (['0', '400', '0.5 epochs', '0.1%', '1 step'], ['five', '-1', '5 weeks', '', '0.05', '0.5 steps']),
  'schedule.warmup_start': ([0.0, 2.0], [-0.1]),
  'schedule.boundaries': ([('50%', '75%'), (10, 20), ()], [('50%', 'end'), (None,), (np.int64(10),), (0.5, 0.75)]),
  'schedule.factor': ([0.1, 2.0], [0.0]),
  'schedule.final': ([0.0], [-0.1]),
  'schedule.one_cycle_rise': (['30%', '0', '0.0', '1.5'], ['30 %%', '0.3']),
  'schedule.one_cycle_start': ([0.01], [0.0]),
  'clip.threshold': ([1e-3], [0.0]),
  'clip.epsilon': ([1e-6], [0.0]),
  'finetune.trainable': (['all', 'stage4/.*|head'], ['(']),
  'finetune.unfreeze': (
    [(), (('20%', 'top:2'), ('50%', 'all'))],
    [('all',), (('soon', 'all'),), (('1', '('),), (('0.2', 'all'),)],
  ),
  'finetune.layer_decay': ([0.01, 1.0], [0.0, 1.1]),
  'finetune.head_lr_mult': ([0.1], [0.0]),
  'finetune.rates': ([(), (('stage4/.*', 0.0),)], [('head',), (('(', 1.0),), (('head', -1.0),)]),
  'finetune.reinit': ([(), ('head', '.*/bias')], [('',), ('(',), (1,)]),
  'finetune.cached_views': ([0], [-1]),
  'finetune.l2_sp': ([0.0], [-0.1]),
  'ema.decay': ([0.0, 0.9999], [1.0]),
  'train.batch_size': ([1], [0]),
  'train.steps': ([1], [0]),
  'train.epochs': ([0.01], [0.0]),
  'train.accumulate': ([1], [0]),
  'train.steps_per_dispatch': ([1], [0]),
  'train.log_every': (['1'], ['often', '0.1']),
  'train.patience': ([0], [-1]),
  'eval.splits': ([('test', 'val')], [(), ('',), (1,)]),
  'eval.every': (['0'], ['never', '0.1']),
  'eval.batch_size': ([1], [0]),
  'checkpoint.every': (['0'], ['never', '0.1']),
  'checkpoint.keep': ([1], [0]),
  'checkpoint.best_metric': (
    ['accuracy', 'loss', 'test/accuracy', 'val[:5%]/loss'],
    ['auroc', '/loss', 'test', 'test/', ''],
  ),
  'telemetry.every': (['0', '1 epochs'], ['never', '0.1']),
  'lr_find.start': ([1e-12], [0.0]),
  'lr_find.end': ([1e-12], [0.0]),
  'lr_find.steps': ([20], [19]),
  'lr_find.groups': ([(), ('head', 'stage3/.*')], [('',), ('(',), (1,)]),
  'noise_scale.batches': ([2], [1]),
  'noise_scale.micro_batches': ([2], [1]),
  'sharding': (
    [(), (('stem/.*', 0), ('head/.*', -1), ('.*', 'whole'))],
    [('stem',), (('stem',),), (('stem', 'fsdp'),), (('stem', 1.0),), (('stem', True),), (('(', 0),), ((0, 0),)],
  ),
  'mesh.fsdp': ([1], [0]),
}


def test_every_check_of_the_schema_has_its_edges_tested():
  unchecked = schema.Option(0, '').check
  assert {key for key, option in OPTIONS.items() if option.check is not unchecked} == set(EDGES)


@pytest.mark.parametrize('key', EDGES)
def test_values_are_refused_beyond_the_edge(key):
  valid, invalid = EDGES[key]
  for value in valid:
    assert refused(key, value) is None, value
  for value in invalid:
    message = refused(key, value)
    assert message and message.startswith(f'config.{key}={value!r} '), (value, message)


@pytest.mark.parametrize(
  ('key', 'value', 'percent'),
  [
    ('schedule.one_cycle_rise', '0.3', '30%'),
    ('schedule.boundaries', (0.5, 0.75), '50%'),
    ('schedule.boundaries', ('50%', '0.755'), '75.5%'),
    ('finetune.unfreeze', (('0.2', 'all'),), '20%'),
  ],
)
def test_a_fraction_of_a_step_is_refused_with_that_of_the_run(key, value, percent):
  assert refused(key, value).endswith(f"at least a step, or 0; this fraction of the run is '{percent}'")


@pytest.mark.parametrize('key', [key for key, option in schema.OPTIONS['signal'].items() if option.type is tuple])
def test_a_grid_has_a_member_on_each_of_its_axes(key):
  config = schema.default('signal')
  config.signal[key.partition('.')[2]] = ()
  with pytest.raises(errors.InputError, match=rf'config\.{key}=\(\) must hold'):
    schema.validate(config)


def test_seeds_of_other_programs_have_the_edge_of_a_run():
  compare, signal = schema.default('compare'), schema.default('signal')
  compare.seeds, signal.signal.seed = (0, 2**32 - 1), 2**32 - 1
  schema.validate(compare)
  schema.validate(signal)
  compare.seeds, signal.signal.seed = (0, 2**32), 2**32
  for config, key in ((compare, 'seeds'), (signal, 'signal.seed')):
    with pytest.raises(errors.InputError, match=rf'config\.{key}=.*4,294,967,295'):
      schema.validate(config)


def test_options_of_a_module_of_the_users_own_are_free_but_a_dict():
  given = {'hidden': 3, 'rate': 0.5, 'bias': None, 'sizes': [1, (2, True)], 'inner': {'any': 'thing', 'none': {}}}
  assert refused('model.options', given) is None
  assert re.search(r'config\.model\.options .*dict, not int.*3', refused('model.options', 3))


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
def test_an_option_of_a_module_that_json_lacks_is_refused(given, place):
  message = refused('model.options', given)
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


@pytest.mark.parametrize(
  ('text', 'steps'),
  [
    ('0', 0),
    ('400', 400),
    ('400 steps', 400),
    ('1 step', 1),
    ('2.5', 3),
    ('5 epochs', 1953),
    ('1epoch', 391),
    ('0.5 epochs', 195),
    ('10%', 6400),
    (' 12.5 % ', 8000),
    ('100%', 64_000),
  ],
)
def test_durations(text, steps):
  assert schema.duration(text, 64_000, 50_000 / 128) == steps


@pytest.mark.parametrize('text', ['', 'epoch', '-5', '5 minutes', '1e3', '5 % epochs', '5,0'])
def test_what_is_not_a_duration_is_refused(text):
  with pytest.raises(errors.InputError, match=f"'{text}' .*duration.* '400'"):
    schema.duration(text, 100, 10)


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('model.depth', 10**12),
    ('model.width', 10**30),
    ('train.batch_size', 10**12),
    ('train.steps', 10**15),
    ('train.epochs', 1e300),
    ('eval.batch_size', 2**31),
    ('seed', 10**30),
    ('data.workers', 10**6),
    ('data.image_size', 2**31),
    ('data.rand_augment_ops', 10**9),
    ('data.synthetic_classes', 10**9),
    ('optim.learning_rate', 1e39),
    ('schedule.warmup', '9' * 400),
    ('schedule.boundaries', ('50%', '99999999999 epochs')),
    ('lr_find.steps', 10**12),
    ('noise_scale.batches', 10**12),
  ],
)
def test_numbers_that_nothing_can_hold_are_refused(key, value):
  assert f'config.{key}=' in refused(key, value) and 'at most' in refused(key, value)


def test_large_numbers_that_can_be_held_are_valid():
  for key, value in (('seed', 2**32 - 1), ('train.steps', 2**31 - 1), ('eval.every', f'{2**31 - 1}')):
    assert refused(key, value) is None, key


def test_a_duration_in_steps_is_at_most_that_of_the_counter():
  assert schema.duration('2000000000 epochs', 100, 1000.0) == 2**31 - 1
