"""Killed, stopped and damaged runs: the same command goes on to the same end, bit for bit."""

import json
import os
import pathlib
import signal
import sys
import time

import pytest

from dnt.parallel import signals
from dnt.reporting import metric_names, metrics


@pytest.fixture
def run(config_file, start):
  """Starts the program on a small run, with everything on that a resume must bring back."""

  def program(workdir, placement='device', steps=60, optimized=True):
    options = {
      'data.placement': placement,
      'data.policy': 'rand_augment' if placement == 'stream' else 'none',
      'data.mixup': 0.2,
      'data.cutmix': 1.0,
      'data.erasing': 0.25,
      'model.stochastic_depth': 0.2,
      'train.accumulate': 2,
      'train.steps': steps,
      'train.steps_per_dispatch': 4,
      'eval.every': '17',
      'checkpoint.every': '5',
    }
    config = config_file(f'tiny_{placement}_{steps}', options)
    command = [sys.executable, '-m', 'dnt.main', f'--config={config}', f'--workdir={workdir}']
    return start(command, optimized)

  return program


def wait_for_step(process, workdir, step):
  """Until the run has logged `step`; its record may be rewritten meanwhile."""
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline:
    assert process.poll() is None, process.stdout.read()
    try:
      if any(line['step'] >= step for line in metrics.read(workdir)):
        return
    except OSError:
      pass
    time.sleep(0.005)
  pytest.fail(f'step {step} was never logged')


def summary(workdir):
  return json.loads((pathlib.Path(workdir) / 'summary.json').read_text())


def record(workdir):
  return [{k: v for k, v in line.items() if k not in metric_names.SPEED} for line in metrics.read(workdir)]


@pytest.mark.thorough
@pytest.mark.parametrize(('placement', 'kills'), [('device', (2, 31)), ('stream', (13,))])
def test_killed_runs_end_as_if_they_had_not_been(tmp_path, run, finish, placement, kills):
  whole = run(tmp_path / 'whole', placement)
  for kill_at in kills:
    killed = run(tmp_path / 'killed', placement)
    wait_for_step(killed, tmp_path / 'killed', kill_at)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
  finish(run(tmp_path / 'killed', placement))
  finish(whole)
  assert summary(tmp_path / 'killed')['finished']
  assert summary(tmp_path / 'killed')['step'] == 60
  assert summary(tmp_path / 'killed')['params_sha256'] == summary(tmp_path / 'whole')['params_sha256']
  assert record(tmp_path / 'killed') == record(tmp_path / 'whole')


@pytest.mark.thorough
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_exits_with_its_code(tmp_path, run, finish, number):
  process = run(tmp_path / 'run', 'device', 5000)
  wait_for_step(process, tmp_path / 'run', 3)
  process.send_signal(number)
  output = finish(process, 128 + number)
  stopped = summary(tmp_path / 'run')
  assert not stopped['finished'] and stopped['stopped_by'] == number.name
  assert (tmp_path / 'run' / 'checkpoints' / str(stopped['step'])).is_dir()
  last = output.strip().splitlines()[-2:]
  assert any('python -m dnt.main' in line and 'go on' in line for line in last), output


@pytest.mark.thorough
def test_a_second_interrupt_exits_at_once(tmp_path, run):
  process = run(tmp_path / 'run', 'device', 5000, optimized=False)
  # While jax is importing or compiling nothing can be saved: two interrupts end it all the same.
  wait_for_step(process, tmp_path / 'run', 1)
  process.send_signal(signal.SIGSTOP)
  process.send_signal(signal.SIGINT)
  process.send_signal(signal.SIGCONT)
  time.sleep(1.1 * signals.TOGETHER)
  process.send_signal(signal.SIGINT)
  process.communicate(timeout=60)
  assert process.returncode == 130
