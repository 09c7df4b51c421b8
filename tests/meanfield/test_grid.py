"""The measured grid: against theory, what a run of it writes, and what its options change."""

import functools
import json
import math
import os
import re
import signal
import time

import jax
import numpy as np
import pytest

from dnt import config as schema
from dnt import errors, workdir
from dnt.meanfield import grid, grid_plots, report
from dnt.meanfield.theory import batch_norm, layers, plain
from dnt.parallel import capacity


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
  config.signal.lanczos_iterations = 2
  schema.validate(config)
  return config


def test_a_whole_jacobian_takes_one_pass_of_all_units(small):
  small.signal.update({'singular_values': 3, 'lanczos_iterations': 6})
  small.signal.update({'weight_variances': (1.0,), 'bias_variances': (0.0,)})
  _, few = grid._series(small.signal)
  small.signal.singular_values = 10  # 6 x 11 of 64
  _, many = grid._series(small.signal)
  assert [(each.signals, each.passes) for each in (few, many)] == [(4, 13), (64, 3)]


@pytest.mark.thorough
@pytest.mark.parametrize(('norm', 'values'), [('none', 2), ('none', 40), ('batch_norm', 2), ('batch_norm', 40)])
def test_the_memory_of_a_jacobian_is_about_that_of_its_program(small, norm, values):
  small.signal.update({'norms': (norm,), 'singular_values': values, 'lanczos_iterations': 20})
  _, series = grid._series(small.signal)
  keys, points = jax.random.split(jax.random.key(0), 1), np.ones((4, 2), np.float32)
  inputs = grid._inputs(small.signal, series.network)
  program = grid._jacobian.lower(series.network, keys, points, inputs, 0.5, values, 20).compile()
  assert 0.25 < series.size / program.memory_analysis().temp_size_in_bytes < 2


@pytest.mark.thorough
def test_a_run_writes_its_table_figures_and_json(small, tmp_path, console):
  result = grid.run(small, tmp_path / 'new')
  assert re.search('within 5 % of theory in [0-9]', console.readouterr().out)
  record = json.loads((tmp_path / 'new' / 'signal.json').read_text())
  assert record.pop('format') == workdir.FORMAT
  assert {key: value for key, value in record.items() if key != 'phases'} == {
    key: value for key, value in result.items() if key != 'phases'
  }
  assert len(result['networks']) == 4 and not result['interrupted']
  names = {path.name for path in (tmp_path / 'new').iterdir()}
  images = {f'{name}_relu.png' for name in ('gradient_norm', 'variance', 'correlation', 'phases')}
  assert names == {'signal.json', 'signal.md', *images}
  table = (tmp_path / 'new' / 'signal.md').read_text()
  assert table.count('\n| ') == 2 * (2 + 4) and '| 8 | relu | plain | none | 3 | 0.1 |' in table
  assert '| relu | 1 | 0.1 | ordered | 0.2 | 1 | 0.5 | 1.443 | 1.443 | 2.885 | none |' in table
  assert '| relu | 3 | 0 | unbounded | inf | 1 | 1.5 | -2.466 | inf | -4.933 | 2 |' in table
  assert [phase['q'] for phase in record['phases']] == [0, pytest.approx(0.2), None, None]
  assert result['batch_norm_gains'] == {}
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


@pytest.mark.thorough
def test_theory_of_the_measured_networks_is_in_the_record(small, tmp_path, undrawn):
  small.signal.activations = ('tanh', 'relu')
  small.signal.blocks = ('plain', 'residual')
  small.signal.norms = ('none', 'batch_norm')
  small.signal.weight_variances = (1.5,)
  small.signal.depths = (12,)
  small.signal.seeds = 48
  small.signal.singular_values = 0
  result = grid.run(small, tmp_path)
  phases = {(phase['activation'], phase['bias_variance']): phase for phase in result['phases']}
  assert phases['tanh', 0.0]['xi_q'] == pytest.approx(plain.phase(plain.Net('tanh', 1.5)).xi_q, rel=1e-5)
  assert phases['tanh', 0.1]['critical_weight_variance'] == pytest.approx(1.986, abs=1e-3)
  assert phases['relu', 0.1]['critical_weight_variance'] is None
  assert result['batch_norm_gains']['relu']['limit'] == pytest.approx(math.pi / (math.pi - 1), rel=1e-5)
  assert f'relu {batch_norm.gain("relu", 8):.4f} (1.4669)' in (tmp_path / 'signal.md').read_text()
  # At 64 units the gradient of a ReLU residual network is far from the limit of many, and near theory's for 64.
  residual = next(
    each
    for each in result['networks']
    if (each['block'], each['norm']) == ('residual', 'none') and each['activation'] == 'relu'
  )
  limit = layers.predict(plain.Net('relu', 1.5), 12, block='residual')
  assert residual['rate']['measured'] > 1.15 * np.log(limit.gain).mean() / 2
  assert abs(residual['rate']['deviation']) < 0.05


@pytest.mark.thorough
def test_signals_too_small_for_float32_are_measured_while_they_last(small, tmp_path, recwarn, undrawn):
  small.signal.update({'weight_variances': (1e-3,), 'bias_variances': (0.0,), 'depths': (12, 40), 'singular_values': 0})
  short, long = grid.run(small, tmp_path)['networks']
  rate = math.log(5e-4) / 2
  assert short['rate']['measured'] == pytest.approx(rate, rel=0.01)  # q is 1e-40 there
  np.testing.assert_allclose(np.log(short['q']['measured']), np.log(short['q']['theory']), atol=1)
  assert short['c']['measured'][-1] == pytest.approx(short['c']['theory'][-1], abs=0.1)
  assert short['rate']['deviation'] is not None
  assert long['q']['theory'][-1] == pytest.approx(1e-3 * 5e-4**39, rel=1e-4)
  assert long['q']['measured'][-1] == 0 and math.isnan(long['c']['measured'][-1])
  assert math.isnan(long['rate']['measured']) and long['rate']['deviation'] is None
  assert report.summarize([short, long])['compared'] == 1
  assert '| nan |' in (tmp_path / 'signal.md').read_text()
  said = [str(warning.message) for warning in recwarn if issubclass(warning.category, RuntimeWarning)]
  assert not [text for text in said if 'never awaited' not in text]  # coroutines that earlier tests have left behind


@pytest.mark.thorough
def test_ctrl_c_leaves_what_was_measured(small, tmp_path, monkeypatch, console, undrawn):
  measure, calls = grid._measure, []

  def interrupted(job, *arguments):
    calls.append(job)
    if len(calls) == 3:
      os.kill(os.getpid(), signal.SIGINT)
      while grid.signals.received() is None:  # by a thread
        time.sleep(0.01)
    return measure(job, *arguments)

  monkeypatch.setattr(grid, '_measure', interrupted)
  monkeypatch.setattr(grid, 'MEMORY', 1)  # one seed at a time
  small.signal.bias_variances = (0.1,)
  small.signal.depths = (3,)
  result = grid.run(small, tmp_path)
  assert result['interrupted'] and {network['seeds'] for network in result['networks']} == {3}
  assert 'singular_values' not in result['networks'][0]
  assert 'stopped' in console.readouterr().out
  assert (tmp_path / 'signal.md').exists() and (tmp_path / 'gradient_norm_relu.png').exists()
  monkeypatch.undo()
  small.signal.seeds = 3
  small.signal.singular_values = 0
  together = grid.run(small, tmp_path)
  for one, other in zip(together['networks'], result['networks'], strict=True):
    np.testing.assert_allclose(one['gradient_norm']['measured'], other['gradient_norm']['measured'], rtol=1e-4)


def test_ctrl_c_before_the_first_measurement_leaves_the_files_of_an_earlier_run(small, tmp_path, monkeypatch):
  def interrupted(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(grid, '_measure', interrupted)
  (tmp_path / 'signal.json').write_text('{"networks": ["one"]}')
  with pytest.raises(KeyboardInterrupt):
    grid.run(small, tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['signal.json']
  assert json.loads((tmp_path / 'signal.json').read_text()) == {'networks': ['one']}


def test_the_first_layers_count_until_q_settles():
  def rate(q, gain, norms):
    predicted = layers.Prediction(np.array(q), None, np.array(gain))
    return grid._rate(np.array(norms), predicted)

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
  # The rates of the seeds are ln 2 times 3 / 6 and 4 / 6, their standard deviation ln 2 / 6 / sqrt(2), over sqrt(2).
  assert moving['error'] == pytest.approx(math.log(2) / 12)
  assert rate([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], norms)['deviation'] is None


def test_a_row_is_of_all_seeds_and_its_theory_of_the_options():
  options = schema.default('signal').signal
  options.update({'input_correlation': 0.2, 'batch_size': 10})
  kind = {'activation': 'identity', 'block': 'plain', 'norm': 'none', 'weight_variance': 1.5, 'bias_variance': 0.1}
  two = np.array([[1.0], [3.0]])
  row = grid._row(options, {'depth': 1, **kind}, two, 0.1 * two, np.log(two), 2 * np.log(two))
  assert (row['q']['measured'], row['q']['spread'], row['c']['measured']) == ([2.0], [1.0], [0.2])
  assert row['gradient_norm']['measured'] == pytest.approx([math.sqrt(5), 1])  # of the mean of 1 and 9
  assert row['gradient_norm']['spread'] == [1, 0] and row['singular_values'] == pytest.approx([3])
  assert row['q']['theory'] == pytest.approx([1.6])
  assert row['c']['theory'] == pytest.approx([(0.2 * 1.5 + 0.1) / 1.6])
  flat = np.zeros((2, 6))
  row = grid._row(options, {'depth': 6, **kind, 'norm': 'batch_norm'}, flat + 1, flat, flat, None)
  norms = row['gradient_norm']['theory']  # Yang et al. 2019: linear layers multiply its square by (B - 2) / (B - 3)
  assert (norms[2] / norms[3]) ** 2 == pytest.approx((10 - 2) / (10 - 3), rel=1e-3)


def test_a_workdir_that_cannot_be_written_is_refused(small, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.InputError, match=f'{re.escape(str(tmp_path / "file"))} .*written'):
    grid.run(small, tmp_path / 'file')


def test_phases_are_those_where_the_measured_networks_end():
  """From q = 1 GELU would end at 0.16 here; the first layer has 2.25, from where q grows and GELU becomes a ReLU."""
  config = schema.default('signal')
  config.signal.activations = ('gelu',)
  (found,) = grid._phases(config.signal, np.array([[2.2, 0.05]]))
  end = layers.predict(plain.Net('gelu', 2.2, 0.05), 200)
  assert end.q[-1] > 1e6 and found['q'] == math.inf
  assert found['chi_1'] == pytest.approx(end.gain[-1], rel=1e-4) == pytest.approx(2.2 / 2, rel=1e-4)
  assert grid_plots._chi('gelu', 2.2, 0.05) == pytest.approx(2.2 / 2, rel=1e-3)


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
  'lanczos_iterations': ([1], [0]),
  'jacobian_seeds': ([1], [0]),
}


ALL = {'propagation', 'jacobian', 'theory'}
HIGHWAY, BATCH_NORM = {'blocks': ('highway',)}, {'norms': ('batch_norm',)}
# option: (what to set first, another value, what this changes)
CHANGED = {
  'depths': ({}, (3,), ALL),
  'activations': ({}, ('relu',), ALL),
  'blocks': ({}, ('residual',), ALL),
  'norms': ({}, ('rms_norm',), ALL),
  'weight_variances': ({}, (2.0,), ALL),
  'bias_variances': ({}, (0.3,), ALL),
  'gate_bias': (HIGHWAY, -1.0, ALL),
  'width': ({}, 12, {'propagation', 'jacobian'}),
  'batch_size': (BATCH_NORM, 10, ALL),
  'input_correlation': (BATCH_NORM, 0.2, ALL),
  'seed': ({}, 1, {'propagation', 'jacobian'}),
  'seeds': ({}, 3, {'propagation'}),
  'singular_values': ({}, 2, {'jacobian'}),
  'lanczos_iterations': ({}, 2, {'jacobian'}),
  'jacobian_seeds': ({}, 2, {'jacobian'}),
}
PROGRAMS = {'propagation': (grid._propagation, (0, 3, 4)), 'jacobian': (grid._jacobian, (0, 3, 4, 5, 6))}


@pytest.fixture
def found(tmp_path, monkeypatch):
  """`found(options)`: the programs that measure one small network, with the values that they take, and its theory.

  They are traced, and not compiled, which takes seconds: what they would measure is 0.
  """
  seen = {}

  def traced(kind, *args):
    program, static = PROGRAMS[kind]
    jaxpr, shapes = jax.make_jaxpr(program, static, return_shape=True)(*args)
    given = [np.asarray(jax.random.key_data(args[1])), np.asarray(args[2])]
    seen[kind] = f'{jaxpr} {jax.tree.map(np.ndarray.tolist, given)}'
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes)

  for kind in PROGRAMS:
    monkeypatch.setattr(grid, f'_{kind}', functools.partial(traced, kind))
  monkeypatch.setattr(report, 'write', lambda *_: None)

  def run(options):
    config = schema.default('signal')
    config.signal.update({'depths': (2,), 'activations': ('tanh',), 'blocks': ('plain',), 'norms': ('none',)})
    config.signal.update({'weight_variances': (1.5,), 'bias_variances': (0.1,), 'width': 16, 'seeds': 2})
    config.signal.update({'singular_values': 1, 'lanczos_iterations': 1, 'jacobian_seeds': 1, **options})
    schema.validate(config)
    (network,) = grid.run(config, tmp_path)['networks']
    return seen | {'theory': [network[name]['theory'] for name in ('q', 'c', 'gradient_norm')]}

  return run


@pytest.mark.parametrize('option', CHANGED)
def test_an_option_changes_what_is_measured_or_its_theory(option, found):
  base, value, changed = CHANGED[option]
  before, after = found(base), found(base | {option: value})
  assert {name for name in before if before[name] != after[name]} == changed


def test_the_schema_of_its_own():
  config = schema.default('signal')
  schema.validate(config)
  assert {f'signal.{key}' for key in CHANGED} == set(schema.OPTIONS['signal'])
  assert schema.kind(config) == 'signal' and schema.kind(schema.default()) == 'train'
  assert schema.kind(schema.default('compare')) == 'compare'
  options = schema.OPTIONS['signal']
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
    with pytest.raises(errors.InputError, match=rf'config\.signal\.{key}[= ]'):
      schema.validate(config)


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'seeds': 2**31 - 1}, 'config.signal.seeds'),
    ({'jacobian_seeds': 2**31 - 1}, 'config.signal.jacobian_seeds'),
    ({'width': 2**31 - 1}, 'config.signal.width'),
    ({'depths': (2**31 - 1,)}, 'config.signal.depths'),
    ({'batch_size': 2**31 - 1}, 'config.signal.batch_size'),
    ({'singular_values': 2**31 - 1}, 'config.signal.singular_values'),
    ({'depths': (10**5,), 'width': 8192, 'seeds': 10**5, 'singular_values': 0}, 'days'),
  ],
)
def test_a_grid_beyond_memory_or_time_is_refused_at_once(changes, named, tmp_path, monkeypatch):
  monkeypatch.setattr(capacity, 'host', lambda: 10**12)
  monkeypatch.setattr(grid, '_measure', lambda *_: pytest.fail('it was computed'))
  config = schema.default('signal')
  config.signal.update({'activations': ('relu',), 'blocks': ('plain',), 'norms': ('none',)})
  config.signal.update({'weight_variances': (2.0,), 'bias_variances': (0.0,), **changes})
  with pytest.raises(errors.InputError, match=named):
    grid.run(config, tmp_path)
