"""Notices within seconds that another process of the run is lost, and ends this one with a line that names it.

jax notices too, but never says which process it was: a collective fails with a traceback, and the coordination service
aborts the process. So every process keeps its connection to process 0 from the rendezvous, and a thread watches it. The
system closes the connections of a process that is killed; process 0 then tells the others. A process that ends by
itself says so first, with its exit code and its error. Every second each process sends what it does.
"""

import atexit
import contextlib
import ctypes
import json
import selectors
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dnt.parallel import activity, signals

BEAT = 1.0  # seconds between two messages of a process
SILENCE = 90.0  # seconds without a message, in which this process has run, after which another counts as lost
GRACE = 5.0  # seconds in which this process may end with an error of its own after another has failed
PATIENCE = 3.0  # seconds in which an error of this process may turn out to be the consequence of another's end
_LINGER = 0.5  # seconds by which process 0 outlives the others, which it tells; the others outlive the lost one by half
_HINT = 'see its output, and start all processes again: the run goes on from its newest checkpoint'


class _Verdict(NamedTuple):
  """Says why this process must end.

  Attributes:
    line: for the user.
    code: the exit code.
    deadline: `time.monotonic()` at which it must have ended.
  """

  line: str
  code: int
  deadline: float


class Peers:
  """Watches the other processes from a thread, as long as they are connected."""

  def __init__(self, process: int, hosts: Sequence[str], connections: Mapping[int, socket.socket]):
    """Starts the thread.

    Args:
      process: id of this process.
      hosts: name of each process's machine, in the order of the processes.
      connections: as of `rendezvous.Met`; this object closes them.
    """
    self._activities: dict[int, activity.Description] = {}  # of process 0: what the others do
    self._process, self._hosts, self._connections = process, hosts, dict(connections)
    for peer in connections.values():
      peer.settimeout(BEAT)
      # A message that waits for an acknowledgement is lost if this process ends before it has read what the other sent.
      peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self._heard = dict.fromkeys(connections, time.monotonic())  # when each process sent its last message
    self._unfinished = dict.fromkeys(connections, b'')
    self._left: set[int] = set()  # processes that have said that they end
    self._sending, self._blaming = threading.Lock(), threading.Event()
    self._left_with: int | None = None  # the exit code of this process, once it has said it
    self._reason, self._verdict = '', None
    self._thread = threading.Thread(target=self._watch, name='peers', daemon=True)
    self._thread.start()

  def name(self, process: int) -> str:
    """Returns the name of a process in messages."""
    return f'process {process} (on {self._hosts[process]})'

  def describe(self) -> dict[int, tuple[activity.Description, float]]:
    """Returns, in process 0, what each other process said last, and how many seconds ago."""
    now = time.monotonic()
    return {process: (said, now - self._heard[process]) for process, said in sorted(self._activities.items())}

  def explain(self, text: str) -> None:
    """Stores the error with which this process is about to end, for the others.

    It waits a moment: if a lost process has caused the error, this one ends here with the line that says so.
    """
    self._reason = text
    time.sleep(_LINGER / 2)

  def blame(self) -> None:
    """Waits a moment after an error; if another process has caused it, this one ends here with a line that says so."""
    self._blaming.set()
    time.sleep(PATIENCE)
    self._blaming.clear()

  def leave(self, code: int = 0, grace: float = 0.0) -> None:
    """Says that this process is about to end, whatever the others do from now on; any thread may call it, repeatedly.

    Args:
      code: its exit code.
      grace: seconds that process 0 waits for the others to end first: jax aborts them as soon as it has ended.
    """
    if self._left_with is None:
      self._left_with, self._verdict = code, None
      self._send({'left': code, 'reason': self._reason, 'grace': grace})
      if code and self._process == 0 and threading.current_thread() is not self._thread:
        self._thread.join(grace + _LINGER)

  def _send(self, message: Mapping[str, Any]) -> None:
    line = json.dumps(message).encode() + b'\n'
    with self._sending:
      for peer in self._connections.values():
        with contextlib.suppress(OSError):  # it has ended; `_receive` finds out
          peer.sendall(line)

  def _watch(self) -> None:
    with selectors.DefaultSelector() as selector:
      for process, peer in self._connections.items():
        selector.register(peer, selectors.EVENT_READ, process)
      beat = 0.0
      while selector.get_map() or self._verdict is not None:
        if time.monotonic() >= beat:
          self._send({'activity': activity.describe()} if self._process else {})
          beat = time.monotonic() + BEAT
        now = time.monotonic()
        due = max(now, beat) if self._verdict is None else now + BEAT / 20
        ready = selector.select(due - now)
        for process in [key.data for key, _ in ready]:
          if not self._receive(process):
            selector.unregister(self._connections[process])
            self._connections[process].close()
        self._excuse(time.monotonic() - due)
        self._judge()

  def _receive(self, process: int) -> bool:
    """Takes the messages of a process; returns whether there may be more."""
    try:
      received = self._connections[process].recv(2**16)
    except OSError:
      received = b''
    self._heard[process] = time.monotonic()
    *lines, self._unfinished[process] = (self._unfinished[process] + received).split(b'\n')
    for line in lines:
      self._take(process, json.loads(line))
    if received:
      return True
    if process not in self._left:
      self._left.add(process)
      self._decide(
        f'error: {self.name(process)} was lost: its connection closed, as when it is killed, runs out of memory or its '
        f'machine goes down; {_HINT}'
      )
    return False

  def _excuse(self, late: float) -> None:
    """Does not count as silence the seconds for which this process itself stood still, perhaps as all others did."""
    for process, heard in self._heard.items():
      self._heard[process] = min(heard + max(late, 0.0), time.monotonic())

  def _take(self, process: int, message: Mapping[str, Any]) -> None:
    if 'activity' in message:
      self._activities[process] = message['activity']
    if 'verdict' in message:
      self._decide(*message['verdict'])
    if 'left' not in message:
      return
    self._left.add(process)
    code, grace = message['left'], message['grace']
    if code in signals.CODES:
      self._decide(f'{self.name(process)} was stopped by {signal.Signals(code - 128).name}', code, grace)
    elif code:
      reason = f': {message["reason"]}' if message['reason'] else f' with exit code {code}'
      # Bad input stays bad input: launchers do not start a run again that ends with 2.
      self._decide(f'error: {self.name(process)} failed{reason}; {_HINT}', 2 if code == 2 else 1, grace)

  def _decide(self, line: str, code: int = 1, grace: float = 0.0) -> None:
    """Stores why this process must end, and tells the others; the first reason counts."""
    if self._verdict is not None or self._left_with is not None:
      return
    self._verdict = _Verdict(line, code, time.monotonic() + grace)
    if self._process == 0:
      self._send({'verdict': [line, code, grace]})

  def _judge(self) -> None:
    """Ends this process if there is a reason and its time has come."""
    for process, heard in self._heard.items():
      if process not in self._left and time.monotonic() - heard > SILENCE:
        self._left.add(process)
        self._decide(
          f'error: {self.name(process)} was lost: it has not answered for {SILENCE:.0f} s, as when its machine or the '
          f'network is down; {_HINT}'
        )
    verdict = self._verdict
    if verdict is None or (time.monotonic() < verdict.deadline and not self._blaming.is_set()):
      return
    signals.say(verdict.line)
    # Launchers should see the end of the lost process first. Process 0 ends last: jax aborts the others without it.
    if 0 not in self._left:
      time.sleep(_LINGER / 2 if self._process else _LINGER)
    signals.exit_at_once(verdict.code)


_current: Peers | None = None


def watch(process: int, hosts: Sequence[str], connections: Mapping[int, socket.socket]) -> None:
  """Watches the other processes until this one ends; see `Peers`, which `current` returns."""
  global _current
  _current = Peers(process, hosts, connections)
  # jax aborts the process at once when process 0 is lost. The handler is `sleep` itself, with the number of the signal
  # as its seconds: it holds up only the thread that aborts, needs no Python, and leaves the time to end with our line.
  library = ctypes.CDLL(None)
  library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
  library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))
  signals.before_exit.append(_current.leave)
  atexit.register(_current.leave)


def current() -> Peers | None:
  """Returns what watches the other processes; None in a single process."""
  return _current
