import csv
import json
import math

import numpy as np
import pytest

from dnt import config as schema
from dnt import workdir as workdir_lib
from dnt.comparison import output, plan, reading, results
from tests.comparison.recorded import ACCURACIES, leave, make_config


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
  assert 'best test error (%): tie of 0.1 and 0.2 at 37.50\n' in out
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
        {'variant': 'wide', 'metric': 'test_error', 'mean': 12.0, 'std': 0.1, 'finished': 3},
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


BEST = dict.fromkeys(schema.OPTIONS['compare']['columns'].choices, 'a') | dict.fromkeys(
  ('accuracy', 'balanced_accuracy', 'top5_accuracy', 'auroc', 'images_per_second'), 'b'
)


@pytest.mark.parametrize(('metric', 'best'), BEST.items())
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


def test_variants_whose_means_read_the_same_tie():
  rows = [row('sgd', 0.0), row('big', 1.0), row('adamw', 0.001, 0.002), row('wide', 0.0)]
  assert described(rows) == {'best test error (%)': 'tie of sgd, wide and adamw at 0.00'}
  assert described(rows[:1] + rows[2:3]) == {'best test error (%)': 'tie of sgd and adamw at 0.00'}
  assert described([row('a', 8.2, name='seconds'), row('b', 7.9, name='seconds', finished=2)], 'seconds') == {
    'best time': 'tie of b and a at 8 s; 5 of 6 runs have finished'
  }
  assert described([row('a', 99.0, name='val_accuracy'), row('b', 99.0, name='val_accuracy')], 'accuracy') == {
    'best val accuracy (%)': 'tie of a and b at 99.00'
  }


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
