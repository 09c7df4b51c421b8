"""The config schemas: every option, its default, what it means and what is valid, once.

A config file holds `get_config()`: it takes `default()`, changes what its experiment changes and returns it. Keys are
locked and typed, so a typo fails where it is written. `validate` then checks every value against `SCHEMA`, before
anything is read or compiled.

An option whose default is a type (`depth=Option(int, ...)`) has no value of its own: in `model` it then takes the
default of the model's field of that name, elsewhere what its help says.

Durations are strings: '400' (steps), '5 epochs', '10%' (of the run), '0' (never).
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, cast, overload

import ml_collections
from ml_collections import config_dict

from dnt.config import checks, relations, typed
from dnt.config.relations import any_but

C = TypeVar('C', bound=ml_collections.ConfigDict)


class Option(NamedTuple):
  """Describes one config value.

  Attributes:
    default: its default, or its type if it has none.
    help: what it means.
    choices: the valid values (of a tuple: of each member); empty: all that pass `check`.
    check: returns what is wrong with a value, or None.
    only: the values of other options with which it has an effect, see `relations`; empty: it always has one.
    off: a value that asks for nothing, which may be given even if the option has no effect.
    words: words that it takes besides numbers, each with the number that older configs hold instead.
    role: what an option of a network decides, one of `ROLES`; '' outside of `model`.
  """

  default: Any
  help: str
  choices: tuple[Any, ...] = ()
  check: Callable[[Any], str | None] = lambda value: None
  only: relations.Only = {}
  off: Any = None
  words: Mapping[str, float] = {}
  role: str = ''

  @property
  def type(self) -> type:
    return self.default if isinstance(self.default, type) else type(self.default)


# What an option of `model` decides:
# - weights: which weights the network has.
# - function: what the weights were trained to compute, though they do not show it.
# - computation: what the network computes; other values may be tried on the same weights.
# - start: how the weights are drawn.
# - training: what differs in training only.
# - run: the classes of the data, and how the network runs.
ROLES = ('weights', 'function', 'computation', 'start', 'training', 'run')
AUTO = 'auto'

NORMS = ('batch_norm', 'layer_norm', 'group_norm', 'rms_norm', 'none')
ACTIVATIONS = ('relu', 'leaky_relu', 'sigmoid', 'tanh', 'gelu', 'silu', 'identity')
AUGMENTATIONS = ('none', 'pad_crop_flip', 'resized_crop_flip')
CLIPPINGS = ('none', 'global_norm', 'value', 'block_norm', 'adaptive')
INITIALIZERS = ('he', 'glorot', 'lecun', 'normal', 'orthogonal', 'delta_orthogonal')

# Relations that several options share.
# Parameters are drawn: without pretrained weights, and in the probe, which examines the start of training.
DRAWN = ({'train.init_from': ('',)}, {relations.PROGRAM: (relations.PROBE,)})
SWEPT = ({relations.PROGRAM: ('--mode=lr_find',)}, {'optim.learning_rate': (AUTO,)})
# Something below the head trains.
BELOW_HEAD = (
  {'finetune.trainable': any_but('head')},
  {'finetune.unfreeze': any_but(())},
  {'finetune.frozen_norm': ('affine_only',)},
)
# Entries before the first that trains stay as they are for the whole run, so that their features can be cached.
PREFIX = {'finetune.trainable': any_but('all'), 'finetune.unfreeze': ((),), 'finetune.frozen_norm': ('running',)}
UNMIXED = {'data.mixup': (0,), 'data.cutmix': (0,)}
CACHED = (
  {**PREFIX, **UNMIXED, 'finetune.cached_views': any_but(0, None)},
  {
    **PREFIX,
    **UNMIXED,
    'finetune.cached_views': (None,),
    'data.augment': ('none',),
    'data.policy': ('none',),
    'data.erasing': (0,),
  },
)

SCHEMA: dict[str, Any] = {
  'seed': Option(0, 'seed of parameters, order, augmentation, stochastic depth and dropout', check=checks.at_least(0)),
  'data': {
    'source': Option(
      'digits',
      'digits, synthetic, tfds:<name>, cifar_binary:<dir>, idx:<dir>, folder:<dir> or cars:<dir>',
    ),
    'train_split': Option('train', "split to train on, sliced as in TFDS: 'train', 'train[:98%]', 'train[5000:]'"),
    'dir': Option(
      '',
      'folder of the source, where <dir> is left out of it; tfds: of prepared sets, and empty: its own default',
      only={'data.source': any_but('digits', 'synthetic')},
      off='',
    ),
    'seed': Option(
      0,
      'seed of splits drawn here (digits, folders) and of synthetic images: all runs share them',
      check=checks.at_least(0),
      only={'data.source': ('digits', 'synthetic', 'folder', 'cars')},
    ),
    'val_fraction': Option(
      0.2,
      "fraction of a folder without splits that becomes 'val'",
      check=checks.within(0.01, 1),
      only={'data.source': ('folder', 'cars')},
    ),
    'crop_to_box': Option(
      False, 'keep of each image the box around the car alone', only={'data.source': ('cars',)}, off=False
    ),
    'image_size': Option(
      int, 'pixels a side; none: that of the pretrained weights, or as the source has them', check=checks.at_least(1)
    ),
    'placement': Option(
      'auto',
      'device: the whole split in device memory; stream: grain workers; auto: device up to 1 GiB',
      choices=('auto', 'device', 'stream'),
    ),
    'workers': Option(
      2,
      'worker processes that decode streamed data; 0: in the main process',
      check=checks.at_least(0),
      only={'data.placement': ('auto', 'stream')},
    ),
    'augment': Option(
      'none',
      'none; pad_crop_flip (small images); resized_crop_flip (large ones)',
      choices=AUGMENTATIONS,
    ),
    'crop_padding': Option(
      4,
      'pixels of zero padding on each side before the random crop',
      check=checks.at_least(0),
      only={'data.augment': ('pad_crop_flip',)},
    ),
    'flip': Option(True, 'mirror half of the augmented images left to right', only={'data.augment': AUGMENTATIONS[1:]}),
    'resized_crop_min_area': Option(
      0.08,
      'smallest fraction of the area resized_crop keeps',
      check=checks.fraction,
      only={'data.augment': ('resized_crop_flip',)},
    ),
    'eval_resize': Option(
      str,
      'how evaluation brings an image to image_size: center_crop (keeps the aspect ratio, cuts the borders off) or '
      'squash (keeps all of it); none: that of the pretrained weights, or center_crop with augment=resized_crop_flip, '
      'else squash',
      choices=('center_crop', 'squash'),
    ),
    'eval_crop': Option(
      float,
      'fraction of the side that the center crop keeps after the resize; none: that of the pretrained weights, or '
      '0.875',
      check=checks.fraction,
      only=(
        {'data.eval_resize': ('center_crop',)},
        {'data.eval_resize': (None,), 'data.augment': ('resized_crop_flip',)},
        {'data.eval_resize': (None,), 'train.init_from': any_but('')},
      ),
    ),
    'interpolation': Option(
      str,
      'filter of every resize; none: that of the pretrained weights, or bilinear',
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
    'rand_augment_ops': Option(
      2, 'operations an image (N)', check=checks.at_least(1), only={'data.policy': ('rand_augment',)}
    ),
    'rand_augment_magnitude': Option(
      9, 'their magnitude (M), 0 to 30', check=checks.between(0, 30), only={'data.policy': ('rand_augment',)}
    ),
    'mixup': Option(0.0, 'alpha of mixup, which blends each example with another; 0: off', check=checks.at_least(0)),
    'cutmix': Option(
      0.0,
      'alpha of CutMix, which pastes a box of another example; 0: off; with mixup too: either',
      check=checks.at_least(0),
    ),
    'erasing': Option(0.0, 'probability that a random box of an image is erased', check=checks.between(0, 1)),
    'synthetic_examples': Option(
      1024, 'examples a split of the synthetic source', check=checks.at_least(1), only={'data.source': ('synthetic',)}
    ),
    'synthetic_classes': Option(
      10, 'classes of the synthetic source', check=checks.at_least(2), only={'data.source': ('synthetic',)}
    ),
  },
  'model': {
    'name': Option(
      'resnet',
      "mlp, plain, resnet, highway, densenet; your own Flax module: 'mypkg.nets:Net'; pretrained: the network whose "
      'weights are at train.init_from',
      role='weights',
    ),
    'num_classes': Option(int, "classes of the head; none: the data's", check=checks.at_least(2), role='run'),
    'dtype': Option(
      'float32', 'compute dtype; parameters and statistics stay float32', choices=('float32', 'bfloat16'), role='run'
    ),
    'norm': Option('batch_norm', 'normalization of every block', choices=NORMS, role='weights'),
    'norm_epsilon': Option(
      1e-5, 'added to the variance', check=checks.above(0), only={'model.norm': NORMS[:-1]}, role='function'
    ),
    'norm_groups': Option(
      32,
      'groups of group_norm; they must divide the channels',
      check=checks.at_least(1),
      only={'model.norm': ('group_norm',)},
      role='computation',
    ),
    'norm_momentum': Option(
      0.9,
      'fraction of the old running statistics that batch_norm keeps',
      check=checks.within(0, 1),
      only={'model.norm': ('batch_norm',)},
      role='training',
    ),
    'weight_standardization': Option(
      False,
      'standardize each convolution kernel over its fan-in',
      only={'model.name': any_but('mlp')},
      role='computation',
    ),
    'activation': Option('relu', 'activation of every block', choices=ACTIVATIONS, role='computation'),
    'initializer': Option('he', 'initializer of every kernel', choices=INITIALIZERS, only=DRAWN, role='start'),
    'init_gain': Option(
      1.0, 'factor on the standard deviation of the initial kernels', check=checks.above(0), only=DRAWN, role='start'
    ),
    'depth': Option(int, 'layers, counted as in the papers', check=checks.at_least(1), role='weights'),
    'width': Option(
      int,
      'mlp: units a layer; resnet: widening factor; plain, highway: channels',
      check=checks.at_least(1),
      only={'model.name': ('mlp', 'plain', 'resnet', 'highway')},
      role='weights',
    ),
    'block': Option(
      str,
      'mlp: plain, residual, highway; resnet: basic, bottleneck, preact_basic, preact_bottleneck',
      choices=('plain', 'residual', 'highway', 'basic', 'bottleneck', 'preact_basic', 'preact_bottleneck'),
      only={'model.name': ('mlp', 'resnet')},
      role='weights',
    ),
    'stem': Option(
      str,
      'cifar (3x3 convolution) or imagenet (7x7 stride 2, max-pool)',
      choices=('cifar', 'imagenet'),
      only={'model.name': ('resnet', 'densenet')},
      role='weights',
    ),
    'shortcut': Option(
      str,
      'A: identity, zero-padded channels; B: 1x1 projection',
      choices=('A', 'B'),
      only={'model.name': ('resnet',)},
      role='weights',
    ),
    'stride_on': Option(
      str,
      "convolution of a bottleneck that strides: '3x3' or '1x1'",
      choices=('3x3', '1x1'),
      only={'model.name': ('resnet',), 'model.block': ('bottleneck', 'preact_bottleneck')},
      role='function',
    ),
    'zero_init_last_norm': Option(
      bool,
      "start the scale of each residual branch's last norm at zero",
      only={'model.name': ('resnet',), 'model.block': ('basic', 'bottleneck'), 'model.norm': NORMS[:-1]},
      off=False,
      role='start',
    ),
    'residual_scalar': Option(
      float,
      'learned factor on each residual branch, starting here (SkipInit, ReZero: 0)',
      only={'model.name': ('resnet',)},
      role='start',
    ),
    'stochastic_depth': Option(
      float,
      'probability of dropping the last block, growing from 0',
      check=checks.within(0, 1),
      only={'model.name': ('resnet',)},
      role='training',
    ),
    'gate_bias': Option(
      float,
      'initial bias of the highway gates (negative: carry)',
      only=({'model.name': ('highway',)}, {'model.name': ('mlp',), 'model.block': ('highway',)}),
      role='start',
    ),
    'growth_rate': Option(
      int,
      'channels each dense layer adds (k)',
      check=checks.at_least(1),
      only={'model.name': ('densenet',)},
      role='weights',
    ),
    'compression': Option(
      float,
      'fraction of channels a transition keeps (theta)',
      check=checks.fraction,
      only={'model.name': ('densenet',)},
      role='weights',
    ),
    'bottleneck': Option(
      bool,
      '1x1 convolution to 4k channels before each 3x3 of a dense layer (DenseNet-B)',
      only={'model.name': ('densenet',)},
      role='weights',
    ),
    'scan': Option(False, 'scan the equal blocks of a stage: compile time constant in depth', role='run'),
    'remat': Option(False, 'recompute the inside of each block in the backward pass to save memory', role='run'),
    'options': Option(dict, 'keyword arguments of your own module; set in a config file', role='weights'),
  },
  'loss': {
    'label_smoothing': Option(0.0, 'fraction of the target spread over all classes', check=checks.within(0, 1)),
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
      'peak learning rate; auto: the valley of a range test (lr_find) of what trains first, before the first step',
      check=checks.above(0),
      words={AUTO: 0},
    ),
    'momentum': Option(0.9, 'decay of the momentum', check=checks.within(0, 1), only={'optim.name': ('sgd', 'muon')}),
    'nesterov': Option(
      False, "Nesterov's momentum", only={'optim.name': ('sgd', 'muon'), 'optim.momentum': any_but(0)}
    ),
    'b1': Option(
      0.9,
      'decay of the first moment (muon: of its Adam part)',
      check=checks.within(0, 1),
      only={'optim.name': ('adamw', 'lamb', 'muon')},
    ),
    'b2': Option(
      0.999,
      'decay of the second moment (muon: of its Adam part)',
      check=checks.within(0, 1),
      only={'optim.name': ('adamw', 'lamb', 'muon')},
    ),
    'epsilon': Option(
      1e-8,
      'added to the denominator (muon: of its Adam part)',
      check=checks.above(0),
      only={'optim.name': ('adamw', 'lamb', 'muon')},
    ),
    'weight_decay': Option(1e-4, 'sgd: added to the gradient (L2); others: decoupled', check=checks.at_least(0)),
    'weight_decay_on': Option(
      'kernel$',
      'regular expression: parameter paths that decay',
      check=checks.pattern,
      only=({'optim.weight_decay': any_but(0)}, {'finetune.l2_sp': any_but(0)}),
    ),
  },
  'schedule': {
    'name': Option(
      'constant',
      'shape of the learning rate over the run',
      choices=('constant', 'piecewise', 'cosine', 'linear', 'one_cycle'),
    ),
    'warmup': Option('0', 'duration of the warm-up before the shape (any shape)', check=checks.duration),
    'warmup_shape': Option(
      'linear',
      'linear rise, or constant at warmup_start',
      choices=('linear', 'constant'),
      only={'schedule.warmup': any_but('0')},
    ),
    'warmup_start': Option(
      0.0,
      'learning rate at the start of the warm-up, fraction of the peak',
      check=checks.at_least(0),
      only={'schedule.warmup': any_but('0')},
    ),
    'boundaries': Option(
      (), 'durations from the start of the run', check=checks.durations, only={'schedule.name': ('piecewise',)}
    ),
    'factor': Option(
      0.1, 'factor on the learning rate at each boundary', check=checks.above(0), only={'schedule.name': ('piecewise',)}
    ),
    'final': Option(
      0.0,
      'learning rate at the end, fraction of the peak',
      check=checks.at_least(0),
      only={'schedule.name': ('cosine', 'linear', 'one_cycle')},
    ),
    'one_cycle_rise': Option(
      '30%', 'duration of the rise to the peak', check=checks.duration, only={'schedule.name': ('one_cycle',)}
    ),
    'one_cycle_start': Option(
      0.04,
      'learning rate at the start, fraction of the peak',
      check=checks.above(0),
      only=(
        {'schedule.name': ('one_cycle',), 'schedule.one_cycle_rise': any_but('0')},
        {'schedule.name': ('one_cycle',), 'schedule.warmup': any_but('0'), 'schedule.warmup_shape': ('linear',)},
      ),
    ),
  },
  'clip': {
    'name': Option(
      'none',
      'none; global_norm; value; block_norm (each depth entry by its own norm); adaptive (AGC)',
      choices=CLIPPINGS,
    ),
    'threshold': Option(
      1.0,
      'norm or value to clip to; adaptive: fraction of the parameter norm',
      check=checks.above(0),
      only={'clip.name': CLIPPINGS[1:]},
    ),
    'epsilon': Option(1e-3, 'smallest parameter norm', check=checks.above(0), only={'clip.name': ('adaptive',)}),
  },
  'finetune': {
    'trainable': Option(
      'all',
      "what trains: all; head; top:2 (the last two blocks and the head); or a pattern of entries: 'stage4/.*|head'",
      check=checks.pattern,
    ),
    'unfreeze': Option(
      (),
      "phases, each a time and what trains from then on: (('20%', 'top:2'), ('50%', 'all'))",
      check=checks.phases,
      only={'finetune.trainable': any_but('all')},
    ),
    'frozen_norm': Option(
      'running',
      'BatchNorm of frozen entries: running (nothing of it moves); batch (normalizes by the batch, statistics move); '
      'affine_only (scale and bias train)',
      choices=('running', 'batch', 'affine_only'),
      only={'finetune.trainable': any_but('all')},
    ),
    'layer_decay': Option(
      1.0, 'factor on the learning rate for each entry further from the head', check=checks.fraction, only=BELOW_HEAD
    ),
    'head_lr_mult': Option(1.0, 'factor on the learning rate of the head', check=checks.above(0)),
    'rates': Option(
      (),
      "factors on the learning rate of entries, by pattern of whole names: (('stage4/.*', 0.1),)",
      check=checks.rates,
    ),
    'cached_views': Option(
      int,
      'views of each image whose frozen features are computed once and kept on disk; 0: none; not set: 1 where '
      'nothing is augmented, else none',
      check=checks.at_least(0),
      only=PREFIX,
      off=0,
    ),
    'cache_dir': Option('', 'where frozen features are kept; empty: ~/.cache/dnt/features', only=CACHED),
    'l2_sp': Option(
      0.0,
      'decay towards the values it starts from, of all that decays but the head (L2-SP); 0: off',
      check=checks.at_least(0),
      only=tuple({'train.init_from': any_but(''), **each} for each in BELOW_HEAD),
      off=0.0,
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
    'steps_per_dispatch': Option(
      10,
      'most steps one call of the compiled program runs',
      check=checks.at_least(1),
      only=(
        {'data.placement': ('auto', 'device'), 'data.augment': AUGMENTATIONS[:2], 'data.policy': ('none',)},
        {**PREFIX, 'finetune.cached_views': any_but(0)},
      ),
    ),
    'log_every': Option('50', 'duration between training lines in metrics.jsonl', check=checks.duration),
    'patience': Option(
      0,
      'stop after so many evaluations without a better best_metric; 0: off',
      check=checks.at_least(0),
      only={'eval.every': any_but('0')},
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
    'start': Option(1e-7, 'first learning rate of the sweep', check=checks.above(0), only=SWEPT),
    'end': Option(10.0, 'last learning rate of the sweep', check=checks.above(0), only=SWEPT),
    'steps': Option(100, 'steps of the sweep, each at a higher rate', check=checks.at_least(20), only=SWEPT),
    'groups': Option(
      (),
      "sweep entries alone, all others standing still; patterns: ('head', 'stage3/.*')",
      check=checks.patterns,
      only={relations.PROGRAM: ('--mode=lr_find',)},
    ),
  },
  'noise_scale': {
    'batches': Option(
      50,
      'batches of train.batch_size to average over',
      check=checks.at_least(2),
      only={relations.PROGRAM: ('--mode=noise_scale',)},
    ),
    'micro_batches': Option(
      8,
      'parts of each batch, to compare with the whole',
      check=checks.at_least(2),
      only={relations.PROGRAM: ('--mode=noise_scale',)},
    ),
  },
  'mesh': {
    'fsdp': Option(
      1, 'devices that share each parameter; the rest of the devices split the batch', check=checks.at_least(1)
    ),
  },
}

# Figures that the table of a comparison can show: of the last evaluation of each split, and of a whole run.
SPLIT_METRICS = ('error', 'accuracy', 'top5_accuracy', 'loss', 'auroc', 'calibration_error')
RUN_METRICS = (
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
    ('error', *RUN_METRICS),
    f'figures of the table, in its order, of each evaluated split or (from {RUN_METRICS[0]} on) of a run; results.csv '
    'has all of them',
    choices=(*SPLIT_METRICS, *RUN_METRICS),
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
    'gate_bias': Option(-2.0, 'bias of highway gates', only={'signal.blocks': ('highway',)}),
    'width': Option(256, 'units a layer', check=checks.at_least(2)),
    'batch_size': Option(16, 'inputs that pass through each network together', check=checks.at_least(8)),
    'input_correlation': Option(0.5, 'correlation of any two inputs', check=checks.within(0, 1)),
    'seed': Option(0, 'first of the keys of inputs and weights', check=checks.at_least(0)),
    'seeds': Option(8, 'draws of each network', check=checks.at_least(1)),
    'singular_values': Option(2, 'largest singular values of the Jacobian to find; 0: none', check=checks.at_least(0)),
    'lanczos_iterations': Option(
      6,
      'iterations that find them, to about a percent',
      check=checks.at_least(1),
      only={'signal.singular_values': any_but(0)},
    ),
    'jacobian_seeds': Option(
      1,
      'draws of each network that they are found for',
      check=checks.at_least(1),
      only={'signal.singular_values': any_but(0)},
    ),
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


def model_options(*roles: str) -> tuple[str, ...]:
  """Returns the keys of `model` whose options have one of the roles, see `ROLES`."""
  return tuple(key for key, option in SCHEMA['model'].items() if option.role in roles)


def copy_unlocked(config: C) -> C:
  """Returns a copy of a config or section that is not locked."""
  return cast(C, ml_collections.ConfigDict(config.to_dict()))


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
    elif entry.words:  # a number or a word
      config[key] = config_dict.FieldReference(entry.default, field_type=object)
    else:
      config[key] = copy.copy(entry.default)
  return config


@overload
def default(kind: Literal['train'] = 'train') -> typed.Config: ...
@overload
def default(kind: Literal['compare']) -> typed.Comparison: ...
@overload
def default(kind: Literal['signal']) -> typed.SignalConfig: ...
def default(kind: str = 'train') -> Any:
  """A locked config of that kind with every option at its default."""
  return _build(KINDS[kind]).lock()
