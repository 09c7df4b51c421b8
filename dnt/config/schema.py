"""The config schemas: every option, its default, what it means and what is valid, once.

A config file holds `get_config()`: it takes `default()`, changes what its experiment changes and returns it. Keys are
locked and typed, so a typo fails where it is written. `validate` then checks every value against `SCHEMA`, before
anything is read or compiled.

An option whose default is a type (`depth=Option(int, ...)`) has no value of its own: in `model` it then takes the
default of the model's field of that name, elsewhere what its help says.

Durations are strings: '400' (steps), '5 epochs', '10%' (of the run), '0' (never).
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections
from ml_collections import config_dict

from dnt import errors
from dnt.config import checks, keys


class Option(NamedTuple):
  """One config value: its default (or its type, when it has none), help and what is valid (of a tuple: each member)."""

  default: Any
  help: str
  choices: tuple[Any, ...] = ()
  check: Callable[[Any], str | None] = lambda value: None

  @property
  def type(self) -> type:
    return self.default if isinstance(self.default, type) else type(self.default)


NORMS = ('batch_norm', 'layer_norm', 'group_norm', 'rms_norm', 'none')
ACTIVATIONS = ('relu', 'leaky_relu', 'sigmoid', 'tanh', 'gelu', 'silu', 'identity')
INITIALIZERS = ('he', 'glorot', 'lecun', 'normal', 'orthogonal', 'delta_orthogonal')

SCHEMA: dict[str, Any] = {
  'seed': Option(0, 'seed of parameters, order, augmentation, stochastic depth and dropout', check=checks.at_least(0)),
  'data': {
    'source': Option(
      'digits',
      'digits, synthetic, tfds:<name>, cifar_binary:<dir>, idx:<dir>, folder:<dir> or cars:<dir>',
    ),
    'train_split': Option('train', "split to train on, sliced as in TFDS: 'train', 'train[:98%]', 'train[5000:]'"),
    'dir': Option(
      '', 'folder of the source, where <dir> is left out of it; tfds: of prepared sets, and empty: its own default'
    ),
    'seed': Option(
      0,
      'seed of splits drawn here (digits, folders) and of synthetic pictures: all runs share them',
      check=checks.at_least(0),
    ),
    'val_fraction': Option(0.2, "share of a folder without splits that becomes 'val'", check=checks.within(0.01, 1)),
    'crop_to_box': Option(False, 'cars: keep of each picture the box around the car alone'),
    'image_size': Option(
      int, 'pixels a side; none: that of the pretrained weights, or as the source has them', check=checks.at_least(1)
    ),
    'placement': Option(
      'auto',
      'device: the whole split in device memory; stream: grain workers; auto: device up to 1 GiB',
      choices=('auto', 'device', 'stream'),
    ),
    'workers': Option(
      2, 'worker processes that decode streamed data; 0: in the main process', check=checks.at_least(0)
    ),
    'augment': Option(
      'none',
      'none; pad_crop_flip (small pictures); resized_crop_flip (large ones)',
      choices=('none', 'pad_crop_flip', 'resized_crop_flip'),
    ),
    'crop_padding': Option(4, 'pixels of zero padding on each side before the random crop', check=checks.at_least(0)),
    'flip': Option(True, 'mirror half of the augmented pictures left to right'),
    'resized_crop_min_area': Option(0.08, 'smallest share of the area resized_crop keeps', check=checks.share),
    'eval_resize': Option(
      str,
      'how evaluation brings a picture to image_size: center_crop (keeps the aspect ratio, cuts the borders off) or '
      'squash (keeps all of it); none: that of the pretrained weights, or center_crop with augment=resized_crop_flip, '
      'else squash',
      choices=('center_crop', 'squash'),
    ),
    'eval_crop': Option(
      float,
      'eval_resize=center_crop: share of the side that the crop keeps after the resize; none: that of the pretrained '
      'weights, or 0.875',
      check=checks.share,
    ),
    'interpolation': Option(
      str,
      'filter of every resize, bilinear or bicubic; none: that of the pretrained weights, or bilinear',
      choices=('bilinear', 'bicubic'),
    ),
    'mean': Option(
      (),
      'per channel, in [0, 1]; empty: that of the pretrained weights, or measured on train_split',
      check=checks.numbers,
    ),
    'std': Option(
      (),
      'per channel, in [0, 1]; empty: that of the pretrained weights, or measured on train_split',
      check=checks.deviations,
    ),
    'policy': Option(
      'none',
      'rand_augment or trivial_augment, by the stream workers: a set that would live on the device is streamed',
      choices=('none', 'rand_augment', 'trivial_augment'),
    ),
    'rand_augment_ops': Option(2, 'operations a picture (N)', check=checks.at_least(1)),
    'rand_augment_magnitude': Option(9, 'their magnitude (M), 0 to 30', check=checks.between(0, 30)),
    'mixup': Option(0.0, 'alpha of mixup, which blends each example with another; 0: off', check=checks.at_least(0)),
    'cutmix': Option(
      0.0,
      'alpha of CutMix, which pastes a box of another example; 0: off; with mixup too: either',
      check=checks.at_least(0),
    ),
    'erasing': Option(0.0, 'chance that a random box of a picture is erased', check=checks.between(0, 1)),
    'synthetic_examples': Option(1024, 'examples a split of the synthetic source', check=checks.at_least(1)),
    'synthetic_classes': Option(10, 'classes of the synthetic source', check=checks.at_least(2)),
  },
  'model': {
    'name': Option(
      'resnet',
      "mlp, plain, resnet, highway, densenet; your own Flax module: 'mypkg.nets:Net'; pretrained: the network whose "
      'weights are at train.init_from',
    ),
    'num_classes': Option(int, "classes of the head; none: the data's", check=checks.at_least(2)),
    'dtype': Option(
      'float32', 'compute dtype; parameters and statistics stay float32', choices=('float32', 'bfloat16')
    ),
    'norm': Option('batch_norm', 'normalization of every block', choices=NORMS),
    'norm_epsilon': Option(1e-5, 'added to the variance', check=checks.above(0)),
    'norm_groups': Option(32, 'groups of group_norm; they must divide the channels', check=checks.at_least(1)),
    'norm_momentum': Option(
      0.9, 'share of the old running statistics that batch_norm keeps', check=checks.within(0, 1)
    ),
    'weight_standardization': Option(False, 'standardize each convolution kernel over its fan-in'),
    'activation': Option('relu', 'activation of every block', choices=ACTIVATIONS),
    'initializer': Option('he', 'initializer of every kernel', choices=INITIALIZERS),
    'init_gain': Option(1.0, 'factor on the standard deviation of the initial kernels', check=checks.above(0)),
    'depth': Option(int, 'layers, counted as in the papers', check=checks.at_least(1)),
    'width': Option(
      int, 'mlp: units a layer; resnet: widening factor; plain, highway: channels', check=checks.at_least(1)
    ),
    'block': Option(str, 'mlp: plain, residual, highway; resnet: basic, bottleneck, preact_basic, preact_bottleneck'),
    'stem': Option(str, 'cifar (3x3 convolution) or imagenet (7x7 stride 2, max-pool)', choices=('cifar', 'imagenet')),
    'shortcut': Option(str, 'A: identity, zero-padded channels; B: 1x1 projection', choices=('A', 'B')),
    'stride_on': Option(str, "convolution of a bottleneck that strides: '3x3' or '1x1'", choices=('3x3', '1x1')),
    'zero_init_last_norm': Option(bool, "start the scale of each residual branch's last norm at zero"),
    'residual_scalar': Option(float, 'learned factor on each residual branch, starting here (SkipInit, ReZero: 0)'),
    'stochastic_depth': Option(float, 'chance of dropping the last block, growing from 0', check=checks.within(0, 1)),
    'gate_bias': Option(float, 'initial bias of the highway gates (negative: carry)'),
    'growth_rate': Option(int, 'channels each dense layer adds (k)', check=checks.at_least(1)),
    'compression': Option(float, 'share of channels a transition keeps (theta)', check=checks.share),
    'bottleneck': Option(bool, '1x1 convolution to 4k channels before each 3x3 of a dense layer (DenseNet-B)'),
    'scan': Option(False, 'scan the equal blocks of a stage: compile time constant in depth'),
    'remat': Option(False, 'recompute the inside of each block in the backward pass to save memory'),
    'options': Option(dict, 'keyword arguments of your own module; set in a config file'),
  },
  'loss': {
    'label_smoothing': Option(0.0, 'share of the target spread over all classes', check=checks.within(0, 1)),
    'class_weights': Option((), 'a weight a class, in class order; empty: equal', check=checks.weights),
    'balance_classes': Option(
      False,
      'class_weights inverse to the examples of each class in train_split; config.json then holds the weights instead',
    ),
  },
  'optim': {
    'name': Option('sgd', 'update rule', choices=('sgd', 'adamw', 'lamb', 'muon')),
    'learning_rate': Option(
      0.1,
      'peak learning rate; 0: found before the first step, the valley of a range test (lr_find) of what trains first',
      check=checks.at_least(0),
    ),
    'momentum': Option(0.9, 'sgd, muon: decay of the momentum', check=checks.within(0, 1)),
    'nesterov': Option(False, "sgd, muon: Nesterov's momentum"),
    'b1': Option(0.9, 'adamw, lamb, and the Adam part of muon: decay of the first moment', check=checks.within(0, 1)),
    'b2': Option(
      0.999, 'adamw, lamb, and the Adam part of muon: decay of the second moment', check=checks.within(0, 1)
    ),
    'epsilon': Option(1e-8, 'adamw, lamb, and the Adam part of muon: added to the denominator', check=checks.above(0)),
    'weight_decay': Option(1e-4, 'sgd: added to the gradient (L2); others: decoupled', check=checks.at_least(0)),
    'weight_decay_on': Option('kernel$', 'regular expression: parameter paths that decay', check=checks.pattern),
  },
  'schedule': {
    'name': Option(
      'constant',
      'shape of the learning rate over the run',
      choices=('constant', 'piecewise', 'cosine', 'linear', 'one_cycle'),
    ),
    'warmup': Option('0', 'duration of the warm-up before the shape (any shape)', check=checks.duration),
    'warmup_shape': Option('linear', 'linear rise, or constant at warmup_start', choices=('linear', 'constant')),
    'warmup_start': Option(
      0.0, 'learning rate at the start of the warm-up, share of the peak', check=checks.at_least(0)
    ),
    'boundaries': Option((), 'piecewise: durations from the start of the run', check=checks.durations),
    'factor': Option(0.1, 'piecewise: factor on the learning rate at each boundary', check=checks.above(0)),
    'final': Option(
      0.0, 'cosine, linear, one_cycle: learning rate at the end, share of the peak', check=checks.at_least(0)
    ),
    'one_cycle_rise': Option('30%', 'one_cycle: duration of the rise to the peak', check=checks.duration),
    'one_cycle_start': Option(0.04, 'one_cycle: learning rate at the start, share of the peak', check=checks.above(0)),
  },
  'clip': {
    'name': Option(
      'none',
      'none; global_norm; value; block_norm (each depth entry by its own norm); adaptive (AGC)',
      choices=('none', 'global_norm', 'value', 'block_norm', 'adaptive'),
    ),
    'threshold': Option(1.0, 'norm or value to clip to; adaptive: share of the parameter norm', check=checks.above(0)),
    'epsilon': Option(1e-3, 'adaptive: smallest parameter norm', check=checks.above(0)),
  },
  'finetune': {
    'trainable': Option(
      'all',
      "what trains: all; head; top:2 (the last two blocks and the head); or a pattern of entries: 'stage4/.*|head'",
      check=checks.pattern,
    ),
    'unfreeze': Option(
      (), "what trains later, each from a time on: (('20%', 'top:2'), ('50%', 'all'))", check=checks.stages
    ),
    'frozen_norm': Option(
      'running',
      'BatchNorm of frozen entries: running (nothing of it moves); batch (normalizes by the batch, statistics move); '
      'affine_only (scale and bias train)',
      choices=('running', 'batch', 'affine_only'),
    ),
    'layer_decay': Option(1.0, 'factor on the learning rate for each entry further from the head', check=checks.share),
    'head_lr_mult': Option(1.0, 'factor on the learning rate of the head', check=checks.above(0)),
    'rates': Option(
      (),
      "factors on the learning rate of entries, by pattern of whole names: (('stage4/.*', 0.1),)",
      check=checks.rates,
    ),
    'cached_views': Option(
      int,
      'views of each picture whose frozen features are computed once and kept on disk; 0: none; not set: 1 where '
      'nothing is augmented, else none',
      check=checks.at_least(0),
    ),
    'cache_dir': Option('', 'where frozen features are kept; empty: ~/.cache/dnt/features'),
    'l2_sp': Option(
      0.0,
      'decay towards the values it starts from, of all that decays but the head (L2-SP); 0: off',
      check=checks.at_least(0),
    ),
  },
  'ema': {
    'decay': Option(
      0.0, 'average of parameters and BatchNorm statistics, evaluated too; 0: off', check=checks.within(0, 1)
    ),
  },
  'train': {
    'batch_size': Option(128, 'examples a step, over all devices and processes', check=checks.at_least(1)),
    'steps': Option(int, 'optimizer steps of the run; set, it wins over epochs', check=checks.at_least(1)),
    'epochs': Option(10.0, 'passes over the training split', check=checks.above(0)),
    'accumulate': Option(1, 'micro-batches a step, whose gradients are averaged', check=checks.at_least(1)),
    'steps_per_dispatch': Option(10, 'most steps one call of the compiled program runs', check=checks.at_least(1)),
    'log_every': Option('50', 'duration between training lines in metrics.jsonl', check=checks.duration),
    'patience': Option(
      0, 'stop after so many evaluations without a better best_metric; 0: off', check=checks.at_least(0)
    ),
    'init_from': Option(
      '',
      'pretrained weights to start from: a workdir, <file>.safetensors, .pth or .h5, tfjs:<dir> or hf:<owner>/<name>; '
      'a head of other classes starts at zero',
    ),
  },
  'eval': {
    'splits': Option(('test',), 'splits to evaluate, sliced as train_split', check=checks.texts),
    'every': Option('1 epochs', "duration between evaluations; '0': at the end alone", check=checks.duration),
    'batch_size': Option(256, 'examples an evaluation step, over all devices', check=checks.at_least(1)),
  },
  'checkpoint': {
    'every': Option('1 epochs', "duration between checkpoints; '0': at the end alone", check=checks.duration),
    'keep': Option(3, 'newest checkpoints to keep, beside the best', check=checks.at_least(1)),
    'best_metric': Option(
      'accuracy',
      "what the best checkpoint has most or least of, on the first of eval.splits (EMA's when on)",
      choices=('accuracy', 'loss'),
    ),
  },
  'telemetry': {
    'every': Option(
      '100', "duration between steps that record figures of every entry; '0': never", check=checks.duration
    ),
  },
  'lr_find': {
    'start': Option(1e-7, '--mode=lr_find: first learning rate of the sweep', check=checks.above(0)),
    'end': Option(10.0, '--mode=lr_find: last learning rate of the sweep', check=checks.above(0)),
    'steps': Option(100, '--mode=lr_find: steps of the sweep, each at a higher rate', check=checks.at_least(20)),
    'groups': Option(
      (),
      "--mode=lr_find: sweep entries alone, all others standing still; patterns: ('head', 'stage3/.*')",
      check=checks.patterns,
    ),
  },
  'noise_scale': {
    'batches': Option(50, '--mode=noise_scale: batches of train.batch_size to average over', check=checks.at_least(2)),
    'micro_batches': Option(
      8,
      '--mode=noise_scale: parts of each batch, to compare with the whole',
      check=checks.at_least(2),
    ),
  },
  'mesh': {
    'fsdp': Option(
      1, 'devices that share each parameter; the rest of the devices split the batch', check=checks.at_least(1)
    ),
  },
}

# Figures that the table of a comparison can show: of the last evaluation of each split, and of a whole run.
SPLIT_FIGURES = ('error', 'accuracy', 'top5_accuracy', 'loss', 'auroc', 'calibration_error')
RUN_FIGURES = (
  'seconds',
  'images_per_second',
  'parameters',
  'trainable_parameters',
  'process_memory',
  'device_memory',
)

# A set of runs that dnt.compare puts side by side.
COMPARE: dict[str, Any] = {
  'seeds': Option((0,), 'seeds of each variant, one run each', check=checks.seeds),
  'base': SCHEMA,
  'variants': Option(
    dict,
    "name: {'section.key': value, ...}, what differs from base; train.init_from may be 'variant:<name>', the run of "
    'another variant with the same seed; set in a config file',
  ),
  'forms': Option(dict, "name: {'section.key': value, ...}, changes of base that --form names; set in a config file"),
  'columns': Option(
    ('error', *RUN_FIGURES),
    f'figures of the table, in its order; of each evaluated split: {", ".join(SPLIT_FIGURES)}; of a run: '
    f'{", ".join(RUN_FIGURES)}; results.csv has all of them',
    choices=(*SPLIT_FIGURES, *RUN_FIGURES),
    check=checks.different,
  ),
}
# Random dense networks of equal layers whose signals and gradients dnt.probe measures, all combinations of the lists.
SIGNAL: dict[str, Any] = {
  'signal': {
    'depths': Option((24,), 'layers; each depth is measured for itself', check=checks.counts),
    'activations': Option(
      ('relu', 'tanh'), 'activations, named as in model.activation', choices=ACTIVATIONS, check=checks.different
    ),
    'blocks': Option(
      ('plain', 'residual', 'highway'),
      'blocks of mlp',
      choices=('plain', 'residual', 'highway'),
      check=checks.different,
    ),
    'norms': Option(
      ('none', 'batch_norm', 'layer_norm', 'rms_norm'),
      'normalizations of the pre-activations',
      choices=('none', 'batch_norm', 'layer_norm', 'rms_norm'),
      check=checks.different,
    ),
    'weight_variances': Option(
      (0.5, 1.0, 2.0, 3.0), 'sigma_w^2: a weight has sigma_w^2 / width (He: 2)', check=checks.deviations
    ),
    'bias_variances': Option((0.0, 0.1), 'sigma_b^2', check=checks.spreads),
    'gate_bias': Option(-2.0, 'bias of highway gates'),
    'width': Option(256, 'units a layer', check=checks.at_least(2)),
    'batch_size': Option(16, 'inputs that pass through each network together', check=checks.at_least(8)),
    'input_correlation': Option(0.5, 'correlation of any two inputs', check=checks.within(0, 1)),
    'seed': Option(0, 'first of the keys of inputs and weights', check=checks.at_least(0)),
    'seeds': Option(8, 'draws of each network', check=checks.at_least(1)),
    'singular_values': Option(2, 'largest singular values of the Jacobian to find; 0: none', check=checks.at_least(0)),
    'lanczos_iterations': Option(6, 'iterations that find them, to about a percent', check=checks.at_least(1)),
    'jacobian_seeds': Option(1, 'draws of each network that they are found for', check=checks.at_least(1)),
  },
}
# Kinds of config files, each told by a key that no other has.
KINDS: dict[str, dict[str, Any]] = {'train': SCHEMA, 'compare': COMPARE, 'signal': SIGNAL}


def kind(config: ml_collections.ConfigDict) -> str:
  """Which of `KINDS` a config is."""
  return next((name for name, key in (('compare', 'variants'), ('signal', 'signal')) if key in config), 'train')


def options(schema: Mapping[str, Any] = SCHEMA, prefix: str = '') -> Iterator[tuple[str, Option]]:
  """Every (`'section.key'`, option) of the schema, in its order."""
  for key, entry in schema.items():
    if isinstance(entry, Option):
      yield prefix + key, entry
    else:
      yield from options(entry, f'{prefix}{key}.')


def _build(schema: Mapping[str, Any]) -> ml_collections.ConfigDict:
  plain = schema is COMPARE  # its dicts hold keys with dots, which a ConfigDict refuses
  config = ml_collections.ConfigDict(convert_dict=not plain)
  for key, entry in schema.items():
    if not isinstance(entry, Option):
      config[key] = _build(entry)
    elif entry.type is dict:
      config[key] = {} if plain else ml_collections.ConfigDict()
    elif isinstance(entry.default, type):
      config[key] = config_dict.placeholder(entry.type)
    else:
      config[key] = copy.copy(entry.default)
  return config


def default(kind: str = 'train') -> ml_collections.ConfigDict:
  """A locked config of that kind with every option at its default."""
  return _build(KINDS[kind]).lock()


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks every key and value against the schema of its kind.

  Raises:
    errors.InputError: an unknown or missing key, an ill-typed value, or one out of range; names the key.
  """
  known = dict(options(KINDS[kind(config)]))
  given = keys.flatten(config, known)
  for key in given:
    if key not in known:
      raise errors.unknown('config key', key, known)
  for key, option in known.items():
    if option.type is dict:
      if key in given and not isinstance(given[key], dict | ml_collections.ConfigDict):
        raise errors.InputError(f'config.{key} must be a dict, not {type(given[key]).__name__} ({given[key]!r})')
      continue
    if key not in given:
      raise errors.InputError(f'config key {key!r} is missing; start from dnt.config.default()')
    _check(key, option, given[key])
  training = config.get('base', config)
  if 'loss' in training and training.loss.balance_classes and training.loss.class_weights:
    raise errors.InputError('config.loss.class_weights and balance_classes=True exclude each other; give one of them')


def _check(key: str, option: Option, value: Any) -> None:
  if value is None and isinstance(option.default, type):
    return
  numeric = option.type is float and isinstance(value, int) and not isinstance(value, bool)
  if not numeric and type(value) is not option.type:
    raise errors.InputError(f'config.{key} must be {option.type.__name__}, not {type(value).__name__} ({value!r})')
  if option.type is float and not math.isfinite(value):
    raise errors.InputError(f'config.{key}={value!r} must be finite')
  for each in value if option.type is tuple else (value,):
    if option.choices and each not in option.choices:
      raise errors.unknown(f'value of config.{key}', str(each), [str(choice) for choice in option.choices])
  problem = option.check(value)
  if problem:
    raise errors.InputError(f'config.{key}={value!r} {problem}')
