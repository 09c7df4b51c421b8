"""A workdir with checkpoints."""

import pathlib
import shutil

import pytest

from tests.checkpoints import states


@pytest.fixture(scope='module')
def pristine(tmp_path_factory):
  """A workdir with checkpoints 1, 2 and 3; tests damage copies of it."""
  workdir = tmp_path_factory.mktemp('run')
  states.save(workdir, [1, 2, 3])
  return workdir


@pytest.fixture
def run(pristine, tmp_path):
  return pathlib.Path(shutil.copytree(pristine, tmp_path / 'run'))
