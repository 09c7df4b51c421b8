"""Fine-tunes all of an ImageNet ResNet-50 on Stanford Cars in PyTorch, the peer of a row of the tables of transfer.

  python -m benchmarks.torch_finetune --cars=DIR --weights=tfjs:DIR --workdir=runs/torch_cars_all

The protocol is that of the variant `all` of configs/transfer_cars_resnet50.py, which gives it the images, their order,
the weights, the batches, the rates, the weight decay and the epochs: no augmentation, AdamW with a cosine to zero,
BatchNorm in training mode, a head that starts at zero. The layers, the loss, the optimizer and its schedule are
torch's, in channels-last, which is the faster of its formats on CPU. Nothing is chosen by the test images: the result
is that of the last step. It saves after each epoch, and the same command goes on.
"""

import contextlib
import io
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from absl import app, flags
from torch import nn
from torch.nn import functional as F

from benchmarks import torch_nets
from configs import transfer_cars_resnet50
from dnt import config as schema
from dnt import files, inference
from dnt.config import typed
from dnt.data import examples, order, pipeline
from dnt.data.transforms import images
from dnt.reporting import metrics, progress
from dnt.training import datasets, open_options
from dnt.weights import names

CARS = flags.DEFINE_string('cars', None, 'Folder of Stanford Cars.', required=True)
WEIGHTS = flags.DEFINE_string('weights', None, "Keras' ResNet-50 of ImageNet, tfjs:<dir>.", required=True)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the checkpoint and of metrics.jsonl.', required=True)
SEED = flags.DEFINE_integer('seed', 0, 'Seed of the order of the images.')
Prepare = Callable[[torch.Tensor], torch.Tensor]


def read(config: typed.Config, source: examples.Examples) -> tuple[torch.Tensor, torch.Tensor]:
  """Returns all images of a split as in evaluation, uint8 [N, 3, H, W], and their classes."""
  side, labels = config.data.image_size, []
  pixels = np.empty((len(source), side, side, 3), np.uint8)
  transform, count = pipeline.eval_transform(config.data, (side, side)), progress.Count(source.split, len(source))
  for index in range(len(source)):
    image, label = source[index]
    pixels[index] = images.to_array(transform(image, None))
    labels.append(label)
    count.update(index + 1)
  count.close()
  return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor(labels)


def make_network(variables: Mapping[str, Any], model: typed.Model) -> nn.Module:
  """Returns torch's ResNet-50 with dnt's variables, but for the head, which is zero and has `model.num_classes`."""
  known = {(each.model['name'], each.model['depth']): each for each in names.networks('torch')}
  tensors = names.from_variables(variables, known[model.name, model.depth])
  net = torch_nets.resnet50(len(tensors['fc.bias']), model.stride_on)
  net.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()})
  net.fc = nn.Linear(net.fc.in_features, model.num_classes)
  for parameter in net.fc.parameters():
    nn.init.zeros_(parameter)
  for module in net.modules():
    if isinstance(module, nn.BatchNorm2d):
      module.eps = model.norm_epsilon
  return net.to(memory_format=torch.channels_last)


def make_prepare(config: typed.Data) -> Prepare:
  """Returns the function that normalizes uint8 images [B, 3, H, W] as the weights want it."""
  mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
  return lambda pixels: ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def make_optimizer(net: nn.Module, config: typed.Config) -> torch.optim.Optimizer:
  """Returns AdamW, whose head has a rate of its own; kernels decay, scales and biases do not."""
  groups = []
  for name, parameter in net.named_parameters():
    rate = config.optim.learning_rate * (config.finetune.head_lr_mult if name.startswith('fc.') else 1.0)
    decay = config.optim.weight_decay if parameter.ndim > 1 else 0.0
    groups.append({'params': [parameter], 'lr': rate, 'weight_decay': decay})
  return torch.optim.AdamW(groups)


@torch.inference_mode()
def evaluate(net: nn.Module, prepare: Prepare, pixels: torch.Tensor, labels: torch.Tensor, batch: int) -> dict:
  """Returns the accuracy and the top-5 accuracy."""
  net.eval()
  logits = torch.cat([net(prepare(part)) for part in pixels.split(batch)])
  net.train()
  found = (logits.topk(5).indices == labels[:, None]).double()
  return {'test/accuracy': found[:, 0].mean().item(), 'test/top5_accuracy': found.sum(1).mean().item()}


def finetune(config: typed.Config, data: datasets.Data, variables: Mapping[str, Any], workdir: pathlib.Path) -> None:
  """Trains, evaluates and saves after each epoch; goes on from what `workdir` holds.

  Args:
    config: resolved.
    data: its images.
    variables: of the ImageNet network, on the host.
    workdir: existing folder.
  """
  (pixels, labels), test = read(config, data.train), read(config, data.evaluation['test'])
  prepare, net = make_prepare(config.data), make_network(variables, config.model)
  optimizer, total, batch = make_optimizer(net, config), config.train.steps, config.train.batch_size
  checkpoint, step, seconds = workdir / 'checkpoint.pt', 0, 0.0
  if checkpoint.exists():
    saved = torch.load(checkpoint, weights_only=True)
    step, seconds = saved['step'], saved['seconds']
    net.load_state_dict(saved['net'])
    optimizer.load_state_dict(saved['optimizer'])
  cosine = torch.optim.lr_scheduler.LambdaLR(
    optimizer, lambda step: (1 + math.cos(math.pi * step / total)) / 2, last_epoch=step - 1
  )
  places = np.concatenate(
    [order.order(config.seed, epoch, len(labels)) for epoch in range(math.ceil(config.train.epochs))]
  )
  line, losses, begin = progress.Progress(total), [], time.perf_counter()
  with contextlib.closing(metrics.Writer(workdir, step)) as writer:
    while step < total:
      chosen = torch.from_numpy(places[step * batch : (step + 1) * batch])
      loss = F.cross_entropy(net(prepare(pixels[chosen])), labels[chosen])
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
      cosine.step()
      losses.append(loss.item())
      step += 1
      epoch = step * batch / len(labels)
      line.update(step, epoch, {'loss': losses[-1]})
      if step == total or step % (len(labels) // batch) == 0:
        found = evaluate(net, prepare, *test, config.eval.batch_size)
        seconds += time.perf_counter() - begin
        writer.write(step, epoch, {'train/loss': np.mean(losses), **found, 'seconds': seconds})
        content = io.BytesIO()
        saved = {'net': net.state_dict(), 'optimizer': optimizer.state_dict(), 'step': step, 'seconds': seconds}
        torch.save(saved, content)
        files.write(checkpoint, content.getvalue())
        losses, begin = [], time.perf_counter()
  line.close()


def main(_):
  comparison = transfer_cars_resnet50.get_config()
  changes = {'data.source': f'cars:{CARS.value}', 'train.init_from': WEIGHTS.value, 'seed': SEED.value}
  config = schema.override(comparison.base, {**comparison.variants['all'], **changes}, 'the benchmark')
  data = datasets.load(config, config.eval.splits)
  files.make_workdir(WORKDIR.value)
  variables = inference.load(WEIGHTS.value).variables
  finetune(open_options.resolve(config, data), data, variables, pathlib.Path(WORKDIR.value))


if __name__ == '__main__':
  app.run(main)
