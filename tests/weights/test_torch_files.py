import argparse
import json
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


@pytest.mark.parametrize('wrapper', [None, *torch_files.WRAPPERS])
def test_pickles_of_torch(tensors, save, wrapper):
  given = {**tensors, 'steps': np.array(3)}
  path = save({wrapper: given, 'epoch': 7} if wrapper else given, 'model.pth')
  assert_read(torch_files.read_pickle(path).tensors, given)


def test_averaged_weights_come_first_and_this_is_said(tensors, save, console):
  other = {name: value + 1 for name, value in tensors.items()}
  path = save({'state_dict': other, 'state_dict_ema': tensors, 'model_ema': None}, 'model.pth')
  assert_read(torch_files.read_pickle(path).tensors, tensors)
  assert 'state_dict_ema is read' in console.readouterr().out


def test_wrappers_in_wrappers(tensors, save):
  assert_read(torch_files.read_pickle(save({'net': {'model': tensors}}, 'model.pth')).tensors, tensors)


def test_parameters_that_require_gradients(tensors, save):
  torch = pytest.importorskip('torch', reason='torch writes the parameters, and is not installed')
  given = {name: torch.nn.Parameter(torch.from_numpy(value)) for name, value in tensors.items()}
  assert_read(torch_files.read_pickle(save(given, 'model.pth')).tensors, tensors)


@pytest.mark.parametrize(
  ('more', 'architectures'),
  [
    ({}, ()),
    ({'arch': 'resnet18'}, ('resnet18',)),
    ({'arch': 'resnet', 'args': argparse.Namespace(model='resnetaa50', lr=0.1)}, ('resnet', 'resnetaa50')),
    ({'args': argparse.Namespace(arch='wide_resnet50_2', model=None)}, ('wide_resnet50_2',)),
    ({'args': {'model': 'resnet34'}}, ('resnet34',)),
    ({'hyper_parameters': {'model_name': 'resnetblur50', 'lr': 0.1}}, ('resnetblur50',)),
  ],
)
def test_the_options_of_a_training_program_say_the_architecture(tensors, save, more, architectures):
  content = torch_files.read_pickle(save({'model': tensors, 'epoch': 3, **more}, 'model.pth'))
  assert_read(content.tensors, tensors)
  assert content.architectures == architectures


@pytest.mark.parametrize(
  ('options', 'model_args'),
  [
    ({'gp': 'max', 'model_kwargs': {'act_layer': 'silu'}}, {'global_pool': 'max', 'act_layer': 'silu'}),
    ({'gp': None, 'model_kwargs': {}, 'bn_eps': None, 'lr': 0.1}, {'global_pool': None}),
    ({'model_kwargs': None}, {}),
  ],
)
def test_the_options_of_timms_program_say_how_it_built_the_network(tensors, save, options, model_args):
  for given in (argparse.Namespace(**options), options):
    content = torch_files.read_pickle(save({'state_dict': tensors, 'args': given}, 'last.pth.tar'))
    assert_read(content.tensors, tensors)
    assert content.model_args == model_args


def test_code_in_the_options_is_not_executed(tensors, save, evil):
  code, mark = evil
  with pytest.raises(errors.InputError, match='nothing .*executed'):
    torch_files.read_pickle(save({'model': tensors, 'args': argparse.Namespace(model=code)}, 'model.pth'))
  assert not mark.exists()


def test_a_namespace_is_allowed_only_while_dnt_reads(tensors, save):
  torch = pytest.importorskip('torch', reason='the test is about torch')
  torch_files.read_pickle(save({'model': tensors, 'args': argparse.Namespace()}, 'model.pth'))
  assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_a_torch_that_may_execute_code_is_refused(tensors, save, monkeypatch):
  torch = pytest.importorskip('torch', reason='the test is about its version')
  path = save(tensors, 'model.pth')
  monkeypatch.setattr(torch, '__version__', type(torch.__version__)('2.5.1+cpu'))
  with pytest.raises(errors.InputError, match=r'torch 2\.6'):
    torch_files.read_pickle(path)


def test_a_program_of_torch_is_told_from_a_damaged_file(tmp_path):
  torch = pytest.importorskip('torch', reason='torch writes the program')
  path = tmp_path / 'model.pt'
  with pytest.warns(DeprecationWarning):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
  with pytest.raises(errors.InputError, match=r'TorchScript .*state_dict'):
    torch_files.read_pickle(path)


@pytest.fixture
def sharded(tensors, save):
  """Two files with a tensor each, and the list of them."""
  places = {}
  for number, (name, value) in enumerate(tensors.items(), start=1):
    places[name] = save({name: value}, f'model-{number:05d}-of-00002.safetensors').name
  path = save({}, 'empty.safetensors').with_name('model.safetensors.index.json')
  path.write_text(json.dumps({'metadata': {'total_size': 96}, 'weight_map': places}))
  return path


def test_the_parts_of_weights_in_several_files_are_put_together(sharded, tensors):
  assert_read(torch_files.read_index(sharded), tensors)
  sharded.write_text(sharded.read_text(), 'utf-8-sig')
  assert_read(torch_files.read_index(sharded), tensors)


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (lambda path: path.with_name('model-00002-of-00002.safetensors').unlink(), 'model-00002-of-00002.safetensors'),
    (lambda path: path.write_text(path.read_text().replace('b.weight', 'c.weight')), r'b\.weight .*c\.weight'),
    (lambda path: path.write_text(path.read_text().replace('model-', '../model-')), r'not beside'),
    (lambda path: path.write_text('{}'), 'weight_map'),
    (lambda path: path.write_text('{"weight_map": ["a"]}'), 'cannot read'),
    (lambda path: path.write_text('{"weight_map": {"a": 3}}'), 'cannot read'),
    (lambda path: path.with_name('model-00001-of-00002.safetensors').write_bytes(b'12'), 'damaged'),
  ],
)
def test_parts_that_do_not_fit_are_refused(sharded, change, said):
  change(sharded)
  with pytest.raises(errors.InputError, match=said):
    torch_files.read_index(sharded)


def test_half_precision_in_a_pickle_is_widened(tensors, save):
  half = {name: value.astype(np.float16) for name, value in tensors.items()}
  assert_read(torch_files.read_pickle(save(half, 'model.pth')).tensors, half)


def test_complex_numbers_in_a_pickle_stay_complex(tensors, save):
  given = {**tensors, 'c.weight': np.full(3, 1 + 2j, np.complex64)}
  found = torch_files.read_pickle(save(given, 'model.pth')).tensors
  assert (found['c.weight'].dtype, found['a.weight'].dtype) == (np.complex64, np.float32)
  np.testing.assert_array_equal(found['c.weight'], given['c.weight'])


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
