"""Dead units against all activations of the whole split, looked at in NumPy."""

import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import checkpoints, errors, models, trees
from dnt.config import run_config
from dnt.diagnostics import dead_units
from dnt.models import activations, depth, layouts
from dnt.parallel import mesh as mesh_lib
from dnt.training import datasets, experiment, open_options

EXAMPLES = 50  # in batches of 16: the last one is padded


@pytest.fixture
def network(tiny):
  """A config of 50 images: five dense layers without a norm."""
  tiny.data.synthetic_examples = EXAMPLES
  tiny.model.norm, tiny.model.depth = 'none', 5
  return tiny


def build(config):
  data = datasets.load(config, ())
  return data.train, experiment.make(open_options.resolve(config, data), data.spec)


def pixels(run, source):
  mean, std = (np.reshape(value, (1, 1, 1, -1)) for value in (run.config.data.mean, run.config.data.std))
  return ((source.images / 255.0 - mean) / std).astype(np.float32)


def brute_force(run, source, variables):
  """Indices of the units that are zero everywhere, by the module that made them; all images in one batch."""

  def is_activation(module, method):
    return isinstance(module, activations.Activation) and method == '__call__'

  @jax.jit
  def captured(variables, images):
    capture = {'mutable': ['intermediates'], 'capture_intermediates': is_activation}
    return run.model.apply(variables, images, train=False, **capture)[1]

  found = captured(variables, pixels(run, source))
  dead = {}
  for path, outputs in trees.flatten(found['intermediates']).items():
    output = np.asarray(outputs[0]).reshape(-1, outputs[0].shape[-1])
    dead[path.removesuffix('/__call__')] = tuple(np.flatnonzero((output == 0).all(0)))
  return dead


def look(config, run, source, variables, scanned=None):
  mesh = mesh_lib.make_mesh(config.mesh)
  if scanned:
    variables = layouts.to_scanned(variables, scanned)
  return dead_units.find(run, mesh, source, mesh_lib.place(variables, mesh_lib.replicated(mesh)))


def kill(variables, path, units, bias=-1e3):
  flat = trees.flatten(variables)
  flat[path] = np.array(flat[path])
  flat[path][list(units)] = bias
  return trees.unflatten(flat)


def with_dead(run, source):
  """Variables with some units killed, and one that is dead on images but would fire on padding."""
  variables = jax.device_get(run.init_variables())
  variables = kill(variables, 'params/stage1/block002/dense/bias', (1, 5))
  variables = kill(variables, 'params/stage1/block003/dense/bias', range(15))
  flat = trees.flatten(variables)
  sums = pixels(run, source).reshape(len(source), -1).sum(1)
  black = ((0.0 - np.array(run.config.data.mean)) / np.array(run.config.data.std)).sum() * 64
  flat['params/stem/dense/kernel'] = np.array(flat['params/stem/dense/kernel'])
  flat['params/stem/dense/bias'] = np.array(flat['params/stem/dense/bias'])
  flat['params/stem/dense/kernel'][:, 7] = -1.0
  flat['params/stem/dense/bias'][7] = (sums.min() + black) / 2
  assert black < sums.min()
  return trees.unflatten(flat)


def test_dead_units_are_those_that_never_fire(network):
  source, run = build(network)
  variables = with_dead(run, source)
  expected = brute_force(run, source, variables)
  found = look(network, run, source, variables)
  assert {each.name: each.dead for each in found if each.name != 'head'} == expected
  assert [each.entry for each in found] == ['stem', *(f'stage1/block{i:03d}' for i in (1, 2, 3)), 'head']
  dead = {each.entry: set(each.dead) for each in found}
  assert 7 in dead['stem']  # fires on a black image, which no image is
  assert {1, 5} <= dead['stage1/block002'] < set(range(16))
  assert dead['stage1/block003'] >= set(range(15))
  assert dead['head'] == set()
  assert [each.count for each in found] == [16, 16, 16, 16, 10]
  assert {each.criterion for each in found} == {'zero'}


@pytest.mark.thorough
@pytest.mark.usefixtures('eight_devices')
def test_same_on_eight_devices_scanned_and_streamed(network):
  source, run = build(network)
  variables = with_dead(run, source)
  expected = brute_force(run, source, variables)
  network.model.scan = True
  network.data.placement, network.data.workers = 'stream', 0
  _, scanned = build(network)
  rows = depth.trace(scanned.model, scanned.spec.image_shape).scanned
  found = look(network, scanned, source, variables, rows)
  assert {each.name: each.dead for each in found if each.name != 'head'} == expected


def test_units_of_convolutions_are_channels(network):
  network.model.name, network.model.norm, network.model.depth, network.model.width = 'plain', 'batch_norm', 8, 8
  source, run = build(network)
  variables = kill(jax.device_get(run.init_variables()), 'params/stage2/block001/norm1/bias', (0, 3))
  expected = brute_force(run, source, variables)
  found = look(network, run, source, variables)
  assert {each.name: each.dead for each in found if each.name != 'head'} == expected
  first, second = (each for each in found if each.entry == 'stage2/block001')
  assert first.name < second.name
  assert {0, 3} <= set(first.dead)
  assert first.count == 16


def test_sigmoid_units_are_dead_when_saturated(network):
  network.model.activation = 'sigmoid'
  source, run = build(network)
  variables = kill(jax.device_get(run.init_variables()), 'params/stage1/block001/dense/bias', (2,), -50.0)
  variables = kill(variables, 'params/stage1/block001/dense/bias', (4,), 50.0)
  found = {each.entry: each for each in look(network, run, source, variables)}
  assert set(found['stage1/block001'].dead) == {2, 4}
  assert found['stage1/block001'].criterion == 'saturated'
  assert found['head'].criterion == 'zero'


@pytest.mark.thorough
def test_a_users_entry_without_activations_is_judged_by_its_output(network):
  class Hidden(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.relu(nn.Dense(6, bias_init=lambda *_: np.array([0, 0, -1e3, 0, 0, -1e3], np.float32))(x))

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      return nn.Dense(10, name='head')(Hidden(name='hidden')(x.reshape(x.shape[0], -1)))

  source, run = build(network)
  run = run._replace(model=Net(), trace=depth.trace(Net(), run.spec.image_shape))
  variables = models.init(run.trace, 0)
  images = pixels(run, source).reshape(EXAMPLES, -1)
  output = jax.jit(Hidden().apply)({'params': variables['params']['hidden']}, images)
  hidden, head = look(network, run, source, variables)
  assert hidden == ('hidden', 'hidden', 'zero', 6, tuple(np.flatnonzero((np.asarray(output) == 0).all(0))))
  assert {2, 5} <= set(hidden.dead)
  assert head.dead == ()


FUNCTIONS = """
import flax.linen as nn
import jax.numpy as jnp

class Part(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.relu(nn.Dense(8)(x))

class Net(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(nn.Dense(64, name='wide')(x.reshape(x.shape[0], -1)))
    x = nn.tanh(nn.Dense(6, name='flat')(x))
    x = jnp.maximum(Part(name='part')(x), 0.5) - 0.5
    x = nn.remat(Part)(name='again')(x)
    return nn.Dense(self.num_classes, name='answer')(x)
"""


def meta(run):
  """What a checkpoint says of its run, as far as the search reads it."""
  return {'class_names': [], 'config': run.config.to_dict(), 'data': {}, 'versions': {}, 'devices': {}}


@pytest.mark.thorough
def test_activations_that_a_users_own_module_calls_as_functions(network, tmp_path, monkeypatch):
  (tmp_path / 'deadnets.py').write_text(FUNCTIONS)
  monkeypatch.syspath_prepend(tmp_path)
  network.model.update({'name': 'deadnets:Net', 'depth': None, 'width': None, 'norm': 'batch_norm'})
  source, run = build(network)
  variables = jax.tree.map(np.array, jax.device_get(run.init_variables()))
  variables['params']['wide']['bias'][::2] = -1e3
  variables['params']['flat']['bias'][[2, 5]] = (30, -30)
  variables['params']['part']['Dense_0']['bias'][3] = -1e3
  found = {each.name: each for each in look(network, run, source, variables)}
  wide = np.maximum(
    pixels(run, source).reshape(EXAMPLES, -1) @ variables['params']['wide']['kernel']
    + variables['params']['wide']['bias'],
    0,
  )
  assert found['wide/activation1()'].dead == tuple(np.flatnonzero((wide == 0).all(0)))
  assert found['wide/activation1()'].count == 64 and len(found['wide/activation1()'].dead) >= 32
  assert found['flat/activation1()'] == ('flat', 'flat/activation1()', 'saturated', 6, (2, 5))
  assert 3 in found['part/activation1()'].dead, 'inside'
  assert set(found['part/activation2()'].dead) >= set(found['part/activation1()'].dead), 'after it'
  assert found['again'] == ('again', 'again', 'unknown', 0, ())
  assert found['answer'].dead == ()

  saved = checkpoints.Checkpoints(tmp_path / 'run', network.checkpoint)
  saved.save(3, jax.tree.map(jnp.asarray, run.make_state(variables)), meta(run))
  saved.close()
  result = dead_units.run(network, tmp_path / 'run')
  (again,) = (each for each in result['entries'] if each['entry'] == 'again')
  assert [again[key] for key in ('units', 'dead', 'fraction')] == [None, None, None]
  assert result['units'] == 64 + 6 + 8 + 8 + 10
  (line,) = (line for line in dead_units.text(result).splitlines() if line.startswith('again'))
  assert line.split() == ['again', '-', '-', '-']


def test_the_dead_units_of_a_workdir(network, tmp_path, program):
  with pytest.raises(errors.InputError, match=f'no checkpoint .*{re.escape(str(tmp_path))}'):
    dead_units.run(network, tmp_path)
  source, run = build(network)
  variables = with_dead(run, source)
  saved = checkpoints.Checkpoints(tmp_path, network.checkpoint)
  saved.save(3, jax.tree.map(jnp.asarray, run.make_state(variables)), meta(run))
  saved.close()
  result = dead_units.run(network, tmp_path)
  assert json.loads((tmp_path / 'dead_units.json').read_text()) == result
  assert (result['step'], result['examples'], result['units']) == (3, EXAMPLES, 4 * 16 + 10)
  expected = brute_force(run, source, variables)
  assert {each['name']: tuple(each['indices']) for each in result['entries'] if each['name'] != 'head'} == expected
  assert result['dead'] == sum(map(len, expected.values()))
  for each in result['entries']:
    assert each['dead'] == len(each['indices']) == round(each['fraction'] * each['units'])
  table = dead_units.text(result).splitlines()
  assert len(table) == 1 + 5 + 1
  assert table[2].startswith('stage1/block001/Activation_0')
  assert f'{result["dead"]} of 74 units' in table[-1] and 'dead_units.json' in table[-1]
  (tmp_path / 'dead_units.json').unlink()
  run_config.write(tmp_path / 'config.json', network)
  config = f'--config={run_config.__file__}:{tmp_path / "config.json"}'
  code, out, err = program(config, f'--workdir={tmp_path}', '--mode=dead_units')
  assert code == 0, err
  assert out == f'{dead_units.text(result)}  {tmp_path}\n'
  assert json.loads((tmp_path / 'dead_units.json').read_text()) == result


def test_the_checkpoint_is_chosen(network, tmp_path):
  source, run = build(network)
  variables = with_dead(run, source)
  saved = checkpoints.Checkpoints(tmp_path, network.checkpoint)
  for step, each in ((3, variables), (5, run.init_variables())):
    saved.save(step, jax.tree.map(jnp.asarray, run.make_state(each)), meta(run))
  saved.close()
  expected = brute_force(run, source, variables)
  found = {step: dead_units.run(network, tmp_path, str(step)) for step in (3, 5)}
  assert {step: result['step'] for step, result in found.items()} == {3: 3, 5: 5}
  assert found[3]['dead'] == sum(map(len, expected.values())) > found[5]['dead']


def test_a_workdir_that_cannot_be_written_is_refused_before_the_search(tiny, saved, tmp_path, monkeypatch):
  saved(tiny)
  monkeypatch.setattr('dnt.files.why_not_writable', lambda folder: 'Read-only file system')
  monkeypatch.setattr(dead_units, 'find', lambda *_: pytest.fail('searched before'))
  with pytest.raises(errors.InputError, match=f'{re.escape(str(tmp_path / "run"))} cannot be written'):
    dead_units.run(tiny, tmp_path / 'run')
