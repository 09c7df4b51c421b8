"""Configs as the programs check them."""

import ml_collections
import pytest

from dnt import cli, errors
from dnt import config as schema
from dnt.config import relations


@pytest.fixture
def parse():
  """`parse(program, *flags)`: the validated config of a command line of a program."""

  def config(program, *flags, running=relations.TRAINING):
    return cli.config(cli.parse(program, ['program', *flags]), running)

  return config


@pytest.fixture(scope='session')
def refusal():
  """`refusal(key, value)`: the message with which `validate` refuses the value, or None."""

  def message(key, value):
    config = ml_collections.ConfigDict(schema.default().to_dict())  # which converts nothing
    *sections, name = key.split('.')
    section = config
    for part in sections:
      section = section[part]
    del section[name]  # so that the new value is neither checked nor converted before
    section[name] = value
    try:
      schema.validate(config)
    except errors.InputError as error:
      return str(error)
    return None

  return message
