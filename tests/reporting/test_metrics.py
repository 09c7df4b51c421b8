import contextlib
import itertools
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
  whole, part = tmp_path / 'whole', tmp_path / 'cut'
  whole.mkdir()
  part.mkdir()
  _record(whole, 0, range(1, 9))
  _record(part, 0, range(1, 7))
  with (part / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 7, "epo')  # killed while writing
  assert [line['step'] for line in metrics.read(part)] == [1, 2, 3, 4, 5, 6]
  _record(part, 4, range(5, 9))
  assert (part / 'metrics.jsonl').read_bytes() == (whole / 'metrics.jsonl').read_bytes()
  assert not list(part.glob('*.partial'))


def test_lines_that_will_be_written_again_are_dropped_by_their_kind(tmp_path):
  training, evaluation, telemetry = kinds = 'train/learning_rate', 'train/accuracy', 'telemetry/stem/dead'
  with contextlib.closing(metrics.Writer(tmp_path, 0)) as writer:
    for step, kind in itertools.product((2, 4, 6), kinds):
      writer.write(step, 0.0, {'train/loss': 1.0, kind: 0.1})
    writer.note(4, 0.0, {})
  metrics.Writer(tmp_path, 4, evaluated_at=2, trained_at=3).close()
  found = [(line['step'], [*line][-1]) for line in metrics.read(tmp_path)]
  assert found == [(2, training), (2, evaluation), (2, telemetry), (4, telemetry)]


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


def test_the_last_evaluation_may_have_several_lines():
  training = {'step': 5, 'epoch': 1.0, 'train/accuracy': 0.5, 'train/learning_rate': 0.1}
  before = {'step': 4, 'epoch': 0.8, 'val/accuracy': 0.25, 'train/accuracy': 0.5}
  first, second = {'step': 5, 'epoch': 1.0, 'val/accuracy': 0.75}, {'step': 5, 'epoch': 1.0, 'test_ema/accuracy': 1.0}
  records = [before, first, training, second, {'step': 6, 'epoch': 1.2, 'telemetry/head/zero': 0.5}]
  assert metrics.evaluations(records) == [before, first, second]
  assert metrics.last_evaluation(records) == {'step': 5, 'epoch': 1.0, 'val/accuracy': 0.75, 'test_ema/accuracy': 1.0}
  assert metrics.last_evaluation([training]) == {}


def test_full_disk_is_a_run_error(tmp_path):
  writer = metrics.Writer(tmp_path, 0)
  writer.close()  # of the real file
  said = r'metrics\.jsonl .*No space left on device'
  with open('/dev/full', 'wb', buffering=0) as writer._file, pytest.raises(errors.RunError, match=said):
    writer.write(1, 0.5, {'x': 1.0})


def test_a_disk_that_fills_between_lines_is_one_run_error(tmp_path):
  """On a file system with a limit, as a part of a line still fits."""
  code = f"""
import resource, signal
from dnt import errors
from dnt.reporting import metrics
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = metrics.Writer({str(tmp_path)!r}, 0)
writer.write(1, 0.5, {{'x': 1.0}})
resource.setrlimit(resource.RLIMIT_FSIZE, (45, -1))
try:
  writer.write(2, 0.5, {{'x': 1.0}})
except errors.RunError as error:
  print(error)
writer.close()
"""
  result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert result.stdout.count('\n') == 1 and 'metrics.jsonl' in result.stdout and not result.stderr
  assert [line['step'] for line in metrics.read(tmp_path)] == [1]


@pytest.mark.parametrize(
  ('end', 'lines', 'said'),
  [
    (b'', 2, False),
    (b'{"step": 3, "trai', 2, False),
    (b'\xff\xfe\x80', 2, False),
    (b'\xff\n\x80\n', 2, True),
    (bytes(5000), 2, False),
    (b'{"step": 3}', 3, False),
    (b'[3]\n', 2, True),
    (b'{"step": 1e999}\n', 2, True),
    (b'{"step": 3, "train/loss": "x"}\n', 2, True),
  ],
)
def test_a_damaged_end_is_left_out(tmp_path, console, end, lines, said):
  (tmp_path / 'metrics.jsonl').write_bytes(b'{"step": 1}\n{"step": 2}\n' + end)
  assert [line['step'] for line in metrics.read(tmp_path)] == [1, 2, 3][:lines]
  assert ('line 3' in console.readouterr().out) == said
