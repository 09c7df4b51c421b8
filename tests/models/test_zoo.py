"""Every model with every kind of part."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dnt import config, models, trees
from dnt.models import depth

SHAPE = (8, 8, 3)
TINY = {
  'mlp': {'depth': 3, 'width': 8},
  'plain': {'depth': 8, 'width': 4},
  'resnet': {'depth': 8},
  'highway': {'depth': 8, 'width': 4},
  'densenet': {'depth': 7, 'growth_rate': 8, 'bottleneck': False},
}
# Each value of each part once, with the others in turn.
PARTS = [
  ('batch_norm', 'relu', 'he', 'float32', False),
  ('layer_norm', 'leaky_relu', 'glorot', 'bfloat16', True),
  ('group_norm', 'sigmoid', 'lecun', 'float32', False),
  ('rms_norm', 'tanh', 'normal', 'bfloat16', False),
  ('none', 'gelu', 'orthogonal', 'float32', True),
  ('batch_norm', 'silu', 'delta_orthogonal', 'bfloat16', False),
  ('none', 'identity', 'he', 'bfloat16', False),
]


def make(name, parts=PARTS[0], **options):
  cfg = config.default()
  keys = ('norm', 'activation', 'initializer', 'dtype', 'weight_standardization')
  cfg.model.update({'name': name, 'norm_groups': 2, **TINY[name], **dict(zip(keys, parts, strict=True)), **options})
  config.validate(cfg)
  return models.make(cfg.model, 5)


@pytest.mark.thorough
@pytest.mark.parametrize(
  ('name', 'options'),
  [('plain', {}), ('resnet', {}), ('resnet', {'block': 'preact_basic'}), ('highway', {}), ('densenet', {})],
)
def test_a_head_that_is_said_to_pool_reads_the_mean_alone(name, options):
  model, inputs = make(name, **options), []

  def watch(call, args, keywords, context):
    if context.module.path == ('head',) and context.method_name == '__call__':
      inputs.append(args[0])
      args = (args[0] if len(inputs) == 1 else args[0].mean((1, 2), keepdims=True), *args[1:])
    return call(*args, **keywords)

  x = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)
  variables = models.init(depth.trace(model, SHAPE), 1)
  with nn.intercept_methods(watch):
    whole, mean = jax.jit(lambda *args: [model.apply(*args, train=False) for _ in range(2)])(variables, x)
  assert min(inputs[0].shape[1:3]) > 1
  assert np.allclose(whole, mean, rtol=1e-5, atol=1e-6) == getattr(model, 'head_pools', False)


def step(model, variables, x):
  def loss_fn(params):
    logits, updates = model.apply(
      {**variables, 'params': params},
      x,
      train=True,
      rngs={'stochastic_depth': jax.random.key(0)},
      mutable=['batch_stats'],
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(4)).mean()
    return loss, (logits, updates.get('batch_stats', {}))

  return jax.grad(loss_fn, has_aux=True)(variables['params'])


def test_the_parts_below_are_all_there_are():
  for index, valid in enumerate((config.NORMS, config.ACTIVATIONS, config.INITIALIZERS)):
    assert {parts[index] for parts in PARTS} == set(valid)
  assert {*TINY} == {*models.MODELS}


@pytest.mark.parametrize('name', TINY)
def test_only_your_own_module_has_a_folder(name):
  cfg = config.default()
  cfg.model.name, cfg.model.folder = name, 'mine'
  assert config.no_effect(cfg, 'model.folder')
  cfg.model.name = 'nets:Net'
  assert not config.no_effect(cfg, 'model.folder')


@pytest.mark.thorough
@pytest.mark.parametrize('name', TINY)
def test_shapes_and_dtypes_with_all_parts(name):
  for parts in PARTS:
    model = make(name, parts)
    variables = depth.trace(model, SHAPE).variables
    x = jax.ShapeDtypeStruct((4, *SHAPE), jnp.dtype(parts[3]))
    gradient, (logits, stats) = jax.eval_shape(functools.partial(step, model), {'batch_stats': {}, **variables}, x)
    assert logits.shape == (4, 5)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, variables['params'])
    assert bool(stats) == (parts[0] == 'batch_norm')
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, gradient, logits, stats))} == {jnp.dtype('float32')}


@pytest.mark.thorough
@pytest.mark.parametrize(
  ('name', 'parts'),
  list(zip(('resnet', 'mlp', 'mlp', 'densenet', 'plain', 'resnet', 'highway'), PARTS, strict=True)),
)
def test_a_training_step_is_finite(name, parts):
  model = make(name, parts)
  variables = models.init(depth.trace(model, SHAPE), 0)
  x = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(jnp.dtype(parts[3]))
  found = jax.jit(functools.partial(step, model))(variables, x)
  gradient, (logits, stats) = jax.device_get(found)  # what follows compiles nothing
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, logits, stats)))
  assert np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(gradient))) > 1e-4
  unmoved = [path for path, leaf in trees.flatten(gradient).items() if path.endswith('kernel') and not leaf.any()]
  assert unmoved == []


def test_bfloat16_is_computed_and_not_stored():
  """Convolutions run in bfloat16 on a bfloat16 copy of float32 kernels."""
  model = make('resnet', PARTS[5])
  variables = depth.trace(model, SHAPE).variables
  traced = jax.jit(functools.partial(step, model)).trace(variables, jax.ShapeDtypeStruct((4, *SHAPE), jnp.bfloat16))
  for platform in ('cpu', 'cuda'):
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    convolutions = [line for line in program.splitlines() if 'stablehlo.convolution' in line]
    assert convolutions
    assert all(line.endswith('xbf16>') and 'xf32>' not in line for line in convolutions)


def test_each_block_is_an_entry_with_a_call_of_its_own():
  for name in TINY:
    entries = depth.trace(make(name), SHAPE).entries
    called = []

    def record(next_fun, args, kwargs, context, called=called):
      if context.method_name == '__call__':
        called.append('/'.join(context.module.path))
      return next_fun(*args, **kwargs)

    model = make(name)
    with nn.intercept_methods(record):
      jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, *SHAPE)))
    names = [entry.name for entry in entries]
    assert [path for path in called if path in names] == names
    assert names[0] == 'stem'
    assert names[-1] == 'head'


def test_init_is_a_function_of_seed_and_path():
  model = make('resnet')
  first, again, other = (models.init(depth.trace(model, SHAPE), seed) for seed in (0, 0, 1))
  larger = models.init(depth.trace(model, (16, 16, 3)), 0)
  assert trees.sha256(first) == trees.sha256(again) == trees.sha256(larger)
  assert trees.sha256(first) != trees.sha256(other)
  # A deeper network starts with the same values where it has the same leaves.
  deeper = trees.flatten(models.init(depth.trace(make('resnet', depth=14), SHAPE), 0))
  for path, leaf in trees.flatten(first).items():
    np.testing.assert_array_equal(leaf, deeper[path], err_msg=path)
  kernels = [leaf for path, leaf in deeper.items() if path.endswith('kernel') and leaf.shape == (3, 3, 16, 16)]
  assert not np.array_equal(kernels[0], kernels[1])


def test_init_can_be_traced():
  model = make('resnet', scan=True, depth=14)
  abstract = jax.eval_shape(lambda: models.init(depth.trace(model, SHAPE), 0))
  assert jax.tree.map(jnp.shape, abstract) == jax.tree.map(jnp.shape, models.init(depth.trace(model, SHAPE), 0))


@pytest.mark.parametrize('name', TINY)
def test_resolved_options_make_the_same_model(name):
  cfg = config.default()
  cfg.model.name = name
  resolved = models.resolved_options(cfg.model)
  assert resolved
  assert set(resolved) <= set(config.SCHEMA['model'])
  again = config.default()
  again.model.update({'name': name, **resolved})
  config.validate(again)
  assert models.resolved_options(again.model) == resolved
  network = models.make(again.model, 5)
  assert {key: getattr(network, key) for key in resolved} == resolved


@pytest.mark.thorough
@pytest.mark.parametrize('name', TINY)
def test_every_network_recomputes_each_block_and_scans_its_stages(name):
  """All blocks but the first of a stage are rows of a scan; those of a densenet differ in shape."""
  deeper = {'mlp': 5, 'densenet': 10}.get(name, 14)
  trace = depth.trace(make(name, depth=deeper, remat=True), SHAPE)
  program = jax.make_jaxpr(functools.partial(make(name, depth=deeper, remat=True).apply, train=False))
  inside = sum(entry.name.startswith('stage') for entry in trace.entries)
  assert str(program(trace.variables, np.zeros((2, *SHAPE), np.float32))).count('remat') >= inside > 2
  if name != 'densenet':
    rows = depth.trace(make(name, depth=deeper, scan=True), SHAPE).scanned
    assert sum(rows.values()) + len(rows) == inside


def test_residual_options_reach_the_model():
  leaves = trees.flatten(models.init(depth.trace(make('resnet', residual_scalar=0.0), SHAPE), 0)['params'])
  scalars = [leaf for path, leaf in leaves.items() if path.endswith('residual_scalar')]
  assert len(scalars) == 3
  assert all(leaf.shape == () and leaf == 0 for leaf in scalars)
  leaves = trees.flatten(models.init(depth.trace(make('resnet', zero_init_last_norm=True), SHAPE), 0)['params'])
  assert [path for path, leaf in leaves.items() if path.endswith('scale') and not leaf.any()] == [
    f'stage{stage}/block001/norm2/scale' for stage in (1, 2, 3)
  ]
