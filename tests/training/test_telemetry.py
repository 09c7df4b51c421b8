"""Every figure against a computation that shares no code with it."""

import functools
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import loop, trees
from dnt.data import pipeline
from dnt.models import depth
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.reporting import metric_names, metrics
from dnt.training import datasets, experiment, open_options, record, steps, telemetry


def shown(run, state, batch):
  """Figures by quantity and entry name."""
  _, metrics = jax.jit(run.phases[0].telemetry_step)(state, batch)
  names = [row.entry.name for row in run.table]
  found = {}
  for row in telemetry.rows(jax.device_get(metrics['telemetry']), names):
    for quantity in metric_names.QUANTITIES:
      if (value := getattr(row, quantity)) is not None:
        found.setdefault(quantity, {})[row.entry] = value
  return found


def close(found, expected, rtol=2e-5):
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name] == pytest.approx(float(value), rel=rtol, abs=1e-7), name


MLP = ('stem', 'stage1/block001', 'head')


def torch_figures(torch, params, x, labels, activation):
  """By name, [entries]; those of saturation are of all but the head."""
  params = {path: torch.tensor(leaf, requires_grad=True) for path, leaf in params.items()}
  x = torch.tensor(x, dtype=torch.float32)
  outputs = []
  for entry in MLP:
    x = x @ params[f'{entry}/dense/kernel'] + params[f'{entry}/dense/bias']
    x = x if entry == 'head' else getattr(torch, activation)(x)
    x.retain_grad()
    outputs.append(x)
  torch.nn.functional.cross_entropy(x, torch.tensor(labels).long()).backward()

  def norms(tensors):
    of = [[t for path, t in tensors.items() if path.startswith(f'{entry}/')] for entry in MLP]
    return [np.sqrt(sum(float((t**2).sum()) for t in each)) for each in of]

  found = {
    'gradient_norm': norms({path: p.grad for path, p in params.items()}),
    'parameter_norm': norms({path: p.detach() for path, p in params.items()}),
    'output_gradient_norm': torch.stack([out.grad.norm() for out in outputs]),
    'activation_mean': torch.stack([out.mean() for out in outputs]),
    'activation_rms': torch.stack([(out**2).mean().sqrt() for out in outputs]),
  }
  if activation == 'relu':
    found['zero'] = torch.stack([(out == 0).float().mean() for out in outputs])
    found['dead'] = torch.stack([(out == 0).all(0).float().mean() for out in outputs])
  else:
    scaled = [(out if activation == 'tanh' else 2 * out - 1).abs() for out in outputs[:-1]]
    found['saturated'] = torch.stack([(out > 0.95).float().mean() for out in scaled])
  return found


@pytest.mark.parametrize(('activation', 'accumulate'), [('relu', 1), ('relu', 2), ('tanh', 1), ('sigmoid', 2)])
def test_every_figure_of_an_mlp_equals_torch(torch_reference, tiny, begin, activation, accumulate):
  tiny.model.norm, tiny.model.activation, tiny.model.init_gain = 'none', activation, 3.0
  tiny.train.accumulate = accumulate
  tiny.clip.name, tiny.clip.threshold = 'global_norm', 0.5
  tiny.optim.momentum, tiny.optim.weight_decay = 0.0, 0.0
  run, state, batch = begin(tiny)
  found = shown(run, state, batch)

  params = {path: np.array(leaf) for path, leaf in trees.flatten(state.params).items()}
  mean, std = (np.reshape(value, (1, 1, 1, -1)) for value in (run.config.data.mean, run.config.data.std))
  x = ((np.asarray(batch['image']) / 255 - mean) / std).reshape(16, -1)
  labels = np.array(batch['label'])
  measure = torch_reference(lambda torch: torch_figures(torch, params, x, labels, activation))
  expected = {quantity: dict(zip(MLP, values.tolist(), strict=False)) for quantity, values in measure.items()}

  gradient = expected['gradient_norm']
  whole = np.sqrt(sum(value**2 for value in gradient.values()))
  factor = min(1, 0.5 / whole)
  assert factor < 1
  expected['update_ratio'] = {e: 0.05 * factor * gradient[e] / found['parameter_norm'][e] for e in MLP}
  expected['clip_factor'] = dict.fromkeys(MLP, factor)
  for quantity, values in expected.items():
    close(found[quantity], values, 1e-4 if quantity == 'activation_mean' else 2e-5)
  if activation == 'relu':
    assert 0.2 < found['zero']['stem'] < 0.8
    assert 'saturated' not in found
  else:
    assert 0 < found['saturated']['stem'] < 1


def clipped(name, gradient, params):
  """The gradient of an MLP's leaf by path after clipping to 0.02, in NumPy."""
  squares = {path: float(np.sum(g**2)) for path, g in gradient.items()}
  entries = {path: path.rsplit('/', 2)[0] for path in gradient}
  if name == 'value':
    return {path: np.clip(g, -0.02, 0.02) for path, g in gradient.items()}
  if name == 'block_norm':
    norms = {e: np.sqrt(sum(squares[path] for path in squares if entries[path] == e)) for e in entries.values()}
    return {path: g * min(1, 0.02 / norms[entries[path]]) for path, g in gradient.items()}
  after = {}
  for path, g in gradient.items():  # adaptive: a unit is a column of a kernel, or a whole bias
    unit = None if path.endswith('bias') else 0
    limit = 0.02 * np.maximum(np.sqrt(np.sum(params[path] ** 2, axis=unit)), 1e-3)
    factor = np.minimum(1, limit / np.maximum(np.sqrt(np.sum(g**2, axis=unit)), 1e-12))
    after[path] = g if path.startswith('head/dense/') else g * factor
  return after


@pytest.mark.thorough
@pytest.mark.parametrize('name', ['value', 'block_norm', 'adaptive'])
def test_how_much_each_way_of_clipping_takes(tiny, begin, name):
  tiny.model.norm, tiny.optim.momentum, tiny.optim.weight_decay = 'none', 0.0, 0.0
  tiny.clip.name, tiny.clip.threshold = name, 0.02
  run, state, batch = begin(tiny)
  found = shown(run, state, batch)

  def loss(params):
    logits = run.model.apply({'params': params}, run.preprocess(batch, None), train=True)
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(16), batch['label']])

  params = {path: np.asarray(leaf) for path, leaf in trees.flatten(state.params).items()}
  gradient = {path: np.asarray(leaf) for path, leaf in trees.flatten(jax.jit(jax.grad(loss))(state.params)).items()}
  after = clipped(name, gradient, params)

  def norms(tree):
    return {e: np.sqrt(sum(np.sum(leaf**2) for path, leaf in tree.items() if path.startswith(f'{e}/'))) for e in
            ('stem', 'stage1/block001', 'head')}  # fmt: skip

  expected = {entry: norm / norms(gradient)[entry] for entry, norm in norms(after).items()}
  assert min(expected.values()) < 0.9
  close(found['clip_factor'], expected, 1e-4)
  close(found['update_ratio'], {e: 0.05 * norm / found['parameter_norm'][e] for e, norm in norms(after).items()}, 1e-4)


NETS = """
import flax.linen as nn
import jax.numpy as jnp
from dnt.models import blocks, parts, stage

class Net(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    x = x.reshape(x.shape[0], -1)
    x = nn.relu(nn.Dense(12, name='wide')(x))
    return nn.Dense(self.num_classes, name='answer')(x)

class Bare(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    x = x.reshape(x.shape[0], -1)
    return x @ self.param('weights', nn.initializers.lecun_normal(), (x.shape[-1], self.num_classes))

class Bins(nn.Module):
  def __call__(self, x):
    return (jnp.abs(x.reshape(x.shape[0], -1)) * 4).astype(jnp.int32) % 16

class Whole(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    x = nn.Embed(16, 8, name='embed')(Bins(name='bins')(x)).mean(1)
    return nn.Dense(self.num_classes, name='answer')(x)

class Part(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.relu(nn.Dense(8, name='output')(x))

class Hidden(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    x = nn.remat(Part)(name='again')(x.reshape(x.shape[0], -1))
    return nn.Dense(self.num_classes, name='answer')(nn.tanh(nn.Dense(8, name='wide')(x)))

class Staged(nn.Module):
  num_classes: int
  parts: parts.Parts
  scan: bool = False

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(nn.Conv(4, (3, 3), name='first')(x))
    block = lambda name: blocks.Basic(self.parts, 4, name=name)
    x = nn.relu(stage.Stage(block, block, 3, scan=self.scan, name='body')(x, train) - 1)
    return nn.Dense(self.num_classes, name='answer')(x.mean((1, 2)))

class Cell(nn.Module):
  @nn.compact
  def __call__(self, carry, _):
    return nn.tanh(nn.Dense(8)(carry)), None

class Scanned(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(8, name='wide')(x.reshape(x.shape[0], -1))
    x, _ = nn.scan(Cell, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)(name='cells')(x, None)
    return nn.Dense(self.num_classes, name='answer')(x)
"""


@pytest.mark.parametrize(
  ('name', 'size', 'has'), [('mlp', 7, False), ('mlp', 8, True), ('plain', 1, True)], ids=['few', 'enough', 'positions']
)
def test_units_of_few_values_are_not_judged(tiny, begin, name, size, has):
  tiny.model.name, tiny.model.depth, tiny.train.batch_size = name, {'mlp': 3, 'plain': 8}[name], size
  found = shown(*begin(tiny))
  assert found['zero'] and bool(found.get('dead')) == has


@pytest.fixture
def users(tiny, begin, tmp_path, monkeypatch):
  """Experiment, state and batch of one of the modules above."""

  def make(name):
    (tmp_path / 'watchednets.py').write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    tiny.model.name, tiny.model.depth, tiny.model.width = f'watchednets:{name}', None, None
    tiny.optim.weight_decay = 0.0
    return begin(tiny)

  return make


def test_a_users_own_module_is_watched_as_it_is(users):
  found = shown(*users('Net'))
  assert found['output_gradient_norm'].keys() == {'wide', 'answer'}
  assert found['dead'].keys() == {'wide', 'answer'}, 'the output itself, where there is no activation'
  assert all(value > 0 for value in found['output_gradient_norm'].values())


@pytest.mark.parametrize('accumulate', [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_functions_that_a_users_own_module_calls_are_watched(users, tiny, accumulate):
  tiny.train.accumulate = accumulate
  run, state, batch = users('Net')
  params = jax.tree.map(np.array, state.params)
  params['wide']['bias'][[1, 4, 7]] = -1e3
  found = shown(run, state.replace(params=params), batch)
  x = np.asarray(run.preprocess(batch, None)).reshape(16, -1)
  wide = np.maximum(x @ params['wide']['kernel'] + params['wide']['bias'], 0)
  close(found['dead'], {'wide': np.mean((wide == 0).all(0)), 'answer': 0})
  close(found['zero'], {'wide': np.mean(wide == 0), 'answer': 0}, 1e-2)
  assert found['dead']['wide'] >= 0.25


@pytest.mark.thorough
def test_functions_beside_dnts_own_blocks_are_watched_scanned_or_not(users, tiny):
  found = {}
  for tiny.model.scan in (False, True):
    found[tiny.model.scan] = shown(*users('Staged'))
  blocks = [f'body/block{number:03d}' for number in (1, 2, 3)]
  assert found[True]['zero'].keys() == found[False]['zero'].keys() == {'first', *blocks, 'answer'}
  for quantity in ('zero', 'dead'):
    for entry in ('first', *blocks[:2]):
      assert found[True][quantity][entry] == pytest.approx(found[False][quantity][entry], abs=0.01)


def test_functions_that_cannot_be_found_are_no_zero(users):
  found = shown(*users('Hidden'))
  assert found['activation_rms'].keys() == {'again', 'wide', 'answer'}
  assert found['saturated'].keys() == {'wide'}
  assert found['dead'].keys() == found['zero'].keys() == {'answer'}


def test_a_module_without_submodules(users):
  found = shown(*users('Bare'))
  assert found.keys() == {'gradient_norm', 'parameter_norm', 'update_ratio'}
  assert found['gradient_norm'].keys() == {'weights'}


@pytest.mark.thorough
@pytest.mark.parametrize(('name', 'without'), [('Whole', 'bins'), ('Scanned', 'cells')])
def test_an_output_that_no_tap_can_be_on_is_no_vanishing_gradient(users, name, without):
  run, state, batch = users(name)
  names = [row.entry.name for row in run.table]
  assert without in names
  _, found = jax.jit(run.phases[0].telemetry_step)(state, batch)
  columns = jax.device_get(found['telemetry'])
  tapped = [names[index] for index in columns['output_gradient_norm'].entries]
  assert set(tapped) == set(names) - {without}
  assert 'vanishing' not in telemetry.warnings(telemetry.rows(columns, names), 1.0, False, {})


def resnet(tiny):
  tiny.model.name, tiny.model.depth, tiny.model.width = 'resnet', 8, None
  return tiny


@pytest.mark.thorough
def test_layouts_and_remat_show_the_same(tiny, begin):
  tiny.model.depth = 6
  run, state, batch = begin(tiny)
  expected = shown(run, state, batch)
  assert set(expected['gradient_norm']) == {'stem', 'head'} | {f'stage1/block{block:03d}' for block in range(1, 5)}
  for scan, remat in ((True, False), (False, True), (True, True)):
    tiny.model.scan, tiny.model.remat = scan, remat
    run, state, batch = begin(tiny)
    found = shown(run, state, batch)
    assert found.keys() == expected.keys()
    for quantity, values in expected.items():
      close(found[quantity], values, 1e-3)


@pytest.mark.thorough
@pytest.mark.parametrize('fsdp', [1, 4])
@pytest.mark.usefixtures('eight_devices')
def test_a_batch_over_eight_devices_shows_the_same(tiny, begin, monkeypatch, fsdp):
  monkeypatch.setattr(mesh_lib, 'SMALLEST_SPLIT_LEAF', 64)
  tiny.mesh.fsdp = fsdp
  run, state, batch = begin(tiny)
  expected = shown(run, state, batch)
  mesh = mesh_lib.make_mesh(tiny.mesh)
  assert mesh.size == 8
  shardings = mesh_lib.parameter_shardings(mesh, state)
  split = [leaf for leaf in jax.tree.leaves(shardings.params) if not leaf.is_fully_replicated]
  assert bool(split) == (fsdp > 1)
  found = shown(run, jax.device_put(state, shardings), jax.device_put(batch, mesh_lib.batch_sharding(mesh)))
  for quantity, values in expected.items():
    close(found[quantity], values, 1e-4)


@pytest.mark.thorough
def test_bfloat16_figures_are_float32(tiny, begin):
  run, state, batch = begin(tiny)
  expected = shown(run, state, batch)
  tiny.model.dtype = 'bfloat16'
  run, state, batch = begin(tiny)
  found = shown(run, state, batch)
  close(found['activation_rms'], expected['activation_rms'], 0.02)
  close(found['output_gradient_norm'], expected['output_gradient_norm'], 0.2)


@pytest.mark.thorough
def test_gradient_at_the_outputs_equals_flax_perturbations(tiny, begin):
  """`perturb` holds the whole gradient of an output; the captures only its norm."""
  run, state, batch = begin(resnet(tiny))
  found = shown(run, state, batch)
  model, variables = run.model, {'params': state.params, 'batch_stats': state.batch_stats}
  images = jax.jit(functools.partial(run.preprocess, key=None))(batch)

  def perturb(next_fun, args, kwargs, context):
    output = next_fun(*args, **kwargs)
    if context.module.path in (('stem',), ('stage2', 'block001')) and context.method_name == '__call__':
      output = context.module.perturb('output', output)
    return output

  with nn.intercept_methods(perturb):
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    zeros = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes['perturbations'])

    def loss(perturbations):
      logits, _ = model.apply(
        {**variables, 'perturbations': perturbations}, images, train=True, mutable=['batch_stats']
      )
      return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(16), batch['label']])

    gradient = trees.flatten(jax.jit(jax.grad(loss))(zeros))
  for name in ('stem', 'stage2/block001'):
    norm = np.linalg.norm(gradient[f'{name}/output'])
    assert found['output_gradient_norm'][name] == pytest.approx(norm, rel=1e-4)


@pytest.mark.usefixtures('optimized')
@pytest.mark.thorough
@pytest.mark.parametrize('placement', ['device', 'stream'])
def test_the_trajectory_is_the_same_with_telemetry_and_without(tiny, tmp_path, placement, events, undrawn):
  if placement == 'device':
    resnet(tiny)
  tiny.data.placement, tiny.data.workers = placement, 0
  tiny.train.steps, tiny.eval.every, tiny.train.log_every = 12, '0', '1'
  digests = {}
  for every in ('0', '4'):
    tiny.telemetry.every = every
    digests[every] = loop.train(tiny, tmp_path / every, record.Clock(0.0), 'test')['params_sha256']
  assert digests['0'] == digests['4']
  lines = metrics.read(tmp_path / '4')
  assert [line['step'] for line in lines if 'telemetry/stem/gradient_norm' in line] == [4, 8, 12]
  assert not any(name.startswith('telemetry/') for line in metrics.read(tmp_path / '0') for name in line)
  held = {(line['step'], name) for line in lines for name in line if name.startswith('telemetry/')}
  assert held == {(step, tag) for step, tag, _ in events(tmp_path / '4')[0] if tag.startswith('telemetry/')}
  losses = [
    [line['train/loss'] for line in metrics.read(tmp_path / every) if 'train/loss' in line] for every in digests
  ]
  assert losses[0] == losses[1]
  assert (tmp_path / '4' / 'telemetry.png').exists()
  assert not (tmp_path / '0' / 'telemetry.png').exists()
  assert 'telemetry/stem/gradient_norm' not in json.loads((tmp_path / '4' / 'summary.json').read_text())['last']


@pytest.mark.usefixtures('optimized')
@pytest.mark.thorough
@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='promised on CPU alone')
@pytest.mark.parametrize(
  'changes',
  [
    {'model.remat': True},
    {'model.name': 'plain', 'clip.name': 'global_norm', 'clip.threshold': 0.1},
    {'model.depth': 14, 'model.scan': True, 'model.dtype': 'bfloat16', 'train.accumulate': 2, 'ema.decay': 0.9},
    {'model.norm': 'layer_norm', 'model.activation': 'tanh', 'clip.name': 'adaptive', 'clip.threshold': 0.01},
  ],
  ids=lambda changes: '-'.join(map(str, changes.values())),
)
def test_a_step_is_the_same_to_the_last_bit_whoever_watches(tiny, changes):
  """From each of a few states, with all that could make XLA compile the two programs differently."""
  resnet(tiny).update_from_flattened_dict(changes)
  check_that_watching_changes_nothing(tiny)


def check_that_watching_changes_nothing(tiny):
  data = datasets.load(tiny, ())
  run = experiment.make(open_options.resolve(tiny, data), data.spec)
  mesh = mesh_lib.make_mesh(tiny.mesh)
  loader = pipeline.make_train_loader(run.config, data.train, mesh)
  arrays = loader.arrays(0, 1)
  plain, watched = (
    compile_lib.jit(steps.make_train_steps(step, loader.batch_at, longest))
    for step, longest in ((run.phases[0].train_step, 10), (run.phases[0].telemetry_step, 1))
  )
  state = mesh_lib.place(compile_lib.eagerly(run.make_state)(run.init_variables()), mesh_lib.replicated(mesh))
  for _ in range(5):
    (after, found), (seen, shown) = (program(state, arrays, np.int32(1)) for program in (plain, watched))
    for name in steps.METRICS:
      assert found[name][0] == shown[name][0], name
    jax.tree_util.tree_map_with_path(
      lambda path, a, b: np.testing.assert_array_equal(a, b, jax.tree_util.keystr(path)), *jax.device_get((after, seen))
    )
    state = after


@pytest.mark.usefixtures('optimized')
@pytest.mark.thorough
@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='promised on CPU alone')
def test_a_step_of_a_users_own_network_is_the_same_to_the_last_bit(tiny, tmp_path, monkeypatch):
  (tmp_path / 'bitnets.py').write_text(CONVOLUTIONS)
  monkeypatch.syspath_prepend(tmp_path)
  tiny.model.update({'name': 'bitnets:Net', 'depth': None, 'width': None})
  check_that_watching_changes_nothing(tiny)


CONVOLUTIONS = """
import flax.linen as nn
import jax.numpy as jnp

class Net(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    for _ in range(3):
      y = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(x)))
      x = jnp.maximum(nn.gelu(nn.Conv(8, (3, 3))(y)) + y, 0)
    return nn.Dense(self.num_classes)(nn.tanh(nn.Dense(8)(x.mean((1, 2)))))
"""


def rows(**quantities):
  healthy = {
    'output_gradient_norm': (1.0, 1.0, 1.0),
    'update_ratio': (1e-3, 1e-3, 1e-3),
    'dead': (0.1, 0.0, 0.0),
  } | quantities
  columns = {name: telemetry.Column(np.array(values, np.float32), (0, 1, 2)) for name, values in healthy.items()}
  return telemetry.rows(columns, NAMES)


NAMES = ('stem', 'middle', 'head')


@pytest.mark.parametrize(
  ('quantities', 'kind', 'said'),
  [
    ({'output_gradient_norm': (0.9e-4, 1.0, 1.0)}, 'vanishing', '9.0e-05'),
    ({'output_gradient_norm': (1.1e4, 1.0, 1.0)}, 'exploding', r'1\.1e\+04'),
    ({'output_gradient_norm': (np.inf, 1.0, 1.0)}, 'exploding', 'stem'),
    ({'output_gradient_norm': (np.nan, np.nan, np.nan)}, 'exploding', 'stem'),
    ({'dead': (0.0, 0.75, 0.6)}, 'dead', r'75 % .*dead .*middle'),
    ({'saturated': (0.0, 0.2, 0.6)}, 'saturated', r'60 % .*saturated .*head'),
    ({'update_ratio': (1e-3, 0.5, 0.5)}, 'update_ratio', 'smaller config.optim.learning_rate'),
    ({'update_ratio': (1e-6, 1e-6, 0.5)}, 'update_ratio', 'larger config.optim.learning_rate'),
  ],
)
def test_warnings(quantities, kind, said):
  found = telemetry.warnings(rows(**quantities), 1.0, False, {})
  assert list(found) == [kind]
  assert re.search(said, found[kind])
  assert 'config.' in found[kind], 'says what to try'


def test_no_warning_of_a_healthy_step_or_a_rate_that_has_fallen():
  assert telemetry.warnings(rows(), 1.0, False, {}) == {}
  assert telemetry.warnings(rows(update_ratio=(1e-6, 1e-6, 1e-6)), 0.1, False, {}) == {}
  assert list(telemetry.warnings(rows(), 1.0, True, {})) == ['clipping']


@pytest.mark.parametrize(
  ('factors', 'clipped'),
  [
    ((0.01, 0.02, 1.0), True),
    ((0.01, 0.5, 1.0), False),  # adaptive clipping reduces some unit at nearly every step
    ((0.9, 0.9, 0.9), False),
    ((np.nan, 0.01, 0.01), True),  # a gradient that is zero
    ((np.nan, np.nan, np.nan), False),
    ((), False),
  ],
)
def test_a_step_counts_as_clipped_if_little_is_left_of_the_median_entry(factors, clipped):
  assert telemetry.is_clipped([metric_names.EntryRow(str(factor), clip_factor=factor) for factor in factors]) == clipped


def test_entries_of_parameters_near_zero_are_not_judged():
  floors = dict.fromkeys(NAMES, 1.0)
  fresh = {'update_ratio': (None, None, 2.5), 'dead': (None, 0.1, 1.0), 'output_gradient_norm': (1e-6, 1e-6, 1.0)}
  for norm, kinds in ((0.5, set()), (0.0, set()), (2.0, {'vanishing', 'dead', 'update_ratio'})):
    shown = [
      metric_names.EntryRow(name, parameter_norm=size, **{key: values[place] for key, values in fresh.items()})
      for place, (name, size) in enumerate(zip(NAMES, (5.0, 5.0, norm), strict=True))
    ]
    assert set(telemetry.warnings(shown, 1.0, False, floors)) == kinds


def test_the_head_of_a_fine_tuned_network_is_not_judged(tiny, begin):
  run, *_ = begin(tiny)
  drawn = telemetry.floors(run.config, run.table)
  assert drawn['head'] == pytest.approx(0.1 * 10**0.5)
  run.config.train.init_from = 'weights.safetensors'
  assert telemetry.floors(run.config, run.table) == drawn | {'head': np.inf}
  pool = depth.Row(depth.Entry('pool', 'pool'), (10,), 0, 0)  # below a last entry without parameters too
  assert telemetry.floors(run.config, (*run.table, pool))['head'] == np.inf


@pytest.mark.thorough
@pytest.mark.usefixtures('undrawn')
def test_a_run_warns_once_and_a_resume_does_not_warn_again(tiny, tmp_path, console):
  tiny.model.norm, tiny.model.activation, tiny.model.depth, tiny.model.scan = 'none', 'sigmoid', 20, True
  tiny.clip.name, tiny.clip.threshold = 'global_norm', 1e-6
  tiny.telemetry.every, tiny.train.steps, tiny.eval.every = '1', 6, '0'
  summary = loop.train(tiny, tmp_path, record.Clock(0.0), 'test')
  out = console.readouterr().out
  assert out.count('vanishes') == 1
  assert out.count('clipping left') == 1
  assert summary['warnings']['vanishing']['step'] == 1
  assert summary['warnings']['clipping']['step'] == telemetry.ALWAYS_CLIPPED
  tiny.train.steps = 8
  again = loop.train(tiny, tmp_path, record.Clock(0.0), 'test')
  assert 'vanishes' not in console.readouterr().out
  assert again['warnings'] == summary['warnings']
  assert 'vanishes' in (tmp_path / 'report.html').read_text()
