import collections
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dnt import checkpoints, config, errors, trees
from dnt.checkpoints import format
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import multihost
from tests.checkpoints import states

# Tasks that a failing read leaves behind in TensorStore are reported when they are collected.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def _read(workdir, step, abstract):
  """State and meta of one step."""
  return format.read_state(workdir / 'checkpoints' / str(step), abstract).value


def test_restores_what_was_saved(run):
  saved = checkpoints.Checkpoints(run, states.options())
  state, meta = saved.restore_latest(lambda step: states.abstract(states.make()))
  states.assert_same(state, states.make(3))
  assert isinstance(state, states.State) and meta == {'at': 3} and saved.latest_step == 3
  state, meta = _read(run, 1, states.abstract(states.make()))
  states.assert_same(state, states.make(1))
  assert meta == {'at': 1} and saved.steps() == [1, 2, 3]
  saved.close()


def test_nothing_saved_and_no_import(tmp_path):
  code = f"""
  import sys
  from dnt import checkpoints, config
  saved = checkpoints.Checkpoints({str(tmp_path / 'new' / 'run')!r}, config.default().checkpoint)
  assert saved.restore_latest(lambda step: {{}}) is None and saved.latest_step is None and saved.steps() == []
  saved.wait()
  saved.close()
  assert not any(name.startswith('orbax') for name in sys.modules)
  """
  subprocess.run([sys.executable, '-c', textwrap.dedent(code)], check=True)
  assert states.names(tmp_path / 'new' / 'run') == []


def test_meta_reads_back_as_json(tmp_path):
  saved = checkpoints.Checkpoints(tmp_path, states.options())
  meta = {'pairs': (1, 2), 'by step': {2: 'b', 10: 'a'}, 'nothing': None, 'figure': 0.1, 'text': 'é'}
  saved.save(1, states.make(1), meta)
  saved.wait()
  _, back = saved.restore_latest(lambda step: states.abstract(states.make()))
  assert back == {**meta, 'pairs': [1, 2], 'by step': {'2': 'b', '10': 'a'}}
  saved.close()


@pytest.mark.thorough
def test_meta_may_change_after_save(tmp_path):
  """It is written in the background, while the loop goes on counting in what it gave."""
  saved = checkpoints.Checkpoints(tmp_path, states.options())
  for step in (1, 2, 3):
    meta = {'last': {'train/loss': 1.0}, 'many': {str(index): index for index in range(100_000)}}
    saved.save(step, states.make(step), meta)
    meta['last']['train/loss'] = 2.0
    meta['many'].clear()
  saved.wait()
  for step in (1, 2, 3):
    _, back = _read(tmp_path, step, states.abstract(states.make()))
    assert back['last'] == {'train/loss': 1.0} and len(back['many']) == 100_000
  saved.close()


def test_buffers_may_be_donated_after_save(tmp_path):
  bump = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
  saved = checkpoints.Checkpoints(tmp_path, states.options())
  state = bump(jax.tree.map(jnp.array, states.make(1)))
  expected = jax.tree.map(np.array, state)
  saved.save(1, state, {})
  for _ in range(3):
    state = bump(state)
  saved.wait()
  states.assert_same(saved.restore_latest(lambda step: states.abstract(state))[0], expected)
  saved.close()


def test_keeps_the_newest_and_the_best(tmp_path):
  states.save(tmp_path, range(1, 7), keep=2, metrics={1: 0.2, 2: 0.9, 3: 0.9, 4: None, 5: 0.3, 6: float('nan')})
  assert states.names(tmp_path) == ['2', '5', '6']
  # Another process goes on: the metrics are on disk.
  saved = checkpoints.Checkpoints(tmp_path, states.options(2), 'test/accuracy')
  assert saved.latest_step == 6
  for step, metric in ((7, 0.5), (8, 0.91)):
    saved.save(step, states.make(step), {})
    saved.rate(step, {}, {'test/accuracy': metric})
  assert saved.latest_step == 8
  saved.close()
  assert states.names(tmp_path) == ['7', '8']


def test_a_checkpoint_is_rated_after_its_save(tmp_path):
  saved = checkpoints.Checkpoints(tmp_path, states.options(keep=1), 'test/accuracy')
  for step, metric in ((1, 0.5), (2, 0.9), (3, 0.7)):
    saved.save(step, states.make(step), {'at': step})
    saved.rate(step, {'at': step, 'rated': True}, {'test/accuracy': metric})
    assert format.metrics_of(tmp_path / 'checkpoints' / str(step)) == {'test/accuracy': metric}
  assert states.names(tmp_path) == ['2', '3'], 'what is neither the newest nor the best goes at once'
  state, meta = _read(tmp_path, 3, states.abstract(states.make()))
  states.assert_same(state, states.make(3))
  assert meta == {'at': 3, 'rated': True}
  saved.save(4, states.make(4), {'at': 4})
  saved.close()
  assert states.names(tmp_path) == ['2', '4']

  again = checkpoints.Checkpoints(tmp_path, states.options(keep=1), 'test/accuracy')
  again.rate(4, {'at': 4}, {'test/accuracy': 1.0})  # by the process that goes on
  again.close()
  assert states.names(tmp_path) == ['4']


def test_a_checkpoint_that_is_not_the_best_is_rated_in_vain(tmp_path):
  states.save(tmp_path, [1, 2], keep=1, metrics={1: 0.5, 2: None})
  saved = checkpoints.Checkpoints(tmp_path, states.options(keep=1), 'test/accuracy')
  saved.rate(2, {}, {'test/accuracy': 0.1})
  saved.close()
  assert states.names(tmp_path) == ['1', '2']


def test_lowest_loss_is_best(tmp_path):
  states.save(tmp_path, range(1, 5), keep=1, metrics={1: 0.7, 2: 0.3, 3: 0.3, 4: 0.9}, best_metric='val/loss')
  assert states.names(tmp_path) == ['2', '4']


def test_a_value_is_ranked_by_the_name_that_it_was_measured_under(tmp_path):
  both = {1: {'test/loss': 0.1}, 2: {'test/accuracy': 0.14}, 3: {'test/loss': 0.3, 'test/accuracy': 0.9}}
  saved = checkpoints.Checkpoints(tmp_path, states.options(1), 'test/accuracy')
  for step, measured in both.items():
    saved.save(step, states.make(step), {})
    saved.rate(step, {}, measured)
  saved.close()
  assert states.names(tmp_path) == ['3']
  saved = checkpoints.Checkpoints(tmp_path, states.options(1), 'test/loss')
  for step, measured in {4: {'test/loss': 0.2}, 5: {'test/loss': 0.9}, 6: {'test/accuracy': 0.01}}.items():
    saved.save(step, states.make(step), {})
    saved.rate(step, {}, measured)
  saved.close()
  assert states.names(tmp_path) == ['4', '6'], 'the loss of 3 counts, the accuracy of 6 does not'
  assert checkpoints.choose_step(tmp_path, 'best', 'test/loss') == 4
  assert checkpoints.choose_step(tmp_path, 'best', 'test/accuracy') == 6
  with pytest.raises(errors.InputError, match='val/loss'):
    checkpoints.choose_step(tmp_path, 'best', 'val/loss')


def test_better():
  assert checkpoints.better('test/accuracy', 0.5, None) and checkpoints.better('test/accuracy', 0.6, 0.5)
  assert not checkpoints.better('test/accuracy', 0.5, 0.5) and not checkpoints.better('test/accuracy', 0.4, 0.5)
  assert checkpoints.better('test/loss', 0.4, 0.5) and not checkpoints.better('test/loss', 0.6, 0.5)
  assert not checkpoints.better('test/loss', float('nan'), None) and not checkpoints.better('test/loss', None, 1.0)
  assert not checkpoints.better('test/loss', float('inf'), None)


BEST = {  # step and value of the best of each metric
  'accuracy': (1, 0.9),
  'balanced_accuracy': (2, 0.9),
  'top5_accuracy': (3, 0.9),
  'auroc': (4, 0.9),
  'loss': (5, 0.1),
  'calibration_error': (6, 0.1),
}


@pytest.mark.parametrize('quantity', BEST)
def test_each_metric_keeps_its_own_best_checkpoint(tmp_path, quantity):
  """At its step a metric is much better than at the others, where all are 0.5."""
  saved = checkpoints.Checkpoints(tmp_path, states.options(1), f'val_ema/{quantity}')
  for step in range(1, 8):
    saved.save(step, states.make(step), {})
    saved.rate(step, {}, {f'val_ema/{name}': value if step == at else 0.5 for name, (at, value) in BEST.items()})
  saved.close()
  best, _ = BEST[quantity]
  assert states.names(tmp_path) == [str(best), '7']
  assert checkpoints.choose_step(tmp_path, checkpoints.BEST, f'val_ema/{quantity}') == best


def test_saving_a_step_twice_changes_nothing(run):
  before = (run / 'checkpoints/3/meta/meta.json').read_bytes()
  saved = checkpoints.Checkpoints(run, states.options())
  for step, content in ((3, 9), (4, 4), (4, 9)):
    saved.save(step, states.make(content), {})
  saved.close()
  assert (run / 'checkpoints/3/meta/meta.json').read_bytes() == before
  assert states.names(run) == ['2', '3', '4']
  states.assert_same(_read(run, 4, states.abstract(states.make()))[0], states.make(4))


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_state_that_is_not_finite_is_not_saved(run, value):
  state = states.make(4)
  state.params['head']['bias'] = state.params['head']['bias'].at[2].set(value)  # the average holds the same dict
  saved = checkpoints.Checkpoints(run, states.options())
  with pytest.raises(errors.RunError, match=r'step 4 .*not finite.* \(?params/head/bias, ema/params/head/bias\b'):
    saved.save(4, state, {})
  states.assert_same(saved.restore_latest(lambda step: states.abstract(state))[0], states.make(3))
  saved.close()
  assert states.names(run) == ['1', '2', '3']


# Topology.


@pytest.mark.usefixtures('eight_devices')
def test_restores_onto_other_meshes(tmp_path):
  options = config.default()
  options.mesh.fsdp = 4
  mesh = mesh_lib.make_mesh(options.mesh)
  assert mesh.shape == {'data': 2, 'fsdp': 4}
  one = {'params': {'w': jnp.arange(1024.0).reshape(16, 64) / 7, 'flags': jnp.array([True, False])}, 'n': jnp.int32(3)}
  split = {'params': {'w': PartitionSpec(None, 'fsdp'), 'flags': PartitionSpec()}, 'n': PartitionSpec()}
  split = jax.tree.map(lambda spec: jax.sharding.NamedSharding(mesh, spec), split)
  saved = checkpoints.Checkpoints(tmp_path, states.options())
  saved.save(1, one, {})
  saved.wait()
  sharded, _ = saved.restore_latest(
    lambda step: jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), one, split)
  )
  states.assert_same(sharded, one)
  assert sharded['params']['w'].sharding == split['params']['w']
  assert sharded['params']['w'].addressable_shards[0].data.shape == (16, 16)
  # And back: saved from eight devices, onto one; the digest is the same.
  saved.save(2, sharded, {})
  saved.wait()
  back, _ = saved.restore_latest(lambda step: states.abstract(one, jax.sharding.SingleDeviceSharding(jax.devices()[5])))
  states.assert_same(back, one)
  assert back['params']['w'].devices() == {jax.devices()[5]}
  saved.close()
  records = [json.loads((tmp_path / f'checkpoints/{step}/meta/meta.json').read_text())['leaves'] for step in (1, 2)]
  assert records[0] == records[1]


# Damage.


def _damage_biggest(step_dir, change):
  files = [path for path in (step_dir / 'state').rglob('*') if path.is_file()]
  change(max(files, key=lambda path: path.stat().st_size if path.parent.name == 'd' else -1))


def _truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
  'truncated data': lambda step: _damage_biggest(step, _truncate),
  'missing data': lambda step: _damage_biggest(step, pathlib.Path.unlink),
  'flipped data': lambda step: _damage_biggest(step, states.flip),
  'empty data': lambda step: _damage_biggest(step, lambda path: path.write_bytes(b'')),
  'missing state': lambda step: shutil.rmtree(step / 'state'),
  'truncated tree': lambda step: _truncate(step / 'state/_METADATA'),
  'missing meta': lambda step: shutil.rmtree(step / 'meta'),
  'truncated meta': lambda step: _truncate(step / 'meta/meta.json'),
  'flipped meta': lambda step: states.flip(step / 'meta/meta.json'),
  'empty': lambda step: [shutil.rmtree(step), step.mkdir()],
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_damaged_checkpoint_is_passed_over(run, kind, console):
  DAMAGE[kind](run / 'checkpoints/3')
  saved = checkpoints.Checkpoints(run, states.options())
  state, meta = saved.restore_latest(lambda step: states.abstract(states.make()))
  states.assert_same(state, states.make(2))
  assert meta == {'at': 2}
  assert states.names(run) == ['1', '2', '3.damaged'] and saved.latest_step == 2
  lines = console.readouterr().out.splitlines()
  assert len(lines) == 1
  assert re.search('checkpoint 3 .*damaged.* step 2$', lines[0])
  # The steps are taken again, and saved under the same name.
  saved.save(3, states.make(3), {'again': True})
  saved.close()
  again = checkpoints.Checkpoints(run, states.options())
  state, meta = again.restore_latest(lambda step: states.abstract(states.make()))
  states.assert_same(state, states.make(3))
  assert meta == {'again': True}
  assert console.readouterr().out == ''
  again.close()


def test_damage_in_the_values_alone_is_caught_by_the_digest(run):
  """A checkpoint that Orbax reads without complaint, but with other numbers."""
  other = run.parent / 'other'
  saved = checkpoints.Checkpoints(other, states.options())
  state = states.make(3)
  kernel = np.array(state.params['head']['kernel'])
  kernel.view(np.uint32)[3, 2] ^= 1
  saved.save(3, state.replace(params=state.params | {'head': state.params['head'] | {'kernel': kernel}}), {})
  saved.close()
  shutil.rmtree(run / 'checkpoints/3/state')
  shutil.copytree(other / 'checkpoints/3/state', run / 'checkpoints/3/state')
  saved = checkpoints.Checkpoints(run, states.options())
  states.assert_same(saved.restore_latest(lambda step: states.abstract(state))[0], states.make(2))
  assert saved.steps() == [1, 2]


def test_damage_is_one_line_of_output(run):
  """In a process of its own: the reads that are left behind print nothing either."""
  step = run / 'checkpoints/3'
  for path in (step / 'state').rglob('*'):
    if path.is_file() and path.parent.name == 'd':
      states.flip(path)
  code = f"""
  import gc
  from dnt import checkpoints
  from dnt.reporting import terminal
  with terminal.console():
    print(checkpoints.load_parameters({str(run)!r}).step)
  gc.collect()
  """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)], check=True, capture_output=True, text=True, timeout=60
  )
  said, step = done.stdout.splitlines()
  assert 'checkpoint 3 ' in said and step == '2'
  assert 'Traceback' not in done.stderr


def test_damaged_twice_keeps_both(run):
  for _ in range(2):
    _truncate(run / 'checkpoints/3/meta/meta.json')
    saved = checkpoints.Checkpoints(run, states.options())
    saved.restore_latest(lambda step: states.abstract(states.make()))
    saved.save(3, states.make(3), {})
    saved.close()
  assert states.names(run) == ['1', '2', '3', '3.damaged', '3.damaged-2']


def test_all_damaged_is_an_error_that_changes_nothing(run):
  for step in '123':
    _truncate(run / 'checkpoints' / step / 'meta/meta.json')
  for _ in range(2):  # no silent new start at the second try
    saved = checkpoints.Checkpoints(run, states.options())
    with pytest.raises(errors.InputError, match=f'every checkpoint in {re.escape(str(run))}.* damaged') as caught:
      saved.restore_latest(lambda step: states.abstract(states.make()))
    assert '\n' not in str(caught.value) and 'backup' in str(caught.value)
  assert states.names(run) == ['1', '2', '3']


def test_restoring_one_damaged_step_is_an_error_that_names_the_others(run):
  _truncate(run / 'checkpoints/2/meta/meta.json')
  with pytest.raises(
    errors.InputError, match=f'^checkpoint 2 in {re.escape(str(run))}/checkpoints is damaged .*another: 1, 3$'
  ):
    checkpoints.load_parameters(run, 2)
  assert states.names(run) == ['1', '2', '3']
  for step in '13':
    shutil.rmtree(run / 'checkpoints' / step)
  with pytest.raises(errors.InputError, match='^checkpoint 2 in .*no other checkpoint$'):
    checkpoints.load_parameters(run, 2)


def test_save_cut_off_by_a_kill_is_skipped_and_cleaned_up(run):
  left = run / 'checkpoints/4.orbax-checkpoint-tmp'
  shutil.copytree(run / 'checkpoints/3', left)
  saved = checkpoints.Checkpoints(run, states.options())
  states.assert_same(saved.restore_latest(lambda step: states.abstract(states.make()))[0], states.make(3))
  saved.save(4, states.make(4), {})
  saved.close()
  assert states.names(run) == ['2', '3', '4']
  states.assert_same(_read(run, 4, states.abstract(states.make()))[0], states.make(4))


@pytest.mark.parametrize('only', [None, 2])
def test_a_run_that_removes_a_checkpoint_while_it_is_read_is_no_damage(run, monkeypatch, console, only):
  """As a living run does, which saves the next one before."""
  read, reads = format.read_parameters, []

  def go_on_and_read(path):
    if not reads:
      states.save(run, [4, 5, 6])
    reads.append(path.name)
    return read(path)

  monkeypatch.setattr(format, 'read_parameters', go_on_and_read)
  if only:
    with pytest.raises(errors.InputError, match=f'^checkpoint 2 in {re.escape(str(run))}/checkpoints was removed'):
      checkpoints.load_parameters(run, only)
  else:
    states.assert_same(checkpoints.load_parameters(run).params, states.make(6).params)
    assert reads == ['3', '6']
  assert 'damaged' not in console.readouterr().out
  assert states.names(run) == ['4', '5', '6']


def test_a_run_that_always_removes_what_is_read_is_an_error(run, monkeypatch):
  read, reads = format.read_parameters, []

  def go_on_and_read(path):
    reads.append(int(path.name))
    states.save(run, range(reads[-1] + 1, reads[-1] + 4))
    return read(path)

  monkeypatch.setattr(format, 'read_parameters', go_on_and_read)
  with pytest.raises(errors.InputError, match='faster than they can be read; .*checkpoint.keep'):
    checkpoints.load_parameters(run)
  assert reads == [3, 6, 9, 12, 15]


def test_kill_during_saves(tmp_path):
  """A process that saves as fast as it can, killed: what is there restores, and its numbers belong to its step."""
  code = f"""
  import jax.numpy as jnp, sys
  from dnt import checkpoints, config
  saved = checkpoints.Checkpoints({str(tmp_path)!r}, config.default().checkpoint)
  for step in range(1, 1000):
    saved.save(step, {{'params': {{'w': jnp.full((64, 64), step, jnp.float32)}}}}, {{'at': step}})
    print(step, flush=True)
  """
  process = subprocess.Popen([sys.executable, '-c', textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
  for line in process.stdout:
    if int(line) == 4:
      break
  process.send_signal(signal.SIGKILL)
  process.wait()
  saved = checkpoints.Checkpoints(tmp_path, states.options())
  abstract = {'params': {'w': jax.ShapeDtypeStruct((64, 64), jnp.float32)}}
  state, meta = saved.restore_latest(lambda step: abstract)
  assert meta['at'] >= 3 and not [name for name in states.names(tmp_path) if 'damaged' in name]
  np.testing.assert_array_equal(state['params']['w'], np.full((64, 64), meta['at'], np.float32))
  saved.save(1000, state, {})
  saved.close()
  assert '1000' in states.names(tmp_path)
  assert not [name for name in states.names(tmp_path) if 'tmp' in name]


# Other runs' parameters.


def test_choose_step(tmp_path):
  states.save(tmp_path / 'run', [1, 2, 3], metrics={1: 0.2, 2: 0.8, 3: 0.8})
  assert checkpoints.choose_step(tmp_path / 'run', 'best', 'test/accuracy') == 2, 'of equals the first'
  assert checkpoints.choose_step(tmp_path / 'run', '3', 'test/loss') == 3
  with pytest.raises(errors.InputError, match="'7'.* 1, 2, 3, best, newest"):
    checkpoints.choose_step(tmp_path / 'run', '7', 'test/loss')


def test_without_metrics_no_checkpoint_is_the_best(run):
  with pytest.raises(errors.InputError, match='newest'):
    checkpoints.choose_step(run, 'best', 'test/accuracy')


def test_load_parameters(run):
  loaded = checkpoints.load_parameters(run)
  assert loaded.step == 3 and loaded.meta == {'at': 3}
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded.params))
  states.assert_same(loaded.params, states.make(3).params)
  states.assert_same(loaded.batch_stats, states.make(3).batch_stats)
  states.assert_same(loaded.ema, states.make(3).ema)
  assert checkpoints.load_parameters(str(run), step=2).meta == {'at': 2}
  before = states.names(run)
  DAMAGE['flipped data'](run / 'checkpoints/3')
  assert checkpoints.load_parameters(run).step == 2
  assert states.names(run) == before, "another run's files stay as they are"
  with pytest.raises(errors.InputError, match=r"'5'.* 1, 2, 3"):
    checkpoints.load_parameters(run, step=5)
  with pytest.raises(errors.InputError, match='damaged'):
    checkpoints.load_parameters(run, step=3)


def test_reads_take_time_in_proportion_to_the_leaves(run, monkeypatch):
  flattened, flatten = [], trees.flatten
  monkeypatch.setattr(trees, 'flatten', lambda tree: flattened.append(tree) or flatten(tree))
  checkpoints.load_parameters(run)
  _read(run, 3, states.abstract(states.make()))
  assert len(flattened) == 2, 'the whole tree once for each read, not for each leaf'


def test_load_parameters_of_nothing(tmp_path):
  with pytest.raises(errors.InputError, match='no checkpoint .*nowhere/checkpoints.* workdir'):
    checkpoints.load_parameters(tmp_path / 'nowhere')
  assert not (tmp_path / 'nowhere').exists()


@pytest.mark.parametrize('read', [checkpoints.load_parameters, checkpoints.read_meta])
def test_a_process_that_does_not_see_the_folder_calls_no_checkpoint_damaged(run, tmp_path, monkeypatch, read):
  steps = format.steps_in(run / 'checkpoints')
  monkeypatch.setattr(multihost, 'broadcast_from_lead', lambda value: steps if isinstance(value, list) else value)
  with pytest.raises(errors.InputError, match=r'elsewhere does not hold the files of process 0.*--workdir'):
    read(tmp_path / 'elsewhere')
  assert read(run)


@pytest.mark.parametrize('step', [3, 2])
def test_a_process_that_sees_another_checkpoint_does_not_go_on_with_it(run, tmp_path, monkeypatch, step):
  """Of its own workdir at the same place, of which no value may be mixed with those of the other processes."""
  lead = format.identify(run / 'checkpoints/3')
  own = checkpoints.Checkpoints(tmp_path / 'own', states.options())
  own.save(step, states.make(7), {})
  own.close()
  monkeypatch.setattr(multihost, 'broadcast_from_lead', lambda value: [1, 2, 3] if isinstance(value, list) else lead)
  with pytest.raises(errors.InputError, match=r'own does not hold the files of process 0.*--workdir'):
    checkpoints.load_parameters(tmp_path / 'own')
  shutil.copytree(run, tmp_path / 'copy')
  assert checkpoints.load_parameters(tmp_path / 'copy').step == 3
  DAMAGE['flipped data'](tmp_path / 'copy/checkpoints/3')
  with pytest.raises(errors.InputError, match='damaged'):
    checkpoints.load_parameters(tmp_path / 'copy', step=3)


def test_load_parameters_without_statistics(tmp_path):
  saved = checkpoints.Checkpoints(tmp_path, states.options())
  params = {'w': jnp.ones(3, jnp.bfloat16)}
  saved.save(1, {'params': params, 'batch_stats': {}, 'ema': {}}, {})
  saved.save(2, {'params': params, 'batch_stats': {}, 'ema': {'params': params, 'batch_stats': {}}}, {})
  saved.close()
  loaded = checkpoints.load_parameters(tmp_path, 1)
  assert loaded.batch_stats == {} and loaded.ema == {}
  assert loaded.params['w'].dtype == jnp.bfloat16
  averaged = checkpoints.load_parameters(tmp_path, 2).ema
  assert averaged.keys() == {'params', 'batch_stats'} and averaged['batch_stats'] == {}


# The workdir.


def test_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('in the way')
  with pytest.raises(errors.InputError, match=r'file/run .*Not a directory.*--workdir'):
    checkpoints.Checkpoints(tmp_path / 'file' / 'run', states.options())
  if os.geteuid():
    (tmp_path / 'locked').mkdir(mode=0o500)
    with pytest.raises(errors.InputError, match='Permission denied'):
      checkpoints.Checkpoints(tmp_path / 'locked' / 'run', states.options())


def test_directory_that_is_gone(tmp_path):
  saved = checkpoints.Checkpoints(tmp_path, states.options())
  saved.save(1, states.make(1), {})
  saved.wait()
  shutil.rmtree(tmp_path / 'checkpoints')
  with pytest.raises(errors.RunError, match=r'checkpoints .*No such file'):
    saved.save(2, states.make(2), {})


def test_full_disk(run, monkeypatch):
  usage = collections.namedtuple('usage', 'free')
  saved = checkpoints.Checkpoints(run, states.options())
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(100))
  with pytest.raises(errors.RunError, match=rf'needs 0\.2 MB.* disk .*{re.escape(str(run))}.* 0\.0 MB'):
    saved.save(4, states.make(4), {})
  monkeypatch.undo()
  states.assert_same(saved.restore_latest(lambda step: states.abstract(states.make()))[0], states.make(3))


def test_write_that_fails_in_the_background(tmp_path):
  """A quota that the check before the save cannot see: a RunError, no pages of tracebacks, the last one kept."""
  code = f"""
  import resource, signal
  import jax, jax.numpy as jnp
  from dnt import checkpoints, config, errors
  saved = checkpoints.Checkpoints({str(tmp_path)!r}, config.default().checkpoint)
  state = {{'params': {{'w': jax.random.normal(jax.random.key(0), (300, 300))}}}}
  saved.save(1, state, {{'at': 1}})
  saved.wait()
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
  saved.save(2, state, {{}})
  try:
    saved.wait()
  except errors.RunError as error:
    print(error)
  saved.close()  # said once
  saved = checkpoints.Checkpoints({str(tmp_path)!r}, config.default().checkpoint)
  print(saved.restore_latest(lambda step: state)[1])
  """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)], check=True, capture_output=True, text=True, timeout=60
  )
  first, second = done.stdout.splitlines()
  assert re.search(f'checkpoint .*written to {re.escape(str(tmp_path))}/checkpoints', first)
  assert second == "{'at': 1}"
  assert 'Traceback' not in done.stderr


TWO_PROCESSES = """
import json, os, pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
process, workdir = int(sys.argv[1]), pathlib.Path(sys.argv[2])
jax.distributed.initialize(sys.argv[3], 2, process)
from dnt import checkpoints, config, errors
from dnt.parallel import mesh as mesh_lib
from dnt.reporting import terminal
options = config.default()
options.mesh.fsdp = 4
mesh = mesh_lib.make_mesh(options.mesh)
w = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
host = {'params': {'w': w, 'b': np.ones(5, np.float32)}, 'step': np.int32(3)}
whole = mesh_lib.replicated(mesh)
split = NamedSharding(mesh, PartitionSpec(None, 'fsdp'))
state = mesh_lib.place(host, {'params': {'w': split, 'b': whole}, 'step': whole})
saved = checkpoints.Checkpoints(workdir, options.checkpoint, 'accuracy')
seen = [saved.restore_latest(lambda step: state)]
for step in (1, 2, 3):
  saved.save(step, state, {})
  seen.append(step in saved.steps())
  saved.rate(step, {'at': step}, {'accuracy': step / 10})
bad = state | {'step': state['step'], 'params': state['params'] | {'b': jnp.full_like(state['params']['b'], jnp.nan)}}
try:
  saved.save(4, bad, {})
except errors.RunError as error:
  seen.append(str(error))
saved.close()
multihost_utils.sync_global_devices('saved')
if process == 0:
  # The values of one process alone, and the envelope.
  files = [path for path in (workdir / 'checkpoints/3/state/ocdbt.process_1/d').iterdir()]
  largest = max(files, key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:-1000])
  meta = workdir / 'checkpoints/2/meta/meta.json'
  meta.write_bytes(meta.read_bytes()[:-40])
multihost_utils.sync_global_devices('damaged')
saved = checkpoints.Checkpoints(workdir, options.checkpoint)
with terminal.console():
  restored, meta = saved.restore_latest(lambda step: state)
seen += [meta, saved.latest_step, saved.steps()]
for leaf, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(host), strict=True):
  for shard in leaf.addressable_shards:
    np.testing.assert_array_equal(shard.data, expected[shard.index])
loaded = checkpoints.load_parameters(workdir)
np.testing.assert_array_equal(loaded.params['w'], w)
other = {'params': {'w': jax.ShapeDtypeStruct((3,), jnp.float32, sharding=whole)}}
try:
  saved.restore_latest(lambda step: other)
except errors.InputError as error:
  seen.append('unexpected: params/b, step' in str(error))
for step in (2, 3):
  saved.save(step, restored, {})
  seen.append(step in saved.steps())
saved.close()
for use in (
  lambda: checkpoints.load_parameters(workdir if process == 0 else workdir / 'own1'),
  lambda: checkpoints.Checkpoints(workdir / f'own{process}', options.checkpoint),
):
  try:
    use()
  except errors.InputError as error:
    seen.append(str(error))
print(json.dumps(seen))
"""


@pytest.mark.thorough
def test_two_processes(tmp_path, coordinator):
  env = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', TWO_PROCESSES, str(process), str(tmp_path), coordinator],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
    )
    for process in range(2)
  ]  # fmt: skip
  outputs = [process.communicate(timeout=100) for process in processes]
  for process, (_, stderr) in zip(processes, outputs, strict=True):
    assert process.returncode == 0, stderr
  seen = [json.loads(stdout.splitlines()[-1]) for stdout, _ in outputs]
  for problem in [each.pop() for each in seen * 2]:
    assert f'{tmp_path / "own1"} does not hold' in problem and '--workdir' in problem
  refused = seen[0][4]
  assert re.search(r'step 4 .*not finite.* \(?params/b\b', refused)
  assert seen[0] == [None, True, True, True, refused, {'at': 1}, 1, [1], True, True, True]
  assert seen[1] == seen[0]
  lines = [line for line in outputs[0][0].splitlines() if 'damaged' in line]
  assert len(lines) == 2 and re.search('checkpoint 3 .*damaged .process 1: state', lines[0])
  assert 'damaged' not in outputs[1][0]
  assert states.names(tmp_path) == ['1', '2', '2.damaged', '3', '3.damaged']


def test_a_directory_that_was_made_anew_is_not_the_one_of_the_run(tmp_path):
  """A thread that is writing makes the directories again that were moved away."""
  own = checkpoints.Checkpoints(tmp_path / 'run', states.options())
  own.save(1, states.make(1), {})
  own.wait()
  (tmp_path / 'run').rename(tmp_path / 'moved')
  (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
  with pytest.raises(errors.RunError, match='moved'):
    own.save(2, states.make(2), {})
  assert (tmp_path / 'moved' / 'checkpoints' / '1').is_dir()
