import pickle
import sys

import numpy as np
import pytest

from dnt import errors
from dnt.weights import torch_files


@pytest.fixture
def tensors():
  draw = np.random.default_rng(0)
  return {name: draw.standard_normal((3, 4), np.float32) for name in ('a.weight', 'b.weight')}


def assert_read(found, tensors):
  assert found.keys() == tensors.keys()
  for name, value in tensors.items():
    np.testing.assert_array_equal(found[name], value.astype(np.float32))


def test_safetensors_need_no_torch(tensors, save, monkeypatch):
  path = save(tensors)
  monkeypatch.setitem(sys.modules, 'torch', None)
  assert_read(torch_files.read_safetensors(path), tensors)


@pytest.mark.parametrize('wrapper', [None, 'state_dict', 'model'])
def test_pickles_of_torch(tensors, save, wrapper):
  given = {**tensors, 'steps': np.array(3)}
  path = save({wrapper: given, 'epoch': 7} if wrapper else given, 'model.pth')
  assert_read(torch_files.read_pickle(path), given)


def test_half_precision_in_a_pickle_is_widened(tensors, save):
  half = {name: value.astype(np.float16) for name, value in tensors.items()}
  assert_read(torch_files.read_pickle(save(half, 'model.pth')), half)


def test_half_precision_in_safetensors(tensors, save):
  half = {name: value.astype(np.float16) for name, value in tensors.items()}
  assert_read({name: np.float32(value) for name, value in torch_files.read_safetensors(save(half)).items()}, half)


@pytest.mark.parametrize(('name', 'read'), [('m.safetensors', 'read_safetensors'), ('m.pth', 'read_pickle')])
@pytest.mark.parametrize(
  'damage', [lambda b: b[: len(b) // 2], lambda b: b'', lambda b: b'no weights at all, only text']
)
def test_a_damaged_file_is_one_line(tensors, save, name, read, damage):
  path = save(tensors, name)
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(errors.InputError, match=r'm\.(safetensors|pth).*damaged') as caught:
    getattr(torch_files, read)(path)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('writer', ['torch', 'pickle'])
def test_code_in_a_pickle_is_refused_and_not_executed(tensors, save, evil, tmp_path, writer):
  pytest.importorskip('torch', reason='torch reads the pickle, and is not installed')
  code, mark = evil
  if writer == 'torch':
    path = save({**tensors, 'c.weight': code}, 'model.pth')
  else:
    path = tmp_path / 'model.pth'
    path.write_bytes(pickle.dumps({'a.weight': code}))
  with pytest.raises(errors.InputError, match=r'model\.pth .*nothing .*executed') as caught:
    torch_files.read_pickle(path)
  assert '\n' not in str(caught.value)
  assert not mark.exists()
  with path.open('rb') as file:
    assert writer == 'torch' or pickle.load(file)
  assert writer == 'torch' or mark.exists(), 'the file would have executed it'


@pytest.mark.parametrize('content', [[1, 2], {'a': 3}, {'state_dict': {'a': 'text'}}])
def test_other_content_is_refused(save, content):
  with pytest.raises(errors.InputError, match=r'model\.pth .*tensors.* state_dict'):
    torch_files.read_pickle(save(content, 'model.pth'))


def test_pickles_without_torch_are_refused_in_words(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(errors.InputError, match=r'model\.pth .*torch.* \.safetensors'):
    torch_files.read_pickle(tmp_path / 'model.pth')
