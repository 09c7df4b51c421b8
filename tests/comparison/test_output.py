import csv
import json
import math
import pathlib
import re

import pytest
from PIL import Image

from dnt.comparison import output, plan, reading, results
from tests.comparison.recorded import make_config

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


def test_the_tables(written):
  workdir, _ = written
  text = (workdir / 'results.md').read_text()
  table = [line for line in text.splitlines() if line.startswith('|')]
  assert table[:4] == [
    '| variant | runs | train error (%) | test error (%) | time | images/s | parameters | trainable parameters '
    '| peak memory | remarks |',
    '| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |',
    '| plain | 2/2 | 25.00 ± 7.07 | 43.75 ± 8.84 | 1 min 01 s ± 1 s | 1,000 ± 71 | 269,722 | 650 | 544 ± 45 MiB '
    '| dead 1/2 |',
    '| deep | 1/2 | 6.25 | 25.00 | 1 min 00 s | 1,000 | 269,722 | 650 | 512 MiB '
    '| seed 1 failed: the loss is / not finite at step 12 |',
  ]
  of_classes = ['| class | plain | deep |', '| --- | --- | --- |', '| cat | 56.2 / 50.0 | 75.0 / 50.0 |']
  assert table[4:] == 2 * [*of_classes, '| d/g | - / - | - / - |']
  assert 'Sensitivity / specificity (%), test:\n\n| class |' in text
  assert (
    '- form: short' in text and '- command: python -m dnt.compare' in text and '- runs: 3 finished, 1 failed' in text
  )

  with (workdir / 'results.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [row['variant'] for row in rows] == ['plain', 'deep']
  assert float(rows[0]['test_error_std']) == pytest.approx(12.5 / math.sqrt(2))
  assert rows[1]['test_error_std'] == ''
  assert float(rows[0]['test_auroc_mean']) == pytest.approx(0.6625)
  assert float(rows[0]['test_calibration_error_std']) == 0

  content = json.loads((workdir / 'results.json').read_text())
  assert content['comparison']['form'] == 'short'
  assert [(run['workdir'], run['state']) for run in content['runs']][-1] == ('deep/seed1', 'failed')
  assert content['runs'][0]['test_error'] == 37.5


def test_the_page_stands_alone(written):
  workdir, _ = written
  page = (workdir / 'report.html').read_text()
  assert not re.search(r'https?:|//|@import|url\(|<script', re.sub(r'base64,[A-Za-z0-9+/=]+', '', page))
  for expected in (
    '25.00 ± 7.07',
    'units are &lt;dead&gt;',
    'try &lt;this&gt;',
    'optim.learning_rate = 0.2',
    '<td>plain</td><td>1</td><td>step 10</td>',
    '<h2>sensitivity / specificity (%), train</h2>',
    '<td>cat</td><td>56.2 / 50.0</td><td>75.0 / 50.0</td>',
  ):
    assert expected in page, expected
  assert page.count('<img') == 1
  with Image.open(workdir / 'curves.png') as figure:
    assert figure.format == 'PNG'


def test_warnings_of_a_variant_stand_together(written):
  _, outcomes = written
  vanishing = {'vanishing': {'step': 40, 'text': 'at 40'}}
  warned = [outcomes[0]._replace(warnings=vanishing | {'dead': {'step': 30, 'text': 'at 30'}}), *outcomes[1:]]
  seeds = {outcome.run.name: str(outcome.run.seed) for outcome in warned}
  assert list(seeds) == ['plain seed 0', 'deep seed 0', 'plain seed 1', 'deep seed 1']
  assert output._warnings(warned) == [
    ('plain', '0', 'step 40', 'at 40'),
    ('plain', '0, 1', 'step 10', 'units are <dead>'),
  ]


def test_columns_are_those_asked_for_in_their_order(written):
  _, outcomes = written
  rows = results.summarize(outcomes)
  header, cells = output.table(rows, ('calibration_error', 'auroc', 'seconds', 'accuracy', 'loss', 'device_memory'))
  assert header[2:-1] == [
    'test calibration error',
    'test AUROC',
    'time',
    'train accuracy (%)',
    'test accuracy (%)',
    'train loss',
    'test loss',
  ]
  assert cells[0][2:4] == ['0.1250 ± 0.0000', '0.6625 ± 0.0884'] and cells[0][6] == '56.25 ± 8.84'


def test_what_the_transfer_config_shows(written, load_config):
  """The table of the article: accuracy, time, trainable parameters and memory of a strategy, and what doctors ask."""
  _, outcomes = written
  config = load_config(CONFIGS / 'transfer_mri_resnet50.py')
  values = {'val_error': 9.0, 'val_accuracy': 91.0, 'val_loss': 0.3, 'val_auroc': 0.98, 'val_calibration_error': 0.04}
  values |= {'seconds': 60.0, 'images_per_second': 9.0, 'parameters': 20, 'trainable_parameters': 10}
  outcome = outcomes[0]._replace(values=values | {'process_memory': 2**30})
  header, (row,) = output.table(results.summarize([outcome]), config.columns)
  assert dict(zip(header[:-1], row[:-1], strict=True)) == {
    'variant': 'plain',
    'runs': '1/1',
    'val accuracy (%)': '91.00',
    'val AUROC': '0.9800',
    'val calibration error': '0.0400',
    'time': '1 min 00 s',
    'trainable parameters': '10',
    'peak memory': '1,024 MiB',
  }


def test_of_many_classes_there_is_no_table(written):
  _, outcomes = written
  for classes in (20, 21):
    per_class = {'test': {f'class {place}': {'sensitivity': 0.5} for place in range(classes)}}
    tables = output.class_tables(results.summarize([outcomes[0]._replace(per_class=per_class)]))
    assert len(tables) == (classes == 20)


def test_what_devices_count_has_a_column(written):
  _, outcomes = written
  values = {**outcomes[0].values, 'device_memory': 3 * 2**30}
  header, (row,) = output.table(results.summarize([outcomes[0]._replace(values=values)]), ('device_memory',))
  assert row[header.index('peak device memory')] == '3,072 MiB'


def test_nothing_run_yet(tmp_path):
  config = make_config()
  outcomes = [reading.read(run) for run in plan.make(config, tmp_path)]
  assert {outcome.state for outcome in outcomes} == {'not run'}
  output.write(outcomes, output.About(config, 'compare_me', '', 'go'), tmp_path)
  assert '| plain | 0/2 | seed 0, 1 not run |' in (tmp_path / 'results.md').read_text()
