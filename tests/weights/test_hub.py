import json
import re
import sys
import types

import pytest

from dnt import errors
from dnt.weights import hub


def serve(monkeypatch, fetch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', types.SimpleNamespace(hf_hub_download=fetch))


def test_weights_and_config_come_into_one_folder(monkeypatch, tmp_path):
  asked = []
  serve(monkeypatch, lambda name, file, revision=None: asked.append((name, file, revision)) or str(tmp_path / file))
  assert hub.download('timm/resnet50.a1_in1k') == (tmp_path / 'model.safetensors', '')
  name = 'timm/resnet50.a1_in1k'
  assert asked == [(name, 'config.json', None), (name, 'model.safetensors', None)]


@pytest.mark.parametrize('revision', ['', 'v1.0', 'refs/pr/1', 'a' * 40])
def test_both_are_of_the_revision_and_its_commit_is_known(monkeypatch, tmp_path, revision):
  """Also if the branch moves between the two downloads."""
  commits, asked = iter(['a' * 40, 'b' * 40]), []

  def fetch(name, file, revision=None):
    asked.append((name, file, revision))
    return str(tmp_path / 'snapshots' / (revision if revision == 'a' * 40 else next(commits)) / file)

  serve(monkeypatch, fetch)
  found = hub.download('timm/resnet50.a1_in1k' + (f'@{revision}' if revision else ''))
  assert found == (tmp_path / 'snapshots' / ('a' * 40) / 'model.safetensors', 'a' * 40)
  name = 'timm/resnet50.a1_in1k'
  assert asked == [(name, 'config.json', revision or None), (name, 'model.safetensors', 'a' * 40)]


def test_an_empty_revision_is_refused(monkeypatch):
  serve(monkeypatch, None)
  with pytest.raises(errors.InputError, match='revision'):
    hub.download('timm/resnet50.a1_in1k@')


class EntryNotFoundError(Exception):
  pass


class RemoteEntryNotFoundError(EntryNotFoundError):
  pass


def test_weights_in_several_files_come_with_their_index(monkeypatch, tmp_path):
  parts = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
  index = {'weight_map': {'a': parts[0], 'b': parts[1], 'c': parts[0]}}
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
  asked = []

  def fetch(name, file):
    asked.append(file)
    if file == 'model.safetensors':
      raise RemoteEntryNotFoundError('404')
    return str(tmp_path / file)

  serve(monkeypatch, fetch)
  assert hub.download('owner/large').path == tmp_path / 'model.safetensors.index.json'
  assert asked == ['config.json', 'model.safetensors', 'model.safetensors.index.json', *parts]


def test_an_index_that_cannot_be_read_is_named(monkeypatch, tmp_path):
  (tmp_path / 'model.safetensors.index.json').write_text('{"weights": {}}')

  def fetch(name, file):
    if file == 'model.safetensors':
      raise RemoteEntryNotFoundError('404')
    return str(tmp_path / file)

  serve(monkeypatch, fetch)
  with pytest.raises(errors.InputError, match=r'hf:owner/large .*index\.json .*lists the parts of the weights'):
    hub.download('owner/large')


def test_without_a_network_it_says_what_to_fetch(monkeypatch):
  def fail(name, file, revision=None):
    raise ConnectionError('no route to host\nand a page more')

  serve(monkeypatch, fail)
  with pytest.raises(errors.InputError) as caught:
    hub.download('timm/resnet18.a1_in1k')
  said = r'hf:timm/resnet18\.a1_in1k .*no route to host.* model\.safetensors .*config\.json '
  assert re.search(said + r'.*https://huggingface\.co/timm/resnet18\.a1_in1k ', str(caught.value))
  assert '\n' not in str(caught.value)
  with pytest.raises(
    errors.InputError, match=r'hf:timm/resnet18@v2 .*revision.*huggingface\.co/timm/resnet18/tree/v2 '
  ):
    hub.download('timm/resnet18@v2')


def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch, tmp_path, console):
  def fetch(name, file, cache_dir=None):
    if cache_dir is None:
      raise PermissionError(13, 'Permission denied', '/cache/of/the/hub')
    return f'{cache_dir}/{file}'

  serve(monkeypatch, fetch)
  path = hub.download('timm/resnet18.a1_in1k').path
  assert path.name == 'model.safetensors' and path.parent.is_dir()
  output = console.readouterr().out
  assert output.count('\n') == 1 and '/cache/of/the/hub' in output


def test_without_huggingface_hub_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(errors.InputError, match='huggingface_hub'):
    hub.download('timm/resnet18.a1_in1k')
