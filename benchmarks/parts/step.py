"""Train steps of ResNets beside PyTorch's compiled ones, each contender in a process of its own; they take turns.

A step is forward, backward, BatchNorm's statistics and SGD with momentum and weight decay, on a batch that is on the
device. A turn starts its steps one after another and waits for the last one, as training does. bfloat16: dnt's compute
dtype and torch's autocast; tf32: float32 arrays, whose products may be rounded to TF32 (jax's default on GPUs, which
both get); float32: no such rounding. PyTorch runs channels-last, with cuDNN's autotuner and the fused optimizer. Model
FLOPs are those of dnt's own count of the forward pass (2 for each multiply-add of convolutions and dense layers), times
3.
"""

import contextlib
import functools
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import racing
from benchmarks.parts import options as options_lib
from dnt.parallel import chips

AIM = 0.9  # of torch.compile's step rate
ROUNDS = 7


class Race(NamedTuple):
  """Describes the networks that are raced.

  Attributes:
    depth: of the network; 50 is the ImageNet network.
    precision: of `chips.PRECISIONS`.
    batch: images per step.
    size: pixels per side.
    steps: steps per turn.
  """

  depth: int
  precision: str
  batch: int
  size: int
  steps: int

  @property
  def name(self) -> str:
    return f'ResNet-{self.depth}, {self.precision}'


# The most telling first: where time is over, the rest is left out.
RACES = (
  Race(20, 'tf32', 128, 32, 50),
  Race(50, 'bfloat16', 256, 224, 10),
  Race(56, 'tf32', 128, 32, 50),
  Race(20, 'float32', 128, 32, 50),
  Race(56, 'float32', 128, 32, 50),
)
TINY = (Race(8, 'float32', 8, 16, 2),)


def images(race: Race):
  import numpy as np

  rng = np.random.default_rng(0)
  classes = 1000 if race.depth == 50 else 10
  image = rng.integers(0, 256, (race.batch, race.size, race.size, 3), np.uint8)
  return image, rng.integers(0, classes, race.batch).astype(np.int32), classes


def dnt_config(race: Race):
  from dnt import config as schema

  config = schema.default()
  config.model.depth = race.depth
  config.train.steps, config.train.batch_size = 100_000, race.batch
  config.data.mean, config.data.std = (0.5,) * 3, (0.25,) * 3
  if race.depth == 50:
    config.model.stem = 'imagenet'
  if race.precision == 'bfloat16':
    config.model.dtype = 'bfloat16'
  return config


def dnt_contender(race: Race) -> dict[str, Callable[[], Any]]:
  """dnt's own train step, built as every run builds it."""
  import jax
  import numpy as np

  from dnt.parallel import compile as compile_lib
  from dnt.reporting import memory
  from dnt.training import datasets, experiment

  if race.precision == 'float32':
    jax.config.update('jax_default_matmul_precision', 'highest')
  image, label, classes = images(race)
  config = dnt_config(race)
  spec = datasets.Spec(50_000, (race.size, race.size, 3), tuple(map(str, range(classes))))
  run = experiment.make(config, spec)
  batch = {'image': image, 'label': label, 'epoch': np.zeros_like(label), 'position': np.arange(len(label))}
  state, batch = jax.device_put((run.make_state(run.init_variables()), batch))
  program = None

  def take(count):
    nonlocal state
    for _ in range(count):
      state, metrics = program(state, batch)
    return float(metrics['loss'])

  def warm():
    nonlocal program
    program = compile_lib.ahead(compile_lib.jit(run.phases[0].train_step, donate_argnums=0), state, batch)
    take(3)

  def about():
    planned = program.memory_analysis()
    sizes = [planned.temp_size_in_bytes, planned.argument_size_in_bytes] if planned else []
    return {
      'flops': 3 * race.batch * sum(row.flops for row in run.table),
      'peak_bytes': memory.peak()['device'],
      'program_bytes': sum(sizes) or None,
      'device': options_lib.device(),
    }

  return {'warm': timed(warm), 'turn': functools.partial(turn, race, take), 'about': about}


def torch_contender(race: Race, mode: str) -> dict[str, Callable[[], Any]]:
  """The same network and step in PyTorch, compiled."""
  import torch
  from torch.nn import functional as F

  from benchmarks import torch_nets

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.backends.cudnn.benchmark = True
  torch.backends.cudnn.allow_tf32 = race.precision != 'float32'
  torch.set_float32_matmul_precision('highest' if race.precision == 'float32' else 'high')
  image, label, _ = images(race)
  channels_last = {'device': device, 'memory_format': torch.channels_last}
  model = torch_nets.resnet50() if race.depth == 50 else torch_nets.cifar_resnet(race.depth)
  model = model.to(**channels_last)
  image = torch.from_numpy(image).permute(0, 3, 1, 2).to(**channels_last)
  label = torch.from_numpy(label).long().to(device)
  optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-4, fused=device == 'cuda')

  def forward(image, label):
    cast = torch.autocast(device, torch.bfloat16) if race.precision == 'bfloat16' else contextlib.nullcontext()
    with cast:
      return F.cross_entropy(model((image.float() / 255 - 0.5) / 0.25), label)

  # Without a GPU this is a test of the benchmark alone, which needs no C++ compiler.
  compiled = torch.compile(forward, mode=mode) if device == 'cuda' else torch.compile(forward, backend='aot_eager')

  def take(count):
    for _ in range(count):
      optimizer.zero_grad()
      loss = compiled(image, label)
      loss.backward()
      optimizer.step()
    return loss.item()

  def about():
    return {'peak_bytes': torch.cuda.max_memory_allocated() if device == 'cuda' else None}

  return {'warm': timed(lambda: take(5)), 'turn': functools.partial(turn, race, take), 'about': about}


def timed(fn: Callable[[], Any]) -> Callable[[], float]:
  def seconds():
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start

  return seconds


def turn(race: Race, take: Callable[[int], Any]) -> float:
  """Seconds a step."""
  return timed(lambda: take(race.steps))() / race.steps


def run_race(race: Race, modes: tuple[str, ...], rounds: int) -> dict[str, Any]:
  """Each contender's figures, and the ratio of their step rates."""
  names = ['dnt', *(f'torch.compile, {mode}' for mode in modes)]
  commands = {
    name: [sys.executable, '-m', 'benchmarks.parts.step', json.dumps(race), name.removeprefix('torch.compile, ')]
    for name in names
  }
  # Both are on one device: neither may take all of its memory.
  with racing.started(commands, {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}) as contenders:
    # One after another: compilers choose by what they measure.
    warm = {name: contender.ask('warm') for name, contender in contenders.items()}
    asked = {name: functools.partial(contender.ask, racing.TURN) for name, contender in contenders.items()}
    turns = racing.take_turns(asked, rounds)
    about = {name: contender.ask('about') for name, contender in contenders.items()}
  flops, device = about['dnt'].pop('flops'), about['dnt'].pop('device')
  kind = device['kind']
  found = {**race._asdict(), 'rounds': rounds, 'model_flops': flops, 'flops_are': '3 x forward, by dnt.models.depth'}
  found['peak_flops_per_second'] = chips.flops_per_second(kind, race.precision)
  found['contenders'] = {}
  for name in names:
    median = statistics.median(turns[name])
    found['contenders'][name] = {
      **racing.spread(turns[name]),
      'images_per_second': race.batch / median,
      'mfu': chips.utilization(flops, median, kind, race.precision),
      'warm_seconds': warm[name],
      **about[name],
    }
  peers = names[1:]
  best = min(peers, key=lambda name: statistics.median(turns[name]), default=None)
  ratio = racing.ratio(turns['dnt'], turns[best]) if best else None
  return {**found, 'peer': best, 'ratio': ratio, 'aim': AIM, 'device': device}


def run(options: options_lib.Options, save: Callable[[Any], None]) -> None:
  """Saves after every race; leaves races out that would take longer than what is left."""
  found: dict[str, Any] = {'races': {}, 'left_out': {}}
  modes = options.torch_modes
  if importlib.util.find_spec('torch') is None:
    modes, found['torch'] = (), 'skipped: torch is not installed'
  longest = 0.0
  for race in TINY if options.tiny else RACES:
    if longest and options.left < 1.1 * longest:
      found['left_out'][race.name] = f'{options.left:.0f} s left, and a race took up to {longest:.0f} s'
      continue
    start = time.monotonic()
    rounds = 2 if options.tiny else ROUNDS
    try:
      raced = run_race(race, modes, rounds)
    except RuntimeError as error:
      if not str(error).startswith('torch'):
        found['left_out'][race.name] = str(error)
        raced = None
      else:  # dnt's own figures are of use without it, and it would hardly do better in the next race
        modes, found['torch'] = (), f'left out from {race.name} on: {error}'
        raced = run_race(race, modes, rounds)
    if raced:
      found['device'] = raced.pop('device')
      found['races'][race.name] = raced
    longest = max(longest, time.monotonic() - start)
    save(found)
  if not found['races']:
    raise RuntimeError('; '.join(found['left_out'].values()))
  save(found)


def markdown(found: Any) -> str:
  rows = []
  for name, race in found['races'].items():
    for contender, each in race['contenders'].items():
      milliseconds = [1e3 * each[f'{kind}_seconds'] for kind in ('median', 'min', 'max')]
      rows.append(
        {
          'network, precision': name,
          'batch': str(race['batch']),
          'contender': contender,
          'ms a step': '{:.2f} ({:.2f} to {:.2f})'.format(*milliseconds),
          'images/s': f'{each["images_per_second"]:,.0f}',
          'MFU': options_lib.percent(each['mfu']),
          'peak memory': options_lib.gigabytes(each['peak_bytes']),
          'step rate of dnt / torch': options_lib.verdict(race['ratio'], AIM) if contender == 'dnt' else '',
        }
      )
  lines = [options_lib.table(rows)] if rows else []
  lines += [f'- left out: {name}: {reason}' for name, reason in found['left_out'].items()]
  return '\n'.join([*lines, *([f'- torch {found["torch"]}'] if 'torch' in found else [])])


def main() -> None:
  race, contender = Race(*json.loads(sys.argv[1])), sys.argv[2]
  if os.environ.get('JAX_PLATFORMS') == 'cpu':
    from dnt.parallel.cpu import allocator

    allocator.tune()
  racing.serve(**(dnt_contender(race) if contender == 'dnt' else torch_contender(race, contender)))


if __name__ == '__main__':
  main()
