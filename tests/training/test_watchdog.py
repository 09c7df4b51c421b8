"""A stall is reported with what every process does, and costs the steps nothing."""

import re
import time

import pytest

from dnt import loop
from dnt.data import resident
from dnt.parallel import activity, peers
from dnt.training import record, watchdog


class _Peers:
  """Two other processes: one that does not answer, and one that waits."""

  def __init__(self, silent):
    self.silent = silent

  def name(self, process):
    return f'process {process} (on host{process})'

  def describe(self):
    return {
      1: ({'phase': activity.READ, 'step': 40, 'seconds': 11.0, 'at': 'stream.py:61 at'}, self.silent),
      2: ({'phase': activity.WAIT, 'step': 41, 'seconds': 12.0, 'at': 'loop.py:301 flush'}, 0.5),
    }


@pytest.fixture
def clock(monkeypatch):
  """A clock of steps of 0.5 s whose present step has taken `clock.now` seconds."""
  clock = record.Clock(0.0)
  clock.now = 0.0
  for _ in range(5):
    clock.laps['train'].append((2.0, 4))
  clock.mark = 0.0
  monkeypatch.setattr(time, 'monotonic', lambda: clock.now)
  activity.note(activity.WAIT, 41)
  return clock


def test_a_step_is_late_after_ten_times_its_usual_time_and_again_when_its_time_has_doubled(clock, console):
  watching, spoken = watchdog.Watchdog(clock), []
  for clock.now in range(100):
    watching._look()
    if console.readouterr().out:
      spoken.append(clock.now)
  assert spoken == [20, 40, 80]  # dispatches of four steps
  clock.now = clock.mark = 101.0
  watching._look()
  assert 'goes on after 101' in console.readouterr().out
  clock.now = 110.0
  watching._look()
  assert not console.readouterr().out


def test_a_late_part_that_ends_with_the_run_is_said_to_have_ended(clock, console, monkeypatch):
  monkeypatch.setattr(watchdog, '_POLL', 0.01)
  with watchdog.Watchdog(clock) as watching:
    clock.now = 25.0
    while not watching._again:
      time.sleep(0.001)
    monkeypatch.setattr(watchdog, '_POLL', 60.0)
    watching._ended.wait(0.05)  # the last look with the short poll
    clock.now = clock.mark = 26.0
  assert 'the run goes on after 26.0 s' in console.readouterr().out


def test_what_has_no_usual_time_yet_is_not_late(clock, console):
  clock.laps.clear()
  clock.now = 1000.0
  watching = watchdog.Watchdog(clock)
  watching._look()
  activity.note(activity.COMPILE, 0)
  watching._look()
  assert not console.readouterr().out


@pytest.mark.parametrize('silent', [0.5, 8.0])
def test_the_slow_process_is_named_and_each_says_what_it_does(clock, console, monkeypatch, silent):
  monkeypatch.setattr(peers, '_current', _Peers(silent))
  clock.now = 25.0
  watchdog.Watchdog(clock)._look()
  first, *lines = console.readouterr().out.splitlines()
  assert re.search(r'step 41 takes 25\.0 s.*waiting for process 1 \(on host1\)$', first)
  assert [line.split(' (')[0].strip() for line in lines] == [f'process {process}' for process in range(3)]
  assert 'reads data after step 40 for 11.0 s, at stream.py:61 at' in lines[1]
  assert ('not answered for 8.0 s' in lines[1]) == (silent > 3)
  assert '.py:' in lines[0] and 'waits' in lines[2]


@pytest.mark.usefixtures('undrawn')
def test_a_stalled_step_of_a_run_is_reported_while_it_lasts_and_the_run_goes_on(tiny, tmp_path, console, monkeypatch):
  monkeypatch.setattr(watchdog, 'LEAST', 0.5)
  monkeypatch.setattr(watchdog, '_POLL', 0.05)
  arrays = resident.TrainLoader.arrays

  def stall(self, step, count):
    if step == 16:
      for _ in range(100):
        time.sleep(0.1)
        if (text := console.readouterr().out) and 'usual' in text:
          reported.append(text)
          break
    return arrays(self, step, count)

  reported = []
  monkeypatch.setattr(resident.TrainLoader, 'arrays', stall)
  tiny.train.steps, tiny.train.steps_per_dispatch, tiny.eval.every = 20, 1, '0'
  summary = loop.train(tiny, tmp_path, record.Clock(time.monotonic()), 'test')
  assert summary['finished'] and summary['step'] == 20
  (text,) = reported
  assert re.search(r'step 16 takes [\d.]+ s.* the process reads data after step 16 for .* next_steps', text)
  assert 'the run goes on after' in console.readouterr().out
