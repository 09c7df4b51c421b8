"""The program: what it writes, and what it refuses."""

import functools
import json
import re

import jax
import numpy as np
import pytest
from flax import traverse_util
from jax import export
from safetensors import numpy as safetensors_numpy

from dnt import checkpoints, errors
from dnt.config import run_config
from dnt.weights import pretrained


@pytest.fixture
def program(run_here):
  """Runs `python -m dnt.export`: (exit code, output)."""
  return functools.partial(run_here, 'export')


@pytest.fixture
def small(config_file, load_config):
  """A small ResNet that keeps averaged weights."""
  return lambda **options: load_config(config_file('exported', options))


@pytest.mark.thorough
def test_stablehlo_with_the_averaged_weights(program, trained_copy, build):
  workdir = trained_copy.workdir
  code, output = program(f'--workdir={workdir}')
  assert code == 0, output
  folder = workdir / 'export'
  last = f'{folder / "model.stablehlo"} and model.json, by the newest checkpoint of step 4, averaged weights'
  assert output.splitlines()[-1] == last
  called = export.deserialize(bytearray((folder / 'model.stablehlo').read_bytes()))
  images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
  run, averaged = build(run_config.get_config(str(workdir / 'config.json'))), checkpoints.load_parameters(workdir).ema
  want = jax.jit(lambda x: run.model.apply(averaged, run.preprocess({'image': x}, None), train=False))(images)
  np.testing.assert_allclose(called.call(images), want, rtol=0, atol=1e-5 * np.abs(want).max())
  assert json.loads((folder / 'model.json').read_text())['class_names'] == list(run.spec.class_names)


@pytest.mark.thorough
def test_safetensors_are_read_back(program, small, saved, tmp_path):
  options = {'model.stem': 'imagenet', 'model.depth': 18, 'ema.decay': 0.0, 'data.augment': 'none'}
  _, state, _ = saved(small(**options))
  output = tmp_path / 'out'
  code, said = program(f'--workdir={tmp_path / "run"}', '--format=safetensors', f'--output={output}')
  assert code == 0, said
  last = f'{output / "model.safetensors"} and config.json, by the newest checkpoint of step 7'
  assert said.splitlines()[-1] == last
  found = pretrained.Source(str(output / 'model.safetensors')).variables
  jax.tree.map(np.testing.assert_array_equal, found, {'params': state.params, 'batch_stats': state.batch_stats})


@pytest.mark.parametrize(('checkpoint', 'step'), [('last', 4), ('best', 2), ('2', 2)])
def test_a_checkpoint_is_exported_by_flax_paths(program, two_checkpoints, tmp_path, checkpoint, step):
  given = (f'--workdir={two_checkpoints}', f'--checkpoint={checkpoint}', '--format=flax_safetensors')
  code, said = program(*given, f'--output={tmp_path}')
  assert code == 0, said
  file, name = tmp_path / 'flax_model.safetensors', '' if checkpoint == '2' else f'{checkpoint} '
  averaged = checkpoints.load_parameters(two_checkpoints, step).ema
  tensors = safetensors_numpy.load_file(file)
  files = f'{file} ({len(tensors)} tensors by Flax path) and flax_model.json'
  assert said.splitlines()[-1] == f'{files}, by the {name}checkpoint of step {step}, averaged weights'
  assert tensors['params/stage1/block001/conv1/kernel'].shape == (3, 3, 16, 16)
  jax.tree.map(np.testing.assert_array_equal, traverse_util.unflatten_dict(tensors, sep='/'), averaged)
  with pytest.raises(errors.InputError, match='these are Flax paths.* give the workdir of that run'):
    _ = pretrained.Source(str(file)).variables


def test_an_own_module_is_exported_and_runs_without_dnt(program, own_network, saved, tmp_path):
  import own_network as module

  own_network.data.update({'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.4)})
  run, state, data = saved(own_network)
  code, said = program(f'--workdir={tmp_path / "run"}', '--format=safetensors')
  assert code == 2 and 'torchvision has no own_network:Net;' in said and '--format=flax_safetensors' in said
  code, said = program(f'--workdir={tmp_path / "run"}', '--format=flax_safetensors')
  assert code == 0, said
  folder = tmp_path / 'run' / 'export'
  variables = traverse_util.unflatten_dict(safetensors_numpy.load_file(folder / 'flax_model.safetensors'), sep='/')
  described = json.loads((folder / 'flax_model.json').read_text())
  assert described['names'].startswith('Flax paths') and described['model']['name'] == 'own_network:Net'
  assert described['class_names'] == list(data.spec.class_names)
  prepared, images = described['preprocessing'], data.evaluation['test'].images[:3]
  x = ((images / 255 - prepared['mean']) / prepared['std']).astype(np.float32)
  batch = {'image': images}
  want = jax.jit(lambda v: run.model.apply(v, run.preprocess(batch, None), train=False))({'params': state.params})
  np.testing.assert_allclose(jax.jit(module.Net(10).apply)(variables, x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('way', 'files', 'named'),
  [
    ('safetensors', {'config.json': '{"model": {}}'}, 'config.json'),  # of a run
    ('safetensors', {'config.json': '{"architectures": ["ViT"]}', 'model.safetensors': ''}, 'config.json'),
    ('safetensors', {'model.safetensors': ''}, 'model.safetensors'),
    ('stablehlo', {'model.json': '{"modelTopology": {}}'}, 'model.json'),  # of TensorFlow.js
    ('flax_safetensors', {'flax_model.json': '[]'}, 'flax_model.json'),
    ('safetensors', {'config.json': '{"architecture": "resnet18"}', 'model.safetensors': ''}, ''),
    ('stablehlo', {'model.json': '{"preprocessing": {}}', 'model.stablehlo': ''}, ''),
    ('stablehlo', {'config.json': '{}', 'model.safetensors': ''}, ''),  # which it does not replace
  ],
)
def test_files_of_another_kind_are_not_replaced(refused, trained, tmp_path, monkeypatch, way, files, named):
  def load(*_, **__):
    raise errors.InputError('it loads')

  monkeypatch.setattr('dnt.inference.load', load)
  for name, content in files.items():
    (tmp_path / name).write_text(content)
  message = refused(f'--workdir={trained.workdir}', f'--format={way}', f'--output={tmp_path}', name='export')
  assert (f'{tmp_path / named} is not of an export' in message and '--output' in message) == bool(named)
  assert (message == 'error: it loads') != bool(named)
  assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_bad_input_is_one_line(program, trained, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(trained.workdir.parent))
  monkeypatch.setattr('dnt.inference.export.stablehlo', lambda network: pytest.fail('computed before'))
  workdir = f'--workdir={trained.workdir}'
  for arguments, said in (
    ([workdir, '--format=safetensors'], 'error: .*torchvision .*resnet .*depth 8'),
    ([workdir, f'--output={trained.workdir}'], f'{re.escape(str(trained.workdir))} .*config.json'),
    (['--workdir=~/trained', '--format=safetensors', f'--output={trained.workdir}'], 'is the workdir'),
    ([workdir, '--output=gs://bucket/mine'], 'error: --output=gs://bucket/mine is the address'),
    ([workdir, '--output=/dev/null/mine'], 'error: output /dev/null/mine cannot be written .*--output'),
    ([workdir, '--config=configs/digits_resnet20.py'], 'no --config'),
    ([], '--workdir=<'),
    (['--workdir=hf:timm/resnet18.a1_in1k'], 'error: --workdir=hf:timm/.* is no workdir of a dnt run'),
  ):
    code, output = program(*arguments)
    assert code == 2, output
    assert re.search(said, output)
    assert len(output.splitlines()) == 1, output
  assert not list(tmp_path.iterdir())
