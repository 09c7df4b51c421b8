"""Reads named tensors from Keras' files: HDF5 of Keras 1, 2 and 3, `.keras`, and the layers format of TensorFlow.js.

Names are `<layer>/<tensor>`, such as `bn_conv1/gamma`.
"""

import collections
import io
import itertools
import json
import math
import pathlib
import re
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dnt import errors

MODEL_FILE = 'model.json'
LABELS_FILE = 'labels.json'
# Maps tensor names of Keras 1 HDF5 files to current names (running_std held the variance).
KERAS_1 = {'W': 'kernel', 'b': 'bias', 'running_mean': 'moving_mean', 'running_std': 'moving_variance'}
# The tensors of a layer in Keras 3's files, which number them, by kind of layer.
KERAS_3 = {
  'conv2d': ('kernel', 'bias'),
  'dense': ('kernel', 'bias'),
  'batch_normalization': ('gamma', 'beta', 'moving_mean', 'moving_variance'),
}
_TENSOR = re.compile(
  r'(?:^|[/_])((?:depthwise_|pointwise_|recurrent_)?kernel|bias|gamma|beta|moving_mean|moving_variance|W|b|running_mean|'
  r'running_std)$'
)


def read_h5(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads every tensor of a `.h5` file, which holds weights or a whole model, of any version of Keras.

  Raises:
    errors.InputError: h5py is not installed, or the file is damaged or has another format.
  """
  h5py = _h5py(path)
  try:
    with h5py.File(path, 'r') as file:
      if isinstance(file.get('layers'), h5py.Group) and 'layer_names' not in file.attrs:
        return _keras_3(file['layers'], {}, path)
      result: dict[str, np.ndarray] = {}
      for layer, group in file.get('model_weights', file).items():
        if not isinstance(group, h5py.Group):
          continue
        inner: list[str] = []
        group.visititems(lambda name, item, inner=inner: inner.append(name) if isinstance(item, h5py.Dataset) else None)
        for each, name in zip(inner, _tensor_names(layer, inner), strict=True):
          _put(result, name, group[each][()], path)
  except errors.InputError:
    raise
  except (OSError, RuntimeError, KeyError) as error:
    raise errors.InputError(
      f'cannot read {path} ({error}); it is damaged or not completely downloaded: get it again'
    ) from error
  return result


def read_keras(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads every tensor of a `.keras` file, in which Keras 3 saves a model; its other contents are not executed.

  Raises:
    errors.InputError: as for `read_h5`.
  """
  h5py = _h5py(path)
  try:
    with zipfile.ZipFile(path) as archive:
      layers = json.loads(archive.read('config.json'))['config']['layers']
      weights = io.BytesIO(archive.read('model.weights.h5'))
    with h5py.File(weights, 'r') as file:
      return _keras_3(file['layers'], _names_by_key(layers), path)
  except errors.InputError:
    raise
  except (OSError, RuntimeError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
    raise errors.InputError(
      f'cannot read {path} ({error}); it is damaged, not completely downloaded, or no model of layers'
    ) from error


def _h5py(path: pathlib.Path) -> Any:
  try:
    import h5py
  except ImportError as error:
    raise errors.InputError(f'{path} needs h5py, which is not installed: pip install h5py') from error
  return h5py


def _keras_3(layers: Any, names: Mapping[str, str], path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the tensors `<kind of layer>[_<n>]/vars/<i>` of the layers of a model, and of models among them.

  Args:
    layers: an HDF5 group.
    names: names of the layers by their key, for files from before Keras 3.6, which lack them.
    path: the file, for messages.
  """
  result: dict[str, np.ndarray] = {}
  for key, layer in layers.items():
    if 'layers' in layer:
      for name, value in _keras_3(layer['layers'], {}, path).items():
        _put(result, name, value, path)
    tensors = layer.get('vars', {})
    if not len(tensors):
      continue
    name = tensors.attrs.get('name', names.get(key))
    if name is None:
      raise errors.InputError(
        f'{path} holds no names of layers, as it was written by a Keras before 3.6: save the model as .keras'
      )
    known = KERAS_3.get(re.sub(r'_\d+$', '', key), ())
    for index, tensor in tensors.items():
      # A norm without scale or offset has other numbers.
      whole = index.isdigit() and int(index) < len(known) and (len(tensors) == len(known) or known[0] == 'kernel')
      _put(result, f'{name}/{known[int(index)] if whole else index}', tensor[()], path)
  return result


def _names_by_key(layers: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Returns the names of the layers of a model by their keys in the weights: `conv2d`, `conv2d_1`, ..."""
  counts, result = collections.Counter(), {}
  for layer in layers:
    kind = re.sub('(.)([A-Z][a-z]+)', r'\1_\2', layer['class_name'])
    kind = re.sub('([a-z])([A-Z])', r'\1_\2', kind).lower()
    result[f'{kind}_{counts[kind]}' if counts[kind] else kind] = layer['config']['name']
    counts[kind] += 1
  return result


def _tensor_names(layer: str, inner: Sequence[str]) -> list[str]:
  """Returns the names of the tensors in a group of a file, such as 'conv1/kernel'; keeps unknown ones for messages.

  Args:
    layer: name of the group.
    inner: the names in it. Those of one layer begin alike, with its name or another: 'conv1_1/kernel:0', 'conv1_W_1:0'.
      If they do not, the group is a model among the layers, and its names begin with those of its layers.
  """
  found = [_TENSOR.search(re.sub(r'(_\d+)?(:0)?$', '', name)) for name in inner]
  starts = [match.string[: match.start()].rpartition('/')[2] if match else '' for match in found]
  nested = len({*starts} - {''}) > 1
  return [
    f'{(nested and start) or layer}/{KERAS_1.get(match[1], match[1])}' if match else f'{layer}/{name}'
    for name, match, start in zip(inner, found, starts, strict=True)
  ]


def _put(tensors: dict[str, np.ndarray], name: str, value: np.ndarray, path: pathlib.Path) -> None:
  """Adds a tensor, unless the models of a file hold others of its name."""
  if name in tensors and not np.array_equal(tensors[name], value):
    raise errors.InputError(f'{path} holds several tensors {name!r}, so it is no single network: save one alone')
  tensors[name] = value


def read_tfjs(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads every tensor of a folder that holds `model.json` and the shards that it names.

  Raises:
    errors.InputError: files are missing, damaged or truncated, or the weights are quantized.
  """
  content = _json(folder / MODEL_FILE)
  result = {}
  try:
    for group in content['weightsManifest']:
      packed = b''.join(_shard(folder / name) for name in group['paths'])
      for weight in group['weights']:
        if 'quantization' in weight or weight['dtype'] != 'float32':
          raise errors.InputError(f'{folder} holds quantized weights ({weight["name"]}); give the float32 ones')
      shapes = {weight['name']: tuple(weight['shape']) for weight in group['weights']}
      ends = list(itertools.accumulate(4 * math.prod(shape) for shape in shapes.values()))
      if [len(packed)] != ends[-1:]:
        raise ValueError(f'{len(packed):,} bytes from {group["paths"][0]} on, instead of {ends[-1]:,}')
      for (name, shape), start, end in zip(shapes.items(), [0, *ends], ends, strict=False):
        result[name] = np.frombuffer(packed[start:end], '<f4').reshape(shape)
  except errors.InputError:
    raise
  except (KeyError, TypeError, ValueError, IndexError) as error:
    raise errors.InputError(
      f'{folder} is damaged: its shards do not match {MODEL_FILE} ({error}); get them again'
    ) from error
  return result


def files_of_tfjs(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns `model.json` and the shards that it names.

  Raises:
    errors.InputError: `model.json` is missing or damaged.
  """
  try:
    groups = _json(folder / MODEL_FILE)['weightsManifest']
    return [folder / MODEL_FILE, *(folder / name for group in groups for name in group['paths'])]
  except (KeyError, TypeError) as error:
    raise errors.InputError(f'{folder / MODEL_FILE} lists no shards of weights ({error}); get it again') from error


def class_names(folder: pathlib.Path) -> tuple[str, ...]:
  """Returns the class names in the folder's `labels.json`, in class order; empty if there is no such file.

  Raises:
    errors.InputError: the file holds neither a list of names nor an object keyed by class number.
  """
  path = folder / LABELS_FILE
  if not path.is_file():
    return ()
  content = _json(path)
  if isinstance(content, dict):  # {'0': ['n01440764', 'tench'], ...}
    content = [content.get(str(index)) for index in range(len(content))]
  names = (
    [each[-1] if isinstance(each, list) and each else each for each in content] if isinstance(content, list) else []
  )
  if not names or not all(isinstance(name, str) for name in names):
    raise errors.InputError(f'{path} must be a list of class names, or map each class number to a name')
  return tuple(names)


def _json(path: pathlib.Path) -> Any:
  try:
    return json.loads(path.read_bytes())
  except (OSError, ValueError) as error:
    raise errors.InputError(f'cannot read {path} ({error})') from error


def _shard(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise errors.InputError(f'cannot read {path} ({error.strerror}), a part of the weights; get it again') from error
