"""A workdir has one owner: a second run is refused while it lives, and takes over when it has died."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from dnt import errors, loop
from dnt import workdir as workdir_lib
from dnt.parallel import ownership
from dnt.reporting import metrics


def owner_file(workdir):
  return workdir / workdir_lib.OWNER


def written(path):
  """What tells whether a file was written or renewed; its time of access changes when it is read."""
  stat = path.stat()
  return stat.st_ino, stat.st_mtime_ns, stat.st_size


def write_owner(workdir, **changes):
  """Writes the file of an owner like this process, which nobody renews."""
  workdir.mkdir(exist_ok=True)
  owner = ownership._identity(str(owner_file(workdir))) | changes
  owner_file(workdir).write_text(json.dumps(owner))
  return owner


@contextlib.contextmanager
def renewed(workdir):
  """The owner's file is renewed again and again, as by a run elsewhere."""
  ended = threading.Event()

  def renew():
    while not ended.wait(0.1):
      os.utime(owner_file(workdir))

  thread = threading.Thread(target=renew, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()


def take(workdir):
  """Takes the workdir, if it is free; returns what the owner's file then held."""
  with ownership.own(workdir):
    return json.loads(owner_file(workdir).read_text())


@pytest.fixture
def sleeper():
  """A process that does nothing: its id, its start and a function that kills it and leaves its exit code unread."""
  with subprocess.Popen(['sleep', '600']) as process:
    yield process
    process.kill()


def wait_until_ended(pid):
  deadline = time.monotonic() + 20
  while ownership._started(pid) != 'ended':
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_the_owner_is_named_while_it_runs_and_gone_after(tmp_path):
  workdir = tmp_path / 'new' / 'run'
  owner = take(workdir)
  assert owner['pid'] == os.getpid() and owner['host'] and owner['since']
  assert list(workdir.iterdir()) == []
  with pytest.raises(KeyboardInterrupt), ownership.own(workdir):
    raise KeyboardInterrupt
  assert list(workdir.iterdir()) == []


def test_a_second_run_is_refused_and_changes_nothing(tmp_path, sleeper):
  owner = write_owner(tmp_path, pid=sleeper.pid, started=ownership._started(sleeper.pid), since='noon')
  before = written(owner_file(tmp_path))
  with pytest.raises(errors.InputError) as refused:
    take(tmp_path)
  for part in (str(tmp_path), str(sleeper.pid), owner['host'], 'noon', '--workdir'):
    assert part in str(refused.value)
  assert written(owner_file(tmp_path)) == before
  assert {path.name for path in tmp_path.iterdir()} == {'owner.json', 'owner.json.lock'}


def test_an_owner_that_died_here_is_followed_at_once(tmp_path, sleeper):
  """Also if its parent has not read its exit code, and if another process has its id now."""
  write_owner(tmp_path, pid=sleeper.pid, started=ownership._started(sleeper.pid))
  sleeper.kill()
  wait_until_ended(sleeper.pid)
  assert take(tmp_path)['pid'] == os.getpid()
  sleeper.wait()
  write_owner(tmp_path, pid=sleeper.pid)
  assert take(tmp_path)['pid'] == os.getpid()
  write_owner(tmp_path, started='1')
  assert take(tmp_path)['started'] != '1'


@pytest.mark.parametrize('elsewhere', [{'host': 'other'}, {'boot': 'other'}, {'namespace': 'other'}])
def test_an_owner_elsewhere_lives_while_it_renews_its_file(tmp_path, monkeypatch, elsewhere):
  """Process ids mean nothing there: that of this process lives, and 2^22 + 1 is above all that Linux gives."""
  monkeypatch.setattr(ownership, '_POLL', 0.05)
  for pid in (os.getpid(), 2**22 + 1):
    write_owner(tmp_path, pid=pid, **elsewhere)
    with renewed(tmp_path), pytest.raises(errors.InputError, match=rf'in use by .*process {pid}\b'):
      take(tmp_path)
    hour_ago = time.time() - 3600
    os.utime(owner_file(tmp_path), (hour_ago, hour_ago))
    assert take(tmp_path)['pid'] == os.getpid()


@pytest.mark.parametrize('ahead', [0, 3600])
def test_an_owner_elsewhere_without_a_sign_of_life_is_followed(tmp_path, monkeypatch, console, ahead):
  """Whatever the clock there says."""
  monkeypatch.setattr(ownership, '_POLL', 0.05)
  monkeypatch.setattr(ownership, 'STALE', 0.5)
  write_owner(tmp_path, host='other')
  os.utime(owner_file(tmp_path), (time.time() + ahead,) * 2)
  begun = time.monotonic()
  assert take(tmp_path)['pid'] == os.getpid()
  assert 0.3 < time.monotonic() - begun < 20
  assert 'other' in console.readouterr().out


@pytest.mark.parametrize('content', ['{', '[]', '{}', 'null', '{"pid": "x"}'])
def test_a_damaged_file_is_refused_only_while_it_is_renewed(tmp_path, monkeypatch, content):
  monkeypatch.setattr(ownership, '_POLL', 0.05)
  monkeypatch.setattr(ownership, 'STALE', 0.2)
  owner_file(tmp_path).write_text(content)
  assert take(tmp_path)['pid'] == os.getpid()


def test_an_empty_file_belongs_to_nobody(tmp_path):
  owner_file(tmp_path).touch()
  assert take(tmp_path)['pid'] == os.getpid()


def test_a_copy_of_a_workdir_is_free(tmp_path, sleeper):
  write_owner(tmp_path / 'run', pid=sleeper.pid, started=ownership._started(sleeper.pid))
  shutil.copytree(tmp_path / 'run', tmp_path / 'copy')
  assert take(tmp_path / 'copy')['pid'] == os.getpid()
  (tmp_path / 'link').symlink_to(tmp_path / 'run')
  (tmp_path / 'run').rename(tmp_path / 'moved')
  with pytest.raises(errors.InputError, match='in use'):
    take(tmp_path / 'moved')


def test_the_owner_renews_its_file(tmp_path, monkeypatch):
  monkeypatch.setattr(ownership, '_FIRST', 0.05)
  monkeypatch.setattr(ownership, 'RENEW', 0.05)
  with ownership.own(tmp_path):
    for _ in range(2):
      os.utime(owner_file(tmp_path), (1.0, 1.0))
      deadline = time.monotonic() + 20
      while owner_file(tmp_path).stat().st_mtime == 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)


OWN = """
import pathlib, sys, time
from dnt import errors
from dnt.parallel import ownership
try:
  with ownership.own(pathlib.Path(sys.argv[1])):
    print('owns', flush=True)
    time.sleep(float(sys.argv[2]))
except errors.InputError:
  print('refused')
"""


def own_elsewhere(start, workdir, seconds):
  return start([sys.executable, '-c', OWN, str(workdir), str(seconds)])


def test_a_paused_run_ends_when_another_has_taken_over(tmp_path, start):
  process = own_elsewhere(start, tmp_path, 600)
  assert process.stdout.readline() == 'owns\n'
  process.send_signal(signal.SIGSTOP)
  other = write_owner(tmp_path, pid=1, host='other')
  process.send_signal(signal.SIGCONT)
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 1
  assert 'other' in output and 'taken over' in output
  assert json.loads(owner_file(tmp_path).read_text()) == other


@pytest.mark.thorough
def test_one_of_many_that_start_together_takes_a_dead_owners_place(tmp_path, start):
  write_owner(tmp_path, started='1')
  processes = [own_elsewhere(start, tmp_path, 30) for _ in range(4)]
  refused = [process for process in processes if process.stdout.readline() == 'refused\n']
  assert len(refused) == 3
  (owner,) = {process.pid for process in processes} - {process.pid for process in refused}
  assert json.loads(owner_file(tmp_path).read_text())['pid'] == owner


JOIN = """
import pathlib, sys
from dnt import errors
from dnt.parallel import multihost, ownership
multihost.initialize(sys.argv[2], 2, int(sys.argv[3]), 60)
try:
  with ownership.own(pathlib.Path(sys.argv[1])):
    multihost.barrier('both own it')
    print('owns')
except errors.InputError as error:
  print(error)
"""


@pytest.mark.thorough
def test_all_processes_of_a_run_learn_of_a_refusal(tmp_path, coordinator, start, finish, sleeper):
  """The lead process owns the workdir for all of them."""
  write_owner(tmp_path, pid=sleeper.pid, started=ownership._started(sleeper.pid))

  def outputs():
    joined = [start([sys.executable, '-c', JOIN, str(tmp_path), coordinator, str(number)]) for number in range(2)]
    return [finish(process) for process in joined]

  assert all(re.search(rf'in use by .*process {sleeper.pid} on', output) for output in outputs())
  sleeper.kill()
  wait_until_ended(sleeper.pid)
  assert all('owns' in output.splitlines() for output in outputs())
  assert not owner_file(tmp_path).exists()


def wait_for_step(process, workdir, step):
  deadline = time.monotonic() + 240
  while not any(line['step'] >= step for line in metrics.read(workdir)):
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < deadline
    time.sleep(0.02)


@pytest.mark.thorough
def test_two_starts_and_programs_that_read(tmp_path, config_file, start, finish, program):
  """Of two that start together one trains; while it does, others read; after a kill the same command goes on."""
  network = {'model.name': 'mlp', 'model.depth': 3, 'model.width': 16}
  options = {'train.steps': 100_000, 'checkpoint.every': '10', 'eval.every': '0'}
  config, workdir = config_file('run', network | options), tmp_path / 'run'
  command = [sys.executable, '-m', 'dnt.main', f'--config={config}', f'--workdir={workdir}']
  both = [start(command), start([*command, '--config.seed=1'])]
  deadline = time.monotonic() + 240
  while not (ended := [process for process in both if process.poll() is not None]):
    assert time.monotonic() < deadline
    time.sleep(0.02)
  (second,) = ended
  (first,) = set(both) - {second}
  output = second.stdout.read()
  assert second.returncode == 2, output
  assert len(output.strip().splitlines()) == 1
  assert re.search(rf'error: .*in use by .*process {first.pid} on ', output)

  wait_for_step(first, workdir, 25)
  assert json.loads(owner_file(workdir).read_text())['pid'] == first.pid
  flags = first.args[3:]
  code, output, problems = program(*flags, '--mode=evaluate')
  assert code == 0, problems
  code, _, problems = program(*flags, '--mode=lr_find')
  assert code == 2 and 'in use' in problems
  assert first.poll() is None
  first.kill()
  wait_until_ended(first.pid)  # its exit code is not read
  killed_at = max(line['step'] for line in metrics.read(workdir))
  third = start(first.args)
  wait_for_step(third, workdir, killed_at + 1)
  assert json.loads(owner_file(workdir).read_text())['pid'] == third.pid
  third.send_signal(signal.SIGINT)
  finish(third, 130)
  assert not owner_file(workdir).exists()
  steps = [line['step'] for line in metrics.read(workdir) if 'train/loss' in line]
  assert steps == list(range(1, steps[-1] + 1))


def test_an_error_frees_the_workdir(tiny, tmp_path):
  tiny.data.source = f'folder:{tmp_path / "absent"}'
  with pytest.raises(errors.InputError):
    loop.train(tiny, tmp_path / 'run')
  assert not owner_file(tmp_path / 'run').exists()


def test_unwritable_folders_are_refused(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(errors.InputError, match='--workdir'):
    take(pathlib.Path(tmp_path / 'file' / 'run'))
