"""Errors of config files."""

import re
import sys

import pytest

from dnt import errors, main


def test_a_config_file_that_fails_is_named_with_its_reason(tmp_path, parse):
  path = tmp_path / 'broken.py'
  path.write_text("def get_config():\n  raise ValueError('no such machine')\n")
  with pytest.raises(errors.InputError, match=r'broken\.py.* (ValueError: )?no such machine$'):
    parse(main.PROGRAM, f'--config={path}')


def config_file(folder, lines, kind='train'):
  path = folder / 'mine.py'
  path.write_text(
    f'import dnt.config\n\ndef get_config():\n  config = dnt.config.default({kind!r})\n  {lines}\n  return config\n'
  )
  return path


@pytest.mark.parametrize(
  ('line', 'said'),
  [
    ('config.optim.lr = 0.1', "unknown config key 'optim.lr'; did you mean 'optim.learning_rate'"),
    ("config['optim']['lr'] = 0.1", "unknown config key 'optim.lr'; did you mean 'optim.learning_rate'"),
    ('config.optim.update(lr=0.1)', "unknown config key 'optim.lr'; did you mean 'optim.learning_rate'"),
    ("config.update({'optim': {'lr': 0.1}})", "unknown config key 'optim.lr'; did you mean 'optim.learning_rate'"),
    ("config.update({'optim.lr': 0.1})", "unknown config key 'optim.lr'; did you mean 'optim.learning_rate'"),
    ("config.update({'optim.momentum': 0.1})", 'config.optim.momentum = '),
    ('print(config.optim.lr)', "unknown config key 'optim.lr'; did you mean 'optim.learning_rate'"),
    ('config.optimm.momentum = 0.1', "unknown config key 'optimm'; did you mean 'optim'"),
    ('config.epochs = 3', "unknown config key 'epochs'; did you mean 'train.epochs'"),
    ("config.model.depth = 'ten'", r"config.model.depth must be int, not str \('ten'\)"),
    ('config.train.steps = 2.5', 'config.train.steps must be int, not float'),
    ('config.model = 3', 'config.model must be a section, not int'),
    ("config.model.initializer = 'xavier'", "config.model.initializer 'xavier'; did you mean 'glorot'"),
    ("config['model']['initializer'] = 'xavier'", "config.model.initializer 'xavier'; did you mean 'glorot'"),
    ("config.model.update(initializer='xavier')", "config.model.initializer 'xavier'; did you mean 'glorot'"),
    ('config.train.steps = -1', 'config.train.steps=-1 must be at least 1'),
    ('config.train.steps = 1 / 0', 'division'),
  ],
)
def test_an_error_of_a_config_file_has_its_line_and_what_is_valid(line, said, tmp_path, parse):
  path = config_file(tmp_path, line)
  with pytest.raises(errors.InputError, match=f'^{re.escape(str(path))}:5: .*{said}') as refused:
    parse(main.PROGRAM, f'--config={path}')
  assert '\n' not in str(refused.value)


@pytest.mark.parametrize(
  ('line', 'said'),
  [
    ('config.epochs = 3', 'Key "epochs" does not exist and cannot be added since the config is locked.'),
    (
      'config.optimm = 3',
      'Key "optimm" does not exist and cannot be added since the config is locked. '
      'Did you mean "optim" instead of "optimm"?',
    ),
    ('config.seed = config.model', "Could not override field 'seed' (reference)."),
    ('config.seed = "a" * 400', "Could not override field 'seed' (reference)."),
  ],
)
def test_an_error_of_a_plain_config_dict_is_one_short_line_that_names_the_key(line, said, tmp_path, parse):
  path = config_file(tmp_path, f'import ml_collections; config = ml_collections.ConfigDict(config); {line}')
  with pytest.raises(errors.InputError) as refused:
    parse(main.PROGRAM, f'--config={path}')
  assert str(refused.value) == f'{path}:5: {said}'


@pytest.mark.parametrize(('encoding', 'first'), [('utf-8-sig', ''), ('latin-1', '# coding: latin-1, café')])
def test_an_error_of_a_config_file_of_any_encoding_has_its_line(encoding, first, tmp_path, parse):
  path = config_file(tmp_path, 'config.train.steps = -1')
  path.write_text(f'{first}\n{path.read_text()}', encoding)
  with pytest.raises(errors.InputError, match=f'^{re.escape(str(path))}:6: config.train.steps=-1 must be at least 1'):
    parse(main.PROGRAM, f'--config={path}')


@pytest.mark.parametrize('given', [(), ('--config.train.steps=3',)])
@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('def get_config():\n  config = default()\n', r'get_config\(\) in {path} returned None; return the config'),
    ('def get_config():\n  return default\n', r'get_config\(\) in {path} returned a value of type function; return'),
    ('def get_config():\n  return default(), 3\n', r'get_config\(\) in {path} returned a value of type tuple;'),
    ('import ml_collections\nconfig = default()\n', r'{path} has no function get_config\(\), which'),
    ('def get_config():\n  return open("/absent.txt")\n', "{path}:3: .*No such file or directory: '/absent.txt'"),
  ],
)
def test_a_config_file_without_a_config_is_named_with_what_it_lacks(text, said, given, tmp_path, parse, monkeypatch):
  monkeypatch.delitem(sys.modules, 'config_config', raising=False)  # a program reads one file
  path = tmp_path / 'mine.py'
  path.write_text(f'from dnt.config import default\n{text}')
  with pytest.raises(errors.InputError, match=f'^{said.format(path=re.escape(str(path)))}') as refused:
    parse(main.PROGRAM, f'--config={path}', *given)
  assert '\n' not in str(refused.value)


def test_an_error_of_a_compare_config_names_the_key_of_its_base(tmp_path, parse):
  path = config_file(tmp_path, 'config.base.optim.lr = 0.1', 'compare')
  with pytest.raises(errors.InputError, match=r":5: .*'base.optim.lr'; did you mean 'base.optim.learning_rate'"):
    parse(main.PROGRAM, f'--config={path}')


def test_an_error_of_the_command_line_names_no_line_of_the_file(tmp_path, parse):
  path = config_file(tmp_path, 'config.train.steps = 4')
  with pytest.raises(errors.InputError, match='^config.train.steps=-1 '):
    parse(main.PROGRAM, f'--config={path}', '--config.train.steps=-1')
