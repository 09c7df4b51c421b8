"""One program on any number of devices and processes: the same losses to float error."""

import itertools
import json
import re
import shutil
import signal
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from dnt import loop
from dnt.parallel import mesh as mesh_lib
from dnt.reporting import metrics
from dnt.training import record

pytestmark = pytest.mark.usefixtures('eight_devices')


def losses(workdir):
  return np.array([line['train/loss'] for line in metrics.read(workdir) if 'train/loss' in line])


@pytest.mark.thorough
@pytest.mark.usefixtures('undrawn')
def test_any_number_of_devices_gives_the_same_losses(tiny, tmp_path, monkeypatch):
  tiny.model.name, tiny.model.depth, tiny.model.width = 'resnet', 8, None
  tiny.model.stochastic_depth = 0.2
  tiny.data.augment, tiny.data.crop_padding = 'pad_crop_flip', 1
  tiny.train.accumulate, tiny.train.steps, tiny.train.log_every = 2, 4, '1'
  tiny.eval.every = tiny.telemetry.every = '0'
  make_mesh, found = mesh_lib.make_mesh, {}
  for count in (1, 2, 4, 8):
    devices = jax.devices()[:count]
    monkeypatch.setattr(jax, 'devices', lambda devices=devices: devices)
    monkeypatch.setattr(mesh_lib, 'make_mesh', make_mesh)
    workdir = tmp_path / str(count)
    loop.train(tiny, workdir, record.Clock(0.0), 'test')
    monkeypatch.undo()
    found[count] = losses(workdir)
    assert json.loads((workdir / 'summary.json').read_text())['devices']['count'] == count
    evaluation = [line for line in metrics.read(workdir) if 'test/loss' in line][-1]
    found[count] = np.append(found[count], evaluation['test/loss'])
  for count in (2, 4, 8):
    # The first step sees equal parameters; later ones what the order of summation has made of them.
    np.testing.assert_allclose(found[count][0], found[1][0], rtol=2e-6)
    np.testing.assert_allclose(found[count], found[1], rtol=2e-3)


@pytest.fixture
def config(config_file):
  """Writes the config of a run of so many steps."""

  def write(placement, steps):
    options = {
      'data.placement': placement,
      'optim.learning_rate': 0.02,
      'train.steps': steps,
      'eval.every': '6',
      'telemetry.every': '0',
      'checkpoint.every': '4',
    }
    return config_file(f'tiny_{placement}_{steps}', options)

  return write


def wait_for_a_step(process, workdir):
  """Until a run has logged its first step."""
  deadline = time.monotonic() + 240
  while not (metrics.read(workdir) if workdir.exists() else []):
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < deadline
    time.sleep(0.05)


@pytest.mark.thorough
@pytest.mark.usefixtures('undrawn')
def test_two_processes_train_stop_and_go_on_as_one(tmp_path, config, start, finish, load_config, monkeypatch):
  """Two processes read a stream, are stopped and go on with data on the device; one, on two devices, does as they."""
  workdir = tmp_path / 'two'

  def launch(placement, steps):
    flags = [f'--config={config(placement, steps)}', f'--workdir={workdir}']
    return start(['launch/local.sh', '-n', '2', '--devices-per-process=1', '--', *flags])

  process = launch('stream', 400)
  wait_for_a_step(process, workdir)
  process.send_signal(signal.SIGTERM)
  output = finish(process, 143)
  stopped = json.loads((workdir / 'summary.json').read_text())
  assert not stopped['finished'] and stopped['stopped_by'] == 'SIGTERM'
  assert stopped['devices']['processes'] == 2
  again = f'launch/local.sh -n 2 --devices-per-process=1 -- --config={config("stream", 400)} --workdir={workdir}'
  assert f'run `{again}` again to go on' in output
  before = losses(workdir)
  assert len(before) == stopped['step']
  shutil.copytree(workdir, tmp_path / 'one')

  steps = stopped['step'] + 3
  finish(launch('device', steps))
  two = json.loads((workdir / 'summary.json').read_text())
  assert two['finished']
  assert two['step'] == steps
  after = losses(workdir)
  assert np.array_equal(after[:-3], before)

  devices = jax.devices()[:2]
  monkeypatch.setattr(jax, 'devices', lambda: devices)
  loop.train(load_config(config('device', 4)), tmp_path / 'start', record.Clock(0.0), 'test')
  one = loop.train(load_config(config('device', steps)), tmp_path / 'one', record.Clock(0.0), 'test')
  assert (one['devices']['processes'], one['devices']['count'], one['step']) == (1, 2, steps)
  for mine, other in (
    (before[:4], losses(tmp_path / 'start')[: len(before)]),
    (after[-3:], losses(tmp_path / 'one')[-3:]),
  ):
    np.testing.assert_allclose(mine[0], other[0], rtol=2e-6)
    np.testing.assert_allclose(mine, other, rtol=2e-3)
  for name in ('loss', 'auroc', 'calibration_error'):
    assert two['last'][f'test/{name}'] == pytest.approx(one['last'][f'test/{name}'], rel=2e-3)


@pytest.mark.thorough
def test_a_missing_process_is_named_within_the_time_limit(tmp_path, config, start, coordinator):
  flags = [f'--config={config("device", 10)}', f'--workdir={tmp_path / "run"}']
  place = ['--distributed', f'--coordinator={coordinator}', '--num_processes=2', '--process_id=0', '--join_timeout=2']
  process = start([sys.executable, '-m', 'dnt.main', *flags, *place])
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 1
  assert re.match(r'error: .*missing.* 2 s\b.* process 1 of 2', output.strip().splitlines()[-1])
  assert not (tmp_path / 'run').exists()


@pytest.mark.thorough
def test_processes_with_other_configs_refuse_to_run(tmp_path, config, outcomes):
  flags = [f'--config={config("stream", 10)}', f'--workdir={tmp_path / "run"}']
  changed = {'optim.learning_rate': 0.5, 'seed': 1, 'data.seed': 2, 'train.steps': 11, 'train.batch_size': 16}
  others = [f'--config.{key}={value}' for key, value in changed.items()]
  for line in outcomes(flags, [*flags, '--config.data.workers=0', *others]):
    for key, value in changed.items():
      assert re.search(rf'config\.{key} is [\d.]+ on process 0 and {value} on process 1', line)
    assert line.count(' is ') == len(changed)
  assert not (tmp_path / 'run').exists()


@pytest.mark.thorough
def test_processes_with_other_numbers_of_devices_refuse_to_run(tmp_path, config, start, coordinator):
  flags = [f'--config={config("stream", 10)}', f'--workdir={tmp_path / "run"}', '--distributed']
  command = [sys.executable, '-m', 'dnt.main', *flags, f'--coordinator={coordinator}', '--num_processes=2']
  own = (['env', f'JAX_NUM_CPU_DEVICES={count}', *command, f'--process_id={i}'] for i, count in enumerate((1, 2)))
  for process in [start(each) for each in own]:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 2, output
    assert 'error: the processes of this run differ: the devices are 1 cpu on process 0 and 2 cpu on' in output
  assert not (tmp_path / 'run').exists()


@pytest.mark.thorough
def test_an_image_that_one_process_cannot_read_loses_no_step(tmp_path, config_file, outcomes, finish, start):
  """It looks whole when the run starts, so that only the evaluation meets it."""
  for split, name, index in itertools.product(('train', 'val'), ('cats', 'dogs'), range(16)):
    (tmp_path / 'data' / split / name).mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / 'data' / split / name / f'{index}.png')
  path = tmp_path / 'data' / 'val' / 'cats' / '3.png'
  whole = path.read_bytes()
  place = whole.index(b'IDAT') + 20
  path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
  options = {
    'data.source': f'folder:{tmp_path / "data"}',
    'data.placement': 'stream',
    'data.workers': 0,
    'eval.batch_size': 8,
  }
  options |= {'eval.splits': ('val',), 'checkpoint.best_metric': 'accuracy'}
  options |= {'train.steps': 6, 'eval.every': '3', 'checkpoint.every': '0'}
  flags = [f'--config={config_file("damaged", options)}', f'--workdir={tmp_path / "run"}']
  found = outcomes(flags, flags)
  assert all(f'{path}' in line and 'step 3 is kept' in line for line in found)
  assert sum('process ' in line for line in found) == 1, 'the other process names the one that cannot read it'
  path.write_bytes(whole)
  output = finish(start([sys.executable, '-m', 'dnt.main', *flags]))
  assert 'continuing from step 3' in output and 'finished step 6' in output


@pytest.mark.thorough
def test_processes_with_other_data_refuse_to_run(tmp_path, config, outcomes):
  folders = [tmp_path / 'first', tmp_path / 'second']
  for folder in folders:
    for split, name in itertools.product(('train', 'test'), ('cats', 'dogs')):
      (folder / split / name).mkdir(parents=True)
      for index in range(8):
        Image.fromarray(np.full((8, 8, 3), 10 * index, np.uint8)).save(folder / split / name / f'{index}.png')
  (folders[1] / 'train' / 'dogs' / '7.png').unlink()
  flags = [f'--config={config("stream", 10)}', f'--workdir={tmp_path / "run"}']
  own = [[*flags, f'--config.data.source=folder:{folder}'] for folder in folders]
  for line in outcomes(*own):
    assert 'the number of images of train is 16 on process 0 and 15 on process 1' in line
    assert 'of test' not in line
  shutil.rmtree(folders[1])
  first, second = outcomes(*own)
  assert 'process 1: ' in first
  assert str(folders[1]) in first and str(folders[1]) in second


@pytest.mark.thorough
@pytest.mark.parametrize('lost', [0, 1])
def test_a_slow_process_is_named_and_a_killed_one_ends_the_others(tmp_path, config, start, coordinator, lost):
  flags = [f'--config={config("device", 100_000)}', f'--workdir={tmp_path / "run"}']
  flags += ['--config.train.steps_per_dispatch=1', '--config.eval.every=0']
  place = ['--distributed', f'--coordinator={coordinator}', '--num_processes=2']
  processes = [start([sys.executable, '-m', 'dnt.main', *flags, *place, f'--process_id={i}']) for i in (0, 1)]
  wait_for_a_step(processes[0], tmp_path / 'run')

  def go_on(steps):
    last, deadline = len(losses(tmp_path / 'run')) + steps, time.monotonic() + 60
    while len(losses(tmp_path / 'run')) < last:
      assert [process.poll() for process in processes] == [None, None] and time.monotonic() < deadline
      time.sleep(0.1)

  if lost:
    begin = time.monotonic()
    go_on(10)
    processes[lost].send_signal(signal.SIGSTOP)
    time.sleep(8 + 1.5 * (time.monotonic() - begin))  # fifteen steps, on a machine that has other work too
    processes[lost].send_signal(signal.SIGCONT)
    go_on(10)
    time.sleep(2)  # several looks of the watchdog
  processes[lost].kill()
  begin = time.monotonic()
  output, _ = processes[1 - lost].communicate(timeout=60)
  assert time.monotonic() - begin < 30
  assert processes[1 - lost].returncode == 1, output
  assert 'Traceback' not in output and 'stack trace' not in output
  found = [line for line in output.splitlines() if line.startswith('error: ')]
  assert len(found) == 1 and re.match(rf'error: process {lost} \(on .+\) was lost', found[0])
  assert output.strip().endswith(found[0])
  if lost:
    late = re.search(
      r'takes .* s.*; waiting for process 1 \(on .+\)\n  process 0 .* waits .*\n  process 1 .*not answered for.*\n',
      output,
    )
    assert late, output
    assert 'the run goes on after' in output[late.end() :]


@pytest.mark.thorough
@pytest.mark.usefixtures('undrawn')
def test_a_run_goes_on_with_any_number_of_devices_and_the_same_batches(tiny, tmp_path, monkeypatch):
  """Also if parameters are sharded now and not then."""
  tiny.data.augment, tiny.data.crop_padding, tiny.data.mixup = 'pad_crop_flip', 1, 0.2
  tiny.train.log_every, tiny.eval.every, tiny.checkpoint.every = '1', '0', '0'
  make_mesh = mesh_lib.make_mesh

  def train(workdir, count, fsdp, steps):
    tiny.mesh.fsdp, tiny.train.steps = fsdp, steps
    devices = jax.devices()[:count]
    with monkeypatch.context() as patch:
      patch.setattr(jax, 'devices', lambda: devices)
      patch.setattr(mesh_lib, 'make_mesh', make_mesh)
      loop.train(tiny, workdir, record.Clock(0.0), 'test')

  tiny.schedule.name = 'constant'
  train(tmp_path / 'one', 1, 1, 12)
  for count, fsdp, steps in ((8, 4, 3), (2, 2, 6), (4, 1, 9), (1, 1, 12)):
    train(tmp_path / 'many', count, fsdp, steps)
  np.testing.assert_allclose(losses(tmp_path / 'many'), losses(tmp_path / 'one'), rtol=2e-3)
  assert len(losses(tmp_path / 'many')) == 12
