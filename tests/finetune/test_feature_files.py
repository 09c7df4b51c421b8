"""The files of features: what they hold, how far they have come, one writer at a time, the limits of their folder."""

import collections
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from dnt import errors
from dnt.finetune import feature_files

HEAD = feature_files.header(key='a', records=5)


def features(count):
  return np.arange(count * 6, dtype=np.float32).reshape(count, 2, 3), np.arange(count, dtype=np.int32)


def arrays(count):
  return np.zeros((count, 2, 3), np.float32), np.zeros(count, np.int32)


def write(path, head=HEAD, blocks=((0, 3), (3, 5))):
  path.parent.mkdir(parents=True, exist_ok=True)
  (given, labels), empty = features(5), arrays(5)
  writer = feature_files.Writer(path, head, feature_files.read(path, head, *empty))
  for start, end in blocks:
    writer.write(start, given[start:end], labels[start:end])
  writer.close()


def test_records_are_read_back_and_counted(tmp_path):
  path, (given, labels) = tmp_path / 'made' / 'a.features', features(5)
  held = arrays(5)
  assert feature_files.read(path, HEAD, *held) == (0, 0, False)
  write(path, blocks=[(0, 3)])
  assert feature_files.read(path, HEAD, *held) == (3, path.stat().st_size, False)
  write(path, blocks=[(2, 5)])  # the third is there already
  assert feature_files.read(path, HEAD, *held) == (5, path.stat().st_size, False)
  np.testing.assert_array_equal(held[0], given)
  np.testing.assert_array_equal(held[1], labels)


def test_every_byte_is_checked(tmp_path):
  path, (given, _) = tmp_path / 'a.features', features(5)
  write(path)
  content = path.read_bytes()
  for place in range(len(content)):
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    held, labels = arrays(5)
    found = feature_files.read(path, HEAD, held, labels)
    assert found.count < 5 and found.size <= place, place
    np.testing.assert_array_equal(held[: found.count], given[: found.count])
    path.write_bytes(content[:place])
    found = feature_files.read(path, HEAD, held, labels)
    assert found.count < 5 and found.size <= place and not found.damaged, place


def test_a_file_under_the_name_of_another_is_not_believed(tmp_path):
  write(tmp_path / 'a.features', feature_files.header(key='b', records=5))
  assert feature_files.read(tmp_path / 'a.features', HEAD, *arrays(5)) == (0, 0, True)


def test_what_was_cut_off_is_written_again(tmp_path):
  path = tmp_path / 'a.features'
  write(path)
  whole = path.read_bytes()
  for left in (0, 5, len(HEAD), len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:left])
    write(path)
    assert path.read_bytes() == whole


def test_a_second_writer_waits_for_the_first(tmp_path):
  path = tmp_path / 'a.features'
  code = """
import pathlib, sys
from dnt.finetune import feature_files
with feature_files.growing(pathlib.Path(sys.argv[1]), exit):
  print('holds', flush=True)
  input()
"""
  other = subprocess.Popen([sys.executable, '-c', code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  assert other.stdout.readline() == b'holds\n'
  path.write_bytes(b'')
  assert not feature_files.remove(path)
  waited = []

  def wait():
    waited.append(True)
    other.communicate(b'\n')

  with feature_files.growing(path, wait):
    assert waited and other.returncode == 0
  assert feature_files.remove(path) and not list(tmp_path.iterdir())


def cached(folder, **files):
  """Makes files of a cache: name to the hours since their last use; each takes 1000 bytes."""
  for name, hours in files.items():
    path = folder / f'{name[0] * 32}.features'
    path.write_bytes(bytes(1000))
    os.utime(path, 2 * (time.time() - 3600 * hours,))


def left(folder):
  return ''.join(sorted(path.name[0] for path in folder.glob('*.features')))


def test_the_least_recently_used_make_room(tmp_path, monkeypatch):
  monkeypatch.setenv('DNT_CACHE_GB', '4e-6')  # 4000 bytes
  (tmp_path / 'mine.features').write_bytes(bytes(9000))  # not from the cache
  cached(tmp_path, a=1, b=4, c=3, d=2)
  assert feature_files.make_room(tmp_path) == ''
  assert left(tmp_path) == 'abcdm'
  assert feature_files.make_room(tmp_path, 1500) == ''
  assert left(tmp_path) == 'adm'
  used, _ = arrays(5)
  feature_files.read(tmp_path / f'{"d" * 32}.features', HEAD, used, arrays(5)[1])
  assert feature_files.make_room(tmp_path, 2500) == ''
  assert left(tmp_path) == 'dm', 'the one in use remains'
  del used
  assert 'DNT_CACHE_GB' in feature_files.make_room(tmp_path, 3500, keep=tmp_path / f'{"d" * 32}.features')
  assert feature_files.make_room(tmp_path, 3500) == '' and left(tmp_path) == 'm'
  assert 'the disk' in feature_files.make_room(tmp_path, 1 << 60)
  assert feature_files.make_room(tmp_path / 'missing' / 'folder') == ''


@pytest.mark.parametrize(('limit', 'free', 'said'), [('4e-6', 1 << 40, 'DNT_CACHE_GB'), ('20', 1000, 'the disk')])
def test_what_cannot_fit_removes_only_what_is_too_old(tmp_path, monkeypatch, limit, free, said):
  monkeypatch.setenv('DNT_CACHE_GB', limit)
  monkeypatch.setattr(feature_files.shutil, 'disk_usage', lambda path: collections.namedtuple('usage', 'free')(free))
  cached(tmp_path, a=1, b=24 * 40, c=3)
  assert said in feature_files.make_room(tmp_path, 3500, keep=tmp_path / f'{"a" * 32}.features')
  assert left(tmp_path) == 'ac'


def test_a_limit_that_is_no_number_is_refused(tmp_path, monkeypatch):
  monkeypatch.setenv('DNT_CACHE_DAYS', 'week')
  with pytest.raises(errors.InputError, match='DNT_CACHE_DAYS=week'):
    feature_files.make_room(tmp_path)
