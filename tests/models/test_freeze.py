"""What trains and what stands still, by everything that must agree on it."""

import dataclasses
import json
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dnt import errors, loop, trees
from dnt.models import freeze
from dnt.reporting import metrics
from dnt.training import record

pytestmark = pytest.mark.usefixtures('undrawn')
MODULE = """
import flax.linen as nn

class Part(nn.Module):
  in_call: bool

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(8, name='dense')(x)
    if self.in_call:
      x = nn.BatchNorm(name='norm')(x, use_running_average=not train)
      return nn.Dropout(0.5)(x, deterministic=not train)
    x = nn.BatchNorm(use_running_average=not train, name='norm')(x)
    return nn.Dropout(0.5, deterministic=not train)(x)

class Net(nn.Module):
  num_classes: int
  in_call: bool

  @nn.compact
  def __call__(self, x, train):
    x = Part(self.in_call, name='first')(x.reshape(x.shape[0], -1), train)
    return nn.Dense(self.num_classes, name='last')(x)
"""

RANDOM = """
import flax.linen as nn
import jax

class Noise(nn.Module):
  @nn.compact
  def __call__(self, x, *, KEYWORDS):
    x = nn.BatchNorm(use_running_average=not (TRAINS), name='norm')(nn.Dense(8, name='dense')(x))
    return x + jax.random.normal(self.make_rng('dropout'), x.shape) if (TRAINS) else x

class Net(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dropout(0.5, deterministic=not train, name='inputs')(x.reshape(x.shape[0], -1, 8))
    x = Noise(name='noise')(x, GIVEN)
    x = nn.Dropout(0.5, name='between')(x, deterministic=not train)
    attention = nn.MultiHeadDotProductAttention(2, dropout_rate=0.5, name='attention')
    x = attention(x, x, deterministic=not train)
    x = nn.Dropout(0.5 if LAST else 0.0, name='before')(x, not train)
    return nn.Dense(self.num_classes, name='last')(x.mean(1))
"""


@pytest.fixture
def config(tiny):
  """ResNet-8 with an average: stem, three blocks, head."""
  tiny.model.name, tiny.model.depth, tiny.model.width = 'resnet', 8, None
  tiny.train.steps = 8
  tiny.ema.decay = 0.9
  return tiny


@pytest.mark.parametrize(
  ('options', 'has_norm'),
  [
    ({'name': 'densenet', 'depth': 10, 'growth_rate': 4}, True),
    ({'name': 'resnet', 'depth': 8, 'block': 'preact_basic'}, True),
    ({'name': 'resnet', 'depth': 8}, False),
  ],
)
def test_a_norm_before_the_classifier_belongs_to_the_head(tiny, build, options, has_norm):
  tiny.model.update({'width': None, **options})
  tiny.finetune.trainable, tiny.finetune.frozen_norm = 'head', 'running'
  run = build(tiny)
  partition, variables = run.phases[0].partition, run.trace.variables
  norm = {'head/norm/scale', 'head/norm/bias'} if has_norm else set()
  assert trees.flatten(partition.split(variables['params'])[0]).keys() == {
    'head/dense/kernel',
    'head/dense/bias',
    *norm,
  }
  moving = trees.flatten(partition.split_statistics(variables['batch_stats'])[0]).keys()
  assert moving == ({'head/norm/mean', 'head/norm/var'} if has_norm else set())


def evaluated(run, state, batch):
  """The logits of evaluation."""
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  return jax.jit(lambda variables: run.model.apply(variables, run.preprocess(batch, None), train=False))(variables)


def changed(before, after):
  """Entries of which a leaf has changed."""
  before, after = trees.flatten(before), trees.flatten(after)
  assert before.keys() == after.keys()
  return {entry(path) for path, leaf in before.items() if not np.array_equal(leaf, after[path])}


def entry(path):
  parts = path.split('/')
  return '/'.join(parts[:2] if parts[0].startswith('stage') else parts[:1])


ENTRIES = ('stem', 'stage1/block001', 'stage2/block001', 'stage3/block001', 'head')


@pytest.mark.parametrize(
  ('chosen', 'names'),
  [
    ('all', ENTRIES),
    ('head', ENTRIES[4:]),
    ('top:1', ENTRIES[3:]),
    ('top:4', ENTRIES),
    ('stage[12]/.*|stem', ENTRIES[:3]),
  ],
)
def test_what_is_chosen(config, begin, chosen, names):
  run, _, _ = begin(config)
  assert freeze.trainable_entries(chosen, run.table) == frozenset(names)


@pytest.mark.parametrize(
  ('chosen', 'said'),
  [('top:99', r'top:99.* 4\b'), ('top:0', 'top:0'), ('stage9/.*', 'stem, stage1/block001'), ('stage1', 'whole')],
)
def test_a_choice_of_nothing_is_refused(config, begin, chosen, said):
  config.finetune.trainable = chosen
  with pytest.raises(errors.InputError, match=said):
    begin(config)


@pytest.mark.thorough
@pytest.mark.parametrize(
  ('trainable', 'mode'),
  [('head', 'running'), ('top:2', 'running'), ('stage2/.*', 'running'), ('top:2', 'batch'), ('top:2', 'affine_only')],
)
def test_what_is_frozen_stays_to_the_last_bit_and_each_mode_moves_what_it_says(config, begin, trainable, mode):
  config.finetune.trainable, config.finetune.frozen_norm = trainable, mode
  config.optim.weight_decay, config.train.accumulate = 0.1, 2
  run, state, batch = begin(config)
  step = jax.jit(run.phases[0].train_step)
  after = state
  for _ in range(2):
    after, _ = step(after, batch)
  trained = freeze.trainable_entries(trainable, run.table)
  affine = set(ENTRIES[:4]) if mode == 'affine_only' else set()
  assert changed(state.params, after.params) == trained | affine
  moving = set(ENTRIES[:4]) if mode == 'batch' else trained - {'head'}
  assert changed(state.batch_stats, after.batch_stats) == moving
  assert changed(state.ema['params'], after.ema['params']) == trained | affine
  assert changed(state.ema['batch_stats'], after.ema['batch_stats']) == moving
  frozen = {path for path in trees.flatten(state.params) if entry(path) not in trained}
  kernels = {path for path in frozen if not path.endswith(('scale', 'bias'))}
  before, now = trees.flatten(state.params), trees.flatten(after.params)
  assert all(np.array_equal(before[path], now[path]) for path in (kernels if affine else frozen))


@pytest.mark.parametrize('name', ['sgd', 'adamw', 'lamb', 'muon'])
def test_frozen_leaves_have_no_optimizer_state(config, begin, name):
  config.finetune.trainable, config.optim.name = 'top:1', name
  run, state, _ = begin(config)
  found = {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
  }
  assert any('stage3/block001/conv1/kernel' in path for path in found)
  assert not [path for path in found if 'stem' in path or 'stage1' in path or 'stage2' in path]


@pytest.mark.thorough
def test_the_clip_norm_is_over_what_trains(config, begin):
  config.clip.name, config.clip.threshold = 'global_norm', 1e-3
  config.optim.momentum, config.optim.weight_decay, config.optim.learning_rate = 0.0, 0.0, 1.0
  config.finetune.trainable = 'head'
  run, state, batch = begin(config)
  after, found = jax.jit(run.phases[0].train_step)(state, batch)
  moved = jax.tree.map(jnp.subtract, after.params['head'], state.params['head'])
  np.testing.assert_allclose(optax.tree.norm(moved), 1e-3, rtol=1e-4)

  def loss(params):
    logits = run.model.apply(
      {'params': params, 'batch_stats': state.batch_stats}, run.preprocess(batch, None), train=False
    )
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).mean()

  gradient = jax.jit(jax.grad(loss))(state.params)
  np.testing.assert_allclose(found['gradient_norm'], optax.tree.norm(gradient['head']), rtol=1e-4)
  assert optax.tree.norm(gradient) > 1.1 * optax.tree.norm(gradient['head'])


@pytest.mark.thorough
def test_below_the_cut_there_is_no_backward_pass_and_telemetry_brings_none_back(config, begin):
  config.data.image_size, config.ema.decay = 16, 0.0
  flops, memory = {}, {}
  for trainable in ('head', 'top:1', 'all'):
    config.finetune.trainable = trainable
    run, state, batch = begin(config)
    for kind, step in (('plain', run.phases[0].train_step), ('telemetry', run.phases[0].telemetry_step)):
      lowered = jax.jit(step).lower(state, batch)
      flops[trainable, kind] = lowered.cost_analysis()['flops']
      if kind == 'plain':
        memory[trainable] = lowered.compile().memory_analysis().temp_size_in_bytes
  # A backward pass is twice the forward one; one of three blocks trains in top:1.
  forward = flops['head', 'plain']
  assert flops['all', 'plain'] > 2.5 * forward
  assert 0.15 < (flops['top:1', 'plain'] - forward) / (flops['all', 'plain'] - forward) < 0.45
  for trainable in ('head', 'top:1'):
    assert flops[trainable, 'telemetry'] < flops[trainable, 'plain'] + 0.4 * forward
  assert memory['head'] < 0.7 * memory['all'] and memory['top:1'] < 0.8 * memory['all']


@pytest.mark.thorough
def test_telemetry_shows_forward_figures_alone_of_what_is_frozen(config, begin):
  config.finetune.trainable = 'top:1'
  run, state, batch = begin(config)
  _, found = jax.jit(run.phases[0].telemetry_step)(state, batch)
  columns = found['telemetry']
  assert columns['gradient_norm'].entries == columns['output_gradient_norm'].entries == (3, 4)
  assert columns['activation_rms'].entries == (0, 1, 2, 3, 4)


@pytest.mark.thorough
def test_frozen_blocks_are_never_dropped(config, begin):
  config.model.stochastic_depth, config.model.name = 0.9, 'resnet'
  config.finetune.trainable = 'head'
  run, state, batch = begin(config)
  _, found = jax.jit(run.phases[0].train_step)(state, batch)
  logits = evaluated(run, state, batch)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).mean()
  np.testing.assert_allclose(found['loss'], loss, rtol=1e-5)


@pytest.fixture
def own(tiny, tmp_path, monkeypatch):
  """Makes a user's network from a module's text the one of the config."""

  def write(text, **words):
    for word, replacement in words.items():
      text = text.replace(word, replacement)
    (tmp_path / 'frozen_nets.py').write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, 'frozen_nets', raising=False)
    tiny.model.name, tiny.model.depth, tiny.model.width = 'frozen_nets:Net', None, None
    tiny.finetune.trainable = 'last'
    return tiny

  return write


@pytest.mark.parametrize('in_call', [True, False])
def test_a_users_own_batch_norm_and_dropout(own, begin, in_call):
  config = own(MODULE)
  config.model.options['in_call'] = in_call
  run, state, batch = begin(config)
  after, found = jax.jit(run.phases[0].train_step)(state, batch)
  assert changed(state.params, after.params) == {'last'}
  assert changed(state.batch_stats, after.batch_stats) == set()
  logits = evaluated(run, state, batch)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).mean()
  np.testing.assert_allclose(found['loss'], loss, rtol=1e-5)
  config.finetune.frozen_norm = 'batch'
  run, state, batch = begin(config)
  after, _ = jax.jit(run.phases[0].train_step)(state, batch)
  assert changed(state.batch_stats, after.batch_stats) == {'first'}


NAMES = {'train': 'train', 'training': 'train', 'is_training': 'train', 'deterministic': 'not train'}


@pytest.mark.parametrize('keywords', [*NAMES, 'train, deterministic', 'deterministic, training'])
def test_nothing_frozen_of_a_users_network_is_random(own, begin, keywords):
  given = ', '.join(f'{keyword}={NAMES[keyword]}' for keyword in keywords.split(', '))
  trains = keywords.replace('deterministic', 'not deterministic').replace(',', ' or')
  config = own(RANDOM, LAST='False', TRAINS=trains, KEYWORDS=keywords, GIVEN=given)
  run, state, batch = begin(config)
  _, found = jax.jit(run.phases[0].train_step)(state, batch)
  loss = optax.softmax_cross_entropy_with_integer_labels(evaluated(run, state, batch), batch['label']).mean()
  np.testing.assert_allclose(found['loss'], loss, rtol=1e-5)
  config.finetune.frozen_norm = 'batch'
  run, state, batch = begin(config)
  after, found = jax.jit(run.phases[0].train_step)(state, batch)
  assert changed(state.batch_stats, after.batch_stats) == {'noise'}
  _, again = jax.jit(run.phases[0].train_step)(dataclasses.replace(state, step=state.step + 1), batch)
  assert found['loss'] == again['loss'] != loss  # the keys are others at another step


NORM = """
import flax.linen as nn
from dnt.models import norms

class Net(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(8, name='first')(x.reshape(x.shape[0], -1))
    x = norms.Norm('batch_norm', name='norm')(GIVEN)
    return nn.Dense(self.num_classes, name='last')(x)
"""


@pytest.mark.parametrize('given', ['x, train', 'train=train, x=x'])
@pytest.mark.parametrize(('mode', 'moving'), [('running', set()), ('batch', {'norm'})])
def test_a_norm_that_is_an_entry_of_its_own(own, begin, mode, moving, given):
  config = own(NORM, GIVEN=given)
  config.finetune.frozen_norm = mode
  run, state, batch = begin(config)
  after, _ = jax.jit(run.phases[0].train_step)(state, batch)
  assert changed(state.batch_stats, after.batch_stats) == moving


@pytest.mark.thorough
def test_a_dropout_right_before_what_trains_is_random_with_cached_features_too(own, tmp_path):
  config, losses = own(RANDOM, LAST='True', KEYWORDS='train', GIVEN='train=train', TRAINS='train'), []
  config.train.log_every, config.finetune.cache_dir = '1', str(tmp_path / 'features')
  for views in (0, 1):
    config.finetune.cached_views = views
    loop.train(config, tmp_path / f'views{views}', record.Clock(0.0), 'test')
    losses.append([line['train/loss'] for line in metrics.read(tmp_path / f'views{views}') if 'train/loss' in line])
  np.testing.assert_allclose(*losses, rtol=1e-5)
  assert len(list(pathlib.Path(config.finetune.cache_dir).glob('*.features'))) == 2


def test_a_scanned_network_cannot_be_frozen(config, begin):
  config.model.scan, config.model.depth = True, 14
  begin(config)
  config.finetune.trainable = 'head'
  with pytest.raises(errors.InputError, match=r"config.model.scan=False .*config.model.options={'scan': False}"):
    begin(config)


def test_phases_come_one_after_the_other(config, begin):
  config.finetune.trainable = 'head'
  config.finetune.unfreeze = (('25%', 'top:2'), ('6 steps', 'all'), ('100', 'all'))
  run, _, _ = begin(config)
  assert [phase.start for phase in run.phases] == [0, 2, 6]
  assert [len(phase.partition.frozen) for phase in run.phases] == [4, 2, 0]
  assert [run.phase(step).start for step in (0, 1, 2, 5, 6, 99)] == [0, 0, 2, 2, 6, 6]
  assert [run.phase_of_state(step).start for step in (0, 2, 3, 6, 7)] == [0, 0, 2, 2, 6]


@pytest.mark.thorough
def test_a_phase_that_rounds_to_no_step_follows_the_first_one(config, begin):
  config.finetune.trainable = 'head'
  config.finetune.unfreeze = (('1 epochs', 'top:1'), ('20%', 'top:2'), ('75%', 'all'))

  def starts():
    return [(phase.start, len(phase.partition.frozen)) for phase in begin(config)[0].phases]

  config.train.steps, config.train.batch_size, config.data.synthetic_examples = 4, 64, 24  # 0.375 and 0.8 steps
  assert starts() == [(0, 4), (1, 2), (3, 0)]  # of two that start at one step the last counts
  assert len(begin(config)[0].phases[1].partitions) == 3  # the optimizer's state has a part for each
  assert begin(config)[0].phase(1).partition.frozen == {'stem', 'stage1/block001'}
  config.train.steps = 2
  assert starts() == [(0, 4), (1, 2)], '75% rounds to the end of the run'
  config.train.steps = 1
  assert starts() == [(0, 4)]
  config.finetune.unfreeze = (('0 epochs', 'all'),)
  with pytest.raises(errors.InputError, match="'0 epochs' must come after"):
    begin(config)


@pytest.mark.thorough
def test_a_run_that_is_too_short_for_its_phases_trains_what_it_reaches(config, begin):
  config.finetune.trainable, config.finetune.unfreeze = 'head', (('50%', 'all'),)
  config.optim.name, config.train.steps = 'muon', 1  # which is for hidden kernels, of the second phase
  run, _, _ = begin(config)
  assert [phase.start for phase in run.phases] == [0]


@pytest.mark.parametrize(
  ('unfreeze', 'said'),
  [
    ((('50%', 'head'),), 'freezes'),
    ((('6', 'all'), ('4', 'all')), "'4'.* after"),
    ((('0', 'all'),), "'0'.* after"),
  ],
)
def test_phases_that_make_no_sense_are_refused(config, begin, unfreeze, said):
  config.finetune.trainable, config.finetune.unfreeze = 'top:2', unfreeze
  with pytest.raises(errors.InputError, match=said):
    begin(config)


@pytest.mark.thorough
def test_what_begins_to_train_starts_anew_and_the_rest_goes_on(config, begin):
  config.optim.name, config.optim.weight_decay = 'adamw', 0.0
  config.finetune.trainable, config.finetune.unfreeze = 'head', (('3', 'all'),)
  run, state, batch = begin(config)
  first, second = run.phases
  step = jax.jit(first.train_step)
  for _ in range(3):
    state, _ = step(state, batch)
  after = run.advance(state, second)
  old, new = after.opt_state['adam'], after.opt_state['phase1']['adam']
  assert int(old.count) == 3 and int(new.count) == 0
  assert int(after.opt_state['learning_rate'].count) == 3
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(new.mu))
  for a, b in zip(jax.tree.leaves(state.opt_state['adam']), jax.tree.leaves(old), strict=True):
    np.testing.assert_array_equal(a, b)
  # The first step of a fresh Adam is that of its sign.
  moved, _ = jax.jit(second.train_step)(after, batch)
  change = np.abs(np.asarray(moved.params['stem']['conv']['kernel'] - after.params['stem']['conv']['kernel']))
  np.testing.assert_allclose(change[change > 0], config.optim.learning_rate, rtol=1e-2)


@pytest.mark.thorough
def test_a_run_goes_on_across_the_start_of_a_phase(tiny, tmp_path):
  config = tiny
  config.train.steps, config.ema.decay, config.model.norm = 8, 0.9, 'batch_norm'
  config.finetune.trainable, config.finetune.unfreeze = 'head', (('4', 'top:1'), ('6', 'all'))
  config.optim.name, config.optim.learning_rate = 'adamw', 1e-3
  config.checkpoint.every, config.checkpoint.keep = '1', 20
  config.eval.every, config.telemetry.every, config.train.steps_per_dispatch = '0', '3', 3

  def digest(workdir):
    return loop.train(config, workdir, record.Clock(0.0), 'test')['params_sha256']

  whole = digest(tmp_path / 'whole')
  for kept in (3, 4, 6, 7):
    workdir = tmp_path / f'from{kept}'
    shutil.copytree(tmp_path / 'whole', workdir)
    for path in (workdir / 'checkpoints').iterdir():
      if int(path.name) > kept:
        shutil.rmtree(path)
    (workdir / 'summary.json').unlink()
    assert digest(workdir) == whole, kept
    assert json.loads((workdir / 'summary.json').read_text())['step'] == 8
