"""A run that is killed thirty times, anywhere from its first seconds to its report, ends as if it had not been."""

import json
import random
import sys
import time

import pytest

from dnt.reporting import metrics

STEPS = 150
EARLY, TRAINING, ENDING = 8, 16, 6  # kills in the first seconds of a start, while it trains, and after its last step


def last_step(workdir):
  try:
    return max((line['step'] for line in metrics.read(workdir)), default=0)
  except OSError:  # the record is being replaced
    return 0


def record(workdir):
  return [{key: value for key, value in line.items() if key != 'images_per_second'} for line in metrics.read(workdir)]


def summary(workdir):
  return json.loads((workdir / 'summary.json').read_text())


@pytest.mark.slow
def test_thirty_kills(tmp_path, config_file, start, finish):
  options = {
    'train.steps': STEPS,
    'eval.every': '17',
    'checkpoint.every': '5',
    'telemetry.every': '10',
    'model.stochastic_depth': 0.2,
    'data.mixup': 0.2,
  }
  config = config_file('soak', options)

  def run(workdir):
    return start([sys.executable, '-m', 'dnt.main', f'--config={config}', f'--workdir={workdir}'])

  def kill(process):
    process.kill()
    output, _ = process.communicate()
    assert 'Traceback' not in output and 'error' not in output, output

  workdir, draw, killed = tmp_path / 'killed', random.Random(0), 0
  early = set(draw.sample(range(EARLY + TRAINING), EARLY))
  for number in range(EARLY + TRAINING):
    process = run(workdir)
    if number in early:
      time.sleep(draw.uniform(0, 8))
    else:
      wait_until(process, workdir, min(last_step(workdir) + draw.randint(1, 8), STEPS - 1))
      time.sleep(draw.uniform(0, 0.3))
    assert process.poll() is None, process.communicate()
    kill(process)
    killed += 1
  assert last_step(workdir) < STEPS
  for _ in range(ENDING):
    process = run(workdir)
    wait_until(process, workdir, STEPS)
    time.sleep(draw.uniform(0, 2))
    killed += process.poll() is None
    kill(process)
  finish(run(workdir))
  finish(run(tmp_path / 'whole'))
  assert killed >= 28
  assert summary(workdir)['finished'] and summary(workdir)['step'] == STEPS
  assert summary(workdir)['params_sha256'] == summary(tmp_path / 'whole')['params_sha256']
  assert record(workdir) == record(tmp_path / 'whole')
  assert {path.name for path in workdir.iterdir()} - {path.name for path in (tmp_path / 'whole').iterdir()} == set()


def wait_until(process, workdir, step):
  """Waits until the run has logged a step, or has ended."""
  deadline = time.monotonic() + 300
  while last_step(workdir) < step and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.005)
