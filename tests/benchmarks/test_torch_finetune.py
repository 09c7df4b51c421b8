"""PyTorch's side of the row of all: the same network as dnt's, the same rates, and a run that goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import transfer_cars_resnet50
from dnt import config as schema
from dnt import models
from dnt.models import depth
from dnt.reporting import metrics
from dnt.training import datasets, open_options

torch = pytest.importorskip('torch')
torch_finetune = pytest.importorskip('benchmarks.torch_finetune')
pytestmark = pytest.mark.thorough
SIZE = 32
CLASSES = 5


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  """The row's resolved config, on ten small images for two epochs, and the data."""
  folder, draw = tmp_path_factory.mktemp('cars'), np.random.default_rng(2)
  for split, count in (('train', 2), ('test', 1)):
    for label in range(CLASSES):
      (folder / split / f'class{label}').mkdir(parents=True)
      for index in range(count):
        image = Image.fromarray(draw.integers(0, 256, (40, 50, 3), np.uint8))
        image.save(folder / split / f'class{label}' / f'{index}.png')
  comparison = transfer_cars_resnet50.get_config()
  changes = {'data.source': f'cars:{folder}', 'train.init_from': '', 'data.image_size': SIZE, 'train.epochs': 2.0}
  changes |= {'data.mean': (0.5, 0.4, 0.3), 'data.std': (0.2, 0.25, 0.3), 'train.batch_size': 4}
  config = schema.override(comparison.base, {**comparison.variants['all'], **changes}, 'the test')
  data = datasets.load(config, config.eval.splits)
  return open_options.resolve(config, data), data


@pytest.fixture(scope='module')
def variables(loaded):
  """Drawn weights and statistics."""
  draw = np.random.default_rng(0)

  def leaf(path, like):
    scale = np.sqrt(2 / np.prod(like.shape[:-1])) if 'kernel' in str(path) else 0.1
    values = scale * draw.normal(size=like.shape)
    return (abs(values) + 1 if 'var' in str(path) else values + ('scale' in str(path))).astype(np.float32)

  model = models.make(loaded[0].model, CLASSES)
  return jax.tree.map_with_path(leaf, depth.trace(model, (SIZE, SIZE, 3)).variables)


@pytest.mark.parametrize('train', [False, True])
def test_torch_has_the_same_network(loaded, variables, train):
  config, _ = loaded
  net = torch_finetune.make_network(variables, config.model)
  dense = variables['params']['head']['dense']
  with torch.no_grad():
    assert not net.fc.weight.any() and not net.fc.bias.any()
    net.fc.weight.copy_(torch.tensor(dense['kernel'].T))
    net.fc.bias.copy_(torch.tensor(dense['bias']))
  images = np.random.default_rng(1).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
  prepare = torch_finetune.make_prepare(config.data)
  with torch.no_grad():
    found = net.train(train)(prepare(torch.from_numpy(images).permute(0, 3, 1, 2)))
  x = (images / 255 - np.array(config.data.mean)) / np.array(config.data.std)
  mutable = ['batch_stats'] if train else False
  model = models.make(config.model, CLASSES)
  wanted = model.apply(variables, jnp.asarray(x, jnp.float32), train=train, mutable=mutable)
  wanted, *changed = wanted if train else (wanted,)
  np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max())
  for tree in changed:
    mean = tree['batch_stats']['stage4']['block003']['norm3']['mean']
    running = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)][-1].running_mean
    np.testing.assert_allclose(running, mean, rtol=1e-2, atol=1e-3)


def test_rates_and_decay_are_those_of_the_row(loaded, variables):
  config, _ = loaded
  net = torch_finetune.make_network(variables, config.model)
  optimizer = torch_finetune.make_optimizer(net, config)
  found = {group['params'][0]: (group['lr'], group['weight_decay']) for group in optimizer.param_groups}
  assert len(found) == len(list(net.parameters()))
  for name, parameter in net.named_parameters():
    head, kernel = parameter.shape[0] == CLASSES, parameter.ndim > 1
    assert found[parameter] == (pytest.approx(1e-3 if head else 1e-5), 0.01 if kernel else 0.0), name


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(loaded, variables, tmp_path, monkeypatch):
  evaluate = torch_finetune.evaluate

  def run(name):
    (tmp_path / name).mkdir(exist_ok=True)
    torch_finetune.finetune(*loaded, variables, tmp_path / name)
    return metrics.read(tmp_path / name)

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
  assert [line['step'] for line in again] == [line['step'] for line in whole] == [2, 4, 5]
  for line, wanted in zip(again, whole, strict=True):
    assert line['train/loss'] == pytest.approx(wanted['train/loss'], rel=1e-4)
    assert 0 <= line['test/accuracy'] <= line['test/top5_accuracy'] == 1
