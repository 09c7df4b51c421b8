"""The program on runs of its own, and the configs that come with it."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from dnt import config as schema
from dnt import loop
from dnt.comparison import output, plan, reading
from dnt.parallel import ownership
from dnt.reporting import metrics
from dnt.training import datasets, experiment, record

CONFIG_FILE = """
from dnt import config as schema

def get_config():
  config = schema.default('compare')
  base = config.base
  base.data.source = 'synthetic'
  base.data.synthetic_examples = 64
  base.data.image_size = 8
  base.model.name = 'mlp'
  base.model.width = 16
  base.train.batch_size = 16
  base.train.steps = {steps}
  base.train.log_every = '20'
  base.train.steps_per_dispatch = 2
  base.telemetry.every = '0'
  base.eval.batch_size = 16
  base.eval.splits = ('test', 'train')
  base.eval.every = '0'
  base.checkpoint.every = '500'
  config.variants = {{'good': {{'optim.learning_rate': 0.01}}, 'diverges': {{'optim.learning_rate': 1e30}}, {more}}}
  return config
"""
STEPS = 4000  # takes a few seconds: long enough to be stopped


@pytest.fixture
def compare(tmp_path, start):
  """Starts the program on two variants, one of which fails."""

  def program(*arguments, steps=STEPS, more=''):
    path = tmp_path / 'compare_me.py'
    path.write_text(CONFIG_FILE.format(steps=steps, more=more))
    command = [sys.executable, '-m', 'dnt.compare', f'--config={path}', f'--workdir={tmp_path / "runs"}']
    return start([*command, *arguments])

  return program


def wait_for(condition, process):
  deadline = time.monotonic() + 240
  while not condition():
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < deadline
    time.sleep(0.01)


def done(workdir, step):
  """Whether the run has logged `step`; its record may be rewritten meanwhile."""
  try:
    return any(line['step'] >= step for line in metrics.read(workdir))
  except OSError:
    return False


def children(pid):
  return [int(child) for child in pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


@pytest.mark.thorough
def test_stopped_killed_and_started_again(tmp_path, compare, run_here):
  workdir = tmp_path / 'runs'
  good = workdir / 'good' / 'seed0'

  process = compare()
  wait_for(lambda: done(good, 20), process)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 143, output
  assert 'run `python -m dnt.compare' in output.splitlines()[-1]
  stopped = json.loads((good / 'summary.json').read_text())
  assert not stopped['finished'] and stopped['stopped_by'] == 'SIGTERM' and 0 < stopped['step'] < STEPS
  assert not (workdir / 'diverges').exists()
  assert f'seed 0 stopped at step {metrics.read(good)[-1]["step"]}' in (workdir / 'results.md').read_text()

  process = compare()
  wait_for(lambda: done(good, stopped['step'] + 20), process)
  (child,) = children(process.pid)
  process.kill()
  process.communicate()
  deadline = time.monotonic() + 60
  while ownership._started(child) not in (None, 'ended'):  # it gets SIGTERM, and saves
    assert time.monotonic() < deadline
    time.sleep(0.01)
  partition = json.loads((good / 'summary.json').read_text())
  assert not partition['finished'] and partition['step'] > stopped['step']

  process = compare()
  output, _ = process.communicate(timeout=240)
  assert process.returncode == 1, output
  assert re.search('error: 1 of 2 .*failed.* diverges seed 0', output)
  assert f'from step {partition["step"]}' in (good / 'log.txt').read_text()
  assert json.loads((good / 'summary.json').read_text())['step'] == STEPS
  rows = [line for line in (workdir / 'results.md').read_text().splitlines() if line.startswith('| ')]
  assert rows[2].startswith('| good | 1/1 | 0.00 | ') and 'not finite' in rows[3]
  assert {'results.csv', 'results.json', 'curves.png', 'report.html'} <= {path.name for path in workdir.iterdir()}

  before = (good / 'log.txt').read_bytes(), (good / 'summary.json').read_bytes()
  flags = process.args[3:]
  code, output = run_here('compare', *flags, '--only=good')
  assert code == 0, output
  assert re.search('good seed 0  .*finished', output)
  assert ((good / 'log.txt').read_bytes(), (good / 'summary.json').read_bytes()) == before
  assert '| diverges |' in (workdir / 'results.md').read_text(), 'what ran before stays in the table'

  code, output = run_here('compare', *flags, '--config.base.optim.momentum=0.5')
  assert code == 2, output
  assert re.search('good/seed0 .*optim.momentum was 0.9 and is now 0.5', output)


def test_a_typo_is_refused_before_anything_runs(tmp_path, compare):
  output, _ = (process := compare(more="'typo': {'optim.learning_rte': 1}")).communicate(timeout=120)
  assert process.returncode == 2
  assert output.count('\n') == 1 and re.search("'optim.learning_rte'.* 'optim.learning_rate'", output)
  assert not (tmp_path / 'runs').exists()


def test_the_parent_leaves_the_device_to_its_runs(tmp_path):
  """Making the runs and the results computes nothing: on an accelerator the memory belongs to the current run."""
  (tmp_path / 'compare_me.py').write_text(CONFIG_FILE.format(steps=2, more=''))
  code = """
import pathlib, sys
from dnt import config as schema
from dnt.comparison import output, plan, reading, results, runner
sys.path.insert(0, sys.argv[1])
import compare_me
config = compare_me.get_config()
workdir = pathlib.Path(sys.argv[1])
outcomes = [reading.read(run) for run in plan.make(config, workdir)]
output.write(outcomes, output.About(config, 'name', '', 'go'), workdir)
"""
  environment = {**os.environ, 'JAX_PLATFORMS': 'no_such_device'}
  subprocess.run([sys.executable, '-c', code, str(tmp_path)], env=environment, check=True)


# The configs.
CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
PATHS = sorted(path for path in CONFIGS.glob('compare_*.py') if path.stem != 'compare_transfer_rule')
SHAPES = {'tfds:fashion_mnist': (28, 28, 1), 'tfds:cifar10': (32, 32, 3)}


def build(config):
  """The experiment of a config whose data is not at hand."""
  shape = SHAPES[config.data.source]
  if config.data.image_size:
    shape = (config.data.image_size, config.data.image_size, shape[-1])
  config.data.mean = config.data.std = (0.5,) * shape[-1]
  config.train.steps = config.train.steps or 100
  return experiment.make(config, datasets.Spec(1000, shape, tuple(map(str, range(10)))))


def program(config):
  """What tells one training step from another; numbers and draws do not, nor does more of the same blocks."""
  leaves = {**config.model, 'batch': config.train.batch_size, 'clip': config.clip.name, 'size': config.data.image_size}
  for name in ('depth', 'initializer', 'init_gain', 'gate_bias', 'options'):  # plan.make has checked the depth
    del leaves[name]
  return tuple(leaves.items())


@pytest.mark.thorough
@pytest.mark.parametrize('path', PATHS, ids=lambda path: path.stem)
def test_every_variant_of_a_config_is_a_valid_program(path, load_config, tmp_path):
  assert len(path.read_text().splitlines()) <= 60
  config = load_config(path)
  schema.validate(config)
  assert len(config.seeds) >= 3
  steps = {}
  for form in ('', *config.forms):
    runs = plan.make(config, tmp_path, form)
    assert all(run.config.data.train_split in run.config.eval.splits for run in runs), 'training error is evaluated'
    for each in runs:
      steps.setdefault(program(each.config), each.config)
  for each in steps.values():
    run = build(each)
    state = run.abstract_state()
    size = each.train.batch_size
    batch = {'image': jax.ShapeDtypeStruct((size, *run.spec.image_shape), jnp.uint8)}
    batch |= {name: jax.ShapeDtypeStruct((size,), jnp.int32) for name in ('label', 'epoch', 'position')}
    after, found = jax.eval_shape(run.phases[0].train_step, state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert found['loss'].shape == ()


@pytest.mark.thorough
@pytest.mark.usefixtures('undrawn')
@pytest.mark.parametrize('path', PATHS, ids=lambda path: path.stem)
def test_shrunk_config_trains_and_has_results(path, load_config, tmp_path):
  config = load_config(path)
  base = config.base
  base.data.source = 'synthetic'
  base.data.synthetic_examples = 20
  base.data.train_split = 'train'
  base.data.image_size = 8
  base.data.crop_padding = 1
  base.train.steps = 2
  base.telemetry.every = '0'
  base.eval.splits = ('test', 'train')
  base.eval.batch_size = 8
  runs = plan.make(config, tmp_path)
  first = runs[0]
  first.config.train.batch_size = 8
  first.config.model.depth = 8
  loop.train(first.config, first.workdir, record.Clock(0.0), 'test')
  outcomes = [reading.read(run) for run in runs]
  output.write(outcomes, output.About(config, path.stem, '', 'test'), tmp_path)
  whole, _, _ = (tmp_path / 'results.md').read_text().partition('\n\n')  # tables of classes come behind
  table = [line for line in whole.splitlines() if line.startswith('| ')]
  assert len(table) == 2 + len(config.variants)
  assert table[2].startswith(f'| {first.variant} | 1/{len(config.seeds)} | ')
  assert outcomes[0].values.keys() >= {'train_error', 'test_error', 'parameters', 'process_memory'}


def test_blocks_are_compared_at_equal_parameters(load_config, tmp_path):
  runs = plan.make(load_config(PATHS[0].with_name('compare_blocks.py')), tmp_path)
  counts = {run.variant: sum(row.parameters for row in build(run.config).table) for run in runs[:5]}
  assert counts == {
    'plain': 269_434,
    'residual': 269_434,
    'preactivation': 269_434,
    'highway': 289_774,
    'dense': 272_440,
  }
  assert max(counts.values()) < 1.1 * min(counts.values())
