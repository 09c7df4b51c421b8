import subprocess
import sys

import pytest

from dnt import errors
from dnt.parallel import cpu


def test_all_are_on_but_those_that_the_variable_lists(monkeypatch):
  monkeypatch.delenv(cpu.VARIABLE, raising=False)
  assert all(map(cpu.uses, cpu.TRICKS))
  monkeypatch.setenv(cpu.VARIABLE, 'barriers,allocator')
  assert [trick for trick in cpu.TRICKS if not cpu.uses(trick)] == ['allocator', 'barriers']


def test_an_unknown_one_is_refused(monkeypatch):
  monkeypatch.setenv(cpu.VARIABLE, 'barrier')
  with pytest.raises(errors.InputError, match="DNT_CPU_WITHOUT.*'barriers'"):
    cpu.check()


def test_the_door_does_not_import_jax():
  code = "import sys; from dnt.parallel.cpu import allocator; assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, '-c', code], check=True)
