import io
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from dnt import errors
from dnt.reporting import metrics


def test_lines_are_strict_json_with_step_and_epoch_first(tmp_path):
  writer = metrics.Writer(tmp_path, 0)
  writer.write(5, 0.25, {'train/loss': np.float32(0.1), 'train/accuracy': jnp.float32(0.75), 'count': np.int32(3)})
  # Flushed at once: readable before close.
  text = (tmp_path / 'metrics.jsonl').read_text()
  assert text == '{"step": 5, "epoch": 0.25, "train/loss": 0.1, "train/accuracy": 0.75, "count": 3}\n'
  writer.write(6, 0.5, {'a': float('nan'), 'b': float('inf'), 'c': jnp.array(-jnp.inf), 'd': 1e-30})
  writer.close()
  last = (tmp_path / 'metrics.jsonl').read_text().splitlines()[-1]
  parsed = json.loads(last, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))
  assert parsed == {'step': 6, 'epoch': 0.5, 'a': None, 'b': None, 'c': None, 'd': 1e-30}
  assert metrics.read(tmp_path)[1] == parsed


def test_float32_reads_back_as_the_same_float32(tmp_path):
  values = np.random.default_rng(0).normal(size=20).astype(np.float32)
  writer = metrics.Writer(tmp_path, 0)
  for step, value in enumerate(values):
    writer.write(step, 0.0, {'x': value})
  writer.close()
  np.testing.assert_array_equal([np.float32(line['x']) for line in metrics.read(tmp_path)], values)


def _record(workdir, start_step, steps):
  writer = metrics.Writer(workdir, start_step)
  for step in steps:
    writer.write(step, step / 10, {'train/loss': 1 / step})
  writer.close()


def test_resumed_file_equals_the_uninterrupted_one(tmp_path):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  whole.mkdir()
  cut.mkdir()
  _record(whole, 0, range(1, 9))
  _record(cut, 0, range(1, 7))
  with (cut / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 7, "epo')  # killed while writing
  assert [line['step'] for line in metrics.read(cut)] == [1, 2, 3, 4, 5, 6]
  _record(cut, 4, range(5, 9))
  assert (cut / 'metrics.jsonl').read_bytes() == (whole / 'metrics.jsonl').read_bytes()
  assert not list(cut.glob('*.partial'))


def test_run_from_step_zero_starts_an_empty_record(tmp_path):
  _record(tmp_path, 0, [1, 2])
  _record(tmp_path, 0, [3])
  assert [line['step'] for line in metrics.read(tmp_path)] == [3]


def test_read(tmp_path):
  assert metrics.read(tmp_path) == []
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\nnot json\n{"step": 2}\n')
  with pytest.raises(errors.InputError, match=r'metrics\.jsonl:2 '):
    metrics.read(tmp_path)
  (tmp_path / 'metrics.jsonl').write_text('{"loss": 1}\n{"step": 2}\n')
  with pytest.raises(errors.InputError, match=r'metrics\.jsonl:1 '):
    metrics.read(tmp_path)


def test_tensorboard_events(tmp_path, events):
  writer = metrics.Writer(tmp_path, 3)
  writer.write(4, 0.5, {'test/accuracy': 0.25, 'test/loss': float('nan')})
  writer.write(5, 1.0, {'test/accuracy': 0.5})
  writer.close()
  writer.close()
  found, starts = events(tmp_path)
  assert found == [(4, 'epoch', 0.5), (4, 'test/accuracy', 0.25), (5, 'epoch', 1.0), (5, 'test/accuracy', 0.5)]
  assert starts == [4], 'TensorBoard drops what the cut-off run wrote from step 4 on'


def test_full_disk_is_a_run_error(tmp_path):
  writer = metrics.Writer(tmp_path, 0)
  writer.close()
  said = r'metrics\.jsonl could not be written \(No space left on device\)'
  with (
    open('/dev/full', 'wb', buffering=0) as full,
    io.TextIOWrapper(full, write_through=True) as writer._file,
    pytest.raises(errors.RunError, match=said),
  ):
    writer.write(1, 0.5, {'x': 1.0})


def test_tensorboard_takes_neither_tensorflow_nor_torch(tmp_path):
  code = f"""
import sys
from dnt.reporting import metrics
assert 'tensorboardX' not in sys.modules
writer = metrics.Writer({str(tmp_path)!r}, 0)
writer.write(1, 0.5, {{'x': 1.0}})
writer.close()
assert 'tensorboardX' in sys.modules and 'tensorflow' not in sys.modules and 'torch' not in sys.modules
"""
  subprocess.run([sys.executable, '-c', code], check=True)


class _Terminal(io.StringIO):
  def isatty(self):
    return True


class _Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def test_progress_in_a_log_file_is_not_a_flood():
  stream, clock = io.StringIO(), _Clock()
  progress = metrics.Progress(36_000, stream, clock)
  for step in range(1, 36_001):  # ten hours, one step a second
    clock.now += 1
    progress.update(step, step / 100, {'loss': 2.0, 'accuracy': 0.5, 'images_per_second': 12345.6})
  progress.close()
  lines = stream.getvalue().splitlines()
  assert lines[0] == 'step 1/36000  epoch 0.0  loss 2.0000  accuracy 50.00 %  12,346 images/s'
  assert lines[1] == 'step 11/36000  epoch 0.1  loss 2.0000  accuracy 50.00 %  12,346 images/s  ETA 9 h 59 min'
  assert lines[-1].startswith('step 36000/36000 ') and lines[-1].endswith('ETA 0 s')
  assert 100 < len(lines) < 200
  assert '\r' not in stream.getvalue() and '\x1b' not in stream.getvalue()


def test_progress_on_a_terminal_is_one_line(monkeypatch):
  monkeypatch.setenv('COLUMNS', '40')
  stream, clock = _Terminal(), _Clock()
  progress = metrics.Progress(10, stream, clock)
  progress.update(1, 0.1, {'loss': 2.5})
  clock.now += 0.01
  progress.update(2, 0.2, {'loss': 2.4})  # too soon to redraw
  clock.now += 1
  progress.update(3, 0.3, {'loss': 2.3, 'images_per_second': 1e9})
  progress.print('saved')
  progress.close()
  third = 'step 3/10  epoch 0.3  loss 2.3000  1,000,000,000'[:39]
  first = 'step 1/10  epoch 0.1  loss 2.5000'
  erase = '\r\x1b[K'
  assert stream.getvalue() == f'{first}{erase}{third}{erase}saved\n{third}\n'


def test_eta_follows_the_last_minute():
  stream, clock = io.StringIO(), _Clock()
  progress = metrics.Progress(1000, stream, clock)
  for step in range(0, 200, 10):  # compiled slowly, then 1 step a second
    clock.now += 100 if step == 0 else 10
    progress.update(step, 0.0, {})
  assert stream.getvalue().splitlines()[-1].endswith('ETA 13 min 30 s')


def test_counted_pictures_have_a_pace_of_their_own():
  stream, clock = io.StringIO(), _Clock()
  count = metrics.Count('features of train', 1000, 200, stream, clock)
  count.update(200)  # what was there before tells nothing
  for done in (300, 600, 1000):
    clock.now += 20
    count.update(done)
  count.print('kept')
  count.close()
  first, second, kept = stream.getvalue().splitlines()
  assert first == 'features of train 300/1000  5 images/s  ETA 2 min 20 s'
  assert second == 'features of train 600/1000  10 images/s  ETA 40 s'
  assert kept == 'kept'


@pytest.mark.parametrize(
  'seconds, words',
  [(0, '0 s'), (-3, '0 s'), (59.4, '59 s'), (59.6, '1 min 00 s'), (185, '3 min 05 s'), (7441, '2 h 04 min'),
   (266_400, '3 d 02 h')],
)  # fmt: skip
def test_duration(seconds, words):
  assert metrics.duration(seconds) == words


@pytest.mark.parametrize(
  'name, value, text',
  [
    ('test/accuracy', 0.98765, '98.77 %'),
    ('test/top5_accuracy', 1.0, '100.00 %'),
    ('train/loss', 0.12345, '0.1235'),
    ('train/learning_rate', 0.000125, '0.000125'),
    ('images_per_second', 12345.6, '12,346'),
    ('test/loss', float('inf'), 'not finite'),
    ('test/loss', None, 'not finite'),
  ],
)
def test_figure(name, value, text):
  assert metrics.figure(name, value) == text
