"""The table of finished runs, from records that are written by hand."""

import json

import pytest

from benchmarks import table


def leave(workdir, config, summary, *records):
  """What a run leaves."""
  files = (('config.json', [config]), ('summary.json', [summary]), ('metrics.jsonl', records))
  for name, contents in files:
    (workdir / name).write_text(''.join(json.dumps(content) + '\n' for content in contents))


@pytest.mark.parametrize(
  ('averaged', 'shown'),
  [({}, ['75.00 % (val)', '0.500 (val)']), ({'accuracy': 0.875, 'loss': 0.25}, ['87.50 % (val)', '0.250 (val)'])],
)
def test_a_run_that_keeps_averaged_weights_has_their_figures(tmp_path, averaged, shown):
  config = {'model': {'name': 'resnet', 'depth': 8}, 'data': {'source': 'digits'}, 'eval': {'splits': ['val']}}
  summary = {'seconds': {'total': 60.0}, 'images_per_second': 1000.0}
  line = {'step': 10, 'epoch': 2.0, 'val/accuracy': 0.75, 'val/loss': 0.5}
  line |= {f'val_ema/{name}': value for name, value in averaged.items()}
  leave(tmp_path, config, summary, line)
  assert table.row(tmp_path)[4:6] == shown


def test_a_run_that_ended_again_with_another_split_has_the_figures_of_both_lines(tmp_path):
  config = {'model': {'name': 'resnet', 'depth': 8}, 'data': {'source': 'digits'}, 'eval': {'splits': ['val', 'train']}}
  summary = {'seconds': {'total': 60.0}, 'images_per_second': 1000.0}
  at = {'step': 10, 'epoch': 2.0}
  before = {'step': 5, 'epoch': 1.0, 'test/accuracy': 0.5, 'test/loss': 1.5}
  training = {**at, 'train/accuracy': 0.125, 'train/loss': 2.0, 'train/learning_rate': 0.1}
  measured = {**at, 'val/accuracy': 0.75, 'val/loss': 0.5}
  ended = {**at, 'train/accuracy': 1.0, 'train/loss': 0.0}
  leave(tmp_path, config, summary, before, measured, training, ended)
  assert table.row(tmp_path)[3:6] == ['2.0 (10)', '75.00 % (val)', '0.500 (val)']
  leave(tmp_path, config, summary, {**at, 'test/accuracy': 0.75, 'test/loss': 0.5})
  assert table.row(tmp_path)[4:6] == ['75.00 %', '0.500']
