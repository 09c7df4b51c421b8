"""Downloads weights from the Hugging Face hub; later calls find them in the cache without a network."""

import atexit
import json
import logging
import pathlib
import shutil
import tempfile
from collections.abc import Callable

from dnt import errors

_log = logging.getLogger(__name__)
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
    try:
      return _fetch(huggingface_hub.hf_hub_download, name)
    except OSError as error:
      if not error.filename:  # of the network
        raise
      _log.info(f'hf:{name} is not kept ({error.filename}: {error.strerror}), so the next start fetches it again')
      folder = tempfile.mkdtemp(prefix='dnt-')
      atexit.register(shutil.rmtree, folder, ignore_errors=True)
      return _fetch(huggingface_hub.hf_hub_download, name, cache_dir=folder)
  except Exception as error:  # the hub, two HTTP libraries and the disk raise different types
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise errors.InputError(
      f'cannot fetch hf:{name} ({reason}); check the name and the network, or fetch {WEIGHTS} and {CONFIG} of '
      f'https://huggingface.co/{name} by other means into one folder and give <folder>/{WEIGHTS}'
    ) from error


def _fetch(download_file: Callable[..., str], name: str, **where: str) -> pathlib.Path:
  download_file(name, CONFIG, **where)
  try:
    return pathlib.Path(download_file(name, WEIGHTS, **where))
  except Exception as error:
    if not any('EntryNotFound' in each.__name__ for each in type(error).__mro__):
      raise
  index = pathlib.Path(download_file(name, INDEX, **where))
  for part in sorted(set(json.loads(index.read_text())['weight_map'].values())):
    download_file(name, part, **where)
  return index
