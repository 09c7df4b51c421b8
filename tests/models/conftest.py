"""A network written with torch.nn.functional, and its weights in dnt's layout."""

import re

import numpy as np
import pytest

from tests.references import weights


class TorchNetwork:
  """Layers that draw their weights by name when they are called; names are those of torchvision.

  Attributes:
    weights: `{torch name: tensor}`, running statistics included.
    training: normalize by the batch.
  """

  def __init__(self, torch, training=False):
    self.torch, self.training, self.weights = torch, training, {}

  def weight(self, name, *shape):
    if name not in self.weights:
      value = self.torch.from_numpy(weights.draw(name, shape))
      self.weights[name] = value.requires_grad_('running' not in name)
    return self.weights[name]

  def conv(self, name, x, features, size, stride=1):
    kernel = self.weight(f'{name}.weight', features, x.shape[1], size, size)
    return self.torch.nn.functional.conv2d(x, kernel, stride=stride, padding=size // 2)

  def norm(self, name, x):
    leaves = ('running_mean', 'running_var', 'weight', 'bias')
    mean, var, scale, bias = (self.weight(f'{name}.{leaf}', x.shape[1]) for leaf in leaves)
    return self.torch.nn.functional.batch_norm(x, mean, var, scale, bias, self.training, 0.1, 1e-5)

  def dense(self, name, x, features):
    weight, bias = self.weight(f'{name}.weight', features, x.shape[1]), self.weight(f'{name}.bias', features)
    return self.torch.nn.functional.linear(x, weight, bias)


@pytest.fixture
def torch_network():
  """`torch_network(torch, training=False)`: makes a `TorchNetwork`."""
  return TorchNetwork


@pytest.fixture
def to_dnt():
  """`to_dnt(tensors, rename)`: arrays by torch's names as dnt's flat `{'collection/path': array}`.

  `rename` is a list of (regular expression, replacement) from torch's layer names to dnt's.
  """

  def convert(tensors, rename):
    flat = {}
    for name, array in tensors.items():
      layer, leaf = name.rsplit('.', 1)
      for pattern, replacement in rename:
        layer = re.sub(pattern, replacement, layer)
      if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
      elif array.ndim == 2:
        array = array.T
      matrix = array.ndim > 1
      leaf = {'weight': 'kernel' if matrix else 'scale', 'running_mean': 'mean', 'running_var': 'var'}.get(leaf, leaf)
      collection = 'batch_stats' if leaf in ('mean', 'var') else 'params'
      flat['/'.join((collection, *layer.split('.'), leaf))] = np.ascontiguousarray(array)
    return flat

  return convert


@pytest.fixture
def torch_logits(torch_reference, to_dnt):
  """`torch_logits(forward, x, rename)`: logits of `forward(network, x)` by torch, and the network's variables."""

  def compute(forward, x, rename):
    def compute(torch):
      network = TorchNetwork(torch)
      logits = forward(network, torch.from_numpy(x.transpose(0, 3, 1, 2)))
      return {'logits': logits, 'weights': weights.describe(network.weights)}

    found = torch_reference(compute)
    return found['logits'], to_dnt(weights.drawn(weights.described(found['weights'])), rename)

  return compute
