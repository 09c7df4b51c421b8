"""torchvision's networks written out for torch, independently of dnt's tables: their state_dict has its names."""

import functools
import os

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from tests.references import weights

NEEDS_TORCH = "reads or runs what is torch's own, and torch is not installed"
COUNTS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def define(torch):
  nn, F = torch.nn, torch.nn.functional

  class Block(nn.Module):
    def __init__(self, inputs, base, stride, bottleneck, stride_on, bias, eps):
      super().__init__()
      outputs = base * 4 if bottleneck else base
      first, second = (stride, 1) if stride_on == '1x1' or not bottleneck else (1, stride)
      sizes = [(inputs, base, 1, first), (base, base, 3, second), (base, outputs, 1, 1)]
      if not bottleneck:
        sizes = [(inputs, base, 3, first), (base, outputs, 3, 1)]
      self.count = len(sizes)
      for number, (i, o, size, step) in enumerate(sizes, start=1):
        setattr(self, f'conv{number}', nn.Conv2d(i, o, size, step, size // 2, bias=bias))
        setattr(self, f'bn{number}', nn.BatchNorm2d(o, eps))
      if stride != 1 or inputs != outputs:
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=bias), nn.BatchNorm2d(outputs, eps))

    def forward(self, x):
      y = x
      for number in range(1, self.count + 1):
        y = getattr(self, f'bn{number}')(getattr(self, f'conv{number}')(y))
        y = F.relu(y) if number < self.count else y
      return F.relu(y + (self.downsample(x) if hasattr(self, 'downsample') else x))

  class ResNet(nn.Module):
    """He et al. 2015, table 1."""

    def __init__(self, depth, classes=1000, stride_on='3x3', bias=False, eps=1e-5):
      super().__init__()
      bottleneck = depth >= 50
      self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=bias), nn.BatchNorm2d(64, eps)
      channels = 64
      for stage, count in enumerate(COUNTS[depth]):
        blocks = []
        for block in range(count):
          stride = 2 if stage and not block else 1
          blocks.append(Block(channels, 64 * 2**stage, stride, bottleneck, stride_on, bias, eps))
          channels = 64 * 2**stage * (4 if bottleneck else 1)
        setattr(self, f'layer{stage + 1}', nn.Sequential(*blocks))
      self.fc = nn.Linear(channels, classes)

    def forward(self, x):
      x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
      for stage in range(1, 5):
        x = getattr(self, f'layer{stage}')(x)
      return self.fc(x.mean((2, 3)))

  class DenseLayer(nn.Module):
    def __init__(self, channels):
      super().__init__()
      self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 128, 1, bias=False)
      self.norm2, self.conv2 = nn.BatchNorm2d(128), nn.Conv2d(128, 32, 3, padding=1, bias=False)

    def forward(self, x):
      y = self.conv1(F.relu(self.norm1(x)))
      return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)

  class Transition(nn.Module):
    def __init__(self, channels):
      super().__init__()
      self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x):
      return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)

  class DenseNet121(nn.Module):
    """Huang et al. 2017, table 1."""

    def __init__(self, classes=1000):
      super().__init__()
      self.features = nn.Module()
      self.features.conv0, self.features.norm0 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
      channels = 64
      for stage, count in enumerate((6, 12, 24, 16), start=1):
        block = nn.Module()
        for layer in range(1, count + 1):
          block.add_module(f'denselayer{layer}', DenseLayer(channels))
          channels += 32
        self.features.add_module(f'denseblock{stage}', block)
        if stage < 4:
          self.features.add_module(f'transition{stage}', Transition(channels))
          channels //= 2
      self.features.norm5 = nn.BatchNorm2d(channels)
      self.classifier = nn.Linear(channels, classes)

    def forward(self, x):
      features = self.features
      x = F.max_pool2d(F.relu(features.norm0(features.conv0(x))), 3, 2, 1)
      for stage in range(1, 5):
        for layer in getattr(features, f'denseblock{stage}').children():
          x = layer(x)
        if stage < 4:
          x = getattr(features, f'transition{stage}')(x)
      return self.classifier(F.relu(features.norm5(x)).mean((2, 3)))

  return {'resnet': ResNet, 'densenet': DenseNet121}


def make(torch, family, options, tensors):
  """A network with these arrays for weights, in evaluation."""
  network = define(torch)[family](**options)
  network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, strict=True)
  return network.eval()


def logits_of(torch, family, options, tensors, images):
  """Of float32 images, channels last."""
  network = make(torch, family, options, tensors)
  with torch.no_grad():
    return network(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))


@pytest.fixture
def described(torch_reference):
  """`described(family, **options)`: the tensors of torch's 'resnet' or 'densenet', `{name: (dtype, shape)}`."""

  def tensors(family, **options):
    def compute(torch):
      with torch.device('meta'):
        return weights.describe(define(torch)[family](**options).state_dict())

    name = ', '.join((family, *(f'{key}={value}' for key, value in options.items())))
    return weights.described(torch_reference(compute, name))

  return tensors


@pytest.fixture
def drawn(described):
  """`drawn(family, **options)`: the state_dict of such a network, drawn, as arrays."""
  return lambda family, **options: weights.drawn(described(family, **options))


@pytest.fixture
def resnet18(drawn):
  """Tensors of ResNet-18 by name."""
  return drawn('resnet', depth=18)


@pytest.fixture
def real_network():
  """`real_network(family, options, tensors)`: torch's module with these arrays; the test is skipped without torch."""
  torch = pytest.importorskip('torch', reason=NEEDS_TORCH)
  return functools.partial(make, torch)


@pytest.fixture
def save(tmp_path):
  """`save(arrays by name, name)`: writes a `.safetensors` file or a pickle; returns its path.

  A pickle may hold more: an nn.Module's state_dict, dicts of arrays, anything. It takes torch: without, a skip.
  """

  def write(content, name='model.safetensors'):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.safetensors':
      safetensors_numpy.save_file(content, path)
      return path
    torch = pytest.importorskip('torch', reason=NEEDS_TORCH)

    def to_torch(value):
      if type(value) is dict:
        return {key: to_torch(each) for key, each in value.items()}
      return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value

    torch.save(content.state_dict() if isinstance(content, torch.nn.Module) else to_torch(content), path)
    return path

  return write


class _Evil:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return (os.mkdir, (str(self.path),))


@pytest.fixture
def evil(tmp_path):
  """Something that makes a folder when it is unpickled, and its path."""
  mark = tmp_path / 'executed'
  return _Evil(mark), mark


@pytest.fixture
def imagenet(tiny):
  """A config of an ImageNet network on 32x32 images of 10 classes; change it as a test needs."""
  tiny.data.image_size = 32
  tiny.model.width = None
  tiny.model.update({'name': 'resnet', 'stem': 'imagenet', 'depth': 18})
  return tiny


@pytest.fixture
def build():
  """The experiment of a config."""
  from dnt.training import datasets, experiment, open_options

  def make(config):
    data = datasets.load(config, ())
    return experiment.make(open_options.resolve(config, data), data.spec)

  return make


@pytest.fixture(scope='session')
def images():
  """uint8 [2, 32, 32, 3]."""
  return np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)


@pytest.fixture
def logits():
  """`logits(run, variables, images)`: of uint8 images, as an evaluation computes them."""

  def compute(run, variables, images):
    def apply(variables, images):
      return run.model.apply(variables, run.preprocess({'image': images}, None), train=False)

    return np.asarray(jax.jit(apply)(variables, images))

  return compute


@pytest.fixture
def torch_logits(torch_reference):
  """`torch_logits(family, options, tensors, images)`: torch's, of images as the network takes them.

  The tensors must be those, to the bit, that torch was given when the reference was written.
  """

  def compute(family, options, tensors, images):
    sums = weights.checksums(tensors)
    logits, given = torch_reference(lambda torch: (logits_of(torch, family, options, tensors, images), sums))
    np.testing.assert_array_equal(sums, given, 'torch was given other tensors')
    return logits

  return compute


@pytest.fixture
def real_logits():
  """The same for a test that needs torch itself, and is skipped without."""
  torch = pytest.importorskip('torch', reason=NEEDS_TORCH)
  return lambda *args: logits_of(torch, *args).numpy()


@pytest.fixture
def normalized():
  """`normalized(images, mean, std)`: of uint8 images, in NumPy."""

  def normalize(images, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)):
    mean, std = (np.reshape(value, (1, 1, 1, 3)) for value in (mean, std))
    return ((images / 255 - mean) / std).astype(np.float32)

  return normalize
