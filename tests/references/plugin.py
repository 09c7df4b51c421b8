"""The `torch_reference` fixture: what torch computes, from the files beside this one, so that tests need no torch.

`python tests/references/write.py` makes the files with torch.
"""

import functools
import io
import itertools
import pathlib
import zipfile

import numpy as np
import pytest

TESTS = pathlib.Path(__file__).parents[1]
OPTION = '--write-references'
SHARED = TESTS / 'references' / 'shared.npz'
_WRITTEN = {}  # by file and key: the arrays by name


def pytest_addoption(parser):
  parser.addoption(OPTION, action='store_true', help='run the tests that compare with torch, and keep what torch says')


def pytest_configure(config):
  if config.getoption(OPTION) and (config.getoption('numprocesses', None) or hasattr(config, 'workerinput')):
    raise pytest.UsageError(f'{OPTION} needs -n 0')


def pytest_collection_modifyitems(config, items):
  if config.getoption(OPTION):
    items[:] = [item for item in items if 'torch_reference' in item.fixturenames]


def pytest_sessionfinish(session, exitstatus):
  """Writes what was computed. After all tests of a file, or all there are, what none of them asked for goes."""
  if not session.config.getoption(OPTION):
    return
  given = session.config.args
  whole = exitstatus == 0 and not session.config.getoption('keyword') and not any('::' in name for name in given)
  everything = whole and [pathlib.Path(name).resolve() for name in given] == [TESTS]
  written = {path for path, _ in _WRITTEN}
  for path in written:
    old = {} if everything or (whole and path != SHARED) else _read(path)
    _write(path, old | {key: arrays for (of, key), arrays in _WRITTEN.items() if of == path})
  for path in (TESTS / 'references').rglob('*.npz'):
    if everything and path not in written:
      path.unlink()


@functools.cache
def _read(path):
  """`{key: {name: array}}` of a file; nothing if there is none."""
  references = {}
  if path.exists():
    with np.load(path) as file:
      for member in file.files:
        key, _, name = member.partition(' : ')
        references.setdefault(key, {})[name] = file[member]
  return references


def _write(path, references):
  """The same bytes for the same arrays, whenever they are written."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, 'w') as file:
    for key, arrays in sorted(references.items()):
      for name, array in arrays.items():
        content = io.BytesIO()
        np.lib.format.write_array(content, array, allow_pickle=False)
        member = zipfile.ZipInfo(f'{key} : {name}.npy')
        file.writestr(member, content.getvalue(), zipfile.ZIP_DEFLATED, 9)


def _to_arrays(result):
  """A result by names: an array has the name '', those of a sequence are numbers."""
  if isinstance(result, list | tuple):
    result = {str(place): value for place, value in enumerate(result)}
  if not isinstance(result, dict):
    result = {'': result}
  return {name: np.asarray(value.detach() if hasattr(value, 'detach') else value) for name, value in result.items()}


def _from_arrays(arrays):
  if list(arrays) == ['']:
    return arrays['']
  if list(arrays) == [str(place) for place in range(len(arrays))]:
    return list(arrays.values())
  return dict(arrays)


@pytest.fixture
def torch_reference(request):
  """`torch_reference(compute, name=None)`: what `compute(torch)` returned when the references were written.

  That is an array, a dict of them by name, or a list. With a name it belongs to all tests, which then must mean
  the same by it; without one to this call in this test.
  """
  calls = itertools.count()
  of_module = TESTS / 'references' / request.path.relative_to(TESTS).with_suffix('.npz')

  def get(compute, name=None):
    path = SHARED if name else of_module
    key = name or f'{request.node.name} {next(calls)}'
    if request.config.getoption(OPTION):
      if (path, key) not in _WRITTEN:
        import torch

        torch.set_num_threads(1)  # sums in one order
        _WRITTEN[path, key] = _to_arrays(compute(torch))
      return _from_arrays(_WRITTEN[path, key])
    if key not in _read(path):
      where = request.path.relative_to(TESTS.parent)
      pytest.fail(f'{path} holds no {key!r}; with torch: python tests/references/write.py {where}', pytrace=False)
    return _from_arrays(_read(path)[key])

  return get
