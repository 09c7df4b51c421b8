"""Downloads weights from the Hugging Face hub; later calls find them in the cache without a network."""

import logging
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

from dnt import errors, temporary
from dnt.weights import torch_files

_log = logging.getLogger(__name__)
WEIGHTS, CONFIG = 'model.safetensors', 'config.json'
INDEX = f'{WEIGHTS}.index.json'  # in place of the weights, if they are in several files
_COMMIT = re.compile(r'[0-9a-f]{40}')


class Download(NamedTuple):
  """Holds the local path of the weights, and the commit of the repository that they are of ('' if it is not known)."""

  path: pathlib.Path
  revision: str


def download(name: str) -> Download:
  """Returns a repository's `model.safetensors`, with its `config.json` in the same folder, both of one commit.

  If the weights are in several files, it is the path of their index, and all of them are in the folder.

  Args:
    name: '<owner>/<name>' or '<owner>/<name>@<revision>', such as 'timm/resnet50.a1_in1k'; the revision is a commit, a
      tag or a branch.

  Raises:
    errors.InputError: huggingface_hub is not installed, there is no such repository or file, or no network.
  """
  try:
    import huggingface_hub
  except ImportError as error:
    raise errors.InputError(
      f'hf:{name} needs huggingface_hub, which is not installed: pip install huggingface_hub'
    ) from error
  repository, at, revision = name.partition('@')
  if at and not revision:
    raise errors.InputError(f'hf:{name} names no revision after the @; give a commit, a tag or a branch')
  try:
    try:
      return _fetch(huggingface_hub.hf_hub_download, repository, revision)
    except OSError as error:
      if not error.filename:  # of the network
        raise
      _log.info(f'hf:{name} is not kept ({error.filename}: {error.strerror}), so the next start fetches it again')
      folder = temporary.make_folder('dnt-')
      return _fetch(huggingface_hub.hf_hub_download, repository, revision, cache_dir=str(folder))
  except Exception as error:  # the hub, two HTTP libraries and the disk raise different types
    reason = errors.first_line(error)
    page = f'https://huggingface.co/{repository}' + (f'/tree/{revision}' if revision else '')
    raise errors.InputError(
      f'cannot fetch hf:{name} ({reason}); check the name, the revision and the network, or fetch {WEIGHTS} and '
      f'{CONFIG} of {page} by other means into one folder and give <folder>/{WEIGHTS}'
    ) from error


def _fetch(download_file: Callable[..., str], repository: str, revision: str, **where: str) -> Download:
  def get(file, revision):
    return pathlib.Path(download_file(repository, file, **where, **({'revision': revision} if revision else {})))

  # The cache has a folder for each commit. All files come from the same one, though the branch may have moved.
  commit = get(CONFIG, revision).parent.name
  commit = commit if _COMMIT.fullmatch(commit) else ''
  revision = commit or revision
  try:
    return Download(get(WEIGHTS, revision), commit)
  except Exception as error:
    if not any('EntryNotFound' in each.__name__ for each in type(error).__mro__):
      raise
  index = get(INDEX, revision)
  for part in sorted(set(torch_files.places_of_index(index).values())):
    get(part, revision)
  return Download(index, commit)
