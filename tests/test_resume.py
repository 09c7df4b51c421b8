"""Killed, stopped and damaged runs: the same command goes on to the same end, bit for bit."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from dnt import metrics

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = """
from dnt import config as schema

def get_config():
  config = schema.default()
  config.data.source = 'synthetic'
  config.data.synthetic_examples = 80
  config.data.image_size = 8
  config.data.augment = 'pad_crop_flip'
  config.data.crop_padding = 1
  config.data.placement = '{placement}'
  config.data.workers = 1
  config.model.name = 'resnet'
  config.model.depth = 8
  config.model.stochastic_depth = 0.2
  config.ema.decay = 0.9
  config.train.batch_size = 32
  config.train.accumulate = 2
  config.train.steps = {steps}
  config.train.steps_per_dispatch = 4
  config.train.log_every = '1'
  config.eval.batch_size = 32
  config.eval.every = '17'
  config.checkpoint.every = '5'
  return config
"""


def start(tmp_path, workdir, placement='device', steps=60, *flags):
  config = tmp_path / f'tiny_{placement}_{steps}.py'
  config.write_text(CONFIG.format(placement=placement, steps=steps))
  command = [sys.executable, '-m', 'dnt.main', f'--config={config}', f'--workdir={workdir}', *flags]
  environment = {**os.environ, 'XLA_FLAGS': ''}  # one device: it starts faster
  return subprocess.Popen(
    command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def finish(process):
  output, _ = process.communicate(timeout=240)
  assert process.returncode == 0, output
  return output


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
  return [{k: v for k, v in line.items() if k != 'images_per_second'} for line in metrics.read(workdir)]


@pytest.mark.parametrize('placement', ['device', 'stream'])
def test_killed_runs_end_as_if_they_had_not_been(tmp_path, placement):
  whole = start(tmp_path, tmp_path / 'whole', placement)
  for kill_at in (2, 13, 31):
    killed = start(tmp_path, tmp_path / 'killed', placement)
    wait_for_step(killed, tmp_path / 'killed', kill_at)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
  finish(start(tmp_path, tmp_path / 'killed', placement))
  finish(whole)
  assert summary(tmp_path / 'killed')['finished']
  assert summary(tmp_path / 'killed')['step'] == 60
  assert summary(tmp_path / 'killed')['params_sha256'] == summary(tmp_path / 'whole')['params_sha256']
  assert record(tmp_path / 'killed') == record(tmp_path / 'whole')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits_with_zero(tmp_path, number):
  process = start(tmp_path, tmp_path / 'run', 'device', 5000)
  wait_for_step(process, tmp_path / 'run', 3)
  process.send_signal(number)
  output = finish(process)
  stopped = summary(tmp_path / 'run')
  assert not stopped['finished']
  assert (tmp_path / 'run' / 'checkpoints' / str(stopped['step'])).is_dir()
  last = output.strip().splitlines()[-2:]
  assert any('python -m dnt.main' in line and 'go on' in line for line in last), output


def test_a_second_interrupt_exits_at_once(tmp_path):
  process = start(tmp_path, tmp_path / 'run', 'device', 5000)
  # While jax is importing or compiling nothing can be saved: two interrupts end it all the same.
  wait_for_step(process, tmp_path / 'run', 1)
  process.send_signal(signal.SIGSTOP)
  process.send_signal(signal.SIGINT)
  process.send_signal(signal.SIGCONT)
  time.sleep(0.05)
  process.send_signal(signal.SIGINT)
  process.communicate(timeout=60)
  assert process.returncode in (130, 0)  # 0 when the first had already saved and ended it
