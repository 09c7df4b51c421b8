import logging

import pytest

from dnt.parallel import compile as compile_lib
from dnt.parallel import cpu
from dnt.parallel.cpu import options


@pytest.fixture(autouse=True)
def fresh():
  """The options are computed once a process; here, once a test."""
  options.find.cache_clear()
  yield
  options.find.cache_clear()


@pytest.mark.parametrize('version', ['0.10.1', '0.12.1', '1.0'])
def test_an_untested_version_gets_defaults_and_one_warning(monkeypatch, caplog, version):
  monkeypatch.setattr(options.jax, '__version__', version)
  assert options.find() is None
  assert options.find() is None
  assert [record.levelno for record in caplog.records] == [logging.WARNING]
  assert version in caplog.text and 'untested' in caplog.text
  assert compile_lib.jit(lambda x: x + 1)(1) == 2


def test_a_tested_version_gets_its_options_without_a_warning(monkeypatch, caplog):
  monkeypatch.setattr(options.jax, '__version__', '0.10.2')
  assert options.find() == options.OPTIONS['0.10.2']
  assert not caplog.records


def test_they_can_be_turned_off(monkeypatch):
  monkeypatch.setattr(options.jax, '__version__', '0.10.2')
  monkeypatch.setenv(cpu.VARIABLE, 'options')
  assert options.find() is None
