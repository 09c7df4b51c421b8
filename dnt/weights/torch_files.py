"""Reads named tensors from PyTorch's files: safetensors, and pickles through torch's tensors-only unpickler."""

import pathlib
import pickle
import warnings

import numpy as np

from dnt import errors

# Keys under which training programs (timm, torchvision's references) save the weights.
WRAPPERS = ('state_dict', 'model')


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


def read_pickle(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads every tensor of a `torch.save` file as float32; refuses files with code and never executes it.

  Raises:
    errors.InputError: torch is not installed, or the file is damaged, truncated, or holds anything but tensors.
  """
  try:
    import torch
  except ImportError as error:
    raise errors.InputError(
      f'{path} can only be read with torch: pip install torch, or give the same weights as .safetensors'
    ) from error
  try:
    with warnings.catch_warnings(action='ignore'):  # torch warns about pickle formats
      content = torch.load(path, map_location='cpu', weights_only=True)
  except pickle.UnpicklingError as error:
    raise errors.InputError(
      f'{path} is refused, and nothing in it was executed: it is damaged or holds more than tensors '
      f'({_reason(error)}); save the state_dict() alone, or give the weights as .safetensors'
    ) from error
  except Exception as error:  # torch raises a dozen types for truncated files and other formats
    raise errors.InputError(
      f'cannot read {path} ({_reason(error)}); it is damaged or not completely downloaded: get it again'
    ) from error
  for wrapper in WRAPPERS:
    if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
      content = content[wrapper]
  if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
    raise errors.InputError(f'{path} holds no named tensors; save the result of state_dict() of the network')
  return {str(name): value.float().numpy() for name, value in content.items()}


def _reason(error: Exception) -> str:
  """Returns the line of torch's message that names the problem."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  reasons = [line for line in lines if line.startswith('WeightsUnpickler error')]
  # We drop the rest, which advises to trust the file.
  return (reasons or lines or [type(error).__name__])[0].removeprefix('WeightsUnpickler error: ').partition('. ')[0]
