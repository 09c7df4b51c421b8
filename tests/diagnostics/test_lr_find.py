"""The range test: its steps against a loop by hand, its suggestions against brute force."""

import contextlib
import itertools
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dnt import checkpoints, errors, loop, trees
from dnt.data import order, pipeline
from dnt.diagnostics import lr_find
from dnt.models import layouts
from dnt.optim import chain
from dnt.parallel import mesh as mesh_lib
from dnt.reporting import plots
from dnt.training import datasets, experiment, initialize, open_options, record


@pytest.fixture
def network(tiny):
  tiny.model.norm, tiny.model.depth = 'none', 4
  tiny.optim.weight_decay = 0.0
  tiny.data.workers = 0
  tiny.lr_find.start, tiny.lr_find.end, tiny.lr_find.steps = 1e-3, 1.0, 20
  return tiny


def build(config):
  data = datasets.load(config, ())
  run = experiment.make(open_options.resolve(config, data), data.spec)
  mesh = mesh_lib.make_mesh(config.mesh)
  return run, mesh, data.train, initialize.begin(run, mesh, run.init_variables())


# The sweep.


def by_hand(run, source, params, first, count):
  """Losses of `count` steps of SGD with momentum 0.9 from step `first`, at rates from 1e-3 to 1 in 20 steps."""
  mean, std = (np.reshape(value, (1, 1, 1, -1)) for value in (run.config.data.mean, run.config.data.std))
  places = np.concatenate([order.order(0, epoch, 64) for epoch in range(8)]).reshape(-1, 16)[first : first + count]
  momentum = jax.tree.map(np.zeros_like, params)

  def loss(params, images, labels):
    logits = run.model.apply({'params': params}, images, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  gradient, found = jax.jit(jax.value_and_grad(loss)), []
  for rate, rows in zip(np.geomspace(1e-3, 1.0, 20), places, strict=False):
    images = ((source.images[rows] / 255.0 - mean) / std).astype(np.float32)
    value, grads = gradient(params, images, source.labels[rows])
    momentum = jax.tree.map(lambda m, g: 0.9 * m + np.asarray(g), momentum, grads)
    params = jax.tree.map(lambda p, m, rate=rate: np.float32(p - rate * m), params, momentum)
    found.append(float(value))
  return found


@pytest.mark.thorough
@pytest.mark.parametrize(
  ('changes', 'devices'),
  [({'train.accumulate': 2, 'model.scan': True}, 1), ({'data.placement': 'stream'}, 8)],
  ids=['scan', 'stream'],
)
@pytest.mark.usefixtures('eight_devices')
def test_the_steps_of_a_sweep_are_those_of_training_at_its_rates(network, monkeypatch, changes, devices):
  some = jax.devices()[:devices]
  monkeypatch.setattr(jax, 'devices', lambda: some)
  run, _, source, _ = build(network)
  expected = by_hand(run, source, jax.device_get(run.init_variables()['params']), 0, 12)
  network.update_from_flattened_dict(changes)
  run, mesh, source, state = build(network)
  before = jax.device_get(state)
  with contextlib.closing(pipeline.make_train_loader(run.config, source, mesh)) as loader:
    found = lr_find.sweep(run, mesh, state, loader)
  assert len(found.losses) > 12
  np.testing.assert_allclose(found.rates, np.geomspace(1e-3, 1.0, 20)[: len(found.losses)], rtol=1e-5)
  np.testing.assert_allclose(found.losses[:12], expected, rtol=1e-3)
  np.testing.assert_allclose(found.smoothed, lr_find.smooth(found.losses))
  jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state))


@pytest.mark.parametrize('scan', [False, True])
def test_a_group_moves_alone(network, scan):
  network.model.depth, network.model.scan = 5, scan
  network.optim.weight_decay = 1e-3
  run, _, _, state = build(network)
  whole = chain.make(run.config, lambda step: jnp.float32(1e-2), run.leaves)
  alone = lr_find.train_only_group(whole, run.leaves, 'head|.*[13]')
  gradient = jax.tree.map(
    lambda leaf: np.cos(np.arange(leaf.size)).reshape(leaf.shape).astype(np.float32), state.params
  )
  # A gradient that is not finite must not reach what stands still.
  gradient['stem'] = jax.tree.map(lambda leaf: np.full_like(leaf, np.inf), gradient['stem'])

  @jax.jit
  def update(*args):
    return whole.update(*args), alone.update(*args)

  (moves, after), (moved, after_alone) = update(gradient, state.opt_state, state.params)
  assert jax.tree.structure(after) == jax.tree.structure(after_alone) == jax.tree.structure(state.opt_state)
  expected, found = (trees.flatten(layouts.to_unrolled(each)) for each in (moves, moved))
  swept = {path for path in found if path.startswith(('stage1/block001/', 'stage1/block003/', 'head/'))}
  assert len(swept) == 6 and len(found) == 10
  for path, move in found.items():
    np.testing.assert_array_equal(move, expected[path] if path in swept else np.zeros_like(move), err_msg=path)
    assert path not in swept or np.abs(move).max() > 0


@pytest.mark.thorough
def test_a_sweep_of_a_group_is_one_in_which_only_it_learns(network):
  run, mesh, source, state = build(network)
  with contextlib.closing(pipeline.make_train_loader(run.config, source, mesh)) as loader:
    found = {group: lr_find.sweep(run, mesh, state, loader, group) for group in (None, 'head')}
  np.testing.assert_allclose(found['head'].losses[0], found[None].losses[0], rtol=1e-6)
  np.testing.assert_allclose(found['head'].rates[:8], found[None].rates[:8])

  # The features of the first step stay; the head learns on them.
  params = jax.device_get(run.init_variables()['params'])
  mean, std = (np.reshape(value, (1, 1, 1, -1)) for value in (run.config.data.mean, run.config.data.std))
  places = np.concatenate([order.order(0, epoch, 64) for epoch in range(2)]).reshape(-1, 16)
  momentum, expected = jax.tree.map(np.zeros_like, params['head']), []

  @jax.jit
  @jax.value_and_grad
  def loss(head, images, labels):
    logits = run.model.apply({'params': {**params, 'head': head}}, images, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  head = params['head']
  for rate, picked in zip(np.geomspace(1e-3, 1.0, 20), places, strict=False):
    images = ((source.images[picked] / 255.0 - mean) / std).astype(np.float32)
    value, gradient = loss(head, images, source.labels[picked])
    momentum = jax.tree.map(lambda m, g: 0.9 * m + np.asarray(g), momentum, gradient)
    head = jax.tree.map(lambda p, m, rate=rate: np.float32(p - rate * m), head, momentum)
    expected.append(float(value))
  np.testing.assert_allclose(found['head'].losses[:8], expected, rtol=1e-4)


# The workdir.


def files_of(workdir):
  return {str(path.relative_to(workdir)): path.read_bytes() for path in workdir.rglob('*') if path.is_file()}


@pytest.mark.thorough
def test_a_sweep_starts_from_the_checkpoint_and_leaves_it(network, tmp_path):
  run, _, source, state = build(network)
  params = jax.tree.map(lambda leaf: 1.1 * leaf, state.params)
  counted = {**state.opt_state, 'learning_rate': optax.ScaleByScheduleState(jnp.int32(7))}
  saved = checkpoints.Checkpoints(tmp_path, network.checkpoint)
  saved.save(
    7,
    state.replace(step=jnp.int32(7), params=params, opt_state=counted),
    {'config': run.config.to_dict(), 'class_names': list(run.spec.class_names)},
  )
  saved.close()
  before = files_of(tmp_path)
  result = lr_find.run(network, tmp_path)
  after = files_of(tmp_path)
  assert json.loads(after.pop('lr_find.json')) == result
  assert after.pop('lr_find.png').startswith(b'\x89PNG')
  assert after == before
  assert (result['step'], result['new']) == (7, False)
  expected = by_hand(run, source, jax.device_get(params), 7, 10)
  np.testing.assert_allclose(result['sweeps'][0]['learning_rate'][:10], np.geomspace(1e-3, 1.0, 20)[:10], rtol=1e-5)
  np.testing.assert_allclose(result['sweeps'][0]['loss'][:10], expected, rtol=1e-3)


def test_the_program_sweeps_a_group_until_it_diverges(program, tmp_path):
  code, out, err = program(
    f'--workdir={tmp_path}',
    '--mode=lr_find',
    '--config.data.source=synthetic',
    '--config.data.synthetic_examples=64',
    '--config.data.image_size=8',
    '--config.data.augment=none',
    '--config.model.name=mlp',
    '--config.model.depth=2',
    '--config.model.norm=none',
    '--config.train.batch_size=16',
    '--config.optim.learning_rate=1e-3',
    '--config.lr_find.end=1e8',
    '--config.lr_find.steps=30',
    "--config.lr_find.groups=('head',)",
  )
  assert code == 0, err
  assert set(files_of(tmp_path)) == {'lr_find.json', 'lr_find.png'}
  result = json.loads((tmp_path / 'lr_find.json').read_text())
  (swept,) = result['sweeps']
  assert (swept['group'], result['new'], result['step']) == ('head', True, 0)
  assert swept['stopped'] in ('diverged', 'not finite')
  assert len(swept['learning_rate']) == len(swept['loss']) == len(swept['smoothed']) < 30
  assert np.isfinite(swept['loss']).all()
  assert lr_find.find_end(swept['loss'][:-1]) is None
  lines = [line for line in out.strip().splitlines() if not line.startswith(('range test ', 'train '))]
  assert [line.split()[0] for line in lines[:2]] == ['entries', 'head']
  assert f'{swept["stopped"]} at rate' in lines[1]
  assert str(tmp_path) in lines[-1]


@pytest.mark.parametrize(
  ('option', 'value', 'said'),
  [('end', 1e-4, '0.0001.* config.lr_find.start'), ('groups', ('haed',), "'haed'.* no entry")],
)
def test_refused(network, tmp_path, option, value, said):
  network.lr_find[option] = value
  with pytest.raises(errors.InputError, match=said):
    lr_find.run(network, tmp_path)
  assert not (pathlib.Path(tmp_path) / 'checkpoints').exists()


def test_norms_of_frozen_entries_are_a_group_where_they_train(network, tmp_path, monkeypatch):
  network.model.norm, network.finetune.trainable = 'batch_norm', 'head'
  network.lr_find.groups, swept = ('stem',), []
  monkeypatch.setattr(lr_find, 'sweep', lambda *args: swept.append(args[-1]))
  monkeypatch.setattr(lr_find, '_record', lambda *_: {})
  with pytest.raises(errors.InputError, match="'stem' .*no entry that trains: head$"):
    lr_find.run(network, tmp_path)
  network.finetune.frozen_norm = 'affine_only'
  lr_find.run(network, tmp_path)
  assert swept == ['stem']


# What a sweep says.


def test_smoothing_weighs_each_step_by_its_age():
  losses = np.random.default_rng(0).uniform(1, 3, 30)
  for count, found in enumerate(lr_find.smooth(losses), start=1):
    weights = 0.98 ** np.arange(count)[::-1]
    assert found == pytest.approx(np.sum(weights * losses[:count]) / weights.sum())


def test_ending():
  assert lr_find.find_end([2.0, 1.5, 1.0, 3.0, 5.0]) is None
  assert lr_find.find_end([2.0, 1.5, np.nan, 1.0]) == 2
  assert lr_find.find_end([1.0, np.inf]) == 1
  assert lr_find.find_end([1.0, 1.0, 9.0, 9.0]) == 3  # the mean of the first three is below 4, of all four above
  assert lr_find.find_end([]) is None


def longest_falling(losses):
  """(length, end) by trying every subset; of equal lengths the first end."""
  found = []
  for size in range(1, len(losses) + 1):
    for chosen in itertools.combinations(range(len(losses)), size):
      if all(losses[a] > losses[b] for a, b in itertools.pairwise(chosen)):
        found.append((size, -chosen[-1]))
  size, end = max(found)
  return size, -end


@pytest.mark.parametrize('seed', range(6))
def test_valley_is_half_way_down_the_longest_falling_subsequence(seed):
  losses = np.random.default_rng(seed).permutation(10).astype(float)
  length, end = longest_falling(losses)
  assert lr_find.valley(losses) == end - length + int(length / 3) + int(length / 6)


@pytest.mark.parametrize(
  ('losses', 'index'),
  [([1.0, 2.0, 3.0], 0), ([3.0, 2.0, 5.0, 6.0, 7.0, 8.0], 0), ([1.0, 3.0, 2.0, 4.0], 1), ([3.0, 2.0, 1.0, 4.0], 0)],
)
def test_valley_of_losses_that_hardly_fall(losses, index):
  assert lr_find.valley(losses) == index


def test_suggestions():
  rates = np.geomspace(1e-6, 10, 100)
  x = np.log10(rates)
  losses = 2 - 1 / (1 + np.exp(-4 * (x + 2))) + np.where(x > -0.5, (x + 0.5) ** 2, 0)
  found = lr_find.suggest(rates, losses, 100)
  assert found['steepest'] == pytest.approx(1e-2, rel=0.2)
  lowest = rates[10:-5][np.argmin(losses[10:-5])]
  assert found['minimum/10'] == pytest.approx(lowest / 10)
  assert 10 ** (-4.6) < found['valley'] < lowest
  assert lr_find.suggest(rates[:17], losses[:17], 100) == {}


def test_a_loss_that_hardly_falls_is_said_to():
  batches = np.random.default_rng(0).normal(0, 0.1, 100)
  fallen = 2 - np.clip(np.arange(100) / 50 - 0.5, 0, 1)
  for losses, learns in ((2 + batches, False), (fallen + batches, True)):
    assert lr_find.is_learning(losses, lr_find.smooth(losses), 100) is learns
  assert not lr_find.is_learning(np.array([]), np.array([]), 100)


@pytest.mark.parametrize(
  ('stopped', 'losses', 'said'),
  [
    ('diverged', [3.0, 2.0, 9.0], 'diverged.* 1'),
    ('not finite', [], 'not finite.*'),
    ('', [3.0, 2.0, 2.5], 'rises.* 0.1'),
    ('', [3.0, 2.0, 1.0], 'falls.* 1'),
  ],
)
@pytest.mark.parametrize('learns', [True, False])
def test_what_a_sweep_is_said_to_show(stopped, losses, said, learns):
  rates = [0.01, 0.1, 1.0][: len(losses)]
  swept = {'group': 'head', 'stopped': stopped, 'suggestions': {}, 'learns': learns}
  swept |= {'learning_rate': rates, 'loss': losses, 'smoothed': losses}
  shown = lr_find.text({'step': 0, 'new': True, 'learning_rate': 0.1, 'sweeps': [swept]}).splitlines()
  assert re.fullmatch(f'head\\b.*{said}', shown[1])
  assert len(shown) == (3 if learns else 4)
  assert learns or re.search(r'hardly.*\bhead\b', shown[2])


def test_the_image_shows_every_suggestion_and_the_rate_of_the_config():
  rates = np.geomspace(1e-6, 10, 50)
  losses = 2 + np.log10(rates) ** 2 / 10
  suggestions = {'valley': 1e-3, 'steepest': 1e-3, 'minimum/10': 1e-3}
  groups = (None, 'head', r'stem$|stage\w+/.*$')  # in mathtext, \w would be unknown
  sweeps = [lr_find.Sweep(group, rates, losses, losses, '', suggestions, True) for group in groups]
  figure = lr_find.plot(sweeps, 0.05)
  for axes, group in zip(figure.axes, ('all that trains', *groups[1:]), strict=True):
    assert re.fullmatch(f'{re.escape(group)}: rises .* 1', axes.get_title(loc='left'))
  for axes in figure.axes:
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ('log', 'learning rate', 'training loss')
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown[2:] == ['valley  0.001', 'steepest  0.001', 'minimum/10  0.001', 'config  0.05']
    sizes = [line.get_markersize() for line in axes.lines if line.get_marker() in 'osD']
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3, 'where they agree, all can be seen'
  assert plots.png(figure).startswith(b'\x89PNG')


# A run that finds its learning rate.


@pytest.fixture
def finding(network, undrawn):
  """A config of a run in two phases that finds its rate."""
  network.finetune.trainable, network.finetune.unfreeze = 'head', (('2', 'all'),)
  network.schedule.name = 'one_cycle'
  network.optim.learning_rate = 'auto'
  network.finetune.cached_views = 0
  return network


def run_of(config, workdir):
  return loop.train(config, workdir, record.Clock(0.0), 'test')


@pytest.mark.parametrize(
  ('changes', 'method'),
  [
    ({}, 'steepest'),
    ({'trainable': 'head'}, 'steepest'),
    ({'init_from': 'w', 'trainable': 'head'}, 'steepest'),
    ({'init_from': 'w'}, 'valley'),
    ({'init_from': 'w', 'head_lr_mult': 10.0}, 'valley'),
    ({'init_from': 'w', 'trainable': 'top:1'}, 'valley'),
    ({'init_from': 'w', 'trainable': 'top:1', 'reinit': ('stage1/block002',)}, 'steepest'),
    (
      {
        'init_from': 'w',
        'trainable': 'top:1',
        'reinit': ('stage1/block002',),
        'unfreeze': (('2', 'all'),),
        'head_lr_mult': 10.0,
      },
      'valley',
    ),
    ({'init_from': 'w', 'reinit': ('stage1/.*',)}, 'valley'),
    ({'init_from': 'w', 'trainable': 'head', 'frozen_norm': 'batch'}, 'steepest'),
    ({'init_from': 'w', 'trainable': 'head', 'frozen_norm': 'affine_only'}, 'valley'),
    ({'init_from': 'w', 'trainable': 'head', 'unfreeze': (('2', 'all'),)}, 'valley'),
    ({'init_from': 'w', 'trainable': 'head', 'unfreeze': (('2', 'all'),), 'head_lr_mult': 10.0}, 'steepest'),
  ],
)
def test_pretrained_entries_get_the_smaller_rate(network, changes, method):
  changes = dict(changes)
  network.model.norm = 'batch_norm'
  data = datasets.load(network, ())
  config = open_options.resolve(network, data)
  config.train.init_from = changes.pop('init_from', '')
  config.finetune.update(changes)
  assert lr_find.choose(experiment.make(config, data.spec)) == method


@pytest.mark.thorough
def test_a_run_at_a_rate_that_it_finds_is_the_run_at_that_rate(finding, tmp_path, console):
  found = run_of(finding, tmp_path / 'found')
  rate = json.loads((tmp_path / 'found' / 'config.json').read_text())['optim']['learning_rate']
  swept = json.loads((tmp_path / 'found' / 'lr_find.json').read_text())
  assert rate == swept['learning_rate'] == swept['sweeps'][0]['suggestions']['steepest']
  said = [line for line in console.readouterr().out.splitlines() if line.startswith('learning rate ')]
  assert len(said) == 1 and said[0].startswith(f'learning rate {rate:.3g}') and 'range test' in said[0]

  finding.optim.learning_rate = rate
  given = run_of(finding, tmp_path / 'given')
  assert given['params_sha256'] == found['params_sha256']
  assert not (tmp_path / 'given' / 'lr_find.json').exists()
  whole = lr_find.run(finding, tmp_path / 'swept')['sweeps'][0]
  assert whole['loss'] == swept['sweeps'][0]['loss'], 'the head alone, from where the run starts'


@pytest.mark.thorough
def test_a_run_that_goes_on_keeps_the_rate_that_it_found(finding, tmp_path, monkeypatch, console):
  whole = run_of(finding, tmp_path)
  rate = json.loads((tmp_path / 'config.json').read_text())['optim']['learning_rate']
  shutil.rmtree(tmp_path / 'checkpoints' / '6')
  monkeypatch.setattr(lr_find, 'sweep', None)
  console.readouterr()
  assert run_of(finding, tmp_path)['params_sha256'] == whole['params_sha256']
  assert re.search(f'learning rate {rate:.3g}.* started', console.readouterr().out)
  assert json.loads((tmp_path / 'config.json').read_text())['optim']['learning_rate'] == rate


@pytest.mark.thorough
def test_the_sweep_of_cached_features_trains_on_them(finding, tmp_path, monkeypatch):
  finding.finetune.update({'unfreeze': (), 'cached_views': 1, 'cache_dir': str(tmp_path / 'features')})
  finding.train.steps, finding.schedule.name = 2, 'constant'
  seen, sweep = [], lr_find.sweep

  def spy(run, mesh, state, loader, group=None):
    seen.append(loader.shapes())
    return sweep(run, mesh, state, loader, group)

  monkeypatch.setattr(lr_find, 'sweep', spy)
  run_of(finding, tmp_path / 'run')
  assert 16 in jax.tree.leaves(seen[0])[0].shape, 'the width of the network, not images of 8x8x3'


def test_a_rate_that_cannot_be_told_is_refused(finding, tmp_path):
  finding.lr_find.start, finding.lr_find.end = 1e20, 1e30
  with pytest.raises(errors.InputError, match='learning_rate=.* range test.* too soon'):
    run_of(finding, tmp_path)
  finding.lr_find.end = 1e10
  with pytest.raises(errors.InputError, match='config.lr_find.end.* config.lr_find.start'):
    run_of(finding, tmp_path)
  assert not (tmp_path / 'config.json').exists()
