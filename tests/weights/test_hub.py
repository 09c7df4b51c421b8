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
  serve(monkeypatch, lambda name, file: asked.append((name, file)) or str(tmp_path / file))
  assert hub.download('timm/resnet50.a1_in1k') == tmp_path / 'model.safetensors'
  assert set(asked) == {('timm/resnet50.a1_in1k', 'model.safetensors'), ('timm/resnet50.a1_in1k', 'config.json')}


def test_without_a_network_it_says_what_to_fetch(monkeypatch):
  def fail(name, file):
    raise ConnectionError('no route to host\nand a page more')

  serve(monkeypatch, fail)
  with pytest.raises(errors.InputError) as caught:
    hub.download('timm/resnet18.a1_in1k')
  said = r'hf:timm/resnet18\.a1_in1k .*no route to host.* model\.safetensors .*config\.json '
  assert re.search(said + r'.*https://huggingface\.co/timm/resnet18\.a1_in1k ', str(caught.value))
  assert '\n' not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch, tmp_path, console):
  def fetch(name, file, cache_dir=None):
    if cache_dir is None:
      raise PermissionError(13, 'Permission denied', '/cache/of/the/hub')
    return f'{cache_dir}/{file}'

  serve(monkeypatch, fetch)
  path = hub.download('timm/resnet18.a1_in1k')
  assert path.name == 'model.safetensors' and path.parent.is_dir()
  output = console.readouterr().out
  assert output.count('\n') == 1 and '/cache/of/the/hub' in output


def test_without_huggingface_hub_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(errors.InputError, match='huggingface_hub'):
    hub.download('timm/resnet18.a1_in1k')
