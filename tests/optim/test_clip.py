import jax
import numpy as np
import optax
import pytest

from dnt import config as schema
from dnt import errors, trees
from dnt.models import depth, freeze
from dnt.optim import clip, rows


def section(**options):
  config = schema.default().clip
  config.update(options)
  return config


def apply(config, gradients, params, entries):
  transformation = clip.make(config, rows.Leaves.of(params, entries))
  return jax.jit(transformation.update)(gradients, transformation.init(params), params)[0]


def check(actual, expected, rtol=1e-6):
  actual, expected = trees.flatten(actual), trees.flatten(expected)
  assert actual.keys() == expected.keys()
  for path, leaf in expected.items():
    np.testing.assert_allclose(actual[path], leaf, rtol=rtol, atol=1e-7, err_msg=path)


@pytest.fixture
def torch_clipped(torch_reference):
  """`torch_clipped(clip_fn, gradients)`: what `clip_fn(torch.nn.utils, parameters)` leaves of them."""

  def clipped(clip_fn, gradients):
    def compute(torch):
      parameters = {
        path: torch.zeros(leaf.shape, requires_grad=True) for path, leaf in trees.flatten(gradients).items()
      }
      for path, leaf in trees.flatten(gradients).items():
        parameters[path].grad = torch.tensor(leaf)
      clip_fn(torch.nn.utils, parameters.values())
      return {path: parameter.grad for path, parameter in parameters.items()}

    return trees.unflatten(torch_reference(compute))

  return clipped


@pytest.mark.parametrize('threshold', [0.5, 1e4])
def test_global_norm_equals_torch(network, torch_clipped, threshold):
  gradients = network.tree(0)
  actual = apply(section(name='global_norm', threshold=threshold), gradients, network.tree(1), network.unrolled)
  # torch divides by the norm + 1e-6
  check(actual, torch_clipped(lambda utils, p: utils.clip_grad_norm_(p, threshold), gradients), rtol=2e-6)


def test_value_equals_torch(network, torch_clipped):
  gradients = network.tree(0)
  actual = apply(section(name='value', threshold=0.3), gradients, network.tree(1), network.unrolled)
  check(actual, torch_clipped(lambda utils, p: utils.clip_grad_value_(p, 0.3), gradients))


def test_block_norm_clips_each_entry_by_its_own_norm(network):
  gradients = network.tree(0)
  gradients['dense'] = jax.tree.map(lambda leaf: leaf * 1e-3, gradients['dense'])
  actual = apply(section(name='block_norm', threshold=2.0), gradients, network.tree(1), network.unrolled)
  expected = {}
  for entry in network.unrolled:
    block = trees.subtree(gradients, entry.name)
    norm = np.sqrt(sum(np.sum(leaf.astype(np.float64) ** 2) for leaf in jax.tree.leaves(block)))
    assert (norm < 2) == (entry.name == 'dense')
    expected[entry.name] = jax.tree.map(lambda leaf, norm=norm: leaf * min(1.0, 2.0 / norm), block)
  check(actual, expected)


def test_adaptive_is_the_formula_of_brock_et_al(network):
  gradients, params = network.tree(0), network.tree(1)
  gradients['head'] = jax.tree.map(lambda leaf: 10 * leaf, gradients['head'])
  params['dense']['bias'] = np.zeros_like(params['dense']['bias'])
  actual = apply(section(name='adaptive', threshold=1.0, epsilon=1e-2), gradients, params, network.unrolled)

  def clipped(path, gradient, param):
    if path in ('head/kernel', 'head/bias'):
      return gradient
    axes = tuple(range(gradient.ndim - 1)) if gradient.ndim > 1 else (0,)
    gradient_norm = np.sqrt(np.sum(gradient.astype(np.float64) ** 2, axis=axes, keepdims=True))
    param_norm = np.maximum(np.sqrt(np.sum(param.astype(np.float64) ** 2, axis=axes, keepdims=True)), 1e-2)
    return np.where(gradient_norm / param_norm > 1.0, param_norm / gradient_norm * gradient, gradient)

  expected = trees.map_with_path(clipped, gradients, params)
  check(actual, expected)
  kept = actual['stage1']['block002']['conv']['kernel'] == gradients['stage1']['block002']['conv']['kernel']
  assert set(kept.all((0, 1, 2)).tolist()) == {True, False}


def test_adaptive_is_optax_but_for_the_layer_of_the_head(network):
  gradients, params = network.tree(0), network.tree(1)
  expected, _ = optax.adaptive_grad_clip(0.05, 1e-3).update(gradients, optax.EmptyState(), params)
  expected['head'] = gradients['head']
  check(apply(section(name='adaptive', threshold=0.05), gradients, params, network.unrolled), expected)


@pytest.mark.parametrize(
  ('path', 'shape', 'bias', 'axes'),
  [
    ('body/kernel', (3, 4, 6), (6,), (0, 1)),
    ('body/kernel', (3, 4, 6), None, (0, 1)),
    ('body/kernel', (2, 2, 2, 3, 5), (5,), (0, 1, 2, 3)),
    ('body/kernel', (1, 6), None, (0,)),
    ('body/query/kernel', (8, 2, 3), (2, 3), (0,)),
    ('body/query/kernel', (8, 2, 3), None, (0,)),
    ('body/query/bias', (2, 3), None, (0, 1)),
    ('body/out/kernel', (2, 3, 8), (8,), (0, 1)),
    ('body/embedding', (1, 4, 6), None, (0, 1, 2)),
    ('body/kernel', (3, 4, 6), (3, 6), (1,)),  # three layers that a module scans itself
    ('body/kernel', (3, 3, 6), (3, 6), (0,)),  # nothing tells
  ],
)
@pytest.mark.parametrize('scanned', [False, True])
def test_a_unit_is_an_output_of_a_kernel_or_another_parameter_as_a_whole(path, shape, bias, axes, scanned):
  first, generator = int(scanned), np.random.default_rng(0)
  path = path.replace('body', 'body/scanned') if scanned else path
  shapes = {path: shape} | ({path.replace('kernel', 'bias'): bias} if bias else {})
  shapes = {name: (2, *given) if scanned else given for name, given in shapes.items()} | {'head/kernel': (6, 2)}
  params, gradients = (
    trees.unflatten({name: generator.normal(size=given).astype(np.float32) for name, given in shapes.items()})
    for _ in range(2)
  )
  entries = [depth.Entry(f'body/block{row}', 'body/scanned', row) for row in range(2)] if scanned else []
  entries = (*(entries or [depth.Entry('body', 'body')]), depth.Entry('head', 'head'))
  found = trees.flatten(apply(section(name='adaptive', threshold=0.1), gradients, params, entries))[path]

  gradient, param = (trees.flatten(tree)[path].astype(np.float64) for tree in (gradients, params))
  axes = tuple(axis + first for axis in axes)
  norm, size = (np.sqrt(np.sum(each**2, axis=axes, keepdims=True)) for each in (gradient, param))
  np.testing.assert_allclose(found, gradient * np.minimum(1, 0.1 * size / norm), rtol=1e-5, atol=1e-7)
  assert (norm > 0.1 * size).any()


@pytest.mark.parametrize('names', [('stage1',), ('stem', 'stage1'), ('stage1', 'head')])
def test_adaptive_clips_the_last_entry_that_trains_if_the_head_is_frozen(network, names):
  whole, gradients = network.tree(1), network.tree(0)
  config = section(name='adaptive', threshold=0.05)
  trained = {name: whole[name] for name in names}
  transformation = clip.make(config, rows.Leaves.of(whole, network.unrolled))
  actual, _ = transformation.update({name: gradients[name] for name in names}, transformation.init(trained), trained)
  expected = apply(config, gradients, whole, network.unrolled)
  check(actual, {name: expected[name] for name in names})


@pytest.mark.parametrize('name', ['global_norm', 'value', 'block_norm', 'adaptive'])
def test_rows_of_a_scanned_stage_are_clipped_as_the_blocks_they_are(network, name):
  gradients, params = network.tree(0), network.tree(1)
  gradients['stage1']['block003'] = jax.tree.map(lambda leaf: 1e-3 * leaf, gradients['stage1']['block003'])
  config = section(name=name, threshold=0.5)
  expected = apply(config, gradients, params, network.unrolled)
  actual = apply(config, network.stack(gradients), network.stack(params), network.scanned)
  check(network.unstack(actual), expected)


def test_block_norm_clips_an_entry_with_a_scanned_stage_inside_as_one(network):
  def inside(tree):
    return {'tower': {'body': network.stack(tree)['stage1'], 'conv': tree['stem']['conv']}, 'head': tree['head']}

  gradients, entries = inside(network.tree(0)), (depth.Entry('tower', 'tower'), depth.Entry('head', 'head'))
  actual = apply(section(name='block_norm', threshold=2.0), gradients, inside(network.tree(1)), entries)
  norms = {name: np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(gradients[name]))) for name in gradients}
  assert min(norms.values()) > 2
  check(actual, {name: jax.tree.map(lambda leaf, by=2 / norms[name]: by * leaf, gradients[name]) for name in gradients})


@pytest.mark.parametrize('name', ['global_norm', 'block_norm', 'adaptive'])
def test_a_gradient_that_is_not_finite_stays_so(network, name):
  gradients = network.tree(0)
  gradients['dense']['kernel'][0, 0] = np.nan
  actual = apply(section(name=name, threshold=1.0), gradients, network.tree(1), network.unrolled)
  assert np.isnan(actual['dense']['kernel'][0, 0])


def test_adaptive_needs_a_kernel_to_know_the_head_by(network):
  with pytest.raises(errors.InputError, match="^config.clip.name=adaptive .* called 'kernel', .* config.clip.name$"):
    params = {'head': {'weight': np.ones(3)}}
    clip.make(section(name='adaptive', threshold=0.01), rows.Leaves.of(params, network.unrolled))


def test_adaptive_is_refused_where_only_the_layer_that_it_leaves_out_trains(network):
  leaves = rows.Leaves.of(network.tree(0), network.unrolled)

  def partition(*names):
    frozen = frozenset(entry.name for entry in network.unrolled if entry.name.split('/')[0] not in names)
    return freeze.Partition(frozen, frozenset(path for path in leaves.shapes if path.split('/')[0] in names))

  with pytest.raises(errors.InputError, match="'adaptive' leaves out .*, head, and nothing else trains; use 'none'"):
    clip.check(section(name='adaptive'), leaves, partition('head'))
  clip.check(section(name='adaptive'), leaves, partition('stage1', 'head'))
  clip.check(section(name='value'), leaves, partition('head'))


def test_a_name_outside_the_schema_is_refused(network):
  with pytest.raises(errors.InputError, match="clip 'global'.* 'global_norm'"):
    clip.make(section(name='global'), rows.Leaves.of(network.tree(0), network.unrolled))
