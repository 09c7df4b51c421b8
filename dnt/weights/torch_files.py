"""Reads named tensors from PyTorch's files: safetensors, and pickles through torch's tensors-only unpickler."""

import argparse
import json
import logging
import os
import pathlib
import pickle
import types
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dnt import errors

_log = logging.getLogger(__name__)

# Keys under which training programs save the weights, in timm's order: it takes the averaged ones first.
WRAPPERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model', 'model_state_dict', 'net')
# Keys under which they save the architecture: in the checkpoint itself, and in its options.
_OPTIONS = ('args', 'hyper_parameters')  # the second is Lightning's
_ARCHITECTURE = ('model', 'arch', 'model_name')
_PREPROCESSING = ('input_size', 'img_size', 'interpolation', 'crop_pct', 'crop_mode', 'mean', 'std')


class Content(NamedTuple):
  """What a file of weights holds.

  Attributes:
    tensors: arrays by name.
    architectures: names of the architecture as the program that wrote the file gave them; empty if it gave none.
    model_args: options with which timm's training program built the network.
    preprocessing: its options with the names that timm's have for the preparation of images, as they were given.
  """

  tensors: dict[str, np.ndarray]
  architectures: tuple[str, ...] = ()
  model_args: Mapping[str, Any] = types.MappingProxyType({})
  preprocessing: Mapping[str, Any] = types.MappingProxyType({})


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads every tensor of a `.safetensors` file, in its own dtype.

  Raises:
    errors.InputError: the file is damaged or truncated, or has a dtype that NumPy lacks.
  """
  import safetensors
  from safetensors import numpy as safetensors_numpy

  try:
    return safetensors_numpy.load_file(path)
  except (safetensors.SafetensorError, OSError) as error:
    raise errors.InputError(
      f'cannot read {path} ({error}); it is damaged or not completely downloaded: get it again'
    ) from error
  except (KeyError, TypeError) as error:  # a dtype that NumPy lacks
    raise errors.InputError(f'{path} has a dtype that NumPy does not support ({error}); save it as float32') from error


def read_index(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads every tensor of a `.safetensors.index.json`: a list of tensors and of the files beside it that hold them.

  Raises:
    errors.InputError: the list or a file is missing or damaged, or they do not match.
  """
  places, result, wrong = _listed(path), {}, []
  for name in sorted(set(places.values())):
    part = read_safetensors(path.with_name(name))
    listed = {tensor for tensor, place in places.items() if place == name}
    wrong += [f'{tensor} in {name}' for tensor in sorted(listed ^ part.keys())]
    result |= part
  if wrong:
    raise errors.InputError(f'{path} does not match its files: {errors.list_names(wrong)}; get all of them again')
  return result


def files_of_index(path: pathlib.Path) -> list[pathlib.Path]:
  """Returns the list itself and the files that it names; raises as `read_index` does."""
  return [path, *(path.with_name(name) for name in sorted(set(_listed(path).values())))]


def places_of_index(path: pathlib.Path) -> dict[str, str]:
  """Returns the name of the file of each tensor in an index; the files need not be there.

  Raises:
    errors.InputError: it is no index.
  """
  try:
    places = json.loads(path.read_bytes())['weight_map']
    return {tensor: os.fspath(name) for tensor, name in places.items()}
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.InputError(f'cannot read {path} ({error}), which lists the parts of the weights') from error


def _listed(path: pathlib.Path) -> dict[str, str]:
  """Returns the name of the file of each tensor in an index, all of which are beside it."""
  places = places_of_index(path)
  files = sorted(set(places.values()))
  outside = [name for name in files if pathlib.PurePath(name).name != name]
  absent = [name for name in files if name in outside or not path.with_name(name).is_file()]
  if absent:
    raise errors.InputError(f'{path} lists files that are not beside it: {errors.list_names(absent)}; get them')
  return places


def read_pickle(path: pathlib.Path) -> Content:
  """Reads every tensor of a `torch.save` file as float32, or complex; refuses files with code and never executes it.

  Besides tensors and plain values the file may hold an `argparse.Namespace`, in which training programs keep their
  options.

  Raises:
    errors.InputError: torch is not installed or too old, or the file is damaged, truncated, or holds no tensors.
  """
  try:
    import torch
  except ImportError as error:
    raise errors.InputError(
      f'{path} can only be read with torch: pip install torch, or give the same weights as .safetensors'
    ) from error
  if torch.__version__ < '2.6':  # compared as versions, not as text; CVE-2025-32434
    raise errors.InputError(
      f'{path} needs torch 2.6 or newer ({torch.__version__} is installed), because older ones may execute code in '
      'it: pip install -U torch, or give the same weights as .safetensors'
    )
  try:
    # torch warns about pickle formats. A Namespace has no code: only its attributes are set.
    with warnings.catch_warnings(action='ignore'), torch.serialization.safe_globals([argparse.Namespace]):
      content = torch.load(path, map_location='cpu', weights_only=True)
  except pickle.UnpicklingError as error:
    raise errors.InputError(
      f'{path} is refused, and nothing in it was executed: it is damaged or holds more than tensors '
      f'({_reason(error)}); save the state_dict() alone, or give the weights as .safetensors'
    ) from error
  except Exception as error:  # torch raises a dozen types for truncated files and other formats
    if 'TorchScript' in str(error):
      raise errors.InputError(
        f'{path} is refused, and nothing in it was executed: it is a TorchScript program; save its state_dict() alone'
      ) from error
    raise errors.InputError(
      f'cannot read {path} ({_reason(error)}); it is damaged or not completely downloaded: get it again'
    ) from error
  architectures: list[str] = []
  model_args: dict[str, Any] = {}
  preprocessing: dict[str, Any] = {}
  while isinstance(content, dict):
    architectures += _architectures(content)
    model_args |= _model_args(content)
    preprocessing |= _preprocessing(content)
    wrappers = [key for key in WRAPPERS if isinstance(content.get(key), dict)]
    if not wrappers:
      break
    if len(wrappers) > 1:
      _log.info(f'{path} holds {" and ".join(wrappers)}: {wrappers[0]} is read')
    content = content[wrappers[0]]
  if not isinstance(content, dict) or not content:
    raise errors.InputError(f'{path} holds no named tensors; save the result of state_dict() of the network')
  others = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
  if others:
    raise errors.InputError(
      f'{path} holds more than named tensors, under keys that dnt does not know: {errors.list_names(others)}; save the '
      f'result of state_dict() of the network, alone or under one of {", ".join(WRAPPERS)}'
    )
  try:
    # Complex numbers stay what they are, for `names.to_variables` to refuse: as float32 they would lose a part.
    real = {str(name): value if value.is_complex() else value.float() for name, value in content.items()}
    tensors = {name: value.detach().numpy() for name, value in real.items()}
  except (RuntimeError, TypeError, NotImplementedError) as error:  # quantized, sparse, without data
    raise errors.InputError(f'{path} holds tensors that are not dense numbers ({_reason(error)})') from error
  return Content(tensors, tuple(architectures), model_args, preprocessing)


def _architectures(content: Mapping[str, Any]) -> list[str]:
  """Returns the names of the architecture in a checkpoint and in its options."""
  levels = [content, *(_options(content, key) for key in _OPTIONS)]
  found = [level.get(key) for level in levels for key in _ARCHITECTURE]
  return [name for name in found if isinstance(name, str)]


def _model_args(content: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what `--gp` and `--model-kwargs` of timm's training program were, by timm's names in a network."""
  options = _options(content, 'args')
  more = options.get('model_kwargs')
  found = {str(key): value for key, value in more.items()} if isinstance(more, dict) else {}
  return {'global_pool': options['gp']} | found if 'gp' in options else found


def _preprocessing(content: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the options of a training program that may say how it prepared images."""
  options = _options(content, 'args')
  return {key: options[key] for key in _PREPROCESSING if key in options}


def _options(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
  """Returns the options that a training program saved under a key; empty if it saved none."""
  found = content.get(key)
  found = vars(found) if isinstance(found, argparse.Namespace) else found
  return found if isinstance(found, dict) else {}


def _reason(error: Exception) -> str:
  """Returns the line of torch's message that names the problem."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  reasons = [line for line in lines if line.startswith('WeightsUnpickler error')]
  # We drop the rest, which advises to trust the file.
  return (reasons or lines or [type(error).__name__])[0].removeprefix('WeightsUnpickler error: ').partition('. ')[0]
