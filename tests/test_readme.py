"""README's table of commands: all are parsed, with the config that each names."""

import importlib
import importlib.util
import pathlib
import re
import shlex
import textwrap

import pytest

import dnt
from dnt import cli, config
from dnt.training import experiment

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
PLACES = {
  '<image, folder or glob>': 'images/test',
  '<Fashion-MNIST>': 'idx',
  '<weights>': 'runs/other',
  '<name>': 'mnist',
  '<tfds dir>': 'tfds',
  '--images=photos': '--images=images/test',
  '--images=...': '--images=images/test',
  '--weights=...': '--weights=runs/other',
  'idx:<dir>': 'idx:idx',
  '<dir>': 'images',
}


def rows():
  """Returns the table: what a row is for, and its commands."""
  table = README.partition('\n## How to\n')[2].partition('\nFrom Python')[0]
  cells = [re.split(r' *\| *', line.strip('| ')) for line in table.splitlines() if line.startswith('| ')]
  return {title: commands(text) for title, text in cells[2:]}


def commands(text):
  """Returns the commands of a cell in full: code that starts with = or -- changes or extends the first one."""
  found = []
  for code in re.findall('`([^`]+)`', text):
    if code.startswith('='):
      found.append(found[0].rpartition('=')[0] + code)
    elif code.startswith('--weights'):
      found.append(re.sub(r'--workdir=\S+', code, found[0]))
    elif code.startswith('--'):
      found.append(f'{found[0]} {code}')
    elif code.startswith(('python -m ', '... ', 'launch/', 'benchmarks.')):
      found.append(code)
  return found


ROWS = rows()
TRAIN = ROWS['train a config'][0]


def arguments(command):
  """Returns `dnt.<program>` and its arguments; `...` is the command that trains a config."""
  for place, path in PLACES.items():
    command = command.replace(place, path)
  words = shlex.split(command.replace('...', TRAIN, 1) if command.startswith('...') else command)
  assert words[:2] == ['python', '-m'] and words[2].startswith('dnt.')
  return words[2:]


@pytest.mark.parametrize('title', ROWS)
def test_the_commands_of_a_row_are_parsed(title, monkeypatch):
  monkeypatch.chdir(ROOT)
  for command in ROWS[title]:
    if command.startswith(('benchmarks.', 'python -m benchmarks.')):
      assert importlib.util.find_spec(command.removeprefix('python -m ').split()[0])
    elif command.startswith('launch/'):
      assert (ROOT / command.split()[0]).is_file()
    else:
      name, *given = arguments(command)
      program = importlib.import_module(name).PROGRAM
      values = cli.parse(program, [name, *(flag for flag in given if flag != '--help')])
      if program.kinds:
        cli.config(values)


def test_the_lines_of_python_train(tmp_path, monkeypatch):
  lines = textwrap.dedent(README.partition('From Python')[2].partition('\n\n')[2].partition('\n\n`dnt.train`')[0])
  given = []
  monkeypatch.setattr(dnt, 'train', lambda *arguments: given.append(arguments))
  exec(lines, {})
  ((run, workdir),) = given
  config.validate(run)
  data = experiment.load_data(run, run.eval.splits)
  assert experiment.make(experiment.resolve(run, data), data.spec).config.data.source == 'digits'
  assert workdir == 'runs/mine'
