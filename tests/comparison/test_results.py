import csv
import json
import math
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from dnt import config as schema
from dnt import errors
from dnt import workdir as workdir_lib
from dnt.comparison import output, plan, reading, results
from dnt.config import run_config

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
# Accuracies of the last evaluation by variant and seed: on the training split and on the test split.
ACCURACIES = {('plain', 0): (0.7, 0.625), ('plain', 1): (0.8, 0.5), ('deep', 0): (0.9375, 0.75)}


def make_config():
  config = schema.default('compare')
  config.seeds = (0, 1)
  config.base.data.train_split = 'train[:20%]'
  config.base.eval.splits = ('test', 'train[:20%]')
  config.variants = {'plain': {}, 'deep': {'optim.learning_rate': 0.2}}
  config.forms = {'short': {}}
  return config


def lines(train, test):
  """A record: training lines, which hold an accuracy of their own, telemetry and two evaluations."""
  for step in range(10, 101, 10):
    training = {'train/loss': 20 / step, 'train/accuracy': 0.01, 'train/learning_rate': 0.1}
    yield {'step': step, 'epoch': step / 50, **training, 'images_per_second': 900.0}
    yield {'step': step, 'epoch': step / 50, 'telemetry/head/zero': 0.5}
    if step % 50 == 0:
      fraction = step / 100
      evaluated = {'test/loss': 0.5, 'test/accuracy': fraction * test, 'train[:20%]/loss': None if step == 50 else 0.25}
      evaluated |= {'test/auroc': fraction * test + 0.1, 'test/calibration_error': 0.125}
      yield {'step': step, 'epoch': step / 50, **evaluated, 'train[:20%]/accuracy': fraction * train}


def leave(run, train, test):
  """What a finished run leaves."""
  run.workdir.mkdir(parents=True)
  (run.workdir / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines(train, test)))
  summary = {
    'finished': True,
    'seconds': {'total': 60.0 + 2 * run.seed},
    'images_per_second': 950.0 + 100 * run.seed if run.variant == 'plain' else 1000.0,
    'parameters': 269_722,
    'trainable_parameters': 650,
    'peak_memory': {'process': 2**29 + 2**26 * run.seed, 'device': None},
    'warnings': {'dead': {'step': 10, 'text': 'units are <dead>'}} if run.seed else {},
    'devices': {'kind': 'cpu'},
    'versions': {'jax': '1.2'},
  }
  (run.workdir / 'summary.json').write_text(json.dumps(summary))
  for split, step in (('test', 100), ('train[:20%]', 100), ('val', 50)):
    per_class = {'examples': [4, 0], 'sensitivity': [test, None], 'specificity': [0.5, None], 'auroc': [None, None]}
    content = {'split': split, 'step': step, 'class_names': ['cat', 'd|g'], 'per_class': per_class}
    content['matrix'] = [[4, 0], [0, 0]]
    name = re.sub(r'\W+', '_', split).strip('_')
    (run.workdir / f'confusion_{name}.json').write_text(json.dumps(content))
  run_config.write(run.workdir / workdir_lib.REQUESTED, run.config)


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    ('summary.json', '[]'),
    ('summary.json', '{"finished": tr'),
    ('requested.json', '[]'),
    ('requested.json', '3'),
    ('failure.json', '[]'),
    ('failure.json', '\0'),
  ],
)
def test_a_damaged_file_of_a_run_is_named(tmp_path, name, content):
  (run, *_) = plan.make(make_config(), tmp_path)
  leave(run, 0.7, 0.625)
  (run.workdir / name).write_text(content)
  with pytest.raises(errors.InputError, match=rf'{run.workdir / name} ') as refused:
    plan.is_finished(run)
    reading.read(run)
  assert '\n' not in str(refused.value)


@pytest.mark.parametrize(
  'content', ['', '[]', '{"split": "test", "step": 100, "class_names": ["cat"], "matrix": [[1, 2]]}']
)
def test_a_damaged_confusion_is_left_out(tmp_path, console, content):
  (run, *_) = plan.make(make_config(), tmp_path)
  leave(run, 0.7, 0.625)
  path = run.workdir / 'confusion_test.json'
  path.write_text(content)
  assert set(reading.read(run).per_class) == {'train'}
  assert str(path) in console.readouterr().out


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """The results of three finished runs and a failed one."""
  config, tmp_path = make_config(), tmp_path_factory.mktemp('compare_me')
  runs = plan.make(config, tmp_path)
  for run in runs:
    if (run.variant, run.seed) in ACCURACIES:
      leave(run, *ACCURACIES[run.variant, run.seed])
    else:
      run.workdir.mkdir(parents=True)
      (run.workdir / 'metrics.jsonl').write_text(json.dumps(next(lines(0, 0))) + '\n')
      (run.workdir / workdir_lib.FAILURE).write_text('{"error": "the loss is | not finite at step 12; try <this>"}')
  outcomes = [reading.read(run) for run in runs]
  output.write(outcomes, output.About(config, 'compare_me', 'short', 'python -m dnt.compare'), tmp_path)
  return tmp_path, outcomes


def test_what_a_run_came_to(written):
  _, outcomes = written
  assert [outcome.state for outcome in outcomes] == ['finished', 'finished', 'finished', 'failed']
  plain, failed = outcomes[0], outcomes[3]
  assert plain.step == 100 and plain.error == ''
  assert plain.values == pytest.approx(
    {
      'train_error': 30.0,
      'train_accuracy': 70.0,
      'train_loss': 0.25,
      'test_error': 37.5,
      'test_accuracy': 62.5,
      'test_loss': 0.5,
      'test_auroc': 0.725,
      'test_calibration_error': 0.125,
      'seconds': 60.0,
      'images_per_second': 950.0,
      'parameters': 269_722,
      'trainable_parameters': 650,
      'process_memory': 2**29,
    }
  )
  assert list(plain.curves) == ['training loss', 'train error (%)', 'test error (%)']
  assert plain.curves['training loss'].values == [20 / step for step in range(10, 101, 10)]
  assert plain.curves['train error (%)'].steps == [50, 100]
  assert plain.curves['test error (%)'].values == pytest.approx([100 - 31.25, 37.5])
  of_classes = {'cat': {'sensitivity': 0.625, 'specificity': 0.5}, 'd|g': {}}
  assert plain.per_class == {'test': of_classes, 'train': of_classes}, 'val was evaluated before, not last'
  assert (failed.step, failed.values, failed.per_class, failed.warnings) == (10, {}, {}, {})


def test_the_test_split_counts_that_was_looked_at_when_the_run_ended(tmp_path):
  config = make_config()
  config.base.eval.splits = ('val',)
  run = plan.make(config, tmp_path)[0]
  leave(run, 0.5, 0.25)
  held = [line for line in lines(0.5, 0.25) if 'test/loss' not in line]
  for step in (50, 100):
    held.append({'step': step, 'epoch': step / 50, 'val/loss': 0.5, 'val/accuracy': step / 200})
  held.append({'step': 100, 'epoch': 2.0, 'test/loss': 0.75, 'test/accuracy': 0.25})
  (run.workdir / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in held))
  outcome = reading.read(run)
  assert (outcome.values['val_error'], outcome.values['test_error'], outcome.values['test_loss']) == (50.0, 75.0, 0.75)
  assert outcome.curves['val error (%)'].steps == [50, 100] and outcome.curves['test error (%)'].steps == [100]
  assert 'test' in outcome.per_class
  table = output.table(results.summarize([outcome]), ('error',))
  assert table.header[2:4] == ['val error (%)', 'test error (%)']


def test_the_training_split_keeps_its_name_beside_the_split_train(tmp_path):
  config = make_config()
  config.base.eval.splits = ('train', 'train[:20%]', 'test')
  run = plan.make(config, tmp_path)[0]
  leave(run, 0.5, 0.25)
  line = {'step': 100, 'epoch': 2.0, 'train/loss': 0.75, 'train/accuracy': 0.625}
  with (run.workdir / 'metrics.jsonl').open('a') as file:
    file.write(json.dumps(line) + '\n')
  outcome = reading.read(run)
  assert (outcome.values['train_error'], outcome.values['train[:20%]_error']) == (37.5, 50.0)
  assert outcome.curves['train error (%)'].values == [37.5]
  assert set(outcome.per_class) == {'train[:20%]', 'test'}
  (row,) = results.summarize([outcome])
  assert row['trained_on'] == ['train', 'train[:20%]']


def test_mean_and_sample_deviation_over_the_finished_seeds(written):
  _, outcomes = written
  plain, deep = results.summarize(outcomes)
  for column, name in enumerate(('train_error', 'test_error')):
    values = [100 - 100 * ACCURACIES['plain', seed][column] for seed in (0, 1)]
    assert plain['mean'][name] == pytest.approx(np.mean(values))
    assert plain['std'][name] == pytest.approx(np.std(values, ddof=1))
  assert deep['mean']['test_error'] == pytest.approx(25.0) and deep['std'] == {}
  assert (plain['runs'], plain['finished'], deep['runs'], deep['finished']) == (2, 2, 2, 1)
  assert plain['mean']['test_auroc'] == pytest.approx(0.6625)
  assert (
    plain['std']['test_auroc'] == pytest.approx(0.125 / math.sqrt(2)) and plain['std']['test_calibration_error'] == 0
  )
  assert plain['per_class']['test'] == {'cat': {'sensitivity': 0.5625, 'specificity': 0.5}, 'd|g': {}}
  assert plain['warnings'] == {'dead': 1} and deep['warnings'] == {}
  assert len(deep['problems']) == 1 and deep['problems'][0].endswith('the loss is | not finite at step 12')
  assert 'seed 1' in deep['problems'][0]


def test_a_metric_that_is_not_finite_for_one_of_the_seeds(written):
  """Such as the loss of a network that gives NaN for an image of the test split."""
  _, outcomes = written
  changed = outcomes[0]
  assert changed.run.variant == 'plain'
  rows = plain, _ = results.summarize(
    [changed._replace(values=changed.values | {'test_loss': math.nan}), *outcomes[1:]]
  )
  assert math.isnan(plain['mean']['test_loss']) and math.isnan(plain['std']['test_loss'])
  assert plain['std']['test_error'] == pytest.approx(12.5 / math.sqrt(2))
  table = output.table(rows, ('loss',))
  place = table.header.index('test loss')
  assert [cells[place] for cells in table.cells] == ['not finite', '0.5000']
  (line,) = described(rows, 'loss').values()
  assert line.startswith('deep 0.5000 (1 run); there is no other variant')
  csv_row, _ = csv.DictReader(output.comma_separated(rows).splitlines())
  assert csv_row['test_loss_std'] == 'nan'


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


def test_other_runs_in_the_workdir_stay_in_the_results(tmp_path, call_program):
  (tmp_path / 'compare_me.py').write_text("""
from dnt import config as schema

def get_config():
  config = schema.default('compare')
  config.seeds = (0, 1, 2)
  config.base.data.train_split = 'train[:20%]'
  config.base.eval.splits = ('test', 'train[:20%]')
  config.variants = {'0.1': {}, '0.2': {'optim.learning_rate': 0.2}}
  return config
""")
  config = make_config()
  config.seeds, config.variants = (0, 1, 2), {'0.1': {}, '0.2': {'optim.learning_rate': 0.2}}
  runs = {run.name: run for run in plan.make(config, tmp_path / 'runs')}
  for run in runs.values():
    leave(run, 0.7, 0.625)
  other = json.loads((runs['0.2 seed 2'].workdir / workdir_lib.REQUESTED).read_text())
  other['optim']['learning_rate'] = 0.3
  (runs['0.2 seed 2'].workdir / workdir_lib.REQUESTED).write_text(json.dumps(other))

  command = (f'--config={tmp_path}/compare_me.py', f'--workdir={tmp_path}/runs')
  code, out, err = call_program('compare', *command, '--only=0.1', '--config.seeds=(1,)')
  assert (code, 'finished 1 runs' in out) == (0, True), err
  assert 'best test error (%): 0.1 37.50 ± 0.00 (3 runs), 0.00 better than 0.2 37.50 ± 0.00 (2 runs)' in out
  content = json.loads((tmp_path / 'runs' / 'results.json').read_text())
  listed = {f'{run["variant"]} seed {run["seed"]}' for run in content['runs']}
  assert listed == {*runs} - {'0.2 seed 2'}, 'a run of another config does not belong to the comparison'
  assert content['comparison']['seeds'] == '1, 0, 2'
  assert [(row['variant'], row['finished']) for row in content['variants']] == [('0.1', 3), ('0.2', 2)]
  assert '| 0.1 | 3/3 |' in (tmp_path / 'runs' / 'results.md').read_text()


def row(variant, mean, std=None, data='digits train', runs=3, finished=3, name='test_error'):
  """A row of `summarize` with one metric."""
  spread = {} if std is None else {name: std}
  about = {'variant': variant, 'data': data, 'trained_on': ['train'], 'runs': runs, 'finished': finished}
  return {**about, 'mean': {name: mean}, 'std': spread}


def described(rows, metric='error'):
  return output.describe_best(results.find_best(rows, metric))


def test_the_best_has_the_lowest_error_and_its_margin_stands_beside_the_spread():
  rows = [row('plain', 10.5, 0.25), row('deep', 9.0, 0.5), row('wide', 12.0, 0.1)]
  assert results.find_best(rows, 'error') == [
    {
      'data': 'digits train',
      'metric': 'test_error',
      'ranked': [
        {'variant': 'deep', 'metric': 'test_error', 'mean': 9.0, 'std': 0.5, 'finished': 3},
        {'variant': 'plain', 'metric': 'test_error', 'mean': 10.5, 'std': 0.25, 'finished': 3},
      ],
      'margin': 1.5,
      'runs': 9,
      'finished': 9,
    }
  ]
  assert described(rows) == {
    'best test error (%)': 'deep 9.00 ± 0.50 (3 runs), 1.50 better than plain 10.50 ± 0.25 (3 runs)'
  }
  rows[0]['mean']['test_error'] = 9.5
  assert described(rows)['best test error (%)'].endswith(
    '0.50 better than plain 9.50 ± 0.25 (3 runs), within a standard deviation over the seeds'
  )


@pytest.mark.parametrize(
  ('metric', 'best'),
  [('accuracy', 'b'), ('auroc', 'b'), ('images_per_second', 'b'), ('loss', 'a'), ('seconds', 'a'), ('parameters', 'a')],
)
def test_which_way_is_better_depends_on_the_metric(metric, best):
  name = metric if metric in schema.RUN_METRICS else f'val_{metric}'
  (found,) = results.find_best([row('a', 1.0, name=name), row('b', 2.0, name=name)], metric)
  assert (found['ranked'][0]['variant'], found['margin']) == (best, 1.0)


def test_one_run_has_no_spread_and_one_variant_no_margin_and_missing_runs_are_counted():
  one = [row('a', 4.0, runs=1, finished=1), row('b', 3.0, runs=1, finished=1)]
  assert described(one) == {
    'best test error (%)': 'b 3.00 (1 run), 1.00 better than a 4.00 (1 run), one run each: no spread'
  }
  failed = {**row('c', math.nan, finished=0), 'mean': {}}
  alone = 'a 4.00 ± 0.10 (2 runs); there is no other variant with a result; 2 of 6 runs have finished'
  assert described([row('a', 4.0, 0.1, finished=2), failed]) == {'best test error (%)': alone}
  assert described([row('a', math.nan), row('b', 1.0, 0.5)])['best test error (%)'].startswith(
    'b 1.00 ± 0.50 (3 runs);'
  )
  assert described([failed]) == {} == described([])


def test_averaged_weights_say_what_is_best_of_a_variant_that_keeps_them():
  rows = [row('a', 9.0, name='val_error'), row('b', 8.0, name='val_error'), row('c', 7.0, name='val_error')]
  for each, error in zip(rows[:2], (4.0, 5.0), strict=True):
    each['mean']['val_ema_error'] = error
  assert described(rows[:2]) == {
    'best val ema error (%)': 'a 4.00 (3 runs), 1.00 better than b 5.00 (3 runs), one run each: no spread'
  }
  assert described(rows[1:])['best val ema error (%)'].startswith(
    'b 5.00 (3 runs), 2.00 better than c 7.00 (3 runs, val error (%))'
  )
  rows[1]['mean']['val_ema_error'] = math.nan
  (found,) = results.find_best(rows[1:], 'error')
  assert (found['metric'], len(found['ranked'])) == ('val_error', 1)


def test_only_variants_on_the_same_data_are_compared():
  rows = [row('a', 4.0, data='x'), row('b', 9.0, data='y', name='val_error'), row('c', 8.0, data='y', name='val_error')]
  assert described(rows) == {
    'best test error (%) on x': 'a 4.00 (3 runs); there is no other variant with a result',
    'best val error (%) on y': 'c 8.00 (3 runs), 1.00 better than b 9.00 (3 runs), one run each: no spread',
  }


def test_the_split_that_counts_is_not_that_of_training_and_the_results_say_what_is_best(written):
  workdir, outcomes = written
  (found,) = results.find_best(results.summarize(outcomes), 'error')
  assert found['metric'] == 'test_error'
  assert found['margin'] == pytest.approx(43.75 - 25.0)  # of 25 (one seed) and the mean of 37.5 and 50
  text = 'deep 25.00 (1 run), 18.75 better than plain 43.75 ± 8.84 (2 runs); 3 of 4 runs have finished'
  assert f'- best test error (%): {text}' in (workdir / 'results.md').read_text()
  assert text in (workdir / 'report.html').read_text()
  content = json.loads((workdir / 'results.json').read_text())
  assert content['best'] == [found] and content['comparison']['best test error (%)'] == text
  (alone,) = results.find_best([row('a', 1.0, name='train_error')], 'error')
  assert alone['metric'] == 'train_error'


@pytest.mark.parametrize(
  ('of', 'trained_on'),
  [('train', ['train[:20%]']), ('train[:20%]', ['train']), ('train[20%:]', []), ('all', ['train[:20%]'])],
)
@pytest.mark.parametrize('suffix', ['', '_ema'])
def test_a_slice_of_the_training_split_does_not_say_what_is_best(tmp_path, of, trained_on, suffix):
  config = make_config()
  config.base.data.train_split, config.base.eval.splits = of, ('train[:20%]', 'test')
  runs = [run for run in plan.make(config, tmp_path) if not run.seed]
  for run in runs:
    leave(run, *ACCURACIES[run.variant, 0])
    record = (run.workdir / 'metrics.jsonl').read_text().replace('train[:20%]/', f'train[:20%]{suffix}/')
    first = [
      dict(sorted(json.loads(line).items(), key=lambda item: item[0] < 'train[')) for line in record.splitlines()
    ]
    (run.workdir / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in first))
  rows = results.summarize([reading.read(run) for run in runs])
  assert [each['trained_on'] for each in rows] == [trained_on] * 2
  (found,) = results.find_best(rows, 'error')
  assert found['metric'] == ('test_error' if trained_on else f'train[:20%]{suffix}_error')


@pytest.mark.parametrize(
  ('source', 'change', 'named'),
  [
    ('digits', {'data.images_per_class': 5}, 'digits train[:20%], 5 of each class'),
    ('folder', {'data.dir': 'data/mri'}, 'folder in data/mri train[:20%]'),
  ],
)
def test_data_that_differ_in_images_of_each_class_or_in_their_folder_are_others(tmp_path, source, change, named):
  config = make_config()
  config.base.data.source = source
  config.variants = {'changed': change, 'all': {}}
  rows = results.summarize([reading.read(run) for run in plan.make(config, tmp_path)])
  assert [each['data'] for each in rows] == [named, f'{source} train[:20%]']
