"""Converts between dnt's variables and the named tensors of the same networks in PyTorch and Keras.

A network has the same layers in every framework. Only the names, which this file lists in tables, and the order of
the kernel axes differ. The names are those of torchvision (timm uses the same) and of keras.applications, old and new.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dnt import errors, trees
from dnt.config import typed
from dnt.models import densenet, resnet

# Maps each layer kind and dnt leaf to the framework's tensor name.
LEAVES = {
  'torch': {
    'conv': {'params/kernel': 'weight'},
    'norm': {
      'params/scale': 'weight',
      'params/bias': 'bias',
      'batch_stats/mean': 'running_mean',
      'batch_stats/var': 'running_var',
    },
    'dense': {'params/kernel': 'weight', 'params/bias': 'bias'},
  },
  'keras': {
    'conv': {'params/kernel': 'kernel', 'params/bias': 'bias'},
    'norm': {
      'params/scale': 'gamma',
      'params/bias': 'beta',
      'batch_stats/mean': 'moving_mean',
      'batch_stats/var': 'moving_variance',
    },
    'dense': {'params/kernel': 'kernel', 'params/bias': 'bias'},
  },
}
SEPARATOR = {'torch': '.', 'keras': '/'}
# Older names of the same tensors: (regular expression, replacement).
RENAMED = {
  'torch': (r'(\.denselayer\d+\.(?:norm|conv))\.([12]\.)', r'\1\2'),  # torchvision's .pth of DenseNet
  'keras': (r'^probs/', 'predictions/'),  # keras.applications before 2020
}
COUNTER = '.num_batches_tracked'  # a counter of torch's BatchNorm, which dnt ignores
AVERAGED = 'n_averaged'  # a counter of torch's AveragedModel, which dnt ignores too
# Prefixes of modules around a network, in any order: DataParallel and AveragedModel, torch.compile (which may also
# stand around an inner module), and the usual name in a LightningModule.
_PREFIXES = re.compile(r'^(?:(?:module|_orig_mod|model)\.)+|(?<=\.)_orig_mod\.')
HEAD = 'head/dense'  # the layer without which a network is a backbone
_HEADS = ('fc.', 'classifier.', 'head.')  # what the names of tensors of any head begin with in PyTorch
# What timm and torchvision put around the name of an architecture without changing the network.
_SAME_ARCHITECTURE = re.compile(r'^(?:.*/)?(?:(?:tv|ssl|swsl|gluon)_)?(?P<name>[^.]*?)(?:_v1b)?(?:\..*)?$')

# Options of timm's networks that leave what the weights compute as it is: the first with any value, others with these.
_HARMLESS = re.compile(
  r'drop_|pretrained|zero_init_|(?:num_classes|in_chans|img_size|scriptable|exportable|memory_efficient)$'
)
_USUAL = {
  'global_pool': ('avg', 'fast'),
  'act_layer': ('relu',),
  'norm_layer': ('batchnorm', 'batchnorm2d'),
  'output_stride': (32,),
}

# Maps dnt's layer paths to the framework's layers. Format fields: `stage` from 1 and `keras_stage` from 2; `block`
# from 1, `index` from 0 and `letter` from a; `part` from 1 and `part_letter` from a number a block's convolutions.
TORCH_RESNET = {
  'stem/conv': 'conv1',
  'stem/norm': 'bn1',
  'stage{stage}/block{block:03d}/conv{part}': 'layer{stage}.{index}.conv{part}',
  'stage{stage}/block{block:03d}/norm{part}': 'layer{stage}.{index}.bn{part}',
  'stage{stage}/block{block:03d}/shortcut/conv': 'layer{stage}.{index}.downsample.0',
  'stage{stage}/block{block:03d}/shortcut/norm': 'layer{stage}.{index}.downsample.1',
  'head/dense': 'fc',
}
KERAS_RESNET = {
  'stem/conv': 'conv1_conv',
  'stem/norm': 'conv1_bn',
  'stage{stage}/block{block:03d}/conv{part}': 'conv{keras_stage}_block{block}_{part}_conv',
  'stage{stage}/block{block:03d}/norm{part}': 'conv{keras_stage}_block{block}_{part}_bn',
  'stage{stage}/block{block:03d}/shortcut/conv': 'conv{keras_stage}_block{block}_0_conv',
  'stage{stage}/block{block:03d}/shortcut/norm': 'conv{keras_stage}_block{block}_0_bn',
  'head/dense': 'predictions',
}
OLD_KERAS_RESNET = {
  'stem/conv': 'conv1',
  'stem/norm': 'bn_conv1',
  'stage{stage}/block{block:03d}/conv{part}': 'res{keras_stage}{letter}_branch2{part_letter}',
  'stage{stage}/block{block:03d}/norm{part}': 'bn{keras_stage}{letter}_branch2{part_letter}',
  'stage{stage}/block{block:03d}/shortcut/conv': 'res{keras_stage}{letter}_branch1',
  'stage{stage}/block{block:03d}/shortcut/norm': 'bn{keras_stage}{letter}_branch1',
  'head/dense': 'fc1000',
}
TORCH_DENSENET = {
  'stem/conv': 'features.conv0',
  'stem/norm': 'features.norm0',
  'stage{stage}/block{block:03d}/conv{part}': 'features.denseblock{stage}.denselayer{block}.conv{part}',
  'stage{stage}/block{block:03d}/norm{part}': 'features.denseblock{stage}.denselayer{block}.norm{part}',
  'transition{stage}/conv': 'features.transition{stage}.conv',
  'transition{stage}/norm': 'features.transition{stage}.norm',
  'head/norm': 'features.norm5',
  'head/dense': 'classifier',
}


class Network(NamedTuple):
  """A network and its layer names in a framework.

  Attributes:
    title: such as 'resnet-50 (Keras)'.
    framework: 'torch' or 'keras'.
    model: the values of `config.model` with which dnt's network computes the same as the framework's.
    layers: maps dnt's layer path to the framework's layer.
  """

  title: str
  framework: str
  model: dict[str, Any]
  layers: dict[str, str]

  def tensors(self) -> dict[str, str]:
    """Maps dnt's path of each leaf, including its collection, to the framework's tensor name."""
    separator = SEPARATOR[self.framework]
    result = {}
    for path, layer in self.layers.items():
      for leaf, tensor in LEAVES[self.framework][_kind(path)].items():
        collection, name = leaf.split('/')
        result[f'{collection}/{path}/{name}'] = f'{layer}{separator}{tensor}'
    return result


def _kind(layer: str) -> str:
  """Returns 'conv', 'norm' or 'dense' from the name of the layer."""
  return layer.rsplit('/', 1)[-1].rstrip('0123456789')


def _layers(table: Mapping[str, str], counts: tuple[int, ...], parts: int, projects: Iterable[int]) -> dict[str, str]:
  """Expands a table of layers for all stages and blocks.

  Args:
    table: maps dnt's path to the framework's layer; both contain format fields.
    counts: number of blocks in each stage.
    parts: number of convolutions in a block.
    projects: stages, counted from 1, whose first block has a projection.
  """
  layers = {}
  for stage, count in enumerate(counts, start=1):
    for block in range(1, count + 1):
      for part in range(1, parts + 1):
        fields = {
          'stage': stage,
          'keras_stage': stage + 1,
          'block': block,
          'index': block - 1,
          'letter': chr(ord('a') + block - 1),
          'part': part,
          'part_letter': chr(ord('a') + part - 1),
        }
        for path, layer in table.items():
          absent = ('shortcut' in path and (block > 1 or stage not in projects)) or (
            path.startswith('transition') and stage == len(counts)
          )
          if not absent:
            layers[path.format(**fields)] = layer.format(**fields)
  return layers


def _resnet(framework: str, table: Mapping[str, str], layers: int, **model: Any) -> Network:
  bottleneck = layers in resnet.IMAGENET_BOTTLENECK
  block = 'bottleneck' if bottleneck else 'basic'
  counts = resnet.blocks_per_stage('imagenet', block, layers)
  wanted = {
    'name': 'resnet',
    'stem': 'imagenet',
    'depth': layers,
    'block': block,
    'width': 1,
    'shortcut': 'B',
    'residual_scalar': None,
  }
  if bottleneck:
    wanted['stride_on'] = '3x3'
  named = _layers(table, counts, 3 if bottleneck else 2, range(1 if bottleneck else 2, len(counts) + 1))
  return Network(_title('resnet', layers, framework), framework, {**wanted, **_parts(), **model}, named)


def _densenet(layers: int) -> Network:
  wanted = {
    'name': 'densenet',
    'stem': 'imagenet',
    'depth': layers,
    'growth_rate': 32,
    'compression': 0.5,
    'bottleneck': True,
  }
  named = _layers(TORCH_DENSENET, densenet.layers_per_stage('imagenet', True, layers), 2, ())
  return Network(_title('densenet', layers, 'torch'), 'torch', {**wanted, **_parts()}, named)


def _parts() -> dict[str, Any]:
  return {'norm': 'batch_norm', 'norm_epsilon': 1e-5, 'activation': 'relu', 'weight_standardization': False}


def _title(name: str, layers: int, framework: str) -> str:
  return f'{name}-{layers} ({"Keras" if framework == "keras" else "PyTorch"})'


def networks(framework: str) -> list[Network]:
  """Returns every network that dnt can read from files of the framework."""
  if framework == 'torch':
    return [*(_resnet('torch', TORCH_RESNET, layers) for layers in (18, 34, 50, 101, 152)), _densenet(121)]
  old = _resnet('keras', OLD_KERAS_RESNET, 50, stride_on='1x1', norm_epsilon=1e-3)
  new = (_resnet('keras', KERAS_RESNET, layers, stride_on='1x1', norm_epsilon=1.001e-5) for layers in (50, 101, 152))
  return [old, *new]


def identify(tensors: Iterable[str], framework: str, origin: str, architectures: Iterable[str] = ()) -> Network:
  """Returns the network whose tensor names match those of a file best.

  Args:
    tensors: names in the file.
    framework: 'torch' or 'keras'.
    origin: the file, for messages.
    architectures: names of its architecture that the file or a description of it gives.

  Raises:
    errors.InputError: the best match has an intersection over union below 0.5, or the architecture is another one.
  """
  given = set(tensors)

  def likeness(network):
    names = set(network.tensors().values())
    return len(names & given) / len(names | given)

  known = networks(framework)
  titles = ', '.join(network.title for network in known)
  nearest = max(known, key=likeness)
  if likeness(nearest) < 0.5:
    named = ''.join(f' (it is said to be {name!r})' for name in dict.fromkeys(architectures))
    first = {network.tensors()['params/stem/conv/kernel'] for network in known}
    prefixes = sorted({name.removesuffix(end) for name in given for end in first if name.endswith(f'.{end}')})
    # Blocks of a network end like its stem: `net.layer1.0.conv1.weight`.
    prefixes = [name for name in prefixes if not any(name != other and name.startswith(other) for other in prefixes)]
    under = f'; {" and ".join(map(repr, prefixes))} may be a prefix to take off the names' if prefixes else ''
    if any(name.startswith('params/') for name in given):
      under = '; these are Flax paths, as of dnt.export --format=flax_safetensors: give the workdir of that run'
    raise errors.InputError(
      f'{origin} holds no network that dnt knows by name{named} ({len(given)} tensors: {_some(sorted(given), 4)}'
      f'{under}); it knows: {titles}'
    )
  for name in architectures:
    if not _may_be(name, nearest):
      raise errors.InputError(
        f'{origin} is said to be {name!r}, which is not {nearest.title}, though its tensors have the same names; dnt '
        f'knows: {titles}; if it is one of these all the same, give the result of state_dict() alone'
      )
  return nearest


def check_options(options: Mapping[str, Any], network: Network, origin: str) -> None:
  """Refuses options with which timm's network of the same tensors computes something else.

  Args:
    options: by timm's names.
    network: from `identify`.
    origin: the file, for messages.

  Raises:
    errors.InputError: the message names them.
  """
  other = [
    f'{key}={value!r}'
    for key, value in options.items()
    if not (value is None or _HARMLESS.match(key) or value in _USUAL.get(key, ()))
  ]
  if other:
    raise errors.InputError(
      f'{origin} is said to be built with {errors.list_names(other)}, which makes another network of the tensors of '
      f'{network.title}; if it is that one all the same, give the result of state_dict() alone'
    )


def says_something(architecture: str) -> bool:
  """Returns whether the name tells one ResNet or DenseNet from another; the name of a class, 'resnet', does not."""
  name = _plain(architecture)
  return name not in ('resnet', 'densenet') and bool(re.search(r'res\d*n|densen', name))


def _may_be(architecture: str, network: Network) -> bool:
  wanted = f'{network.model["name"]}{network.model["depth"]}'
  return not says_something(architecture) or _plain(architecture) == wanted


def _plain(architecture: str) -> str:
  """Returns 'resnet50' for 'hf-hub:timm/resnet50.a1_in1k', 'tv_resnet50', 'ResNet-50' and the like."""
  match = _SAME_ARCHITECTURE.match(architecture.lower().strip())
  name = match['name'] if match else architecture
  return re.sub(r'^(resnet|densenet)[-_ ](?=\d)', r'\1', name)


def current_names(tensors: Mapping[str, Any], framework: str, origin: str) -> dict[str, Any]:
  """Renames the tensors to the names in the tables: without the prefixes of torch's wrappers, and without its counters.

  Args:
    tensors: by the names in the file.
    framework: 'torch' or 'keras'.
    origin: the file, for messages.

  Raises:
    errors.InputError: two tensors would have the same name.
  """
  pattern, replacement = RENAMED[framework]
  result, old_names = {}, {}
  for old, tensor in tensors.items():
    name = re.sub(pattern, replacement, _PREFIXES.sub('', old) if framework == 'torch' else old)
    if framework == 'torch' and (name.endswith(COUNTER) or name == AVERAGED):
      continue
    if name in result:
      raise errors.InputError(
        f'{origin} holds {name} twice, as {old_names[name]} and as {old}: give the tensors of one network alone'
      )
    result[name], old_names[name] = tensor, old
  return result


def to_variables(tensors: Mapping[str, np.ndarray], network: Network, origin: str) -> dict[str, Any]:
  """Converts a framework's tensors to dnt's variables, float32 and unrolled; the model checks their sizes later.

  This function folds a convolution's bias into the running mean of the norm that follows it. Keras' networks expect BGR
  images, so it reverses the input channels of their first kernel: dnt's networks take RGB. The variables of a backbone,
  a network that lacks the whole of its last layer, have no `HEAD`.

  Args:
    tensors: of any float dtype, in the axes of the framework (torch: OIHW), renamed by `current_names`.
    network: from `identify`.
    origin: the file, for messages.

  Raises:
    errors.InputError: tensors are missing, unexpected, complex, have the wrong number of axes or values that no trained
      network has; the message names them, or the architecture that has other blocks.
  """
  if network.framework == 'torch':
    _check_blocks(tensors, network, origin)
  table = _of_backbone(network.tensors(), tensors)
  paths = {name: path for path, name in table.items()}
  problems = {
    'missing': [name for name in paths if name not in tensors],
    'unexpected': [name for name in tensors if name not in paths],
    'of another shape': [
      f'{name} {tensors[name].shape}, wanted {_axes(path)} axes'
      for name, path in paths.items()
      if name in tensors and tensors[name].ndim != _axes(path)
    ],
    'of complex numbers': [name for name in paths if name in tensors and np.iscomplexobj(tensors[name])],
  }
  _refuse(problems, f'{origin} is not a whole {network.title}')
  with np.errstate(over='ignore'):  # what float32 cannot hold becomes infinite and is refused below
    flat = {path: np.asarray(tensors[name], np.float32) for path, name in table.items()}
  _check_values(flat, table, origin)
  if network.framework == 'torch':
    return trees.unflatten({path: np.ascontiguousarray(_to_hwio(value)) for path, value in flat.items()})
  first = flat['params/stem/conv/kernel']
  flat['params/stem/conv/kernel'] = np.ascontiguousarray(first[:, :, ::-1])
  return trees.unflatten(_fold_biases(flat, table, origin))


def other_head(tensors: Iterable[str], network: Network) -> list[str]:
  """Returns the names of the tensors of a head that is not the network's own, such as dropout and a dense layer.

  It is empty for a network with the head that it has in its framework, or a part of it, and for one without any.

  Args:
    tensors: names in the file, renamed by `current_names`.
    network: from `identify`.
  """
  given = set(tensors)
  own = {name for path, name in network.tensors().items() if f'/{HEAD}/' in path}
  if network.framework != 'torch' or own & given:
    return []
  return sorted(name for name in given if name.startswith(_HEADS))


def _check_blocks(tensors: Mapping[str, np.ndarray], network: Network, origin: str) -> None:
  """Refuses a ResNet or DenseNet of another number or width of blocks by the name that torchvision or timm gives it."""
  name = _by_blocks(tensors, network.model['name'])
  if name != f'{network.model["name"]}{network.model["depth"]}':
    titles = ', '.join(each.title for each in networks('torch'))
    raise errors.InputError(f'{origin} is a {name} by its blocks, which dnt does not read; it reads: {titles}')


def _by_blocks(tensors: Mapping[str, np.ndarray], family: str) -> str:
  """Returns a name such as 'resnet50', 'wide_resnet50_2', 'resnext50_32x4d' or 'densenet121'.

  The number in it counts convolutions and dense layers. A group of a ResNeXt's 3x3 convolution has as many channels as
  its second axis.
  """
  pattern = r'features\.denseblock(\d+)\.denselayer(\d+)\.' if family == 'densenet' else r'layer(\d+)\.(\d+)\.'
  blocks = len({match.groups() for match in (re.match(pattern, name) for name in tensors) if match})
  if family == 'densenet':
    return f'densenet{2 * blocks + 5}'
  parts = 3 if any(re.fullmatch(r'layer\d+\.\d+\.conv3\.weight', name) for name in tensors) else 2
  depth = 2 + parts * blocks
  first, second = (tensors.get(f'layer1.0.conv{part}.weight') for part in (1, 2))
  if parts == 3 and first is not None and second is not None and first.ndim == second.ndim == 4:
    width, group = len(first), second.shape[1]
    if 0 < group < width:
      return f'resnext{depth}_{width // group}x{group}d'
    if width > 64:
      return f'wide_resnet{depth}_{width // 64}'
  return f'resnet{depth}'


def _of_backbone(table: dict[str, str], tensors: Mapping[str, Any]) -> dict[str, str]:
  """Drops the last layer from a table of tensors if the file has none of it, and nothing in its place."""
  head = {path for path in table if f'/{HEAD}/' in path}
  backbone = {path: name for path, name in table.items() if path not in head}
  in_its_place = tensors.keys() - set(backbone.values())
  return table if in_its_place else backbone


def _check_values(flat: Mapping[str, np.ndarray], table: Mapping[str, str], origin: str) -> None:
  """Refuses values with which a network computes no numbers.

  Args:
    flat: float32 by dnt's path.
    table: the framework's tensor name by path.
    origin: the file, for messages.

  Raises:
    errors.InputError: the message names the tensors.
  """
  problems = {
    'NaN': [table[path] for path, value in flat.items() if np.isnan(value).any()],
    'infinite, or too large for float32': [table[path] for path, value in flat.items() if np.isinf(value).any()],
    'negative variance': [table[path] for path, value in flat.items() if path.endswith('/var') and (value < 0).any()],
  }
  _refuse(problems, f'{origin} is damaged, or comes from training that diverged')


def from_variables(variables: Mapping[str, Any], network: Network) -> dict[str, np.ndarray]:
  """Converts dnt's unrolled variables to the tensors of PyTorch's network: the exact inverse of `to_variables`."""
  flat = trees.flatten(variables)
  tensors = {}
  for path, name in network.tensors().items():
    tensors[name] = np.ascontiguousarray(_from_hwio(np.asarray(flat[path])))
    if name.endswith('.running_var'):
      tensors[name.removesuffix('.running_var') + COUNTER] = np.zeros((), np.int64)
  return tensors


def differences(network: Mapping[str, Any], model: Mapping[str, Any] | typed.Model) -> str:
  """Returns the `config.model` options to change to get the network, as text; empty if none differ.

  Args:
    network: values of `config.model` that the network needs.
    model: resolved `config.model`.
  """
  return ', '.join(
    f'config.model.{key}={value!r} (now {model[key]!r})' for key, value in network.items() if model[key] != value
  )


def _axes(path: str) -> int:
  """Returns the leaf's number of axes: 4 for convolution kernels, 2 for dense kernels, 1 for any other leaf."""
  layer, leaf = path.rsplit('/', 1)
  return {'conv': 4, 'dense': 2}[_kind(layer)] if leaf == 'kernel' else 1


def _to_hwio(value: np.ndarray) -> np.ndarray:
  """Transposes [out, in, h, w] to [h, w, in, out], and [out, in] to [in, out]."""
  return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _from_hwio(value: np.ndarray) -> np.ndarray:
  return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def _fold_biases(flat: Mapping[str, np.ndarray], table: Mapping[str, str], origin: str) -> dict[str, np.ndarray]:
  """Subtracts each convolution bias from the next norm's mean, which gives the same output as norm(x + bias)."""
  folded = dict(flat)
  for path in flat:
    layer, _, leaf = path.removeprefix('params/').rpartition('/')
    if leaf != 'bias' or _kind(layer) != 'conv':
      continue
    block, _, name = layer.rpartition('/')
    mean = f'batch_stats/{block}/{name.replace("conv", "norm")}/mean'
    if flat[path].shape != flat[mean].shape:
      wrong = [f'{table[path]} {flat[path].shape}, wanted {flat[mean].shape} as {table[mean]}']
      _refuse({'of another shape': wrong}, f'{origin} cannot be read')
    folded[mean] = flat[mean] - folded.pop(path)
  return folded


def _refuse(problems: Mapping[str, list[str]], what: str) -> None:
  result = [f'{kind}: {errors.list_names(names)}' for kind, names in problems.items() if names]
  if result:
    raise errors.InputError(f'{what}; {"; ".join(result)}')


def _some(names: list[str], count: int) -> str:
  return ', '.join(names[:count]) + (', ...' if len(names) > count else '')
