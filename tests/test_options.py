"""Every option of the schema changes what runs: a walk over all of them.

PROGRAM options change the traced train or evaluation step, the schedule or the initial parameters; the others have a
test each below, named after them. `test_every_option_is_covered` holds both against the schema.
"""

import contextlib
import copy
import hashlib
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dnt import checkpoints, errors, loop, trees
from dnt import config as schema
from dnt.config import changes as changes_lib
from dnt.config import run_config
from dnt.data import pipeline
from dnt.data.transforms import images
from dnt.diagnostics import lr_find, noise
from dnt.finetune import feature_cache
from dnt.models import resnet
from dnt.parallel import mesh as mesh_lib
from dnt.reporting import metrics
from dnt.training import datasets, experiment, open_options, record
from tests.data import loading

pytestmark = pytest.mark.usefixtures('undrawn')
OPTIONS = schema.OPTIONS['train']
RESNET = {'model.name': 'resnet', 'model.depth': 8, 'model.width': None}
DENSENET = {'model.name': 'densenet', 'model.depth': 10, 'model.width': None, 'model.bottleneck': True}
HIGHWAY = {'model.name': 'highway', 'model.depth': 8, 'model.width': 8}
IMAGENET = {**RESNET, 'model.depth': 14, 'data.image_size': 32}
NORMALIZED = {'data.mean': (0.5, 0.5, 0.5), 'data.std': (0.2, 0.2, 0.2)}
PREPARED = {  # left open by no weights
  'data.image_size': 8,
  'data.eval_resize': 'squash',
  'data.eval_crop': 0.875,
  'data.interpolation': 'bilinear',
}
CROPS = {'data.augment': 'pad_crop_flip'}
WARMUP = {'schedule.warmup': '3'}
ONE_CYCLE = {'schedule.name': 'one_cycle'}
PIECEWISE = {'schedule.name': 'piecewise', 'schedule.boundaries': ('3',)}

# option: (what to set first, the value that must change the program)
PROGRAM = {
  'seed': ({}, 1),
  'data.augment': ({}, 'pad_crop_flip'),
  'data.crop_padding': (CROPS, 2),
  'data.flip': (CROPS, False),
  'data.mixup': ({}, 0.2),
  'data.cutmix': ({}, 1.0),
  'data.erasing': ({}, 0.25),
  'data.image_size': ({}, 6),
  'data.mean': (NORMALIZED, (0.1, 0.2, 0.3)),
  'data.std': (NORMALIZED, (0.1, 0.2, 0.3)),
  'data.synthetic_classes': ({}, 4),
  'model.name': ({**RESNET, 'model.name': 'plain'}, 'resnet'),
  'model.dtype': ({}, 'bfloat16'),
  'model.norm': ({}, 'layer_norm'),
  'model.norm_epsilon': ({}, 1e-2),
  'model.norm_groups': ({'model.norm': 'group_norm', 'model.norm_groups': 4}, 2),
  'model.norm_momentum': ({}, 0.5),
  'model.weight_standardization': (RESNET, True),
  'model.activation': ({}, 'tanh'),
  'model.initializer': ({}, 'glorot'),
  'model.init_gain': ({}, 0.5),
  'model.depth': ({}, 4),
  'model.width': ({}, 8),
  'model.block': ({}, 'residual'),
  'model.stem': (IMAGENET, 'imagenet'),
  'model.shortcut': (RESNET, 'B'),
  'model.stride_on': ({**IMAGENET, 'model.stem': 'imagenet'}, '1x1'),
  'model.zero_init_last_norm': (RESNET, True),
  'model.residual_scalar': (RESNET, 0.5),
  'model.stochastic_depth': (RESNET, 0.5),
  'model.gate_bias': (HIGHWAY, -3.0),
  'model.growth_rate': (DENSENET, 4),
  'model.compression': (DENSENET, 0.25),
  'model.bottleneck': (DENSENET, False),
  'model.scan': ({**RESNET, 'model.depth': 14}, True),
  'model.remat': (RESNET, True),
  'loss.label_smoothing': ({}, 0.1),
  'loss.class_weights': ({}, tuple(range(1, 11))),
  'loss.balance_classes': ({}, True),
  'optim.name': ({}, 'adamw'),
  'optim.learning_rate': ({}, 0.01),
  'optim.momentum': ({}, 0.5),
  'optim.nesterov': ({}, True),
  'optim.b1': ({'optim.name': 'adamw'}, 0.8),
  'optim.b2': ({'optim.name': 'lamb'}, 0.9),
  'optim.epsilon': ({'optim.name': 'muon'}, 1e-4),
  'optim.weight_decay': ({}, 0.5),
  'optim.weight_decay_on': ({}, 'head/.*kernel$'),
  'schedule.name': ({}, 'cosine'),
  'schedule.warmup': ({}, '2'),
  'schedule.warmup_shape': ({**WARMUP, 'schedule.warmup_start': 0.1}, 'constant'),
  'schedule.warmup_start': (WARMUP, 0.5),
  'schedule.boundaries': (PIECEWISE, ('4',)),
  'schedule.factor': (PIECEWISE, 0.5),
  'schedule.final': ({'schedule.name': 'cosine'}, 0.5),
  'schedule.one_cycle_rise': (ONE_CYCLE, '50%'),
  'schedule.one_cycle_start': (ONE_CYCLE, 0.5),
  'clip.name': ({}, 'global_norm'),
  'clip.threshold': ({'clip.name': 'value'}, 0.1),
  'clip.epsilon': ({'clip.name': 'adaptive'}, 0.1),
  'finetune.trainable': ({}, 'head'),
  'finetune.unfreeze': ({'finetune.trainable': 'head'}, (('3', 'all'),)),
  'finetune.frozen_norm': ({**RESNET, 'finetune.trainable': 'head'}, 'batch'),
  'finetune.layer_decay': ({}, 0.5),
  'finetune.head_lr_mult': ({}, 10.0),
  'finetune.rates': ({}, (('head', 0.1),)),
  'finetune.l2_sp': ({**NORMALIZED, **PREPARED, 'train.init_from': 'runs/other'}, 0.1),
  'ema.decay': ({}, 0.9),
  'train.accumulate': ({}, 2),
}


# The values of options that turn something on count, and not only that there is one: a second value of each.
SECOND = {
  'data.mixup': 0.4,
  'data.cutmix': 0.5,
  'data.erasing': 0.5,
  'loss.label_smoothing': 0.2,
  'finetune.layer_decay': 0.75,
  'finetune.head_lr_mult': 5.0,
  'finetune.rates': (('head', 0.5),),
  'ema.decay': 0.99,
  'train.accumulate': 4,
}


BEFORE: dict[str, str] = {}  # fingerprints of the bases, many of which are shared


def set_options(config, options):
  for key, value in options.items():
    section, _, name = key.rpartition('.')
    owner = config[section] if section else config
    with owner.ignore_type():
      owner[name] = value
  schema.validate(config)
  return config


def traced(fn, *args):
  program = jax.make_jaxpr(fn)(*args)
  constants = [np.asarray(c).tobytes() for c in program.consts if not jnp.issubdtype(c.dtype, jax.dtypes.prng_key)]
  return str(program).encode() + b''.join(constants)


def fingerprint(config):
  """A digest of the initial parameters, the schedule and the traced steps, constants included."""
  data = datasets.load(config, config.eval.splits)
  run = experiment.make(open_options.resolve(config, data), data.spec)
  variables = run.init_variables()
  state = run.abstract_state()
  size = config.train.batch_size
  batch = {
    'image': jax.ShapeDtypeStruct((size, *data.spec.image_shape), jnp.uint8),
    **{name: jax.ShapeDtypeStruct((size,), jnp.int32) for name in ('label', 'epoch', 'position')},
  }
  evaluated = {'params': state.params, 'batch_stats': state.batch_stats}
  mask = {'mask': jax.ShapeDtypeStruct((size,), jnp.bool_)}
  parts = [
    trees.sha256(variables).encode(),
    *(traced(phase.train_step, run.abstract_state(phase.start + 1), batch) for phase in run.phases),
    traced(run.eval_step, evaluated, batch | mask),
    *(np.float32(run.schedule(step)).tobytes() for step in range(config.train.steps + 1)),
  ]
  return hashlib.sha256(b'\0'.join(parts)).hexdigest()


@pytest.mark.thorough
@pytest.mark.parametrize('option', PROGRAM)
def test_option_changes_the_program(option, tiny, monkeypatch):
  monkeypatch.setitem(resnet.IMAGENET_BOTTLENECK, 14, (1, 1, 1, 1))  # ResNet-50 takes seconds to trace
  base, value = PROGRAM[option]
  set_options(tiny, base)
  if (key := str(base)) not in BEFORE:
    BEFORE[key] = fingerprint(tiny)
  values = [value, SECOND[option]] if option in SECOND else [value]
  found = {fingerprint(set_options(tiny, {option: each})) for each in values}
  assert len({BEFORE[key]} | found) == 1 + len(values)


# What takes the effect away, of options that have one in `tiny`.
IDLE = {
  'data.synthetic_classes': {'data.source': 'digits'},
  'model.norm_epsilon': {'model.norm': 'none'},
  'model.norm_momentum': {'model.norm': 'layer_norm'},
  'model.width': DENSENET,
  'model.block': {**HIGHWAY, 'model.name': 'plain'},
  'model.gate_bias': {'model.block': 'plain'},
  'optim.momentum': {'optim.name': 'adamw'},
  'optim.weight_decay_on': {'optim.weight_decay': 0.0},
}
# Of these the program shows a change that changes no number: draws that are replaced, two equal stages, 0 times the
# momentum, a factor of 1.
SHOWN = ('model.initializer', 'model.init_gain', 'finetune.unfreeze', 'optim.nesterov', 'finetune.layer_decay')


@pytest.mark.parametrize('option', [option for option in PROGRAM if OPTIONS[option].only])
def test_the_schema_knows_that_an_option_has_an_effect(option, tiny):
  base, value = PROGRAM[option]
  assert schema.no_effect(set_options(tiny, {**base, option: value}), option) == ''


@pytest.mark.thorough
@pytest.mark.parametrize('option', [option for option in PROGRAM if OPTIONS[option].only and option not in SHOWN])
def test_an_option_of_which_the_schema_knows_no_effect_has_none(option, tiny):
  set_options(tiny, IDLE.get(option, {}))
  if (key := str(IDLE.get(option, {}))) not in BEFORE:
    BEFORE[key] = fingerprint(tiny)
  value = PROGRAM[option][1]
  set_options(tiny, {option: value})
  assert schema.no_effect(tiny, option) or value == OPTIONS[option].off
  try:
    assert fingerprint(tiny) == BEFORE[key]
  except errors.InputError as error:
    assert option in str(error), 'the network refuses it too'


def test_equal_configs_are_equal_programs(tiny):
  assert fingerprint(tiny) == fingerprint(tiny)


# The same for the options that change something else.
STREAMED = {'data.placement': 'stream'}
HEAD = {'finetune.trainable': 'head'}
OTHERS = {
  'model.norm_sync': ({}, 'device'),
  'data.source': ({}, 'digits'),
  'data.train_split': ({}, 'train[:50%]'),
  'data.images_per_class': ({}, 5),
  'data.dir': ({'data.source': 'folder'}, 'images'),
  'data.seed': ({}, 1),
  'data.val_fraction': ({'data.source': 'folder:images'}, 0.5),
  'data.hold_out': ({'data.hold_out': False}, True),
  'data.crop_to_box': ({'data.source': 'cars:images'}, True),
  'data.image_bits': ({'data.source': 'folder:images'}, 12),
  'data.exif_rotation': ({'data.source': 'folder:images'}, True),
  'data.placement': ({}, 'stream'),
  'data.workers': (STREAMED, 0),
  'data.resized_crop_min_area': ({'data.augment': 'resized_crop_flip'}, 0.5),
  'data.eval_resize': ({}, 'center_crop'),
  'data.eval_crop': ({'data.eval_resize': 'center_crop'}, 0.5),
  'data.interpolation': ({}, 'bicubic'),
  'data.policy': ({}, 'rand_augment'),
  'data.rand_augment_ops': ({'data.policy': 'rand_augment'}, 3),
  'data.rand_augment_magnitude': ({'data.policy': 'rand_augment'}, 20),
  'data.synthetic_examples': ({}, 48),
  'model.num_classes': ({}, 10),
  'model.options': ({'model.name': 'own:Net'}, {'width': 4}),
  'model.folder': ({'model.name': 'own:Net'}, 'nets'),
  'finetune.reinit': ({'train.init_from': 'runs/other'}, ('head',)),
  'finetune.cached_views': (HEAD, 1),
  'finetune.cache_dir': ({**HEAD, 'finetune.cached_views': 1}, 'features'),
  'train.batch_size': ({}, 8),
  'train.steps': ({}, 8),
  'train.epochs': ({'train.steps': None}, 2.0),
  'train.steps_per_dispatch': ({}, 1),
  'train.log_every': ({}, '1'),
  'train.patience': ({}, 2),
  'train.init_from': ({}, 'runs/other'),
  'eval.splits': ({}, ('train',)),
  'eval.every': ({}, '1'),
  'eval.batch_size': ({}, 8),
  'checkpoint.every': ({}, '1'),
  'checkpoint.keep': ({}, 1),
  'checkpoint.best_metric': ({}, 'loss'),
  'telemetry.every': ({}, '1'),
  'lr_find.start': ({'optim.learning_rate': 'auto'}, 1e-5),
  'lr_find.end': ({'optim.learning_rate': 'auto'}, 1.0),
  'lr_find.steps': ({'optim.learning_rate': 'auto'}, 24),
  'mesh.fsdp': ({}, 2),
  'sharding': ({'mesh.fsdp': 2}, (('head/kernel', 0),)),
}
# These have no effect in training, so that their values are not compared.
OF_TOOLS = ('lr_find.groups', 'noise_scale.batches', 'noise_scale.micro_batches')


@pytest.mark.parametrize('option', [option for option in OPTIONS if option not in OF_TOOLS])
def test_a_changed_option_means_at_a_resume_what_the_schema_states(option, tiny):
  base, value = (PROGRAM | OTHERS)[option]
  old = set_options(tiny, base)
  new = set_options(copy.deepcopy(old), {option: value})
  means = {change.key: change.on_resume for change in changes_lib.find(old, new)}
  assert means == {option: OPTIONS[option].on_resume}
  assert changes_lib.find(new, copy.deepcopy(new)) == []
  if means[option] == schema.REFUSE:
    with pytest.raises(errors.InputError, match=f'{option} was .* is now .*--allow={option}$'):
      changes_lib.check(changes_lib.find(old, new), (), pathlib.Path('run'))
    changes_lib.check(changes_lib.find(old, new), (option,), pathlib.Path('run'))
  else:
    changes_lib.check(changes_lib.find(old, new), (), pathlib.Path('run'))


def test_every_option_states_what_a_change_at_a_resume_means():
  assert {option.on_resume for option in OPTIONS.values()} == set(schema.ON_RESUME)
  for section in ('loss', 'ema'):
    assert {option.on_resume for key, option in OPTIONS.items() if key.startswith(section)} == {schema.REFUSE}
  for section in ('schedule', 'clip', 'eval', 'checkpoint', 'telemetry'):
    assert {option.on_resume for key, option in OPTIONS.items() if key.startswith(section)} == {schema.NOTE}
  free = {key for key, option in OPTIONS.items() if option.on_resume == schema.FREE}
  assert {'data.workers', 'data.dir', 'mesh.fsdp', *OF_TOOLS} <= free


def run_loop(config, workdir):
  schema.validate(config)
  workdir = pathlib.Path(workdir)
  return loop.train(config, workdir, record.Clock(0.0), 'test')


def lines(workdir, name):
  return [line for line in metrics.read(workdir) if name in line]


def checkpoint_steps(workdir):
  return sorted(int(path.name) for path in (pathlib.Path(workdir) / 'checkpoints').iterdir() if path.name.isdigit())


def test_data_source(tiny):
  synthetic = datasets.load(tiny, ()).spec
  tiny.data.source = 'digits'
  assert synthetic.image_shape == (8, 8, 3)
  assert datasets.load(tiny, ()).spec.image_shape == (8, 8, 1)


def test_data_train_split(tiny):
  tiny.data.train_split = 'train[:50%]'
  assert datasets.load(tiny, ()).spec.examples == 32


def test_data_images_per_class(tiny):
  tiny.data.images_per_class = 3
  assert datasets.load(tiny, ()).spec.examples == 30


def test_data_synthetic_examples(tiny):
  tiny.data.synthetic_examples = 48
  assert datasets.load(tiny, ()).spec.examples == 48


def test_data_seed(tiny):
  labels = {}
  for seed in (0, 1):
    tiny.data.source, tiny.data.seed = 'digits', seed
    labels[seed] = datasets.load(tiny, ('test',)).evaluation['test'].labels
    tiny.seed = 1 - seed  # has no say in it
    assert np.array_equal(datasets.load(tiny, ('test',)).evaluation['test'].labels, labels[seed])
  assert not np.array_equal(labels[0], labels[1])


def test_data_dir(tiny, tmp_path):
  for tiny.data.source, name in (('tfds:mnist', 'here'), ('tfds:mnist', 'there'), ('folder', 'elsewhere')):
    tiny.data.dir = str(tmp_path / name)
    with pytest.raises(errors.InputError, match=re.escape(str(tmp_path / name))):
      loading.load(tiny.data, 'train', 0)


def test_data_val_fraction(tiny, tmp_path):
  for label in ('cat', 'dog'):
    (tmp_path / label).mkdir()
    for index in range(10):
      Image.new('RGB', (8, 8), (index, 0, 0)).save(tmp_path / label / f'{index}.png')
  tiny.data.source = f'folder:{tmp_path}'
  sizes = []
  for fraction in (0.2, 0.5):
    tiny.data.val_fraction = fraction
    sizes.append(len(loading.load(tiny.data, 'val', 0)))
  assert sizes == [4, 10]


def test_data_hold_out(tiny):
  sizes = {}
  for tiny.data.hold_out in (True, False):
    sizes[tiny.data.hold_out] = len(datasets.load(tiny, ('test',)).train)
  assert sizes == {True: 54, False: 64}


def first_batch(config, evaluation=False):
  mesh = mesh_lib.make_mesh(config.mesh)
  source = loading.load(config.data, 'test' if evaluation else 'train', config.seed)
  config = open_options.resolve(config, datasets.load(config, ()))
  make = pipeline.make_eval_loader if evaluation else pipeline.make_train_loader
  with contextlib.closing(make(config, source, mesh)) as loader:
    return type(loader), loader.batch_at(loader.arrays(0, 1), jnp.int32(0))


def test_data_placement(tiny):
  tiny.data.workers = 0
  loaders = []
  for placement in ('device', 'stream'):
    tiny.data.placement = placement
    loaders.append(first_batch(tiny)[0])
  assert loaders[0] != loaders[1]


def test_data_workers(tiny):
  import multiprocessing

  tiny.data.placement = 'stream'
  children = []
  for workers in (0, 1):
    tiny.data.workers = workers
    source = loading.load(tiny.data, 'train', 0)
    with contextlib.closing(pipeline.make_train_loader(tiny, source, mesh_lib.make_mesh(tiny.mesh))) as loader:
      loader.arrays(0, 1)
      children.append(len(multiprocessing.active_children()))
  assert children == [0, 1]


def test_data_resized_crop_min_area(tiny):
  tiny.data.augment, tiny.data.workers = 'resized_crop_flip', 0
  images = []
  for area in (0.08, 0.9):
    tiny.data.resized_crop_min_area = area
    images.append(np.asarray(first_batch(tiny)[1]['image']))
  assert not np.array_equal(*images)


def test_data_policy(tiny):
  tiny.data.workers = 0
  images = []
  for tiny.data.policy in ('none', 'rand_augment', 'trivial_augment'):
    images.append(np.asarray(first_batch(tiny)[1]['image']).tobytes())
  assert len(set(images)) == 3


@pytest.mark.parametrize(('option', 'value'), [('rand_augment_ops', 3), ('rand_augment_magnitude', 20)])
def test_data_rand_augment_ops_and_rand_augment_magnitude(tiny, option, value):
  tiny.data.policy, tiny.data.workers = 'rand_augment', 0
  before = np.asarray(first_batch(tiny)[1]['image'])
  tiny.data[option] = value
  assert not np.array_equal(np.asarray(first_batch(tiny)[1]['image']), before)


def test_data_crop_to_box(tiny):
  tiny.data.crop_to_box = True  # its images are tested with those of cars
  with pytest.raises(errors.InputError, match='crop_to_box .*boxes.* synthetic'):
    loading.load(tiny.data, 'train', 0)


def test_data_image_bits(tiny, tmp_path):
  """The images have 16 bits and use 12 of them."""
  for label in ('cat', 'dog'):
    (tmp_path / label).mkdir()
    for index in range(5):
      Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / label / f'{index}.png')
  tiny.data.source = f'folder:{tmp_path}'
  shown = []
  for bits in (None, 12, 16):
    with tiny.data.ignore_type():
      tiny.data.image_bits = bits
    shown.append(np.asarray(loading.load(tiny.data, 'train', 0)[0][0]).max())
  assert shown == [15, 250, 15]


def test_data_exif_rotation(tiny, tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  for label in ('cat', 'dog'):
    (tmp_path / label).mkdir()
    for index in range(5):
      Image.new('RGB', (9, 7)).save(tmp_path / label / f'{index}.jpg', exif=exif)
  tiny.data.source = f'folder:{tmp_path}'
  sizes = [loading.load(tiny.data, 'train', 0)[0][0].size for tiny.data.exif_rotation in (False, True)]
  assert sizes == [(9, 7), (7, 9)]


@pytest.mark.thorough
def test_every_program_decodes_as_the_run_does(tiny, tmp_path, call_program, monkeypatch):
  """With bits from sBIT chunks, which the training split decides."""
  info = PngImagePlugin.PngInfo()
  info.add(b'sBIT', bytes([12]))
  for place in ('train/cat', 'train/dog', 'val/cat', 'val/dog'):
    (tmp_path / 'images' / place).mkdir(parents=True)
    for index in range(8):
      image = Image.fromarray(np.full((8, 9), 400 * index, np.uint16))
      image.save(tmp_path / 'images' / place / f'{index}.png', pnginfo=info)
  tiny.data.update({'source': f'folder:{tmp_path}/images', 'workers': 0, 'exif_rotation': True})
  tiny.data.update({'mean': (0.5,) * 3, 'std': (0.2,) * 3})
  tiny.model.name, tiny.model.depth, tiny.model.width = 'plain', 8, 4
  tiny.eval.splits, tiny.eval.every, tiny.train.steps = ('val',), '0', 1
  tiny.checkpoint.best_metric = 'accuracy'
  run_config.write(tmp_path / 'tiny.json', tiny)
  original, seen = images.decode, set()

  def decode(source, name, channels=3, how=images.USUAL):
    seen.add(how)
    return original(source, name, channels, how)

  monkeypatch.setattr(images, 'decode', decode)
  config = f'--config={run_config.__file__}:{tmp_path}/tiny.json'
  looking = f'--images={tmp_path}/images/val/cat'
  for program, *arguments in (
    ('main', config),
    ('main', config, '--mode=evaluate'),
    ('predict', looking),
    ('explain', looking),
    ('explain', '--top_activating=val', '--top=1'),
  ):
    seen.clear()
    code, _, problems = call_program(program, *arguments, f'--workdir={tmp_path}/run')
    assert code == 0, problems
    assert seen == {images.Decoding(12, True)}, program
  recorded = json.loads((tmp_path / 'run' / 'config.json').read_text())['data']
  assert (recorded['image_bits'], recorded['exif_rotation']) == (12, True)


@pytest.mark.parametrize('augment', ['none', 'resized_crop_flip'])
def test_data_eval_resize_and_eval_crop(tiny, augment):
  tiny.data.augment, tiny.data.workers = augment, 0
  seen = {}
  for tiny.data.eval_resize, tiny.data.eval_crop in (
    ('center_crop', 0.875),
    ('center_crop', 0.5),
    ('squash', 0.875),
    ('squash', 0.5),
  ):
    image = np.asarray(first_batch(tiny, evaluation=True)[1]['image'])
    seen[tiny.data.eval_resize, tiny.data.eval_crop] = image.tobytes()
  assert len(set(seen.values())) == 3
  assert seen['squash', 0.875] == seen['squash', 0.5], 'what is not cropped has no fraction of the crop'


@pytest.mark.thorough
@pytest.mark.parametrize(('augment', 'resize'), [('none', 'center_crop'), ('resized_crop_flip', 'squash')])
def test_every_program_resizes_as_eval_resize_says(tiny, tmp_path, call_program, monkeypatch, augment, resize):
  for label in ('cat', 'dog'):
    (tmp_path / 'images' / label).mkdir(parents=True)
    for index in range(10):
      Image.new('RGB', (8, 9), (index, 0, 0)).save(tmp_path / 'images' / label / f'{index}.png')
  tiny.data.update({'source': f'folder:{tmp_path}/images', 'augment': augment, 'workers': 0, 'eval_resize': resize})
  tiny.data.update({'mean': (0.5,) * 3, 'std': (0.2,) * 3})
  tiny.eval.splits, tiny.eval.every, tiny.train.steps = ('val',), '0', 1
  tiny.checkpoint.best_metric = 'accuracy'
  run_config.write(tmp_path / 'tiny.json', tiny)
  called = []
  for kind, name in (('center_crop', 'resize_center_crop'), ('squash', 'squash'), ('random', 'random_resized_crop')):
    make = getattr(images, name)
    monkeypatch.setattr(
      images, name, lambda *args, kind=kind, make=make, **given: called.append(kind) or make(*args, **given)
    )

  def kinds(program, *arguments):
    called.clear()
    code, _, problems = call_program(program, *arguments, f'--workdir={tmp_path}/run')
    assert code == 0, problems
    return set(called)

  config = f'--config={run_config.__file__}:{tmp_path}/tiny.json'
  looking = f'--images={tmp_path}/images/cat'
  assert kinds('main', config) == {resize, 'squash' if augment == 'none' else 'random'}
  assert kinds('main', config, '--mode=evaluate') == {resize}
  assert kinds('main', config, '--mode=dead_units') == {resize}
  assert kinds('predict', looking) == {resize}
  kinds('export')
  mode = json.loads((tmp_path / 'run' / 'export' / 'model.json').read_text())['preprocessing']['crop_mode']
  assert mode == {'center_crop': 'center', 'squash': 'squash'}[resize]
  recorded = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert recorded['data']['eval_resize'] == resize


def test_data_interpolation(tiny):
  tiny.data.image_size, tiny.data.workers = 12, 0
  tiny.data.source = 'digits'  # synthetic images are drawn at their size
  for augment, evaluation in (('none', False), ('resized_crop_flip', False), ('resized_crop_flip', True)):
    tiny.data.augment = augment
    images = []
    for interpolation in ('bilinear', 'bicubic', None):
      with tiny.data.ignore_type():
        tiny.data.interpolation = interpolation
      images.append(np.asarray(first_batch(tiny, evaluation)[1]['image']))
    assert not np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[2])


def test_model_num_classes(tiny):
  data = datasets.load(tiny, ())
  tiny.model.num_classes = 10
  assert open_options.resolve(tiny, data).model.num_classes == 10
  tiny.model.num_classes = 7
  with pytest.raises(errors.InputError, match='num_classes=7.* 10 classes'):
    open_options.resolve(tiny, data)


def test_model_options(wide_network):
  before = fingerprint(wide_network)
  wide_network.model.options['width'] = 6
  assert fingerprint(wide_network) != before


def test_model_folder(wide_network, tmp_path, monkeypatch):
  """The same module, in a folder where Python does not look."""
  before = fingerprint(wide_network)
  monkeypatch.setattr(sys, 'path', [*sys.path])
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'wide_network.py').rename(tmp_path / 'elsewhere' / 'moved_network.py')
  wide_network.model.name = 'moved_network:Net'
  for folder in (None, str(tmp_path)):
    with wide_network.model.ignore_type():
      wide_network.model.folder = folder
    with pytest.raises(errors.InputError, match='moved_network'):
      fingerprint(wide_network)
  wide_network.model.folder = str(tmp_path / 'elsewhere')
  assert fingerprint(wide_network) == before


@pytest.mark.thorough
def test_train_batch_size(tiny, tmp_path):
  tiny.train.batch_size = 32
  assert first_batch(tiny)[1]['label'].shape == (32,)
  run_loop(tiny, tmp_path)
  assert metrics.read(tmp_path)[-1]['epoch'] == pytest.approx(6 * 32 / 64)


@pytest.mark.thorough
def test_train_steps_and_epochs(tiny, tmp_path):
  tiny.train.steps = None
  tiny.train.epochs = 2.0
  assert run_loop(tiny, tmp_path / 'epochs')['step'] == 8
  tiny.train.steps = 5
  assert run_loop(tiny, tmp_path / 'steps')['step'] == 5


@pytest.mark.thorough
def test_train_steps_per_dispatch(tiny, tmp_path, monkeypatch):
  tiny.train.log_every = tiny.eval.every = tiny.checkpoint.every = '0'
  dispatched = []
  make = pipeline.make_train_loader

  def spy(*args):
    loader = make(*args)
    arrays = loader.arrays
    monkeypatch.setattr(loader, 'arrays', lambda step, count: dispatched.append(count) or arrays(step, count))
    return loader

  monkeypatch.setattr(pipeline, 'make_train_loader', spy)
  for most, expected in ((4, [4, 2]), (1, [1] * 6)):
    dispatched.clear()
    tiny.train.steps_per_dispatch = most
    run_loop(tiny, tmp_path / str(most))
    assert dispatched == expected


@pytest.mark.thorough
def test_train_log_every(tiny, tmp_path):
  for every, expected in (('2', [2, 4, 6]), ('3', [3, 6])):
    tiny.train.log_every = every
    run_loop(tiny, tmp_path / every)
    assert [line['step'] for line in lines(tmp_path / every, 'train/loss')] == expected


@pytest.mark.thorough
def test_train_patience(tiny, tmp_path):
  tiny.model.norm, tiny.optim.learning_rate = 'none', 1e-12  # nothing gets better after the first evaluation
  tiny.train.steps, tiny.eval.every, tiny.train.patience = 20, '2', 3
  summary = run_loop(tiny, tmp_path)
  assert summary['step'] == 8
  assert summary['finished']


@pytest.mark.thorough
def test_train_init_from(tiny, tmp_path):
  first = run_loop(tiny, tmp_path / 'first')
  tiny.train.init_from = str(tmp_path / 'first')
  tiny.optim.learning_rate, tiny.optim.weight_decay = 1e-30, 0.0
  second = run_loop(tiny, tmp_path / 'second')
  assert second['params_sha256'] == first['params_sha256']


def test_finetune_reinit(tiny, tmp_path):
  run_loop(tiny, tmp_path / 'first')
  tiny.train.init_from, tiny.finetune.reinit, tiny.seed = str(tmp_path / 'first'), ('head',), 1
  tiny.optim.learning_rate, tiny.optim.weight_decay = 1e-30, 0.0
  run_loop(tiny, tmp_path / 'second')
  first, second = (trees.flatten(checkpoints.load_parameters(tmp_path / name).params) for name in ('first', 'second'))
  changed = {path for path in first if not np.array_equal(first[path], second[path])}
  assert changed == {'head/dense/kernel', 'head/dense/bias'}


@pytest.mark.thorough
def test_eval_splits(tiny, tmp_path):
  tiny.eval.splits, tiny.checkpoint.best_metric = ('train', 'test[:25%]'), 'accuracy'
  last = run_loop(tiny, tmp_path)['last']
  assert {'train/loss', 'test[:25%]/loss', 'test[:25%]/accuracy'} <= set(last)


@pytest.mark.thorough
def test_eval_every(tiny, tmp_path):
  for every, expected in (('2', [2, 4, 6]), ('0', [6])):
    tiny.eval.every = every
    run_loop(tiny, tmp_path / every)
    assert [line['step'] for line in lines(tmp_path / every, 'test/loss')] == expected


def test_eval_batch_size(tiny):
  shapes = []
  for size in (8, 16):
    tiny.eval.batch_size = size
    shapes.append(first_batch(tiny, evaluation=True)[1]['label'].shape)
  assert shapes == [(8,), (16,)]


@pytest.mark.thorough
def test_checkpoint_every(tiny, tmp_path):
  for every, expected in (('2', [2, 4, 6]), ('0', [6])):
    tiny.checkpoint.every = every
    run_loop(tiny, tmp_path / every)
    assert checkpoint_steps(tmp_path / every) == expected


def test_checkpoint_keep(tiny, tmp_path):
  tiny.checkpoint.every, tiny.eval.every, tiny.checkpoint.keep = '1', '0', 2
  run_loop(tiny, tmp_path)
  assert checkpoint_steps(tmp_path) == [5, 6]


@pytest.mark.thorough
def test_checkpoint_best_metric(tiny, tmp_path):
  tiny.eval.splits = ('test', 'val')
  named = ('accuracy', 'balanced_accuracy', 'auroc', 'loss', 'calibration_error')
  for metric, ranks in (*((name, f'val/{name}') for name in named), ('test/loss', 'test/loss')):
    tiny.checkpoint.best_metric = metric
    assert run_loop(tiny, tmp_path / metric)['best']['metric'] == ranks


@pytest.mark.thorough
def test_telemetry_every(tiny, tmp_path):
  tiny.model.norm, tiny.model.depth, tiny.telemetry.every = 'none', 2, '4'
  run_loop(tiny, tmp_path)
  assert [line['step'] for line in lines(tmp_path, 'telemetry/head/gradient_norm')] == [4]


@pytest.mark.parametrize(('option', 'value'), [('start', 1e-5), ('end', 1.0)])
def test_lr_find_start_and_end(tiny, option, value):
  programs = []
  for changes in ({}, {option: value}):
    tiny.lr_find.update(changes)
    data = datasets.load(tiny, ())
    run = experiment.make(open_options.resolve(tiny, data), data.spec)
    state = run.abstract_state()
    step = lr_find.make_train_step(run, 0)
    programs.append(traced(step, state, first_batch(tiny)[1]))
  assert programs[0] != programs[1]


@pytest.mark.thorough
def test_lr_find_steps_and_groups(tiny, tmp_path):
  tiny.model.norm, tiny.model.depth = 'none', 2
  found = []
  for count, groups in ((20, ()), (24, ('head', 'stem'))):
    tiny.lr_find.steps, tiny.lr_find.groups = count, groups
    sweeps = lr_find.run(tiny, tmp_path)['sweeps']
    found.append([(each['group'], len(each['loss'])) for each in sweeps])
  assert found == [[(None, 20)], [('head', 24), ('stem', 24)]]


def test_noise_scale_batches_and_micro_batches(tiny, tmp_path, monkeypatch):
  tiny.model.norm, tiny.model.depth = 'none', 2
  sizes, make = [], pipeline.make_train_loader

  def spy(config, *args):
    loader = make(config, *args)
    arrays = loader.arrays
    monkeypatch.setattr(
      loader, 'arrays', lambda step, count: sizes.append((config.train.batch_size, count)) or arrays(step, count)
    )
    return loader

  monkeypatch.setattr(pipeline, 'make_train_loader', spy)
  for batches, micro_batches in ((2, 4), (3, 2)):
    tiny.noise_scale.batches, tiny.noise_scale.micro_batches = batches, micro_batches
    noise.run(tiny, tmp_path)
  assert sizes == [(4, 4)] * 2 + [(8, 2)] * 3


@pytest.mark.thorough
def test_finetune_cached_views_and_cache_dir(tiny, tmp_path):
  tiny.finetune.trainable, tiny.data.augment, tiny.data.crop_padding = 'head', 'pad_crop_flip', 1
  data = datasets.load(tiny, ('test',))
  run = experiment.make(open_options.resolve(tiny, data), data.spec)
  mesh, rows = mesh_lib.make_mesh(tiny.mesh), {}
  for views in (0, 1, 3):
    run.config.finetune.cached_views, run.config.finetune.cache_dir = views, str(tmp_path / str(views))
    rows[views] = len(feature_cache.use(run, data, mesh, tmp_path)[1].train.images)
  assert rows == {0: 64, 1: 64, 3: 192}
  assert not (tmp_path / '0').exists()
  assert len(list((tmp_path / '3').glob('*.features'))) == 2


@pytest.mark.usefixtures('eight_devices')
def test_mesh_fsdp(tiny, monkeypatch):
  monkeypatch.undo()  # it needs all devices
  tiny.model.width = 256
  data = datasets.load(tiny, ())
  run = experiment.make(open_options.resolve(tiny, data), data.spec)
  split = {}
  for fsdp in (1, 4):
    tiny.mesh.fsdp = fsdp
    shardings = mesh_lib.parameter_shardings(mesh_lib.make_mesh(tiny.mesh), run.abstract_state())
    split[fsdp] = sum(not sharding.is_fully_replicated for sharding in jax.tree.leaves(shardings))
  assert split[1] == 0
  assert split[4] > 0


@pytest.mark.usefixtures('eight_devices')
def test_model_norm_sync(tiny, monkeypatch):
  monkeypatch.undo()  # it needs all devices
  mesh, programs = mesh_lib.make_mesh(tiny.mesh), {}
  data = datasets.load(tiny, ())
  for tiny.model.norm, tiny.model.norm_sync in (
    ('batch_norm', 'global'),
    ('batch_norm', 'device'),
    ('layer_norm', 'global'),
    ('layer_norm', 'device'),
  ):
    run = experiment.make(open_options.resolve(tiny, data), data.spec)
    images = jax.ShapeDtypeStruct((16, *data.spec.image_shape), jnp.float32)
    program = mesh_lib.inside(lambda x, run=run: run.model.apply(run.init_variables(), x, True, mutable=True), mesh)
    programs[tiny.model.norm, tiny.model.norm_sync] = traced(program, images)
    idle = (tiny.model.norm, tiny.model.norm_sync) == ('layer_norm', 'device')
    assert bool(schema.no_effect(tiny, 'model.norm_sync')) == idle
  assert programs['batch_norm', 'global'] != programs['batch_norm', 'device']
  assert programs['layer_norm', 'global'] == programs['layer_norm', 'device']


@pytest.mark.usefixtures('eight_devices', 'undrawn')
def test_sharding(tiny, tmp_path, monkeypatch, caplog):
  """A run follows a rule, and its losses do not depend on it."""
  devices, found = jax.devices()[:4], {}
  monkeypatch.setattr(jax, 'devices', lambda: devices)
  report = loop.report.write
  placed = []  # the shardings of the parameters at the end of each run

  def write(run, rec, state, *rest):
    placed.append(jax.tree.map(lambda leaf: leaf.sharding, state.params))
    return report(run, rec, state, *rest)

  monkeypatch.setattr(loop.report, 'write', write)
  tiny.mesh.fsdp, tiny.train.steps, tiny.eval.every, tiny.train.log_every = 2, 2, '0', '1'
  caplog.set_level('INFO')
  for tiny.sharding in ((), (('stage1/.*kernel', 0),)):
    workdir = tmp_path / str(len(tiny.sharding))
    run_loop(tiny, workdir)
    split = [path for path, leaf in trees.flatten(placed[-1]).items() if not leaf.is_fully_replicated]
    found[bool(tiny.sharding)] = split, [line['train/loss'] for line in lines(workdir, 'train/loss')]
  assert found[False][0] == []
  assert found[True][0] == ['stage1/block001/dense/kernel']
  assert '0 of 10 parameters' in caplog.text and '1 of 10 parameters' in caplog.text
  np.testing.assert_allclose(found[True][1], found[False][1], rtol=1e-5)


def test_every_option_is_covered():
  covered = {key.replace('.', '_') for key in PROGRAM}
  for name in globals():
    if name.startswith('test_'):
      covered.add(name.removeprefix('test_'))
      section = next((each for each in schema.SCHEMA if name.startswith(f'test_{each}_')), '')
      options = name.removeprefix(f'test_{section}_').split('_and_')
      covered.update(f'{section}_{option}' for option in options)
  assert {key.replace('.', '_') for key in schema.OPTIONS['train']} <= covered
