"""What each configs/probe_*.py says of deep networks, on narrow ones of the same depth."""

import math
import pathlib

import jax
import numpy as np
import pytest

from dnt import config as schema
from dnt.meanfield import grid, random_nets, report
from dnt.meanfield.theory import plain

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'

pytestmark = pytest.mark.usefixtures('undrawn')


@pytest.fixture
def measure(load_config, tmp_path):
  """Measures a config at a small width: its networks by the given keys."""

  def run(name, keys, width=128, **options):
    config = load_config(CONFIGS / f'probe_{name}.py')
    config.signal.update({'width': width, 'seeds': 4, 'batch_size': 8, 'singular_values': 0, **options})
    schema.validate(config)
    return {tuple(network[key] for key in keys): network for network in grid.run(config, tmp_path)['networks']}

  return run


def first_over_last(network):
  return network['gradient_norm']['measured'][0]


def test_every_config_is_of_this_kind_and_has_its_test(load_config):
  tests = {name.removeprefix('test_') for name in globals() if name.startswith('test_')}
  paths = sorted(CONFIGS.glob('probe_*.py'))
  assert len(paths) >= 7
  for path in paths:
    config = load_config(path)
    schema.validate(config)
    assert schema.kind(config) == 'signal'
    assert any(test.startswith(path.stem) for test in tests), path.stem


def test_probe_grid_is_the_default_of_blocks_and_norms(load_config):
  config = load_config(CONFIGS / 'probe_grid.py').signal
  assert config == schema.default('signal').signal
  assert set(config.blocks) == {'plain', 'residual', 'highway'} and len(config.norms) == 4
  assert len(config.activations) > 1 and len(config.weight_variances) > 1 and len(config.bias_variances) > 1


@pytest.mark.slow
def test_probe_rates_agree_with_theory_within_five_percent(load_config, tmp_path):
  """All but a highway network near its own edge, whose correction in 1 / width is a large fraction of its rate."""
  config = load_config(CONFIGS / 'probe_rates.py')
  assert config.signal.width >= 1024 and config.signal.seeds >= 20
  networks = grid.run(config, tmp_path)['networks']
  compared = [network for network in networks if network['rate']['deviation'] is not None]
  assert len(compared) >= 100
  beyond = [network for network in compared if abs(network['rate']['deviation']) > 0.05]
  names = {(network['activation'], network['block'], network['norm'], network['weight_variance']) for network in beyond}
  assert names <= {('gelu', 'highway', 'none', 4.0)}


@pytest.mark.thorough
def test_probe_he_keeps_the_norm_at_two_and_only_there(measure):
  networks = measure('he', ['weight_variance'], width=256)
  assert set(networks) == {(1.0,), (1.5,), (2.0,), (2.5,), (3.0,)}
  for (weight,), network in networks.items():
    assert network['rate']['measured'] == pytest.approx(math.log(weight / 2) / 2, abs=0.02)
    assert (0.2 < first_over_last(network) < 5) == (weight == 2)
    q = network['q']['measured']
    assert (0.2 < q[-1] / q[0] < 5) == (weight == 2)


@pytest.mark.thorough
def test_probe_sigmoid_vanishes_within_the_bound(measure, load_config):
  """(0.25 max |W|)^L, with the spectral norms of the weights that were drawn."""
  networks = measure('sigmoid', ['activation', 'weight_variance'], singular_values=1, lanczos_iterations=2)
  options = load_config(CONFIGS / 'probe_sigmoid.py').signal
  key = jax.random.fold_in(jax.random.key(options.seed), 0)
  layers = range(options.depths[0])
  drawn = random_nets.Network(('sigmoid',), ('plain',), ('none',), len(layers), 128, 0.0)
  kernels = jax.jit(jax.vmap(lambda layer: drawn.draw(key, layer).kernel))(np.arange(len(layers)))
  largest = np.linalg.norm(kernels, 2, (1, 2)).max()
  for weight in options.weight_variances:
    network = networks['sigmoid', weight]
    assert network['singular_values'][0] <= (0.25 * math.sqrt(weight) * largest) ** len(layers)
    assert network['rate']['measured'] < math.log(0.25 * math.sqrt(weight)) + 0.02 < 0.03
    assert first_over_last(network) < 1e-2
    assert network['rate']['measured'] < networks['tanh', weight]['rate']['measured']


@pytest.mark.thorough
def test_probe_residual_keeps_the_first_gradient_near_the_last(measure):
  networks = measure('residual', ['activation', 'block', 'norm', 'weight_variance'])
  for activation in ('tanh', 'relu'):
    for weight in (0.01, 0.1):
      assert first_over_last(networks[activation, 'plain', 'none', weight]) < 1e-10
    assert 0.5 < first_over_last(networks[activation, 'residual', 'none', 0.01]) < 2
    for weight in (0.01, 0.1, 1.0):
      assert 0.5 < first_over_last(networks[activation, 'residual', 'layer_norm', weight]) < 10


@pytest.mark.thorough
def test_probe_highway_is_the_identity_or_plain(measure):
  networks = measure('highway', ['activation', 'block', 'weight_variance'])
  for (_, block, weight), network in networks.items():
    if block == 'highway':
      assert first_over_last(network) == pytest.approx(1, abs=0.3)
      c = network['c']['measured']
      assert np.mean(c[-10:]) == pytest.approx(np.mean(c[:10]), abs=0.05)
    elif weight < 1:
      assert first_over_last(network) < 1e-4
  opened = measure('highway', ['activation', 'weight_variance'], blocks=('highway',), gate_bias=8.0)
  for activation in ('tanh', 'relu'):
    for weight in (0.5, 1.0, 2.0):
      without = networks[activation, 'plain', weight]['rate']['measured']  # of the same draws
      assert opened[activation, weight]['rate']['measured'] == pytest.approx(without, abs=0.01)


@pytest.mark.thorough
def test_probe_batch_norm_explodes_at_any_variance(measure):
  networks = measure('batch_norm', ['activation', 'block', 'norm', 'weight_variance'], batch_size=16)
  for activation in ('relu', 'tanh'):
    rates = [networks[activation, 'plain', 'batch_norm', weight]['rate']['measured'] for weight in (0.5, 2.0)]
    assert min(rates) > 0.08 and rates[0] == pytest.approx(rates[1], rel=0.01)
    for weight in (0.5, 2.0):
      without, residual = (
        first_over_last(networks[activation, block, 'batch_norm', weight]) for block in ('plain', 'residual')
      )
      assert without > 3 * residual
  for weight in (0.5, 2.0):
    linear = networks['identity', 'plain', 'batch_norm', weight]['rate']['measured']
    assert linear < networks['tanh', 'plain', 'batch_norm', weight]['rate']['measured']
    assert abs(networks['relu', 'plain', 'layer_norm', weight]['rate']['measured']) < 0.02


@pytest.mark.thorough
def test_probe_phases_vanish_and_explode_on_the_two_sides_of_the_edge(measure):
  networks = measure('phases', ['activation', 'weight_variance', 'bias_variance'], width=96)
  assert len({weight for _, weight, _ in networks}) > 2 < len({bias for _, _, bias in networks})
  sides = []
  for (activation, weight, bias), network in networks.items():
    critical = 2.0 if activation == 'relu' else plain.critical_weight_variance(activation, bias)
    if abs(network['rate']['theory']) > report.CRITICAL:
      sides.append(weight > critical)
      assert (network['rate']['measured'] > 0) == sides[-1], (activation, weight, bias)
  assert len(sides) > 30
  assert 0.3 < np.mean(sides) < 0.7
