"""The record of a run: averages, the best metric, patience, what a resume brings back."""

import json
import types

import numpy as np
import pytest

from dnt import errors
from dnt.reporting import metrics
from dnt.training import datasets, evaluate, experiment, open_options, record, scores, telemetry


@pytest.fixture
def make(tiny, tmp_path):
  """A record of a tiny run (4 steps an epoch, a line every 2 steps), from step 0 or going on from a history."""
  tiny.train.patience = 2

  def open_record(step=0, history=None, best_metric='test/accuracy'):
    tiny.checkpoint.best_metric = best_metric
    data = datasets.load(tiny, ())
    run = experiment.make(open_options.resolve(tiny, data), data.spec)
    return record.Record(run, tmp_path, step, history or {}, record.Clock(0.0))

  return open_record


def values(*losses):
  loss = np.array(losses, np.float32)
  return {
    'loss': loss,
    'accuracy': loss / 10,
    'gradient_norm': loss,
    'learning_rate': np.linspace(0.1, 0.2, len(losses), dtype=np.float32),
  }


def evaluation(accuracy, loss=1.0, split='test'):
  metrics, matrix = {f'{split}/accuracy': accuracy, f'{split}/loss': loss}, np.diag([3, 1])
  return evaluate.Result(metrics, {split: matrix}, {split: scores.per_class(matrix, np.array([0.5, np.nan]))})


def test_a_clock_gives_every_moment_to_one_lap(monkeypatch):
  now = iter([5.0, 7.0, 7.5])
  monkeypatch.setattr(record.time, 'monotonic', lambda: next(now))
  clock = record.Clock(1.0)
  assert [clock.lap('setup'), clock.lap('train'), clock.lap('setup')] == [4.0, 2.0, 0.5]
  assert clock.seconds == {'setup': 4.5, 'train': 2.0}


def test_a_training_line_is_the_mean_since_the_last_one(make, tmp_path):
  with make() as rec:
    rec.add_training(0, 1, values(1.0, 99.0))  # the second is beyond the count
    rec.add_training(1, 1, values(2.0))
    rec.add_training(2, 2, values(3.0, 5.0))
  lines = metrics.read(tmp_path)
  assert [(line['step'], line['epoch'], line['train/loss']) for line in lines] == [(2, 0.5, 1.5), (4, 1.0, 4.0)]
  assert lines[1]['train/accuracy'] == pytest.approx(0.4)
  assert lines[1]['train/learning_rate'] == pytest.approx(0.2), 'the last step, not the mean'
  assert lines[1]['images_per_second'] > 0


def test_the_wait_for_images_is_a_fraction_of_the_time_of_the_steps_since_the_last_line(make, tmp_path, monkeypatch):
  now = iter([2.0, 3.0, 5.0, 9.0])
  monkeypatch.setattr(record.time, 'monotonic', lambda: next(now))
  with make() as rec:
    rec._clock.lap('compile')
    rec._clock.input_seconds += 0.5
    rec.add_training(0, 1, values(1.0))
    history = json.loads(json.dumps(rec.history()))
  with make(1, history) as rec:
    rec._clock.mark = 3.0
    rec._clock.input_seconds += 1.0
    rec.add_training(1, 1, values(1.0))
    rec.add_training(2, 2, values(1.0, 1.0))
  first, second = metrics.read(tmp_path)
  assert (first['input_wait'], first['compile_seconds'], first['images_per_second']) == (0.5, 2.0, 2 * 16 / 3)
  assert (second['input_wait'], second['images_per_second']) == (0.0, 2 * 16 / 4)


def test_the_utilization_is_of_the_peak_of_the_chips_and_unknown_on_others(make, tmp_path, monkeypatch):
  now = iter([1.0, 2.0, 4.0])
  monkeypatch.setattr(record.time, 'monotonic', lambda: next(now))
  with make() as rec:
    rec.add_training(0, 2, values(1.0, 1.0))
    assert rec._run.train_flops(0) == 3 * sum(row.flops for row in rec._run.table)
    chip = types.SimpleNamespace(device_kind='NVIDIA H100 80GB HBM3')
    monkeypatch.setattr(record.jax, 'devices', lambda: [chip] * 4)
    rec.add_training(2, 2, values(1.0, 1.0))
    flops = rec._run.train_flops(0)
  cpu, gpu = metrics.read(tmp_path)
  assert 'mfu' not in cpu
  assert gpu['images_per_second'] == 2 * 16 / 1
  assert gpu['mfu'] == pytest.approx(flops * 32 / 4 / 494.7e12)  # TF32, for float32 networks


def test_the_flops_of_steps_are_those_of_what_trains(tiny):
  tiny.finetune.trainable, tiny.finetune.unfreeze, tiny.finetune.cached_views = 'head', (('3', 'all'),), 0
  data = datasets.load(tiny, ())
  run = experiment.make(open_options.resolve(tiny, data), data.spec)
  forward = sum(row.flops for row in run.table)
  assert run.train_flops(2) == forward + 2 * run.table[-1].flops
  assert run.train_flops(3) == 3 * forward


def test_the_flops_of_steps_leave_out_the_gradients_of_frozen_kernels(tiny):
  tiny.model.norm, tiny.finetune.cached_views = 'batch_norm', 0

  def flops(**options):
    tiny.finetune.update({'trainable': 'head', 'frozen_norm': 'running', **options})
    data = datasets.load(tiny, ())
    run = experiment.make(open_options.resolve(tiny, data), data.spec)
    return run.train_flops(0), [row.flops for row in run.table]

  found, (*below, head) = flops(frozen_norm='affine_only')
  assert found == 2 * sum(below) + 3 * head
  found, (stem, *between, head) = flops(trainable='stem|head')
  assert found == 3 * stem + 2 * sum(between) + 3 * head


def test_a_line_begun_before_a_resume_ends_after_it(make, tmp_path):
  with make() as rec:
    rec.add_training(0, 1, values(1.0))
    history = json.loads(json.dumps(rec.history()))
  with make(1, history) as rec:
    rec.add_training(1, 1, values(4.0))
  assert [(line['step'], line['train/loss']) for line in metrics.read(tmp_path)] == [(2, 2.5)]


def test_images_count_with_the_batch_that_they_were_in(make, tiny):
  with make() as rec:
    rec.add_training(0, 3, values(1.0, 1.0, 1.0))
    history = json.loads(json.dumps(rec.history()))
  tiny.train.batch_size = 64
  with make(3, history) as rec:
    rec.add_training(3, 2, values(1.0, 1.0))
    assert rec.images == rec.history()['images'] == 3 * 16 + 2 * 64


def test_a_line_is_written_on_demand_and_again_by_a_run_that_did_not_save_it(make, tmp_path):
  with make() as rec:
    rec.add_training(0, 3, values(1.0, 2.0, 6.0))  # no line is due
    history = json.loads(json.dumps(rec.history()))
    rec.write_line(3)
    rec.write_line(3)
    assert not rec.history()['sums'] and rec.last['train/loss'] == 3.0
  first = metrics.read(tmp_path)
  with make(3, history) as rec:
    assert metrics.read(tmp_path) == []
    rec.write_line(3)
  for (line,) in (first, metrics.read(tmp_path)):
    found = [line[f'train/{name}'] for name in ('loss', 'accuracy', 'learning_rate')]
    np.testing.assert_allclose(found, [3.0, 0.3, 0.2], rtol=1e-6)
    assert line['step'] == 3 and line['images_per_second'] > 0


def test_the_first_loss_that_is_not_finite_stops_the_run_with_its_step(make):
  with make() as rec, pytest.raises(errors.RunError, match=r'not finite .*step 7\b'):
    rec.add_training(4, 3, values(1.0, 2.0, np.nan, np.inf))


def test_a_loss_beyond_the_count_does_not_count(make, tmp_path):
  with make() as rec:
    rec.add_training(0, 1, values(1.0, np.nan))
    rec.add_training(1, 1, values(1.0, np.inf))
  assert [line['train/loss'] for line in metrics.read(tmp_path)] == [1.0]


@pytest.mark.parametrize(
  ('metric', 'first', 'better', 'worse'),
  [('accuracy', (0.5, 9.0), (0.6, 9.0), (0.4, 0.1)), ('loss', (0.5, 1.0), (0.1, 0.5), (0.9, 2.0))],
)
def test_best_and_patience(make, metric, first, better, worse):
  with make(best_metric=f'test/{metric}') as rec:
    rec.add_evaluation(1, evaluation(*first))
    rec.add_evaluation(2, evaluation(*worse))
    assert (rec.best['step'], rec.out_of_patience) == (1, False)
    rec.add_evaluation(3, evaluation(*better))
    assert (rec.best['step'], rec.best['metric']) == (3, f'test/{metric}')
    rec.add_evaluation(4, evaluation(*worse))
    history = json.loads(json.dumps(rec.history()))
  with make(4, history, f'test/{metric}') as rec:
    assert (rec.evaluated_at, rec.best['step'], rec.out_of_patience) == (4, 3, False)
    rec.add_evaluation(5, evaluation(*worse))
    assert rec.out_of_patience


def test_the_peak_memory_is_that_of_the_largest_process(make, monkeypatch):
  found = {'process': 200, 'device': None}
  monkeypatch.setattr(record.memory, 'peak', lambda: dict(found))
  with make() as rec:
    history = json.loads(json.dumps(rec.history()))
  found['process'] = 100
  with make(1, history) as rec:
    assert rec.peak_memory == {'process': 200, 'device': None}
    found |= {'process': 300, 'device': 5}
    assert rec.peak_memory == {'process': 300, 'device': 5}


def test_the_average_ranks_when_there_is_one(make, tiny):
  tiny.ema.decay = 0.9
  with make() as rec:
    assert rec.best_metric == 'test_ema/accuracy'
  with make(best_metric='val[:50%]/loss') as rec:
    assert rec.best_metric == 'val[:50%]_ema/loss'


def test_without_a_split_that_ranks_there_is_no_best_and_no_end_of_patience(make):
  with make(best_metric='accuracy') as rec:
    for step in range(1, 5):
      rec.add_evaluation(step, evaluation(0.5))
    assert (rec.best_metric, rec.best, rec.out_of_patience) == ('', {}, False)


@pytest.mark.parametrize(
  ('metric', 'warned'), [('test/accuracy', True), ('test[:50%]/loss', True), ('val/accuracy', False), ('loss', False)]
)
def test_a_run_that_ranks_by_test_says_so_once(make, console, metric, warned):
  with make(best_metric=metric) as rec:
    history = json.loads(json.dumps(rec.history()))
    assert set(rec.warnings) == ({'ranked_by_test'} if warned else set())
  with make(3, history, metric) as rec:
    assert rec.warnings == history['warnings']
  assert console.readouterr().out.count('ranks the checkpoints') == warned


def test_a_training_line_does_not_replace_the_evaluation_of_the_training_split(make, tiny):
  """They have names in common. Without such an evaluation, the summary has the figures of the line."""
  tiny.eval.splits = ('train',)
  found = evaluation(0.5, 3.0, 'train')
  found.metrics['train/calibration_error'] = 0.1
  with make(best_metric='accuracy') as rec:
    rec.add_training(0, 2, values(2.0, 4.0))
    assert (rec.last['train/loss'], rec.last['train/accuracy']) == (3.0, pytest.approx(0.3))
    rec.add_evaluation(2, found)
    rec.add_training(2, 2, values(8.0, 9.0))
    assert (rec.last['train/loss'], rec.last['train/accuracy']) == (3.0, 0.5)
    assert rec.last['train/gradient_norm'] == 8.5


@pytest.mark.parametrize(
  ('quantity', 'values', 'best'),
  [
    ('balanced_accuracy', (0.5, 0.7, 0.6, 0.7), 2),
    ('auroc', (0.9, 0.7, 0.8, 0.6), 1),
    ('auroc', (None, 0.7, None, 0.8), 4),
    ('top5_accuracy', (0.5, 0.6, 0.7, 0.8), 4),
    ('calibration_error', (0.3, 0.2, 0.1, 0.4), 3),
  ],
)
def test_every_metric_of_an_evaluation_can_rank_and_end_patience(make, quantity, values, best):
  with make(best_metric=f'test/{quantity}') as rec:
    for step, value in enumerate(values, 1):
      found = evaluation(0.1 * step, 1 / step)
      known = {} if value is None else {f'test/{quantity}': value}
      rec.add_evaluation(step, found._replace(metrics=found.metrics | known))
    assert rec.best == {'metric': f'test/{quantity}', 'value': values[best - 1], 'step': best}
    assert rec.out_of_patience == (best <= 2), 'patience is 2'


def test_the_end_is_recorded_once(make, tmp_path):
  found = evaluation(0.75)
  with make(best_metric='val/loss') as rec:
    rec.add_evaluation(4, evaluation(0.5, split='val'))
    rec.add_end(4, found, {'step': 2, 'test/loss': 0.5})
    assert rec.best_checkpoint == {'step': 2, 'test/loss': 0.5}
  with make(4, rec.history(), 'val/loss') as rec:
    rec.add_end(4, found, {})
  assert [line.keys() - {'step', 'epoch'} for line in metrics.read(tmp_path)] == [
    {'val/accuracy', 'val/loss'},
    {'test/accuracy', 'test/loss'},
  ]
  assert rec.last['test/accuracy'] == 0.75 and rec.best['metric'] == 'val/loss'
  assert (tmp_path / 'confusion_test.json').exists()


def test_splits_that_are_no_longer_evaluated_have_no_last_figures(make, tiny):
  tiny.eval.splits, tiny.ema.decay = ('val', 'train'), 0.9
  with make(best_metric='accuracy') as rec:
    rec.add_training(0, 2, values(2.0, 4.0))
    before = set(rec.last)
    for split in ('val', 'val_ema', 'train', 'train_ema'):
      rec.add_evaluation(2, evaluation(0.5, split=split))
    history = json.loads(json.dumps(rec.history()))
  assert {'train/loss', 'train/gradient_norm', 'images_per_second'} <= before
  for splits, decay, kept in (
    (('val', 'train'), 0.9, ('val', 'val_ema', 'train_ema')),
    (('val',), 0.0, ('val',)),
    (('test', 'train'), 0.9, ('train_ema',)),
    (('test',), 0.9, ()),
  ):
    tiny.eval.splits, tiny.ema.decay = splits, decay
    with make(2, history, 'accuracy') as rec:
      assert set(rec.last) == before | {f'{split}/{quantity}' for split in kept for quantity in ('accuracy', 'loss')}


def test_an_evaluation_that_is_not_finite_ranks_nothing_and_at_the_end_fails_the_run(make, tiny, console):
  tiny.eval.splits = ('val',)
  with make(best_metric='val/accuracy') as rec:
    rec.add_evaluation(2, evaluation(0.5, split='val'))
    rec.add_evaluation(4, evaluation(np.nan, np.nan, split='val'))
    rec.add_evaluation(6, evaluation(np.nan, np.inf, split='val'))
    assert (rec.best['step'], rec.warnings['evaluation_not_finite']['step']) == (2, 4)
    assert console.readouterr().out.count('warning at step 4: val/loss is not finite') == 1
    with pytest.raises(errors.RunError, match=r'val/loss is not finite at step 6, the end; .*learning_rate'):
      rec.add_end(6, evaluate.Result({}, {}, {}), {})
  history = json.loads(json.dumps(rec.history()).replace('Infinity', 'null'))
  with make(6, history, 'val/accuracy') as rec, pytest.raises(errors.RunError, match='val/loss is not finite'):
    rec.add_end(6, evaluation(0.5), {})


@pytest.mark.parametrize(
  ('optimizer', 'factors', 'warned'), [('sgd', [0.05], 5), ('sgd', [0.5, 0.05], 0), ('adamw', [0.05], 0)]
)
def test_clipping_is_warned_of_where_it_sets_the_size_of_every_step(make, tiny, optimizer, factors, warned):
  tiny.optim.name, tiny.clip.name = optimizer, 'global_norm'
  with make() as rec:
    for step, factor in zip(range(7), factors + 7 * factors[-1:], strict=False):
      shown = telemetry.Column(np.full(3, factor, np.float32), (0, 1, 2))
      rec.add_training(step, 1, values(1.0) | {'telemetry': {'clip_factor': shown}})
    assert rec.warnings.get('clipping', {'step': 0})['step'] == warned


def test_confusion_matrices_are_on_disk_once_they_are_found(make, tiny, tmp_path):
  tiny.eval.splits = ('test[:50%]',)
  with make(best_metric='test[:50%]/accuracy') as rec:
    rec.add_evaluation(2, evaluation(0.5, split='test[:50%]'))
    stored = json.loads((tmp_path / 'confusion_test_-50pct.json').read_text())
    assert stored['matrix'] == [[3, 0], [0, 1]]
    assert stored['per_class']['sensitivity'] == [1, 1] and stored['per_class']['auroc'] == [0.5, None]
    assert (stored['split'], stored['step'], len(stored['class_names'])) == ('test[:50%]', 2, 10)
    assert 'confusion' not in rec.history()
    many = np.zeros((2001, 2001), np.int32)
    many[1, 2000] = 3
    result = evaluation(0.5, split='test[:50%]')
    rec.add_evaluation(4, result._replace(confusion={'test[:50%]': many}))
  stored = json.loads((tmp_path / 'confusion_test_-50pct.json').read_text())
  assert stored['matrix'] == {'true': [1], 'predicted': [2000], 'count': [3]}
