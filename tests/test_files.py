import io
import json
import os
import pathlib

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


def test_a_full_disk_leaves_the_old_file_and_no_other_and_is_named(tmp_path, monkeypatch):
  path = tmp_path / 'file.json'
  files.write_json(path, {'a': 1})

  def append(file, content):
    file.write(content[:3])
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(files, 'append', append)
  with pytest.raises(OSError, match='No space left') as raised:
    files.write_json(path, {'a': 2})
  assert raised.value.filename == str(path)
  assert json.loads(path.read_text()) == {'a': 1} and list(tmp_path.iterdir()) == [path]
  assert 'No space left' in files.why_not_writable(tmp_path)


def test_a_write_of_a_part_is_an_error(tmp_path):
  class Short(io.RawIOBase):
    def write(self, content):
      return len(content) - 1

  with pytest.raises(OSError, match='No space left'):
    files.append(Short(), b'abc')


@pytest.mark.parametrize('content', [b'', b'[]', b'3', b'"x"', b'{"a": ', b'\xff\xfe', b'[' * 100_000, None])
def test_what_is_no_json_object_is_refused_by_name(tmp_path, content):
  if content is not None:
    (tmp_path / 'a.json').write_bytes(content)
  with pytest.raises(errors.InputError, match=r'a\.json ') as refused:
    files.read_object(tmp_path / 'a.json')
  assert '\n' not in str(refused.value)


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


def test_an_address_is_no_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.InputError, match='--output=gs://bucket/a '):
    files.make_workdir(pathlib.Path('gs://bucket/a'), '--output')
  assert not list(tmp_path.iterdir())
  files.make_workdir('runs/a:b/c')
