"""PyTorch's side of the row of all: the same network as dnt's, the same rates, and a run that goes on."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from PIL import Image

from configs import transfer_cars_resnet50
from dnt import inference, models
from dnt.models import depth

torch = pytest.importorskip('torch')
torch_finetune = pytest.importorskip('benchmarks.torch_finetune')
pytestmark = pytest.mark.thorough
SIZE = 32


@pytest.fixture(scope='module')
def network():
  """What `inference.load` returns of a ResNet-50 with drawn weights, as far as it is used."""
  base = transfer_cars_resnet50.get_config().base
  data = types.SimpleNamespace(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
  model = models.make(base.model, 10)
  draw = np.random.default_rng(0)

  def leaf(path, like):
    scale = np.sqrt(2 / np.prod(like.shape[:-1])) if 'kernel' in str(path) else 0.1
    values = scale * draw.normal(size=like.shape)
    return (abs(values) + 1 if 'var' in str(path) else values + ('scale' in str(path))).astype(np.float32)

  variables = jax.tree.map_with_path(leaf, depth.trace(model, (SIZE, SIZE, 3)).variables)
  return types.SimpleNamespace(
    config=types.SimpleNamespace(model=base.model, data=data), model=model, variables=variables
  )


@pytest.mark.parametrize('train', [False, True])
def test_torch_has_the_same_network(network, train):
  net = torch_finetune.make_network(network, 10)
  dense = network.variables['params']['head']['dense']
  with torch.no_grad():
    assert not net[-1].weight.any() and not net[-1].bias.any()
    net[-1].weight.copy_(torch.tensor(dense['kernel'].T))
    net[-1].bias.copy_(torch.tensor(dense['bias']))
  images = np.random.default_rng(1).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
  prepare = torch_finetune.Prepare(network.config.data.mean, network.config.data.std)
  with torch.no_grad():
    found = net.train(train)(prepare(torch.from_numpy(images).permute(0, 3, 1, 2)))
  x = (images / 255 - network.config.data.mean) / network.config.data.std
  wanted = network.model.apply(
    network.variables, jnp.asarray(x, jnp.float32), train=train, mutable=['batch_stats'] if train else False
  )
  wanted, *changed = wanted if train else (wanted,)
  np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max())
  for tree in changed:
    mean = tree['batch_stats']['stage4']['block003']['norm3']['mean']
    running = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)][-1].running_mean
    np.testing.assert_allclose(running, mean, rtol=1e-2, atol=1e-3)


def test_rates_and_decay_are_those_of_the_row(network):
  net = torch_finetune.make_network(network, 10)
  optimizer = torch_finetune.make_optimizer(net, 1e-5, 100.0, 0.01)
  found = {group['params'][0]: (group['lr'], group['weight_decay']) for group in optimizer.param_groups}
  assert len(found) == len(list(net.parameters()))
  for name, parameter in net.named_parameters():
    head, kernel = parameter.shape[0] == 10, parameter.ndim > 1
    assert found[parameter] == (pytest.approx(1e-3 if head else 1e-5), 0.01 if kernel else 0.0), name


@pytest.fixture
def cars(tmp_path):
  folder, draw = tmp_path / 'cars', np.random.default_rng(2)
  (folder / 'devkit').mkdir(parents=True)
  for count, (images, annotations) in zip((8, 4), torch_finetune.SPLITS.values(), strict=True):
    (folder / images).mkdir()
    rows = np.empty((1, count), [('class', 'O'), ('fname', 'O')])
    for index in range(count):
      Image.fromarray(draw.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / images / f'{index}.jpg')
      rows[0, index] = np.array([[index % 5 + 1]], np.uint8), np.array([f'{index}.jpg'])
    scipy.io.savemat(folder / 'devkit' / annotations, {'annotations': rows})
  return folder


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(network, cars, tmp_path, monkeypatch):
  config = transfer_cars_resnet50.get_config()
  config.base.data.image_size, config.base.train.batch_size, config.base.train.epochs = SIZE, 4, 2.0
  monkeypatch.setattr(transfer_cars_resnet50, 'get_config', lambda: config)
  monkeypatch.setattr(inference, 'load', lambda text: network)
  evaluate = torch_finetune.evaluate

  def run(name):
    torch_finetune.finetune(str(cars), 'tfjs:nowhere', str(tmp_path / name), seed=0)
    return [json.loads(line) for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]

  def stop(*args):
    if done:
      raise KeyboardInterrupt
    done.append(args)
    return evaluate(*args)

  whole, done = run('whole'), []
  monkeypatch.setattr(torch_finetune, 'evaluate', stop)
  with pytest.raises(KeyboardInterrupt):
    run('stopped')
  monkeypatch.setattr(torch_finetune, 'evaluate', evaluate)
  again = run('stopped')
  assert [line['step'] for line in again] == [line['step'] for line in whole] == [2, 4]
  for line, wanted in zip(again, whole, strict=True):
    assert line['train/loss'] == pytest.approx(wanted['train/loss'], rel=1e-4)
    assert 0 <= line['test/accuracy'] <= line['test/top5_accuracy'] == 1
