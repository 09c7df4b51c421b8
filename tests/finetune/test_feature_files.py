"""The files of features: what they hold, how far they have come, and one writer at a time."""

import subprocess
import sys

import numpy as np
import pytest

from dnt.finetune import feature_files

DTYPE = feature_files.record((2, 3))


def features(count):
  return np.arange(count * 6, dtype=np.float32).reshape(count, 2, 3), np.arange(count, dtype=np.int32)


def test_records_are_read_back_and_counted(tmp_path):
  path, (given, labels) = tmp_path / 'made' / 'a.features', features(5)
  assert feature_files.count(path, DTYPE) == 0
  with feature_files.growing(path, DTYPE, pytest.fail) as write:
    write(0, given[:3], labels[:3])
    assert feature_files.count(path, DTYPE) == 3, 'what is written is there at once'
    write(3, given[3:], labels[3:])
  assert feature_files.count(path, DTYPE) == 5
  for count in (0, 2, 5):
    found, of = feature_files.read(path, DTYPE, count)
    np.testing.assert_array_equal(found, given[:count])
    np.testing.assert_array_equal(of, labels[:count])
    assert found.dtype == np.float32 and found.shape == (count, 2, 3) and of.dtype == np.int32
  with pytest.raises(ValueError, match='mmap length'):
    feature_files.read(path, DTYPE, 6)


def test_what_was_cut_off_is_written_again(tmp_path):
  path, (given, labels) = tmp_path / 'a.features', features(5)
  with feature_files.growing(path, DTYPE, pytest.fail) as write:
    write(0, given, labels)
  path.write_bytes(path.read_bytes()[: 4 * DTYPE.itemsize + 7])
  assert feature_files.count(path, DTYPE) == 4
  with feature_files.growing(path, DTYPE, pytest.fail) as write:
    write(2, given[2:4], labels[2:4])
    write(4, given[4:], labels[4:])
  np.testing.assert_array_equal(feature_files.read(path, DTYPE, 5)[0], given)


def test_a_second_writer_waits_for_the_first(tmp_path):
  path, (given, labels) = tmp_path / 'a.features', features(1)
  code = """
import pathlib, sys
import numpy as np
from dnt.finetune import feature_files
with feature_files.growing(pathlib.Path(sys.argv[1]), feature_files.record((2, 3)), exit):
  print('holds', flush=True)
  input()
"""
  other = subprocess.Popen([sys.executable, '-c', code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  assert other.stdout.readline() == b'holds\n'
  waited = []

  def wait():
    waited.append(True)
    other.communicate(b'\n')

  with feature_files.growing(path, DTYPE, wait) as write:
    write(0, given, labels)
  assert waited and feature_files.count(path, DTYPE) == 1 and other.returncode == 0
