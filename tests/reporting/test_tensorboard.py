import subprocess
import sys

from dnt.reporting import metrics


def test_tensorboard_events(tmp_path, events):
  writer = metrics.Writer(tmp_path, 3)
  writer.write(4, 0.5, {'test/accuracy': 0.25, 'test/loss': float('nan')})
  writer.write(5, 1.0, {'test/accuracy': 0.5})
  writer.close()
  writer.close()
  found, starts = events(tmp_path)
  assert found == [(4, 'epoch', 0.5), (4, 'test/accuracy', 0.25), (5, 'epoch', 1.0), (5, 'test/accuracy', 0.5)]
  assert starts == [4], 'TensorBoard drops what the part-off run wrote from step 4 on'


def test_training_and_an_evaluation_of_train_are_two_curves_of_tensorboard(tmp_path, events):
  writer = metrics.Writer(tmp_path, 0)
  writer.write(1, 0.5, {'train/loss': 2.0, 'train/learning_rate': 0.25})
  writer.write(1, 0.5, {'train/loss': 1.0, 'train_ema/loss': 0.5, 'train/accuracy': 0.125})
  writer.close()
  trained = [(1, 'epoch', 0.5), (1, 'train/loss', 2.0), (1, 'train/learning_rate', 0.25)]
  losses = [(1, 'train_evaluated/loss', 1.0), (1, 'train_ema/loss', 0.5)]
  assert events(tmp_path)[0] == [*trained, (1, 'epoch', 0.5), *losses, (1, 'train_evaluated/accuracy', 0.125)]
  assert [line['train/loss'] for line in metrics.read(tmp_path)] == [2.0, 1.0]


def test_events_that_cannot_be_written_are_one_line_and_the_record_goes_on(tmp_path, console, monkeypatch):
  writer = metrics.Writer(tmp_path, 0)
  writer.write(1, 0.5, {'x': 1.0})
  writer._board._last.result()
  writer._board._file.close()
  with open('/dev/full', 'wb', buffering=0) as full:
    monkeypatch.setattr(writer._board, '_file', full)
    for step in range(2, 9):
      writer.write(step, 0.5, {'x': 1.0})
    writer.close()
  assert console.readouterr().out.count('TensorBoard') == 1
  assert [line['step'] for line in metrics.read(tmp_path)] == [*range(1, 9)]


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
