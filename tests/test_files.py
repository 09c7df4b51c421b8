import json
import os

import pytest

from dnt import errors, files


def test_replaces_whole_files(tmp_path):
  path = tmp_path / 'file'
  files.write(path, 'old')
  files.write(str(path), 'new é')
  assert path.read_text(encoding='utf-8') == 'new é'
  files.write(path, b'\x00\xff')
  assert path.read_bytes() == b'\x00\xff'
  assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path):
  path = tmp_path / 'file.json'
  files.write_json(path, {'a': 1})
  with pytest.raises(TypeError):
    files.write_json(path, {'a': object()})
  assert json.loads(path.read_text()) == {'a': 1}


def test_json_is_strict(tmp_path):
  path = tmp_path / 'file.json'
  files.write_json(path, {'a': float('nan'), 'b': [1.5, float('inf')], 'c': {'d': (-float('inf'), 2)}})
  value = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))
  assert value == {'a': None, 'b': [1.5, None], 'c': {'d': [None, 2]}}


def test_names_that_are_not_utf8_are_written_escaped(tmp_path):
  name = os.fsdecode(b'caf\xe9')
  files.write(tmp_path / 'text', f'{name} café')
  assert (tmp_path / 'text').read_text(encoding='utf-8') == 'caf\\xe9 café'
  assert files.readable('café') == 'café'


def test_a_workdir_whose_name_is_not_utf8_is_refused(tmp_path):
  path = tmp_path / os.fsdecode(b'caf\xe9')
  with pytest.raises(errors.InputError, match=r'caf\\xe9 .*UTF-8.* --workdir'):
    files.make_workdir(path)
  assert not path.exists()
