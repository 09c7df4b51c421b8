"""The program: flags, what it leaves in the workdir, exit codes."""

import functools
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from dnt.explanation import cam


@pytest.fixture
def program(run_here):
  """Runs `python -m dnt.explain`: (exit code, output)."""
  return functools.partial(run_here, 'explain')


def test_a_run_is_explained(program, trained_copy, tmp_path):
  original = tmp_path / 'picture.png'
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 9, 3), np.uint8)).save(original)
  workdir = trained_copy.workdir
  given = [f'--workdir={workdir}', f'--images={original}', '--exciting=test[:9]', '--top=2']
  code, output = program(*given, '--method=hires_cam', '--entry=stem', '--target=4')
  assert code == 0, output
  last = output.splitlines()[-1]
  assert re.match('1 image: .*deletion ', last)
  assert re.search(
    rf'\b9 .* test\[:9\]; by the newest .*step 4, averaged weights  {re.escape(str(workdir / "explain"))}$', last
  )
  sheets = ['explained.png', 'overlay_001_picture.png', 'top_activating_channels.png', 'top_activating_classes.png']
  assert {path.name for path in (workdir / 'explain').iterdir()} == {*sheets, 'explain.html', 'explain.json'}
  for name in sheets:
    with Image.open(workdir / 'explain' / name) as image:
      assert image.size[0] >= 800


@pytest.mark.thorough
def test_the_checkpoint_is_chosen_and_named(program, two_checkpoints):
  code, output = program(f'--workdir={two_checkpoints}', '--top_activating=test[:9]', '--checkpoint=best')
  assert code == 0, output
  assert '; by the best checkpoint of step 2, averaged weights' in output.splitlines()[-1]
  assert json.loads((two_checkpoints / 'explain' / 'explain.json').read_text())['step'] == 2


def test_bad_flags_are_one_line(program, tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  run = f'--workdir={tmp_path}'
  for arguments, said in (
    (['--images=x'], '--workdir=.* --weights='),
    ([run], '--images=<'),
    (['--weights=tfjs:x', '--top_activating=test', '--output=x'], '--workdir.* --weights'),
    ([run, '--top_activating=test', '--target=cat'], '--target .*--images'),
    ([run, '--images=x', '--top=3'], '--top.* --top_activating'),
    (['--weights=tfjs:x', '--images=x'], '--output=<folder>'),
    ([run, '--images=x', '--method=gradcam'], 'grad_cam_plus_plus'),
  ):
    code, output = program(*arguments)
    assert code == 2, output
    assert re.search(said, output)
    assert len(output.splitlines()) == 1, output


def test_methods_are_those_there_are():
  """Read off its source: its flags cannot be defined beside those of other programs."""
  source = (pathlib.Path(__file__).parents[1] / 'dnt' / 'explain.py').read_text()
  assert f'METHODS = {tuple(cam.METHODS)!r}' in source
