"""Downloads weights from the Hugging Face hub; later calls find them in the cache without a network."""

import json
import pathlib

from dnt import errors

WEIGHTS, CONFIG = 'model.safetensors', 'config.json'
INDEX = f'{WEIGHTS}.index.json'  # in place of the weights, if they are in several files


def download(name: str) -> pathlib.Path:
  """Returns the local path of a repository's `model.safetensors`, with its `config.json` in the same folder.

  If the weights are in several files, it is the path of their index, and all of them are in the folder.

  Args:
    name: '<owner>/<name>', such as 'timm/resnet50.a1_in1k'.

  Raises:
    errors.InputError: huggingface_hub is not installed, there is no such repository or file, or no network.
  """
  try:
    import huggingface_hub
  except ImportError as error:
    raise errors.InputError(
      f'hf:{name} needs huggingface_hub, which is not installed: pip install huggingface_hub'
    ) from error
  try:
    huggingface_hub.hf_hub_download(name, CONFIG)
    try:
      return pathlib.Path(huggingface_hub.hf_hub_download(name, WEIGHTS))
    except Exception as error:
      if not any('EntryNotFound' in each.__name__ for each in type(error).__mro__):
        raise
      index = pathlib.Path(huggingface_hub.hf_hub_download(name, INDEX))
    for part in sorted(set(json.loads(index.read_text())['weight_map'].values())):
      huggingface_hub.hf_hub_download(name, part)
    return index
  except Exception as error:  # the hub, two HTTP libraries and the disk raise different types
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise errors.InputError(
      f'cannot fetch hf:{name} ({reason}); check the name and the network, or fetch {WEIGHTS} and {CONFIG} of '
      f'https://huggingface.co/{name} by other means into one folder and give <folder>/{WEIGHTS}'
    ) from error
