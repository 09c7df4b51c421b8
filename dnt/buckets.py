"""Keeps the workdir of a run in a bucket of Google Cloud Storage, `gs://<bucket>/<path>`.

A bucket has no files: its objects cannot be appended to, renamed or locked. So each process writes the small files of
such a workdir to a local folder, the mirror, and uploads those that have changed. The checkpoints are only in the
bucket: Orbax writes them there, each process its part. `parallel.ownership` keeps the owner's object there.

The path of a mirror ends in the address, so that the one follows from the other: `/tmp/dnt-mirror-x/gs/<bucket>/<path>`
is that of `gs://<bucket>/<path>`. Its files are those of the bucket when it is made, and it is removed once all are
uploaded. The order of uploads makes a run go on from any machine: whatever a checkpoint counts as done is in the bucket
before the checkpoint (`Mirror.upload` waits). In between, a thread uploads for those who watch the run.

Nothing here is needed, or imported, for a workdir in a folder.
"""

import contextlib
import errno
import functools
import logging
import mimetypes
import os
import pathlib
import re
import shutil
import tempfile
import threading
from collections.abc import Generator
from typing import Any, NamedTuple, cast

from dnt import errors, temporary

EVERY = 30.0  # seconds between two uploads of what has changed
PATIENCE = 120.0  # seconds for which a request that fails is repeated
_ADDRESS = re.compile(r'gs:/+(.*)')  # pathlib makes one slash of two
_PREFIX = 'dnt-mirror-'
_MIRROR = re.compile(rf'/{_PREFIX}[^/]+/gs/(.*)')
_log = logging.getLogger(__name__)


def address(path: str | os.PathLike) -> str:
  """Returns the address of a workdir in a bucket, of an object, or of the file of a mirror; '' for any other path."""
  text = os.fspath(path)
  match = _ADDRESS.fullmatch(text) or _MIRROR.search(text)
  return 'gs://' + '/'.join(filter(None, match[1].split('/'))) if match else ''


def name(workdir: str | os.PathLike) -> str:
  """Returns a workdir as messages name it: its address if it is in a bucket, else its path."""
  return address(workdir) or os.fspath(workdir)


def path(where: str) -> pathlib.Path:
  """Returns an address as a path, with the methods of pathlib's that dnt and Orbax use."""
  _open(_split(where)[0])  # it prepares what etils uses
  from etils import epath

  return cast(pathlib.Path, epath.Path(where))


class Object(NamedTuple):
  """Holds an object: its bytes, the number of its version, and when that was written, in seconds of the server."""

  content: bytes
  generation: int
  written: float


class Folder:
  """The objects below an address. A request that fails is repeated for `PATIENCE` seconds.

  All methods raise an `OSError` that names the address if the bucket does not do what they ask; a `FileExistsError` if
  there is another version than they ask for, or none.
  """

  def __init__(self, where: str):
    """Checks that the bucket can be reached.

    Args:
      where: the address.

    Raises:
      errors.InputError: it cannot be reached, is not there or admits nobody with these credentials; or a package is
        missing.
    """
    self._address = where
    bucket, inside = _split(where)
    self._bucket, self._prefix = _open(bucket), f'{inside}/' if inside else ''

  def versions(self) -> dict[str, int]:
    """Lists the objects in the folder itself, with the numbers of their versions."""
    with self._trying():
      found = self._bucket.list_blobs(prefix=self._prefix, delimiter='/', retry=_retry())
      return {name: blob.generation for blob in found if (name := blob.name.removeprefix(self._prefix))}

  def folders_with(self, file: str) -> list[str]:
    """Lists the folders in this one that hold an object of this name."""
    with self._trying():
      found = self._bucket.list_blobs(prefix=self._prefix, match_glob=f'{self._prefix}*/{file}', retry=_retry())
      return [blob.name.removeprefix(self._prefix).partition('/')[0] for blob in found]

  def read(self, file: str) -> Object | None:
    """Returns an object; None if there is none."""
    with self._trying(file):
      while blob := self._bucket.get_blob(self._prefix + file, retry=_retry()):
        with contextlib.suppress(FileExistsError), self._trying(file):  # it was replaced since
          content = blob.download_as_bytes(if_generation_match=blob.generation, retry=_retry())
          return Object(content, blob.generation, blob.updated.timestamp())
    return None

  def write(self, file: str, content: bytes, generation: int | None = None) -> Object:
    """Replaces an object.

    Args:
      file: its name.
      content: its new content.
      generation: the version that it must have, 0 for none; None: any.
    """
    with self._trying(file):
      blob = self._bucket.blob(self._prefix + file)
      kind = mimetypes.guess_type(file)[0] or 'application/octet-stream'  # a browser shows a page and an image
      blob.upload_from_string(content, kind, if_generation_match=generation, retry=_retry())
      return Object(content, blob.generation, blob.updated.timestamp())

  def remove(self, file: str, generation: int | None = None) -> None:
    """Removes an object; `generation` as for `write`."""
    with self._trying(file):
      self._bucket.blob(self._prefix + file).delete(if_generation_match=generation, retry=_retry())

  def _trying(self, file: str = '') -> contextlib.AbstractContextManager[None]:
    return _translated(f'{self._address}/{file}'.rstrip('/'))


class Mirror:
  """Context of a workdir: a local folder with its small files, which is the workdir itself if that is a folder.

  Attributes:
    folder: the folder.
  """

  def __init__(self, workdir: str | os.PathLike):
    """Makes the mirror of a workdir that is in a bucket.

    Args:
      workdir: a folder, or the address of one in a bucket.

    Raises:
      errors.InputError: as for `Folder`.
    """
    where = address(workdir)
    self._remote = Folder(where) if where else None
    self.folder = _make_folder(tempfile.mkdtemp(prefix=_PREFIX), where) if where else pathlib.Path(workdir)
    self._there: dict[pathlib.Path, tuple[int, int]] = {}  # the versions of the files that are in the bucket
    self._lock, self._ended, self._failed = threading.Lock(), threading.Event(), False
    self._thread = threading.Thread(target=self._upload_regularly, name='mirror', daemon=True)

  def __enter__(self) -> 'Mirror':
    if self._remote:
      _download(self._remote, self.folder, {})
      self._there = {file: _version(file) for file in self.folder.iterdir()}
      self._thread.start()
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    if not self._remote:
      return
    self._ended.set()
    self._thread.join()
    if kind is None or not self._failed:  # not a second time
      try:
        self.upload()
      except errors.RunError as error:
        if kind is None:
          raise
        _log.info(str(error))  # the first error counts
    if not self._failed:
      _remove(self.folder)

  def upload(self) -> None:
    """Uploads the files that have changed, and waits until they are there; any thread may call it.

    Raises:
      errors.RunError: the bucket does not take them.
    """
    if not self._remote:
      return
    with self._lock:
      try:
        for file in sorted(self.folder.rglob('*')):
          if file.suffix != '.partial' and file.is_file() and self._there.get(file) != (version := _version(file)):
            self._remote.write(str(file.relative_to(self.folder)), file.read_bytes())
            self._there[file] = version
      except OSError as error:
        self._failed = True
        raise errors.RunError(
          f'{error.filename} cannot be uploaded ({error.strerror}); what the bucket lacks is kept in {self.folder}'
        ) from error
      self._failed = False

  def _upload_regularly(self) -> None:
    while not self._ended.wait(EVERY):
      with contextlib.suppress(errors.RunError):  # the next upload that waits reports it
        self.upload()


def local(workdir: str | os.PathLike) -> pathlib.Path:
  """Returns the folder from which to read a workdir: for an address, a mirror that is removed when the program ends.

  Each call downloads what has changed since the one before, as the run may go on.

  Raises:
    errors.InputError: as for `Folder`.
  """
  if not _ADDRESS.fullmatch(os.fspath(workdir)):
    return pathlib.Path(workdir)
  copy = _read_only(address(workdir))
  _download(*copy)
  return copy.folder


class _Copy(NamedTuple):
  """Holds a mirror that is only read, with the versions of its files."""

  remote: Folder
  folder: pathlib.Path
  versions: dict[str, int]


@functools.cache
def _read_only(where: str) -> _Copy:
  return _Copy(Folder(where), _make_folder(temporary.make_folder(_PREFIX), where), {})


def _make_folder(root: str | os.PathLike, where: str) -> pathlib.Path:
  folder = pathlib.Path(root, 'gs', where.removeprefix('gs://'))
  folder.mkdir(parents=True)
  return folder


def _remove(folder: pathlib.Path) -> None:
  """Removes the folder of a mirror with those in which it is."""
  root = next(each for each in folder.parents if each.name.startswith(_PREFIX))
  shutil.rmtree(root, ignore_errors=True)


def _download(remote: Folder, folder: pathlib.Path, versions: dict[str, int]) -> None:
  """Makes the files of a folder the small ones of a workdir: those in the workdir itself.

  Args:
    remote: the workdir.
    folder: the folder.
    versions: of the files that are there already; changed to those that are there now.
  """
  try:
    newest = remote.versions()
    for file in versions.keys() - newest.keys():
      (folder / file).unlink(missing_ok=True)
      del versions[file]
    for file, version in newest.items():
      if versions.get(file) != version and (found := remote.read(file)):
        (folder / file).write_bytes(found.content)
        versions[file] = found.generation
  except OSError as error:
    raise errors.InputError(f'{error.filename} cannot be read ({error.strerror})') from error


def _version(file: pathlib.Path) -> tuple[int, int]:
  """Returns what changes whenever a file does: its time and its size."""
  found = file.stat()
  return found.st_mtime_ns, found.st_size


def _split(where: str) -> tuple[str, str]:
  """Returns the bucket and the path in it."""
  bucket, _, inside = where.removeprefix('gs://').partition('/')
  return bucket, inside


@functools.cache
def _open(bucket: str) -> Any:
  """Returns a bucket as an object of Google's client, and prepares etils for it."""
  try:
    import fsspec.config
    import gcsfs  # noqa: F401
    from google.cloud import storage
  except ImportError as error:
    raise errors.InputError(f'gs://{bucket} needs gcsfs ({error}): pip install gcsfs, or give a folder') from error
  os.environ['EPATH_USE_TF'] = 'false'  # where TensorFlow is installed, etils would use it, in place of gcsfs
  # A listing that gcsfs keeps lacks what TensorStore and other processes have written since.
  fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False
  try:
    with _translated(f'gs://{bucket}'):
      return storage.Client().get_bucket(bucket, retry=_retry())
  except OSError as error:
    reason = error.strerror or str(error)
    raise errors.InputError(
      f'the bucket gs://{bucket} cannot be reached ({reason}); check its name, and that the credentials (gcloud auth '
      'application-default login; on a machine of the cloud, its service account) may get it and write to it'
    ) from error


def _retry() -> Any:
  from google.cloud.storage import retry

  return retry.DEFAULT_RETRY.with_timeout(PATIENCE)


@contextlib.contextmanager
def _translated(where: str) -> Generator[None]:
  """Raises errors of Google's client as `OSError`s that name what they are about."""
  import requests
  from google.api_core import exceptions
  from google.auth import exceptions as auth

  try:
    yield
  except (exceptions.PreconditionFailed, exceptions.NotFound) as error:
    raise FileExistsError(errno.EEXIST, errors.first_line(error), where) from error
  except (exceptions.GoogleAPIError, auth.GoogleAuthError, requests.RequestException) as error:
    raise OSError(errno.EIO, errors.first_line(error), where) from error
