import functools
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from dnt import config, errors
from dnt.data import order, pipeline, readers, stream
from dnt.data.transforms import images
from tests.data import loading

pytestmark = pytest.mark.usefixtures('eight_devices')

SQUASH = functools.partial(images.squash, size=(8, 8))


def load(tiny, count=13, split='train'):
  tiny.data.synthetic_examples = count
  return loading.load(tiny.data, split, 0)


def train(source, rows=range(8), workers=0):
  return stream.Batches(readers.TrainReader(source, SQUASH, 8, rows, seed=0), None, workers)


def evaluation(source, rows=range(8), workers=0):
  return stream.Batches(readers.EvalReader(source, SQUASH, 8, rows, source.shape), 2, workers)


def read(batches, steps):
  try:
    return [batches.at(step) for step in steps]
  finally:
    batches.close()


def assert_same(first, second):
  for a, b in zip(first, second, strict=True):
    for name in ('image', 'label'):
      np.testing.assert_array_equal(a[name], b[name])


def test_a_run_that_goes_on_at_a_step_gets_what_the_uninterrupted_one_gets(tiny):
  source = load(tiny)
  whole = read(train(source), range(7))

  for step in (1, 3, 6):
    assert_same(read(train(source), range(step, 7)), whole[step:])
  assert_same(read(train(source), [5, 2, 3]), [whole[5], whole[2], whole[3]])


def test_rows_of_two_processes_are_those_of_one(tiny):
  source = load(tiny)
  for make, steps in ((train, range(5)), (evaluation, (0, 1, 0))):
    whole = read(make(source), steps)
    parts = [read(make(source, rows=rows), steps) for rows in (range(4), range(4, 8))]
    joined = [
      {name: np.concatenate([first[name], second[name]]) for name in first}
      for first, second in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_a_process_decodes_only_its_own_rows(tiny):
  source = load(tiny, count=8)
  touched = []

  def transform(image, generator):
    touched.append(image)
    return image

  reader = readers.TrainReader(source, transform, 8, range(2, 4), seed=0)
  assert [len({reader.place(index) for index in range(2)}), reader.place(0), reader.place(2)] == [2, 2, 10]
  for index in range(2):
    reader(index)
  assert len(touched) == 2


@pytest.mark.thorough
def test_workers_read_the_same_and_end(tiny):
  """Two processes, restarted in mid-run; nothing is left behind."""
  source = load(tiny)
  batches = train(source, workers=2)

  assert_same([batches.at(step) for step in (0, 1, 2, 9)], read(train(source), (0, 1, 2, 9)))
  assert multiprocessing.active_children()
  batches.close()
  assert not multiprocessing.active_children()


@pytest.mark.thorough
def test_workers_of_an_evaluation_live_until_the_next(tiny):
  source = load(tiny, split='test')
  batches = evaluation(source, workers=1)
  expected = read(evaluation(source), (0, 1))

  assert_same([batches.at(0), batches.at(1)], expected)
  (worker,) = multiprocessing.active_children()
  assert_same([batches.at(0), batches.at(1)], expected)
  assert [child.pid for child in multiprocessing.active_children()] == [worker.pid]
  batches.close()


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != 'linux', reason='mallopt is glibc on Linux')
def test_workers_keep_the_memory_that_they_free(tiny):
  """A large block costs no page faults the second time."""

  def faults(image, generator):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(1 << 22, np.uint8)  # a thousand pages
    return np.full((8, 8, 3), min(255, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before), np.uint8)

  batches = stream.Batches(readers.TrainReader(load(tiny), faults, 8, range(8), seed=0), None, 1)
  assert read(batches, [0])[0]['image'][1:].max() < 100


def test_a_damaged_image_is_named_through_workers_and_ends_them(tiny, class_folders):
  root = class_folders({'train/ant': 4, 'train/bee': 4, 'val/ant': 1})
  path = root / 'train' / 'ant' / '2.jpg'
  path.write_bytes(path.read_bytes()[:150])
  tiny.data.source = f'folder:{root}'
  batches = train(loading.load(tiny.data, 'train', 0), workers=1)

  with pytest.raises(errors.InputError, match=r'^cannot read .*train/ant/2\.jpg .*remove it'):
    batches.at(0)
  assert not multiprocessing.active_children()


@pytest.mark.thorough
def test_a_worker_that_is_killed_is_a_failed_run(tiny):
  batches = train(load(tiny), workers=1)
  batches.at(0)
  (worker,) = multiprocessing.active_children()
  os.kill(worker.pid, signal.SIGKILL)

  with pytest.raises(errors.RunError, match='worker process'):
    for step in range(1, 10):
      batches.at(step)
  assert not multiprocessing.active_children()


PROGRAM = """
  import functools, multiprocessing, time
  from dnt import config
  from dnt.data import readers, sources, stream
  from dnt.data.transforms import images

  if __name__ == '__main__':
    data = config.default().data
    data.source = {source!r}
    source = sources.read(sources.find(data, 0), data, 'train')
    transform = functools.partial(images.squash, size=(8, 8))
    batches = stream.Batches(readers.TrainReader(source, transform, 8, range(8), seed=0), None, workers=1)
    batches.at(0)
    print(multiprocessing.active_children()[0].pid, flush=True)
    {then}
"""


def start(tmp_path, then, source='synthetic'):
  """A program that reads a batch through one worker, prints the worker's pid and does `then`."""
  path = tmp_path / 'program.py'
  path.write_text(textwrap.dedent(PROGRAM).format(then=then, source=source))
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
  program = subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
  return program, int(program.stdout.readline())


def ended(pid):
  """Whether a process ends within ten seconds."""
  for _ in range(100):
    try:
      with open(f'/proc/{pid}/stat') as file:
        if file.read().rsplit(')', 1)[1].split()[0] == 'Z':  # nobody has waited for it
          return True
    except (FileNotFoundError, ProcessLookupError):
      return True
    time.sleep(0.1)
  return False


@pytest.mark.thorough
def test_workers_end_with_a_program_that_is_killed(tmp_path):
  program, worker = start(tmp_path, 'time.sleep(60)')
  # The signals that stop a run go to the whole group; workers leave them to the program.
  os.kill(worker, signal.SIGTERM)
  os.kill(worker, signal.SIGINT)
  time.sleep(0.3)
  os.kill(worker, 0)
  program.kill()
  program.communicate()

  assert ended(worker)


@pytest.mark.thorough
def test_a_script_that_does_not_look_at_its_name_runs_once(tmp_path):
  """Each worker ran it too, and the first wait for a worker that failed at that lasted for ever."""
  path = tmp_path / 'program.py'
  body = textwrap.dedent(PROGRAM).replace("__name__ == '__main__'", 'True')
  path.write_text(body.format(then="print('closed' if batches.close() is None else '')", source='digits'))
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
  result = subprocess.run([sys.executable, path], capture_output=True, text=True, env=environment, timeout=60)
  assert result.returncode == 0 and not result.stderr, result
  pid, *rest = result.stdout.splitlines()
  assert pid.isdigit() and rest == ['closed']


@pytest.mark.thorough
def test_a_program_that_fails_without_closing_ends_its_workers(tmp_path):
  program, worker = start(tmp_path, 'raise SystemExit(3)')
  program.communicate(timeout=60)

  assert program.returncode == 3
  assert ended(worker)


@pytest.mark.thorough
def test_a_damaged_image_leaves_no_shared_memory_behind(tmp_path, class_folders):
  """Python would say so when the program ends, after the one line on what is wrong."""
  root = class_folders({'train/ant': 8, 'train/bee': 8, 'val/ant': 1})
  data = config.default().data
  data.source = f'folder:{root}'
  paths = loading.load(data, 'train', 0).store.paths
  pathlib.Path(paths[order.order(0, 0, 16)[8]]).write_bytes(b'')  # in the second batch
  program, _ = start(tmp_path, 'batches.at(1)', data.source)
  _, error = program.communicate(timeout=60)

  assert 'it is empty, 0 bytes' in error.decode().splitlines()[-1], error


# Under the shared memory of each case in turn. 'believing': another process takes the room after the look at it.
SHARED = """
  import functools, gc, json, logging, pathlib, subprocess, sys
  import numpy as np
  from dnt import config
  from dnt.data import readers, sources, stream
  from dnt.data.transforms import images

  if __name__ == '__main__':
    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stdout)
    logging.disable(logging.DEBUG)
    data, has_room = config.default().data, stream._has_room
    data.source = 'synthetic'
    source = sources.read(sources.find(data, 0), data, 'train')
    transform = functools.partial(images.squash, size=(64, 64))

    def open_batches(workers):
      return stream.Batches(readers.TrainReader(source, transform, 64, range(64), 0), None, workers)

    here = open_batches(0)
    expected = [here.at(step) for step in range(6)]
    here.close()
    for mount, knows in json.loads(sys.argv[1]):
      if subprocess.run(['mount', '-t', 'tmpfs', '-o', mount, 'tmpfs', '/dev/shm']).returncode:
        sys.exit(9)
      if mount == 'size=4k':
        pathlib.Path('/dev/shm/fill').write_bytes(bytes(4096))
      stream._has_room = has_room if knows == 'looking' else lambda *_: True
      print('case', mount, flush=True)
      batches = open_batches(1)
      for step, batch in enumerate(expected):
        found = batches.at(step)
        assert all(np.array_equal(found[name], batch[name]) for name in batch), (mount, step)
      batches.close()
      del batches
      gc.collect()  # Python unlinks its semaphores in the shared memory that they are in
      print('done', flush=True)
"""
SHARED_CASES = (
  ('size=64m', 'looking', None),
  ('size=200k', 'looking', 'shared memory (/dev/shm)'),  # a batch takes 790 kB
  ('size=300k', 'believing', 'shared memory (/dev/shm)'),
  ('size=4k', 'looking', 'shared memory (/dev/shm)'),  # no room for a semaphore beside the file that fills it
  ('size=1m,ro', 'looking', 'shared memory (/dev/shm)'),
)


@pytest.mark.thorough
def test_what_is_read_does_not_depend_on_shared_memory(tmp_path):
  (tmp_path / 'program.py').write_text(textwrap.dedent(SHARED))
  cases = json.dumps([case[:2] for case in SHARED_CASES])
  command = ['unshare', '-m', sys.executable, tmp_path / 'program.py', cases]
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
  try:
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
  except FileNotFoundError:
    pytest.skip('there is no unshare')
  if 'unshare failed' in result.stderr or result.returncode == 9:
    pytest.skip('only root can mount')
  assert result.returncode == 0 and not result.stderr, result
  for (mount, _, said), output in zip(SHARED_CASES, result.stdout.split('case ')[1:], strict=True):
    assert output.startswith(f'{mount}\n') and output.endswith('done\n'), output
    lines = [line for line in output.splitlines() if 'shared memory' in line]
    assert bool(lines) == bool(said) and all(said in line for line in lines), output


def test_rows_of_a_mesh_are_all_of_them_in_one_process(tiny):
  from dnt.parallel import mesh as meshes

  assert stream.local_rows(16, meshes.make_mesh(tiny.mesh)) == range(16)


def test_loaders_of_a_stream_run_one_step_a_call(tiny):
  from dnt.parallel import mesh as meshes

  tiny.data.placement, tiny.data.workers = 'stream', 0
  loader = pipeline.make_train_loader(tiny, load(tiny), meshes.make_mesh(tiny.mesh))
  assert loader.max_steps(5) == 1
  loader.close()
