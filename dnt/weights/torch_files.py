"""Tensors by name from PyTorch's files: safetensors, and pickles read by torch's own unpickler of tensors alone."""

import pathlib
import pickle
import warnings

import numpy as np

from dnt import errors

# Where training programs keep the weights in what they save: timm, torchvision's references.
WRAPPERS = ('state_dict', 'model')


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Every tensor of a `.safetensors` file, in its own dtype.

  Raises:
    errors.InputError: it is damaged or cut short.
  """
  import safetensors
  from safetensors import numpy as safetensors_numpy

  try:
    return safetensors_numpy.load_file(path)
  except (safetensors.SafetensorError, OSError) as error:
    raise errors.InputError(
      f'cannot read {path} ({error}); it is damaged or was not downloaded whole: get it again'
    ) from error
  except (KeyError, TypeError) as error:  # a dtype that NumPy lacks
    raise errors.InputError(f'{path} holds numbers that NumPy has no type for ({error}); save it as float32') from error


def read_pickle(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Every tensor of what `torch.save` wrote, as float32; code in the file is refused and not executed.

  Raises:
    errors.InputError: torch is not installed, or the file is damaged, cut short, or holds anything but tensors.
  """
  try:
    import torch
  except ImportError as error:
    raise errors.InputError(
      f'{path} can only be read with torch: pip install torch, or give the same weights as .safetensors'
    ) from error
  try:
    with warnings.catch_warnings(action='ignore'):  # on formats of pickles
      content = torch.load(path, map_location='cpu', weights_only=True)
  except pickle.UnpicklingError as error:
    raise errors.InputError(
      f'{path} is refused, and nothing in it was executed: it is damaged or holds more than tensors '
      f'({_reason(error)}); save the state_dict() alone, or give the weights as .safetensors'
    ) from error
  except Exception as error:  # torch raises a dozen types for a file that is cut short or of another kind
    raise errors.InputError(
      f'cannot read {path} ({_reason(error)}); it is damaged or was not downloaded whole: get it again'
    ) from error
  for wrapper in WRAPPERS:
    if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
      content = content[wrapper]
  if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
    raise errors.InputError(f'{path} holds no tensors by name; save what state_dict() of the network returns')
  return {str(name): value.float().numpy() for name, value in content.items()}


def _reason(error: Exception) -> str:
  """The line of torch's message that says what is wrong."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  said = [line for line in lines if line.startswith('WeightsUnpickler error')]
  # What follows is advice to trust the file.
  return (said or lines or [type(error).__name__])[0].removeprefix('WeightsUnpickler error: ').partition('. ')[0]
