"""What the parts of the accelerator benchmark decide by themselves."""

import re
import signal
import sys

import pytest

from benchmarks import racing
from benchmarks.parts import options as options_lib
from benchmarks.parts import step, suite, training

SLEEPS = """
import time

def test_quick():
  pass

def test_broken():
  assert 1 == 2

def test_endless():
  time.sleep(600)
"""


@pytest.fixture
def options(tmp_path):
  def make(seconds=1000.0, **changes):
    return options_lib.Options(seconds, True, str(tmp_path), **changes)

  return make


def test_options_come_through_a_command_line(options):
  given = options(12.5, data='here', tests=('a', 'b'), torch_modes=('default', 'max-autotune'))
  assert options_lib.from_json(given.to_json()) == given


@pytest.mark.thorough
def test_tests_that_do_not_end_are_stopped_and_those_before_count(options, tmp_path):
  (tmp_path / 'test_sleeps.py').write_text(SLEEPS)
  found = []
  suite.run(options(15.0, tests=(str(tmp_path / 'test_sleeps.py'),)), found.append)
  assert found[0]['out_of_time']
  assert (found[0]['passed'], found[0]['failed']) == (1, 1)
  (name,) = found[0]['failures']
  assert name.endswith('::test_broken')
  assert 'time was over' in suite.markdown(found[0])


def test_what_needs_several_devices_is_skipped_on_one(request):
  with pytest.raises(pytest.skip.Exception, match='it needs eight devices, and there are 1'):
    request.getfixturevalue('eight_devices')


def test_races_that_time_is_too_short_for_are_left_out(options, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(step.time, 'monotonic', lambda: now[0])
  monkeypatch.setattr(step, 'TINY', step.RACES)

  def race(race, modes, rounds):
    if race.depth == 50:
      raise RuntimeError('dnt ended with code 1')
    now[0] += 40
    return {'race': race.name, 'device': {'kind': 'x'}}

  monkeypatch.setattr(step, 'run_race', race)
  saved = []
  step.run(
    options(100.0, started=0.0), lambda found: saved.append({name: dict(found[name]) for name in ('races', 'left_out')})
  )
  assert list(saved[0]['races']) == ['ResNet-20, tf32']
  assert list(saved[-1]['races']) == ['ResNet-20, tf32', 'ResNet-56, tf32']
  assert saved[-1]['left_out']['ResNet-50, bfloat16'] == 'dnt ended with code 1'
  assert '20 s' in saved[-1]['left_out']['ResNet-56, float32']


def test_dnt_is_timed_alone_once_torch_has_failed(options, monkeypatch):
  asked = []

  def race(race, modes, rounds):
    asked.append(modes)
    if modes:
      raise RuntimeError('torch.compile, default ended with code 1')
    return {'device': {'kind': 'x'}}

  monkeypatch.setattr(step, 'run_race', race)
  monkeypatch.setattr(step, 'TINY', step.RACES[:2])
  monkeypatch.setattr(step.importlib.util, 'find_spec', lambda name: name)
  saved = []
  step.run(options(), saved.append)
  assert asked == [('default',), (), ()]
  assert len(saved[-1]['races']) == 2
  assert re.search('ResNet-20, tf32.* torch.compile, default ended with code 1$', saved[-1]['torch'])


def test_runs_go_side_by_side_and_those_that_last_too_long_are_asked_to_stop(options):
  commands = {'slow': ['sleep', '600'], 'ends': ['true'], 'fails': ['sh', '-c', 'echo so it is; exit 3']}
  assert training.run_together(commands, options(), 2.0) == {'slow': -signal.SIGTERM, 'ends': 0, 'fails': 3}
  assert training.failure(options(), 'fails', 3) == 'fails ended with code 3: so it is'


def test_a_run_that_fails_leaves_the_others_and_an_evaluation_is_made_where_one_is_due(options, monkeypatch):
  evaluated, seconds = [], []
  steps = {'a': 5, 'c': 10}

  def run(commands, options, limit):
    seconds.append(limit)
    return {'a': 128 + signal.SIGTERM, 'b': 2, 'c': 0}

  monkeypatch.setattr(training, 'command', lambda config, options, folder: [])
  monkeypatch.setattr(training, 'run_together', run)
  monkeypatch.setattr(
    training, 'outcome', lambda folder: {'step': 10, 'evaluated_at': steps[folder.name], 'errors': {}}
  )
  monkeypatch.setattr(training, 'evaluate', lambda config, folder, each: evaluated.append(folder.name))
  given, saved = options(200.0), []
  (given.folder / 'b.log').write_text('no memory')
  training.train_all(dict.fromkeys('abc'), given, saved.append)
  assert seconds == [pytest.approx(200 - 3 * training.TO_EVALUATE - training.TO_STOP, abs=5)]
  assert saved[-1]['runs']['b'] == {'error': 'b ended with code 2: no memory'}
  assert evaluated == ['a']
  with pytest.raises(RuntimeError, match=r'no time: 3\d s left for 3 runs'):
    training.train_all(dict.fromkeys('abc'), options(38.0), saved.append)


def test_steps_shorten_the_schedule_of_every_run(options, monkeypatch):
  configs = training.degradation_configs('x', tiny=False)
  taken = {}

  def stop(commands, options, seconds):
    raise KeyboardInterrupt

  monkeypatch.setattr(training, 'command', lambda config, options, folder: taken.setdefault(folder.name, config))
  monkeypatch.setattr(training, 'run_together', stop)
  with pytest.raises(KeyboardInterrupt):
    training.train_all(configs, options(steps=4000), None)
  assert list(taken) == ['plain20', 'plain56', 'resnet20', 'resnet56']
  assert {config.train.steps for config in taken.values()} == {4000}
  assert {config.train.steps for config in configs.values()} == {64_000}


def test_errors_are_by_split():
  found = {'step': 3, 'test/accuracy': 0.75, 'test/loss': 1.0, 'train[:64]/accuracy': 0.5}
  assert training.errors(found) == {'test': 0.25, 'train': 0.5}


def test_a_contender_that_ends_says_why():
  serves = 'from benchmarks import racing; print("noise"); racing.serve(turn=lambda: 1 / {})'
  with racing.started({'good': [sys.executable, '-c', serves.format(2)]}) as contenders:
    assert contenders['good'].ask(racing.TURN) == 0.5
  with (
    pytest.raises(RuntimeError, match=r'(?s)bad .*code 1\b.*ZeroDivisionError'),
    racing.started({'bad': [sys.executable, '-c', serves.format(0)]}) as contenders,
  ):
    contenders['bad'].ask(racing.TURN)


def test_the_ratio_is_the_median_of_neighbouring_turns():
  turns = racing.take_turns({'a': iter((1.0, 2.0, 4.0)).__next__, 'b': iter((2.0, 2.0, 2.0)).__next__}, 3)
  assert racing.ratio(turns['a'], turns['b']) == 1.0
  assert racing.spread(turns['a']) == {'median_seconds': 2.0, 'min_seconds': 1.0, 'max_seconds': 4.0}
