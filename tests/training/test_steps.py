import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from dnt import trees
from dnt.data.transforms import mixing
from dnt.models import initializers
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import sharding
from dnt.training import steps


def close(a, b, atol=1e-6):
  a, b = trees.flatten(a), trees.flatten(b)
  assert a.keys() == b.keys()
  for path in a:
    np.testing.assert_allclose(a[path], b[path], atol=atol, err_msg=path)


@pytest.mark.thorough
def test_a_step_is_gradient_descent_on_the_mean_loss(tiny, begin):
  tiny.model.norm = 'none'
  tiny.optim.momentum, tiny.optim.weight_decay, tiny.optim.learning_rate = 0.0, 0.0, 0.5
  run, state, batch = begin(tiny)

  def loss(params):
    mean, std = (np.reshape(value, (1, 1, 1, -1)) for value in (run.config.data.mean, run.config.data.std))
    logits = run.model.apply({'params': params}, (batch['image'] / 255.0 - mean) / std, train=True)
    picked = jax.nn.log_softmax(logits)[jnp.arange(len(logits)), batch['label']]
    return -picked.mean(), logits

  (value, logits), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
  after, found = jax.jit(run.phases[0].train_step)(state, batch)
  close(after.params, jax.tree.map(lambda p, g: p - 0.5 * g, state.params, gradient))
  assert int(after.step) == 1
  assert found['loss'] == pytest.approx(float(value), rel=1e-5)
  assert found['accuracy'] == pytest.approx(float((logits.argmax(-1) == batch['label']).mean()))
  norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)))
  assert found['gradient_norm'] == pytest.approx(float(norm), rel=1e-5)
  assert found['learning_rate'] == pytest.approx(0.5)


@pytest.mark.thorough
def test_accumulated_gradients_are_those_of_the_whole_batch(tiny, begin):
  tiny.model.norm = 'layer_norm'
  tiny.loss.class_weights = tuple(range(1, 11))  # micro-batches of unequal weight
  tiny.data.augment, tiny.data.crop_padding = 'pad_crop_flip', 1
  run, state, batch = begin(tiny)
  whole, whole_metrics = jax.jit(run.phases[0].train_step)(state, batch)
  tiny.train.accumulate = 4
  run, state, batch = begin(tiny)
  parts, parts_metrics = jax.jit(run.phases[0].train_step)(state, batch)
  close(parts.params, whole.params)
  for name in whole_metrics:
    assert float(parts_metrics[name]) == pytest.approx(float(whole_metrics[name]), rel=1e-5)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_batch_of_classes_without_weight_has_no_gradient(tiny, begin, accumulate):
  tiny.loss.class_weights, tiny.loss.label_smoothing = (0.0,) * 9 + (1.0,), 0.1
  tiny.model.norm, tiny.train.accumulate = 'none', accumulate
  run, state, batch = begin(tiny)
  gradient = jax.jit(steps.make_gradient(run.config, run.model, run.preprocess))
  found = gradient(state, batch | {'label': jnp.zeros(16, jnp.int32)})
  assert found.loss == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(found.params))
  found = gradient(state, batch | {'label': jnp.zeros(16, jnp.int32).at[3].set(9)})
  assert found.loss > 0 and all(np.any(leaf) for leaf in jax.tree.leaves(found.params))


@pytest.mark.thorough
@pytest.mark.parametrize('kind', ['mixup', 'cutmix'])
def test_a_mixed_batch_has_the_mean_of_both_losses(torch_reference, tiny, begin, kind):
  tiny.model.norm = 'none'
  tiny.loss.class_weights = tuple(range(1, 11))
  tiny.data[kind] = 1.0
  run, state, batch = begin(tiny)
  _, found = jax.jit(run.phases[0].train_step)(state, batch)

  keys = jax.random.split(jax.random.wrap_key_data(state.rng, impl=initializers.PRNG))
  key = jax.random.split(jax.random.fold_in(keys[1], 0), 3)[2]
  fraction, own, (top, bottom, left, right) = mixing.draw(tiny.data.mixup, tiny.data.cutmix, key, 8, 8)
  images = np.asarray(run.preprocess(batch, None))
  weight = np.full((8, 8, 1), own)
  weight[top:bottom, left:right] = 0
  images = weight * images + (1 - weight) * np.roll(images, 1, 0)
  logits = np.array(run.model.apply({'params': state.params}, images, train=True))

  def compute(torch):
    of_class, found = torch.arange(1.0, 11.0), []
    for labels in (batch['label'], np.roll(batch['label'], 1)):
      labels = torch.tensor(np.array(labels), dtype=torch.long)
      loss = torch.nn.functional.cross_entropy(torch.tensor(logits), labels, weight=of_class, reduction='sum')
      found += [loss, of_class[labels].sum()]
    return found

  loss, weights, other_loss, other_weights = map(float, torch_reference(compute))
  fraction = float(fraction)
  expected = (fraction * loss + (1 - fraction) * other_loss) / (fraction * weights + (1 - fraction) * other_weights)
  assert float(found['loss']) == pytest.approx(float(expected), rel=1e-5)
  larger = batch['label'] if fraction >= 0.5 else np.roll(batch['label'], 1)
  assert float(found['accuracy']) == pytest.approx(np.mean(logits.argmax(-1) == larger))


@pytest.mark.thorough
def test_micro_batches_are_of_the_mixed_batch(tiny, begin):
  """Partners are those of the whole batch, and one mixture holds for all of it."""
  tiny.model.norm = 'layer_norm'
  tiny.loss.class_weights = tuple(range(1, 11))
  tiny.data.cutmix = 1.0
  tiny.data.augment, tiny.data.crop_padding, tiny.data.erasing = 'pad_crop_flip', 1, 0.5
  found = {}
  for tiny.train.accumulate in (1, 4):
    run, state, batch = begin(tiny)
    found[tiny.train.accumulate] = jax.jit(run.phases[0].train_step)(state, batch)
  close(found[1][0].params, found[4][0].params)
  for name in found[1][1]:
    assert float(found[1][1][name]) == pytest.approx(float(found[4][1][name]), rel=1e-5)


class Draws(nn.Module):
  """A dense layer that keeps the last four values drawn for each part that drops something."""

  @nn.compact
  def __call__(self, x, train):
    for name in ('dropout', 'stochastic_depth'):
      drawn = self.variable('batch_stats', name, jnp.zeros, 4)
      if train:
        drawn.value = jnp.roll(drawn.value, 1).at[0].set(jax.random.uniform(self.make_rng(name)))
    return nn.Dense(10)(x.reshape(x.shape[0], -1))


def test_each_micro_batch_draws_its_own_dropout_and_stochastic_depth(tiny, begin):
  tiny.train.accumulate = 4
  run, state, batch = begin(tiny)
  variables = Draws().init(jax.random.key(0), run.preprocess(batch, None), train=False)
  gradient = jax.jit(steps.make_gradient(run.config, Draws(), run.preprocess))
  drawn = gradient(state.replace(**variables), batch).auxiliary.batch_stats
  assert drawn.keys() == {'dropout', 'stochastic_depth'}
  assert len(np.unique(np.concatenate(list(drawn.values())))) == 8


def test_each_step_draws_its_own_mixture(tiny, begin):
  tiny.data.mixup, tiny.optim.learning_rate, tiny.model.norm = 1.0, 1e-30, 'none'
  run, state, batch = begin(tiny)
  step = jax.jit(run.phases[0].train_step)
  losses = [float(step(state.replace(step=jnp.int32(at)), batch)[1]['loss']) for at in (0, 1, 1)]
  assert losses[1] == losses[2] != losses[0]


def test_the_average_follows_parameters_and_statistics(tiny, begin):
  tiny.ema.decay = 0.75
  run, state, batch = begin(tiny)
  after, _ = jax.jit(run.phases[0].train_step)(state, batch)
  for name in ('params', 'batch_stats'):
    old, new = getattr(state, name), getattr(after, name)
    close(after.ema[name], jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, old, new))


@pytest.mark.parametrize('decay', [0.9, 0.999, 0.99999])
def test_the_average_of_parameters_that_stay_is_these_parameters(tiny, begin, decay):
  """The factors decay and 1 - decay, rounded to float32, do not add up to 1: over many steps such an average drifts."""
  tiny.ema.decay, tiny.optim.learning_rate = decay, 1e-30
  run, state, batch = begin(tiny)
  after, _ = jax.jit(run.phases[0].train_step)(state, batch)
  for path, kernel in trees.flatten(state.params).items():
    if path.endswith('kernel'):
      np.testing.assert_array_equal(trees.flatten(after.params)[path], kernel)
      np.testing.assert_array_equal(trees.flatten(after.ema['params'])[path], kernel)


@pytest.mark.usefixtures('optimized')
@pytest.mark.thorough
def test_several_steps_are_single_steps_bit_for_bit(tiny, begin):
  tiny.model.name, tiny.model.depth, tiny.model.width = 'resnet', 8, None
  run, state, batch = begin(tiny)

  def batch_at(arrays, step):
    return {**arrays, 'position': arrays['position'] + step}

  several = jax.jit(steps.make_train_steps(run.phases[0].train_step, batch_at, longest=4))
  together, found = several(state, batch, 3)
  alone, losses = state, []
  for _ in range(3):
    alone, record = several(alone, batch, 1)
    losses.append(record['loss'][0])
  assert trees.sha256(together.params) == trees.sha256(alone.params)
  assert np.array_equal(found['loss'][:3], losses)
  assert not np.any(found['loss'][3:])


def test_evaluation_leaves_padding_out(tiny, begin):
  run, state, batch = begin(tiny)
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  mask = jnp.arange(16) < 5
  part, rows = jax.jit(run.eval_step)(variables, batch | {'mask': mask})
  changed = batch | {'image': batch['image'].at[5:].set(255), 'label': batch['label'].at[5:].set(0), 'mask': mask}
  same, others = jax.jit(run.eval_step)(variables, changed)
  assert int(part['confusion'].sum()) == 5
  assert np.array_equal(part['confusion'], same['confusion'])
  assert float(part['loss']) == pytest.approx(float(same['loss']), rel=1e-6)
  np.testing.assert_allclose(part['calibration_gaps'], same['calibration_gaps'], atol=1e-6)
  assert rows['log_odds'].shape == (16, 10), 'padding is left to whoever joins the rows'
  np.testing.assert_allclose(rows['log_odds'][:5], others['log_odds'][:5], atol=1e-5)


def test_an_evaluation_tells_apart_how_sure_confident_predictions_are(tiny, begin):
  """Logits with leads of hundreds, whose probabilities are all 0 or 1 in float32."""
  run, state, batch = begin(tiny)
  params = jax.tree.map(lambda leaf: 1e4 * leaf, state.params['head'])
  variables = {'params': {**state.params, 'head': params}, 'batch_stats': state.batch_stats}
  _, rows = jax.jit(run.eval_step)(variables, batch | {'mask': jnp.ones(16, bool)})
  logits = run.model.apply(variables, run.preprocess({'image': batch['image']}, None), train=False)
  logits = np.asarray(logits, np.float64)
  expected = [logits[:, label] - np.logaddexp.reduce(np.delete(logits, label, 1), 1) for label in range(10)]
  assert np.abs(expected).min() > 20
  np.testing.assert_allclose(rows['log_odds'], np.stack(expected, 1), rtol=1e-3)


def test_an_example_without_finite_logits_is_in_no_confusion_matrix(tiny, begin):
  run, state, batch = begin(tiny)
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  batch |= {'mask': jnp.arange(16) < 5, 'image': batch['image'].astype(jnp.float32)}
  whole, _ = jax.jit(run.eval_step)(variables, batch)
  part, rows = jax.jit(run.eval_step)(variables, batch | {'image': batch['image'].at[2].set(jnp.nan)})
  (missing,) = np.argwhere(whole['confusion'] - part['confusion'])
  assert int(part['confusion'].sum()) == 4 and missing[0] == batch['label'][2]
  assert np.isnan(part['loss']) and np.isnan(rows['log_odds'][2]).all()


def test_top5_counts_with_many_classes(tiny, begin):
  tiny.data.synthetic_classes = tiny.data.synthetic_examples = 100
  run, state, batch = begin(tiny)
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  sums, _ = jax.jit(run.eval_step)(variables, batch | {'mask': jnp.ones(16, bool)})
  mean, std = (np.reshape(value, (1, 1, 1, -1)) for value in (run.config.data.mean, run.config.data.std))
  logits = np.asarray(run.model.apply(variables, (batch['image'] / 255.0 - mean) / std, train=False))
  best = np.argsort(-logits, axis=-1)[:, :5]
  assert int(sums['top5']) == sum(label in row for label, row in zip(np.asarray(batch['label']), best, strict=True))


@pytest.fixture
def four_devices(eight_devices, monkeypatch):
  devices = jax.devices()[:4]
  monkeypatch.setattr(jax, 'devices', lambda: devices)


OWN_STATISTICS = [
  (1, {}),
  (2, {'train.accumulate': 2}),
  (4, {'model.scan': True, 'model.remat': True}),
  (1, {'finetune.trainable': 'top:2'}),
  (1, {'finetune.trainable': 'top:2', 'finetune.frozen_norm': 'batch'}),
  (4, {'finetune.trainable': 'top:2', 'finetune.frozen_norm': 'affine_only'}),
]


@pytest.mark.usefixtures('four_devices')
@pytest.mark.thorough
@pytest.mark.parametrize(('fsdp', 'options'), OWN_STATISTICS, ids=str)
def test_with_statistics_of_each_device_a_step_is_the_mean_of_steps_on_each(tiny, begin, fsdp, options):
  """The definition of PyTorch's DistributedDataParallel."""
  tiny.model.update({'name': 'resnet', 'depth': 14, 'width': None, 'norm_sync': 'device'})
  tiny.mesh.fsdp = fsdp
  for key, value in options.items():
    section, name = key.split('.')
    tiny[section][name] = value
  run, state, batch = begin(tiny)
  partition = run.phases[0].partition
  gradient = steps.make_gradient(run.config, run.model, run.preprocess, partition=partition)
  alone = jax.jit(gradient)
  each = [alone(state, jax.tree.map(lambda x, i=i: x[4 * i : 4 * i + 4], batch)) for i in range(4)]
  expected = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *each)
  mesh = mesh_lib.make_mesh(tiny.mesh)
  placed = mesh_lib.place(state, mesh_lib.parameter_shardings(mesh, state))
  found = compile_lib.jit(gradient, mesh)(placed, mesh_lib.place(batch, mesh_lib.batch_sharding(mesh)))
  assert float(found.loss) == pytest.approx(float(expected.loss), rel=1e-5)
  close(found.params, expected.params, atol=1e-5)
  close(found.auxiliary.batch_stats, expected.auxiliary.batch_stats)
  moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != b)), found.auxiliary.batch_stats, state.batch_stats)
  all_move = tiny.finetune.trainable == 'all' or tiny.finetune.frozen_norm == 'batch'
  assert all(jax.tree.leaves(moved)) == all_move
  assert any(jax.tree.leaves(moved))


def compile_step(run, mesh):
  """The compiled train step of a run, and the shapes of its state."""
  state, size = run.abstract_state(), run.config.train.batch_size
  shardings = mesh_lib.parameter_shardings(mesh, state)
  state = mesh_lib.shapes(state, shardings)
  batch = {'image': jax.ShapeDtypeStruct((size, *run.spec.image_shape), jnp.uint8)}
  batch |= {name: jax.ShapeDtypeStruct((size,), jnp.int32) for name in ('label', 'epoch', 'position')}
  program = compile_lib.jit(
    run.phases[0].train_step, mesh, donate_argnums=0, out_shardings=(shardings, mesh_lib.replicated(mesh))
  )
  return program.lower(state, mesh_lib.shapes(batch, mesh_lib.batch_sharding(mesh))).compile(), state


def all_reduced(compiled):
  """How many numbers each all-reduce of a program communicates."""
  found = re.findall(r' = (.*?) all-reduce(?:-start)?\(', compiled.as_text())
  return [
    sum(math.prod(map(int, shape.split(',') if shape else ())) for shape in re.findall(r'f32\[([\d,]*)\]', line))
    for line in found
  ]


@pytest.mark.usefixtures('four_devices', 'optimized')
@pytest.mark.thorough
@pytest.mark.parametrize('fsdp', [2, 4])
def test_a_step_with_split_parameters_exchanges_parameters_and_gradients_only(tiny, begin, fsdp):
  tiny.model.update({'name': 'resnet', 'depth': 8, 'width': None, 'norm_sync': 'device'})
  tiny.mesh.fsdp = fsdp
  run, _, _ = begin(tiny)
  mesh = mesh_lib.make_mesh(tiny.mesh)
  compiled, state = compile_step(run, mesh)
  split = [row for row in sharding.table(mesh, state.params, run.split_axes) if row.axis is not None]
  assert len(split) == 2
  gathered = re.findall(r' = f32\[([\d,]*)\].*? all-gather(?:-start)?\(', compiled.as_text())
  assert sorted(math.prod(map(int, shape.split(','))) for shape in gathered) == sorted(
    math.prod(row.shape) for row in split
  )
  others = re.findall(r' (all-to-all|collective-permute|collective-broadcast)(?:-start)?\(', compiled.as_text())
  assert others == []
  # Each gradient is summed over `fsdp`, which accelerators do with its split in a reduce-scatter; then each part over
  # `data`. There are a few single numbers more, such as the norm of the gradient.
  sizes = trees.count(state.params) + trees.count(state.batch_stats)
  sizes += sum(math.prod(row.shape) // fsdp for row in split) if fsdp < 4 else 0
  assert sizes <= sum(all_reduced(compiled)) <= sizes + 10


@pytest.mark.usefixtures('four_devices', 'optimized')
@pytest.mark.thorough
def test_statistics_of_each_device_are_not_communicated_before_the_gradients(tiny, begin):
  tiny.model.update({'name': 'resnet', 'depth': 8, 'width': None})
  found = {}
  for tiny.model.norm_sync in ('device', 'global'):
    run, _, _ = begin(tiny)
    compiled, state = compile_step(run, mesh_lib.make_mesh(tiny.mesh))
    found[tiny.model.norm_sync] = all_reduced(compiled)
  parameters, statistics = (
    sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state.params, state.batch_stats)
  )
  # Gradients, loss, accuracy and running statistics are communicated together, as none waits for another.
  assert found['device'] == [parameters + statistics + 2]
  # Those of the whole batch are as many numbers, but each norm waits for them, on the way forward and back.
  norms = len(jax.tree.leaves(state.batch_stats)) // 2
  assert sum(found['global']) == sum(found['device'])
  assert len(found['global']) > 2 * norms


@pytest.mark.usefixtures('optimized')
@pytest.mark.slow
def test_gradients_of_split_parameters_are_scattered_on_a_tpu(tiny, begin, monkeypatch):
  pytest.importorskip('libtpu', reason='compiling for a TPU that is not here needs libtpu')
  for name in ('TPU_SKIP_MDS_QUERY', 'ALLOW_MULTIPLE_LIBTPU_LOAD'):
    monkeypatch.setenv(name, '1')
  devices = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices
  tiny.model.update({'name': 'resnet', 'depth': 8, 'width': None, 'norm_sync': 'device'})
  tiny.mesh.fsdp = 4
  run, _, _ = begin(tiny)
  monkeypatch.setattr(jax, 'devices', lambda: devices)
  text = compile_step(run, mesh_lib.make_mesh(tiny.mesh))[0].as_text()
  assert 'reduce-scatter' in text and 'all-gather' in text
  assert 'all-to-all' not in text
