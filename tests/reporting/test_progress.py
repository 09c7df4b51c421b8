import io
import logging

import pytest

from dnt.reporting import progress, terminal


class _Terminal(io.StringIO):
  def isatty(self):
    return True


class _Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def test_progress_in_a_log_file_is_not_a_flood(console):
  clock = _Clock()
  shown = progress.Progress(36_000, clock)
  for step in range(1, 36_001):  # ten hours, one step a second
    clock.now += 1
    shown.update(step, step / 100, {'loss': 2.0, 'accuracy': 0.5, 'images_per_second': 12345.6})
  shown.close()
  text = console.readouterr().out
  lines = text.splitlines()
  assert lines[0] == 'step 1/36000  epoch 0.0  loss 2.0000  accuracy 50.00 %  12,346 images/s'
  assert lines[1] == 'step 11/36000  epoch 0.1  loss 2.0000  accuracy 50.00 %  12,346 images/s  ETA 9 h 59 min'
  assert lines[-1].startswith('step 36000/36000 ') and lines[-1].endswith('images/s'), 'no ETA at the end'
  assert 100 < len(lines) < 200
  assert '\r' not in text and '\x1b' not in text


def test_progress_on_a_terminal_is_one_line(monkeypatch):
  monkeypatch.setenv('COLUMNS', '40')
  stream, clock = _Terminal(), _Clock()
  with terminal.console(stream):
    shown = progress.Progress(10, clock)
    shown.update(1, 0.1, {'loss': 2.5})
    clock.now += 0.01
    shown.update(2, 0.2, {'loss': 2.4})  # too soon to redraw
    clock.now += 1
    shown.update(3, 0.3, {'loss': 2.3, 'images_per_second': 1e9})
    logging.getLogger('dnt.some.module').info('saved')
    shown.close()
  third = 'step 3/10  epoch 0.3  loss 2.3000  1,000,000,000'[:39]
  first = 'step 1/10  epoch 0.1  loss 2.5000'
  erase = '\r\x1b[K'
  assert stream.getvalue() == f'{first}{erase}{third}{erase}saved\n{third}\n'


def test_waits_are_shown_if_there_are_any(console):
  clock = _Clock()
  shown = progress.Progress(10, clock)
  shown.update(1, 0.1, {'images_per_second': 9.0, 'input_wait': 0.001, 'compile_seconds': 0.1})
  clock.now += 100
  shown.update(2, 0.2, {'images_per_second': 9.0, 'input_wait': 0.25, 'mfu': 0.414, 'compile_seconds': 75.0})
  first, second = console.readouterr().out.splitlines()
  assert first.endswith('9 images/s')
  assert '9 images/s  data wait 25 %  MFU 41 %  compilation 1 min 15 s  ETA' in second


def test_eta_follows_the_second_half_of_the_run(console):
  clock = _Clock()
  shown = progress.Progress(2000, clock)
  for step in range(0, 1000, 10):  # at first 5 s a step, then 1 s
    clock.now += 50 if step <= 100 else 10
    shown.update(step, 0.0, {})
  assert console.readouterr().out.splitlines()[-1].endswith('ETA 18 min 30 s')  # 1,110 steps


def test_an_evaluation_counts_with_its_share(console):
  """And not as if every step took as long."""
  clock = _Clock()
  shown = progress.Progress(1600, clock)
  for step in range(1, 202):
    clock.now += 105 if step == 201 else 5  # an evaluation after every 200 steps
    shown.update(step, 0.0, {})
  # The 1,399 steps and 6 evaluations that are left take 2 h 07 min.
  assert console.readouterr().out.splitlines()[-1] == 'step 201/1600  epoch 0.0  ETA 2 h 22 min'


def test_counted_images_have_a_pace_of_their_own(console):
  clock = _Clock()
  count = progress.Count('features of train', 1000, 200, clock)
  count.update(200)  # what was there before tells nothing
  for done in (300, 600, 1000):
    clock.now += 20
    count.update(done)
  count.close()
  first, second = console.readouterr().out.splitlines()
  assert first == 'features of train 300/1000  5 images/s  ETA 2 min 20 s'
  assert second == 'features of train 600/1000  10 images/s  ETA 40 s'


@pytest.mark.parametrize(
  'seconds, words',
  [(0, '0 s'), (-3, '0 s'), (59.4, '59 s'), (59.6, '1 min 00 s'), (185, '3 min 05 s'), (7441, '2 h 04 min'),
   (266_400, '3 d 02 h')],
)  # fmt: skip
def test_duration(seconds, words):
  assert progress.format_duration(seconds) == words


@pytest.mark.parametrize(
  'name, value, text',
  [
    ('test/accuracy', 0.98765, '98.77 %'),
    ('test/top5_accuracy', 1.0, '100.00 %'),
    ('test/balanced_accuracy', 0.5, '50.00 %'),
    ('train/loss', 0.12345, '0.1235'),
    ('train/learning_rate', 0.000125, '0.000125'),
    ('images_per_second', 12345.6, '12,346'),
    ('test/loss', float('inf'), 'not finite'),
    ('test/loss', None, 'not finite'),
  ],
)
def test_figure(name, value, text):
  assert progress.format_value(name, value) == text


def test_a_balanced_accuracy_is_shown_where_it_says_something_else():
  alike = {'val/loss': 0.5, 'val/accuracy': 0.75, 'val/balanced_accuracy': 0.75 + 1e-9}
  assert progress.format_values(alike) == 'val/loss 0.5000  val/accuracy 75.00 %'
  other = alike | {'val_ema/accuracy': 0.75, 'val_ema/balanced_accuracy': 0.5}
  assert progress.format_values(other).endswith('val_ema/accuracy 75.00 %  val_ema/balanced_accuracy 50.00 %')
  assert progress.format_values({'val/balanced_accuracy': 0.5}) == 'val/balanced_accuracy 50.00 %'
