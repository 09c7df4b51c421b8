import json

import pytest

from dnt import files


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
