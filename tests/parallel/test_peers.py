"""Real processes that only meet: what the others say and do when one of them ends in any way."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

WORKER = """
import signal, sys, time
from dnt.parallel import clusters, peers, rendezvous, signals

coordinator, process, count, how, who = sys.argv[1:]
process, this = int(process), process == who
peers.SILENCE = 2.5 if how == 'silent' else peers.SILENCE
with signals.Watch():
  peers.watch(process, *rendezvous.meet(clusters.Cluster(coordinator, int(count), process), 30))
  watched = peers.current()
  print('met', flush=True)
  sys.stdin.readline()
  if how in ('1', '2'):
    if this:
      watched.explain('the disk is full')
      watched.leave(int(how), peers.GRACE)
      signals.exit_at_once(int(how))
    try:
      time.sleep(0.1)  # a collective fails
    finally:
      watched.blame()
  if how == 'together':
    time.sleep(0.2 * process)
    watched.explain(f'bad input, says process {process}')
    print(f'error: bad input, says process {process}', file=sys.stderr)
    watched.leave(2, peers.GRACE)
    signals.exit_at_once(2)
  if how == 'well' and this:
    sys.exit(0)
  if how == 'stuck' and this:
    signals.exit_at_once(143)
  if how == 'deaf' and this:
    watched._receive = lambda process: True
    time.sleep(1.2)
    for _ in range(3):
      watched._send({'activity': 'one of many messages'})
    signals.exit_at_once(143)
  time.sleep(1 if how == 'well' else 60)
"""


@pytest.fixture
def launch(tmp_path, coordinator):
  """Starts the processes of one run, and returns once they have met and go on."""
  program = tmp_path / 'worker.py'
  program.write_text(WORKER)
  processes = []

  def start(how, who, count=3):
    pipes = dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE)
    for process in range(count):
      command = [sys.executable, program, coordinator, str(process), str(count), how, str(who)]
      processes.append(subprocess.Popen(command, env={**os.environ, 'PYTHONPATH': os.getcwd()}, text=True, **pipes))
    for process in processes:
      assert process.stdout.readline() == 'met\n'
    for process in processes:
      process.stdin.write('\n')
      process.stdin.flush()
    return processes

  yield start
  for process in processes:
    with process:
      process.kill()


def ends(processes):
  """Exit code and lines of each process."""
  found = [process.communicate(timeout=30)[1] for process in processes]
  return [
    (process.returncode, [line for line in text.splitlines() if line])
    for process, text in zip(processes, found, strict=True)
  ]


@pytest.mark.parametrize('who', [0, 1])
def test_a_killed_process_is_named_by_each_of_the_others_in_one_line(launch, who):
  processes = launch('wait', who)
  processes[who].kill()
  begin = time.monotonic()
  found = ends(processes)
  assert time.monotonic() - begin < 10
  assert found.pop(who) == (-signal.SIGKILL, [])
  for code, lines in found:
    assert code == 1
    (line,) = lines
    assert re.match(rf'error: process {who} \(on {re.escape(socket.gethostname())}\) was lost', line)


@pytest.mark.thorough
def test_a_process_that_does_not_answer_is_lost_and_one_that_goes_on_in_time_is_not(launch):
  processes = launch('silent', 1)
  processes[1].send_signal(signal.SIGSTOP)
  time.sleep(1)
  processes[1].send_signal(signal.SIGCONT)
  time.sleep(2.5)
  assert [process.poll() for process in processes] == [None] * 3
  processes[2].send_signal(signal.SIGSTOP)
  for process in processes[:2]:
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert re.fullmatch(r'error: process 2 .*lost.*not answered.*\n', err.lstrip())


@pytest.mark.thorough
def test_processes_that_are_paused_together_go_on_together(launch):
  processes = launch('silent', 0)
  for number, seconds in ((signal.SIGSTOP, 4), (signal.SIGCONT, 1.5)):  # 2.5 s of silence are too many
    for process in processes:
      process.send_signal(number)
    time.sleep(seconds)
  assert [process.poll() for process in processes] == [None] * 3


@pytest.mark.parametrize(('count', 'who', 'code'), [(2, 1, 1), (3, 0, 1), (3, 1, 2)])
def test_a_process_that_fails_is_named_with_its_error_and_the_others_end_with_its_code(launch, count, who, code):
  found = ends(launch(str(code), who, count))
  assert found.pop(who) == (code, [])
  for other, lines in found:
    (line,) = lines
    assert other == code and re.match(f'error: process {who} .*failed: the disk is full', line)


def test_processes_that_fail_together_each_say_why_with_their_own_code(launch):
  assert ends(launch('together', 0)) == [(2, [f'error: bad input, says process {process}']) for process in range(3)]


def test_a_process_that_ends_well_leaves_the_others_alone(launch):
  assert ends(launch('well', 1)) == [(0, [])] * 3


@pytest.mark.parametrize('how', ['stuck', 'deaf'])
def test_a_process_that_a_signal_stops_takes_the_others_along(launch, how):
  # The deaf one ends with messages unread: the system then drops those of its own that are still to be sent.
  found = ends(launch(how, 1))
  assert [code for code, _ in found] == [143] * 3
  assert all('process 1' in line and 'SIGTERM' in line for code, lines in found for line in lines)
