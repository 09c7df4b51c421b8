"""A network written with torch.nn.functional, and its weights in dnt's layout."""

import re

import numpy as np
import pytest


class TorchNetwork:
  """Layers that draw their weights, as torch does, when they are first called; names are those of torchvision.

  Attributes:
    weights: `{torch name: tensor}`, running statistics included.
    training: normalize by the batch.
  """

  def __init__(self, torch, training=False):
    self.torch, self.training, self.weights = torch, training, {}
    self.generator = torch.Generator().manual_seed(0)

  def weight(self, name, shape, low=None, high=None):
    if name not in self.weights:
      value = self.torch.empty(shape)
      if low is None:
        self.torch.nn.init.kaiming_normal_(value, generator=self.generator)
      else:
        value.uniform_(low, high, generator=self.generator)
      self.weights[name] = value.requires_grad_('running' not in name)
    return self.weights[name]

  def conv(self, name, x, features, size, stride=1):
    kernel = self.weight(f'{name}.weight', (features, x.shape[1], size, size))
    return self.torch.nn.functional.conv2d(x, kernel, stride=stride, padding=size // 2)

  def norm(self, name, x):
    channels = x.shape[1]
    mean = self.weight(f'{name}.running_mean', channels, -0.5, 0.5)
    var = self.weight(f'{name}.running_var', channels, 0.5, 2)
    scale = self.weight(f'{name}.weight', channels, 0.5, 1.5)
    bias = self.weight(f'{name}.bias', channels, -0.5, 0.5)
    return self.torch.nn.functional.batch_norm(x, mean, var, scale, bias, self.training, 0.1, 1e-5)

  def dense(self, name, x, features):
    weight = self.weight(f'{name}.weight', (features, x.shape[1]))
    bias = self.weight(f'{name}.bias', features, -1, 1)
    return self.torch.nn.functional.linear(x, weight, bias)

  def variables(self, rename, values=None):
    """The weights (or what `values` holds for them) as dnt's flat `{'collection/path': array}`.

    Args:
      rename: list of (regular expression, replacement) from torch's layer names to dnt's.
      values: `{torch name: tensor}`.
    """
    flat = {}
    for name, value in (self.weights if values is None else values).items():
      layer, leaf = name.rsplit('.', 1)
      for pattern, replacement in rename:
        layer = re.sub(pattern, replacement, layer)
      array = value.detach().numpy().copy()
      if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
      elif array.ndim == 2:
        array = array.T
      matrix = array.ndim > 1
      leaf = {'weight': 'kernel' if matrix else 'scale', 'running_mean': 'mean', 'running_var': 'var'}.get(leaf, leaf)
      collection = 'batch_stats' if leaf in ('mean', 'var') else 'params'
      flat['/'.join((collection, *layer.split('.'), leaf))] = np.ascontiguousarray(array)
    return flat


@pytest.fixture
def torch_network():
  """Makes a `TorchNetwork`."""
  torch = pytest.importorskip('torch')
  return lambda **kwargs: TorchNetwork(torch, **kwargs)
