"""Replaces files atomically: a reader sees either the whole old or the whole new file, even if the writer is killed."""

import contextlib
import errno
import io
import json
import math
import os
import pathlib
import re
import resource
import tempfile
import unicodedata
from collections.abc import Mapping
from typing import Any

from dnt import buckets, errors

_FILES_ON_MACOS = 10240  # most open files that a process on macOS may ask for, whatever its limit says


def check_path(path: str | os.PathLike, flag: str = '--workdir', valid: str = 'a folder on a disk') -> None:
  """Refuses the address of a bucket where a folder is needed; `pathlib` would take it for a folder named `gs:`.

  Args:
    path: path of the folder.
    flag: command line flag or config key that names the folder, for the message.
    valid: what to give in its place, for the message. A mounted bucket is for data only: it may lose what is appended.

  Raises:
    errors.InputError: the path is an address such as gs://bucket/run.
  """
  if re.match(r'[A-Za-z][A-Za-z0-9+.-]+:/', name := os.fspath(path)):
    raise errors.InputError(
      f'{flag}={re.sub(":/+", "://", name, count=1)} is the address of a bucket or server; give {valid}'
    )


def check_workdir(path: str | os.PathLike) -> None:
  """Refuses the address of another server than Google Cloud Storage as the workdir of a run.

  Raises:
    errors.InputError: the path is an address such as s3://bucket/run.
  """
  if not buckets.address(path):
    check_path(path, valid='gs://<bucket>/<path>, or a folder on a disk')


def make_workdir(path: str | os.PathLike, flag: str = '--workdir') -> None:
  """Creates the folder if it is missing, and checks that it is writable.

  Args:
    path: path of the folder.
    flag: command line flag that names the folder, for the message.

  Raises:
    errors.InputError: the folder is not writable, or its path is not UTF-8, as checkpoints need it, or an address.
  """
  check_path(path, flag)
  whole = os.path.abspath(path)
  if whole != readable(whole):
    raise errors.InputError(f'{flag.lstrip("-")} {readable(whole)} is not valid UTF-8; give another with {flag}')
  if problem := why_not_writable(path):
    raise errors.InputError(f'{flag.lstrip("-")} {path} cannot be written ({problem}); give another with {flag}')


def why_not_writable(folder: str | os.PathLike) -> str:
  """Creates a folder if it is missing; returns why no file can be written there, '' if one can."""
  try:
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
      append(file, bytes(4096))  # a full disk may still have room for names
  except OSError as error:
    return error.strerror or str(error)
  return ''


def cache_folder(name: str) -> pathlib.Path | None:
  """Returns the folder of one of dnt's caches, `~/.cache/dnt/<name>`; None if there is no home folder."""
  try:
    return pathlib.Path.home() / '.cache' / 'dnt' / name
  except RuntimeError:  # a user id without an account and without HOME, as in a container
    return None


def readable(name: str) -> str:
  r"""Returns a file name as valid Unicode: bytes of the name that are not UTF-8 become `\xe9` and the like."""
  return name.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')


def normalized(name: str) -> str:
  """Returns a file name in the form in which names are compared: `readable`, and in Unicode's NFC.

  macOS writes an accent as a character of its own.
  """
  return unicodedata.normalize('NFC', readable(name))


def raise_open_limit() -> None:
  """Raises the number of files and connections that this process may have open, usually 1024, as far as it may.

  Processes that it starts inherit the limit.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  for most in (hard, _FILES_ON_MACOS):
    with contextlib.suppress(OSError, ValueError):
      if most == hard or soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
      return


def append(file: io.RawIOBase, content: bytes) -> None:
  """Writes all of `content` to an unbuffered file, which keeps nothing that it would write again when it is closed.

  Raises:
    OSError: it cannot be written, or only a part of it.
  """
  if file.write(content) != len(content):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write(path: str | os.PathLike, content: str | bytes) -> None:
  """Replaces the file at `path` with `content` (text as UTF-8, file names in it as `readable` returns them).

  Raises:
    OSError: it cannot be written; `filename` is the path, and the old file is still there.
  """
  path = pathlib.Path(path)
  partial = path.with_name(f'{path.name}.partial')
  try:
    with partial.open('wb', buffering=0) as file:
      append(file, readable(content).encode() if isinstance(content, str) else content)
      os.fsync(file.fileno())
    partial.replace(path)
  except OSError as error:
    with contextlib.suppress(OSError):
      partial.unlink()
    error.filename = str(path)  # a write names no file
    raise


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Replaces the file at `path` with `value` as indented JSON; NaN and infinities, which JSON lacks, become null."""
  write(path, json.dumps(_finite(value), indent=2, allow_nan=False) + '\n')


def read_object(path: str | os.PathLike) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    errors.InputError: the file cannot be read, or does not hold one.
  """
  try:
    content = json.loads(pathlib.Path(path).read_bytes())
  except OSError as error:
    raise errors.InputError(f'{path} cannot be read ({error.strerror})') from error
  except (ValueError, RecursionError) as error:
    raise errors.InputError(f'{path} is damaged: it is not JSON ({error})') from error
  if not isinstance(content, dict):
    raise errors.InputError(f'{path} is damaged: it holds no JSON object, but {type(content).__name__}')
  return content


def _finite(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _finite(each) for key, each in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(each) for each in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
