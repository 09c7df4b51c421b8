"""The figure and the table of the transfer rule, from results that are written by hand."""

import json

import numpy as np
import pytest
from absl import app
from PIL import Image

from benchmarks import transfer_rule

ACCURACIES = {  # cell: mean and deviation by what trains
  'cars_5': {'head': (40.0, 0.5), 'top1': (42.0, 1.5), 'top4': (30.0, 0.1)},
  'cars_all': {'head': (66.0, None), 'top1': (70.25, None)},
  'mri_5': {'head': (50.0, 2.0)},
}


@pytest.fixture
def workdir(tmp_path):
  rows = []
  for cell, choices in ACCURACIES.items():
    split = 'test' if cell.startswith('cars') else 'val'
    for choice, (mean, std) in choices.items():
      values = {'mean': {f'{split}_accuracy': mean}, 'std': {} if std is None else {f'{split}_accuracy': std}}
      runs = 1 if std is None else 3
      rows.append({'variant': f'{cell}_{choice}', 'data': cell, 'runs': runs, 'finished': runs, **values})
  rows.append({'variant': 'cars_5_all', 'data': 'cars_5', 'runs': 3, 'finished': 0, 'mean': {}, 'std': {}})
  unknown = {'test_accuracy': None}  # not finite
  rows.append({**rows[0], 'variant': 'cars_5_top2', 'mean': unknown, 'std': unknown})
  (tmp_path / 'results.json').write_text(json.dumps({'variants': rows}))
  return tmp_path


def test_the_best_of_each_cell_and_a_figure(workdir, capsys):
  transfer_rule.main(['', str(workdir)])
  assert (workdir / 'transfer_rule.md').read_text() == capsys.readouterr().out
  _, _, *lines = [line for line in (workdir / 'transfer_rule.md').read_text().splitlines() if line.startswith('|')]
  assert lines == [
    '| cars | 5 | top1 | 42.00 ± 1.50 (3) | head | 40.00 ± 0.50 (3) | 2.00 | 1.50 |',
    '| cars | all | top1 | 70.25 (1) | head | 66.00 (1) | 4.25 | one seed |',
    '| mri | 5 | head | 50.00 ± 2.00 (3) | - | - | - | 2.00 |',
  ]
  with Image.open(workdir / 'transfer_rule.png') as image:
    assert image.format == 'PNG'


def test_seeds_of_a_variant_in_two_workdirs_are_refused(workdir):
  with pytest.raises(app.UsageError, match='cars_5_head has finished runs in several workdirs'):
    transfer_rule.main(['', str(workdir), str(workdir)])
  assert not (workdir / 'transfer_rule.md').exists()


def test_a_panel_for_each_data_set_and_a_line_for_each_choice_of_layers(workdir):
  cars, mri = transfer_rule.figure(transfer_rule.read([workdir])).axes
  assert [label.get_text() for label in cars.get_xticklabels()] == ['5', 'all']
  drawn = {each.get_label(): each.lines[0].get_xydata().round() for each in cars.containers}
  np.testing.assert_array_equal(drawn['top1'], [[0, 42], [1, 70]])
  np.testing.assert_array_equal(drawn['top4'], [[0, 30], [1, np.nan]])  # a break, and no line to the next
  assert mri.get_title(loc='left') == 'mri: val accuracy (%)'
