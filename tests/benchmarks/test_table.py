"""The table of finished runs, from records that are written by hand."""

import json

import pytest

from benchmarks import table


@pytest.mark.parametrize(
  ('averaged', 'shown'), [({}, ['75.00 %', '0.500']), ({'accuracy': 0.875, 'loss': 0.25}, ['87.50 %', '0.250'])]
)
def test_a_run_that_keeps_averaged_weights_has_their_figures(tmp_path, averaged, shown):
  config = {'model': {'name': 'resnet', 'depth': 8}, 'data': {'source': 'digits'}, 'eval': {'splits': ['val']}}
  summary = {'seconds': {'total': 60.0}, 'images_per_second': 1000.0}
  line = {'step': 10, 'epoch': 2.0, 'val/accuracy': 0.75, 'val/loss': 0.5}
  line |= {f'val_ema/{name}': value for name, value in averaged.items()}
  for name, content in (('config.json', config), ('summary.json', summary), ('metrics.jsonl', line)):
    (tmp_path / name).write_text(json.dumps(content) + '\n')
  assert table.row(tmp_path)[4:6] == shown
