"""A user's own module beside its config file, in all programs, each started in another folder than the module's."""

import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from dnt.config import run_config

MODULE = """
import flax.linen as nn
from helpers_beside import width

class Net(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(width, (3, 3))(x))
    return nn.Dense(self.num_classes)(x.mean((1, 2)))
"""
CONFIG = """
from dnt import config as schema
from helpers_beside import width

def get_config():
  config = schema.default({kind!r})
  base = config{base}
  base.data.source = 'synthetic'
  base.data.synthetic_examples = 32
  base.data.image_size = 8
  base.model.name = 'net_beside:Net'
  base.train.batch_size = base.eval.batch_size = 16
  base.train.steps = width
  {more}
  return config
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
  """A folder with two configs and the module that they name; the programs start in another, empty folder."""
  folder = tmp_path / 'project'
  folder.mkdir()
  (folder / 'net_beside.py').write_text(MODULE)
  (folder / 'helpers_beside.py').write_text('width = 2\n')
  (folder / 'train.py').write_text(CONFIG.format(kind='train', base='', more=''))
  more = "config.variants, config.seeds = {'slow': {'optim.learning_rate': 0.01}}, (0,)"
  (folder / 'compare.py').write_text(CONFIG.format(kind='compare', base='.base', more=more))
  (tmp_path / 'elsewhere').mkdir()
  monkeypatch.chdir(tmp_path / 'elsewhere')
  return folder


@pytest.fixture
def start_anew(run_here, monkeypatch):
  """Runs a program as `run_here` does, with what a new process finds: no module of the project is imported."""
  path = list(sys.path)

  def run(*arguments):
    monkeypatch.setattr(sys, 'path', list(path))
    for name in ('net_beside', 'helpers_beside'):
      sys.modules.pop(name, None)
    return run_here(*arguments)

  yield run
  for name in ('net_beside', 'helpers_beside'):
    sys.modules.pop(name, None)


@pytest.mark.thorough
def test_every_program_finds_the_module_of_a_run(project, start_anew, tmp_path, monkeypatch, undrawn):
  config, run = f'--config={project}/train.py', f'--workdir={tmp_path}/run'
  code, output = start_anew('main', config, run)
  assert code == 0, output
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())['model']['folder'] == str(project)
  Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / 'image.png')
  images = f'--images={tmp_path}/image.png'
  for arguments in (
    ('main', config, run, '--config.train.steps=3'),
    ('main', f'--config={tmp_path}/run', run, '--mode=evaluate'),
    ('main', f'--config={tmp_path}/run', f'--workdir={tmp_path}/again'),
    ('predict', run, images),
    ('explain', run, images),
    ('export', run),
  ):
    code, output = start_anew(*arguments)
    assert code == 0, (arguments, output)

  shutil.move(project, tmp_path / 'moved')
  for arguments in (
    ('main', f'--config={tmp_path}/run', run, '--mode=evaluate'),
    ('predict', run, images),
    ('explain', run, images),
    ('export', run),
  ):
    code, output = start_anew(*arguments)
    assert code == 2 and f'{project} ' in output and 'moved' in output and 'PYTHONPATH' in output, output
    assert 'Traceback' not in output
  moved = f'{tmp_path}/moved'
  code, output = start_anew(
    'main', f'--config={tmp_path}/run', run, '--mode=evaluate', f'--config.model.folder={moved}'
  )
  assert code == 0, output
  code, output = start_anew('main', f'--config={moved}/train.py', run, '--config.train.steps=4')
  assert code == 0 and 'finished step 4' in output, output
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())['model']['folder'] == moved
  shutil.move(moved, tmp_path / 'again_moved')
  monkeypatch.setenv('PYTHONPATH', moved := f'{tmp_path}/again_moved')
  code, output = start_anew('predict', run, images)
  assert code == 0 and moved in output, output


@pytest.mark.thorough
def test_the_runs_of_a_comparison_find_the_module(project, run_program, tmp_path):
  arguments = ('dnt.compare', f'--config={project}/compare.py', f'--workdir={tmp_path}/all')
  code, output = run_program(*arguments)
  assert code == 0, output
  requested = tmp_path / 'all' / 'slow' / 'seed0' / 'requested.json'
  assert run_config.get_config(str(requested)).model.folder == str(project)
  moved = pathlib.Path(shutil.move(project, tmp_path / 'moved'))
  code, output = run_program(arguments[0], f'--config={moved}/compare.py', arguments[2])
  assert code == 0 and 'already finished' in output, output
