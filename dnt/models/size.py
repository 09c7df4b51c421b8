"""Finds the size of a network by arithmetic, and refuses networks that cannot be built."""

import logging
import math

import flax.linen as nn

from dnt import config as schema
from dnt import errors, models
from dnt.config import typed
from dnt.models import depth
from dnt.parallel import capacity

_log = logging.getLogger(__name__)
SECONDS = 4e-3  # that the trace of a layer takes; measured on two cores with jax 0.10.2, for mlp and resnet
LONG = 10  # seconds of a trace that are announced
# A multiple of the layers that one more block in every stage adds, in any network: a network of as many more layers has
# a valid depth too.
PERIOD = 18
SHALLOW = 10 * PERIOD  # up to this depth, a trace is as quick as the arithmetic


def trace(model: typed.Model, network: nn.Module, num_classes: int, image_shape: depth.Shape) -> depth.Trace:
  """Traces a network, unless that would take too long, or its input or parameters take more memory than there is.

  Args:
    model: resolved `config.model`.
    network: from `models.make`.
    num_classes: number of classes.
    image_shape: (H, W, C).

  Raises:
    errors.InputError: the message names the option to lower.
  """
  available, layers = capacity.host(), model.depth or 0
  shape = 'x'.join(map(str, image_shape))
  capacity.check(4 * math.prod(image_shape), available, f'one image of {shape}', 'config.data.image_size')
  if layers > depth.LAYERS:
    raise errors.InputError(
      f'config.model.depth={layers} is more than dnt builds: at most {depth.LAYERS:,} layers, each of which takes '
      f'about {1000 * SECONDS:.0f} ms to build'
    )
  sizes = [key for key in ('depth', 'width', 'growth_rate') if model[key] is not None]
  what = ' and '.join(f'config.model.{key}={model[key]}' for key in sizes) or f'config.model.name={model.name}'

  def check(parameters):
    described = f'a network of {parameters:,} parameters ({what})'
    capacity.check(4 * parameters, available, described, 'its size')

  if layers > SHALLOW and model.name in models.MODELS and model.stem != 'imagenet':
    check(count_parameters(model, num_classes, image_shape))
    if layers * SECONDS > LONG:
      _log.info(f'building a network of {layers:,} layers takes about {layers * SECONDS:.0f} s')
  result = depth.trace(network, image_shape)
  check(sum(row.parameters for row in result.table))
  return result


def count_parameters(model: typed.Model, num_classes: int, image_shape: depth.Shape) -> int:
  """Returns the number of parameters of a deep network by arithmetic, from two shallow ones of the same form.

  It is exact where the blocks of a stage are equal, and a lower bound for densenet, whose layers grow.

  Args:
    model: resolved `config.model`, of more than `2 * PERIOD` layers and with the CIFAR stem if it has one.
    num_classes: number of classes.
    image_shape: (H, W, C).
  """

  def count(layers):
    changed = schema.copy_unlocked(model)
    changed.depth = layers
    return sum(row.parameters for row in depth.trace(models.make(changed, num_classes), image_shape).table)

  assert model.depth is not None
  shallow = model.depth % PERIOD + PERIOD
  first, second = count(shallow), count(shallow + PERIOD)
  return first + (model.depth - shallow) // PERIOD * (second - first)
