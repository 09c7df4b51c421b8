import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dnt import config as schema
from dnt import errors, models, trees
from dnt.models import depth, freeze, layouts
from dnt.optim import chain, rows, schedules

NAMES = schema.SCHEMA['optim']['name'].choices
OF_OPTIM = [key for key in schema.SCHEMA['optim'] if key != 'name']


def make_config(name, clip='none', **options):
  config = schema.default()
  config.optim.name = name
  config.optim.learning_rate = 0.05
  config.optim.weight_decay = 0.1
  config.optim.update(options)
  config.clip.name = clip
  config.clip.threshold = 0.3
  return config


def make_chain(config, params, entries):
  schedule = schedules.make(config.schedule, config.optim.learning_rate, 100, 10)
  return chain.make(config, schedule, rows.Leaves.of(params, entries))


def train(optimizer, params, gradients, compiled=False):
  """Parameters after a step on each gradient, and the optimizer's state.

  As a rule steps are not compiled, because many chains have few shapes.
  """

  def step(params, state, gradient):
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  step = jax.jit(step) if compiled else step
  params = jax.tree.map(jnp.asarray, params)
  state = optimizer.init(params)
  for gradient in gradients:
    params, state = step(params, state, jax.tree.map(jnp.asarray, gradient))
  return params, state


def run(config, network, steps=4):
  params = network.tree(0)
  optimizer = make_chain(config, params, network.unrolled)
  return train(optimizer, params, [network.tree(1 + i) for i in range(steps)])[0]


def check(actual, expected, rtol=1e-5, atol=1e-6):
  actual, expected = trees.flatten(actual), trees.flatten(expected)
  assert actual.keys() == expected.keys()
  for path, leaf in expected.items():
    np.testing.assert_allclose(actual[path], leaf, rtol=rtol, atol=atol, err_msg=path)


@pytest.fixture
def torch_run(torch_reference, network):
  """`torch_run(make_optimizer, decay)`: parameters after steps of `make_optimizer(torch.optim, groups)`."""

  def run(make_optimizer, decay, steps=4):
    def compute(torch):
      parameters = {
        path: torch.tensor(leaf, requires_grad=True) for path, leaf in trees.flatten(network.tree(0)).items()
      }
      optimizer = make_optimizer(
        torch.optim,
        [
          {'params': [p for path, p in parameters.items() if path.endswith('kernel')], 'weight_decay': decay},
          {'params': [p for path, p in parameters.items() if not path.endswith('kernel')], 'weight_decay': 0.0},
        ],
      )
      for step in range(steps):
        for path, gradient in trees.flatten(network.tree(1 + step)).items():
          parameters[path].grad = torch.tensor(gradient)
        optimizer.step()
      return parameters

    return trees.unflatten(torch_reference(compute))

  return run


@pytest.mark.parametrize(('momentum', 'nesterov'), [(0.9, False), (0.9, True), (0.0, False)])
def test_sgd_equals_torch(network, torch_run, momentum, nesterov):
  actual = run(make_config('sgd', momentum=momentum, nesterov=nesterov), network)
  expected = torch_run(lambda optim, groups: optim.SGD(groups, lr=0.05, momentum=momentum, nesterov=nesterov), 0.1)
  check(actual, expected, rtol=1e-6)


def test_adamw_equals_torch(network, torch_run):
  actual = run(make_config('adamw', b1=0.8, b2=0.99, epsilon=1e-6), network)
  expected = torch_run(lambda optim, groups: optim.AdamW(groups, lr=0.05, betas=(0.8, 0.99), eps=1e-6), 0.1)
  check(actual, expected)


def test_adamw_follows_the_schedule_as_torch_does(network, torch_run):
  config = make_config('adamw')
  config.schedule.name = 'linear'
  config.schedule.final = 0.5

  def scheduled(optim, groups):
    optimizer = optim.AdamW(groups, lr=0.05)
    scheduler = optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, 4)
    optimizer.register_step_post_hook(lambda *_: scheduler.step())
    return optimizer

  params = network.tree(0)
  schedule = schedules.make(config.schedule, 0.05, 4, 10)
  optimizer = chain.make(config, schedule, rows.Leaves.of(params, network.unrolled))
  actual, _ = train(optimizer, params, [network.tree(1 + i) for i in range(4)])
  # optax has 1 - b2**t in float32: for b2 = 0.999 it is 1e-5 off at first, in torch it is not
  check(actual, torch_run(scheduled, 0.1), atol=3e-6)


def adam(network, path, b1=0.8, b2=0.99, epsilon=1e-6):
  """Adam's direction for a leaf on each of four gradients, in float64 (Kingma and Ba 2015, algorithm 1)."""
  m = v = 0.0
  for t in range(1, 5):
    g = trees.flatten(network.tree(t))[path].astype(np.float64)
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    yield m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + epsilon)


def test_lamb_is_algorithm_2_of_you_et_al(network):
  actual = run(make_config('lamb', b1=0.8, b2=0.99, epsilon=1e-6), network)
  expected = {}
  for path, leaf in trees.flatten(network.tree(0)).items():
    x = leaf.astype(np.float64)
    for r in adam(network, path):
      u = r + (0.1 * x if path.endswith('kernel') else 0)
      x = x - 0.05 * (np.linalg.norm(x) / np.linalg.norm(u) if path.endswith('kernel') else 1) * u
    expected[path] = x
  check(actual, trees.unflatten(expected))


def test_lamb_on_kernels_is_optax_lamb(network):
  """With gradients so small that epsilon counts."""
  params = {path: leaf for path, leaf in trees.flatten(network.tree(0)).items() if path.endswith('kernel')}
  gradients = [{path: trees.flatten(network.tree(1 + i, 1e-6))[path] for path in params} for i in range(4)]
  optimizer = make_chain(make_config('lamb', weight_decay=0.0), network.tree(0), network.unrolled)
  actual, _ = train(optimizer, network.tree(0), [network.tree(1 + i, 1e-6) for i in range(4)])
  expected, _ = train(optax.lamb(0.05), params, gradients)
  check({path: trees.flatten(actual)[path] for path in params}, expected)


def test_entries_have_rates_as_groups_of_parameters_do(network):
  """AdamW (Loshchilov and Hutter 2019, algorithm 2): a factor scales its step and its decay."""
  config = make_config('adamw', b1=0.8, b2=0.99, epsilon=1e-6)
  config.finetune.update({'layer_decay': 0.5, 'head_lr_mult': 10.0, 'rates': (('dense', 3.0),)})
  factors = {'stem': 1 / 32, 'block001': 1 / 16, 'block002': 1 / 8, 'block003': 1 / 4, 'dense': 3 / 2, 'head': 10.0}
  expected = {}
  for path, leaf in trees.flatten(network.tree(0)).items():
    rate = 0.05 * next(factor for name, factor in factors.items() if name in path.split('/'))
    x = leaf.astype(np.float64)
    for r in adam(network, path):
      x = x - rate * (r + (0.1 * x if path.endswith('kernel') else 0))
    expected[path] = x
  check(run(config, network), trees.unflatten(expected))


@pytest.mark.parametrize('layout', ['unrolled', 'scanned'])
def test_lamb_moves_parameters_that_start_at_zero(network, layout):
  """With one gradient Adam's direction is its sign.

  A kernel's entries then take lr times the bound a step, and from there grow by the factor (1 + lr); others take lr.
  """
  rate, steps = 0.05, 40
  start, gradient = jax.tree.map(np.zeros_like, network.tree(0)), network.tree(1)
  params, gradients = (network.stack(tree) if layout == 'scanned' else tree for tree in (start, gradient))
  optimizer = make_chain(make_config('lamb', weight_decay=0.0, epsilon=1e-12), params, getattr(network, layout))
  moved, _ = train(optimizer, params, [gradients] * steps, compiled=True)
  moved = network.unstack(jax.device_get(moved)) if layout == 'scanned' else moved

  def expected(path, gradient):
    way = rate * steps
    if path.endswith('kernel'):
      way = 0.25 / np.sqrt(np.prod(gradient.shape[:-1])) * (1 + rate) ** (steps - 1 / rate)
    return -way * np.sign(gradient)

  check(moved, trees.map_with_path(expected, gradient), rtol=1e-3)


@pytest.mark.thorough
def test_lamb_scales_the_rows_that_decay_would_be_for(network):
  """Also with a decay of zero; the first step of Adam is the sign."""
  params, gradient = network.tree(0), network.tree(1)
  config = make_config('lamb', weight_decay=0.0, weight_decay_on='block003/.*kernel$|head/bias', epsilon=1e-12)
  optimizer = make_chain(config, network.stack(params), network.scanned)
  after, _ = train(optimizer, network.stack(params), [network.stack(gradient)])

  def expected(path, param, gradient):
    scaled = path in ('stage1/block003/conv/kernel', 'head/bias')
    ratio = np.linalg.norm(param) / np.sqrt(param.size) if scaled else 1
    return param - 0.05 * ratio * np.sign(gradient)

  check(network.unstack(jax.device_get(after)), trees.map_with_path(expected, params, gradient), rtol=1e-4)


def test_lamb_that_scales_nothing_is_refused(network):
  leaves = rows.Leaves.of(network.tree(0), network.unrolled)
  for decay in (0.0, 0.1):
    config = make_config('lamb', weight_decay=decay, weight_decay_on='kernels$')
    with pytest.raises(errors.InputError, match=r"'lamb' .*='kernels\$' .*no parameter that trains.* 'dense/bias'"):
      chain.check(config, leaves, freeze.ALL)
    chain.check(make_config('lamb', weight_decay=decay), leaves, freeze.ALL)


def newton_schulz(matrix):
  a, b, c = 3.4445, -4.7750, 2.0315
  x = matrix / (np.linalg.norm(matrix) + 1e-8)
  x = x.T if matrix.shape[0] > matrix.shape[1] else x
  for _ in range(5):
    gram = x @ x.T
    x = a * x + (b * gram + c * gram @ gram) @ x
  return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize('nesterov', [False, True])
def test_muon_is_newton_schulz_on_hidden_kernels_and_adam_elsewhere(network, nesterov):
  beta, decay, rate = 0.9, 0.1, 0.05
  actual = run(make_config('muon', momentum=beta, nesterov=nesterov), network)
  adamw = run(make_config('adamw'), network)
  expected = {}
  for path, leaf in trees.flatten(network.tree(0)).items():
    if path in ('stem/conv/kernel', 'head/kernel') or not path.endswith('kernel'):
      expected[path] = trees.flatten(adamw)[path]
      continue
    x = leaf.astype(np.float64)
    momentum = np.zeros_like(x)
    rows, columns = int(np.prod(x.shape[:-1])), x.shape[-1]
    for t in range(1, 5):
      g = trees.flatten(network.tree(t))[path].astype(np.float64)
      momentum = beta * momentum + (1 - beta) * g
      direction = momentum
      if nesterov:
        direction = beta * momentum / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
      update = newton_schulz(direction.reshape(rows, columns)) * np.sqrt(max(1, columns / rows))
      x = x - rate * (update.reshape(x.shape) + decay * x)
    expected[path] = x
  check(actual, trees.unflatten(expected))


@pytest.mark.thorough
def test_muon_takes_convolutions_of_any_dimension_and_the_kernels_of_attention_as_matrices():
  matrices = {  # shape, and its inputs times its outputs
    'series/kernel': ((3, 4, 6), (12, 6)),
    'volume/kernel': ((2, 2, 2, 3, 5), (24, 5)),
    'attention/query/kernel': ((5, 2, 4), (5, 8)),
    'attention/out/kernel': ((2, 4, 5), (8, 5)),
  }
  shapes = {path: shape for path, (shape, _) in matrices.items()}
  shapes |= {'attention/query/bias': (2, 4), 'attention/out/bias': (5,), 'stem/kernel': (3, 4), 'head/kernel': (5, 2)}
  shapes |= {'layers/kernel': (3, 4, 6), 'layers/bias': (3, 6)}  # of a module that scans them itself
  generator = np.random.default_rng(0)
  params, gradient = (
    trees.unflatten({path: generator.normal(size=shape).astype(np.float32) for path, shape in shapes.items()})
    for _ in range(2)
  )
  entries = tuple(depth.Entry(name, name) for name in ('stem', 'series', 'volume', 'attention', 'layers', 'head'))
  after, _ = train(make_chain(make_config('muon', weight_decay=0.0), params, entries), params, [gradient])
  before, gradient, after = map(trees.flatten, (params, gradient, after))
  for path, (shape, matrix) in matrices.items():
    update = newton_schulz(gradient[path].astype(np.float64).reshape(matrix)) * np.sqrt(max(1, matrix[1] / matrix[0]))
    np.testing.assert_allclose(after[path], before[path] - 0.05 * update.reshape(shape), rtol=1e-4, atol=1e-5)
  for path in shapes.keys() - matrices.keys():  # the first step of Adam is the sign
    np.testing.assert_allclose(after[path], before[path] - 0.05 * np.sign(gradient[path]), rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_muon_on_dense_layers_is_optax_muon_and_adam_has_no_nesterov_momentum(network):
  params = {'dense': network.tree(0)['dense']}
  gradients = [{'dense': network.tree(1 + i)['dense']} for i in range(4)]
  config = make_config('muon', weight_decay=0.0)
  optimizer = make_chain(config, network.tree(0), network.unrolled)
  actual, _ = train(optimizer, network.tree(0), [network.tree(1 + i) for i in range(4)])
  muon, adam = (train(reference(0.05), params, gradients)[0]['dense'] for reference in (optax.contrib.muon, optax.adam))
  check(actual['dense'], {'kernel': muon['kernel'], 'bias': adam['bias']}, rtol=1e-6)


def partition(network, *names):
  """A partition that trains the top-level entries of these names."""
  paths = trees.flatten(network.tree(0))
  frozen = frozenset(entry.name for entry in network.unrolled if entry.name.split('/')[0] not in names)
  return freeze.Partition(frozen, frozenset(path for path in paths if path.split('/')[0] in names))


def test_muon_is_refused_where_no_hidden_kernel_trains(network):
  config, leaves = make_config('muon'), rows.Leaves.of(network.tree(0), network.unrolled)
  with pytest.raises(errors.InputError, match="'muon' .*kernels .*none of them trains"):
    chain.check(config, leaves, partition(network, 'head'))
  chain.check(config, leaves, partition(network, 'stage1', 'head'))


@pytest.mark.thorough
def test_muon_trains_with_adam_in_a_phase_that_adds_no_hidden_kernel(network):
  config, schedule = make_config('muon'), optax.constant_schedule(0.1)
  parts = ('head',), ('stage1', 'head'), ('stem', 'stage1', 'head')
  phases, leaves = [partition(network, *names) for names in parts], rows.Leaves.of(network.tree(0), network.unrolled)
  for count in range(1, 4):
    optimizer = chain.make(config, schedule, leaves, phases[:count])
    params, _ = phases[count - 1].split(network.tree(0))
    state = optimizer.init(params)
    links = ('adam', 'phase1', 'phase2')[:count]
    assert set(links) <= set(state) and 'muon' not in state
    assert all(('muon' in state[link]) == (link == 'phase1') for link in links[1:])
    optimizer.update(phases[count - 1].split(network.tree(1))[0], state, params)


LAYOUT_CASES = [
  *((make_config(name), name) for name in NAMES),
  *((make_config('sgd', clip), clip) for clip in ('global_norm', 'value', 'block_norm', 'adaptive')),
  (make_config('sgd', weight_decay_on='block003/.*kernel$'), 'decay on a row'),
  (make_config('lamb', 'adaptive', weight_decay_on='block00[12]/.*(kernel|scale)$'), 'all at once'),
]


@pytest.mark.thorough
@pytest.mark.usefixtures('optimized')
@pytest.mark.parametrize('config', [case[0] for case in LAYOUT_CASES], ids=[case[1] for case in LAYOUT_CASES])
def test_both_layouts_train_alike(network, config):
  params, gradients = network.tree(0), [network.tree(1 + i) for i in range(3)]
  # Blocks far apart in size, so that nothing taken over a whole stack could pass for a row's own.
  for tree in (params, *gradients):
    tree['stage1']['block003'] = jax.tree.map(lambda leaf: 0.01 * leaf, tree['stage1']['block003'])
  expected, state = train(make_chain(config, params, network.unrolled), params, gradients, compiled=True)
  stacked = network.stack(params)
  optimizer = make_chain(config, stacked, network.scanned)
  stacked_gradients = [network.stack(gradient) for gradient in gradients]
  found = train(optimizer, stacked, stacked_gradients, compiled=True)
  actual, converted = (network.unstack(jax.device_get(each)) for each in found)
  check(actual, expected, rtol=1e-6, atol=1e-7)
  assert jax.tree.structure(converted) == jax.tree.structure(state)
  for leaf, other in zip(jax.tree.leaves(converted), jax.tree.leaves(state), strict=True):
    np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-7)


@pytest.mark.thorough
def test_both_layouts_of_a_real_network_are_updated_alike():
  config = make_config('lamb', 'block_norm', weight_decay_on='block00[23]/.*kernel$')
  config.model.name = 'mlp'
  config.model.depth = 6
  config.model.width = 8
  config.model.scan = True
  trace = depth.trace(models.make(config.model, 10), (2, 2, 2))
  scanned = tuple(row.entry for row in trace.table)
  unrolled = tuple(depth.Entry(entry.name, entry.name) for entry in scanned)
  generator = np.random.default_rng(0)

  def draw(path, leaf):
    return (generator.uniform(0.1, 2) * generator.normal(size=leaf.shape)).astype(np.float32)

  params, gradient = (trees.map_with_path(draw, trace.variables['params']) for _ in range(2))
  expected, _ = train(make_chain(config, params, unrolled), params, [gradient], compiled=True)
  stacked, stacked_gradient = (layouts.to_scanned(tree, trace.scanned) for tree in (params, gradient))
  actual, _ = train(make_chain(config, stacked, scanned), stacked, [stacked_gradient], compiled=True)
  assert any(trees.is_scanned(path) for path in trees.flatten(actual))
  check(layouts.to_unrolled(actual), expected, rtol=1e-6)


def test_decay_on_a_row_leaves_the_others_alone(network):
  config = make_config('sgd', weight_decay_on='block003/.*kernel$', momentum=0.0)
  params = network.stack(network.tree(0))
  zero = jax.tree.map(np.zeros_like, params)
  after, _ = train(make_chain(config, params, network.scanned), params, [zero])
  before, after = params['stage1']['scanned']['conv']['kernel'], after['stage1']['scanned']['conv']['kernel']
  np.testing.assert_array_equal(after[0], before[0])
  np.testing.assert_allclose(after[1], (1 - 0.05 * 0.1) * before[1], rtol=1e-6)


def test_clipping_comes_before_the_decay(network):
  params = network.tree(0)
  config = make_config('sgd', 'global_norm', momentum=0.0)
  after, _ = train(make_chain(config, params, network.unrolled), params, [network.tree(1)])
  norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(network.tree(1))))

  def expected(path, param, gradient):
    return param - 0.05 * (0.3 / norm * gradient + (0.1 * param if path.endswith('kernel') else 0))

  check(after, trees.map_with_path(expected, params, network.tree(1)), rtol=1e-6)


@pytest.mark.parametrize('name', [name for name in NAMES if name != 'lamb'])
def test_a_pattern_that_decays_nothing_is_refused(network, name):
  config, leaves = make_config(name, weight_decay_on='kernels$'), rows.Leaves.of(network.tree(0), network.unrolled)
  with pytest.raises(errors.InputError, match=r"='kernels\$' .*no parameter.* 'dense/bias'"):
    chain.check(config, leaves, freeze.ALL)
  config.optim.weight_decay = 0.0
  chain.check(config, leaves, freeze.ALL)


def test_a_network_without_kernels_trains_with_the_defaults_and_nothing_decays(network):
  config, scales = schema.default(), partition(network, 'stem', 'stage1')
  scales = dataclasses.replace(scales, trainable=frozenset(p for p in scales.trainable if p.endswith('scale')))
  leaves = rows.Leaves.of(network.tree(0), network.unrolled)
  chain.check(config, leaves, scales)
  assert "='kernel$' matches no parameter that trains" in chain.undecayed(config, leaves, scales)
  assert not chain.undecayed(config, leaves, freeze.ALL)
  for key, value in (('weight_decay', 2e-4), ('weight_decay_on', 'kernel')):
    other = schema.copy_unlocked(config)
    other.optim[key] = value
    with pytest.raises(errors.InputError, match='no parameter that trains'):
      chain.check(other, leaves, scales)
  config.optim.weight_decay = 0.0
  assert not chain.undecayed(config, leaves, scales)


@pytest.mark.parametrize(('layout', 'pattern'), [('unrolled', 'stem'), ('scanned', 'stage1/block003/.*kernel$')])
def test_a_pattern_of_parameters_that_do_not_train_is_refused(network, layout, pattern):
  config, params = make_config('sgd', weight_decay_on=pattern), network.tree(0)
  params = network.stack(params) if layout == 'scanned' else params
  leaves = rows.Leaves.of(params, getattr(network, layout))
  chain.check(config, leaves, freeze.ALL)
  with pytest.raises(errors.InputError, match="no parameter that trains; .* 'head/bias' .*weight_decay=0"):
    chain.check(config, leaves, partition(network, 'head'))


def test_l2_sp_that_pulls_nothing_is_refused(network):
  config, params = make_config('sgd'), network.tree(0)
  config.finetune.l2_sp = 0.1
  leaves = rows.Leaves.of(params, network.unrolled)
  head = partition(network, 'head')
  scales = frozenset(path for path in trees.flatten(params) if path.endswith('scale'))
  norms = dataclasses.replace(head, trainable=head.trainable | scales)
  with pytest.raises(
    errors.InputError, match=r"l2_sp=0.1 .*='kernel\$' .*below the head.* 'stage1/block001/norm/scale'"
  ):
    chain.check(config, leaves, norms)
  chain.check(config, leaves, freeze.ALL)
  with pytest.raises(errors.InputError, match='below the head, .*; nothing that has pretrained values does'):
    chain.check(config, leaves, head)
  config.finetune.trainable = 'head'  # where the schema knows that L2-SP has no effect
  chain.check(config, leaves, head)
  # With these more may train, which it does not look at.
  for key, value in (('frozen_norm', 'affine_only'), ('unfreeze', (('50%', 'top:1'),))):
    other = schema.copy_unlocked(config)
    other.finetune[key] = value
    with pytest.raises(errors.InputError, match='below the head'):
      chain.check(other, leaves, norms)
  config.finetune.trainable = 'all'
  config.optim.weight_decay_on = '(kernel|scale)$'
  chain.check(config, leaves, norms)
  config.optim.weight_decay, config.optim.weight_decay_on = 0.0, 'head/kernel$'
  with pytest.raises(errors.InputError, match='below the head'):
    chain.check(config, leaves, freeze.ALL)


@pytest.mark.parametrize('name', NAMES)
def test_the_chain_names_its_links_and_counts_steps(network, name):
  params = network.tree(0)
  optimizer = make_chain(make_config(name, 'value'), params, network.unrolled)
  state = optimizer.init(params)
  assert (list(state)[0], list(state)[-1]) == ('clip', 'learning_rate') and 'decay' in state
  _, state = train(optimizer, params, [network.tree(1 + i) for i in range(3)])
  assert state['learning_rate'].count == 3


@pytest.mark.parametrize('name', NAMES)
def test_the_chain_can_be_made_from_shapes(network, name):
  shapes = jax.eval_shape(lambda: network.tree(0))
  optimizer = make_chain(make_config(name, 'adaptive'), shapes, network.scanned[:2] + network.unrolled[2:])
  updates, _ = jax.eval_shape(lambda tree: optimizer.update(tree, optimizer.init(tree), tree), shapes)
  assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, shapes)


@functools.cache
def two_steps(name, network):
  return run(make_config(name), network, steps=2)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('option', OF_OPTIM)
def test_each_option_changes_the_updates_where_it_has_an_effect(network, name, option):
  changed = {
    'learning_rate': 0.1,
    'momentum': 0.5,
    'nesterov': name != 'muon',
    'b1': 0.5,
    'b2': 0.9,
    'epsilon': 0.1,
    'weight_decay': 0.5,
    'weight_decay_on': 'bias$',
  }[option]
  reads = not schema.no_effect(make_config(name, **{option: changed}), f'optim.{option}')
  after = run(make_config(name, **{option: changed}), network, steps=2)
  same = jax.tree.map(lambda a, b: bool((a == b).all()), two_steps(name, network), after)
  assert reads != all(jax.tree.leaves(same))


def test_a_name_outside_the_schema_is_refused(network):
  with pytest.raises(errors.InputError, match="optimizer 'adam'.* 'adamw'"):
    make_chain(make_config('adam'), network.tree(0), network.unrolled)
