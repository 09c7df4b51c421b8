import dataclasses
import json
import logging
import re
import shutil

import jax
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from dnt import errors
from dnt.config import keys
from dnt.parallel import mesh as mesh_lib
from dnt.training import datasets, evaluate, experiment, open_options, scores


def test_logits_that_are_not_finite_predict_nothing(tiny):
  data = datasets.load(tiny, ('test',))
  run = experiment.make(open_options.resolve(tiny, data), data.spec)
  mesh = mesh_lib.make_mesh(tiny.mesh)
  variables = mesh_lib.place(run.init_variables(), mesh_lib.replicated(mesh))
  variables['params'] = jax.tree.map(lambda leaf: np.nan * leaf, variables['params'])
  with evaluate.Evaluator(run, mesh, data.evaluation) as evaluator:
    metrics, confusion, per_class = evaluator(variables)
  assert not confusion['test'].any() and {*per_class['test']['sensitivity']} == {None}
  assert metrics.keys() == {'test/loss', 'test/accuracy', 'test/balanced_accuracy', 'test/calibration_error'}
  assert np.isnan(list(metrics.values())).all()


def test_with_a_loss_that_is_not_finite_no_metric_is(tiny):
  """A logit of -inf leaves finite probabilities, so that there are predictions, and ranks of all examples."""
  data = datasets.load(tiny, ('test',))
  run = experiment.make(open_options.resolve(tiny, data), data.spec)
  mesh = mesh_lib.make_mesh(tiny.mesh)
  variables = mesh_lib.place(run.init_variables(), mesh_lib.replicated(mesh))
  head = variables['params']['head']['dense']
  head['bias'] = head['bias'].at[0].set(-np.inf)
  with evaluate.Evaluator(run, mesh, data.evaluation) as evaluator:
    metrics, confusion, per_class = evaluator(variables)
  assert confusion['test'].sum() == 64 and None not in per_class['test']['auroc']
  assert metrics['test/loss'] == np.inf
  assert all(np.isnan(value) for name, value in metrics.items() if name != 'test/loss')


@pytest.mark.parametrize(('placement', 'done'), [('device', (16, 32)), ('stream', range(8, 56, 8))])
def test_a_long_pass_says_how_many_images_are_done(tiny, placement, done, console, slow_count, monkeypatch):
  slow_count(20.0)
  tiny.data.placement, tiny.data.workers, tiny.eval.batch_size = placement, 0, 8
  monkeypatch.setattr(evaluate, 'TOGETHER', 2)
  data = datasets.load(tiny, ('test',))
  run = experiment.make(open_options.resolve(tiny, data), data.spec)
  mesh = mesh_lib.make_mesh(tiny.mesh)
  variables = mesh_lib.place(run.init_variables(), mesh_lib.replicated(mesh))
  with evaluate.Evaluator(run, mesh, data.evaluation) as evaluator:
    console.readouterr()
    evaluator(variables)
  lines = console.readouterr().out.splitlines()
  # While one dispatch is prepared, the one before is not done yet; from the host each is one batch.
  assert [line.split('  ')[0] for line in lines] == [f'evaluated test {images}/64' for images in done]


@pytest.mark.thorough
@pytest.mark.parametrize('placement', ['device', 'stream'])
@pytest.mark.parametrize('batch_size', [16, 48, 128])
def test_every_example_counts_once_whatever_the_batch_size(tiny, batch_size, placement):
  tiny.data.synthetic_examples = 50
  tiny.data.placement, tiny.data.workers = placement, 0
  tiny.eval.batch_size = batch_size
  data = datasets.load(tiny, ('test', 'train[:30%]'))
  run = experiment.make(open_options.resolve(tiny, data), data.spec)
  mesh = mesh_lib.make_mesh(tiny.mesh)
  variables = mesh_lib.place(run.init_variables(), mesh_lib.replicated(mesh))
  with evaluate.Evaluator(run, mesh, data.evaluation) as evaluator:
    result = evaluator(variables)
    again = evaluator(variables, '_ema')

  for split, count in (('test', 50), ('train[:30%]', 15)):
    source = data.evaluation[split]
    mean, std = (np.reshape(value, (1, 1, 1, -1)) for value in (run.config.data.mean, run.config.data.std))
    images = np.stack([source[index][0] for index in range(count)])
    labels = np.array([source[index][1] for index in range(count)])
    logits = np.asarray(run.model.apply(run.init_variables(), (images / 255.0 - mean) / std, train=False))
    picked = jax.nn.log_softmax(logits)[np.arange(count), labels]
    predicted = np.argmax(logits, -1)
    assert len(source) == count
    assert result.metrics[f'{split}/loss'] == pytest.approx(-float(picked.mean()), rel=1e-5)
    assert result.metrics[f'{split}/accuracy'] == pytest.approx(float((predicted == labels).mean()))
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, predicted), 1)
    assert np.array_equal(result.confusion[split], confusion)
    balanced = np.mean([(predicted[labels == label] == label).mean() for label in set(labels)])
    assert result.metrics[f'{split}/balanced_accuracy'] == pytest.approx(balanced)
    assert again.metrics[f'{split}_ema/loss'] == result.metrics[f'{split}/loss']

    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    areas = result.per_class[split]['auroc']
    assert [area is None for area in areas] == [label not in labels for label in range(10)]
    for label in set(labels):
      expected = sklearn_metrics.roc_auc_score(labels == label, probabilities[:, label])
      assert areas[label] == pytest.approx(expected, abs=1e-9)
    held = [area for area in areas if area is not None]
    assert result.metrics[f'{split}/auroc'] == pytest.approx(np.mean(held))
    confidence = probabilities.max(1)
    of_bins = [np.ceil(15 * confidence) == place for place in range(1, 16)]
    gaps = [abs(np.sum(((predicted == labels) - confidence)[inside])) for inside in of_bins]
    assert result.metrics[f'{split}/calibration_error'] == pytest.approx(sum(gaps) / count, rel=1e-4)
    recall = sklearn_metrics.recall_score(labels, predicted, average=None, labels=sorted(set(labels)), zero_division=0)
    found = [value for value in result.per_class[split]['sensitivity'] if value is not None]
    np.testing.assert_allclose(found, recall)
    json.dumps(result.per_class, allow_nan=False)


def test_a_split_of_too_many_probabilities_has_no_auroc_and_the_same_figures_else(tiny, monkeypatch):
  data = datasets.load(tiny, ('test',))
  run = experiment.make(open_options.resolve(tiny, data), data.spec)
  mesh = mesh_lib.make_mesh(tiny.mesh)
  variables = mesh_lib.place(run.init_variables(), mesh_lib.replicated(mesh))
  found = []
  for largest in (640, 639):  # 64 examples of 10 classes
    monkeypatch.setattr(scores, 'LARGEST', largest)
    with evaluate.Evaluator(run, mesh, data.evaluation) as evaluator:
      found.append(evaluator(variables))
  assert found[0].metrics == found[1].metrics | {'test/auroc': found[0].metrics['test/auroc']}
  assert 'test/auroc' not in found[1].metrics
  assert found[1].per_class['test'] == found[0].per_class['test'] | {'auroc': [None] * 10}


def test_classes_in_another_order_give_the_same_figures_and_the_order_of_the_run(tiny, saved, tmp_path, change_splits):
  saved(tiny)
  before = evaluate.evaluate(tiny, tmp_path / 'run')
  written = (tmp_path / 'run' / 'evaluation.json').read_text()
  places = np.roll(np.arange(10, dtype=np.int32), 3)

  def reorder(split):
    return split.relabelled(places, tuple(split.class_names[index] for index in np.argsort(places)))

  change_splits(reorder)
  assert evaluate.evaluate(tiny, tmp_path / 'run') == before
  assert (tmp_path / 'run' / 'evaluation.json').read_text() == written
  assert json.loads(written)['class_names'] == [f'class{index}' for index in range(10)]


def test_each_checkpoint_is_evaluated_as_if_it_were_alone(tiny, saved, tmp_path, rank):
  alone = {}
  for step in (3, 7):
    tiny.seed = step
    saved(tiny, tmp_path / str(step), step)
    alone[step] = evaluate.evaluate(tiny, tmp_path / str(step))
  assert alone[3]['test/loss'] != alone[7]['test/loss']
  workdir = tmp_path / '7'
  shutil.copytree(tmp_path / '3' / 'checkpoints' / '3', workdir / 'checkpoints' / '3')
  rank(workdir, 'test/accuracy', {3: 0.9, 7: 0.1})
  for checkpoint, step in {'newest': 7, 'last': 7, '7': 7, 'best': 3, '3': 3}.items():
    assert evaluate.evaluate(tiny, workdir, checkpoint) == alone[step]
  with pytest.raises(errors.InputError, match="'5'.* 3, 7, best, newest"):
    evaluate.evaluate(tiny, workdir, '5')


def test_the_best_checkpoint_is_that_of_the_metric_in_the_config(tiny, saved, tmp_path, rank):
  tiny.eval.splits, tiny.checkpoint.best_metric, tiny.ema.decay = ('val', 'test'), 'val/accuracy', 0.5
  saved(tiny)
  for step, metric in {3: 'val_ema/accuracy', 5: 'val_ema/loss', 7: 'test_ema/accuracy'}.items():
    if step != 7:
      shutil.copytree(tmp_path / 'run' / 'checkpoints' / '7', tmp_path / 'run' / 'checkpoints' / str(step))
    rank(tmp_path / 'run', metric, {step: 0.5})
  mesh = mesh_lib.make_mesh(tiny.mesh)
  for metric, step in {'accuracy': 3, 'val/accuracy': 3, 'loss': 5, 'test/accuracy': 7}.items():
    tiny.checkpoint.best_metric = metric
    assert evaluate.load(tiny, tmp_path / 'run', mesh, (), 'best').step == step
  tiny.checkpoint.best_metric = 'test/loss'
  with pytest.raises(errors.InputError, match='no checkpoint in .* has test_ema/loss'):
    evaluate.load(tiny, tmp_path / 'run', mesh, (), 'best')


def test_a_renamed_class_is_refused(tiny, saved, tmp_path, change_splits):
  saved(tiny)
  change_splits(lambda split: dataclasses.replace(split, class_names=('z_class', *split.class_names[1:])))
  with pytest.raises(errors.InputError, match=f'{re.escape(str(tmp_path / "run"))}.*z_class; missing: class0'):
    evaluate.evaluate(tiny, tmp_path / 'run')
  assert not (tmp_path / 'run' / 'evaluation.json').exists()


def test_a_workdir_that_cannot_be_written_is_refused_before_the_evaluation(tiny, saved, tmp_path, monkeypatch):
  saved(tiny)
  monkeypatch.setattr(evaluate.files, 'why_not_writable', lambda folder: 'Read-only file system')
  monkeypatch.setattr(evaluate, 'evaluate_all', lambda *_: pytest.fail('evaluated before'))
  with pytest.raises(
    errors.InputError, match=f'{re.escape(str(tmp_path / "run"))} cannot be written .Read-only.*copy the run'
  ):
    evaluate.evaluate(tiny, tmp_path / 'run')
  with pytest.raises(errors.InputError, match='no checkpoint'):
    evaluate.evaluate(tiny, tmp_path / 'other')
  assert not (tmp_path / 'other').exists()


def test_what_is_not_as_in_the_run_is_said(tiny, saved, tmp_path, caplog):
  saved(tiny)
  caplog.set_level(logging.INFO, 'dnt')
  tiny.seed, tiny.optim.learning_rate, tiny.data.augment = 5, 1.0, 'pad_crop_flip'  # for training only
  evaluate.evaluate(tiny, tmp_path / 'run')
  assert 'not as' not in caplog.text
  tiny.model.activation, tiny.data.seed = 'gelu', 3
  evaluate.evaluate(tiny, tmp_path / 'run')
  lines = [record.getMessage() for record in caplog.records if 'not as the run' in record.getMessage()]
  assert [line.partition(': ')[2].split()[0] for line in lines] == ['data.seed', 'model.activation']


def test_the_average_of_a_network_without_statistics_is_evaluated(tiny, saved, tmp_path):
  tiny.model.norm, tiny.ema.decay = 'layer_norm', 0.5
  saved(tiny)
  found = evaluate.evaluate(tiny, tmp_path / 'run')
  assert found['test_ema/loss'] != found['test/loss']


def test_another_network_is_refused_by_its_options(tiny, saved, tmp_path):
  saved(tiny)
  tiny.model.norm = 'layer_norm'
  with pytest.raises(errors.InputError, match="model.norm was 'batch_norm'.*--config="):
    evaluate.evaluate(tiny, tmp_path / 'run')


def test_statistics_are_those_of_the_run_although_its_training_images_have_changed(
  tiny, saved, tmp_path, change_splits
):
  saved(tiny)
  before = evaluate.evaluate(tiny, tmp_path / 'run')
  change_splits(lambda split: split if split.split == 'test' else dataclasses.replace(split, store=split.store // 2))
  assert evaluate.evaluate(tiny, tmp_path / 'run') == before


@pytest.mark.parametrize(
  'options',
  [
    {'finetune.rates': (('stem', 0.1),)},
    {'optim.weight_decay_on': 'nothing'},
    {'finetune.l2_sp': 0.1},
    {'optim.name': 'muon'},
    {'clip.name': 'adaptive'},
  ],
)
def test_an_evaluation_judges_no_options_of_training(tiny, saved, tmp_path, options):
  """Older versions trained with options without effect."""
  tiny.finetune.trainable = 'head'
  saved(tiny)
  for key, value in options.items():
    keys.put(tiny, key, value)
  mesh = mesh_lib.make_mesh(tiny.mesh)
  assert evaluate.load(tiny, tmp_path / 'run', mesh).step == 7
  data = datasets.load(tiny, ())
  with pytest.raises(errors.InputError, match='rates|weight_decay_on|l2_sp|muon|adaptive'):
    experiment.make(open_options.resolve(tiny, data), data.spec)
