"""Predictions for a split of a run's own data: ranked as NumPy ranks them, and as accurate as the run's evaluation."""

import logging
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from dnt import errors, inference, loop
from dnt.config import run_config
from dnt.parallel import mesh as mesh_lib
from dnt.training import datasets, evaluate


def logits_of(network, images):
  program = jax.jit(lambda v, x: network.model.apply(v, network.preprocess(x), train=False))
  return np.asarray(program(network.variables, images), np.float64)


@pytest.mark.usefixtures('eight_devices')
@pytest.mark.parametrize(('split', 'batch_size'), [('test', 24), ('train[:50]', 64), ('test[:3]', 32)])
def test_the_largest_loss_comes_first_for_any_batch(trained, split, batch_size):
  config = run_config.get_config(str(trained.workdir / 'config.json'))
  mesh = mesh_lib.make_mesh(config.mesh)
  network = inference.load(trained.workdir, mesh)
  source = inference.load_split(network, split)
  found = inference.predict_split(network, mesh, source, batch_size, 2)

  (split_of,) = datasets.load(config, (split,)).evaluation.values()
  logits, labels = logits_of(inference.load(trained.workdir), split_of.images), np.asarray(split_of.labels)
  losses = special.logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
  assert sorted(found.places) == list(range(len(labels))) and not len(found.lost)
  np.testing.assert_allclose(found.losses, np.sort(losses)[::-1], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(losses[found.places], found.losses, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(found.labels, labels[found.places])
  np.testing.assert_array_equal(found.indexes, np.argsort(-logits, 1)[found.places, :2])
  probabilities = np.sort(special.softmax(logits, axis=1), 1)[found.places, :-3:-1]
  np.testing.assert_allclose(found.probabilities, probabilities, rtol=1e-4)


def test_loss_and_accuracy_are_those_of_the_evaluation(trained_copy):
  workdir = trained_copy.workdir
  config = run_config.get_config(str(workdir / 'config.json'))
  mesh = mesh_lib.make_mesh(config.mesh)
  network = inference.load(workdir, mesh)
  found = inference.predict_split(network, mesh, inference.load_split(network, 'test'), 32, 5)
  wanted = evaluate.evaluate(config, workdir)
  assert (found.indexes[:, 0] == found.labels).mean() == wanted['test_ema/accuracy']
  assert found.losses.mean(dtype=np.float64) == pytest.approx(wanted['test_ema/loss'], rel=1e-5)


def test_images_without_finite_logits_are_apart_and_of_equals_the_first_comes_first(trained):
  mesh = mesh_lib.make_mesh(run_config.get_config(str(trained.workdir / 'config.json')).mesh)
  network = inference.load(trained.workdir, mesh)
  source = inference.load_split(network, 'test')
  bright = source.images[:, 0, 0, 0] > 128

  class Blind:
    def apply(self, variables, images, train):
      return jnp.where(images[:, 0, 0, :1] > 128, jnp.nan, jnp.arange(10.0)[None])

  blind = network._replace(model=Blind(), preprocess=lambda images: images)
  found = inference.predict_split(blind, mesh, source, 32, 1)
  np.testing.assert_array_equal(found.lost, np.flatnonzero(bright))
  np.testing.assert_array_equal(found.places, sorted(np.flatnonzero(~bright), key=lambda at: (source.labels[at], at)))


def test_a_split_of_a_data_set_that_has_changed_is_refused(trained):
  network = inference.load(trained.workdir)
  with pytest.raises(errors.InputError, match="unknown split of synthetic 'vl'"):
    inference.load_split(network, 'vl')
  with pytest.raises(errors.InputError, match='now another data set .*8x8x3 of 10 classes, not 9x8x3 of 10'):
    inference.load_split(network._replace(image_shape=(9, 8, 3)), 'test')


@pytest.fixture
def run_of_scans(tiny, scans, saved):
  """The paths of the training images, and of the `val`, that a run drew from twelve images in two class folders."""
  tiny.data.update({'source': f'folder:{scans}', 'image_size': 8, 'workers': 0, 'val_fraction': 0.34})
  tiny.data.update({'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.4)})
  tiny.eval.splits, tiny.checkpoint.best_metric = ('val',), 'accuracy'
  _, _, data = saved(tiny)
  return data.train.store.paths, data.evaluation['val'].store.paths


def test_images_that_the_run_was_trained_on_are_counted(run_of_scans, scans, tmp_path, caplog):
  trained_on, held_out = run_of_scans
  network = inference.load(tmp_path / 'run')
  (tmp_path / 'link').symlink_to(scans)
  shutil.copytree(scans, tmp_path / 'copies')
  with caplog.at_level(logging.INFO, 'dnt'):
    inference.say_trained_on(network, held_out)
    inference.say_trained_on(network, inference.find(tmp_path / 'copies'))
    assert 'trained on' not in caplog.text
    inference.say_trained_on(network, inference.find(scans))
    assert f'{len(trained_on)} of these 12 images are among those that the run was trained on' in caplog.text
    assert 'new ones; --split=val predicts those of a split alone' in caplog.text
    caplog.clear()
    inference.say_trained_on(network, [str(tmp_path / 'link' / os.path.relpath(trained_on[0], scans))])
    assert '1 of these 1 images' in caplog.text
    shutil.rmtree(scans / 'dog')
    inference.say_trained_on(network, inference.find(scans))


def test_only_splits_that_there_are_are_offered(tiny, scans, tmp_path, caplog):
  tiny.data.update({'source': f'folder:{scans}', 'image_size': 8, 'workers': 0})
  tiny.data.update({'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.4)})
  tiny.eval.splits, tiny.checkpoint.best_metric = ('train',), 'accuracy'  # so that all images are trained on
  tiny.train.steps, tiny.train.batch_size, tiny.eval.batch_size = 1, 4, 4
  loop.train(tiny, tmp_path / 'run')
  network = inference.load(tmp_path / 'run')
  with caplog.at_level(logging.INFO, 'dnt'):
    inference.say_trained_on(network, inference.find(scans))
  assert caplog.text.count('12 of these 12 images') == 1 and '--split' not in caplog.text
  for split in ('val', 'test', 'test[:50%]'):
    with pytest.raises(errors.InputError, match=rf"^unknown split of folder:.* '{split[:4]}'.* Valid: all, train$"):
      inference.load_split(network, split)


def test_paths_are_those_of_the_files(run_of_scans, trained, tmp_path):
  assert inference.paths_of(inference.load_split(inference.load(tmp_path / 'run'), 'val')) == run_of_scans[1]
  assert inference.paths_of(inference.load_split(inference.load(trained.workdir), 'test')) is None
