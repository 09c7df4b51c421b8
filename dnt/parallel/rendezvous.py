"""Checks that all processes are present and alike before jax.distributed starts, which would abort without naming any.

Process 0 listens on the coordinator's port, which jax takes over right afterwards. Every process (0 too) connects to
it, reports its id and waits for a verdict, which is the same for all. Each message is one JSON line. The connections
of a run that starts stay open for `parallel.peers`.
"""

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from dnt import errors, files
from dnt.parallel import agreement, clusters

PROTOCOL = 'dnt-rendezvous-1'
LONGEST = 2**20  # bytes of a message
POLL = 0.1  # seconds between checks of the clock and the connections
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)  # of this process or its machine
LINGER = 5.0  # seconds during which late processes still receive an error about bad flags


class Met(NamedTuple):
  """Holds the result of a rendezvous.

  Attributes:
    hosts: name of each process's machine, in the order of the processes.
    connections: open connections by process: of process 0 to all others, of the others to process 0.
  """

  hosts: list[str]
  connections: dict[int, socket.socket]


def meet(cluster: clusters.Cluster, timeout: float, description: Mapping[str, Any] | None = None) -> Met:
  """Waits until every process of the cluster has reported; returns in all of them.

  Args:
    cluster: all processes, and the id of this one.
    timeout: seconds to wait for the others.
    description: what must be equal in all processes, as JSON values by name.

  Raises:
    errors.InputError: two processes have the same id, processes disagree on their number or differ in their
      descriptions, the port is in use, or process 0 cannot take more connections.
    errors.RunError: processes are missing after `timeout` seconds; the message names them.
  """
  host, port = clusters.address(cluster.coordinator)
  files.raise_open_limit()  # process 0 keeps a connection to every other one
  server, roll_call = None, _RollCall(cluster, timeout)
  if cluster.process_id == 0:
    listener = _listen(port)
    server = threading.Thread(target=roll_call.serve, args=(listener,), daemon=True)
    server.start()
  found = _report(cluster, host, port, timeout, description or {})
  if server:
    server.join()  # waits until it has answered late processes and freed the port
  if isinstance(found, Exception):
    raise found
  return found._replace(connections=roll_call.kept) if server else found


def _listen(port: int) -> socket.socket:
  dual = socket.has_dualstack_ipv6()
  try:
    return socket.create_server(
      ('', port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual, backlog=128
    )
  except OSError as error:
    reason = os.strerror(error.errno) if error.errno else str(error)
    raise errors.InputError(
      f'process 0 cannot listen on port {port} ({reason}): another run or another process 0 may '
      'use it; choose another port in --coordinator, the same for all processes'
    ) from error


class _RollCall:
  """Process 0's side of the protocol: tracks which processes have reported, until the verdict."""

  def __init__(self, cluster: clusters.Cluster, timeout: float):
    self.cluster = cluster
    self.timeout = timeout
    self.deadline = time.monotonic() + timeout
    self.present: dict[int, tuple[socket.socket, str, Mapping[str, Any]]] = {}
    self.informed: set[int] = set()
    self.kept: dict[int, socket.socket] = {}

  def serve(self, listener: socket.socket) -> None:
    """Accepts reports until all have arrived, one is wrong, or the time is up; then sends the verdict to everybody."""
    with listener:
      listener.settimeout(POLL)
      problem = None
      while problem is None and len(self.present) < self.cluster.num_processes:
        problem = self.accept(listener)
        if problem is None and time.monotonic() > self.deadline:
          problem = self.missing()
        for i in [i for i, (peer, *_) in self.present.items() if not _open(peer)]:
          self.leave(i)
      if problem is None:
        text = agreement.differences([description for _, (*_, description) in sorted(self.present.items())])
        problem = {'kind': 'input', 'text': text} if text else None
      self.informed |= self.present.keys()
      if problem is None:
        self.start()
        return
      _tell([peer for peer, *_ in self.present.values()], problem)
      deadline = time.monotonic() + LINGER
      late = problem['kind'] == 'input'
      while late and len(self.informed) < self.cluster.num_processes and time.monotonic() < deadline:
        try:
          heard = _hear(listener)
        except OSError:  # as in `accept`; those that were informed close their connections
          time.sleep(POLL)
          continue
        if heard is not None:
          peer, report = heard
          self.informed.add(report['process_id'])
          _tell([peer], problem)

  def accept(self, listener: socket.socket) -> dict[str, str] | None:
    """Accepts one report, if there is one; if it is wrong, sends the problem to its sender and returns it."""
    try:
      heard = _hear(listener)
    except OSError as error:
      hint = f'; {errors.MORE_FILES}' if error.errno == errno.EMFILE else ''
      text = (
        f'process 0 cannot take {self.cluster.num_processes} connections ({error.strerror or error}): '
        f'{len(self.present)} have reported{hint}'
      )
      return {'kind': 'input', 'text': text}
    if heard is None:
      return None
    peer, report = heard
    i, n, host = report['process_id'], report['num_processes'], report['host']
    if n != self.cluster.num_processes:
      text = (
        f'processes disagree on their number: process {i} on {host} has --num_processes={n}, '
        f'process 0 has --num_processes={self.cluster.num_processes}'
      )
    elif i in self.present and _open(self.present[i][0]):
      text = f'process id {i} was given twice, on {self.present[i][1]} and on {host}; each --process_id must be unique'
    else:
      self.leave(i)
      self.present[i] = (peer, host, report.get('description', {}))  # an older dnt sends none
      return None
    problem = {'kind': 'input', 'text': text}
    self.informed.add(i)
    _tell([peer], problem)
    return problem

  def start(self) -> None:
    """Sends everybody the names of the hosts, and keeps the connections to the other processes."""
    hosts = [host for _, (_, host, _) in sorted(self.present.items())]
    for i, (peer, *_) in self.present.items():
      with contextlib.suppress(OSError):
        _send(peer, {'problem': None, 'hosts': hosts})
      if i:
        self.kept[i] = peer
      else:
        with peer, contextlib.suppress(OSError):
          peer.recv(1)  # as in `_tell`

  def leave(self, i: int) -> None:
    """Removes a process that has disconnected, if it had reported."""
    if i in self.present:
      self.present.pop(i)[0].close()

  def missing(self) -> dict[str, str]:
    ids = [i for i in range(self.cluster.num_processes) if i not in self.present]
    hosts = self.cluster.hosts
    names = ', '.join(f'{i} ({hosts[i]})' if hosts else str(i) for i in ids)
    reported = ', '.join(f'{i} on {host}' for i, (_, host, _) in sorted(self.present.items()))
    text = (
      f'missing after {self.timeout:g} s: process {names} of {self.cluster.num_processes}, which did not report to '
      f'{self.cluster.coordinator} (reported: {reported}); see the output of the missing processes, and start all again'
    )
    return {'kind': 'run', 'text': text}


def _report(
  cluster: clusters.Cluster, host: str, port: int, timeout: float, description: Mapping[str, Any]
) -> Met | Exception:
  """Reports this process to process 0 and waits for the verdict; returns the error to raise, or its connection."""
  report = {
    'protocol': PROTOCOL,
    'process_id': cluster.process_id,
    'num_processes': cluster.num_processes,
    'host': socket.gethostname(),
    'description': description,
  }
  deadline = time.monotonic() + timeout
  reason = 'nobody listens there'
  while time.monotonic() < deadline:
    try:
      with contextlib.ExitStack() as opened:
        peer = socket.create_connection((host, port), timeout=max(deadline - time.monotonic(), POLL))
        opened.enter_context(peer)
        # If nobody listens yet, the system may choose the port that we connect to as our own source port.
        if peer.getsockname() == peer.getpeername():
          continue
        peer.sendall(json.dumps(report).encode() + b'\n')
        verdict = _line(peer, timeout + LINGER)
        if verdict and (problem := verdict['problem']):
          kinds = {'input': errors.InputError, 'run': errors.RunError}
          return kinds[problem['kind']](problem['text'])
        if verdict:
          if cluster.process_id:
            opened.pop_all()
          return Met(verdict['hosts'], {0: peer} if cluster.process_id else {})
        reason = (
          'what listens there is no process 0 that waits for others, but another program or a run that has started'
        )
    except OSError as error:
      reason = error.strerror or str(error)
    time.sleep(POLL)
  who = 'this process itself' if cluster.process_id == 0 else 'process 0'
  return errors.RunError(
    f'missing after {timeout:g} s: {who} could not be reached at {cluster.coordinator} ({reason}); '
    '--coordinator must name the machine of process 0 and a port that the other processes can reach'
  )


def _hear(listener: socket.socket) -> tuple[socket.socket, dict[str, Any]] | None:
  """Returns the next connection and its report; None if no process connects, another program does, or it is lost.

  Raises:
    OSError: this process can take no connection, such as for want of open files.
  """
  try:
    peer, _ = listener.accept()
  except OSError as error:
    if error.errno in _EXHAUSTED:
      raise
    return None
  report = _line(peer, 2.0)
  if report is None:
    peer.close()
    return None
  return peer, report


def _line(peer: socket.socket, timeout: float) -> dict[str, Any] | None:
  """Reads one JSON line of our protocol; returns None if it gets anything else within `timeout` seconds."""
  received = b''
  deadline = time.monotonic() + timeout
  try:
    while not received.endswith(b'\n') and len(received) < LONGEST:
      peer.settimeout(max(deadline - time.monotonic(), 0.01))
      part = peer.recv(2**16, socket.MSG_PEEK)
      if not part:
        return None
      received += peer.recv(part.find(b'\n') + 1 or len(part))  # what follows the line is for `parallel.peers`
    message = json.loads(received)
  except (OSError, ValueError):
    return None
  return message if isinstance(message, dict) and message.get('protocol') == PROTOCOL else None


def _send(peer: socket.socket, verdict: Mapping[str, Any]) -> None:
  peer.settimeout(2.0)
  peer.sendall(json.dumps({'protocol': PROTOCOL, **verdict}).encode() + b'\n')


def _tell(peers: list[socket.socket], problem: dict[str, str]) -> None:
  """Sends the problem, then lets each peer disconnect first, because the first to disconnect keeps its port busy."""
  for peer in peers:
    with contextlib.suppress(OSError):
      _send(peer, {'problem': problem})
  for peer in peers:
    with peer, contextlib.suppress(OSError):
      peer.recv(1)


def _open(peer: socket.socket) -> bool:
  """Returns whether the peer is still connected."""
  try:
    peer.setblocking(False)
    return peer.recv(1, socket.MSG_PEEK) != b''
  except BlockingIOError:
    return True
  except OSError:
    return False
