"""Workdirs in a bucket: runs write there, others read there, and what fails there ends in one line."""

import json
import os
import pathlib
import random
import re
import signal
import sys
import time

import pytest

from dnt import buckets, checkpoints, errors, loop
from dnt import workdir as workdir_lib
from dnt.parallel import ownership
from dnt.reporting import metric_names, metrics

ADDRESS = 'gs://test-bucket/runs/mine'
FOLDER = 'runs/mine'


def record(workdir):
  """The record without the speed, which differs from run to run."""
  return [{name: line[name] for name in line if name not in metric_names.SPEED} for line in metrics.read(workdir)]


def summary(workdir):
  return json.loads((workdir / workdir_lib.SUMMARY).read_text())


def steps_in(bucket, folder=FOLDER):
  found = (re.fullmatch(r'checkpoints/(\d+)/commit_success.txt', name) for name in bucket.names(folder))
  return sorted(int(match[1]) for match in found if match)


@pytest.fixture
def tried_briefly(monkeypatch):
  monkeypatch.setattr(buckets, 'PATIENCE', 0.5)


@pytest.mark.parametrize(
  ('path', 'address'),
  [
    ('gs://bucket/runs/mine', 'gs://bucket/runs/mine'),
    ('gs://bucket/runs//mine/', 'gs://bucket/runs/mine'),
    (pathlib.Path('gs://bucket/mine'), 'gs://bucket/mine'),  # with one slash
    ('/tmp/dnt-mirror-x1_/gs/bucket/mine/config.json', 'gs://bucket/mine/config.json'),
    ('runs/mine', ''),
    ('s3://bucket/mine', ''),
    ('/data/gs/bucket/mine', ''),
  ],
)
def test_addresses(path, address):
  assert buckets.address(path) == address
  assert buckets.name(path) == (address or path)


def test_a_folder_of_a_bucket(bucket):
  folder = buckets.Folder('gs://test-bucket/a')
  assert folder.versions() == {} and folder.read('x') is None
  first = folder.write('x', b'1', 0)
  with pytest.raises(FileExistsError):
    folder.write('x', b'2', 0)
  second = folder.write('x', b'2', first.generation)
  with pytest.raises(FileExistsError):
    folder.write('x', b'3', first.generation)
  assert folder.read('x') == second and second.content == b'2'
  assert abs(second.written - time.time()) < 60
  folder.write('inner/done', b'')
  folder.write('inner/deeper/done', b'')
  buckets.Folder('gs://test-bucket/ab').write('y', b'')
  assert folder.versions() == {'x': second.generation} and folder.folders_with('done') == ['inner']
  with pytest.raises(FileExistsError):
    folder.remove('x', first.generation)
  folder.remove('x')
  assert bucket.names('a') == {'inner/done', 'inner/deeper/done'}


def test_only_what_has_changed_is_uploaded(bucket):
  bucket.put(f'{FOLDER}/a.json', b'1')
  bucket.put(f'{FOLDER}/profile/trace', b'2')
  with buckets.Mirror(ADDRESS) as mirror:
    assert buckets.address(mirror.folder) == ADDRESS
    assert {path.name for path in mirror.folder.rglob('*')} == {'a.json'}
    before = dict(bucket.objects)
    mirror.upload()
    (mirror.folder / 'b.jsonl').write_text('one\n')
    (mirror.folder / 'b.jsonl.partial').touch()
    (mirror.folder / 'deep').mkdir()
    (mirror.folder / 'deep' / 'c').write_bytes(bytes(9 * 2**20))  # in parts
    mirror.upload()
    with (mirror.folder / 'b.jsonl').open('a') as file:
      file.write('two\n')
    kept = mirror.folder
  assert before.items() <= bucket.objects.items()
  assert bucket.names(FOLDER) == {'a.json', 'profile/trace', 'b.jsonl', 'deep/c'}
  assert bucket.objects[f'{FOLDER}/b.jsonl'].content == b'one\ntwo\n'
  assert len(bucket.objects[f'{FOLDER}/deep/c'].content) == 9 * 2**20
  assert not kept.exists()


def test_a_run_that_is_read_again_is_the_newest_and_nothing_is_downloaded_twice(bucket):
  where = 'gs://test-bucket/runs/watched'
  assert not list(buckets.local(where).iterdir())  # it has not begun
  bucket.put('runs/watched/config.json', b'1')
  bucket.put('runs/watched/metrics.jsonl', b'one')
  folder = buckets.local(where)
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == {'config.json': b'1', 'metrics.jsonl': b'one'}
  bucket.put('runs/watched/metrics.jsonl', b'one two')
  del bucket.requests[:]
  assert buckets.local(where) == folder
  assert (folder / 'metrics.jsonl').read_bytes() == b'one two'
  assert not any('config.json' in path for _, path in bucket.requests)
  del bucket.objects['runs/watched/config.json']
  assert [path.name for path in buckets.local(where).iterdir()] == ['metrics.jsonl']


def test_a_thread_uploads_for_those_who_watch(bucket, monkeypatch):
  monkeypatch.setattr(buckets, 'EVERY', 0.05)
  with buckets.Mirror(ADDRESS) as mirror:
    (mirror.folder / 'a').write_text('1')
    deadline = time.monotonic() + 20
    while bucket.names(FOLDER) != {'a'}:
      assert time.monotonic() < deadline
      time.sleep(0.02)


@pytest.mark.usefixtures('undrawn')
def test_a_run_is_in_the_bucket_as_in_a_folder(bucket, tiny, tmp_path, refused, run_here):
  here = loop.train(tiny, tmp_path / 'here')
  there = loop.train(tiny, ADDRESS)
  assert there['params_sha256'] == here['params_sha256']
  copy = bucket.copy(FOLDER, tmp_path / 'copy')
  assert record(copy) == record(tmp_path / 'here')
  assert summary(copy)['params_sha256'] == here['params_sha256']
  names = {path.name for path in (tmp_path / 'here').iterdir() if not path.name.startswith('events.')}
  assert {path.name for path in copy.iterdir() if not path.name.startswith('events.')} == names
  assert any(name.startswith('events.') for name in bucket.names(FOLDER))
  assert steps_in(bucket) == [int(path.name) for path in sorted((tmp_path / 'here' / 'checkpoints').iterdir())]
  assert not list((tmp_path / 'mirrors').iterdir())

  written = dict(bucket.objects)
  assert checkpoints.load_parameters(buckets.local(ADDRESS)).step == 6
  tiny.train.init_from, tiny.train.steps = ADDRESS, 1
  assert loop.train(tiny, tmp_path / 'from')['finished']
  code, output = run_here('probe', f'--workdir={ADDRESS}')
  assert code == 0 and '6 of 6 steps' in output
  code, output = run_here('export', f'--workdir={ADDRESS}', f'--output={tmp_path / "export"}')
  assert code == 0 and 'step 6' in output
  assert '--output' in refused(f'--workdir={ADDRESS}', name='export')
  assert bucket.objects == written
  for flag in ('workdir', 'config'):
    code, output = run_here('main', f'--{flag}={ADDRESS}', '--mode=dead_units')
    assert code == 0 and output.strip().endswith(ADDRESS)
  assert bucket.names(FOLDER) - {name.removeprefix(f'{FOLDER}/') for name in written} == {'dead_units.json'}


def test_files_of_another_program_stay(bucket, refused):
  for name in ('report.html', workdir_lib.OWNER):
    buckets.Folder(ADDRESS).write(name, b'{"of": "another"}')
    before = dict(bucket.objects)
    assert f'{ADDRESS}/{name} is not of a run of dnt' in refused(f'--workdir={ADDRESS}')
    assert bucket.objects == before


@pytest.mark.thorough
@pytest.mark.usefixtures('undrawn')
def test_a_run_that_continues_elsewhere_is_that_of_one_machine(bucket, tiny, tmp_path, console):
  whole = loop.train(tiny, tmp_path / 'whole')
  tiny.train.steps = 3
  loop.train(tiny, ADDRESS)
  tiny.train.steps = 6
  assert loop.train(tiny, ADDRESS)['params_sha256'] == whole['params_sha256']
  assert 'continuing from step 3' in console.readouterr().out
  assert steps_in(bucket) == [3, 6]


@pytest.mark.thorough
@pytest.mark.usefixtures('undrawn')
def test_requests_that_fail_are_repeated(bucket, tiny, monkeypatch):
  save = checkpoints.Checkpoints.save

  def failing(*args):
    bucket.failures = 3
    return save(*args)

  monkeypatch.setattr(checkpoints.Checkpoints, 'save', failing)
  bucket.failures = 2
  assert loop.train(tiny, ADDRESS)['finished']
  assert bucket.failures == 0 and steps_in(bucket) == [3, 6]


@pytest.mark.usefixtures('undrawn', 'tried_briefly')
def test_a_bucket_that_is_gone_ends_the_run_and_what_it_lacks_is_kept(bucket, tiny, tmp_path, monkeypatch):
  save = checkpoints.Checkpoints.save

  def last(saved, step, *args):
    result = save(saved, step, *args)
    saved.wait()
    bucket.failures = 10**9
    return result

  monkeypatch.setattr(checkpoints.Checkpoints, 'save', last)
  with pytest.raises(
    errors.RunError, match=rf'^{ADDRESS}/\S+ cannot be uploaded \(.*503.*\); what the bucket lacks is kept in '
  ) as ended:
    loop.train(tiny, ADDRESS)
  assert '\n' not in str(ended.value)
  (kept,) = (tmp_path / 'mirrors').iterdir()
  assert str(kept) in str(ended.value)
  assert [line['step'] for line in metrics.read(kept / 'gs' / 'test-bucket' / FOLDER)] == [2, 3]
  assert steps_in(bucket) == [3]


@pytest.mark.thorough
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # of Orbax's threads, as in test_manager
@pytest.mark.usefixtures('undrawn', 'tried_briefly')
def test_a_damaged_checkpoint_is_moved_aside_unless_the_bucket_does_not_answer(bucket, tiny, monkeypatch, console):
  loop.train(tiny, ADDRESS)
  tiny.train.steps = 9
  for name in bucket.names(f'{FOLDER}/checkpoints/6/state/d'):
    bucket.put(f'{FOLDER}/checkpoints/6/state/d/{name}', b'damaged')
  with monkeypatch.context() as patch:

    def unanswered(*_, **__):
      bucket.failures = 10**9
      raise ValueError('UNAVAILABLE')

    patch.setattr('orbax.checkpoint.Checkpointer.restore', unanswered)
    with pytest.raises(errors.InputError, match=r'checkpoints/6 cannot be read \(.*503'):
      loop.train(tiny, ADDRESS)
  bucket.failures = 0
  del bucket.objects[f'{FOLDER}/owner.json']  # which this process could not remove
  assert steps_in(bucket) == [3, 6]
  assert loop.train(tiny, ADDRESS)['finished']
  assert re.search('checkpoint 6 is damaged .*6.damaged; continuing from step 3', console.readouterr().out)
  assert steps_in(bucket) == [3, 6, 9]
  assert bucket.names(f'{FOLDER}/checkpoints/6.damaged')


def test_a_bucket_that_cannot_be_used_is_refused(bucket, refused, monkeypatch):
  assert re.search(r'gs://other-bucket cannot be reached \(404 .*credentials', refused('--workdir=gs://other-bucket/a'))
  for mode in ('train', 'evaluate'):
    with monkeypatch.context() as patch:
      patch.setitem(sys.modules, 'gcsfs', None)
      buckets._open.cache_clear()
      assert 'pip install gcsfs' in refused(f'--workdir={ADDRESS}', f'--mode={mode}')
  buckets._open.cache_clear()
  assert re.search('--workdir=gs://.* give a folder on a disk$', refused(f'--workdir={ADDRESS}', name='compare'))
  assert 'no checkpoint in gs://test-bucket/runs/mine' in refused(f'--workdir={ADDRESS}', '--mode=evaluate')
  assert not bucket.objects


def test_etils_uses_gcsfs_where_tensorflow_is_installed(bucket, tmp_path, start, finish):
  (tmp_path / 'tensorflow.py').write_text('raise ImportError')
  bucket.put('a/b', b'text')
  code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from dnt import buckets
print((buckets.path('gs://test-bucket/a') / 'b').read_text())
"""
  assert finish(start([sys.executable, '-c', code])).splitlines()[-1] == 'text'


def owner(bucket):
  return json.loads(bucket.objects[f'{FOLDER}/owner.json'].content)


def put_owner(bucket, **changes):
  content = ownership._identity(f'{ADDRESS}/owner.json') | changes
  return bucket.put(f'{FOLDER}/owner.json', json.dumps(content).encode())


def test_a_bucket_has_one_owner(bucket):
  with ownership.own(ADDRESS):
    assert owner(bucket)['pid'] == os.getpid()
    with pytest.raises(errors.InputError, match=rf'{ADDRESS} is in use by .*process {os.getpid()} on'):
      ownership.own(ADDRESS).__enter__()
    assert owner(bucket)['pid'] == os.getpid()
  assert not bucket.objects
  put_owner(bucket, started='1')  # another process with this id
  with ownership.own(ADDRESS):
    assert owner(bucket)['started'] != '1'
  put_owner(bucket, path='gs://test-bucket/other/owner.json', since='noon')  # in a copy of a workdir
  with ownership.own(ADDRESS):
    assert owner(bucket)['since'] != 'noon'


def test_an_owner_elsewhere_lives_while_it_renews_its_object(bucket, monkeypatch):
  monkeypatch.setattr(ownership, '_POLL', 0.05)
  monkeypatch.setattr(ownership, 'STALE', 1.0)
  put_owner(bucket, host='other')
  look = ownership._Object.look

  def renewed(place):
    put_owner(bucket, host='other')
    return look(place)

  with monkeypatch.context() as patch, pytest.raises(errors.InputError, match='in use by .* on other'):
    patch.setattr(ownership._Object, 'look', renewed)
    ownership.own(ADDRESS).__enter__()
  begun = time.monotonic()
  with ownership.own(ADDRESS):
    assert owner(bucket)['host'] != 'other'
  assert 0.5 < time.monotonic() - begun < 20
  assert not bucket.objects


def test_of_two_that_take_a_free_workdir_one_owns_it(bucket, monkeypatch):
  monkeypatch.setattr(ownership, '_POLL', 0.05)
  look = ownership._Object.look

  def then_another_takes_it(place):
    found = look(place)
    monkeypatch.setattr(ownership._Object, 'look', look)
    put_owner(bucket, pid=1, started=ownership._started(1))
    return found

  monkeypatch.setattr(ownership._Object, 'look', then_another_takes_it)
  with pytest.raises(errors.InputError, match='in use by .*process 1 on'):
    ownership.own(ADDRESS).__enter__()
  assert owner(bucket)['pid'] == 1


def test_the_owner_renews_its_object(bucket, monkeypatch):
  monkeypatch.setattr(ownership, '_FIRST', 0.05)
  monkeypatch.setattr(ownership, 'RENEW', 0.05)
  with ownership.own(ADDRESS):
    for _ in range(2):
      generation, deadline = bucket.objects[f'{FOLDER}/owner.json'].generation, time.monotonic() + 20
      while bucket.objects[f'{FOLDER}/owner.json'].generation == generation:
        assert time.monotonic() < deadline
        time.sleep(0.01)
  assert not bucket.objects


@pytest.fixture
def command(config_file):
  """The command of a small run that takes some seconds; `flags` follow."""

  def make(workdir, steps, *flags):
    network = {'model.name': 'mlp', 'model.depth': 3, 'model.width': 16, 'ema.decay': 0.0}
    often = {'train.steps': steps, 'checkpoint.every': '7', 'eval.every': '10', 'train.steps_per_dispatch': 1}
    config = config_file(f'run_{steps}', network | often)
    return [sys.executable, '-m', 'dnt.main', f'--config={config}', f'--workdir={workdir}', *flags]

  return make


def wait_for_a_checkpoint(bucket, process, after=0):
  deadline = time.monotonic() + 240
  while max(steps_in(bucket), default=0) <= after:
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < deadline
    time.sleep(0.02)


@pytest.mark.slow
def test_killed_runs_that_go_on_from_nothing_but_the_bucket(bucket, tmp_path, command, start, finish):
  draw = random.Random(3)
  for kill in range(3):
    process = start(command(ADDRESS, 60))
    wait_for_a_checkpoint(bucket, process, max(steps_in(bucket), default=0) if kill else 0)
    time.sleep(draw.uniform(0, 0.5))
    process.kill()
    process.wait()
  finish(start(command(ADDRESS, 60)))
  finish(start(command(tmp_path / 'whole', 60)))
  copy = bucket.copy(FOLDER, tmp_path / 'copy')
  assert summary(copy)['params_sha256'] == summary(tmp_path / 'whole')['params_sha256']
  assert record(copy) == record(tmp_path / 'whole')
  assert 'owner.json' not in bucket.names(FOLDER)


@pytest.mark.thorough
def test_a_second_start_is_refused_and_a_signal_saves(bucket, tmp_path, command, start, finish):
  process = start(command(ADDRESS, 100_000))
  wait_for_a_checkpoint(bucket, process)
  output = finish(start(command(ADDRESS, 100_000)), 2)
  assert re.search(rf'error: {ADDRESS} is in use by .*process {process.pid} on ', output)
  process.send_signal(signal.SIGTERM)
  output = finish(process, 143)
  assert ADDRESS in output.strip().splitlines()[-1] or 'go on' in output
  copy = bucket.copy(FOLDER, tmp_path / 'copy')
  stopped = summary(copy)
  assert stopped['stopped_by'] == 'SIGTERM' and stopped['step'] in steps_in(bucket)
  assert [line['step'] for line in record(copy) if 'train/loss' in line] == list(range(1, stopped['step'] + 1))
  assert not list((tmp_path / 'mirrors').iterdir())


@pytest.mark.slow
def test_two_processes_write_one_bucket(bucket, tmp_path, command, start, finish, coordinator):
  place = ['--distributed', f'--coordinator={coordinator}', '--num_processes=2']

  def both(workdir, steps):
    processes = [start(command(workdir, steps, *place, f'--process_id={number}')) for number in range(2)]
    return [finish(process) for process in processes]

  both(ADDRESS, 10)
  assert {name.split('/')[3] for name in bucket.names(FOLDER) if 'ocdbt' in name} >= {
    'ocdbt.process_0',
    'ocdbt.process_1',
  }
  both(ADDRESS, 20)
  both(tmp_path / 'whole', 10)
  both(tmp_path / 'whole', 20)
  copy = bucket.copy(FOLDER, tmp_path / 'copy')
  assert summary(copy)['params_sha256'] == summary(tmp_path / 'whole')['params_sha256']
  assert record(copy) == record(tmp_path / 'whole')
