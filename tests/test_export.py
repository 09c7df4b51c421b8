"""The program: what it writes, and what it refuses."""

import json
import sys

import jax
import numpy as np
import pytest
from jax import export

from dnt import checkpoints, experiment, initial
from dnt.parallel import mesh as mesh_lib
from dnt.transfer import pretrained


@pytest.fixture
def program(start):
  """Runs `python -m dnt.export`: (exit code, output)."""

  def run(*arguments):
    process = start([sys.executable, '-m', 'dnt.export', *map(str, arguments)])
    output, _ = process.communicate(timeout=240)
    return process.returncode, output

  return run


@pytest.fixture
def saved(config_file, load_config, tmp_path, one_device):
  """Saves a run's first state, its average moved on, without training; returns config file, experiment and state."""

  def save(**options):
    path = config_file('exported', {'model.scan': False, **options})
    config = load_config(path)
    data = experiment.load_data(config, ())
    run = experiment.make(experiment.resolve(config, data), data.spec)
    mesh = mesh_lib.make_mesh(config.mesh)
    with_own = checkpoints.Checkpoints(tmp_path / 'run', config.checkpoint)
    state, _ = initial.state(run, mesh, with_own)
    state = state.replace(step=state.step + 7, ema=jax.tree.map(lambda leaf: leaf * 0.5, state.ema))
    with_own.save(7, state, {}, None)
    with_own.close()
    return path, run, state

  return save


def test_stablehlo_with_the_averaged_weights(program, saved, tmp_path):
  config, run, state = saved()
  code, output = program(f'--config={config}', f'--workdir={tmp_path / "run"}')
  assert code == 0, output
  folder = tmp_path / 'run' / 'export'
  assert output.splitlines()[-1] == f'step 7 (averaged weights): {folder / "model.stablehlo"} and model.json'
  called = export.deserialize(bytearray((folder / 'model.stablehlo').read_bytes()))
  pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
  want = jax.jit(lambda x: run.model.apply(state.ema, run.preprocess({'image': x}, None), train=False))(pictures)
  np.testing.assert_allclose(called.call(pictures), want, rtol=0, atol=1e-5 * np.abs(want).max())
  assert json.loads((folder / 'model.json').read_text())['class_names'] == list(run.spec.class_names)


def test_safetensors_are_read_back(program, saved, tmp_path):
  options = {'model.stem': 'imagenet', 'model.depth': 18, 'ema.decay': 0.0, 'data.augment': 'none'}
  config, _, state = saved(**options)
  output = tmp_path / 'out'
  code, said = program(
    f'--config={config}', f'--workdir={tmp_path / "run"}', '--format=safetensors', f'--output={output}'
  )
  assert code == 0, said
  assert said.splitlines()[-1] == f'step 7: {output / "model.safetensors"} and config.json'
  found = pretrained.load(str(output / 'model.safetensors')).variables
  jax.tree.map(np.testing.assert_array_equal, found, {'params': state.params, 'batch_stats': state.batch_stats})


def test_bad_input_is_one_line(program, saved, tmp_path):
  config, *_ = saved()
  workdir = tmp_path / 'run'
  for arguments, said in (
    (['--format=safetensors'], 'error: torchvision has no resnet of depth 8'),
    ([f'--output={workdir}'], 'is the workdir, which has a config.json of its own'),
  ):
    code, output = program(f'--config={config}', f'--workdir={workdir}', *arguments)
    assert code == 2, output
    assert said in output
    assert len(output.splitlines()) == 1, output
