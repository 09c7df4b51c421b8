import os
import re
import signal
import subprocess
import sys
import time
import types

import pytest

from dnt.parallel import preemption, signals

LIMIT = 60  # seconds in which what a test waits for must happen
AT_ONCE = 30  # the same, of what would otherwise happen after the 60 s for which the main thread and the child sleep
WORKER = """
import ctypes, multiprocessing, signal, sys, time
from dnt.parallel import preemption, signals

if __name__ == '__main__':
  child = multiprocessing.get_context('spawn').Process(target=time.sleep, args=(60,), daemon=True)
  child.start()
  with signals.Watch(), preemption.Guard() as guard:
    print('ready', child.pid, flush=True)
    if sys.argv[1] == 'stuck':
      # As in a compilation: the main thread is inside C and takes no signals.
      signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
      ctypes.CDLL(None).sleep(60)
    count = 0
    while not guard.requested(count):
      count += 1
      time.sleep(0.01)
  print('saved', flush=True)
"""


def start(tmp_path, mode):
  program = tmp_path / 'worker.py'
  program.write_text(WORKER)
  process = subprocess.Popen(
    [sys.executable, program, mode],
    env={**os.environ, 'PYTHONPATH': os.getcwd()},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  word, child = process.stdout.readline().split()
  assert word == 'ready'
  return process, int(child)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_asks_the_loop_to_stop(tmp_path, number):
  process, _ = start(tmp_path, 'loop')
  process.send_signal(number)
  out, err = process.communicate(timeout=LIMIT)
  assert process.returncode == 0
  assert out == 'saved\n'
  assert re.fullmatch('stopping .*checkpoint.* Ctrl-C again .*', err.strip())


def test_second_ctrl_c_exits_at_once_with_its_workers_even_when_the_main_thread_is_stuck(tmp_path):
  process, child = start(tmp_path, 'stuck')
  process.send_signal(signal.SIGINT)
  assert 'stopping ' in process.stderr.readline() + process.stderr.readline()
  time.sleep(1.1 * signals.TOGETHER)
  assert process.poll() is None
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=AT_ONCE)
  assert process.returncode == 130
  assert out == ''
  assert err.strip() == 'stopped at once; what was saved before remains'
  deadline = time.monotonic() + AT_ONCE
  while _alive(child):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def _alive(pid):
  """Neither gone nor a zombie that nobody has reaped yet."""
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rpartition(')')[2].split()[0] != 'Z'
  except (FileNotFoundError, ProcessLookupError):
    return False


def test_sigterm_twice_is_one_request(tmp_path):
  process, _ = start(tmp_path, 'stuck')
  process.send_signal(signal.SIGTERM)
  process.send_signal(signal.SIGTERM)
  time.sleep(0.5)
  assert process.poll() is None
  process.send_signal(signal.SIGINT)
  process.send_signal(signal.SIGTERM)
  time.sleep(0.2)
  assert process.poll() is None  # one Ctrl-C so far
  while process.poll() is None:  # the system merges a signal with an equal one that has not been taken yet
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
  process.communicate(timeout=LIMIT)
  assert process.returncode == 130


def test_guard_puts_the_handlers_back():
  before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  with preemption.Guard() as guard:
    assert signal.getsignal(signal.SIGTERM) != before[1]
    assert not guard.requested(0)
    os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + LIMIT
    while not guard.requested(1):
      assert time.monotonic() < deadline
  assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
  assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize('joined', [False, True])
def test_a_signal_ends_an_attempt_but_not_other_work(joined, monkeypatch):
  """Also of a run of one process under --distributed."""
  joins = types.SimpleNamespace(is_initialized=lambda: joined)
  monkeypatch.setattr(preemption, 'jax', types.SimpleNamespace(distributed=joins, process_count=lambda: 1))
  monkeypatch.setattr(preemption, 'take_over', lambda: lambda: None)

  def interrupted():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)

  with preemption.Guard() as guard:
    assert guard.attempt(lambda value: value, 3, ends_alone=False) == 3
    with pytest.raises(ZeroDivisionError):
      guard.attempt(lambda: 1 / 0, ends_alone=False)
    assert guard.attempt(interrupted, ends_alone=False) is None
    assert guard.stopped_by == signal.SIGTERM
    assert guard.attempt(lambda: pytest.fail('it ran after the signal'), ends_alone=False) is None
    os.kill(os.getpid(), signal.SIGTERM)  # while something is saved
    assert guard.requested(0)


def test_without_output_an_attempt_ends_too():
  with preemption.Guard() as guard:
    guard.stop_without_output()
    assert guard.attempt(lambda: pytest.fail('it ran'), ends_alone=False) is None
    assert guard.stopped_by == signal.SIGPIPE
