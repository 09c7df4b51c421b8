"""Kills, double starts, damage and disagreement, many times each and at random moments, on real processes.

`python -m pytest -n 0 -s -m slow tests/test_soak.py` shows the counts and the times.
"""

import collections
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

from dnt import checkpoints, trees
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


def wait_until(process, reached, poll=0.005):
  """Waits until a run has come to a point, or has ended."""
  deadline = time.monotonic() + 300
  while not reached() and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(poll)


def wait_for_steps(process, workdir, count):
  last = last_step(workdir) + count
  wait_until(process, lambda: last_step(workdir) >= last, poll=0.02)


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


LENGTH, EVALUATE = 600, 17  # steps, steps between evaluations
JOIN, LIMIT = 20, 180  # seconds in which the processes must meet, and after a signal end on a busy machine
MOMENTS = ('start', 'training', 'evaluation', 'start', 'training', 'checkpoint')


@pytest.fixture
def processes(tmp_path, config_file, start, coordinator):
  """Starts a run on so many processes of one device."""
  options = {
    'data.synthetic_examples': 320,
    'model.name': 'mlp',
    'model.depth': 3,
    'model.width': 16,
    'optim.learning_rate': 0.02,
    'train.steps': LENGTH,
    'eval.every': str(EVALUATE),
    'checkpoint.every': '5',
    'telemetry.every': '0',
    'data.mixup': 0.2,
  }
  config = config_file('soak', options)

  def run(workdir, count):
    command = [sys.executable, '-m', 'dnt.main', f'--config={config}', f'--workdir={workdir}']
    if count == 1:
      return [start(command)]
    command += ['--distributed', f'--coordinator={coordinator}', f'--num_processes={count}', f'--join_timeout={JOIN}']
    return [start([*command, f'--process_id={number}']) for number in range(count)]

  return run


def reach(moment, process, workdir, draw):
  """Waits until a run that has done a step is between two steps, in an evaluation or in a checkpoint."""
  wait_for_steps(process, workdir, draw.randint(0, 7))
  if moment == 'training':
    time.sleep(draw.uniform(0, 0.1))
  elif moment == 'evaluation':
    wait_until(process, lambda: is_evaluating(workdir))
    time.sleep(draw.uniform(0, 0.05))
  else:
    wait_until(process, lambda: any((workdir / 'checkpoints').glob('*tmp*')))
    time.sleep(draw.uniform(0, 0.02))


def is_evaluating(workdir):
  last = max(metrics.read(workdir), key=lambda line: (line['step'], 'test/loss' in line), default={'step': 1})
  return last['step'] % EVALUATE == 0 and 'test/loss' not in last


def end(group, number, hit):
  """Waits for the end of all processes after a signal to some, and checks what they say; returns how it ended."""
  begun = time.monotonic()
  outputs = [process.communicate(timeout=LIMIT)[0] for process in group]
  seconds, codes = time.monotonic() - begun, [process.returncode for process in group]
  assert all('Traceback' not in output and 'stack trace' not in output for output in outputs), outputs
  said = f'{[*zip(codes, outputs, strict=True)]}'
  others = [place for place in range(len(group)) if place not in hit]
  if number == signal.SIGKILL:
    assert [codes[place] for place in hit] == [-signal.SIGKILL], said
  else:  # a signal in the first moments of Python meets no handler
    assert all(codes[place] in (128 + signal.SIGTERM, -signal.SIGTERM) for place in hit), said
  for place in others:
    lines = [line for line in outputs[place].splitlines() if line.startswith('error: ')]
    if number == signal.SIGTERM and codes[place] == 128 + signal.SIGTERM:
      assert not lines, said
      continue
    (line,) = lines
    lost = rf'process {hit[0]} \(on .+\) was lost'
    missing = f'missing after .* process {hit[0]} '
    assert codes[place] == 1 and re.search(rf'error: ({lost}|{missing})', line), said
  return seconds, 'before they met' if any('missing after' in output for output in outputs) else 'together'


def loss_difference(found, expected):
  """The largest relative difference of a loss of two records."""
  pairs = [
    (line[name], other[name])
    for line, other in zip(found, expected, strict=True)
    for name in ('train/loss', 'test/loss', 'test_ema/loss')
    if name in line
  ]
  mine, others = np.array(pairs).T
  return np.max(np.abs(mine - others) / others)


def parameter_difference(workdir, whole):
  """The distance of the parameters of two runs, over their norm."""
  mine, others = (
    np.concatenate([leaf.ravel() for leaf in trees.flatten(checkpoints.load_parameters(each).params).values()])
    for each in (workdir, whole)
  )
  return np.linalg.norm(mine - others) / np.linalg.norm(others)


def complete(group):
  """Waits until all processes of a run have finished it; returns the seconds."""
  begun = time.monotonic()
  for process in group:
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output
  return time.monotonic() - begun


@pytest.mark.slow
@pytest.mark.parametrize(('sizes', 'ends'), [((2,), 20), ((1, 2, 4), 30)], ids=['two', 'any'])
def test_kills_and_stops_of_several_processes(tmp_path, processes, sizes, ends):
  """The run ends as if nothing had happened: bit-identical if it was always on as many processes."""
  draw, workdir, whole = random.Random(3), tmp_path / 'killed', tmp_path / 'whole'
  counts, waits, steps = collections.Counter(), collections.defaultdict(list), []
  complete(processes(whole, sizes[0]))
  startup = 5.0  # seconds to the first step; later those of the start before
  for _ in range(ends):
    moment, group, begun = draw.choice(MOMENTS), processes(workdir, draw.choice(sizes)), time.monotonic()
    if moment == 'start':
      time.sleep(draw.uniform(0, startup))
    else:
      wait_for_steps(group[0], workdir, 1)
      startup = time.monotonic() - begun
      reach(moment, group[0], workdir, draw)
    number = draw.choice((signal.SIGKILL, signal.SIGTERM))
    hit = [draw.randrange(len(group))]
    if number == signal.SIGTERM and draw.random() < 0.5:
      hit = [*range(len(group))]
    assert all(process.poll() is None for process in group)
    for place in hit:
      group[place].send_signal(number)
    took, how = end(group, number, hit)
    steps.append(last_step(workdir))
    waits[how].append(took)
    counts[f'{signal.Signals(number).name} to {len(hit)} of {len(group)} in {moment}'] += 1
    if number == signal.SIGTERM and how == 'together' and moment != 'start':
      assert summary(workdir)['stopped_by'] == 'SIGTERM' and summary(workdir)['step'] == steps[-1]
      assert (workdir / 'checkpoints' / str(steps[-1])).is_dir()
  assert steps[-1] < LENGTH
  complete(processes(workdir, sizes[-1]))
  assert summary(workdir)['finished'] and summary(workdir)['step'] == LENGTH
  assert files_in(workdir) == files_in(whole)
  found, expected = record(workdir), record(whole)
  assert [list(line) for line in found] == [list(line) for line in expected]
  assert [line['step'] for line in found if 'train/loss' in line] == list(range(1, LENGTH + 1))
  losses, parameters = loss_difference(found, expected), parameter_difference(workdir, whole)
  listed = ', '.join(f'{count} x {what}' for what, count in sorted(counts.items()))
  times = '; '.join(f'ended {how} after {spread(seconds)} ({len(seconds)})' for how, seconds in waits.items())
  differ = f'losses differ by {losses:.1e}, parameters by {parameters:.1e}'
  show('kills and stops of several processes', sum(counts.values()), f'{listed}; {times}; {differ}; at steps {steps}')
  if len(sizes) == 1:
    assert summary(workdir)['params_sha256'] == summary(whole)['params_sha256']
    assert found == expected
  assert losses < 1e-4 and parameters < 1e-4


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
