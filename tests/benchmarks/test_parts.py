"""What the parts of the accelerator benchmark decide by themselves."""

import re
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
  suite.run(options(6.0, tests=(str(tmp_path / 'test_sleeps.py'),)), found.append)
  assert found[0]['out_of_time']
  assert (found[0]['passed'], found[0]['failed']) == (1, 1)
  (name,) = found[0]['failures']
  assert name.endswith('::test_broken')
  assert 'time was over' in suite.markdown(found[0])


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


def test_runs_share_the_time_and_one_that_fails_leaves_it_to_the_others(options, monkeypatch):
  now, fractions, evaluated = [0.0], {}, []
  given = options(460.0, data='x', started=0.0)
  monkeypatch.setattr(training.time, 'monotonic', lambda: now[0])

  def train(name, config, options, seconds):
    fractions[name] = seconds
    now[0] += 1 if name == 'b' else seconds + training.TO_STOP
    if name == 'b':
      raise RuntimeError('b ended with code 2')
    return {'step': 10, 'evaluated_at': 10 if name == 'c' else 5, 'errors': {}}

  monkeypatch.setattr(training, 'train', train)
  monkeypatch.setattr(training, 'evaluate', lambda config, folder, each: evaluated.append(folder.name))
  saved = []
  training.train_all(dict.fromkeys('abcd'), given, saved.append)
  whole = 460 - 4 * training.TO_EVALUATE
  assert fractions['a'] == pytest.approx(whole / 4 - training.TO_STOP)
  assert fractions['b'] == pytest.approx(fractions['a'])
  assert fractions['c'] == pytest.approx((whole * 3 / 4 - 1) / 2 - training.TO_STOP)
  assert fractions['d'] == pytest.approx(fractions['c'])
  assert saved[-1]['runs']['b'] == {'error': 'b ended with code 2'}
  assert evaluated == ['a', 'd']


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
