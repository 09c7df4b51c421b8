"""The program: flags, what it leaves in the workdir, exit codes."""

import functools
import pathlib

import numpy as np
import pytest
from PIL import Image

from dnt.explanation import cam


@pytest.fixture
def program(run_here):
  """Runs `python -m dnt.explain`: (exit code, output)."""
  return functools.partial(run_here, 'explain')


def test_a_run_is_explained(program, own_network, saved, tmp_path):
  saved(own_network)
  picture = tmp_path / 'picture.png'
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 9, 3), np.uint8)).save(picture)
  workdir = tmp_path / 'run'
  given = [f'--workdir={workdir}', f'--images={picture}', '--exciting=test[:9]', '--top=2']
  code, output = program(*given, '--method=hires_cam', '--entry=body', '--target=4')
  assert code == 0, output
  last = output.splitlines()[-1]
  assert last.startswith('1 pictures: deletion ')
  assert last.endswith(f'searched the 9 pictures of test[:9]  {workdir / "explain"}')
  sheets = ['exciting_channels.png', 'exciting_classes.png', 'explained.png', 'overlay_001_picture.png']
  assert sorted(path.name for path in (workdir / 'explain').iterdir()) == sorted(
    [*sheets, 'explain.html', 'explain.json']
  )
  for name in sheets:
    with Image.open(workdir / 'explain' / name) as image:
      assert image.size[0] >= 800


def test_bad_flags_are_one_line(program, tmp_path):
  run = f'--workdir={tmp_path}'
  for arguments, said in (
    (['--images=x'], 'give one of them: --workdir='),
    ([run], 'give --images=<file, folder or glob>, --exciting=<split of the run>, or both'),
    (['--weights=tfjs:x', '--exciting=test', '--output=x'], 'it needs --workdir, not --weights'),
    ([run, '--exciting=test', '--target=cat'], '--target is the class of the maps of pictures: it needs --images'),
    ([run, '--images=x', '--top=3'], 'it needs --exciting'),
    (['--weights=tfjs:x', '--images=x'], 'give --output=<folder>'),
    ([run, '--images=x', '--method=gradcam'], 'grad_cam_plus_plus'),
  ):
    code, output = program(*arguments)
    assert code == 2, output
    assert said in output
    assert len(output.splitlines()) == 1, output


def test_methods_are_those_there_are():
  """Read off its source: its flags cannot be defined beside those of other programs."""
  source = (pathlib.Path(__file__).parents[1] / 'dnt' / 'explain.py').read_text()
  assert f'METHODS = {tuple(cam.METHODS)!r}' in source
