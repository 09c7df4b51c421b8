"""What the processes of one run must have alike; `tests/test_devices.py` runs two real ones."""

import contextlib
import pathlib
import re
import sys
from typing import NamedTuple

import pytest

from dnt import config as schema
from dnt.config import keys
from dnt.parallel import agreement

FILE = pathlib.Path(__file__).parents[2] / 'configs' / 'digits_resnet20.py'


@pytest.fixture
def differences():
  """Compares two processes, the second of which has a config and code that `change` changes."""

  def compare(change, others=({}, {}), file=FILE):
    config = schema.default()
    first = agreement.describe(config, FILE, others[0])
    change(config)
    return agreement.differences([first, agreement.describe(config, file, others[1])])

  return compare


def test_equal_processes_agree(differences):
  assert differences(lambda config: None) == ''


@pytest.mark.parametrize(
  ('key', 'value', 'said'),
  [
    ('optim.learning_rate', 0.25, r'config.optim.learning_rate is [\d.]+ on process 0 and 0.25 on process 1'),
    ('seed', 3, 'config.seed is 0 on process 0 and 3 on process 1'),
    ('data.seed', 3, 'config.data.seed'),
    ('train.steps', 7, 'config.train.steps is null on process 0 and 7 on process 1'),
    ('train.batch_size', 64, 'config.train.batch_size'),
    ('train.log_every', '7', 'config.train.log_every'),
    ('mesh.fsdp', 2, 'config.mesh.fsdp'),
    ('eval.splits', ('test',), r'config.eval.splits is .*"test"'),
    ('data.source', 'synthetic', 'config.data.source is "digits" on process 0 and "synthetic" on process 1'),
    ('train.init_from', '/weights', 'config.train.init_from is false on process 0 and true on process 1'),
  ],
)
def test_a_key_that_differs_is_named_with_both_values(differences, key, value, said):
  found = differences(lambda config: keys.put(config, key, value))
  assert found.count(' is ') == 1
  assert re.search(said, found), found


@pytest.mark.parametrize(
  ('key', 'value'),
  [('data.dir', '/other'), ('data.workers', 7), ('finetune.cache_dir', '/other'), ('model.folder', '/other')],
)
def test_paths_and_workers_may_differ(differences, key, value):
  assert differences(lambda config: keys.put(config, key, value)) == ''


@pytest.mark.parametrize(
  ('key', 'first', 'second', 'differ'),
  [
    ('data.source', 'folder:/here', 'folder:/there', False),
    ('data.source', 'tfds:mnist', 'tfds:cifar10', True),
    ('train.init_from', '/here', '/there', False),
  ],
)
def test_a_folder_may_stand_elsewhere_but_a_name_says_what_is_read(key, first, second, differ):
  config, descriptions = schema.default(), []
  for value in (first, second):
    keys.put(config, key, value)
    descriptions.append(agreement.describe(config, FILE, {}))
  assert bool(agreement.differences(descriptions)) == differ


def test_other_versions_are_named(differences):
  assert 'the version of jax is "1" on process 0 and "2"' in differences(
    lambda config: None, ({'the version of jax': '1'}, {'the version of jax': '2'})
  )


def test_other_code_is_named(differences, monkeypatch, tmp_path):
  other = tmp_path / 'mine.py'
  other.write_text(FILE.read_text() + '# more\n')
  assert 'the config file is ' in differences(lambda config: None, file=other)
  assert 'the config file is ' in differences(lambda config: None, file=pathlib.Path(f'{other}:an/argument'))
  (tmp_path / '__init__.py').touch()
  found = differences(lambda config: monkeypatch.setattr(agreement, 'PACKAGE', tmp_path))
  assert 'the file dnt/__init__.py is ' in found and ' more. ' in found


def test_the_code_of_ones_own_network_is_compared(own_network, tmp_path):
  first = agreement.describe(own_network, FILE, {})
  path = tmp_path / 'own_network.py'
  path.write_text(path.read_text() + '# more\n')
  found = agreement.differences([first, agreement.describe(own_network, FILE, {})])
  assert 'the file own_network.py is ' in found and found.count(' is ') == 1


def test_what_ones_own_network_imports_from_beside_it_is_compared(own_network, tmp_path, monkeypatch):
  """Also if only `model.folder` says where, and of a module in a package; files that it does not import are free."""
  monkeypatch.setattr('sys.path', sys.path[1:])
  folder = tmp_path / 'networks'
  (folder / 'package' / 'deeper').mkdir(parents=True)
  (folder / 'module_beside.py').write_text('import numpy\nfrom helper_beside import width\n')
  (folder / 'package' / 'deeper' / 'module.py').write_text('def build():\n  import helper_beside\n')
  (folder / 'helper_beside.py').write_text('from deeper_beside import width\n')
  for name, own in (('module_beside', 'module_beside.py'), ('package.deeper.module', 'package/deeper/module.py')):
    own_network.model.update({'name': f'{name}:Net', 'folder': str(folder)})
    for file, said in ((own, True), ('helper_beside.py', True), ('deeper_beside.py', True), ('stray.py', False)):
      (folder / file).touch()
      first = agreement.describe(own_network, FILE, {})
      with (folder / file).open('a') as stream:
        stream.write('# more\n')
      found = agreement.differences([first, agreement.describe(own_network, FILE, {})])
      assert (f'the file {file} is ' in found) == said and found.count(' is ') == said


@pytest.mark.parametrize('name', ['sys', 'absent_module'])
def test_a_module_without_files_is_left_to_the_import(own_network, name):
  own_network.model.name = f'{name}:Net'
  assert not any(key.endswith(f' {name}.py') for key in agreement.describe(own_network, FILE, {}))


class Device(NamedTuple):
  process_index: int
  platform: str = 'cpu'
  device_kind: str = 'cpu'


H100, H200 = ('gpu', 'NVIDIA H100'), ('gpu', 'NVIDIA H200')


@pytest.mark.parametrize(
  ('devices', 'said'),
  [
    ([(0,), (1,), (2,)], ''),
    ([(0, *H100), (0, *H200), (1, *H200), (1, *H100), (2, *H100), (2, *H200)], ''),
    ([(0,), (1,), (1,), (2,)], '1 cpu on processes 0, 2 and 2 cpu on process 1'),
    ([(0, *H200), (2, *H100), (1, *H200)], ''),
    (
      [(0, *H200), (2, *H100), (1, *H200), (1, *H200)],
      r'1 gpu \(NVIDIA H200\) on process 0 and 2 gpu \(NVIDIA H200\) on',
    ),
    ([(0, *H200), (1, *H200)], r'1 gpu \(NVIDIA H200\) on processes 0, 1 and no gpu on process 2'),
  ],
)
def test_processes_have_equal_devices(devices, said):
  expected = pytest.raises(agreement.DifferenceError, match=f'the devices are {said}')
  with expected if said else contextlib.nullcontext():
    agreement.check_devices([Device(*each) for each in devices], 3)


def test_processes_with_one_value_are_listed_together():
  found = agreement.differences([{'a': 1}, {'a': 2}, {'a': 1}, {}])
  assert 'a is 1 on processes 0, 2 and 2 on process 1 and missing on process 3' in found
