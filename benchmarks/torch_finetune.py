"""Fine-tunes all of an ImageNet ResNet-50 on Stanford Cars in PyTorch, the peer of a row of the tables of transfer.

  python -m benchmarks.torch_finetune --cars=DIR --weights=tfjs:DIR --workdir=runs/torch_cars_all

The protocol is that of the variant `all` of configs/transfer_cars_resnet50.py, from which it takes the size of images
and batches, the rates, the weight decay and the epochs: the same files and weights, no augmentation, AdamW with a
cosine to zero, BatchNorm in training mode, a head that starts at zero. The layers, the optimizer, its schedule and the
loss are torch's, in channels-last, which is the faster of its formats on CPU; Pillow resizes. Nothing is chosen by the
test images: the result is that of the last step. It saves after each epoch, and the same command goes on.
"""

import json
import math
import os
import pathlib
import time

import numpy as np
import scipy.io
import torch
from absl import app, flags
from PIL import Image
from torch import nn
from torch.nn import functional as F

from benchmarks import torch_nets
from configs import transfer_cars_resnet50
from dnt import inference
from dnt.reporting import progress

CARS = flags.DEFINE_string('cars', None, "Folder of Stanford Cars, in the official archives' layout.", required=True)
WEIGHTS = flags.DEFINE_string('weights', None, "Keras' ResNet-50 of ImageNet, tfjs:<dir>.", required=True)
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the checkpoint and of metrics.jsonl.', required=True)
SEED = flags.DEFINE_integer('seed', 0, 'Seed of the order of the images.')
SPLITS = {'train': ('cars_train', 'cars_train_annos.mat'), 'test': ('cars_test', 'cars_test_annos_withlabels.mat')}


def read(folder: pathlib.Path, split: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
  """Returns the images of a split, squashed to uint8 [N, 3, size, size], and their classes from 0."""
  images, annotations = SPLITS[split]
  rows = scipy.io.loadmat(folder / 'devkit' / annotations)['annotations'][0]
  pixels = np.empty((len(rows), size, size, 3), np.uint8)
  count = progress.Count(f'read of {split}', len(rows))
  for index, row in enumerate(rows):
    with Image.open(folder / images / str(row['fname'][0])) as image:
      pixels[index] = image.convert('RGB').resize((size, size), Image.Resampling.BILINEAR)
    count.update(index + 1)
  count.close()
  labels = torch.tensor([int(row['class'].item()) - 1 for row in rows])
  return torch.from_numpy(pixels).permute(0, 3, 1, 2), labels


def make_network(network: inference.Network, classes: int) -> nn.Module:
  """Returns torch's ResNet-50 with the weights of `network` and a head of `classes` that is zero."""
  model = network.config.model
  net = torch_nets.resnet50(classes, model.stride_on)
  torch_nets.take_weights(net, network.variables['params'], network.variables['batch_stats'], model.norm_epsilon)
  nn.init.zeros_(net[-1].weight)
  nn.init.zeros_(net[-1].bias)
  return net.to(memory_format=torch.channels_last)


def make_optimizer(net: nn.Module, rate: float, head_multiplier: float, decay: float) -> torch.optim.Optimizer:
  """Returns AdamW, whose head has a rate of its own; kernels decay, scales and biases do not."""
  groups = []
  for module in net.modules():
    multiplier = head_multiplier if isinstance(module, nn.Linear) else 1.0
    for name, parameter in module.named_parameters(recurse=False):
      kernel = name == 'weight' and not isinstance(module, nn.BatchNorm2d)
      groups.append({'params': [parameter], 'lr': rate * multiplier, 'weight_decay': decay if kernel else 0.0})
  return torch.optim.AdamW(groups)


@torch.inference_mode()
def evaluate(net: nn.Module, prepare: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch: int) -> dict:
  """Returns the accuracy and the top-5 accuracy."""
  net.eval()
  logits = torch.cat([net(prepare(part)) for part in images.split(batch)])
  net.train()
  found = logits.topk(5).indices == labels[:, None]
  return {
    'test/accuracy': found[:, 0].double().mean().item(),
    'test/top5_accuracy': found.any(1).double().mean().item(),
  }


class Prepare(nn.Module):
  """Normalizes uint8 images as the weights want it."""

  def __init__(self, mean, std):
    super().__init__()
    self.mean, self.std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (mean, std))

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    images = (images.float() / 255 - self.mean) / self.std
    return images.contiguous(memory_format=torch.channels_last)


def finetune(cars: str, weights: str, target: str, seed: int) -> None:
  """Trains, evaluates and saves after each epoch, and appends a line of metrics; goes on from what `target` holds."""
  config = transfer_cars_resnet50.get_config()
  base, variant = config.base, config.variants['all']
  batch, epochs = base.train.batch_size, base.train.epochs
  network = inference.load(weights)
  folder, workdir = pathlib.Path(cars), pathlib.Path(target)
  workdir.mkdir(parents=True, exist_ok=True)
  images, labels = read(folder, 'train', base.data.image_size)
  test = read(folder, 'test', base.data.image_size)
  prepare = Prepare(network.config.data.mean, network.config.data.std)
  net = make_network(network, int(labels.max()) + 1)
  rate, multiplier = variant['optim.learning_rate'], variant['finetune.head_lr_mult']
  optimizer = make_optimizer(net, rate, multiplier, base.optim.weight_decay)
  total = int(epochs * len(labels) / batch)
  schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / total)))
  order = torch.Generator().manual_seed(seed)
  order = torch.cat([torch.randperm(len(labels), generator=order) for _ in range(math.ceil(epochs))])
  checkpoint, step, seconds = workdir / 'checkpoint.pt', 0, 0.0
  if checkpoint.exists():
    saved = torch.load(checkpoint, weights_only=True)
    step, seconds = saved['step'], saved['seconds']
    for part, name in ((net, 'net'), (optimizer, 'optimizer'), (schedule, 'schedule')):
      part.load_state_dict(saved[name])
  net.train()
  losses, first, begin = [], step, time.perf_counter()
  while step < total:
    chosen = order[step * batch : (step + 1) * batch]
    loss = F.cross_entropy(net(prepare(images[chosen])), labels[chosen])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
    step += 1
    if step % 16 == 0:
      passed = time.perf_counter() - begin
      left = progress.format_duration(passed / (step - first) * (total - step))
      print(f'step {step}/{total}  loss {np.mean(losses[-16:]):.4f}  ETA {left}', flush=True)
    if step == total or step % (len(labels) // batch) == 0:
      metrics = {
        'step': step,
        'train/loss': float(np.mean(losses)),
        **evaluate(net, prepare, *test, base.eval.batch_size),
      }
      seconds += time.perf_counter() - begin
      losses, first, begin = [], step, time.perf_counter()
      saved = {'net': net, 'optimizer': optimizer, 'schedule': schedule}
      saved = {name: part.state_dict() for name, part in saved.items()} | {'step': step, 'seconds': seconds}
      torch.save(saved, checkpoint.with_suffix('.new'))
      os.replace(checkpoint.with_suffix('.new'), checkpoint)
      line = json.dumps({**metrics, 'seconds': seconds})
      with (workdir / 'metrics.jsonl').open('a') as file:
        file.write(f'{line}\n')
      print(line, flush=True)


def main(_):
  finetune(CARS.value, WEIGHTS.value, WORKDIR.value, SEED.value)


if __name__ == '__main__':
  app.run(main)
