"""The doctor's figures against torch, against Jacobians that are known, and on all kinds of networks and data."""

import numpy as np
import pytest

from dnt import experiment, models, trees
from dnt.data import order
from dnt.diagnostics import doctor

torch = pytest.importorskip('torch')

FUNCTIONS = {'relu': torch.relu, 'tanh': torch.tanh}


def examine(config, seeds=1):
  return doctor.examine(config, experiment.load_data(config, ()), seeds)


def plain(config, **model):
  """The tiny MLP without a norm."""
  config.model.norm = 'none'
  config.model.update(model)
  return config


def reference(config, seed):
  """What torch finds: the figures by name and entry, the losses and the median update ratios of ten steps."""
  data = experiment.load_data(config, ())
  run = experiment.make(experiment.resolve(config, data), data.spec)
  variables = models.init(run.model, seed, run.spec.image_shape)
  params = {path: torch.tensor(np.array(leaf)) for path, leaf in trees.flatten(variables['params']).items()}
  params = {path: leaf.requires_grad_() for path, leaf in params.items()}
  entries = [row.entry.name for row in run.table]
  mean, std = (np.reshape(value, (1, 1, 1, -1)) for value in (run.config.data.mean, run.config.data.std))
  images = ((data.train.images / 255.0 - mean) / std).astype(np.float32).reshape(len(data.train), -1)
  size = config.train.batch_size
  epochs = [order.order(config.seed, epoch, len(images)) for epoch in range(1 + 10 * size // len(images))]
  places = np.concatenate(epochs)
  optimizer = torch.optim.SGD(
    [
      {'params': [p for path, p in params.items() if path.endswith('kernel')], 'weight_decay': config.optim.weight_decay},
      {'params': [p for path, p in params.items() if not path.endswith('kernel')]},
    ],
    lr=config.optim.learning_rate,
    momentum=config.optim.momentum,
  )

  def norm(tensors, entry):
    return float(torch.sqrt(sum((t.detach() ** 2).sum() for path, t in tensors.items() if path.startswith(f'{entry}/'))))

  figures, losses, ratios = {}, [], []
  for step in range(10):
    index = places[step * size : (step + 1) * size]
    x = torch.tensor(images[index])
    pictures, outputs = x, {}
    for entry in entries:
      x = x @ params[f'{entry}/dense/kernel'] + params[f'{entry}/dense/bias']
      x = x if entry == 'head' else FUNCTIONS[config.model.activation](x)
      x.retain_grad()
      outputs[entry] = x
    loss = torch.nn.functional.cross_entropy(x, torch.tensor(data.train.labels[index]).long())
    optimizer.zero_grad()
    loss.backward()
    if step == 0:
      backward = [float(outputs[entry].grad.norm()) for entry in entries]
      figures = {
        'activation_rms': [float((outputs[e] ** 2).mean().sqrt()) for e in entries],
        'activation_variance': [float(outputs[e].var(unbiased=False)) for e in entries],
        'cosine': [likeness(outputs[e]) for e in entries],
        'zero': [float((outputs[e] == 0).float().mean()) for e in entries],
        'dead': [float((outputs[e] == 0).all(0).float().mean()) for e in entries],
        'saturated': [float((outputs[e].abs() > 0.95).float().mean()) for e in entries[:-1]] + [np.nan],
        'output_gradient_norm': backward,
        'jacobian_gain': [np.nan] + [backward[i - 1] / backward[i] for i in range(1, len(entries))],
        'gradient_norm': [norm({path: p.grad for path, p in params.items()}, e) for e in entries],
        'input_cosine': likeness(pictures),
      }
    before = {path: p.detach().clone() for path, p in params.items()}
    optimizer.step()
    updates = {path: p.detach() - before[path] for path, p in params.items()}
    losses.append(float(loss))
    ratios.append(np.median([norm(updates, e) / norm(before, e) for e in entries]))
  return figures, losses, ratios


def likeness(x):
  x = torch.nn.functional.normalize(x.detach()[:8], dim=1)
  return float(np.mean([x[i] @ x[j] for i in range(8) for j in range(8) if i != j]))


@pytest.mark.parametrize('activation', ['relu', 'tanh'])
def test_every_figure_and_the_first_steps_equal_torch(tiny, activation, one_device):
  config = plain(tiny, activation=activation, depth=4, init_gain=2.0)
  config.optim.weight_decay = 0.01
  found = examine(config, seeds=2)
  assert found.losses.shape == found.update_ratios.shape == (2, 10)
  cosines = []
  for seed in range(2):
    figures, losses, ratios = reference(config, seed)
    cosines.append(figures.pop('input_cosine'))
    for name in ('zero', 'dead') if activation == 'tanh' else ('saturated',):
      figures.pop(name)
    for name, expected in figures.items():
      np.testing.assert_allclose(found.columns[name][seed], expected, rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found.losses[seed], losses, rtol=1e-3)
    np.testing.assert_allclose(found.update_ratios[seed], ratios, rtol=1e-3)
  assert found.input_cosine == pytest.approx(np.mean(cosines), rel=1e-4)
  np.testing.assert_allclose(found.learning_rates, config.optim.learning_rate)
  assert found.chance == pytest.approx(np.log(10))
