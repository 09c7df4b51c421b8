import json
import re

import pytest

from dnt import errors
from dnt.comparison import output, plan, reading, results
from tests.comparison.recorded import leave, lines, make_config


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
  with pytest.raises(errors.InputError, match=rf'{re.escape(str(run.workdir / name))} ') as refused:
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


@pytest.mark.parametrize(
  ('ranking', 'more'),
  [('error', []), ('accuracy', []), ('seconds', []), ('auroc', ['test AUROC']), ('loss', ['train loss', 'test loss'])],
)
def test_what_ranks_the_variants_has_curves(tmp_path, ranking, more):
  (run, *_) = plan.make(make_config(), tmp_path)
  leave(run, 0.7, 0.625)
  curves = reading.read(run, ranking).curves
  assert {*curves} == {'training loss', 'train error (%)', 'test error (%)', *more}
  if ranking == 'auroc':
    assert curves['test AUROC'].values == pytest.approx([0.5 * 0.625 + 0.1, 0.625 + 0.1])
