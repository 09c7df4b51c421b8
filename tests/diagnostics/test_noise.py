"""The noise scale against its definition: a quadratic, and the gradients of single examples."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import checkpoints, errors, trees
from dnt.config import run_config
from dnt.data import order
from dnt.diagnostics import noise
from dnt.parallel import mesh as mesh_lib
from dnt.training import datasets, experiment, initialize, losses, open_options


@pytest.fixture
def network(tiny):
  """Without BatchNorm, so that every example has a gradient of its own."""
  tiny.model.norm, tiny.model.depth = 'none', 4
  tiny.loss.label_smoothing = 0.1
  tiny.noise_scale.batches, tiny.noise_scale.micro_batches = 3, 2
  return tiny


def test_expected_norms_give_gradient_and_covariance_back():
  squared, trace = np.array([2.0, 0.5]), np.array([30.0, 400.0])
  small, big = (np.stack([squared + trace / size] * 4) for size in (4, 64))
  found = noise.estimate(small, big, 4, 64)
  np.testing.assert_allclose(found.squared_gradient, squared, rtol=1e-12)
  np.testing.assert_allclose(found.trace, trace, rtol=1e-12)
  np.testing.assert_allclose(found.noise_scale, trace / squared, rtol=1e-12)
  np.testing.assert_allclose(found.standard_error, 0, atol=1e-9)


def test_quadratic():
  """Loss (w - x)' A (w - x) / 2 with x from N(0, C): the gradient is A w, its covariance A C A."""
  generator = np.random.default_rng(0)
  root = generator.normal(size=(6, 6))
  matrix, spread = root @ root.T, np.diag(generator.uniform(0.5, 2, 6))
  point = generator.normal(size=6)
  squared, trace = np.sum((matrix @ point) ** 2), np.trace(matrix @ spread**2 @ matrix)

  def measured(batches=200, micro_batches=8, size=4):
    x = generator.normal(size=(batches, micro_batches, size, 6)) @ spread
    micro = np.mean((point - x) @ matrix, 2)
    small, big = np.mean(np.sum(micro**2, -1), 1), np.sum(np.mean(micro, 1) ** 2, -1)
    return noise.estimate(small[:, None], big[:, None], size, micro_batches * size)

  found = [measured() for _ in range(60)]
  scales, errors_ = (np.array([getattr(each, name)[0] for each in found]) for name in ('noise_scale', 'standard_error'))
  assert np.mean([each.squared_gradient for each in found]) == pytest.approx(squared, rel=0.02)
  assert np.mean([each.trace for each in found]) == pytest.approx(trace, rel=0.02)
  assert np.mean(scales) == pytest.approx(trace / squared, rel=0.03)
  assert np.mean(errors_) == pytest.approx(np.std(scales), rel=0.3)
  assert np.mean(np.abs(scales - trace / squared) < 2 * errors_) > 0.85


def test_a_gradient_lost_in_noise_has_no_scale():
  found = noise.estimate(np.array([[10.0], [8.0]]), np.array([[0.5], [0.3]]), 1, 8)
  assert found.squared_gradient < 0
  assert np.isnan(found.noise_scale)


def build(config):
  data = datasets.load(config, ())
  run = experiment.make(open_options.resolve(config, data), data.spec)
  mesh = mesh_lib.make_mesh(config.mesh)
  state = initialize.make_state(run, mesh, initialize.find(run, mesh, checkpoints.ReadOnly('nowhere'), None))
  return run, mesh, data.train, state


def example_gradients(run, source, count):
  """Float64 [count, parameters] by entry: of the first examples in the order of training, each by itself."""
  mean, std = (np.reshape(value, (1, 1, 1, -1)) for value in (run.config.data.mean, run.config.data.std))
  epochs = [order.order(run.config.seed, epoch, len(source)) for epoch in range(-(-count // len(source)))]
  picked = np.concatenate(epochs)[:count]
  images = ((source.images[picked] / 255.0 - mean) / std).astype(np.float32)
  params = run.init_variables()['params']

  def loss(params, image, label):
    logits = run.model.apply({'params': params}, image[None], train=True)
    return losses.cross_entropy(logits, label[None], run.config.loss.label_smoothing, run.config.loss.class_weights)[0][
      0
    ]

  gradients = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(params, images, source.labels[picked])
  flat = {path: np.asarray(leaf, np.float64).reshape(count, -1) for path, leaf in trees.flatten(gradients).items()}
  names = [row.entry.name for row in run.table if row.parameters]
  return {
    name: np.concatenate([leaf for path, leaf in flat.items() if path.startswith(f'{name}/')], 1) for name in names
  }


@pytest.mark.thorough
@pytest.mark.parametrize('weights', [(), (0.25, 3.0, *[1.0] * 8)], ids=['alike', 'weighted'])
def test_gradients_of_single_examples(network, weights):
  """Micro-batches of one example and batches of the whole split: the sample mean and covariance themselves."""
  network.loss.class_weights = weights
  network.data.synthetic_examples = network.train.batch_size = network.noise_scale.micro_batches = 32
  network.noise_scale.batches = 2
  run, mesh, source, state = build(network)
  names, small, big = noise.measure(run, mesh, source, state)
  gradients = example_gradients(run, source, 32)
  assert names == tuple(gradients) == ('stem', 'stage1/block001', 'stage1/block002', 'head')
  gradients['all'] = np.concatenate(list(gradients.values()), 1)
  found = noise.estimate(small[:1], big[:1], 1, 32)
  for column, each in enumerate(gradients.values()):
    assert big[0, column] == pytest.approx(np.sum(each.mean(0) ** 2), rel=1e-4)
    trace = np.trace(np.cov(each.T))
    assert found.trace[column] == pytest.approx(trace, rel=1e-4)
    assert found.squared_gradient[column] == pytest.approx(np.sum(each.mean(0) ** 2) - trace / 32, rel=1e-3, abs=1e-6)


@pytest.mark.thorough
@pytest.mark.usefixtures('eight_devices')
def test_micro_batches_scanned_and_streamed_on_eight_devices(network):
  network.model.scan, network.data.placement, network.data.workers = True, 'stream', 0
  network.ema.decay, network.train.accumulate = 0.9, 2
  run, mesh, source, state = build(network)
  names, small, big = noise.measure(run, mesh, source, state)
  network.model.scan = False
  gradients = example_gradients(build(network)[0], source, 3 * 16)
  assert names == tuple(gradients)
  for column, each in enumerate(gradients.values()):
    micro = each.reshape(3, 2, 8, -1).mean(2)
    np.testing.assert_allclose(small[:, column], np.sum(micro**2, -1).mean(1), rtol=1e-4)
    np.testing.assert_allclose(big[:, column], np.sum(micro.mean(1) ** 2, -1), rtol=1e-4)
  np.testing.assert_allclose(small[:, -1], small[:, :-1].sum(1), rtol=1e-6)


def files_of(workdir):
  return {path.relative_to(workdir): path.read_bytes() for path in workdir.rglob('*') if path.is_file()}


def test_a_run_and_its_workdir(network, tmp_path, program):
  fresh = noise.run(network, tmp_path / 'fresh')
  assert set(files_of(tmp_path / 'fresh')) == {pathlib.Path('noise_scale.json')}
  run, _, _, state = build(network)
  moved = state.replace(step=jnp.int32(4), params=jax.tree.map(lambda leaf: 1.1 * leaf, state.params))
  saved = checkpoints.Checkpoints(tmp_path / 'run', network.checkpoint)
  saved.save(4, moved, {'config': run.config.to_dict(), 'class_names': list(run.spec.class_names)})
  saved.close()
  before = files_of(tmp_path / 'run')
  trained = noise.run(network, tmp_path / 'run')
  after = files_of(tmp_path / 'run')
  assert json.loads(after.pop(pathlib.Path('noise_scale.json')))['step'] == 4
  assert after == before
  assert (fresh['step'], trained['step']) == (0, 4)
  assert fresh['total'] != trained['total']
  assert (fresh['batch_size'], fresh['micro_batch_size'], fresh['batches']) == (16, 8, 3)
  names = [row.entry.name for row in run.table]
  assert [each['name'] for each in fresh['entries']] == names
  total = fresh['total']
  assert fresh['critical_batch_size'] == total['noise_scale'] or np.isnan(total['noise_scale'])
  assert total['squared_gradient'] == pytest.approx(sum(each['squared_gradient'] for each in fresh['entries']))
  lines = noise.text(fresh).splitlines()
  assert len(lines) == 1 + len(names) + 1 + 1
  for each in [*fresh['entries'], total]:
    assert each['signal_to_noise'] == pytest.approx(16 * each['squared_gradient'] / each['trace'])
    scale = each['trace'] / each['squared_gradient']
    assert each['noise_scale'] == pytest.approx(scale) if scale > 0 else np.isnan(each['noise_scale'])
  run_config.write(tmp_path / 'config.json', network)
  config = f'--config={run_config.__file__}:{tmp_path / "config.json"}'
  code, out, err = program(config, f'--workdir={tmp_path / "run"}', '--mode=noise_scale')
  assert code == 0, err
  assert out == f'{noise.text(trained)}  {tmp_path / "run"}\n'


def figures(scale, error):
  total = {
    'squared_gradient': 0.5,
    'trace': 50.0,
    'noise_scale': scale,
    'standard_error': error,
    'signal_to_noise': 0.6,
  }
  result = {'step': 7, 'batches': 50, 'batch_size': 64, 'micro_batch_size': 8, 'batch_norm': False, 'total': total}
  return result | {'critical_batch_size': scale, 'entries': [{'name': 'stem', **total}]}


def test_what_is_said_of_the_critical_batch_size():
  lines = noise.text(figures(100.0, 10.0)).splitlines()
  assert lines[0].split() == ['entry', '|G|^2', 'tr(Sigma)', 'noise', 'scale', '+-', 'signal/noise', 'at', '64']
  assert lines[1].split() == ['stem', '0.5', '50', '100', '10', '0.6']
  assert re.match(r'critical batch size 100 \+- 10\b.* step 7\b.* 50 batches', lines[-1])
  assert '--config.noise_scale.batches' not in lines[-1]
  assert '--config.noise_scale.batches=200' in noise.text(figures(100.0, 60.0))
  hidden = noise.text(figures(float('nan'), float('nan'))).splitlines()
  assert hidden[1].split() == ['stem', '0.5', '50', '-', '-', '0.6']
  assert 'noise hides' in hidden[-1] and '--config.noise_scale.batches=200' in hidden[-1]
  unknown = noise.text(figures(100.0, float('nan'))).splitlines()
  assert unknown[1].split() == ['stem', '0.5', '50', '100', '-', '0.6']
  assert re.match(r'critical batch size 100 \+- \? examples', unknown[-1])
  assert '--config.noise_scale.batches=200' in unknown[-1]
  assert 'BatchNorm' in noise.text(figures(100.0, 10.0) | {'batch_norm': True})


@pytest.mark.thorough
def test_only_norms_that_follow_the_batch_are_said_to_add_noise(network, tmp_path):
  network.model.norm, network.finetune.trainable = 'batch_norm', 'head'
  assert not noise.run(network, tmp_path)['batch_norm']
  network.finetune.frozen_norm = 'batch'
  assert noise.run(network, tmp_path)['batch_norm']


def test_a_batch_that_cannot_be_divided(network, tmp_path):
  network.noise_scale.micro_batches = 3
  with pytest.raises(errors.InputError, match='1 devices x 3 micro-batches'):
    noise.run(network, tmp_path)
