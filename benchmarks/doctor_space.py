"""The networks of the doctor's benchmark, each drawn from a wide space by its number.

Two of three are drawn at random, one by one from `FAMILIES`: network, depth, width, block, norm, activation,
initializer and gain, optimizer, rate, decay, clipping, batch, schedule, data and scale of the images. Most options have
their usual value more often than not, so that a network has few oddities at a time. Every third is a network that
should train, with one planted fault of `FAULTS`; it is trained without the fault too.

The doctor was made with the networks of `TUNED`. Those from 1000 and from 2000 on were the final scores of two earlier
versions, which fell just short; what they showed has been mended since. Those of `HELD_OUT` serve for the final score
alone.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import doctor_networks
from dnt import config as schema
from dnt import errors, models
from dnt.config import typed

TUNED, HELD_OUT = (*range(150), *range(1000, 1150), *range(2000, 2150)), range(3000, 3150)
STEPS = 300
FAMILIES = ('mlp', 'plain', 'resnet', 'highway', 'densenet', 'own')
LABELS = ('constant', 'shuffled', 'shifted')
FAULTS = (
  'step too large',
  'step too small',
  'weight decay',
  'clipping',
  'large images',
  'small images',
  'small kernels',
  'large kernels',
  'deep sigmoid',
  'small batch',
  'dead',
  'cut',
  'squashed',
  'rectified',
  *(f'{kind} labels' for kind in LABELS),
)
RATES = {'sgd': 0.05, 'adamw': 1e-3, 'lamb': 5e-3, 'muon': 5e-3}
_OWN = 'benchmarks.doctor_networks:Net'
_CHANNELS = {'digits': 1, 'synthetic': 3}


class Case(NamedTuple):
  """Describes a network of the benchmark.

  Attributes:
    number: what it is drawn by.
    family: one of `FAMILIES`.
    fault: one of `FAULTS`, or '' for a network that is drawn at random.
    overrides: `{'section.key': value}` over the default config.
    base: the overrides without the fault; None for a network that is drawn at random.
    labels: what is wrong with the labels, one of `LABELS`, or ''.
  """

  number: int
  family: str
  fault: str
  overrides: dict[str, Any]
  base: dict[str, Any] | None = None
  labels: str = ''

  @property
  def data(self) -> str:
    """Returns the name of the data: networks with the same are compared in accuracy."""
    return f'{self.overrides["data.source"]}{self.overrides["data.image_size"]}'


def draw(number: int) -> Case:
  """Draws a network; the same number draws the same one, whatever the version of numpy."""
  rng = np.random.Generator(np.random.Philox(number))
  while True:
    case = _plant(number, rng) if number % 3 == 2 else _draw(number, rng)
    if all(_is_valid(each) for each in (case.overrides, case.base) if each is not None):
      return case


def make_config(overrides: dict[str, Any]) -> typed.Config:
  """Returns the validated config of overrides, for a run of `STEPS` steps without evaluation.

  Raises:
    errors.InputError: the options do not suit each other.
  """
  config = schema.default()
  config.train.steps = STEPS
  config.train.log_every = config.telemetry.every = config.eval.every = '0'
  config.data.synthetic_examples = 1024
  config = schema.override(config, overrides, 'the benchmark')
  schema.validate(config)
  models.check(config.model)
  return config


def _is_valid(overrides: dict[str, Any]) -> bool:
  try:
    config = make_config(overrides)
  except errors.InputError:
    return False
  if config.model.norm != 'group_norm':
    return True
  if config.model.name == 'densenet':  # its channels grow from layer to layer
    try:
      network = models.make(config.model, 10)
      jax.eval_shape(lambda: network.init(jax.random.key(0), np.zeros((1, 8, 8, 1)), train=False))
    except errors.InputError:
      return False
  channels = (config.model.width or 16) if config.model.name != 'resnet' else 16
  return channels % config.model.norm_groups == 0


def _pick(rng: np.random.Generator, *values: Any) -> Any:
  return values[int(rng.integers(len(values)))]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
  return float(f'{math.exp(rng.uniform(math.log(low), math.log(high))):.2g}')


def _draw(number: int, rng: np.random.Generator) -> Case:
  family = FAMILIES[int(rng.integers(len(FAMILIES)))]
  source = _pick(rng, 'digits', 'synthetic')
  optimizer = _pick(rng, 'sgd', 'sgd', 'adamw', 'adamw', 'lamb', 'muon')
  usual = rng.random() < 0.55
  spread = 4.0 if usual else 300.0
  overrides = {
    'data.source': source,
    'data.image_size': _pick(rng, 8, 8, 16) if family == 'mlp' else 8,
    'optim.name': optimizer,
    'optim.learning_rate': _log_uniform(rng, RATES[optimizer] / spread, RATES[optimizer] * spread),
    'optim.weight_decay': _pick(rng, 0.0, 1e-4, 1e-4, 0.01) if rng.random() < 0.9 else _log_uniform(rng, 0.1, 10),
    'train.batch_size': _pick(rng, 32, 64) if rng.random() < 0.7 else _pick(rng, 2, 4, 8, 16, 128),
    'seed': number,
  }
  overrides |= _draw_network(family, rng)
  if optimizer == 'sgd' and rng.random() < 0.2:
    overrides['optim.momentum'] = 0.0
  if rng.random() < 0.2:
    overrides |= {'clip.name': _pick(rng, 'global_norm', 'value', 'block_norm', 'adaptive')}
    overrides['clip.threshold'] = _log_uniform(rng, 1e-4, 10)
  if rng.random() < 0.3:
    overrides |= {'schedule.name': _pick(rng, 'cosine', 'one_cycle', 'linear')}
    overrides |= {'schedule.warmup': '10%'} if overrides['schedule.name'] != 'one_cycle' else {}
  if rng.random() < 0.15:
    overrides |= _scale(source, _log_uniform(rng, 0.001, 255))
  return Case(number, family, '', overrides)


def _draw_network(family: str, rng: np.random.Generator) -> dict[str, Any]:
  """Returns the options of `model` of a network that is drawn at random."""
  if family == 'own':
    options = {'depth': int(rng.integers(2, 9)), 'width': _pick(rng, 16, 32, 64), 'conv': bool(rng.random() < 0.4)}
    if rng.random() < 0.5:
      options |= {'fault': _pick(rng, *doctor_networks.FAULTS[1:]), 'at': int(rng.integers(1, options['depth'] + 1))}
    return {'model.name': _OWN, 'model.options': options}
  norm = _pick(rng, 'batch_norm', 'batch_norm', 'layer_norm', 'group_norm', 'rms_norm', 'none', 'none')
  activation = _pick(rng, *['relu'] * 5, 'leaky_relu', 'sigmoid', 'tanh', 'gelu', 'silu', 'identity')
  options = {
    'name': family,
    'norm': norm,
    'activation': activation,
    'initializer': _pick(rng, 'he', 'he', 'glorot', 'lecun', 'orthogonal', 'normal'),
    'init_gain': 1.0 if rng.random() < 0.7 else _log_uniform(rng, 0.1, 10),
  }
  if norm == 'group_norm':
    options['norm_groups'] = _pick(rng, 2, 4, 8)
  if rng.random() < 0.1:
    options['dtype'] = 'bfloat16'
  if family == 'mlp':
    options |= {'depth': round(_log_uniform(rng, 2, 60)), 'width': _pick(rng, 16, 32, 64, 128), 'scan': True}
    options['block'] = _pick(rng, 'plain', 'plain', 'residual', 'highway')
  elif family == 'densenet':
    options |= {
      'depth': _pick(rng, 10, 16, 22),
      'growth_rate': _pick(rng, 4, 8),
      'bottleneck': bool(rng.random() < 0.5),
    }
  else:
    options |= {'depth': _pick(rng, 8, 14, 20, 32, 56), 'scan': True}
    if family == 'resnet':
      options['block'] = _pick(rng, 'basic', 'basic', 'preact_basic')
      if norm == 'none' and rng.random() < 0.5:
        options['residual_scalar'] = 0.0
    else:
      options['width'] = _pick(rng, 8, 16)
  if 'highway' in (family, options.get('block')):
    options['gate_bias'] = _pick(rng, -1.0, -2.0, -3.0)
  return {f'model.{name}': value for name, value in options.items()}


def _plant(number: int, rng: np.random.Generator) -> Case:
  """Returns a network that should train, with a fault."""
  fault = FAULTS[number // 3 % len(FAULTS)]
  deep = {'small kernels': 30, 'large kernels': 30, 'deep sigmoid': 24}.get(fault)
  if deep or fault not in doctor_networks.FAULTS:
    family = 'mlp' if deep else _pick(rng, *FAMILIES[:-1])
  else:
    family = 'own'
  optimizer = _pick(rng, 'sgd', 'adamw') if fault not in ('clipping', 'small kernels', 'deep sigmoid') else 'sgd'
  source = _pick(rng, 'digits', 'synthetic')
  rate = RATES[optimizer] * (0.1 if deep else 1)
  base = {
    'data.source': source,
    'data.image_size': 8,
    'optim.name': optimizer,
    'optim.learning_rate': rate,
    'train.batch_size': _pick(rng, 32, 64),
    'seed': number,
  }
  options: dict[str, Any] = {'name': family}
  if family == 'mlp':
    depth = deep or int(rng.integers(3, 11))
    options |= {'depth': depth, 'width': 64, 'scan': True, 'norm': 'none' if deep else _pick(rng, 'none', 'batch_norm')}
  elif family == 'own':
    own = {'depth': int(rng.integers(3, 7)), 'width': 32, 'conv': bool(rng.random() < 0.4)}
    options = {'name': _OWN, 'options': own}
  elif family == 'densenet':
    options |= {'depth': 10, 'growth_rate': 8}
  else:
    options |= {'depth': _pick(rng, 8, 14, 20), 'scan': True}
    if family != 'resnet':
      options['width'] = 16
  base |= {f'model.{name}': value for name, value in options.items()}
  changed = {
    'step too large': {'optim.learning_rate': rate * _log_uniform(rng, 30, 1e4)},
    'step too small': {'optim.learning_rate': rate * _log_uniform(rng, 1e-6, 3e-4)},
    'weight decay': {'optim.weight_decay': _log_uniform(rng, 0.05, 0.5) / rate},
    'clipping': {'clip.name': 'global_norm', 'clip.threshold': _log_uniform(rng, 1e-6, 1e-3)},
    'large images': _scale(source, 255),
    'small images': _scale(source, 1e-3),
    'small kernels': {'model.init_gain': _log_uniform(rng, 0.05, 0.6)},
    'large kernels': {'model.init_gain': _log_uniform(rng, 2, 8)},
    'deep sigmoid': {'model.activation': 'sigmoid', 'model.initializer': 'glorot'},
    'small batch': {'train.batch_size': _pick(rng, 1, 2)},
  }.get(fault, {})
  if fault in doctor_networks.FAULTS:
    own = base['model.options']
    changed = {'model.options': own | {'fault': fault, 'at': int(rng.integers(2, own['depth'] + 1))}}
  labels = fault.removesuffix(' labels') if fault.endswith(' labels') else ''
  return Case(number, family, fault, base | changed, base, labels)


def _scale(source: str, factor: float) -> dict[str, Any]:
  """Returns overrides with which the network gets pixels from 0 to `factor`."""
  channels = _CHANNELS[source]
  return {'data.mean': (0.0,) * channels, 'data.std': (1 / factor,) * channels}
