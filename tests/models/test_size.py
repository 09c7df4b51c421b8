import math
import time

import pytest

from dnt import config, errors, models
from dnt.models import depth, size
from dnt.parallel import capacity

SHAPE = (8, 8, 3)


def options(**given):
  result = config.default().model
  result.update(given)
  return result


def trace(model, shape=SHAPE, classes=10):
  return size.trace(model, models.make(model, classes), classes, shape)


@pytest.mark.thorough
@pytest.mark.parametrize(
  'given',
  [
    {'name': 'mlp', 'depth': 57, 'width': 5},
    {'name': 'mlp', 'depth': 54, 'width': 5, 'block': 'highway'},
    {'name': 'plain', 'depth': 56},
    {'name': 'highway', 'depth': 56},
    {'name': 'resnet', 'depth': 56, 'width': 2},
    {'name': 'resnet', 'depth': 56, 'block': 'bottleneck'},
    {'name': 'resnet', 'depth': 58, 'block': 'preact_basic'},
  ],
)
def test_parameters_of_a_deep_network_by_arithmetic(given):
  model = options(**given)
  table = depth.trace(models.make(model, 10), SHAPE).table
  assert size.count_parameters(model, 10, SHAPE) == sum(row.parameters for row in table)


@pytest.mark.thorough
@pytest.mark.parametrize(('bottleneck', 'layers'), [(True, 58), (False, 55)])
def test_a_densenet_has_at_least_that_many(bottleneck, layers):
  model = options(name='densenet', depth=layers, bottleneck=bottleneck)
  whole = sum(row.parameters for row in depth.trace(models.make(model, 10), SHAPE).table)
  assert 0.3 * whole < size.count_parameters(model, 10, SHAPE) <= whole


@pytest.mark.parametrize(
  ('given', 'shape', 'named'),
  [
    ({'name': 'mlp', 'depth': 2**31 - 1}, SHAPE, 'config.model.depth'),
    ({'name': 'mlp', 'depth': 9999, 'width': 10**6}, SHAPE, 'config.model.depth=9999 and config.model.width=1000000'),
    ({'name': 'resnet', 'depth': 9998, 'width': 10**4}, SHAPE, 'config.model.width=10000'),
    ({'name': 'resnet', 'width': 2**31 - 1}, SHAPE, 'config.model.width'),
    ({'name': 'densenet', 'growth_rate': 2**31 - 1}, SHAPE, 'config.model.growth_rate'),
    ({'name': 'resnet'}, (2**31 - 1, 2**31 - 1, 3), 'config.data.image_size'),
    ({'name': 'mlp'}, (10**5, 10**5, 3), 'config.data.image_size'),
  ],
)
def test_absurd_sizes_are_refused_at_once(given, shape, named, monkeypatch):
  monkeypatch.setattr(capacity, 'host', lambda: 10**11)
  start = time.process_time()
  with pytest.raises(errors.InputError, match=named):
    trace(options(**given), shape)
  assert time.process_time() - start < 5


@pytest.mark.thorough
def test_a_network_that_fits_is_traced(monkeypatch):
  model = options(name='mlp', depth=200, width=4)
  assert len(trace(model).table) == 200
  needed = 4 * sum(row.parameters for row in trace(model).table)
  shallow = options(name='mlp', depth=20, width=math.isqrt(needed // 4 // 18) + 2)
  monkeypatch.setattr(capacity, 'host', lambda: needed - 1)
  for each in (model, shallow):
    with pytest.raises(errors.InputError, match='parameters'):
      trace(each)


@pytest.mark.thorough
def test_a_deep_network_is_announced(monkeypatch, caplog):
  monkeypatch.setattr(size, 'SECONDS', 0.1)
  with caplog.at_level('INFO'):
    trace(options(name='mlp', depth=181, width=4))
  assert '181 layers takes about 18 s' in caplog.text


@pytest.mark.parametrize('layers', [10**12, 10**18 + 1])
def test_the_nearest_depth_is_found_by_arithmetic(layers):
  with pytest.raises(errors.InputError, match='nearest valid depth is') as refused:
    models.make(options(depth=layers), 10)
  nearest = int(str(refused.value).rsplit(' ', 1)[1])
  assert nearest == 9998, 'the largest 6n + 2 that dnt builds'


@pytest.mark.parametrize(
  ('given', 'nearest'),
  [
    ({'name': 'highway', 'depth': 10**6}, '9998'),
    ({'name': 'resnet', 'depth': 10**4, 'block': 'bottleneck'}, '9992'),  # of 9n + 2; 10,001 is nearer
  ],
)
def test_the_nearest_depth_is_one_that_is_built(given, nearest):
  with pytest.raises(errors.InputError, match=f'nearest valid depth is {nearest}$'):
    models.make(options(**given), 10)
