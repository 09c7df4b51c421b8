"""The measured grid: against the models' own layers, against whole Jacobians, and against theory."""

import itertools
import json
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import config as schema
from dnt import errors, plots
from dnt.diagnostics import random_nets, signal, signal_plots, signal_report
from dnt.models import activations, blocks, norms, parts

pytestmark = pytest.mark.usefixtures('one_device')
NORMS = ('none', 'batch_norm', 'layer_norm', 'rms_norm')
BLOCKS = ('plain', 'residual', 'highway')
NETWORK = random_nets.Network(('tanh', 'relu'), BLOCKS, NORMS, 2, 12, -1.0)
VARIANCES = jnp.array([[1.5, 0.0], [2.0, 0.2]])


@pytest.fixture(scope='module')
def measured():
  """A key, and the inputs of each layer, q and c."""
  key = jax.random.key(3)
  x, _ = random_nets.draw_signals(NETWORK, key, VARIANCES, 4, 0.5)
  return key, jax.jit(random_nets.forward, static_argnums=0)(NETWORK, key, VARIANCES, x)


def test_a_layer_is_the_models_dense_unit(measured):
  key, (inputs, q, c) = measured
  weights = NETWORK.draw(key, 1)
  output = NETWORK.layer(weights, VARIANCES, inputs[1])[0]
  for k, m in ((0, 1), (0, 2), (1, 0), (1, 3), (2, 1), (2, 3)):
    a, s = m % 2, (k + m // 2) % 2
    weight, bias = (math.sqrt(value) for value in VARIANCES[s])
    unit = blocks.DenseUnit(
      parts.Parts(
        conv=None,
        dense=nn.Dense,
        norm=lambda m=m, **kwargs: norms.Norm(kind=NORMS[m], **kwargs),
        activation=lambda a=a: activations.Activation(NETWORK.activations[a]),
        dtype=jnp.float32,
      ),
      12,
      BLOCKS[k],
      -1.0,
    )
    x = inputs[1, a, k, m, s]
    params = {
      'dense': {'kernel': weight * weights.kernel, 'bias': bias * weights.bias},
      'norm': {'scale': jnp.ones(12), 'bias': jnp.zeros(12)},
      'gate': {'kernel': weight * weights.gate, 'bias': jnp.full(12, -1.0)},
    }
    y, _ = unit.apply({'params': params}, x, train=True, mutable=['batch_stats'])
    np.testing.assert_allclose(output[a, k, m, s], y, rtol=2e-4, atol=2e-5)
    h = np.asarray(x) @ np.asarray(params['dense']['kernel']) + np.asarray(params['dense']['bias'])
    assert q[1, a, k, m, s] == pytest.approx(np.mean(h**2), rel=1e-4)
    unit_h = h / np.linalg.norm(h, axis=1, keepdims=True)
    cosines = [unit_h[i] @ unit_h[j] for i, j in itertools.combinations(range(4), 2)]
    assert c[1, a, k, m, s] == pytest.approx(np.mean(cosines), abs=1e-5)


def test_draws_have_the_variances_of_the_theory():
  weights = NETWORK._replace(width=200).draw(jax.random.key(0), 0)
  assert float(jnp.var(weights.kernel)) * 200 == pytest.approx(1, rel=0.02)
  assert float(jnp.var(weights.gate)) * 200 == pytest.approx(1, rel=0.02)
  assert float(jnp.var(weights.bias)) == pytest.approx(1, rel=0.3)
  other = NETWORK._replace(width=200).draw(jax.random.key(0), 1)
  assert abs(np.corrcoef(weights.kernel.ravel(), other.kernel.ravel())[0, 1]) < 0.02
  x, cotangents = random_nets.draw_signals(NETWORK._replace(width=2000), jax.random.key(1), VARIANCES, 4, 0.3)
  assert x.shape == (2, 3, 4, 2, 4, 2000)
  correlations = np.corrcoef(x[0, 0, 0, 0])
  np.testing.assert_allclose(correlations, np.where(np.eye(4), 1, 0.3), atol=0.08)
  assert float(jnp.mean(x[0, 0, 0, 0] ** 2)) == pytest.approx(1, rel=0.08)
  assert np.abs(np.corrcoef(cotangents[0, 0, 0, 0]) - np.eye(4)).max() < 0.08


def test_products_and_singular_values_are_those_of_the_whole_jacobian():
  network = NETWORK._replace(norms=('batch_norm',), activations=('tanh',), blocks=('plain', 'residual'))
  key = jax.random.key(5)
  x, cotangents = random_nets.draw_signals(network, key, VARIANCES, 4, 0.5)

  def output(x):
    for index in range(network.depth):
      x = network.layer(network.draw(key, index), VARIANCES, x)[0]
    return x

  @jax.jit
  def everything(x, cotangents):
    basis = jnp.eye(48).reshape(48, 1, 1, 1, 1, 4, 12) + jnp.zeros((1, *x.shape))
    columns = jax.vmap(jax.linearize(output, x)[1])(basis)
    found = random_nets.singular_values(network, key, VARIANCES, x, 3, 80)
    inputs = random_nets.forward(network, key, VARIANCES, x)[0]
    return columns, found, random_nets.pull(network, key, VARIANCES, inputs, cotangents[None])

  columns, found, (pulled, logarithm) = everything(x, cotangents)
  for k, s in itertools.product(range(2), range(2)):
    jacobian = np.asarray(columns[:, 0, k, 0, s], np.float64).reshape(48, 4, 12)  # by input, its unit; output
    want = np.linalg.svd(jacobian[:12, 0], compute_uv=False)[:3]
    np.testing.assert_allclose(np.exp(found[0, k, 0, s]), want, rtol=0.02)
    gradient = np.asarray(cotangents[0, k, 0, s], np.float64)
    want = jacobian.reshape(48, 48) @ gradient.ravel() / np.linalg.norm(gradient)
    got = pulled[0, 0, k, 0, s].ravel() * np.exp(logarithm[0, 0, k, 0, s])
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.fixture
def small():
  config = schema.default('signal')
  config.signal.activations = ('relu',)
  config.signal.blocks = ('plain',)
  config.signal.norms = ('none',)
  config.signal.depths = (8,)
  config.signal.width = 64
  config.signal.seeds = 6
  config.signal.batch_size = 8
  config.signal.weight_variances = (1.0, 3.0)
  config.signal.power_iterations = 2
  schema.validate(config)
  return config


def test_a_run_writes_its_table_figures_and_json(small, tmp_path, capsys):
  result = signal.run(small, tmp_path / 'new')
  assert 'gradient per layer within 5 % of theory in' in capsys.readouterr().out
  assert json.loads((tmp_path / 'new' / 'signal.json').read_text()) == result
  assert len(result['networks']) == 4 and not result['interrupted']
  names = {path.name for path in (tmp_path / 'new').iterdir()}
  assert names == {'signal.json', 'signal.md', 'gradient_norm_relu.png', 'correlation_relu.png', 'phases_relu.png'}
  table = (tmp_path / 'new' / 'signal.md').read_text()
  assert table.count('\n| ') == 2 + 4 and '| 8 | relu | plain | none | 3 | 0.1 |' in table
  for network in result['networks']:
    assert len(network['q']['measured']) == len(network['c']['theory']) == network['depth']
    assert len(network['gradient_norm']['measured']) == network['depth'] + 1
    assert network['gradient_norm']['measured'][-1] == network['gradient_norm']['theory'][-1] == 1
    assert network['rms_singular_value']['measured'] == network['gradient_norm']['measured'][0]
    assert len(network['singular_values']) == 2 and network['singular_values'][0] >= network['singular_values'][1]
    expected = math.log(network['gradient_norm']['theory'][network['rate']['first_layer'] - 1])
    layers = network['depth'] + 1 - network['rate']['first_layer']
    assert network['rate']['theory'] == pytest.approx(expected / layers, abs=1e-4)
  plain = [network for network in result['networks'] if (network['block'], network['norm']) == ('plain', 'none')]
  assert {round(math.exp(2 * network['rate']['theory']), 4) for network in plain} == {0.5, 1.5}
  assert all(abs(network['rate']['deviation']) < 0.15 for network in plain)


def test_ctrl_c_leaves_what_was_measured(small, tmp_path, monkeypatch, capsys):
  measure, calls = signal._measure, []

  def interrupted(job, *arguments):
    calls.append(job)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return measure(job, *arguments)

  monkeypatch.setattr(signal, '_measure', interrupted)
  monkeypatch.setattr(signal, 'MEMORY', 1)  # one seed at a time
  small.signal.bias_variances = (0.1,)
  small.signal.depths = (3,)
  result = signal.run(small, tmp_path)
  assert result['interrupted'] and {network['seeds'] for network in result['networks']} == {2}
  assert 'singular_values' not in result['networks'][0]
  assert 'before it was stopped' in capsys.readouterr().out
  assert (tmp_path / 'signal.md').exists() and (tmp_path / 'gradient_norm_relu.png').exists()
  calls[:] = [None, None]
  empty = signal.run(small, tmp_path)
  assert empty['interrupted'] and empty['networks'] == []
  monkeypatch.undo()
  small.signal.seeds = 2
  small.signal.singular_values = 0
  together = signal.run(small, tmp_path)
  for one, other in zip(together['networks'], result['networks'], strict=True):
    np.testing.assert_allclose(one['gradient_norm']['measured'], other['gradient_norm']['measured'], rtol=1e-4)


def test_the_first_layers_count_until_q_settles():
  def rate(q, gain, norms):
    predicted = signal.theory.Prediction(np.array(q), None, np.array(gain))
    return signal._rate(np.array(norms), predicted)

  # Three layers; squared norms 8, 4, 2, 1 and again: a factor of 2 each, but for the first layer of the second seed.
  norms = np.log([[8.0, 4.0, 2.0, 1.0], [16.0, 4.0, 2.0, 1.0]]) / 2
  found = rate([2.0, 1.0, 1.0], [3.0, 2.2, 2.0], norms)
  assert found['first_layer'] == 2
  assert found['measured'] == pytest.approx(math.log(2) / 2)
  assert found['theory'] == pytest.approx((math.log(2.2) + math.log(2)) / 4)
  assert found['deviation'] == pytest.approx(found['measured'] / found['theory'] - 1)
  moving = rate([1.0, 2.0, 4.0], [3.0, 2.0, 2.0], norms)
  assert moving['first_layer'] == 1
  assert moving['measured'] == pytest.approx((math.log(3) + 2 * math.log(2)) / 6)  # the mean of 2 and 4 is 3
  assert rate([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], norms)['deviation'] is None


def test_phases_draw_the_edge_of_chaos():
  networks = [
    {'activation': 'tanh', 'weight_variance': weight, 'bias_variance': bias, 'rate': {'measured': 0.1 * weight}}
    for weight in (0.5, 2.0)
    for bias in (0.0, 0.1)
  ]
  axes = signal_plots.phases(networks).axes[0]
  edge = axes.lines[0].get_xydata()
  np.testing.assert_allclose(edge[np.abs(edge[:, 1] - 0.05).argmin()], (1.76, 0.05), atol=0.05)
  np.testing.assert_allclose(axes.collections[1].get_offsets()[0], (0.5, 0.0))
  relu = [network | {'activation': 'relu', 'bias_variance': 0.0} for network in networks]
  figure = signal_plots.phases(relu)
  np.testing.assert_allclose(figure.axes[0].lines[0].get_xydata(), [[2, 0]], atol=1e-6)
  plots.png(figure)


def test_summaries_name_the_farthest():
  network = {'activation': 'relu', 'block': 'plain', 'norm': 'none', 'depth': 4, 'weight_variance': 1.0}
  network['bias_variance'] = 0.0
  networks = [network | {'rate': {'deviation': value}} for value in (0.01, None, -0.2)]
  summary = signal_report.summarize(networks)
  assert (summary['networks'], summary['compared'], summary['within']) == (3, 2, 1)
  assert summary['largest_deviation'] == 0.2 and summary['largest_deviation_of'].startswith('relu plain none, depth 4')
  assert signal_report.summarize([])['largest_deviation'] is None


# key: values at the edge that are valid, values just beyond it
EDGES = {
  'depths': ([(1,), (3, 5)], [(), (0,), (2, 2), (1.0,)]),
  'activations': ([('gelu',)], [(), ('erf',), ('relu', 'relu')]),
  'blocks': ([('highway',)], [('dense',)]),
  'norms': ([('none',)], [('group_norm',)]),
  'weight_variances': ([(0.01,)], [(0.0,)]),
  'bias_variances': ([(0.0,)], [(), (-0.1,), ('1',)]),
  'width': ([2], [1]),
  'batch_size': ([8], [7]),
  'input_correlation': ([0.0, 0.99], [1.0, -0.1]),
  'seed': ([0], [-1]),
  'seeds': ([1], [0]),
  'singular_values': ([0], [-1]),
  'power_iterations': ([1], [0]),
  'jacobian_seeds': ([1], [0]),
}


def test_the_schema_of_its_own():
  config = schema.default('signal')
  schema.validate(config)
  assert schema.kind(config) == 'signal' and schema.kind(schema.default()) == 'train'
  assert schema.kind(schema.default('compare')) == 'compare'
  options = dict(schema.options(schema.SIGNAL))
  checked = {key for key, option in options.items() if option.check is not schema.Option(0, '').check}
  assert checked == {f'signal.{key}' for key in EDGES}
  assert all(option.help for option in options.values())


@pytest.mark.parametrize('key', EDGES)
def test_values_are_refused_beyond_the_edge(key):
  valid, invalid = EDGES[key]
  config = schema.default('signal')
  for value in valid:
    config.signal[key] = value
    schema.validate(config)
  for value in invalid:
    config.signal[key] = value
    with pytest.raises(errors.InputError, match=rf'config\.signal\.{key}='):
      schema.validate(config)


@pytest.mark.slow
def test_rates_agree_with_theory_within_five_percent(load_config, tmp_path):
  config = load_config(pathlib.Path(__file__).parents[2] / 'configs' / 'probe_rates.py')
  assert config.signal.width >= 1024 and config.signal.seeds >= 20
  summary = signal.run(config, tmp_path)['summary']
  assert summary['compared'] >= 20
  assert summary['within'] == summary['compared']
