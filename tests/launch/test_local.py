import os
import pathlib
import pty
import re
import shlex
import signal
import subprocess
import sys

import pytest

LIMIT = 60  # seconds in which the launcher must end
SCRIPT = pathlib.Path(__file__).parents[2] / 'launch' / 'local.sh'
WORKER = """
import os, signal, sys, time

flags = dict(word.lstrip('-').partition('=')[::2] for word in sys.argv[1:])
index, mode = int(flags['process_id']), flags['mode']
received = []

def receive(number, _):
  received.append(number)
  print(signal.Signals(number).name, flush=True)
  if len(received) > 1:
    os._exit(130)

signal.signal(signal.SIGINT, receive)
signal.signal(signal.SIGTERM, receive)
signal.signal(signal.SIGHUP, receive)
print('started', os.getpid(), flush=True)
if mode == 'exit' and index == 1:
  sys.exit(3)
if mode == 'killed' and index == 1:
  os.kill(os.getpid(), signal.SIGKILL)
if mode in ('exit', 'killed'):
  time.sleep(60)
while mode in ('stop', 'stubborn', 'code') and (mode == 'stubborn' or not received):
  time.sleep(0.05)
print('saved by', index, end='')
sys.exit(128 + received[0] if mode == 'code' else 0)
"""


@pytest.fixture
def start(tmp_path):
  """Starts local.sh on the worker above."""
  (tmp_path / 'worker.py').write_text(WORKER)
  started = []

  def run(mode, count=2, prefix=(), **options):
    command = [*prefix, SCRIPT, '-n', str(count), '--module=worker', '--', f'--mode={mode}']
    process = subprocess.Popen(
      command,
      cwd=tmp_path,
      env={**os.environ, 'PYTHON': sys.executable},
      text=True,
      **{'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, **options},
    )
    started.append(process)
    return process

  yield run
  for process in started:
    if process.poll() is None:
      process.terminate()
      process.wait(LIMIT)


def wait_for_start(process, count=2):
  """The workers' process ids."""
  lines = [process.stdout.readline().split() for _ in range(count)]
  assert sorted(line[:2] for line in lines) == [[f'[{i}]', 'started'] for i in range(count)]
  return [int(line[2]) for line in lines]


def test_dry_run_prints_one_command_a_process(launch, tmp_path):
  result = launch(
    'local.sh',
    '-n',
    '2',
    '--devices-per-process',
    '4',
    '--dry-run',
    '--',
    '--workdir=w',
    XLA_FLAGS='--a=b',
    JAX_PLATFORMS='cpu',
    PYTHON='py',
  )
  commands = [shlex.split(line) for line in result.stdout.splitlines()]
  assert len(commands) == 2
  for i, words in enumerate(commands):
    assert words[0] == 'env'
    [again] = [word.partition('=')[2] for word in words if word.startswith('DNT_COMMAND=')]
    assert shlex.split(again)[1:] == ['-n', '2', '--devices-per-process', '4', '--dry-run', '--', '--workdir=w']
    assert 'XLA_FLAGS=--a=b --xla_force_host_platform_device_count=4' in words
    assert f'CUDA_VISIBLE_DEVICES={["0,1,2,3", "4,5,6,7"][i]}' in words
    program = words[words.index('py') :]
    assert program[:5] == ['py', '-m', 'dnt.main', '--workdir=w', '--distributed']
    assert program[5].startswith('--coordinator=127.0.0.1:')
    assert program[6:] == ['--num_processes=2', f'--process_id={i}']
  assert commands[0][-3] == commands[1][-3]


def gpus_of(result):
  """The GPUs of each process."""
  return [re.search(r'CUDA_VISIBLE_DEVICES=(\S*)', line)[1] for line in result.stdout.splitlines()]


def test_processes_share_out_the_gpus_that_there_are(launch, fake):
  fake('nvidia-smi', 'seq 0 3')
  several = ('local.sh', '--devices-per-process=2', '--dry-run', '-n')
  assert gpus_of(launch(*several, '2', JAX_PLATFORMS='')) == ['0,1', '2,3']
  assert gpus_of(launch(*several, '2', JAX_PLATFORMS='', CUDA_VISIBLE_DEVICES='7,5,3,1')) == ['7,5', '3,1']
  for more in ({}, {'CUDA_VISIBLE_DEVICES': '0,1,2'}):
    result = launch(*several, '3', JAX_PLATFORMS='', **more)
    assert (result.returncode, result.stdout) == (2, '')
    assert re.search('-n 3 .*=2 need 6 GPUs; there are [34]', result.stderr)
  assert gpus_of(launch(*several, '3', JAX_PLATFORMS='cpu')) == ['0,1', '2,3', '4,5']


@pytest.mark.parametrize(
  'answer', ['echo "Failed to initialize NVML"; seq 0 9; exit 9', 'echo "No devices were found"']
)
def test_what_nvidia_smi_says_in_place_of_numbers_is_no_gpu(launch, fake, answer):
  fake('nvidia-smi', answer)
  result = launch('local.sh', '-n', '3', '--devices-per-process=4', '--dry-run', JAX_PLATFORMS='')
  assert gpus_of(result) == ['0,1,2,3', '4,5,6,7', '8,9,10,11'], 'as where it is not known how many there are'


@pytest.mark.parametrize('platforms', ['', 'cpu'])
@pytest.mark.parametrize('visible', ['', '-1'])
def test_gpus_that_are_hidden_are_not_shared_out(launch, fake, visible, platforms):
  fake('nvidia-smi', 'seq 0 3')
  fake('py', 'printf "gpus:%s\\n" "$CUDA_VISIBLE_DEVICES"')
  result = launch(
    'local.sh', '-n', '2', '--devices-per-process=2', PYTHON='py', JAX_PLATFORMS=platforms, CUDA_VISIBLE_DEVICES=visible
  )
  assert result.returncode == 0, result.stderr
  assert sorted(result.stdout.splitlines()) == [f'[0] gpus:{visible}', f'[1] gpus:{visible}']


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((), '.*-n N.* --help'),
    (('-n', '0'), "-n .*at least 1.* '0'"),
    (('-n', 'two'), "-n .*at least 1.* 'two'"),
    (('-n',), '-n .*number'),
    (('-n', '2', '--devices-per-process=x'), "--devices-per-process .*at least 1.* 'x'"),
  ],
)
def test_bad_numbers_are_refused(launch, arguments, message):
  result = launch('local.sh', *arguments)
  assert (result.returncode, result.stdout) == (2, '')
  assert re.fullmatch(f'local.sh: {message}\n', result.stderr)


def test_a_missing_interpreter_is_named(launch):
  result = launch('local.sh', '-n', '1', PYTHON='no-such-python')
  assert result.returncode == 2
  assert re.search('no-such-python .*PATH', result.stderr)


def test_every_line_is_marked_also_an_unfinished_last_one(start):
  out, err = start('end', 3).communicate(timeout=LIMIT)
  lines = out.splitlines()
  assert sorted(line for line in lines if 'saved' in line) == [f'[{i}] saved by {i}' for i in range(3)]
  assert len(lines) == 6
  assert err == ''


@pytest.mark.thorough
@pytest.mark.parametrize(('mode', 'code', 'how'), [('exit', 3, ''), ('killed', 137, ' (SIGKILL)')])
def test_a_failing_process_takes_the_others_down(start, mode, code, how):
  process = start(mode)
  pids = wait_for_start(process)
  _, err = process.communicate(timeout=30)  # they sleep for 60 s
  assert process.returncode == code
  assert re.fullmatch(f'local.sh: process 1 .*exit code {code}{re.escape(how)};.*ending the others\n', err)
  for pid in pids:
    with pytest.raises(ProcessLookupError):
      os.kill(pid, 0)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_are_handed_on_and_all_may_end_well(start, number):
  process = start('stop')
  wait_for_start(process)
  process.send_signal(number)
  out, err = process.communicate(timeout=LIMIT)
  assert (process.returncode, err) == (0, '')
  assert sorted(out.splitlines()) == sorted(
    line for i in (0, 1) for line in (f'[{i}] {number.name}', f'[{i}] saved by {i}')
  )


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_processes_that_a_signal_stops_do_not_fail(start, number):
  process = start('code')
  wait_for_start(process)
  process.send_signal(number)
  out, err = process.communicate(timeout=LIMIT)
  assert process.returncode == 128 + number
  assert sorted(line for line in out.splitlines() if 'saved' in line) == [f'[{i}] saved by {i}' for i in (0, 1)]
  assert re.search(f'stopped .*{number.name}', err) and 'ending the others' not in err


@pytest.mark.thorough
def test_a_process_that_is_stopped_alone_takes_the_others_along(start):
  process = start('code')
  pids = wait_for_start(process)
  os.kill(pids[1], signal.SIGTERM)
  out, _ = process.communicate(timeout=LIMIT)
  assert process.returncode == 143
  assert out.count('SIGTERM') == 2 and out.count('saved') == 2


def test_a_second_ctrl_c_ends_all(start):
  process = start('stubborn')
  wait_for_start(process)
  for _ in range(2):
    process.send_signal(signal.SIGINT)
    assert 'SIGINT' in process.stdout.readline() + process.stdout.readline()
  _, err = process.communicate(timeout=LIMIT)
  assert process.returncode == 130
  assert 'exit code 130' in err


def test_ctrl_c_at_a_terminal_reaches_each_process_once(start):
  ours, theirs = pty.openpty()
  process = start('stop', prefix=('setsid', '--ctty'), stdin=theirs, stdout=theirs, stderr=theirs)
  os.close(theirs)
  text = b''
  while text.count(b'started') < 2:
    text += os.read(ours, 1024)
  os.write(ours, b'\x03')
  try:
    while part := os.read(ours, 1024):
      text += part
  except OSError:  # how a terminal without users ends
    pass
  os.close(ours)
  assert process.wait(LIMIT) == 0
  lines = text.decode().replace('^C', '').split()
  assert lines.count('SIGINT') == 2
  assert lines.count('saved') == 2
