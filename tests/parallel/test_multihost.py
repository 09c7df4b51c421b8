"""Real processes on loopback, each with two devices."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

LIMIT = 120  # seconds for a process, jax's imports included; jax itself would wait five minutes for the others
WORKER = """
import json, sys, time
import jax, jax.numpy as jnp, numpy as np
from dnt import config, errors
from dnt.parallel import mesh as meshes, multihost, preemption

mode, coordinator, process_id, num_processes, timeout = sys.argv[1:]
process_id = int(process_id)
if mode == 'unjoined' and process_id == 1:
  def fail(*_, **__):
    raise RuntimeError('no room for the agent')
  jax.distributed.initialize = fail
try:
  multihost.initialize(coordinator, int(num_processes), process_id, int(timeout), mode != 'unguarded')
except errors.RunError as error:
  print(f'error: {error}', file=sys.stderr)
  multihost.leave(1)

options = config.default()
options.mesh.fsdp = 4 if mode == 'collectives' else 1
mesh = meshes.make_mesh(options.mesh)
rows = np.arange(4, dtype=np.float32) + 4 * process_id
batch = jax.make_array_from_process_local_data(meshes.batch_sharding(mesh), rows)
total = jax.jit(jnp.sum)

def say(**values):
  print('RESULT ' + json.dumps(values), flush=True)

if mode == 'collectives':
  try:
    multihost.check_equal({'a': 1, 'b': process_id})
  except errors.InputError as error:
    difference = str(error)
  multihost.check_equal({'a': 1})
  problems = [errors.RunError('full'), errors.InputError('bad')]
  agreed = [multihost.agree(each) for each in (problems[process_id], None, None if process_id else problems[0])]
  def fail():
    raise problems[1]
  try:
    multihost.together(fail if process_id else lambda: 1)
  except errors.InputError as error:
    agreed.append(error)
  def ask(process, problem=None):
    assert process == 0, 'the lead alone is asked'
    if problem:
      raise problem
    return {'steps': [1, 2]}
  asked = [multihost.on_lead(lambda: ask(process_id))]
  for problem in problems:
    try:
      multihost.on_lead(lambda: ask(process_id, problem))
    except (errors.RunError, errors.InputError) as error:
      asked.append(f'{type(error).__name__}: {error}')
  params = {'kernel': np.arange(2**14, dtype=np.float32).reshape(128, 128), 'bias': np.ones(3, np.float32)}
  placed = meshes.place(params, meshes.parameter_shardings(mesh, params))
  local = [list(shard.data.shape) for shard in placed['kernel'].addressable_shards]
  whole = meshes.gather(placed)
  multihost.barrier('end')
  say(
    total=float(total(batch)),
    lead=multihost.is_lead(),
    everyone=multihost.gather_from_all('x' * process_id),
    difference=difference,
    asked=asked,
    agreed=[f'{type(each).__name__}: {each}' for each in agreed],
    told=multihost.broadcast_from_lead({'from': process_id, 'text': 'x' * (process_id + 1)}),
    local=local,
    whole=all(np.array_equal(whole[name], params[name]) for name in params),
  )
  multihost.part()

if mode == 'stop':
  with preemption.Guard() as guard:
    count = 0
    while not guard.requested(count):
      total(batch).block_until_ready()
      time.sleep(0.002 * (1 + process_id))
      if count == 20:
        print('RUNNING', flush=True)
      count += 1
  multihost.part()
  say(stopped_at=count, stopped_by=guard.stopped_by)

if mode == 'behind':
  pairs = jax.make_mesh((2, 2), ('processes', 'local'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  spec = jax.P('processes', 'local')

  def sum_late(values):  # the second pair of devices sums a second after the first
    steps = jnp.where(jax.lax.axis_index('local') == 1, 10**7, 1)
    late = jax.lax.fori_loop(0, steps, lambda _, value: jnp.sin(value) + 1, values[0, 0])
    return jax.lax.psum(values + jnp.maximum(late, 0) * 0, 'processes')

  values = jax.make_array_from_callback((2, 2), jax.sharding.NamedSharding(pairs, spec), lambda index: np.ones((1, 1)))
  sums = jax.jit(jax.shard_map(sum_late, mesh=pairs, in_specs=spec, out_specs=spec))(values)
  first, second = (shard.data for shard in sums.addressable_shards)
  found = {'first': float(first[0, 0]), 'behind': not second.is_ready()}
  multihost.part()
  say(**found, second=float(second[0, 0]))

if mode == 'unguarded':
  print('RUNNING', flush=True)
  time.sleep(60)

if mode == 'fail':
  for count in range(10**6):
    total(batch).block_until_ready()
    if process_id == 1 and count == 20:
      raise ValueError('the disk of process 1 is full')
"""


@pytest.fixture
def launch(tmp_path, coordinator):
  """Starts the given processes of one run."""
  program = tmp_path / 'worker.py'
  program.write_text(WORKER)
  processes = []

  def start(mode, ids, num_processes, timeout=60):
    env = {**os.environ, 'PYTHONPATH': os.getcwd(), 'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
    for i in ids:
      command = [sys.executable, program, mode, coordinator, str(i), str(num_processes), str(timeout)]
      processes.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return processes

  yield start
  for process in processes:
    with process:
      process.kill()


def results(processes):
  found = []
  for process in processes:
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    found.append(json.loads(out.partition('RESULT ')[2].splitlines()[0]))  # gloo prints lines too
  return found


@pytest.mark.thorough
def test_two_processes_compute_together(launch):
  first, second = results(launch('collectives', (0, 1), 2))
  assert first.pop('lead')
  assert not second.pop('lead')
  full, bad = 'RunError: full', 'InputError: bad'
  assert first.pop('agreed') == ['InputError: process 1: bad', 'NoneType: None', full, 'InputError: process 1: bad']
  assert second.pop('agreed') == [bad, 'NoneType: None', 'RunError: process 0: full', bad]
  assert first.pop('asked') == [{'steps': [1, 2]}, full, bad]
  assert second.pop('asked') == [{'steps': [1, 2]}, 'RunError: process 0: full', 'InputError: process 0: bad']
  assert first == second
  assert 'b is 0 on process 0 and 1 on process 1' in first.pop('difference')
  assert first == {
    'total': 28.0,
    'everyone': ['', 'x'],
    'told': {'from': 0, 'text': 'x'},
    'local': [[128, 32], [128, 32]],
    'whole': True,
  }


@pytest.mark.thorough
@pytest.mark.parametrize(
  ('number', 'ids'),
  [(signal.SIGINT, (1,)), (signal.SIGTERM, (0,)), (signal.SIGINT, (0, 1)), (signal.SIGHUP, (1,))],
)
def test_a_signal_to_any_process_stops_all_at_one_step(launch, number, ids):
  processes = launch('stop', (0, 1), 2)
  for process in processes:
    while process.stdout.readline() != 'RUNNING\n':
      assert process.poll() is None
  for i in ids:
    processes[i].send_signal(number)
  first, second = results(processes)
  assert first['stopped_at'] == second['stopped_at'] > 20
  assert first['stopped_by'] == second['stopped_by'] == number


@pytest.mark.thorough
def test_processes_part_only_once_all_their_devices_have_finished(launch):
  found = results(launch('behind', (0, 1), 2))
  assert found == [{'first': 2.0, 'behind': True, 'second': 2.0}] * 2


def test_sigterm_ends_a_process_that_has_nothing_to_save(launch):
  processes = launch('unguarded', (0, 1), 2)
  for process in processes:
    assert process.stdout.readline() == 'RUNNING\n'
  for process in processes:  # only once both run: the end of the first would end the other while it starts
    process.terminate()
  assert [process.wait(LIMIT) for process in processes] == [-signal.SIGTERM] * 2


@pytest.mark.thorough
def test_a_missing_process_is_named_and_the_others_exit(launch):
  for process in launch('stop', (0, 2), 3, timeout=10):
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert re.search(r'error: .*missing.* 10 s\b.* process 1 of 3', err)


@pytest.mark.thorough
def test_a_failing_process_does_not_wait_for_the_others(launch):
  # Of process 0 nothing is asked: with two devices it may notice by its heartbeat alone; launchers end it.
  _, failing = launch('fail', (0, 1), 2)
  _, err = failing.communicate(timeout=LIMIT)
  assert failing.returncode == 1
  assert err.strip().endswith('ValueError: the disk of process 1 is full')


@pytest.mark.thorough
def test_a_process_that_jax_does_not_join_to_the_others_ends_them_with_its_error(launch):
  first, failing = launch('unjoined', (0, 1), 2)
  _, err = failing.communicate(timeout=30)
  assert failing.returncode == 1 and err.strip().endswith('RuntimeError: no room for the agent')
  _, err = first.communicate(timeout=30)
  assert first.returncode == 1
  assert re.search('error: process 1 .*failed: RuntimeError: no room for the agent; ', err) and 'Traceback' not in err
