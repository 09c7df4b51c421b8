"""Values at the edge of what an option takes."""

import numpy as np
import pytest

from dnt import config as schema
from dnt import errors
from dnt.weights import preprocessing

OPTIONS = schema.OPTIONS['train']


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
    ['accuracy', 'loss', 'auroc', 'top5_accuracy', 'calibration_error', 'test/balanced_accuracy', 'val[:5%]/loss'],
    ['auc', 'error', '/loss', 'test', 'test/', ''],
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
def test_values_are_refused_beyond_the_edge(key, refusal):
  valid, invalid = EDGES[key]
  for value in valid:
    assert refusal(key, value) is None, value
  for value in invalid:
    message = refusal(key, value)
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
def test_a_fraction_of_a_step_is_refused_with_that_of_the_run(key, value, percent, refusal):
  assert refusal(key, value).endswith(f"at least a step, or 0; this fraction of the run is '{percent}'")


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
def test_numbers_that_nothing_can_hold_are_refused(key, value, refusal):
  assert f'config.{key}=' in refusal(key, value) and 'at most' in refusal(key, value)


def test_large_numbers_that_can_be_held_are_valid(refusal):
  for key, value in (('seed', 2**32 - 1), ('train.steps', 2**31 - 1), ('eval.every', f'{2**31 - 1}')):
    assert refusal(key, value) is None, key
