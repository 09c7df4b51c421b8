"""Gives a workdir one owner at a time: the lead process of the run that writes there.

The owner's file in the workdir (`owner.json`) names it. A thread of the owner renews the file's time every few seconds.
In a bucket the file is an object, and each change names the version that it replaces in place of a lock.
A second run is refused while the owner lives. The file of an owner that died remains:
  - On the machine of the owner, process id and start time show that it has died, and the next run takes over at once.
  - Elsewhere (another machine or container), the next run takes over when the file has not been renewed for a minute.
"""

import contextlib
import datetime
import functools
import json
import logging
import os
import pathlib
import platform
import tempfile
import threading
import time
from collections.abc import Generator
from typing import Any, NamedTuple

import filelock

from dnt import buckets, errors, files
from dnt import workdir as workdir_lib
from dnt.parallel import multihost, signals

RENEW = 5.0  # seconds between two renewals
STALE = 60.0  # seconds without a renewal after which an owner on another machine counts as dead
_POLL = 1.0  # seconds between two looks at an owner that may be dead
_FIRST = 0.5  # seconds until the first renewal, which finds a second owner where the file system has no locks
_LOCKING = 5.0  # seconds to wait for another process that reads or writes the owner's file, which takes milliseconds
_log = logging.getLogger(__name__)


class _Seen(NamedTuple):
  """Holds what a look at the owner's file found: its content ({}: it is damaged), and its time in seconds."""

  owner: dict[str, Any]
  renewed: float


class _Busy(Exception):
  """Raised if the owner may still live, but nothing shows it yet."""

  def __init__(self, seen: _Seen, age: float):
    self.seen, self.age = seen, age


def check_free(workdir: pathlib.Path) -> None:
  """Refuses a workdir whose owner lives on this machine; changes nothing.

  Raises:
    errors.InputError: the owner lives.
  """
  place = _File(workdir)
  found = place.look()
  if found and _lives(found.owner, _identity(place.path), place):
    raise errors.InputError(_refusal(place, found.owner))


@contextlib.contextmanager
def own(workdir: str | os.PathLike, alone: bool = False) -> Generator[None]:
  """Makes this run the owner of a workdir within the context; every process of the run calls it.

  Args:
    workdir: the workdir, a folder (created if missing), the address of one in a bucket, or a mirror.
    alone: whether this is the only process, which then asks no device (a comparison leaves them to its runs).

  Raises:
    errors.InputError: another run owns the workdir, its owner's file is of another program, or the folder cannot be
      written; nothing in it has changed.
  """
  lead, mine, seen, since = alone or multihost.is_lead(), None, None, time.monotonic()
  place = _Object(where) if (where := buckets.address(workdir)) else _File(pathlib.Path(workdir))
  ended = threading.Event()
  thread = threading.Thread(target=lambda: _renew(place, mine or {}, ended), daemon=True)
  try:
    while True:
      problem, waits = None, False
      if lead:
        try:
          mine = _take(place, seen, since)
        except errors.InputError as error:
          problem = str(error)
        except _Busy as busy:
          if seen is None:
            _log.info(
              f'{place.workdir} belongs to {_describe(busy.seen.owner)}, last seen {max(busy.age, 0):.0f} s ago; '
              f'waiting for a sign of life (if there is none for {STALE:.0f} s, this run takes over)'
            )
          waits, seen = True, busy.seen
      # Every look has a broadcast of its own, so that the other processes do not wait longer than collectives allow.
      if not alone:
        problem, waits = multihost.broadcast_from_lead([problem, waits])
      if problem:
        raise errors.InputError(problem)
      if not waits:
        break
      time.sleep(_POLL)
    if mine:
      thread.start()
    yield
  finally:
    ended.set()
    if thread.is_alive():
      thread.join()
    if mine:
      place.release(mine)


def _take(place: '_File | _Object', seen: _Seen | None, since: float) -> dict[str, Any]:
  """Writes the owner's file of this process and returns its content.

  Args:
    place: the owner's file.
    seen: what the look before found; None: this is the first look.
    since: `time.monotonic()` at the first look.

  Raises:
    errors.InputError: the owner lives, or the file is of another program.
    _Busy: the owner may live.
  """
  place.prepare()
  mine = _identity(place.path)
  try:
    with place.lock():
      found = place.look()
      if found is not None:
        if found.owner and not {'pid', 'host'} & found.owner.keys():
          workdir_lib.refuse_others(pathlib.Path(place.path), 'a run of dnt')
        lives = _lives(found.owner, mine, place)
        if lives is None and seen is not None and found != seen:
          lives = True  # it was renewed, or replaced by that of another run
        if lives:
          raise errors.InputError(_refusal(place, found.owner))
        if lives is None:
          age = place.now() - found.renewed
          if age < STALE and time.monotonic() - since < STALE:
            raise _Busy(found, age)
        _log.info(f'{place.workdir} belonged to {_describe(found.owner)}, which has died; taking over')
      place.write(mine)
  except filelock.Timeout as error:
    raise errors.InputError(
      f'{place.workdir} is in use: another process holds {workdir_lib.OWNER}.lock. Run the same command again when it '
      'has ended, or give another --workdir'
    ) from error
  except OSError as error:
    raise errors.InputError(f'{place.path} cannot be written ({error.strerror}); give another --workdir') from error
  return mine


def _renew(place: '_File | _Object', mine: dict[str, Any], ended: threading.Event) -> None:
  """Renews the time of the owner's file, until the run ends.

  If the file names another run, that run has taken over: this process was paused (as by SIGSTOP, or with its machine),
  and may not write any more. It ends at once, because its main thread may be anywhere.
  """
  wait = _FIRST
  while not ended.wait(wait):
    wait = RENEW
    try:
      found = place.renew(mine)
      if found and found.owner and found.owner != mine:
        signals.say(f'error: {_describe(found.owner)} has taken over {place.workdir}; this run ends without saving')
        signals.exit_at_once(1)
    except OSError:
      pass  # removed, or a server that does not answer at the moment


class _File:
  """The owner's file in a folder; a lock on the file beside it admits one process that changes it."""

  def __init__(self, workdir: pathlib.Path):
    self.workdir, self._folder = str(workdir), workdir
    self._file = workdir / workdir_lib.OWNER

  @property
  def path(self) -> str:
    """Returns the path for the file's own content."""
    return str(self._file.resolve())

  def prepare(self) -> None:
    """Creates the folder; raises an `errors.InputError` if it is not writable."""
    files.make_workdir(self._folder)

  def lock(self) -> filelock.BaseFileLock:
    """Returns a context in which no other process changes the file."""
    return filelock.FileLock(f'{self._file}.lock', _LOCKING)

  def look(self) -> _Seen | None:
    """Returns what the file holds; None: there is no owner."""
    try:
      with self._file.open('rb') as file:
        return _seen(file.read(), os.fstat(file.fileno()).st_mtime)
    except FileNotFoundError:
      return None

  def write(self, mine: dict[str, Any]) -> None:
    """Writes the file; raises an `OSError` if this fails."""
    files.write_json(self._file, mine)

  def renew(self, mine: dict[str, Any]) -> _Seen | None:
    """Renews the file's time, unless it names another owner; returns what it holds."""
    found = self.look()
    if not (found and found.owner and found.owner != mine):
      os.utime(self._file)  # a file server sets its own time, which no clock of another machine can shift
    return found

  def release(self, mine: dict[str, Any]) -> None:
    """Removes the file and that of its lock, unless the file has disappeared or names another owner."""
    lock = self.lock()
    with contextlib.suppress(OSError), lock:  # a timeout is an OSError
      found = self.look()
      if found and found.owner == mine:
        self._file.unlink()
        os.unlink(lock.lock_file)  # a process that already waits for this lock locks a new file

  def now(self) -> float:
    """Returns the time of the folder's file system in seconds; a file server may have another than this machine."""
    with tempfile.TemporaryFile(dir=self._folder) as file:
      return os.fstat(file.fileno()).st_mtime

  def is_other(self, path: str) -> bool:
    """Returns whether `path` is there and is another file: that of which this one is a copy."""
    original = pathlib.Path(path)
    return original.exists() and not original.samefile(self._file)


class _Object:
  """The owner's object in a bucket, with the methods of `_File`; what it replaces is the version that it saw last."""

  def __init__(self, where: str):
    self.workdir, self.path = where, f'{where}/{workdir_lib.OWNER}'
    self._folder, self._generation = buckets.Folder(where), 0

  def prepare(self) -> None:
    pass

  def lock(self) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()

  def look(self) -> _Seen | None:
    found = self._folder.read(workdir_lib.OWNER)
    self._generation = found.generation if found else 0
    return _seen(found.content, found.written) if found else None

  def write(self, mine: dict[str, Any]) -> None:
    found = self.renew(mine)
    if found is None or found.owner != mine:
      raise _Busy(found or _Seen({}, 0.0), 0.0)

  def renew(self, mine: dict[str, Any]) -> _Seen | None:
    try:
      written = self._folder.write(workdir_lib.OWNER, json.dumps(mine).encode(), self._generation)
    except FileExistsError:  # another has written it, or this process in a request whose answer was lost
      return self.look()
    self._generation = written.generation
    return _Seen(mine, written.written)

  def release(self, mine: dict[str, Any]) -> None:
    del mine  # with another owner, it has another version
    with contextlib.suppress(OSError):
      self._folder.remove(workdir_lib.OWNER, self._generation)

  def now(self) -> float:
    written = self._folder.write(f'{workdir_lib.OWNER}.now', b'').written
    self._folder.remove(f'{workdir_lib.OWNER}.now')
    return written

  def is_other(self, path: str) -> bool:
    return path != self.path


def _seen(content: bytes, renewed: float) -> _Seen | None:
  """Returns what the content of an owner's file says; None: nothing."""
  if not content:
    return None
  try:
    owner = json.loads(content)
  except ValueError:
    owner = {}
  return _Seen(owner if isinstance(owner, dict) else {}, renewed)


def _identity(path: str) -> dict[str, Any]:
  """Returns the content of this process's owner's file, which is at `path`."""
  return {
    'host': platform.node(),
    'pid': os.getpid(),
    'since': datetime.datetime.now().astimezone().isoformat(' ', 'seconds'),
    'path': path,
    'started': _started(os.getpid()),
    **_machine(),
  }


@functools.cache
def _machine() -> dict[str, str | None]:
  """Returns what tells apart machines and containers of one name: only within both do process ids mean the same."""
  boot, namespace = None, None
  with contextlib.suppress(OSError):
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  with contextlib.suppress(OSError):
    namespace = os.readlink('/proc/self/ns/pid')
  return {'boot': boot, 'namespace': namespace}


def _lives(owner: dict[str, Any], here: dict[str, Any], place: _File | _Object) -> bool | None:
  """Returns whether an owner lives; None: this process cannot tell.

  Args:
    owner: content of the owner's file.
    here: `_identity` of this process.
    place: the owner's file.
  """
  if any(owner.get(name) != here[name] for name in ('host', 'boot', 'namespace')):
    return None
  pid, started = owner.get('pid'), owner.get('started')
  if not isinstance(pid, int) or pid <= 0:
    return None
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except (PermissionError, OverflowError):
    pass  # a process of another user
  found = _started(pid)
  if found is None or started is None:
    return None
  # A copy of a workdir includes the file of the owner, which writes to the original only.
  return found == started and not place.is_other(str(owner.get('path')))


def _started(pid: int) -> str | None:
  """Returns when a process started, in ticks since the machine started; 'ended' if only its exit code remains.

  Returns None if the system does not show it.
  """
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return None
  state, *fields = text.rpartition(')')[2].split()  # the name before it may contain anything
  return 'ended' if state in 'ZX' else fields[18]


def _refusal(place: _File | _Object, owner: dict[str, Any]) -> str:
  return (
    f'{place.workdir} is in use by {_describe(owner)}. Wait until it ends, stop it there, or give another --workdir'
  )


def _describe(owner: dict[str, Any]) -> str:
  if not owner:
    return f'an unknown run (its {workdir_lib.OWNER} is damaged)'
  return f'another run (process {owner.get("pid")} on {owner.get("host")}, since {owner.get("since")})'
