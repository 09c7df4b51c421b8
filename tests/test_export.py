"""The program: what it writes, and what it refuses."""

import functools
import json

import jax
import numpy as np
import pytest
from jax import export

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
def test_stablehlo_with_the_averaged_weights(program, small, saved, tmp_path):
  run, state, _ = saved(small())
  code, output = program(f'--workdir={tmp_path / "run"}')
  assert code == 0, output
  folder = tmp_path / 'run' / 'export'
  assert output.splitlines()[-1] == f'step 7 (averaged weights): {folder / "model.stablehlo"} and model.json'
  called = export.deserialize(bytearray((folder / 'model.stablehlo').read_bytes()))
  pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
  want = jax.jit(lambda x: run.model.apply(state.ema, run.preprocess({'image': x}, None), train=False))(pictures)
  np.testing.assert_allclose(called.call(pictures), want, rtol=0, atol=1e-5 * np.abs(want).max())
  assert json.loads((folder / 'model.json').read_text())['class_names'] == list(run.spec.class_names)


def test_safetensors_are_read_back(program, small, saved, tmp_path):
  options = {'model.stem': 'imagenet', 'model.depth': 18, 'ema.decay': 0.0, 'data.augment': 'none'}
  _, state, _ = saved(small(**options))
  output = tmp_path / 'out'
  code, said = program(f'--workdir={tmp_path / "run"}', '--format=safetensors', f'--output={output}')
  assert code == 0, said
  assert said.splitlines()[-1] == f'step 7: {output / "model.safetensors"} and config.json'
  found = pretrained.Source(str(output / 'model.safetensors')).variables
  jax.tree.map(np.testing.assert_array_equal, found, {'params': state.params, 'batch_stats': state.batch_stats})


def test_bad_input_is_one_line(program, small, saved, tmp_path):
  saved(small())
  workdir = f'--workdir={tmp_path / "run"}'
  for arguments, said in (
    ([workdir, '--format=safetensors'], 'error: torchvision has no resnet of depth 8'),
    ([workdir, f'--output={tmp_path / "run"}'], 'is the workdir, which has a config.json of its own'),
    ([workdir, '--config=configs/digits_resnet20.py'], 'this program takes no --config'),
    ([], 'give --workdir=<folder of a dnt run>'),
  ):
    code, output = program(*arguments)
    assert code == 2, output
    assert said in output
    assert len(output.splitlines()) == 1, output
