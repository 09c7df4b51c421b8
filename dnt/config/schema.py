"""Defines the config schemas: the default, meaning and valid values of every option, in one place.

A config file defines `get_config()`, which takes `default()`, changes the options of its experiment and returns the
config. Keys are locked and typed, so a typo raises an error in the line that holds it (`Section`). `validate` then
checks every value against `SCHEMA`, before anything is read or compiled.

An option whose default is a type (`depth=Option(int, ...)`) is not set by default. In `model` it then takes the default
of the model's field of the same name; elsewhere its help names the value that is used.

Durations are strings: '400' (steps), '5 epochs', '10%' (of the run), '0' (never).
"""

import copy
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, overload

import ml_collections
from ml_collections import config_dict

from dnt import errors
from dnt.config import checks, keys, measures, relations, typed
from dnt.config.relations import any_but

C = TypeVar('C', bound=ml_collections.ConfigDict)


class Option(NamedTuple):
  """Describes one config value.

  Attributes:
    default: the default value, or the type if there is no default.
    help: explains the option in one sentence.
    choices: the valid values (for a tuple: the valid members); empty: every value that passes `check`.
    check: returns the problem of a value, or None.
    only: values of other options with which this one has an effect, see `relations`; empty: it always has one.
    off: a value that turns the option off; a user may give it even where the option has no effect.
    words: words that are valid besides numbers, each with the number that older configs hold in its place.
    role: for options of `model` and `data`, what the option decides, one of `ROLES`; else ''.
    on_resume: for options of a run, what another value means for a run that continues, one of `ON_RESUME`; else ''.
    per_process: whether the value may differ between the processes of a run: a path, or what suits a machine.
  """

  default: Any
  help: str
  choices: tuple[Any, ...] = ()
  check: Callable[[Any], str | None] = lambda value: None
  only: relations.Only = {}
  off: Any = None
  words: Mapping[str, float] = {}
  role: str = ''
  on_resume: str = ''
  per_process: bool = False

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
# What an option of `data` decides:
# - images: which images a split has.
# - preprocessing: what an evaluation makes of an image.
# - augmentation: what training makes of it.
# - loading: where images are, and how they are loaded.
ROLES = {
  'model': ('weights', 'function', 'computation', 'start', 'training', 'run'),
  'data': ('images', 'preprocessing', 'augmentation', 'loading'),
}

# What another value of an option means for a run that continues from its checkpoint:
# - refuse: the steps from then on would belong to another experiment; the run continues only with `--allow=<key>`.
# - note: a person may change it on purpose; the change is logged, and recorded with its step.
# - free: it changes only how or where the run computes.
ON_RESUME = REFUSE, NOTE, FREE = 'refuse', 'note', 'free'
AUTO = 'auto'

NORMS = ('batch_norm', 'layer_norm', 'group_norm', 'rms_norm', 'none')
ACTIVATIONS = ('relu', 'leaky_relu', 'sigmoid', 'tanh', 'gelu', 'silu', 'identity')
AUGMENTATIONS = ('none', 'pad_crop_flip', 'resized_crop_flip')
CLIPPINGS = ('none', 'global_norm', 'value', 'block_norm', 'adaptive')
NORM_SYNCS = ('global', 'device')
STEMS = ('cifar', 'imagenet')
SHORTCUTS = ('A', 'B')
STRIDES_ON = ('3x3', '1x1')
INITIALIZERS = ('he', 'glorot', 'lecun', 'normal', 'orthogonal', 'delta_orthogonal')

# Relations that several options share.
# Parameters are drawn: without pretrained weights, in place of some of them, and in the probe, which examines the start
# of training.
DRAWN = (
  {'train.init_from': ('',)},
  {'finetune.reinit': any_but(())},
  {relations.PROGRAM: (relations.PROBE,)},
)
# `val` is drawn from `train`, or may be.
HELD_OUT = ({'data.hold_out': (True,)}, {'data.hold_out': (None,), 'eval.splits': ('val',)})
# The seed decides which images these are, but for TFDS, whose labels are not known before the images are read.
DRAWN_BY_SEED = tuple({**each, 'data.source': any_but('tfds')} for each in HELD_OUT)
SWEPT = ({relations.PROGRAM: ('--mode=lr_find',)}, {'optim.learning_rate': (AUTO,)})
# The probe sweeps these rates too, in steps of its own, where a suggested override does not learn.
RATES_SWEPT = (*SWEPT, {relations.PROGRAM: (relations.TRYING,)})
# Whole entries below the head train; or at least their norms do.
ENTRIES_BELOW_HEAD = ({'finetune.trainable': any_but('head')}, {'finetune.unfreeze': any_but(())})
BELOW_HEAD = (*ENTRIES_BELOW_HEAD, {'finetune.frozen_norm': ('affine_only',)})
# Entries before the first trainable one stay fixed for the whole run, so that their features can be cached.
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
  'seed': Option(
    0,
    'seed of parameters, data order, augmentation, stochastic depth and dropout',
    check=checks.seed,
    on_resume=REFUSE,
  ),
  'data': {
    'source': Option(
      'digits',
      'digits, synthetic, tfds:<name>, cifar_binary:<dir>, idx:<dir>, folder:<dir> or cars:<dir>; folder:<dir>/* takes '
      'every folder in <dir> as a class',
      role='images',
      on_resume=REFUSE,
      per_process=True,  # but for what stands before the colon, and the name of a set of TFDS
    ),
    'train_split': Option(
      'train',
      "split to train on, sliced as in TFDS: 'train', 'train[:98%]', 'train[5000:]'",
      role='images',
      on_resume=REFUSE,
    ),
    'images_per_class': Option(
      int,
      'images of each class to train on (shots), drawn from train_split with data.seed once val is held out: the fewer '
      'are among the more; not set: all',
      check=checks.at_least(1),
      role='images',
      on_resume=REFUSE,
    ),
    'dir': Option(
      '',
      'folder of the source, if data.source names none; tfds: folder of prepared sets, empty: the default of TFDS',
      only={'data.source': any_but('digits', 'synthetic')},
      off='',
      role='loading',
      on_resume=FREE,
      per_process=True,
    ),
    'seed': Option(
      0,
      'seed of random splits (digits, folders), images_per_class and synthetic images; apart from seed, so that all '
      'runs share them',
      check=checks.between(0, checks.LARGEST_DATA_SEED),
      only=(
        {'data.source': ('digits', 'synthetic', 'folder', 'cars')},
        {'data.images_per_class': any_but(None)},
        *DRAWN_BY_SEED,
      ),
      role='images',
      on_resume=REFUSE,
    ),
    'val_fraction': Option(
      0.2,
      "fraction of the training images that becomes 'val' if the data has no such split, or with data.hold_out=True",
      check=checks.within(0.01, 1),
      only=({'data.source': ('folder', 'cars')}, *HELD_OUT),
      role='images',
      on_resume=REFUSE,
    ),
    'hold_out': Option(
      bool,
      "draw 'val' from the split 'train', which is then without these images, in place of a 'val' that the data has; "
      "not set: if eval.splits names 'val' and the data has none",
      role='images',
      on_resume=REFUSE,
    ),
    'crop_to_box': Option(
      False,
      'crop each image to the box around the car',
      only={'data.source': ('cars',)},
      off=False,
      role='images',
      on_resume=REFUSE,
    ),
    'image_size': Option(
      int,
      'pixels per side; not set: taken from the pretrained weights, or the size in the source',
      check=checks.at_least(1),
      role='images',
      on_resume=REFUSE,
    ),
    'image_bits': Option(
      int,
      'bits that the values of 16-bit images use, 8 to 16, of which the network gets the upper 8; not set: 16, or what '
      'the sBIT chunks of the training images say if no value is larger',
      check=checks.between(8, 16),
      only={'data.source': ('folder', 'cars')},
      role='preprocessing',
      on_resume=REFUSE,
    ),
    'exif_rotation': Option(
      False,
      'turn and flip images as their EXIF orientation says, in training and everywhere else',
      only={'data.source': ('folder', 'cars', 'tfds')},
      off=False,
      role='preprocessing',
      on_resume=REFUSE,
    ),
    'placement': Option(
      'auto',
      'device: hold the whole split in device memory; stream: load it with grain workers; auto: device up to 1 GiB',
      choices=('auto', 'device', 'stream'),
      role='loading',
      on_resume=FREE,
    ),
    'workers': Option(
      2,
      'worker processes that decode streamed data; 0: in the main process',
      check=checks.between(0, 256),
      only={'data.placement': ('auto', 'stream')},
      off=0,
      role='loading',
      on_resume=FREE,
      per_process=True,
    ),
    'augment': Option(
      'none',
      'random crop and flip: none; pad_crop_flip (for small images); resized_crop_flip (for large images); none and '
      'pad_crop_flip squash images of another size than image_size',
      choices=AUGMENTATIONS,
      role='augmentation',
      on_resume=REFUSE,
    ),
    'crop_padding': Option(
      4,
      'pixels of zero padding on each side before the random crop',
      check=checks.at_least(0),
      only={'data.augment': ('pad_crop_flip',)},
      off=0,
      role='augmentation',
      on_resume=REFUSE,
    ),
    'flip': Option(
      True,
      'flip augmented images left to right with probability 0.5',
      only={'data.augment': AUGMENTATIONS[1:]},
      off=False,
      role='augmentation',
      on_resume=REFUSE,
    ),
    'resized_crop_min_area': Option(
      0.08,
      'smallest fraction of the area that the random resized crop keeps',
      check=checks.fraction,
      only={'data.augment': ('resized_crop_flip',)},
      role='augmentation',
      on_resume=REFUSE,
    ),
    'eval_resize': Option(
      str,
      'how evaluation resizes an image to image_size: center_crop (keeps the aspect ratio, crops borders) or squash '
      '(keeps the whole image); not set: taken from the pretrained weights, or center_crop with '
      'augment=resized_crop_flip, else squash',
      choices=('center_crop', 'squash'),
      role='preprocessing',
      on_resume=NOTE,
    ),
    'eval_crop': Option(
      float,
      'fraction of the side that the center crop keeps after the resize; not set: taken from the pretrained weights, '
      'or 0.875',
      check=checks.fraction,
      only=(
        {'data.eval_resize': ('center_crop',)},
        {'data.eval_resize': (None,), 'data.augment': ('resized_crop_flip',)},
        {'data.eval_resize': (None,), 'train.init_from': any_but('')},
      ),
      off=1.0,
      role='preprocessing',
      on_resume=NOTE,
    ),
    'interpolation': Option(
      str,
      'filter of every resize; not set: taken from the pretrained weights, or bilinear',
      choices=('bilinear', 'bicubic'),
      role='preprocessing',
      on_resume=REFUSE,
    ),
    'mean': Option(
      (),
      'mean of each channel, in [0, 1]; empty: taken from the pretrained weights, or measured on the training images '
      '(on 512 of them if they are streamed); one value makes images gray, three make them RGB',
      check=checks.means,
      role='preprocessing',
      on_resume=REFUSE,
    ),
    'std': Option(
      (),
      'standard deviation of each channel, in [0, 1]; empty: taken from the pretrained weights, or measured like '
      'the mean',
      check=checks.deviations,
      role='preprocessing',
      on_resume=REFUSE,
    ),
    'policy': Option(
      'none',
      'augmentation policy: none, rand_augment or trivial_augment; it runs on the host, so the images are streamed',
      choices=('none', 'rand_augment', 'trivial_augment'),
      role='augmentation',
      on_resume=REFUSE,
    ),
    'rand_augment_ops': Option(
      2,
      'operations per image (N)',
      check=checks.between(1, 100),
      only={'data.policy': ('rand_augment',)},
      role='augmentation',
      on_resume=REFUSE,
    ),
    'rand_augment_magnitude': Option(
      9,
      "magnitude of the operations, 0 to 30 as in torchvision; 30 is the paper's and timm's M=10, so that M=9 is 27",
      check=checks.between(0, 30),
      only={'data.policy': ('rand_augment',)},
      role='augmentation',
      on_resume=REFUSE,
    ),
    'mixup': Option(
      0.0,
      'alpha of mixup, which blends each example with another; 0: off',
      check=checks.at_least(0),
      role='augmentation',
      on_resume=REFUSE,
    ),
    'cutmix': Option(
      0.0,
      'alpha of CutMix, which pastes a box from another example; 0: off; with mixup on too, each batch gets one',
      check=checks.at_least(0),
      role='augmentation',
      on_resume=REFUSE,
    ),
    'erasing': Option(
      0.0,
      'probability of erasing a random box of an image',
      check=checks.between(0, 1),
      role='augmentation',
      on_resume=REFUSE,
    ),
    'synthetic_examples': Option(
      1024,
      'examples in each split of the synthetic source',
      check=checks.at_least(1),
      only={'data.source': ('synthetic',)},
      role='images',
      on_resume=REFUSE,
    ),
    'synthetic_classes': Option(
      10,
      'number of classes of the synthetic source',
      check=checks.between(2, 10_000),
      only={'data.source': ('synthetic',)},
      role='images',
      on_resume=REFUSE,
    ),
  },
  'model': {
    'name': Option(
      'resnet',
      "mlp, plain, resnet, highway, densenet; 'mypkg.nets:Net': your own Flax module; pretrained: the network of the "
      'weights at train.init_from',
      role='weights',
      on_resume=REFUSE,
    ),
    'num_classes': Option(
      int, 'number of classes; not set: taken from the data', check=checks.at_least(2), role='run', on_resume=REFUSE
    ),
    'dtype': Option(
      'float32',
      'dtype of the computation; parameters and statistics stay float32',
      choices=('float32', 'bfloat16'),
      role='run',
      on_resume=REFUSE,
    ),
    'norm': Option('batch_norm', 'normalization of every block', choices=NORMS, role='weights', on_resume=REFUSE),
    'norm_epsilon': Option(
      1e-5,
      'epsilon added to the variance',
      check=checks.above(0),
      only={'model.norm': NORMS[:-1]},
      role='function',
      on_resume=REFUSE,
    ),
    'norm_groups': Option(
      32,
      'number of groups of group_norm; it must divide the number of channels',
      check=checks.at_least(1),
      only={'model.norm': ('group_norm',)},
      role='computation',
      on_resume=REFUSE,
    ),
    'norm_momentum': Option(
      0.9,
      'fraction of the running statistics that batch_norm keeps at each step, or micro-batch of train.accumulate',
      check=checks.within(0, 1),
      only={'model.norm': ('batch_norm',)},
      role='training',
      on_resume=REFUSE,
    ),
    'norm_sync': Option(
      'global',
      "what batch_norm takes its statistics over in training: global (the whole batch); device (each device's own "
      'examples, as PyTorch does by default: the run then depends on the number of devices)',
      choices=NORM_SYNCS,
      only={'model.norm': ('batch_norm',)},
      off='global',
      role='training',
      on_resume=REFUSE,
    ),
    'weight_standardization': Option(
      False,
      'standardize each convolution kernel over its fan-in, except those of highway gates, which no norm follows',
      only={'model.name': any_but('mlp'), 'model.norm': NORMS[:-1]},
      off=False,
      role='computation',
      on_resume=REFUSE,
    ),
    'activation': Option(
      'relu', 'activation of every block', choices=ACTIVATIONS, role='computation', on_resume=REFUSE
    ),
    'initializer': Option(
      'he', 'initializer of every kernel', choices=INITIALIZERS, only=DRAWN, role='start', on_resume=REFUSE
    ),
    'init_gain': Option(
      1.0,
      'factor on the standard deviation of the initial kernels',
      check=checks.above(0),
      only=DRAWN,
      off=1.0,
      role='start',
      on_resume=REFUSE,
    ),
    'depth': Option(
      int, 'number of layers, counted as in the papers', check=checks.at_least(1), role='weights', on_resume=REFUSE
    ),
    'width': Option(
      int,
      'mlp: units per layer; resnet: widening factor; plain, highway: channels of the first stage',
      check=checks.at_least(1),
      only={'model.name': ('mlp', 'plain', 'resnet', 'highway')},
      role='weights',
      on_resume=REFUSE,
    ),
    'block': Option(
      str,
      'mlp: plain, residual, highway; resnet: basic, bottleneck, preact_basic, preact_bottleneck',
      choices=('plain', 'residual', 'highway', 'basic', 'bottleneck', 'preact_basic', 'preact_bottleneck'),
      only={'model.name': ('mlp', 'resnet')},
      role='weights',
      on_resume=REFUSE,
    ),
    'stem': Option(
      str,
      'cifar (3x3 convolution) or imagenet (7x7 stride 2, max-pool)',
      choices=STEMS,
      only={'model.name': ('resnet', 'densenet')},
      role='weights',
      on_resume=REFUSE,
    ),
    'shortcut': Option(
      str,
      'A: identity, zero-padded channels; B: 1x1 projection',
      choices=SHORTCUTS,
      only={'model.name': ('resnet',)},
      role='weights',
      on_resume=REFUSE,
    ),
    'stride_on': Option(
      str,
      "which convolution of a bottleneck has the stride: '3x3' or '1x1'",
      choices=STRIDES_ON,
      only={'model.name': ('resnet',), 'model.block': ('bottleneck', 'preact_bottleneck')},
      role='function',
      on_resume=REFUSE,
    ),
    'zero_init_last_norm': Option(
      bool,
      'initialize the scale of the last norm of each residual branch to zero',
      only=tuple(
        {**each, 'model.name': ('resnet',), 'model.block': ('basic', 'bottleneck'), 'model.norm': NORMS[:-1]}
        for each in DRAWN
      ),
      off=False,
      role='start',
      on_resume=REFUSE,
    ),
    'residual_scalar': Option(
      float,
      'initial value of a learned factor on each residual branch (SkipInit, ReZero: 0); not set: no factor',
      only={'model.name': ('resnet',)},  # not DRAWN: whatever its value, it gives the network these factors
      role='start',
      on_resume=REFUSE,
    ),
    'stochastic_depth': Option(
      float,
      'probability of dropping the last block; it grows linearly with depth',
      check=checks.within(0, 1),
      only=tuple({'model.name': ('resnet',), **each} for each in ENTRIES_BELOW_HEAD),
      off=0.0,
      role='training',
      on_resume=REFUSE,
    ),
    'gate_bias': Option(
      float,
      'initial bias of the highway gates; negative: layers pass their input through at first',
      only=tuple(
        {**each, **gated}
        for each in DRAWN
        for gated in ({'model.name': ('highway',)}, {'model.name': ('mlp',), 'model.block': ('highway',)})
      ),
      role='start',
      on_resume=REFUSE,
    ),
    'growth_rate': Option(
      int,
      'channels that each dense layer adds (k)',
      check=checks.at_least(1),
      only={'model.name': ('densenet',)},
      role='weights',
      on_resume=REFUSE,
    ),
    'compression': Option(
      float,
      'fraction of the channels that a transition keeps (theta)',
      check=checks.fraction,
      only={'model.name': ('densenet',)},
      off=1.0,
      role='weights',
      on_resume=REFUSE,
    ),
    'bottleneck': Option(
      bool,
      'put a 1x1 convolution to 4k channels before the 3x3 convolution of each dense layer (DenseNet-B)',
      only={'model.name': ('densenet',)},
      role='weights',
      on_resume=REFUSE,
    ),
    'scan': Option(
      False,
      'scan the equal blocks of a stage, so that compile time does not grow with depth',
      role='run',
      on_resume=FREE,
    ),
    'remat': Option(
      False, 'recompute activations inside each block in the backward pass to save memory', role='run', on_resume=FREE
    ),
    'options': Option(
      dict, 'keyword arguments of your own module; set in a config file', role='weights', on_resume=REFUSE
    ),
    'folder': Option(
      str,
      'folder of your own module; not set: that of the config file, or where Python finds it; config.json records it',
      only={'model.name': any_but('mlp', 'plain', 'resnet', 'highway', 'densenet', 'pretrained')},
      role='weights',
      on_resume=FREE,
      per_process=True,
    ),
  },
  'loss': {
    'label_smoothing': Option(
      0.0,
      'fraction of the target probability that is spread over all classes',
      check=checks.within(0, 1),
      on_resume=REFUSE,
    ),
    'class_weights': Option(
      (), 'loss weight of each class, in class order; empty: equal weights', check=checks.weights, on_resume=REFUSE
    ),
    'balance_classes': Option(
      False,
      'weight each class by the inverse of its number of examples in train_split; config.json records class_weights',
      on_resume=REFUSE,
    ),
  },
  'optim': {
    'name': Option('sgd', 'update rule', choices=('sgd', 'adamw', 'lamb', 'muon'), on_resume=REFUSE),
    'learning_rate': Option(
      0.1,
      'peak learning rate; auto: found before the first step by a range test (lr_find) of the first phase',
      check=checks.above(0),
      words={AUTO: 0},
      on_resume=NOTE,
    ),
    'momentum': Option(
      float,
      'decay of the momentum; not set: 0.95 with muon, else 0.9',
      check=checks.within(0, 1),
      only={'optim.name': ('sgd', 'muon')},
      on_resume=REFUSE,
    ),
    'nesterov': Option(
      bool,
      "Nesterov's momentum; not set: True with muon, else False",
      only={'optim.name': ('sgd', 'muon'), 'optim.momentum': any_but(0)},
      off=False,
      on_resume=REFUSE,
    ),
    'b1': Option(
      0.9,
      'decay of the first moment (muon: of its Adam part)',
      check=checks.within(0, 1),
      only={'optim.name': ('adamw', 'lamb', 'muon')},
      on_resume=REFUSE,
    ),
    'b2': Option(
      0.999,
      'decay of the second moment (muon: of its Adam part)',
      check=checks.within(0, 1),
      only={'optim.name': ('adamw', 'lamb', 'muon')},
      on_resume=REFUSE,
    ),
    'epsilon': Option(
      float,
      'added to the denominator (muon: of its Adam part); not set: 1e-6 with lamb, else 1e-8',
      check=checks.above(0),
      only={'optim.name': ('adamw', 'lamb', 'muon')},
      on_resume=REFUSE,
    ),
    'weight_decay': Option(
      1e-4,
      'weight decay; sgd: L2, added to the gradient; others: decoupled',
      check=checks.at_least(0),
      on_resume=REFUSE,
    ),
    'weight_decay_on': Option(
      'kernel$',
      'regular expression for the paths of the parameters that decay; lamb: and have a trust ratio',
      check=checks.pattern,
      only=({'optim.weight_decay': any_but(0)}, {'finetune.l2_sp': any_but(0)}, {'optim.name': ('lamb',)}),
      on_resume=REFUSE,
    ),
  },
  'schedule': {
    'name': Option(
      'constant',
      'shape of the learning rate over the run',
      choices=('constant', 'piecewise', 'cosine', 'linear', 'one_cycle'),
      on_resume=NOTE,
    ),
    'warmup': Option(
      '0', 'duration of the warm-up, which comes before any schedule', check=checks.duration, on_resume=NOTE
    ),
    'warmup_shape': Option(
      'linear',
      'linear: the rate rises linearly to the peak; constant: it stays at warmup_start',
      choices=('linear', 'constant'),
      only={'schedule.warmup': any_but('0')},
      on_resume=NOTE,
    ),
    'warmup_start': Option(
      0.0,
      'learning rate at the start of the warm-up, as a fraction of the peak',
      check=checks.at_least(0),
      only={'schedule.warmup': any_but('0')},
      on_resume=NOTE,
    ),
    'boundaries': Option(
      (),
      'durations from the start of the run after which the rate is multiplied by factor',
      check=checks.durations,
      only={'schedule.name': ('piecewise',)},
      off=(),
      on_resume=NOTE,
    ),
    'factor': Option(
      0.1,
      'factor on the learning rate at each boundary',
      check=checks.above(0),
      only={'schedule.name': ('piecewise',)},
      off=1.0,
      on_resume=NOTE,
    ),
    'final': Option(
      0.0,
      'learning rate at the end of the run, as a fraction of the peak',
      check=checks.at_least(0),
      only={'schedule.name': ('cosine', 'linear', 'one_cycle')},
      on_resume=NOTE,
    ),
    'one_cycle_rise': Option(
      '30%',
      'duration of the rise to the peak',
      check=checks.duration,
      only={'schedule.name': ('one_cycle',)},
      on_resume=NOTE,
    ),
    'one_cycle_start': Option(
      0.04,
      'learning rate at the start of the rise, as a fraction of the peak',
      check=checks.above(0),
      only={'schedule.name': ('one_cycle',), 'schedule.one_cycle_rise': any_but('0')},
      on_resume=NOTE,
    ),
  },
  'clip': {
    'name': Option(
      'none',
      'gradient clipping: none; global_norm; value; block_norm (clips each entry by its own norm); adaptive (AGC)',
      choices=CLIPPINGS,
      on_resume=NOTE,
    ),
    'threshold': Option(
      float,
      'largest norm or value of the gradient; adaptive: as a fraction of the parameter norm (Brock et al. 2021: 0.01 '
      'to 0.16); not set: 0.01 with adaptive, else 1.0',
      check=checks.above(0),
      only={'clip.name': CLIPPINGS[1:]},
      on_resume=NOTE,
    ),
    'epsilon': Option(
      1e-3,
      'lower bound on the parameter norm',
      check=checks.above(0),
      only={'clip.name': ('adaptive',)},
      on_resume=NOTE,
    ),
  },
  'finetune': {
    'trainable': Option(
      'all',
      "entries that train: all; head; top:2 (last two blocks and head); or a pattern of names: 'stage4/.*|head'",
      check=checks.pattern,
      on_resume=REFUSE,
    ),
    'unfreeze': Option(
      (),
      "later phases: pairs of a time and the entries that train from then on: (('20%', 'top:2'), ('50%', 'all'))",
      check=checks.phases,
      only={'finetune.trainable': any_but('all')},
      off=(),
      on_resume=REFUSE,
    ),
    'frozen_norm': Option(
      'running',
      'BatchNorm of frozen entries: running (statistics, scale and bias stay fixed); batch (normalizes by the batch '
      'and updates the statistics); affine_only (scale and bias train)',
      choices=('running', 'batch', 'affine_only'),
      only=(
        {'finetune.trainable': any_but('all'), 'model.norm': ('batch_norm',)},
        {'finetune.trainable': any_but('all'), 'model.norm': NORMS[:-1], 'finetune.frozen_norm': ('affine_only',)},
      ),
      off='running',
      on_resume=REFUSE,
    ),
    'layer_decay': Option(
      1.0,
      'factor on the learning rate per entry with parameters, counted from the head down',
      check=checks.fraction,
      only=BELOW_HEAD,
      off=1.0,
      on_resume=NOTE,
    ),
    'head_lr_mult': Option(1.0, 'factor on the learning rate of the head', check=checks.above(0), on_resume=NOTE),
    'rates': Option(
      (),
      "factors on the learning rate, by patterns that match whole names of entries: (('stage4/.*', 0.1),)",
      check=checks.rates,
      on_resume=NOTE,
    ),
    'reinit': Option(
      (),
      'what is drawn anew, in place of the weights at train.init_from: patterns that match whole names of entries, '
      "modules or parameters: ('stage4/.*', '.*/residual_scalar')",
      check=checks.patterns,
      only={'train.init_from': any_but('')},
      off=(),
      on_resume=NOTE,
    ),
    'cached_views': Option(
      int,
      'views per image whose frozen features are computed once and kept on disk; 0: none; not set: 1 without '
      'augmentation, else none',
      check=checks.at_least(0),
      only=PREFIX,
      off=0,
      on_resume=REFUSE,
    ),
    'cache_dir': Option(
      '',
      'folder of the cached features; empty: ~/.cache/dnt/features',
      only=CACHED,
      off='',
      on_resume=FREE,
      per_process=True,
    ),
    'l2_sp': Option(
      0.0,
      'decay towards the initial values (L2-SP), for all parameters that decay except the head; 0: off',
      check=checks.at_least(0),
      only=tuple({'train.init_from': any_but(''), **each} for each in BELOW_HEAD),
      off=0.0,
      on_resume=REFUSE,
    ),
  },
  'ema': {
    'decay': Option(
      0.0,
      'decay of the moving average of parameters and BatchNorm statistics, which is evaluated too; 0: off',
      check=checks.within(0, 1),
      on_resume=REFUSE,
    ),
  },
  'train': {
    'batch_size': Option(
      128, 'examples per step, over all devices and processes', check=checks.at_least(1), on_resume=REFUSE
    ),
    'steps': Option(
      int, 'optimizer steps of the run; if set, it overrides epochs', check=checks.at_least(1), on_resume=NOTE
    ),
    'epochs': Option(
      10.0, 'passes over the training split', check=checks.above(0), only={'train.steps': (None,)}, on_resume=NOTE
    ),
    'accumulate': Option(
      1, 'micro-batches per step, whose gradients are averaged', check=checks.at_least(1), on_resume=REFUSE
    ),
    'steps_per_dispatch': Option(
      10,
      'largest number of steps that one call of the compiled program runs',
      check=checks.at_least(1),
      only=(
        {'data.placement': ('auto', 'device'), 'data.augment': AUGMENTATIONS[:2], 'data.policy': ('none',)},
        {**PREFIX, 'finetune.cached_views': any_but(0)},
      ),
      on_resume=FREE,
    ),
    'log_every': Option(
      '50', 'duration between training records in metrics.jsonl', check=checks.duration, on_resume=NOTE
    ),
    'patience': Option(
      0,
      'stop after this many evaluations without a better checkpoint.best_metric; 0: off',
      check=checks.at_least(0),
      only={'eval.every': any_but('0')},
      off=0,
      on_resume=NOTE,
    ),
    'init_from': Option(
      '',
      'pretrained weights to start from: a workdir, <file>.safetensors, .pth, .h5 or .keras, tfjs:<dir> or '
      'hf:<owner>/<name>[@<revision>]; a head of other classes starts at zero',
      on_resume=NOTE,
      per_process=True,  # but for whether it is set
    ),
  },
  'eval': {
    'splits': Option(
      ('val',),
      "splits to evaluate during training, sliced like train_split; 'val' is the validation split of the data, or is "
      "held out (data.hold_out); a labelled split 'test' that is not among them is evaluated when the run ends",
      check=checks.texts,
      on_resume=NOTE,
    ),
    'every': Option(
      '1 epochs', "duration between evaluations; '0': only at the end", check=checks.duration, on_resume=NOTE
    ),
    'batch_size': Option(
      256, 'examples per evaluation step, over all devices', check=checks.at_least(1), on_resume=NOTE
    ),
  },
  'checkpoint': {
    'every': Option(
      '1 epochs', "duration between checkpoints; '0': only at the end", check=checks.duration, on_resume=NOTE
    ),
    'keep': Option(
      3, 'number of newest checkpoints to keep, besides the best', check=checks.at_least(1), on_resume=NOTE
    ),
    'best_metric': Option(
      'accuracy',
      'metric that selects the best checkpoint, of the moving average if ema is on: '
      f'{", ".join(measures.MORE_IS_BETTER)} (the largest), {" or ".join(measures.LESS_IS_BETTER)} (the smallest), on '
      'the first of eval.splits that is no test split and holds no training images; or of a named split, such as '
      "'test/accuracy'",
      check=checks.ranking,
      on_resume=NOTE,
    ),
  },
  'telemetry': {
    'every': Option(
      '100',
      "duration between steps that record metrics of every entry; '0': never",
      check=checks.duration,
      on_resume=NOTE,
    ),
  },
  'lr_find': {
    'start': Option(1e-7, 'first learning rate of the sweep', check=checks.above(0), only=RATES_SWEPT, on_resume=NOTE),
    'end': Option(10.0, 'last learning rate of the sweep', check=checks.above(0), only=RATES_SWEPT, on_resume=NOTE),
    'steps': Option(
      100,
      'number of steps of the sweep, each at a higher rate',
      check=checks.between(20, 100_000),
      only=SWEPT,
      on_resume=NOTE,
    ),
    'groups': Option(
      (),
      "patterns of entries, one sweep each, while all other entries stay fixed: ('head', 'stage3/.*')",
      check=checks.patterns,
      only={relations.PROGRAM: ('--mode=lr_find',)},
      off=(),
      on_resume=FREE,
    ),
  },
  'noise_scale': {
    'batches': Option(
      50,
      'number of batches of train.batch_size to average over',
      check=checks.between(2, 100_000),
      only={relations.PROGRAM: ('--mode=noise_scale',)},
      on_resume=FREE,
    ),
    'micro_batches': Option(
      8,
      'number of micro-batches that each batch is split into',
      check=checks.at_least(2),
      only={relations.PROGRAM: ('--mode=noise_scale',)},
      on_resume=FREE,
    ),
  },
  'mesh': {
    'fsdp': Option(
      1, 'number of devices over which each parameter is sharded', check=checks.at_least(1), on_resume=FREE
    ),
  },
  'sharding': Option(
    (),
    "axes along which parameters are sharded, or 'whole', by patterns that match their whole paths, of which the first "
    "counts: (('head/.*kernel', 0), ('stem/.*', 'whole')); others with 16,384 numbers or more: the largest axis",
    check=checks.sharding,
    only={'mesh.fsdp': any_but(1)},
    off=(),
    on_resume=FREE,
  ),
}

# Metrics that the table of a comparison can show: of the last evaluation of each split, and of a whole run.
SPLIT_METRICS = ('error', *measures.MORE_IS_BETTER, *measures.LESS_IS_BETTER)
RUN_METRICS = (
  'seconds',
  'images_per_second',
  'parameters',
  'trainable_parameters',
  'process_memory',
  'device_memory',
)

# A set of runs that dnt.compare compares.
COMPARE: dict[str, Any] = {
  'seeds': Option((0,), 'seeds of each variant; one run per seed', check=checks.seeds),
  'base': SCHEMA,
  'variants': Option(
    dict,
    "name: {'section.key': value, ...}, changes to base; train.init_from='variant:<name>' starts from the run of "
    'another variant with the same seed; set in a config file',
  ),
  'forms': Option(dict, "name: {'section.key': value, ...}, changes to base that --form selects; set in a config file"),
  'columns': Option(
    ('error', *RUN_METRICS),
    f'metrics in the table, in order: of each evaluated split, or (from {RUN_METRICS[0]} on) of a run; the first ranks '
    'the variants; results.csv has all of them',
    choices=(*SPLIT_METRICS, *RUN_METRICS),
    check=checks.different,
  ),
}
# Random dense networks of equal layers whose signals and gradients dnt.probe measures: all combinations of the lists.
SIGNAL: dict[str, Any] = {
  'signal': {
    'depths': Option((24,), 'numbers of layers; each depth is measured separately', check=checks.counts),
    'activations': Option(
      ('relu', 'tanh'), 'activations, named as in model.activation', choices=ACTIVATIONS, check=checks.different
    ),
    'blocks': Option(
      ('plain', 'residual', 'highway'),
      'blocks, named as in model.block of mlp',
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
      (0.5, 1.0, 2.0, 3.0), 'sigma_w^2: a weight has variance sigma_w^2 / width (He: 2)', check=checks.variances
    ),
    'bias_variances': Option((0.0, 0.1), 'sigma_b^2: variance of a bias', check=checks.spreads),
    'gate_bias': Option(-2.0, 'bias of the highway gates', only={'signal.blocks': ('highway',)}),
    'width': Option(256, 'units per layer', check=checks.at_least(2)),
    'batch_size': Option(16, 'number of inputs that pass through each network together', check=checks.at_least(8)),
    'input_correlation': Option(0.5, 'correlation of any two inputs', check=checks.within(0, 1)),
    'seed': Option(0, 'seed of the first draw of inputs and weights', check=checks.seed),
    'seeds': Option(8, 'number of random draws of each network', check=checks.at_least(1)),
    'singular_values': Option(
      2, 'number of largest singular values of the Jacobian to compute; 0: none', check=checks.at_least(0)
    ),
    'lanczos_iterations': Option(
      6,
      'Lanczos iterations for the singular values; 6 are accurate to about a percent',
      check=checks.between(1, 1000),
      only={'signal.singular_values': any_but(0)},
    ),
    'jacobian_seeds': Option(
      1,
      'number of draws of each network whose singular values are computed',
      check=checks.at_least(1),
      only={'signal.singular_values': any_but(0)},
    ),
  },
}
# The kinds of config files. Each has a key that no other kind has.
KINDS: dict[str, dict[str, Any]] = {'train': SCHEMA, 'compare': COMPARE, 'signal': SIGNAL}
# The options of each kind by `'section.key'`, in order.
OPTIONS: dict[str, Mapping[str, Option]] = {name: keys.flatten(sections) for name, sections in KINDS.items()}


def kind(config: ml_collections.ConfigDict) -> str:
  """Returns the kind of a config, a key of `KINDS`."""
  return next((name for name, key in (('compare', 'variants'), ('signal', 'signal')) if key in config), 'train')


def model_options(*roles: str) -> tuple[str, ...]:
  """Returns the keys of `model` whose options have one of the roles, see `ROLES`."""
  return tuple(key for key, option in SCHEMA['model'].items() if option.role in roles)


def copy_unlocked(config: C) -> C:
  """Returns a copy of a config or section that is not locked."""
  return config.copy_and_resolve_references().unlock()


def mark_given(config: ml_collections.ConfigDict, given: Iterable[str]) -> None:
  """Marks options that a user sets, so that weights or an earlier run do not replace them, even at their default.

  Copies of the config keep the marks; a file does not hold them.

  Args:
    config: a config, which it changes.
    given: keys of the options.
  """
  for key in given:
    above, _, name = key.rpartition('.')
    section = keys.get(config, above) if above else config
    object.__setattr__(section, '_given', getattr(section, '_given', frozenset()) | {name})


def is_given(section: Any, name: str) -> bool:
  """Returns whether `mark_given` has marked an option of a section of a config."""
  return name in getattr(section, '_given', ())


class Section(ml_collections.ConfigDict):
  """A config, or a section of one, whose errors say in one line which option is meant or what its value must be.

  What is assigned to an option is converted to the type of the option: paths, the scalars and arrays of NumPy, lists,
  and for a duration a number of steps.
  """

  # A key of `KINDS`, and what stands before the names in `OPTIONS`; of none, while ml_collections fills a copy.
  _kind, _prefix = '', ''
  _given: frozenset[str] = frozenset()  # names of options of this section, see `mark_given`

  def _place(self, kind: str, prefix: str, given: frozenset[str] = frozenset()) -> None:
    object.__setattr__(self, '_kind', kind)  # a ConfigDict takes what is assigned as an option
    object.__setattr__(self, '_prefix', prefix)
    object.__setattr__(self, '_given', given)

  def __setstate__(self, state: dict[str, Any]) -> None:
    super().__setstate__(state)
    self._place(state['_kind'], state['_prefix'], state['_given'])

  def copy_and_resolve_references(self, visit_map: dict[int, Any] | None = None) -> 'Section':
    copied = super().copy_and_resolve_references(visit_map)
    copied._place(self._kind, self._prefix, self._given)
    return copied

  def __eq__(self, other: object) -> bool:
    if type(other) is ml_collections.ConfigDict:  # it equals what is of its class, and this class is below it
      return ml_collections.ConfigDict.__eq__(other, self)
    return super().__eq__(other)

  __hash__ = None

  def __getattr__(self, attribute: str) -> Any:
    if attribute.startswith('_'):  # what copy, pickle and IPython look for, also before there are any fields
      raise AttributeError(attribute)
    return self[attribute]

  def __setattr__(self, attribute: str, value: Any) -> None:
    self[attribute] = value

  def __getitem__(self, key: str) -> Any:
    try:
      return super().__getitem__(key)
    except KeyError:
      raise self._unknown(key) from None

  def __setitem__(self, key: str, value: Any) -> None:
    if self.is_locked and key not in self:
      raise self._unknown(key)
    option = OPTIONS.get(self._kind, {}).get(f'{self._prefix}{key}')
    try:
      super().__setitem__(key, _converted(option, value) if option else self._held(key, value))
    except TypeError:
      wanted = option.type.__name__ if option else 'a section'
      shown = ' '.join(repr(value).splitlines())
      problem = f'config.{self._prefix}{key} must be {wanted}, not {type(value).__name__} ({shown})'
      raise errors.InputError(problem) from None

  def get_type(self, key: str) -> type:
    found: type = super().get_type(key)
    return object if found is dict else found  # whose text on a command line ml_collections reads as a Python literal

  def _held(self, key: str, value: Any) -> Any:
    """Returns what takes the place of a section, or of anything in a copy."""
    if isinstance(value, Section) or not isinstance(value, dict | ml_collections.ConfigDict):
      return value
    if not self._kind:
      return plain(value)
    section = _empty(self._kind, f'{self._prefix}{key}.')
    for name, each in value.items():
      section[name] = each
    return section

  def _unknown(self, key: str) -> errors.UnknownKeyError:
    known, name = OPTIONS.get(self._kind, {}), f'{self._prefix}{key}'
    if '.' in str(key) and name in known:  # in `update`
      return errors.UnknownKeyError(f'{name!r} holds a dot; write config.{name} = ...')
    here = [f'{self._prefix}{each}' for each in self if f'{self._prefix}{each}' not in known]
    return errors.UnknownKeyError(str(errors.unknown('config key', name, [*known, *here])))


def _converted(option: Option, value: Any) -> Any:
  """Converts what a user assigns to an option to the type of the option, where both mean the same."""
  if isinstance(value, dict):
    return value  # the user's own, which may be filled later
  value = plain(value)
  return str(value) if option.check is checks.duration and type(value) is int else value


def plain(value: Any) -> Any:
  """Copies a value without the classes of other libraries: to dicts in their order, tuples, numbers and texts."""
  if isinstance(value, dict | ml_collections.ConfigDict):
    return {name: plain(each) for name, each in value.items()}
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if hasattr(value, 'tolist') and not isinstance(value, type):  # a scalar or array of NumPy, jax or torch
    value = value.tolist()
  return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def _empty(kind: str, prefix: str) -> Section:
  section = Section(convert_dict=False)  # a ConfigDict in place of a dict sorts its keys, and refuses those with dots
  section._place(kind, prefix)
  return section


def _build(entries: Mapping[str, Any], kind: str, prefix: str = '') -> Section:
  config = _empty(kind, prefix)
  for key, entry in entries.items():
    if not isinstance(entry, Option):
      config[key] = _build(entry, kind, f'{prefix}{key}.')
    elif entry.type is dict:
      config[key] = {}
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
  """Returns a locked config of a kind with every option at its default."""
  return _build(KINDS[kind], kind).lock()
