"""README and docs: commands that need no network run as printed, on small data; others are parsed; links, imports."""

import ast
import importlib
import importlib.util
import json
import logging
import pathlib
import re
import shlex
import shutil
import struct
import sys
import textwrap

import jax
import numpy as np
import pytest
from PIL import Image

import dnt
from dnt import checkpoints, cli, compare, config, inference, main
from dnt.comparison import plan
from dnt.training import datasets, experiment, open_options

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
PAGES = {
  path.relative_to(ROOT): path.read_text() for path in (ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')))
}
# What else is given to the commands of a row to be small; those of `files` are small already. A row that is not
# here needs the network, other files or minutes, or is a comparison, which starts processes: it is parsed.
RUNS = {
  'see all configs, models and data sources': (),
  'see every flag and config key of a training run, with defaults': (),
  'train a config': (),
  'change it': ('--config.train.epochs=1',),
  'go on with another batch size': ('--config.train.epochs=3',),
  'train on all images, with test curves, as papers do': (),
  'evaluate the newest checkpoint': (),
  'evaluate, predict, explain or export the best checkpoint, or one by its step': (),
  'evaluate it on a labelled test set in a folder of its own': ('--config.data.source=folder:images/test',),
  'train on MNIST or Fashion-MNIST files': (),
  'train on a folder of class folders': ('--config.data.image_size=8',),
  'fine-tune any pretrained network on such a folder': (),
  'classify images': (),
  'list the images of a split, those that are most wrong first': (),
  'explain predictions with class activation maps': (),
  'show the top-activating images of the last entry with a spatial output': (),
  'train on Stanford Cars, as unpacked archives or class folders': ('--config.data.image_size=8',),
  'augment more': (),
  'give unequal classes the same weight': (),
  'train on 20 images of each class': ('--config.data.images_per_class=5',),
  'start from another run': (),
  'train only the head, the last two blocks, or all in phases': ('--config.train.init_from=runs/other',),
  'find the learning rate at the start of the run': ('--config.lr_find.steps=20',),
  'use smaller learning rates further from the head': (),
  'examine a network before training it': ('--seeds=1', '--seconds=5'),
  'say what went wrong in a run, and when': (),
  'measure random networks against mean field theory': (
    '--config.signal.depths=(2,)',
    '--config.signal.width=8',
    '--config.signal.seeds=1',
    '--config.signal.singular_values=0',
  ),
  'find a learning rate, also of single parts': ('--config.lr_find.steps=20',),
  'list the units that never fire, measure the gradient noise': (),
  'list or empty the cache of features': (),
  'scan deep stages (fast compilation)': (),
  'export the newest checkpoint': (),
}
CONTINUES = {
  'go on with another batch size',
  'evaluate the newest checkpoint',
  'evaluate, predict, explain or export the best checkpoint, or one by its step',
  'evaluate it on a labelled test set in a folder of its own',
  'list the units that never fire, measure the gradient noise',
}
PLACES = {
  '<image, folder or glob>': 'images/test',
  '<Fashion-MNIST>': 'idx',
  '<weights>': 'runs/other',
  '<folder>': 'maps',
  '<name>': 'mnist',
  '<tfds dir>': 'tfds',
  '<your config>': 'configs/digits_resnet20.py',
  '<your comparison>': 'configs/compare_init.py',
  '<run>': 'runs/mine',
  '--images=photos': '--images=images/test',
  '--images=...': '--images=images/test',
  '--weights=...': '--weights=runs/other',
  'idx:<dir>': 'idx:idx',
  '<dir>': 'images',
}
# A config of dnt with few images and steps, and a small network.
SMALL = """
import runpy
from dnt import config as schema

def get_config():
  config = runpy.run_path({path!r})['get_config']()
  training = config.get('base', config)
  if schema.kind(config) == 'signal':
    return config
  if training.data.source.partition(':')[0] not in ('folder', 'idx'):
    training.data.source, training.data.image_size = 'folder:images', 8
  if training.model.name in ('resnet', 'plain'):
    training.model.name, training.model.depth, training.model.width = 'plain', 8, 4
  training.data.workers = 0
  training.train.steps, training.train.epochs, training.train.batch_size = None, 2.0, 8
  return config
"""


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


def idx(array):
  return struct.pack(f'>BBBB{array.ndim}I', 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """A folder with small copies of dnt's configs, images and IDX files, and with runs `mine` and `other`."""
  folder, draw = tmp_path_factory.mktemp('readme'), np.random.default_rng(0)
  for name in ('configs', 'idx'):
    (folder / name).mkdir()
  for path in cli.CONFIGS.glob('*.py'):
    (folder / 'configs' / path.name).write_text(SMALL.format(path=str(path)))
  for split, name, count in (('train', 'train', 12), ('test', 't10k', 4)):
    for label in ('cat', 'dog'):
      (folder / 'images' / split / label).mkdir(parents=True)
      for i in range(count):
        image = draw.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(image).save(folder / 'images' / split / label / f'{i}.png')
    (folder / 'idx' / f'{name}-images-idx3-ubyte').write_bytes(idx(draw.integers(0, 256, (20, 8, 8), np.uint8)))
    (folder / 'idx' / f'{name}-labels-idx1-ubyte').write_bytes(idx(np.arange(20, dtype=np.uint8) % 10))
  devices, level = jax.devices()[:1], logging.getLogger().level
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    patch.setattr(sys, 'path', [*sys.path])
    patch.setattr(jax, 'devices', lambda: devices)
    patch.setattr('dnt.parallel.cpu.allocator.tune', lambda: None)
    with pytest.raises(SystemExit) as ended:
      cli.run(main.PROGRAM, arguments(TRAIN))
  logging.getLogger().setLevel(level)  # `own_log_level` begins after fixtures of a module
  assert not ended.value.code
  shutil.copytree(folder / 'runs' / 'mine', folder / 'runs' / 'other')
  return folder


@pytest.fixture
def here(files, tmp_path, monkeypatch):
  """A copy of `files` as the current folder and home of the user."""
  shutil.copytree(files, tmp_path, dirs_exist_ok=True)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setattr(sys, 'path', ['', *sys.path])


def parse(command):
  """Parses a command as its program does; a benchmark or launcher must exist."""
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


def test_what_the_first_page_installs_has_the_versions_that_were_tested():
  section = README.partition('\n## Two commands\n')[2].partition('\n## ')[0]
  commands = re.findall(r'pip install -?\S+ ?[^`\n]*', section)
  assert len(commands) == 3 and any('jax[cuda13]' in command for command in commands)
  assert all('-c constraints-$(python3 -V' in command for command in commands)


@pytest.mark.parametrize('title', ROWS)
def test_the_commands_of_a_row_are_parsed(title, monkeypatch):
  monkeypatch.chdir(ROOT)
  for command in ROWS[title]:
    parse(command)


def test_what_follows_a_comparison_reads_the_folder_that_it_writes(monkeypatch):
  monkeypatch.chdir(ROOT)
  read = []
  for first, *others in filter(None, ROWS.values()):
    if others and first.startswith('python -m dnt.compare'):
      folder = compare.find_workdir(cli.parse(compare.PROGRAM, arguments(first)))
      read += [(pathlib.Path(word), folder) for each in others for word in each.split() if word.startswith('runs/')]
  assert read and all(word == folder for word, folder in read)


def test_the_commands_of_docs_are_parsed(monkeypatch):
  monkeypatch.chdir(ROOT)
  found = []
  for path, text in PAGES.items():
    if path.parent.name == 'docs':
      found += re.findall(r'(?m)(?:^    |`)(python -m [^`#\n]+)', re.sub(r' \\\n +', ' ', text))
  for command in found:
    parse(command)
  assert len(found) > 10


@pytest.mark.parametrize('page', PAGES, ids=str)
def test_links_and_options_of_a_page_exist(page):
  for path, heading in re.findall(r'\]\(([^)#:]*)#?([^)]*)\)', PAGES[page]):
    target = ROOT / page.parent / path if path else ROOT / page
    assert target.is_file(), path
    titles = re.findall(r'(?m)^#+ (.*)', target.read_text()) if heading else ()
    assert not heading or heading in {re.sub('[^a-z0-9 -]', '', title.lower()).replace(' ', '-') for title in titles}
  named = re.findall(r'`([a-z]+)\.([a-z0-9_]+)(?:=[^`]*)?`', PAGES[page])
  options = {each for each in named if isinstance(config.SCHEMA.get(each[0]), dict) and each[1] not in ('json', 'png')}
  assert all(key in config.SCHEMA[section] for section, key in options), options


def imported(path):
  """Returns the folders and files of dnt that a module imports."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and (node.module or '').partition('.')[0] == 'dnt':
      inside = node.module.split('.')[1:2]
      found.update(inside or [each.name for each in node.names])
  return found


def test_imports_run_from_top_to_bottom_of_the_list():
  listed = re.findall(r'(?m)^    dnt/(\w+)/|(\w+)\.py', README.partition('## The code\n')[2].partition('\n\n')[2])
  places = {folder or file: place for place, (folder, file) in enumerate(listed)}
  for path in sorted(pathlib.Path(dnt.__file__).parent.rglob('*.py')):
    name = path.relative_to(pathlib.Path(dnt.__file__).parent).parts[0].removesuffix('.py')
    if name != '__init__':  # `dnt.train` is there for users
      up = {other for other in imported(path) & places.keys() if places[other] < places[name]}
      assert not up, f'{path} imports {up}'


@pytest.mark.thorough
@pytest.mark.usefixtures('here', 'undrawn')
@pytest.mark.parametrize('title', RUNS)
def test_the_commands_of_a_row_run(title, run_here):
  for number, command in enumerate(ROWS[title]):
    name, *given = arguments(command)
    # A command that trains something else than the run at hand has a workdir of its own.
    apart = () if title in CONTINUES or not command.startswith('...') else (f'--workdir=runs/new{number}',)
    code, output = run_here(name.removeprefix('dnt.'), *given, *apart, *RUNS[title])
    assert code == 0, f'{command}: {output}'


def test_the_lines_of_python_train(tmp_path, monkeypatch):
  lines = textwrap.dedent(README.partition('From Python')[2].partition('\n\n')[2].partition('\n\n`dnt.train`')[0])
  given = []
  monkeypatch.setattr(dnt, 'train', lambda *arguments: given.append(arguments))
  exec(lines, {})
  ((run, workdir),) = given
  config.validate(run)
  data = datasets.load(run, run.eval.splits)
  assert experiment.make(open_options.resolve(run, data), data.spec).config.data.source == 'digits'
  assert workdir == 'runs/mine'


def test_the_comparison_of_docs_can_be_run(tmp_path):
  section = PAGES[pathlib.Path('docs/runs.md')].partition('\n## Your own comparison\n')[2].partition('\n## ')[0]
  names = {}
  exec(textwrap.dedent('\n'.join(line for line in section.splitlines() if line.startswith('    ') or not line)), names)
  comparison = names['get_config']()
  config.validate(comparison)
  (form,) = comparison.forms
  runs = plan.make(comparison, tmp_path, form)
  assert [run.name for run in runs] == [f'{name} seed {seed}' for seed in range(3) for name in ('sgd', 'adamw')]
  assert (runs[1].config.optim.name, runs[1].config.train.epochs) == ('adamw', 1.0)
  plan.check_data(runs, ranking=comparison.columns[0])


def lines_of(page, call):
  """Returns the code of a page that holds a call."""
  (code,) = (block for block in re.findall(r'(?m)(?:^    .*\n)+', page) if call in block)
  return textwrap.dedent(code)


def test_the_lines_of_python_load(trained, tmp_path, monkeypatch):
  (tmp_path / 'runs').mkdir()
  (tmp_path / 'runs' / 'mine').symlink_to(trained.workdir)
  (tmp_path / 'photos').mkdir()
  pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
  for number, image in enumerate(pixels):
    Image.fromarray(image).save(tmp_path / 'photos' / f'{number}.png')
  monkeypatch.chdir(tmp_path)
  found = [{'dnt': dnt, 'images': pixels}, {'dnt': dnt, 'inference': inference}]
  for names, page in zip(found, (README, PAGES[pathlib.Path('docs/networks.md')]), strict=True):
    exec(lines_of(page, 'dnt.load('), names)
  data = json.loads((trained.workdir / 'config.json').read_text())['data']
  x = ((pixels / 255 - data['mean']) / data['std']).astype(np.float32)
  averaged = checkpoints.load_parameters(trained.workdir, 4).ema
  want = found[0]['net'].model.apply(averaged, x, train=False)
  for names in found:
    np.testing.assert_allclose(names['logits'], want, rtol=1e-4, atol=1e-5)
