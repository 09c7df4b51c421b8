"""The trace of a few steps of a run: where it lies, and what it names."""

import contextlib
import gzip
import json

import jax
import pytest

from dnt import loop
from dnt.training import record

pytestmark = pytest.mark.usefixtures('undrawn')


def trace(workdir):
  """The events of the trace, which Perfetto opens."""
  (path,) = workdir.glob('profile/plugins/profile/*/*.trace.json.gz')
  return json.loads(gzip.decompress(path.read_bytes()))['traceEvents']


@pytest.mark.parametrize('dispatch', [1, 4])
def test_a_profile_names_the_step_program_and_the_steps(tiny, tmp_path, console, dispatch):
  tiny.train.steps, tiny.train.steps_per_dispatch, tiny.eval.every, tiny.checkpoint.every = 24, dispatch, '0', '0'
  tiny.telemetry.every, tiny.train.log_every = '0', '4'
  loop.train(tiny, tmp_path, record.Clock(0.0), 'test', profile=3)
  events = trace(tmp_path)
  steps = sorted(int(event['args']['step_num']) for event in events if event.get('name') == 'train')
  assert steps == ([10, 11, 12] if dispatch == 1 else [12])
  assert any('train_steps' in event.get('name', '') for event in events)
  (plane,) = tmp_path.glob('profile/plugins/profile/*/*.xplane.pb')
  assert b'jit_train_steps' in plane.read_bytes()
  assert f'is in {tmp_path / "profile"}' in console.readouterr().out


def test_a_short_run_is_profiled_and_one_of_a_single_step_is_not(tiny, tmp_path, console):
  tiny.train.steps_per_dispatch, tiny.eval.every = 1, '0'
  tiny.train.steps = 1
  loop.train(tiny, tmp_path / 'one', record.Clock(0.0), 'test', profile=5)
  assert 'no steps were profiled' in console.readouterr().out
  assert not (tmp_path / 'one' / 'profile').exists()
  tiny.train.steps = 3
  loop.train(tiny, tmp_path / 'three', record.Clock(0.0), 'test', profile=5)
  assert sum(event.get('name') == 'train' for event in trace(tmp_path / 'three')) == 2


@pytest.mark.parametrize('case', ['the end', 'the start'])
def test_a_profile_that_cannot_be_written_is_a_line_and_the_run_goes_on(tiny, tmp_path, console, case):
  tiny.train.steps_per_dispatch, tiny.eval.every, tiny.train.steps = 1, '0', 4
  folder = tmp_path / 'profile'
  if case == 'the end':
    folder.mkdir()
    (folder / 'plugins').touch()  # a file where the profiler makes a folder
  else:
    folder.touch()
  assert loop.train(tiny, tmp_path, record.Clock(0.0), 'test', profile=2)['finished']
  said = console.readouterr().out
  assert said.count('no profile was written (') == 1
  assert 'is in' not in said and 'no steps were profiled' not in said
  if case == 'the end':
    (folder / 'plugins').unlink()
    with contextlib.suppress(RuntimeError):  # jax 0.10 keeps what it could not write, jax 0.12 does not
      jax.profiler.stop_trace()
