import os
import pathlib
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / 'launch'


@pytest.fixture
def fake(tmp_path):
  """Puts a program with the given bash text first in PATH; `fake.path` is that PATH."""
  folder = tmp_path / 'bin'
  folder.mkdir()

  def make(name, text):
    program = folder / name
    program.write_text(f'#!/bin/bash\n{text}\n')
    program.chmod(0o755)

  make.path = f'{folder}:{os.environ["PATH"]}'
  return make


@pytest.fixture
def launch(tmp_path, fake):
  """Runs a launcher in an empty folder."""

  def run(script, *arguments, path=fake.path, timeout=60, **environment):
    return subprocess.run(
      [LAUNCH / script, *arguments],
      cwd=tmp_path,
      env={**os.environ, 'PATH': path, **environment},
      capture_output=True,
      text=True,
      timeout=timeout,
      start_new_session=True,  # what a test interrupts as Ctrl-C does
    )

  return run
