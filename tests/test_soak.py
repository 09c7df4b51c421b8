"""Kills, double starts, damage and disagreement, many times each and at random moments, on real processes.

`python -m pytest -n 0 -s -m slow tests/test_soak.py` shows the counts and the times.
"""

import itertools
import json
import random
import re
import signal
import sys
import time

import numpy as np
import pytest
from PIL import Image

from dnt.reporting import metric_names, metrics

STEPS = 300
EARLY, TRAINING, ENDING = 8, 16, 6  # kills in the first seconds of a start, while it trains, and in its report
REPORT = ('summary.json', 'curves.png', 'confusion_test.png', 'report.html')  # in the order in which they are written


def last_step(workdir):
  try:
    return max((line['step'] for line in metrics.read(workdir)), default=0)
  except OSError:  # the record is being replaced
    return 0


def record(workdir):
  lines = metrics.read(workdir)
  return [{key: value for key, value in line.items() if key not in metric_names.SPEED} for line in lines]


def summary(workdir):
  return json.loads((workdir / 'summary.json').read_text())


@pytest.mark.slow
def test_thirty_kills(tmp_path, config_file, start, finish):
  """A run that is killed anywhere from its first seconds to its report ends as if it had not been."""
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
    lived = process.poll() is None
    process.kill()
    output, _ = process.communicate()
    assert 'Traceback' not in output and 'error:' not in output, output
    return lived

  workdir, whole, draw, steps = tmp_path / 'killed', tmp_path / 'whole', random.Random(0), []
  early = set(draw.sample(range(EARLY + TRAINING), EARLY))
  for number in range(EARLY + TRAINING):
    process = run(workdir)
    if number in early:
      time.sleep(draw.uniform(0, 5))
    else:
      wait_for_steps(process, workdir, draw.randint(1, 8))
      time.sleep(draw.uniform(0, 0.1))
    assert kill(process)
    steps.append(last_step(workdir))
  assert steps[-1] < STEPS
  reported = 0
  while reported < ENDING:
    process, path, before = run(workdir), workdir / draw.choice(REPORT), time.time()
    wait_until(process, lambda path=path, before=before: path.exists() and path.stat().st_mtime > before)
    time.sleep(draw.uniform(0, 0.5 if path.suffix == '.json' else 0.01))
    reported += kill(process)
  finish(run(workdir))
  finish(run(whole))
  assert summary(workdir)['finished'] and summary(workdir)['step'] == STEPS
  assert summary(workdir)['params_sha256'] == summary(whole)['params_sha256']
  assert record(workdir) == record(whole)
  assert files_in(workdir) == files_in(whole)
  show(
    'kills',
    len(steps) + reported,
    f'{len(early)} in the first 5 s of a start, {reported} in the report, at steps {steps}',
  )


def files_in(workdir):
  return {path.name for path in workdir.iterdir() if not path.name.startswith('events.')}


def wait_until(process, reached):
  """Waits until a run has come to a point, or has ended."""
  deadline = time.monotonic() + 300
  while not reached() and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.005)


def wait_for_steps(process, workdir, count):
  last = last_step(workdir) + count
  wait_until(process, lambda: last_step(workdir) >= last)


@pytest.mark.slow
def test_ten_double_starts(tmp_path, config_file, start, finish):
  """One of two starts trains, whichever comes first; after a kill two compete for the place of the dead run."""
  options = {'eval.every': '40', 'checkpoint.every': '10', 'train.steps': 100_000, 'schedule.name': 'constant'}
  config, workdir, draw, waits = config_file('soak', options), tmp_path / 'twice', random.Random(1), []

  def command(workdir, *flags):
    return [sys.executable, '-m', 'dnt.main', f'--config={config}', f'--workdir={workdir}', *flags]

  for number in range(10):
    both = [start(command(workdir))]
    time.sleep(draw.uniform(0, 6))
    both.append(start(command(workdir)))
    begun, deadline = time.monotonic(), time.monotonic() + 240
    while not (refused := [process for process in both if process.poll() is not None]):
      assert time.monotonic() < deadline
      time.sleep(0.02)
    waits.append(time.monotonic() - begun)
    (refused,) = refused
    (owner,) = set(both) - {refused}
    (line,) = finish(refused, 2).strip().splitlines()
    assert re.match(rf'error: .*in use by .*process {owner.pid} on ', line)
    wait_for_steps(owner, workdir, draw.randint(1, 15))
    owner.send_signal(signal.SIGKILL if number % 2 else signal.SIGTERM)
    output = finish(owner, -signal.SIGKILL if number % 2 else 128 + signal.SIGTERM)
    assert 'error:' not in output and ('taking over' in output) == (number > 0 and number % 2 == 0), output
  length = f'--config.train.steps={last_step(workdir) + 5}'
  finish(start(command(workdir, length)))
  finish(start(command(tmp_path / 'once', length)))
  steps = [line['step'] for line in metrics.read(workdir) if 'train/loss' in line]
  assert steps == list(range(1, summary(workdir)['step'] + 1))
  assert summary(workdir)['params_sha256'] == summary(tmp_path / 'once')['params_sha256']
  show('double starts', len(waits), f'one refused each time, after {spread(waits)}; {len(steps)} steps, each once')


def zeroed(content, draw):
  """Half of the file, as a power loss leaves it."""
  first = draw.randint(0, len(content) // 2)
  return content[:first] + bytes(len(content) // 2) + content[first + len(content) // 2 :]


def flipped(content, draw):
  place = draw.randrange(len(content))
  return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def cut_off(content, draw):
  return content[: draw.randrange(len(content))]


def appended(content, draw):
  """Behind a part that is whole."""
  return cut_off(content, draw) + draw.randbytes(10_000)


@pytest.mark.slow
def test_ten_damages_of_cached_features(tmp_path, config_file, run_program):
  options = {
    'data.augment': 'none',
    'data.synthetic_examples': 400,
    'finetune.trainable': 'head',
    'finetune.cache_dir': str(tmp_path / 'features'),
    'train.steps': 20,
  }
  config, draw, seconds = config_file('soak', options), random.Random(2), []

  def run(name):
    begun = time.monotonic()
    code, output = run_program('dnt.main', f'--config={config}', f'--workdir={tmp_path / name}')
    seconds.append(time.monotonic() - begun)
    assert code == 0, output
    return output, summary(tmp_path / name)['params_sha256']

  output, expected = run('whole')
  assert output.count('kept as') == 2
  kept = {path: path.read_bytes() for path in (tmp_path / 'features').glob('*.features')}
  for number, damage in zip(range(10), itertools.cycle((zeroed, flipped, cut_off, appended)), strict=False):
    path = draw.choice(sorted(kept))
    path.write_bytes(damage(kept[path], draw))
    output, digest = run(f'{number}-{damage.__name__}')
    assert output.count('kept as') == output.count('found in') == 1, (damage, output)
    assert damage is cut_off or 'damaged after' in output, (damage, output)
    assert digest == expected
    assert {path: path.read_bytes() for path in kept} == kept
  show('damaged feature files', number + 1, f'each found and computed anew, the same parameters; {spread(seconds)}')


NETWORK = """
import flax.linen as nn

class Net(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1) * {scale})
"""


@pytest.mark.slow
def test_eight_disagreements(tmp_path, config_file, outcomes):
  """Both processes end with exit code 2 within a minute, and name what differs between them."""
  for number in (0, 1):
    folder = tmp_path / str(number)
    for split, name, index in itertools.product(('train', 'test'), ('cats', 'dogs'), range(20)):
      (folder / split / name).mkdir(parents=True, exist_ok=True)
      Image.fromarray(np.full((8, 8, 3), 12 * index, np.uint8)).save(folder / split / name / f'{index}.png')
    (folder / 'own_net.py').write_text(NETWORK.format(scale=number))
    config_file(f'{number}/same', {'train.steps': 20})
    config_file(f'{number}/other', {'train.steps': 20, 'data.workers': number})
    config_file(f'{number}/own', {'train.steps': 20, 'model.name': 'own_net:Net', 'model.depth': None})
  (tmp_path / '1' / 'train' / 'dogs' / '7.png').unlink()
  changed = {
    'optim.learning_rate': '0.5',
    'seed': '1',
    'data.seed': '2',
    'train.steps': '11',
    'train.batch_size': '16',
  }
  cases = [
    (f'config.{key} is ', f' and {value} on process 1', 'same', [[], [f'--config.{key}={value}']])
    for key, value in changed.items()
  ]
  cases += [
    (
      'images of train is 40',
      ' and 39 on process 1',
      'same',
      [[f'--config.data.source=folder:{tmp_path}/{number}'] for number in (0, 1)],
    ),
    ('the config file is ', ' on process 1', 'other', [[], []]),
    ('the file own_net.py is ', ' on process 1', 'own', [[], []]),
  ]
  seconds = []
  for name, value, config, flags in cases:
    begun = time.monotonic()
    common = [[f'--config={tmp_path}/{number}/{config}.py', f'--workdir={tmp_path}/run'] for number in (0, 1)]
    for line in outcomes(*([*common[number], *flags[number]] for number in (0, 1))):
      assert name in line and value in line, line
    seconds.append(time.monotonic() - begun)
  assert not list((tmp_path / 'run').iterdir())
  show('disagreements of two processes', len(cases), f'both refused after {spread(seconds)}')
  assert max(seconds) < 60


def spread(seconds):
  return f'{min(seconds):.1f} to {max(seconds):.1f} s'


def show(what, count, figures):
  print(f'\n{what}: {count}; {figures}')
