"""The train step of CIFAR ResNets in turn: dnt, PyTorch eager, and plain flax, on the same images and threads.

  python -m benchmarks.step [--depths=20,56] [--json=FILE]

A step is forward, backward, BatchNorm's statistics and SGD with momentum and weight decay, batch 128, 32x32, float32.
Each contender is a process of its own that waits while another one is timed; they take turns, A B C A B C. PyTorch runs
in both memory formats, and the faster one counts.
"""

import functools
import json
import os
import pathlib
import platform
import statistics
import sys
import time

from absl import app, flags

from benchmarks import racing

DEPTHS = flags.DEFINE_list('depths', ['20', '56'], 'ResNets to time.')
BATCH = flags.DEFINE_integer('batch', 128, 'Images per step.')
ROUNDS = flags.DEFINE_integer('rounds', 5, 'Times that the contenders take turns.')
STEPS = flags.DEFINE_integer('steps', 3, 'Steps of a turn.')
JSON = flags.DEFINE_string('json', None, 'File to write the figures to.')
CONTENDER = flags.DEFINE_string('contender', None, 'Used by the benchmark itself: serve one contender.')
CONTENDERS = ('dnt', 'torch', 'torch_channels_last', 'flax')


def images():
  import numpy as np

  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (BATCH.value, 32, 32, 3), np.uint8)
  return image, rng.integers(0, 10, BATCH.value).astype(np.int32)


def dnt_step(depth: int):
  """dnt's own train step, built as every run builds it."""
  import jax
  import numpy as np

  from dnt import config as schema
  from dnt.parallel import compile as compile_lib
  from dnt.training import datasets, experiment

  config = schema.default()
  config.model.depth = depth
  config.train.steps = 1000
  config.data.mean, config.data.std = (0.5,) * 3, (0.25,) * 3
  run = experiment.make(config, datasets.Spec(50_000, (32, 32, 3), tuple(map(str, range(10)))))
  image, label = images()
  batch = {'image': image, 'label': label, 'epoch': np.zeros_like(label), 'position': np.arange(len(label))}
  state = jax.device_put(run.make_state(run.init_variables()))
  program = compile_lib.jit(run.phases[0].train_step, donate_argnums=0)

  def step():
    nonlocal state
    state, metrics = program(state, batch)
    return float(metrics['loss'])

  return step


def flax_step(depth: int):
  """The same network as flax's documentation would have it: nn.Conv, nn.BatchNorm, jax.jit."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  import optax

  class Block(nn.Module):
    features: int
    stride: int

    @nn.compact
    def __call__(self, x):
      y = nn.Conv(self.features, (3, 3), self.stride, padding=1, use_bias=False)(x)
      y = nn.relu(nn.BatchNorm(use_running_average=False, momentum=0.9)(y))
      y = nn.Conv(self.features, (3, 3), padding=1, use_bias=False)(y)
      y = nn.BatchNorm(use_running_average=False, momentum=0.9)(y)
      if self.stride > 1:
        extra = (self.features - x.shape[-1]) // 2
        x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (extra, extra)))
      return nn.relu(x + y)

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Conv(16, (3, 3), padding=1, use_bias=False)(x)
      x = nn.relu(nn.BatchNorm(use_running_average=False, momentum=0.9)(x))
      for stage, features in enumerate((16, 32, 64)):
        for index in range((depth - 2) // 6):
          x = Block(features, 2 if stage and not index else 1)(x)
      return nn.Dense(10)(jnp.mean(x, (1, 2)))

  model, optimizer = Net(), optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, 0.9))
  image, label = images()
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))

  @jax.jit
  def program(params, batch_stats, opt_state, image, label):
    def loss_fn(params):
      x = (image.astype(jnp.float32) / 255 - 0.5) / 0.25
      logits, updates = model.apply({'params': params, 'batch_stats': batch_stats}, x, mutable=['batch_stats'])
      return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean(), updates['batch_stats']

    (loss, batch_stats_), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), batch_stats_, opt_state, loss

  state = (variables['params'], variables['batch_stats'], optimizer.init(variables['params']))

  def step():
    nonlocal state
    *state, loss = program(*state, image, label)
    return float(loss)

  return step


def torch_step(depth: int, channels_last: bool):
  """The same network in PyTorch, eager."""
  import torch
  from torch.nn import functional as F

  from benchmarks import torch_nets

  torch.set_num_threads(os.cpu_count())
  model = torch_nets.cifar_resnet(depth)
  image, label = (torch.from_numpy(array) for array in images())
  image, label = image.permute(0, 3, 1, 2).contiguous(), label.long()
  if channels_last:
    model, image = model.to(memory_format=torch.channels_last), image.to(memory_format=torch.channels_last)
  optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

  def step():
    optimizer.zero_grad()
    loss = F.cross_entropy(model((image.float() / 255 - 0.5) / 0.25), label)
    loss.backward()
    optimizer.step()
    return loss.item()

  return step


def serve(contender: str, depth: int) -> None:
  """Answers with the seconds of the steps of a turn."""
  if contender == 'dnt':
    from dnt.parallel.cpu import allocator

    allocator.tune()
  make = {
    'dnt': dnt_step,
    'flax': flax_step,
    'torch': lambda depth: torch_step(depth, False),
    'torch_channels_last': lambda depth: torch_step(depth, True),
  }[contender]
  step = make(depth)
  for _ in range(3):
    step()

  def turn():
    seconds = []
    for _ in range(STEPS.value):
      start = time.perf_counter()
      step()
      seconds.append(time.perf_counter() - start)
    return seconds

  racing.serve(turn=turn)


def race(depth: int) -> dict[str, list[float]]:
  """The median seconds of each turn, by contender."""
  given = [f'--depths={depth}', f'--batch={BATCH.value}', f'--steps={STEPS.value}']
  commands = {
    contender: [sys.executable, '-m', 'benchmarks.step', f'--contender={contender}', *given] for contender in CONTENDERS
  }
  with racing.started(commands) as contenders:

    def turn(contender):
      return statistics.median(contender.ask(racing.TURN))

    asked = {name: functools.partial(turn, contender) for name, contender in contenders.items()}
    return racing.take_turns(asked, ROUNDS.value)


def main(_):
  if CONTENDER.value:
    serve(CONTENDER.value, int(DEPTHS.value[0]))
    return
  from dnt.training import report

  found = {}
  for depth in map(int, DEPTHS.value):
    turns = race(depth)
    peer = min(('torch', 'torch_channels_last'), key=lambda name: statistics.median(turns[name]))
    print(f'\nResNet-{depth}, batch {BATCH.value}: milliseconds a step, and times the faster PyTorch ({peer})')
    found[depth] = {'turns': turns, 'peer': peer}
    for contender, seconds in turns.items():
      ratio = racing.ratio(turns[peer], seconds)
      found[depth][contender] = {'median_seconds': statistics.median(seconds), 'ratio': ratio}
      print(
        f'  {contender:20} {1000 * statistics.median(seconds):8.1f}  ({1000 * min(seconds):.1f} to '
        f'{1000 * max(seconds):.1f})  x {ratio:.2f}'
      )
  import torch

  machine = {'machine': platform.machine(), 'cores': os.cpu_count(), 'torch': torch.__version__, **report.versions()}
  print(f'\n{machine}')
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps({'depths': found, **machine}, indent=2) + '\n')


if __name__ == '__main__':
  app.run(main)
