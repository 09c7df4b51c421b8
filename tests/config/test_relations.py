"""Options that have an effect only with certain values of others are refused where they have none."""

import contextlib
import importlib.util
import itertools
import pathlib
import sys
import types

import flax.linen as nn
import pytest

from dnt import cli, errors, main, models, probe
from dnt import config as schema
from dnt.comparison import plan
from dnt.config import keys, relations

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / 'configs').glob('*.py'))
RELATED = {key: option for kind in ('train', 'signal') for key, option in schema.OPTIONS[kind].items() if option.only}
# Values of the owners, in an order in which neighbours decide differently; of all others the choices are taken.
VALUES = {
  'data.source': ('digits', 'synthetic', 'folder:x', 'cars:x', 'idx:x', 'tfds:x'),
  'data.hold_out': (None, True, False),
  'data.images_per_class': (None, 5),
  'data.mixup': (0.0, 0.2),
  'data.cutmix': (0.0, 0.2),
  'data.erasing': (0.0,),
  'data.augment': ('none', 'pad_crop_flip', 'resized_crop_flip'),
  'data.policy': ('none', 'rand_augment'),
  'data.eval_resize': ('squash', 'center_crop', None),
  'eval.splits': (('val',), ('test', 'train'), ('test', 'val[:50%]')),
  'eval.every': ('0', '0 epochs', '1 epochs'),
  'finetune.cached_views': (0, None, 2),
  'finetune.l2_sp': (0.0, 0.1),
  'finetune.reinit': ((), ('head',)),
  'finetune.trainable': ('all', 'head', 'top:2'),
  'finetune.unfreeze': ((), (('50%', 'all'),)),
  'mesh.fsdp': (1, 2),
  'model.block': ('basic', 'bottleneck', 'preact_basic', 'highway'),
  'model.name': ('mlp', 'resnet', 'plain', 'highway', 'densenet', 'nets:Net'),
  'model.norm': ('batch_norm', 'group_norm', 'none'),
  'optim.learning_rate': (0.1, 'auto'),
  'optim.momentum': (None, 0.0, 0.9),
  'optim.weight_decay': (0.0, 0.1),
  'schedule.one_cycle_rise': ('0', '30%'),
  'schedule.warmup': ('0', '0%', '5 epochs'),
  'signal.blocks': (('plain',), ('plain', 'highway')),
  'signal.singular_values': (0, 2),
  'train.init_from': ('', 'runs/other'),
  'train.steps': (None, 100),
  relations.PROGRAM: ('--mode=train', '--mode=lr_find', '--mode=noise_scale', 'dnt.probe', 'dnt.probe --try'),
}
# A value of each option whose default stands for no value or for what may always be given.
GIVEN = {
  'clip.threshold': 0.5,
  'data.crop_to_box': True,
  'data.dir': 'x',
  'data.eval_crop': 0.5,
  'data.exif_rotation': True,
  'data.image_bits': 12,
  'finetune.cache_dir': 'x',
  'finetune.cached_views': 1,
  'finetune.frozen_norm': 'batch',
  'finetune.l2_sp': 0.1,
  'finetune.layer_decay': 0.9,
  'finetune.reinit': ('head',),
  'finetune.unfreeze': (('50%', 'all'),),
  'lr_find.groups': ('head',),
  'model.init_gain': 2.0,
  'model.norm_sync': 'device',
  'model.weight_standardization': True,
  'optim.epsilon': 1e-4,
  'optim.momentum': 0.5,
  'optim.nesterov': True,
  'schedule.boundaries': ('50%',),
  'train.patience': 2,
  'model.folder': 'x',
  'model.width': 4,
  'model.block': 'residual',
  'model.stem': 'cifar',
  'model.shortcut': 'A',
  'model.stride_on': '1x1',
  'model.zero_init_last_norm': True,
  'model.residual_scalar': 0.0,
  'model.stochastic_depth': 0.1,
  'model.gate_bias': -1.0,
  'model.growth_rate': 4,
  'model.compression': 0.5,
  'model.bottleneck': True,
  'sharding': (('head/.*kernel', 0),),
}


def make(key, values):
  """A config in which the option is given and the others have these values, and the program that runs."""
  config = schema.default('signal' if key.startswith('signal.') else 'train')
  for name, value in values.items():
    if name != relations.PROGRAM:
      keys.put(config, name, value)
  keys.put(config, key, GIVEN.get(key, RELATED[key].default))
  schema.validate(config)
  return config, values.get(relations.PROGRAM, '--mode=train')


def settings(key):
  """All combinations of the owners' values."""
  known = {**schema.OPTIONS['train'], **schema.OPTIONS['signal']}
  owners = dict.fromkeys(owner for each in relations.alternatives(RELATED[key].only) for owner in each)
  lists = [VALUES[owner] if owner in VALUES else known[owner].choices for owner in owners]
  return [dict(zip(owners, each, strict=True)) for each in itertools.product(*lists)]


@pytest.mark.parametrize('key', RELATED)
def test_an_option_is_refused_where_it_has_no_effect_and_taken_where_it_has_one(key):
  refused, taken = [], []
  for values in settings(key):
    config, program = make(key, values)
    try:
      schema.check_given(config, [key], program)
      taken.append(values)
    except errors.InputError as error:
      refused.append(values)
      off = [owner for owner in values if f'{owner} is {relations.show(values[owner])}' in str(error)]
      assert f'config.{key}=' in str(error) and off, 'it names the option and the present value of an owner'
      assert relations.describe(RELATED[key].only) in str(error)
  assert refused and taken


@pytest.mark.parametrize('key', RELATED)
def test_owners_are_options_and_the_values_of_a_relation_valid(key):
  known = {**schema.OPTIONS['train'], **schema.OPTIONS['signal']}
  for owner, condition in ((o, c) for each in relations.alternatives(RELATED[key].only) for o, c in each.items()):
    if owner != relations.PROGRAM:
      option = known[owner]
      assert not option.choices or set(condition) - {None} <= set(option.choices)
      assert None not in condition or isinstance(option.default, type)


def test_a_file_may_hold_what_has_no_effect():
  config, _ = make('clip.threshold', {'clip.name': 'none'})
  schema.check_given(config, [])
  schema.check_given(config, ['seed', 'optim.momentum'])
  with pytest.raises(errors.InputError, match='clip.threshold.* no effect'):
    schema.check_given(config, ['clip.threshold'])


@pytest.mark.parametrize('key', [key for key, option in RELATED.items() if option.off is not None])
def test_a_value_that_asks_for_nothing_may_always_be_given(key):
  for values in settings(key):
    config, program = make(key, values)
    keys.put(config, key, RELATED[key].off)
    assert schema.no_effect(config, key, program) == ''


@pytest.mark.parametrize(
  ('name', 'given'),
  [
    ('mlp', {'stochastic_depth': 0.0, 'zero_init_last_norm': False, 'compression': 1.0}),
    ('nets:Net', {'stochastic_depth': 0.0}),
    ('densenet', {'compression': 1.0}),
  ],
)
def test_a_network_is_built_with_what_asks_for_nothing(name, given, monkeypatch):
  nets = types.ModuleType('nets')
  nets.Net = type('Net', (nn.Module,), {})
  monkeypatch.setitem(sys.modules, 'nets', nets)
  model = schema.default().model
  model.update({'name': name, **given})
  assert getattr(models.make(model, 10), 'compression', 1.0) == 1.0
  model.update(dict.fromkeys(['stochastic_depth'], 0.1))
  with pytest.raises(errors.InputError, match='stochastic_depth'):
    models.make(model, 10)


def test_what_the_weights_or_an_own_module_decide_is_not_refused():
  named = ('pretrained', 'mypkg.nets:Net')
  taken = [('model.width', {'model.name': name}) for name in named]
  taken += [('finetune.frozen_norm', {'model.name': name, 'finetune.trainable': 'head'}) for name in named]
  taken.append(('model.norm_groups', {'model.name': 'pretrained', 'model.norm': 'batch_norm'}))
  taken.append(('model.stride_on', {'model.name': 'resnet'}))  # the block follows from the depth
  head = {'model.name': 'resnet', 'finetune.trainable': 'head'}
  taken.append(('model.stochastic_depth', {**head, 'finetune.unfreeze': (('50%', 'all'),)}))
  refused = [('model.width', {'model.name': 'densenet'}), ('model.norm_groups', {'model.norm': 'batch_norm'})]
  refused.append(('model.stride_on', {'model.name': 'resnet', 'model.block': 'basic'}))
  refused.append(('model.stochastic_depth', {**head, 'finetune.frozen_norm': 'affine_only'}))
  for key, values in taken:
    schema.check_given(make(key, values)[0], [key])
  for key, values in refused:
    with pytest.raises(errors.InputError, match=f'{key}.* no effect'):
      schema.check_given(make(key, values)[0], [key])


@pytest.mark.parametrize(
  ('mode', 'norm', 'taken'),
  [
    ('batch', 'batch_norm', True),
    ('batch', 'layer_norm', False),
    ('affine_only', 'layer_norm', True),
    ('affine_only', 'none', False),
  ],
)
def test_frozen_norms_do_what_they_can(mode, norm, taken, parse):
  flags = ('--config.finetune.trainable=head', f'--config.finetune.frozen_norm={mode}', f'--config.model.norm={norm}')
  refusal = pytest.raises(errors.InputError, match=f'frozen_norm={mode} has no effect here: model.norm is {norm};')
  with contextlib.nullcontext() if taken else refusal:
    parse(main.PROGRAM, *flags)


@pytest.mark.parametrize(
  ('flags', 'owner'),
  [
    (("--config.schedule.boundaries=('50%',)", '--config.schedule.name=constant'), 'schedule.name is constant'),
    (('--config.clip.threshold=0.5',), 'clip.name is none'),
    (('--config.optim.b2=0.9', '--config.optim.name=sgd'), 'optim.name is sgd'),
    (('--config.data.flip', '--config.data.augment=none'), 'data.augment is none'),
    (('--noconfig.model.bottleneck', '--config.model.name=resnet'), 'model.name is resnet'),
    (('--config.lr_find.steps=30',), '--mode=train'),
    (('--config.noise_scale.batches=30', '--mode=lr_find'), '--mode=lr_find'),
  ],
)
def test_the_command_line_is_refused_whatever_its_order(flags, owner, parse):
  for order in (flags, flags[::-1]):
    with pytest.raises(errors.InputError, match='no effect') as refused:
      parse(main.PROGRAM, *order)
    assert owner in str(refused.value)


@pytest.mark.parametrize(
  ('flags', 'values'),
  [
    (
      ('--config.clip.threshold=1', '--config.clip.name=global_norm'),
      {'clip.threshold': 1.0, 'clip.name': 'global_norm'},
    ),
    (
      ("--config.schedule.boundaries=('50%',)", '--config.schedule.name=piecewise'),
      {'schedule.boundaries': ('50%',), 'schedule.name': 'piecewise'},
    ),
    (('--config.lr_find.steps=30', '--mode=lr_find'), {'lr_find.steps': 30}),
    (
      ('--config.lr_find.steps=30', '--config.optim.learning_rate=0'),
      {'lr_find.steps': 30, 'optim.learning_rate': 'auto'},
    ),
    (
      ('--config.finetune.cached_views=0', '--config.data.mixup=0.2'),
      {'finetune.cached_views': 0, 'data.mixup': 0.2},
    ),
    (
      ("--config.eval.splits=('test', 'val[:50%]')", '--config.data.val_fraction=0.3'),
      {'eval.splits': ('test', 'val[:50%]'), 'data.val_fraction': 0.3},
    ),
    (
      ('--config.finetune.trainable=head[12]', '--config.finetune.layer_decay=0.5'),
      {'finetune.trainable': 'head[12]', 'finetune.layer_decay': 0.5},
    ),
  ],
)
def test_the_command_line_is_taken_whatever_its_order(flags, values, parse):
  for order in (flags, flags[::-1]):
    config = parse(main.PROGRAM, *order)
    assert {key: keys.get(config, key) for key in values} == values


def test_the_learning_rate_is_a_number_or_auto(parse):
  for text, value in (('0.2', 0.2), ('1', 1.0), ('1e-3', 1e-3), ('auto', 'auto'), ('0', 'auto'), ('0.0', 'auto')):
    rate = parse(main.PROGRAM, f'--config.optim.learning_rate={text}').optim.learning_rate
    assert (rate, type(rate)) == (value, type(value))
  for text in ('find', 'nan', '-1', '[1]', 'None'):
    with pytest.raises(errors.InputError, match='config.optim.learning_rate'):
      parse(main.PROGRAM, f'--config.optim.learning_rate={text}')


@pytest.mark.parametrize(
  'flags',
  [
    ('--config.model.init_gain=2.0',),
    ('--config.model.zero_init_last_norm=True',),
    ('--config.model.gate_bias=-3.0', '--config.model.name=highway'),
    ('--config.model.gate_bias=-3.0', '--config.model.name=mlp', '--config.model.block=highway'),
  ],
)
def test_how_parameters_are_drawn_has_no_effect_on_those_of_weights(flags, parse):
  parse(main.PROGRAM, *flags)
  start = ('--config.train.init_from=runs/other', *flags)
  parse(probe.PROGRAM, *start, running=relations.PROBE)
  with pytest.raises(errors.InputError, match='train.init_from is runs/other'):
    parse(main.PROGRAM, *start)


def test_the_seed_of_the_data_has_no_say_in_what_is_held_out_of_a_set_of_tfds(parse):
  given = ('--config.data.source=tfds:cifar10', '--config.data.seed=1')
  with pytest.raises(errors.InputError, match=r'data\.seed=1 has no effect here: data\.source is tfds:cifar10'):
    parse(main.PROGRAM, *given)
  parse(main.PROGRAM, *given, '--config.data.images_per_class=5')
  parse(main.PROGRAM, '--config.data.source=idx:here', *given[1:])


def test_the_probe_sweeps_rates_only_to_try_overrides_and_in_steps_of_its_own(parse):
  rates = ('--config.lr_find.start=1e-5', '--config.lr_find.end=1.0')
  for flag in (*rates, '--config.lr_find.steps=30'):
    with pytest.raises(errors.InputError, match='the program is dnt.probe;'):
      parse(probe.PROGRAM, flag, running=relations.PROBE)
  tried = parse(probe.PROGRAM, '--try', *rates, running=relations.TRYING).lr_find
  assert (tried.start, tried.end) == (1e-5, 1.0)
  with pytest.raises(errors.InputError, match='the program is dnt.probe --try;'):
    parse(probe.PROGRAM, '--config.lr_find.steps=30', running=relations.TRYING)
  parse(probe.PROGRAM, '--config.train.init_from=x', '--config.model.init_gain=2.0', running=relations.TRYING)


@pytest.fixture
def comparison():
  config = schema.default('compare')
  config.base.model.name = 'mlp'
  config.variants = {'plain': {}, 'clipped': {'clip.name': 'value', 'clip.threshold': 0.1}}
  return config


def test_a_variant_sets_nothing_without_effect(comparison, tmp_path):
  plan.make(comparison, tmp_path)
  comparison.variants['plain'] = {'clip.threshold': 0.1}
  with pytest.raises(errors.InputError, match="variant 'plain'.*clip.threshold=0.1 .*no effect"):
    plan.make(comparison, tmp_path)
  comparison.forms = {'short': {'clip.name': 'value'}}
  plan.make(comparison, tmp_path, 'short')


def test_an_option_of_base_counts_if_it_does_in_one_variant(comparison, tmp_path):
  comparison.base.clip.threshold = 0.5
  runs = plan.make(comparison, tmp_path, given=['clip.threshold'])
  plan.check_given(comparison, runs, ['clip.threshold'])
  with pytest.raises(errors.InputError, match='in every chosen variant.*clip.name is none'):
    plan.check_given(comparison, plan.choose(runs, ['plain']), ['clip.threshold'])
  comparison.base.schedule.boundaries = ('50%',)
  runs = plan.make(comparison, tmp_path, given=['schedule.boundaries'])
  with pytest.raises(errors.InputError, match='in every chosen variant.*schedule.name is constant'):
    plan.check_given(comparison, runs, ['schedule.boundaries'])
  plan.check_given(comparison, runs, [])


@pytest.mark.parametrize('key', ['seed', 'model.depth', 'train.epochs'])
def test_an_option_of_base_that_every_variant_replaces_is_refused(comparison, tmp_path, key):
  comparison.variants = {name: {'model.depth': 3, 'train.steps': 9} for name in ('a', 'b')}
  runs = plan.make(comparison, tmp_path, given=[key])
  with pytest.raises(errors.InputError, match=f'config.base.{key} .*no effect'):
    plan.check_given(comparison, runs, [key])
  comparison.variants['b'] = {}
  runs = plan.make(comparison, tmp_path, given=[key])
  if key != 'seed':
    plan.check_given(comparison, runs, [key])
    with pytest.raises(errors.InputError, match=f'config.base.{key} .*every chosen variant sets it'):
      plan.check_given(comparison, plan.choose(runs, ['a']), [key])


@pytest.mark.parametrize('path', [path for path in CONFIGS if path.stem.startswith(('compare_', 'transfer_'))])
def test_the_variants_of_the_shipped_configs_are_not_refused(path, tmp_path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  if schema.kind(config) == 'compare':
    for form in ('', *config.forms):
      assert plan.make(config, tmp_path, form)


def test_help_shows_choices_and_relations():
  lines = {line.split()[0]: line for line in cli.help_text(main.PROGRAM).splitlines() if line.startswith('  ')}
  for key, option in schema.OPTIONS['train'].items():
    assert all(str(choice) in lines[key] for choice in (*option.choices, *option.words))
    assert not option.only or f'with {relations.describe(option.only)}' in lines[key]
  assert 'with schedule.name=piecewise' in lines['schedule.boundaries']
  assert 'with clip.name=global_norm, value, block_norm or adaptive' in lines['clip.threshold']
  assert ' or data.images_per_class set or ' in lines['data.seed']
  assert 'finetune.cached_views set to other than 0' in lines['finetune.cache_dir']
