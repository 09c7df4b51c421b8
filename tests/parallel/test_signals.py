"""Programs that get signals, each in a process of its own."""

import os
import resource
import signal
import subprocess
import sys
import time
from concurrent import futures

import pytest

from dnt.parallel import signals

LIMIT = 60  # seconds in which what a test waits for must happen
PROGRAM = """
import ctypes, signal, sys, tempfile, threading, time
from dnt import cli, temporary
from dnt.parallel import signals

def wait():
  print('ready', flush=True)
  while True:
    time.sleep(0.05)

def python():
  try:
    wait()
  finally:
    print('closed', flush=True)

def stuck():
  signals.GRACE = 1.0
  wait_in_c()

def stuck_with_time():
  signals.GRACE = 60
  wait_in_c()

def wait_in_c():
  # As in a compilation: the main thread is inside C and takes no signals.
  threading.Timer(0.5, print, ('ready',), {'flush': True}).start()
  signal.pthread_sigmask(signal.SIG_BLOCK, signals.CODES.values())
  ctypes.CDLL(None).sleep(60)

def swallows():
  signals.GRACE = 1.0
  try:
    wait()
  except BaseException:
    time.sleep(60)

def becomes_another_error():
  try:
    wait()
  except BaseException as error:
    raise ImportError('no extension') from error

def imports():
  # An extension in C prints the traceback of a failed import, and raises an error of its own.
  import pathlib
  pathlib.Path('slow.py').write_text('print("ready", flush=True); import time; time.sleep(60)')
  pathlib.Path('printing.py').write_text('''
import traceback
try:
  import slow
except BaseException as error:
  traceback.print_exc()
  raise ImportError('no extension') from error
''')
  sys.path.insert(0, '.')
  import printing

def saves():
  with signals.hold():
    print('ready', flush=True)
    time.sleep(1)
    print('saved', flush=True)
  if number := signals.received():
    raise signals.Stopped(number)

def parts():
  signals.GRACE = 0.2
  with signals.hold_by_parts('part'):
    print('ready', flush=True)
    while signals.received() is None:
      time.sleep(1)
    print('saved', flush=True)
  raise signals.Stopped(signals.received())

def downloads():
  tempfile.tempdir = '.'
  (temporary.make_folder('dnt-') / 'weights').touch()
  stuck()

cli.run(cli.Program('A program.', lambda values: None, lambda values: globals()[MODE](), computes=False))
"""


@pytest.fixture
def start(tmp_path):
  started = []

  def run(mode, *prefix):
    command = [*prefix, sys.executable, '-c', PROGRAM.replace('MODE', repr(mode))]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    started.append(subprocess.Popen(command, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': os.getcwd()}, **pipes))
    assert started[-1].stdout.readline() == 'ready\n'
    return started[-1]

  yield run
  for process in started:
    with process:
      process.kill()


def test_a_signal_during_an_import_ends_a_program_without_a_traceback(start):
  process = start('imports')
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=30)
  assert (process.returncode, err.strip()) == (143, 'stopped by SIGTERM')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_program_with_its_code(start, number):
  process = start('python')
  process.send_signal(number)
  out, err = process.communicate(timeout=LIMIT)
  assert (process.returncode, out) == (128 + number, 'closed\n')
  assert err.strip() == f'stopped by {number.name}'


@pytest.mark.thorough
@pytest.mark.parametrize('mode', ['stuck', 'swallows'])
def test_a_main_thread_that_is_busy_elsewhere_is_not_waited_for(start, mode):
  process, begin = start(mode), time.monotonic()
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=30)
  assert process.returncode == 143, err
  assert time.monotonic() - begin > 0.5  # half of the time that the program has set


def test_temporary_folders_are_removed_where_a_signal_ends_a_program_without_cleanup(start, tmp_path):
  process = start('downloads')
  assert [path.name for path in tmp_path.glob('dnt-*/*')] == ['weights']
  process.terminate()
  assert process.wait(30) == 143
  assert not list(tmp_path.glob('dnt-*'))


def test_an_error_that_a_signal_has_become_is_a_stop(start):
  process = start('becomes_another_error')
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=LIMIT)
  assert process.returncode == 143
  assert 'ImportError' not in err


def test_work_that_holds_signals_saves_first(start):
  process = start('saves')
  process.send_signal(signal.SIGTERM)
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=LIMIT)
  assert (process.returncode, out) == (143, 'saved\n')


def test_work_in_parts_ends_the_part_and_says_so_once(start):
  process = start('parts')
  process.send_signal(signal.SIGTERM)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=LIMIT)
  assert (process.returncode, out) == (143, 'saved\n')
  assert err.strip() == 'stopping after this part; press Ctrl-C again to stop at once'


def test_a_second_ctrl_c_ends_a_program_at_once(start):
  process = start('stuck_with_time')
  for _ in range(2):
    process.send_signal(signal.SIGINT)
    assert 'stopped' in process.stderr.readline() + process.stderr.readline()
    time.sleep(1.1 * signals.TOGETHER)
  process.communicate(timeout=30)  # it gives itself 60 s
  assert process.returncode == 130


def test_a_ctrl_c_that_comes_twice_within_a_moment_is_one(start):
  """As `pkill -INT` on a comparison and its run, which then gets it from both."""
  process = start('parts')
  for _ in range(3):
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
  out, err = process.communicate(timeout=LIMIT)
  assert (process.returncode, out) == (130, 'saved\n')
  assert err.strip() == 'stopping after this part; press Ctrl-C again to stop at once'


def test_many_signals_leave_no_traceback(start):
  process = start('python')
  while process.poll() is None:
    process.send_signal(signal.SIGTERM)
    time.sleep(0.001)
  _, err = process.communicate(timeout=LIMIT)
  assert (process.returncode, err.strip()) == (143, 'stopped by SIGTERM')


def test_a_closed_terminal_is_ignored_under_nohup(start):
  process = start('saves', 'nohup')
  process.send_signal(signal.SIGHUP)
  out, _ = process.communicate(timeout=LIMIT)
  assert (process.returncode, out) == (0, 'saved\n')


def test_a_watch_puts_handlers_back():
  before = [signal.getsignal(number) for number in signals.CODES.values()]
  with signals.Watch():
    with pytest.raises(signals.Stopped, match='SIGHUP') as stopped:
      os.kill(os.getpid(), signal.SIGHUP)
    assert stopped.value.number == signal.SIGHUP
  assert [signal.getsignal(number) for number in signals.CODES.values()] == before
  assert signal.set_wakeup_fd(-1) == -1
  assert signals.received() is None


def test_a_second_ctrl_c_where_there_is_no_program_raises():
  """It may end neither a notebook nor the program of others."""
  with pytest.raises(KeyboardInterrupt) as raised, signals.hold() as watch:
    os.kill(os.getpid(), signal.SIGINT)
    while not watch.handled:
      time.sleep(0.01)
    time.sleep(1.1 * signals.TOGETHER)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
  assert not isinstance(raised.value, signals.Stopped)  # which says that all is saved
  with signals.hold(ends_at_once=False) as watch:
    for _ in range(3):
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(0.01)
  assert watch.first == signal.SIGINT


def test_signals_come_where_many_files_are_open(monkeypatch):
  """As beside the shards of ImageNet: `select` takes no descriptor above 1023."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
  pipe = os.pipe

  def high():
    ends = pipe()
    moved = [os.dup2(end, number, inheritable=False) for end, number in zip(ends, (1500, 1501), strict=True)]
    for end in ends:
      os.close(end)
    return moved

  monkeypatch.setattr(os, 'pipe', high)
  try:
    received = []
    with signals.hold(received.append):
      os.kill(os.getpid(), signal.SIGTERM)
      deadline = time.monotonic() + LIMIT
      while not received and time.monotonic() < deadline:
        time.sleep(0.01)
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  assert received == [signal.SIGTERM]


def in_a_thread(work):
  """What work in another thread than the main one returns."""
  with futures.ThreadPoolExecutor(1) as pool:
    return pool.submit(work).result(timeout=30)


def test_another_thread_leaves_signals_to_the_main_one():
  handlers = [signal.getsignal(number) for number in signals.CODES.values()]
  received = []

  def work():
    with signals.hold(received.append) as watch:
      return watch, signals.received(), [signal.getsignal(number) for number in signals.CODES.values()]

  own, first, while_it_worked = in_a_thread(work)
  assert (own.first, first, while_it_worked) == (None, None, handlers)
  with signals.hold() as main:
    assert in_a_thread(work)[0] is not main
    os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + LIMIT
    while signals.received() != signal.SIGTERM:
      assert time.monotonic() < deadline
      time.sleep(0.01)
  assert received == [] and signals.received() is None
  assert [signal.getsignal(number) for number in signals.CODES.values()] == handlers


def test_a_watch_whose_handlers_cannot_be_set_is_not_that_of_the_program(monkeypatch):
  def refuse(*_):
    raise ValueError('signal only works in main thread of the main interpreter')

  with monkeypatch.context() as patch:
    patch.setattr(signal, 'signal', refuse)
    with pytest.raises(ValueError, match='main interpreter'), signals.hold():
      pass
  with signals.hold() as watch:
    assert signal.getsignal(signal.SIGTERM) == watch._handle
