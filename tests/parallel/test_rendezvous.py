import concurrent.futures
import errno
import os
import re
import resource
import socket
import threading
import time

import pytest

from dnt import errors
from dnt.parallel import clusters, rendezvous


def meet_and_part(cluster, timeout, description=None):
  """Closes what `parallel.peers` would watch; the hosts of all processes."""
  met = rendezvous.meet(cluster, timeout, description)
  assert set(met.connections) == ({*range(1, cluster.num_processes)} if cluster.process_id == 0 else {0})
  for peer in met.connections.values():
    peer.close()
  return met.hosts


def reach(coordinator):
  """A connection to process 0, once it listens."""
  while True:
    try:
      return socket.create_connection(clusters.address(coordinator))
    except ConnectionRefusedError:
      time.sleep(0.05)


def meet_all(processes, timeout, descriptions=None):
  """The outcome (None or the error) and the seconds it took, of processes that meet in threads."""

  def meet(cluster):
    start = time.monotonic()
    try:
      meet_and_part(cluster, timeout, descriptions and descriptions[cluster.process_id])
      error = None
    except Exception as caught:
      error = caught
    return error, time.monotonic() - start

  with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
    results = list(pool.map(meet, processes))
  return [error for error, _ in results], [seconds for _, seconds in results]


def test_all_meet_and_the_port_is_free_again(coordinator):
  for _ in range(3):
    found, seconds = meet_all([clusters.Cluster(coordinator, 4, i) for i in range(4)], timeout=10)
    assert found == [None] * 4
    assert max(seconds) < 5


def test_processes_may_come_in_any_order(coordinator):
  late = threading.Timer(0.5, meet_and_part, (clusters.Cluster(coordinator, 2, 0), 10))
  late.start()
  assert meet_and_part(clusters.Cluster(coordinator, 2, 1), 10) == [socket.gethostname()] * 2
  late.join()


def test_missing_processes_are_named_by_all_others_in_time(coordinator):
  processes = [clusters.Cluster(coordinator, 5, i) for i in (0, 1, 3)]
  found, seconds = meet_all(processes, timeout=1)
  assert [type(error) for error in found] == [errors.RunError] * 3
  assert len({str(error) for error in found}) == 1
  here = socket.gethostname()
  assert re.match(f'missing .*1 s.* process 2, 4 of 5.* {coordinator} ', str(found[0]))
  assert f'0 on {here}, 1 on {here}, 3 on {here}' in str(found[0])
  assert max(seconds) < 3


def test_a_missing_process_is_named_with_its_host_where_that_is_known(coordinator):
  cluster = clusters.Cluster(coordinator, 2, 0, None, ('tpu-worker-0', 'tpu-worker-1'))
  (error,), _ = meet_all([cluster], timeout=0.5)
  assert 'process 1 (tpu-worker-1) of 2' in str(error)


def test_a_missing_process_0_is_named_by_the_others(coordinator):
  found, seconds = meet_all([clusters.Cluster(coordinator, 3, i) for i in (1, 2)], timeout=1)
  for error in found:
    assert isinstance(error, errors.RunError)
    assert re.search(f'process 0 .*{coordinator} .*Connection refused', str(error))
  assert max(seconds) < 3


@pytest.mark.thorough
def test_a_process_that_went_away_while_waiting_is_missing(coordinator):
  gone = threading.Event()

  def come_and_go():
    with reach(coordinator) as peer:
      peer.sendall(
        b'{"protocol": "%s", "process_id": 1, "num_processes": 3, "host": "gone"}\n' % rendezvous.PROTOCOL.encode()
      )
    gone.set()

  def late():
    assert gone.wait(10)
    return meet_all([clusters.Cluster(coordinator, 3, 2)], timeout=3)

  threading.Thread(target=come_and_go, daemon=True).start()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    second = pool.submit(late)
    (error,), _ = meet_all([clusters.Cluster(coordinator, 3, 0)], timeout=3)
    assert 'process 1 of 3' in str(error)
    assert str(second.result()[0][0]) == str(error)


def test_a_connection_to_oneself_is_nobody(coordinator, monkeypatch):
  host, port = clusters.address(coordinator)

  def connect(address, timeout):
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    peer.bind((host, port))
    peer.connect(address)
    return peer

  monkeypatch.setattr(socket, 'create_connection', connect)
  with pytest.raises(errors.RunError, match=f'process 0 .*{coordinator} .*nobody'):
    rendezvous.meet(clusters.Cluster(coordinator, 2, 1), 0.3)


def test_more_processes_meet_than_files_may_be_open_at_first(coordinator):
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  number = os.open(os.devnull, os.O_RDONLY)
  os.close(number)
  resource.setrlimit(resource.RLIMIT_NOFILE, (number + 8, hard))  # they need 19
  try:
    found, _ = meet_all([clusters.Cluster(coordinator, 9, i) for i in range(9)], timeout=3)
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  assert found == [None] * 9


@pytest.fixture
def lose(monkeypatch):
  """`lose(at, number)`: the connection `at`, from 1, is lost with an error; returns the list of all connections."""

  def start(at, number):
    accept, accepted = socket.socket.accept, []

    def losing(listener):
      result = accept(listener)
      accepted.append(result)
      if len(accepted) == at:
        result[0].close()
        raise OSError(number, os.strerror(number))
      return result

    monkeypatch.setattr(socket.socket, 'accept', losing)
    return accepted

  return start


def test_a_process_0_that_can_open_no_more_says_so_to_all(coordinator, lose):
  lose(3, errno.EMFILE)
  found, seconds = meet_all([clusters.Cluster(coordinator, 4, i) for i in range(4)], timeout=10)
  for error in found:
    assert isinstance(error, errors.InputError)
    assert re.search('process 0 .* 4 connections .Too many open files.: 2 have reported; .*ulimit -n', str(error))
  assert max(seconds) < 5


def test_a_connection_that_the_network_loses_is_made_again(coordinator, lose):
  accepted = lose(2, errno.EHOSTUNREACH)
  found, _ = meet_all([clusters.Cluster(coordinator, 3, i) for i in range(3)], timeout=30)
  assert found == [None] * 3 and len(accepted) > 3


def test_an_id_given_twice_is_told_to_all(coordinator, monkeypatch):
  monkeypatch.setattr(rendezvous, 'LINGER', 0.5)
  found, seconds = meet_all([clusters.Cluster(coordinator, 3, i) for i in (0, 1, 1)], timeout=10)
  for error in found:
    assert isinstance(error, errors.InputError)
    assert re.search('id 1 .*twice', str(error))
  assert sorted(seconds)[1] < 3  # process 0 stays a little for whoever comes late


def test_processes_that_disagree_on_their_number_are_told(coordinator):
  found, _ = meet_all([clusters.Cluster(coordinator, 2, 0), clusters.Cluster(coordinator, 3, 1)], timeout=10)
  for error in found:
    assert isinstance(error, errors.InputError)
    assert 'process 1 on' in str(error)
    assert re.search('--num_processes=3, process 0 .*--num_processes=2', str(error))


def test_a_taken_port_is_named_at_once(coordinator):
  port = clusters.address(coordinator)[1]
  with (
    socket.create_server(('127.0.0.1', port)),
    pytest.raises(errors.InputError, match=rf'port {port}\b.*Address already in use'),
  ):
    rendezvous.meet(clusters.Cluster(coordinator, 2, 0), 10)


def test_a_coordinator_that_is_another_program_is_told_apart(coordinator):
  port = clusters.address(coordinator)[1]
  with socket.create_server(('127.0.0.1', port)) as server:

    def greet():
      while True:
        try:
          peer, _ = server.accept()
        except OSError:
          return
        peer.sendall(b'220 mail.example.org ready\n')
        peer.close()

    threading.Thread(target=greet, daemon=True).start()
    (error,), _ = meet_all([clusters.Cluster(coordinator, 2, 1)], timeout=1)
    server.shutdown(socket.SHUT_RDWR)
  assert isinstance(error, errors.RunError)
  assert 'listens there is no process 0' in str(error)


def test_strangers_do_not_disturb(coordinator):
  def stranger():
    with reach(coordinator) as peer:
      peer.sendall(b'GET / HTTP/1.1\r\n\r\n')
    time.sleep(0.2)
    meet_and_part(clusters.Cluster(coordinator, 2, 1), 10)

  thread = threading.Thread(target=stranger, daemon=True)
  thread.start()
  meet_and_part(clusters.Cluster(coordinator, 2, 0), 10)
  thread.join()


def test_what_a_process_sends_after_the_rendezvous_stays_for_the_other(coordinator):
  def first():
    met = rendezvous.meet(clusters.Cluster(coordinator, 2, 0), 10)
    with met.connections[1] as peer:
      peer.sendall(b'one\ntwo\n')

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    pool.submit(first)
    met = rendezvous.meet(clusters.Cluster(coordinator, 2, 1), 10)
  with met.connections[0] as peer:
    assert peer.makefile().read() == 'one\ntwo\n'


def test_processes_that_differ_are_told(coordinator):
  descriptions = [{'config.seed': 0, 'long': 'x' * 2**17}, {'config.seed': 0, 'long': 'x' * 2**17}, {'config.seed': 3}]
  processes = [clusters.Cluster(coordinator, 3, i) for i in range(3)]
  found, seconds = meet_all(processes, 10, descriptions)
  for error in found:
    assert isinstance(error, errors.InputError)
    assert 'config.seed is 0 on processes 0, 1 and 3 on process 2' in str(error)
    assert 'missing on process 2' in str(error)
  assert max(seconds) < 5
  assert meet_all(processes, 10, [descriptions[0]] * 3)[0] == [None] * 3
