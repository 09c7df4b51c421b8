"""Reads named tensors from Keras' files: HDF5, and the layers format of TensorFlow.js.

Names are `<layer>/<tensor>`, such as `bn_conv1/gamma`.
"""

import itertools
import json
import math
import pathlib
import re
from typing import Any

import numpy as np

from dnt import errors

MODEL_FILE = 'model.json'
LABELS_FILE = 'labels.json'
# Maps tensor names of Keras 1 HDF5 files to current names (running_std held the variance).
KERAS_1 = {'W': 'kernel', 'b': 'bias', 'running_mean': 'moving_mean', 'running_std': 'moving_variance'}
_TENSOR = re.compile(r'(?:^|[/_])(kernel|bias|gamma|beta|moving_mean|moving_variance|W|b|running_mean|running_std)$')


def read_h5(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads every tensor of a `.h5` file, which holds weights or a whole model.

  Raises:
    errors.InputError: h5py is not installed, or the file is damaged or has another format.
  """
  try:
    import h5py
  except ImportError as error:
    raise errors.InputError(f'{path} needs h5py, which is not installed: pip install h5py') from error
  try:
    with h5py.File(path, 'r') as file:
      root = file.get('model_weights', file)
      result: dict[str, np.ndarray] = {}

      def visit(name, item):
        if isinstance(item, h5py.Dataset):
          result[_tensor_name(name)] = item[()]

      for layer, group in root.items():
        if isinstance(group, h5py.Group):
          group.visititems(lambda name, item, layer=layer: visit(f'{layer}/{name}', item))
  except (OSError, RuntimeError, KeyError) as error:
    raise errors.InputError(
      f'cannot read {path} ({error}); it is damaged or not completely downloaded: get it again'
    ) from error
  return result


def _tensor_name(name: str) -> str:
  """Maps 'conv1/conv1_1/kernel:0' and 'conv1/conv1_W_1:0' to 'conv1/kernel'; keeps unknown names for error messages."""
  layer, _, inner = name.partition('/')
  tensor = _TENSOR.search(re.sub(r'(_\d+)?(:0)?$', '', inner))
  return f'{layer}/{KERAS_1.get(tensor[1], tensor[1])}' if tensor else name


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
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise errors.InputError(f'cannot read {path} ({error})') from error


def _shard(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise errors.InputError(f'cannot read {path} ({error.strerror}), a part of the weights; get it again') from error
