"""The figures of the first steps against torch and against Jacobians that are known."""

import copy
import functools

import jax
import numpy as np
import pytest

from dnt import errors, models, trees
from dnt.data import order, resident
from dnt.diagnostics import causes, cures, doctor, first_steps, remedies, trial
from dnt.diagnostics.verdicts import Kind
from dnt.parallel import mesh as mesh_lib
from dnt.training import datasets, experiment, open_options


def examine(config, seeds=1):
  return first_steps.examine(config, datasets.load(config, ()), seeds)


def likeness(torch, x):
  """Mean cosine over all pairs of the first eight."""
  x = torch.nn.functional.normalize(x[:8], dim=1)
  return float(np.mean([x[i] @ x[j] for i in range(8) for j in range(8) if i != j]))


def torch_trains(torch, config, seed):
  """Figures of the first step by name, [entries] each; 'losses' and 'ratios', the median updates, of ten steps."""
  data = datasets.load(config, ())
  run = experiment.make(open_options.resolve(config, data), data.spec)
  entries = [row.entry.name for row in run.table]
  drawn = trees.flatten(models.init(run.trace, seed)['params'])
  params = {path: torch.tensor(np.array(leaf), requires_grad=True) for path, leaf in drawn.items()}
  mean, std = (np.reshape(value, (1, 1, 1, -1)) for value in (run.config.data.mean, run.config.data.std))
  images = ((data.train.images / 255.0 - mean) / std).astype(np.float32).reshape(len(data.train), -1)
  size = config.train.batch_size
  places = np.concatenate(
    [order.order(config.seed, epoch, len(images)) for epoch in range(10 * size // len(images) + 1)]
  )
  kernels, biases = ([p for path, p in params.items() if path.endswith(name)] for name in ('kernel', 'bias'))
  groups = [{'params': kernels, 'weight_decay': config.optim.weight_decay}, {'params': biases}]
  optimizer = torch.optim.SGD(groups, lr=config.optim.learning_rate, momentum=run.config.optim.momentum)

  def norms(tensors):
    of = {entry: [t for path, t in tensors.items() if path.startswith(f'{entry}/')] for entry in entries}
    return np.array([np.sqrt(sum(float((t.detach() ** 2).sum()) for t in of[entry])) for entry in entries])

  measure, losses, ratios = {}, [], []
  for step in range(10):
    index = places[step * size : (step + 1) * size]
    pixels = x = torch.tensor(images[index])
    outputs = []
    for entry in entries:
      x = x @ params[f'{entry}/dense/kernel'] + params[f'{entry}/dense/bias']
      x = x if entry == 'head' else getattr(torch, config.model.activation)(x)
      x.retain_grad()
      outputs.append(x)
    loss = torch.nn.functional.cross_entropy(x, torch.tensor(data.train.labels[index]).long())
    optimizer.zero_grad()
    loss.backward()
    if step == 0:
      backward = np.array([float(x.grad.norm()) for x in outputs])
      outputs = [x.detach() for x in outputs]
      measure = {
        'activation_rms': [float((x**2).mean().sqrt()) for x in outputs],
        'activation_variance': [float(x.var(unbiased=False)) for x in outputs],
        'cosine': [likeness(torch, x) for x in outputs],
        'output_gradient_norm': backward,
        'jacobian_gain': [np.nan, *backward[:-1] / backward[1:]],
        'gradient_norm': norms({path: p.grad for path, p in params.items()}),
        'input_cosine': likeness(torch, pixels),
      }
      if config.model.activation == 'relu':
        measure['zero'] = [float((x == 0).float().mean()) for x in outputs]
        measure['dead'] = [float((x == 0).all(0).float().mean()) for x in outputs]
      else:
        measure['saturated'] = [*(float((x.abs() > 0.95).float().mean()) for x in outputs[:-1]), np.nan]
    before = {path: p.detach().clone() for path, p in params.items()}
    optimizer.step()
    losses.append(float(loss.detach()))
    ratios.append(norms({path: p.detach() - before[path] for path, p in params.items()}) / norms(before))
  return measure | {'update_ratio': np.mean(ratios, 0), 'losses': losses, 'ratios': np.median(ratios, 1)}


@pytest.mark.parametrize('activation', ['relu', 'tanh'])
def test_every_figure_and_the_first_steps_equal_torch(torch_reference, tiny, activation):
  tiny.model.norm, tiny.model.activation, tiny.model.depth, tiny.model.init_gain = 'none', activation, 4, 2.0
  tiny.optim.weight_decay = 0.01
  found = examine(tiny, seeds=2)
  assert found.entries == ('stem', 'stage1/block001', 'stage1/block002', 'head')
  assert found.losses.shape == found.update_ratios.shape == (2, 10)
  cosines = []
  for seed in range(2):
    measure = torch_reference(functools.partial(torch_trains, config=tiny, seed=seed))
    losses, ratios = measure.pop('losses'), measure.pop('ratios')
    cosines.append(measure.pop('input_cosine'))
    for name, expected in measure.items():
      np.testing.assert_allclose(found.columns[name][seed], expected, rtol=1e-3, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found.losses[seed], losses, rtol=1e-3)
    np.testing.assert_allclose(found.update_ratios[seed], ratios, rtol=1e-3)
  assert 0.1 < measure['zero' if activation == 'relu' else 'saturated'][0] < 0.9
  assert found.input_cosine == pytest.approx(np.mean(cosines), rel=1e-4)
  np.testing.assert_allclose(found.learning_rates, tiny.optim.learning_rate)
  assert found.uniform_loss == pytest.approx(np.log(10))
  parts = np.bincount(datasets.load(tiny, ()).train.labels) / tiny.data.synthetic_examples
  assert found.guessing_loss == pytest.approx(-np.sum(parts * np.log(parts)))


def test_the_gain_of_a_known_jacobian(tiny):
  """A linear layer of orthogonal weights, times 1.5, lengthens every signal and every gradient by 1.5."""
  tiny.model.update({'norm': 'none', 'activation': 'identity', 'initializer': 'orthogonal', 'init_gain': 1.5})
  tiny.model.depth = 6
  found = examine(tiny)
  blocks = slice(1, 5)
  np.testing.assert_allclose(found.columns['jacobian_gain'][0, blocks], 1.5, rtol=1e-4)
  rms = found.columns['activation_rms'][0]
  np.testing.assert_allclose(rms[blocks] / rms[:4], 1.5, rtol=1e-4)
  cosine = found.columns['cosine'][0]
  np.testing.assert_allclose(cosine[blocks], cosine[0], atol=1e-5)


def test_the_logits_are_those_of_training(tiny):
  """By the running statistics of an untrained network, the signal would grow a hundredfold at each layer."""
  tiny.model.depth, tiny.model.init_gain = 4, 100.0
  found = examine(tiny)
  rms = found.columns['activation_rms'][0]
  assert np.sqrt(np.mean(found.outputs**2)) == pytest.approx(rms[-1], rel=1e-4)
  assert rms[-1] < 1e3 * rms[-2]


@pytest.mark.thorough
def test_pretrained_weights_are_where_it_starts(tiny, saved, tmp_path):
  tiny.model.norm, tiny.model.depth = 'none', 3
  expected = examine(tiny, seeds=2)
  other = copy.deepcopy(tiny)
  other.seed = 1
  saved(other)
  tiny.train.init_from = str(tmp_path / 'run')
  data = datasets.load(tiny, ())
  found = first_steps.examine(tiny, data, 2)
  np.testing.assert_allclose(found.losses, expected.losses[1:], rtol=1e-5)
  tried = trial.run(tiny, data, seconds=0.0)
  np.testing.assert_allclose(tried.losses, found.losses[0, :2], rtol=1e-5)


@pytest.mark.thorough
def test_the_variance_of_outputs_that_are_nearly_equal(tiny):
  tiny.model.activation, tiny.model.norm, tiny.model.init_gain = 'sigmoid', 'none', 1e-4
  tiny.train.batch_size = tiny.data.synthetic_examples
  data = datasets.load(tiny, ())
  run = experiment.make(open_options.resolve(tiny, data), data.spec)
  kernel = np.asarray(trees.flatten(models.init(run.trace, tiny.seed)['params'])['stem/dense/kernel'], np.float64)
  pixels = data.train.images / 255.0
  inputs = (pixels - np.array(run.config.data.mean)) / np.array(run.config.data.std)
  expected = np.var(1 / (1 + np.exp(-inputs.reshape(len(inputs), -1) @ kernel)))
  assert expected < 1e-7  # of a mean of 0.5, whose square float32 knows to 3e-8
  found = examine(tiny).columns['activation_variance'][0, 0]
  np.testing.assert_allclose(found, expected, rtol=0.01)


def test_similarity_is_computed_at_the_highest_precision():
  """The default of accelerators cannot tell a cosine of 0.9999 from 1."""
  program = jax.make_jaxpr(first_steps._cosine)(np.ones((4, 3), np.float32))
  (product,) = (each for each in program.eqns if each.primitive.name == 'dot_general')
  assert product.params['precision'] == (jax.lax.Precision.HIGHEST,) * 2


def same(found, expected, rtol):
  assert found.entries == expected.entries
  assert found.columns.keys() == expected.columns.keys()
  for name, column in expected.columns.items():
    np.testing.assert_allclose(found.columns[name], column, rtol=rtol, atol=rtol / 10, err_msg=name)
  np.testing.assert_allclose(found.losses, expected.losses, rtol=rtol)


@pytest.mark.thorough
@pytest.mark.usefixtures('eight_devices')
def test_a_scanned_network_and_eight_devices_show_the_same(tiny, monkeypatch):
  devices = jax.devices()
  monkeypatch.setattr(jax, 'devices', lambda: devices[:1])
  tiny.model.depth = 6
  expected = examine(tiny)
  tiny.model.scan, tiny.model.remat = True, True
  same(examine(tiny), expected, 1e-2)
  monkeypatch.setattr(jax, 'devices', lambda: devices)
  same(examine(tiny), expected, 1e-2)
  monkeypatch.setattr(mesh_lib, 'SMALLEST_SPLIT_LEAF', 64)
  tiny.mesh.fsdp = 4
  same(examine(tiny), expected, 1e-2)


@pytest.mark.thorough
@pytest.mark.parametrize('tool', [first_steps.examine, trial.run, cures._find_rates])
@pytest.mark.usefixtures('eight_devices')
def test_devices_split_the_state_as_the_check_of_its_memory_assumes(tiny, monkeypatch, tool):
  monkeypatch.setattr(mesh_lib, 'SMALLEST_SPLIT_LEAF', 64)
  monkeypatch.setattr(trial, 'STEPS', 20)
  tiny.mesh.fsdp, tiny.model.width = 8, 24
  seen, arrays = set(), resident.TrainLoader.arrays

  def watched(loader, *args):
    for leaf in jax.live_arrays():
      if leaf.shape == (192, 24) and len(leaf.sharding.device_set) == 8:  # the kernel of the stem and its momentum
        seen.add(leaf.sharding.shard_shape(leaf.shape))
    return arrays(loader, *args)

  monkeypatch.setattr(resident.TrainLoader, 'arrays', watched)
  tool(tiny, datasets.load(tiny, ()))
  assert seen == {(24, 24)}


@pytest.mark.thorough
def test_convolutions_in_bfloat16(tiny):
  tiny.model.name, tiny.model.depth, tiny.model.width, tiny.model.bottleneck = 'densenet', 7, None, False
  tiny.model.growth_rate = 4
  found = {}
  for dtype in ('float32', 'bfloat16'):
    tiny.model.dtype = dtype
    found[dtype] = examine(tiny)
    assert doctor.judge(found[dtype]).kind == Kind.TRAINABLE
  for name in ('activation_rms', 'cosine', 'output_gradient_norm'):
    expected = found['float32'].columns[name]
    np.testing.assert_allclose(found['bfloat16'].columns[name], expected, rtol=0.1, atol=0.02, err_msg=name)
    assert not np.array_equal(found['bfloat16'].columns[name], expected)


@pytest.mark.thorough
def test_micro_batches_augmentation_and_a_streamed_set(tiny):
  tiny.data.augment, tiny.data.crop_padding, tiny.data.placement, tiny.data.workers = 'pad_crop_flip', 1, 'stream', 0
  tiny.model.norm, tiny.train.accumulate = 'layer_norm', 4
  found = examine(tiny)
  tiny.train.accumulate = 1
  whole = examine(tiny)
  np.testing.assert_allclose(found.losses, whole.losses, rtol=1e-3)
  for name in ('activation_rms', 'output_gradient_norm', 'gradient_norm', 'jacobian_gain'):
    np.testing.assert_allclose(found.columns[name], whole.columns[name], rtol=1e-3, err_msg=name)
  assert (found.columns['cosine'] > 0).all(), 'within each micro-batch'
  assert (found.columns['cosine'] < 1).all()
  tiny.train.accumulate = 16
  assert np.isnan(examine(tiny).columns['cosine']).all(), 'a micro-batch of one image has no other'


NETS = """
import flax.linen as nn
import jax.numpy as jnp
from jax.lax import stop_gradient

class Own(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    return x @ self.param('kernel', nn.initializers.lecun_normal(), (x.shape[-1], self.num_classes))

class Masked(nn.Module):
  @nn.compact
  def __call__(self, x):
    return {'mask': x > 0, 'x': nn.Dense(16)(x)}

class Scale(nn.Module):
  @nn.compact
  def __call__(self, x):
    return jnp.mean(nn.Dense(1)(x))

class Odd(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    x = Masked(name='masked')(x.reshape(x.shape[0], -1))['x']
    shared = nn.Dense(16, name='shared')
    x = nn.relu(shared(nn.relu(shared(x))))
    x = nn.Dropout(0.5, deterministic=not train, name='drop')(x)
    return nn.Dense(self.num_classes, name='answer')(x) * (1 + 0.01 * Scale(name='scale')(x))

class Dead(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(16, name='hidden')(x.reshape(x.shape[0], -1)))
    x = jnp.maximum(nn.Dense(20, bias_init=nn.initializers.constant(-9.0), name='dead')(x), 0)
    return nn.Dense(self.num_classes, name='answer')(x)

class Sigmoids(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    for index in range(12):
      x = nn.sigmoid(nn.Dense(16, name=f'layer{index:02d}')(x))
    return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name='answer')(x)

class Zero(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name='answer')(x.reshape(x.shape[0], -1))

class Stopped(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(16, name='hidden')(x.reshape(x.shape[0], -1)))
    return stop_gradient(jnp.tanh(nn.Dense(self.num_classes, name='answer')(x)) / 2)
"""


@pytest.fixture
def own(tiny, tmp_path, monkeypatch):
  """Makes a config of a module of the user's own."""
  (tmp_path / 'doctornets.py').write_text(NETS)
  monkeypatch.syspath_prepend(tmp_path)

  def make(name):
    tiny.model.name, tiny.model.depth, tiny.model.width = f'doctornets:{name}', None, None
    return tiny

  return make


@pytest.mark.thorough
def test_modules_of_ones_own(own):
  found = examine(own('Own'))
  assert found.entries == ('kernel',)
  assert np.isnan(found.columns['activation_rms']).all(), 'there is no module whose output could be seen'
  assert (found.columns['gradient_norm'] > 0).all()
  assert doctor.judge(found).kind == Kind.TRAINABLE
  found = examine(own('Odd'))
  assert found.entries == ('masked', 'shared', 'drop', 'answer', 'scale')
  assert (found.columns['cosine'][0, :4] > -1).all()
  assert np.isnan(found.columns['cosine'][0, 4]), 'a single number, which no image has to itself'
  assert doctor.judge(found).kind == Kind.TRAINABLE


@pytest.mark.thorough
def test_units_of_functions_of_ones_own_are_counted(own):
  found = examine(own('Dead'))
  assert found.columns['dead'][0, :2].tolist() == [pytest.approx(0.1, abs=0.1), 1.0]
  verdict = doctor.judge(found)
  assert (verdict.kind, verdict.entry) == ('dead', 'dead') and '100 % of its units' in verdict.reason


@pytest.mark.thorough
def test_a_head_that_starts_at_zero_hides_nothing(own):
  """No gradient passes such a head in the first step; the sigmoids below it lose it all the same."""
  config = own('Sigmoids')
  found = examine(config)
  verdict = doctor.judge(found)
  assert verdict.kind == Kind.VANISHING
  assert found.columns['output_gradient_norm'][0, -2] > 0
  assert found.outputs.any() and causes.find_faults(found) == []
  assert all(key.startswith(('optim.', 'clip.')) for each in remedies.choose(config, found, verdict) for key in each)


@pytest.mark.parametrize('warmup', ['0', '5'])
def test_updates_of_what_starts_at_zero_are_no_fraction_of_it(own, warmup):
  config = own('Zero')
  config.schedule.warmup = warmup  # whose first step has the rate 0
  found = examine(config)
  assert np.isnan(found.update_ratios).all() and found.losses[0, -1] < found.losses[0, 0]
  assert found.output_range == (-np.inf, np.inf)


@pytest.mark.thorough
def test_outputs_that_are_limited_and_pass_no_gradient(own):
  found = examine(own('Stopped'))
  assert found.output_range == (-0.5, 0.5)
  verdict = doctor.judge(found)
  assert (verdict.kind, verdict.entry) == (Kind.CUT_OFF, 'answer')
  assert [cause.kind for cause in causes.find_faults(found)] == [Kind.SQUASHED, Kind.CUT_OFF]


@pytest.mark.thorough
def test_frozen_norms_need_no_batch(tiny):
  assert examine(tiny).batch_statistics
  tiny.finetune.trainable = 'head'
  assert not examine(tiny).batch_statistics
  tiny.finetune.frozen_norm = 'batch'
  assert examine(tiny).batch_statistics


@pytest.mark.usefixtures('eight_devices')
def test_a_batch_that_the_devices_cannot_share(tiny):
  tiny.train.batch_size = 12
  with pytest.raises(errors.InputError, match=r'config\.train\.batch_size=12 .*\b8 devices'):
    examine(tiny)


def test_a_rate_that_a_run_would_find_is_refused(tiny):
  tiny.optim.learning_rate = 'auto'
  with pytest.raises(errors.InputError, match='learning_rate=.* found when a run starts.* rate'):
    examine(tiny)
