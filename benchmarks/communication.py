"""Bytes that a train step communicates: in the program that runs, in its rehearsal, by algebra, and on the wire.

  unshare -n sh -c 'ip link set lo up && python -m benchmarks.communication'

A ResNet-8 trains on the digits, data parallel and with fsdp, on CPU devices of one process and on processes of one
device each. What the processes send in a step is what the loopback interface sends while they train. `unshare` (which
needs root) gives this program an interface of its own; without it, other traffic of the machine counts too.
"""

import contextlib
import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

import jax
import numpy as np
from absl import app, flags

from dnt import config as schema
from dnt import trees
from dnt.data import pipeline
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import multihost
from dnt.rehearsal import hlo, programs, targets
from dnt.reporting import tables
from dnt.training import datasets, experiment, initialize, open_options, precompile

STEPS = 50  # over which the interface is read; those before them open the connections
SETTINGS = tuple(itertools.product(('data parallel', 'fsdp'), ('global', 'device')))
SHARES = ((1, 2), (1, 4), (1, 8), (2, 1), (4, 1))  # processes and devices of each
PLACE = flags.DEFINE_string('place', '', 'Of a process of this program: coordinator, processes and its own number.')


def make_config(setting: tuple[str, str], devices: int) -> Any:
  config = schema.default()
  config.data.source, config.data.augment = 'digits', 'none'
  config.model.update({'name': 'resnet', 'depth': 8, 'norm_sync': setting[1]})
  config.mesh.fsdp = devices if setting[0] == 'fsdp' else 1
  config.train.batch_size, config.train.steps = 64, 2 * STEPS
  config.eval.splits, config.checkpoint.best_metric, config.telemetry.every = ('test',), '', '0'
  return config


def sent_bytes() -> int:
  """What the loopback interface has sent so far."""
  lines = pathlib.Path('/proc/net/dev').read_text().splitlines()
  (line,) = (line for line in lines if line.strip().startswith('lo:'))
  return int(line.split(':')[1].split()[8])


def summed(costs: hlo.Costs) -> dict[str, float]:
  """Bytes by kind of collective, and `sent`, what each device sends if they form a ring."""
  found = {'sent': sum(each.times * each.sent for each in costs.collectives)}
  for each in costs.collectives:
    found[each.kind] = found.get(each.kind, 0) + each.times * each.total
  return found


def train(setting: tuple[str, str]) -> dict[str, Any]:
  """Trains on all devices of all processes; returns what the step's program and the interface say."""
  config = make_config(setting, jax.device_count())
  data = datasets.load(config, config.eval.splits)
  run = experiment.make(open_options.resolve(config, data), data.spec)
  mesh, phase = mesh_lib.make_mesh(config.mesh), run.phases[0]
  state = initialize.begin(run, mesh, run.init_variables())
  sizes = [leaf.size for leaf in trees.flatten(state.params).values()]
  numbers = {'parameters': sum(sizes), 'statistics': trees.count(state.batch_stats)}
  numbers['split'] = sum(size for size in sizes if size >= mesh_lib.SMALLEST_SPLIT_LEAF)
  with contextlib.closing(pipeline.make_train_loader(run.config, data.train, mesh)) as loader:
    program = compile_lib.ahead(*precompile.train_program(run, mesh, loader, precompile.PLAIN, phase, state))
    one, counts = mesh_lib.place(np.int32(1), mesh_lib.replicated(mesh)), []
    for step in range(2 * STEPS):
      if step in (STEPS, 2 * STEPS - 1):
        multihost.barrier(f'{step}')
        counts.append(sent_bytes())
        multihost.barrier(f'{step} is read')
      state, metrics = program(state, loader.arrays(step, 1), one)
      jax.block_until_ready((state, metrics))
  numbers['wire'] = (counts[1] - counts[0]) / (STEPS - 1)
  return {**numbers, **summed(hlo.measure(program.as_text(), mesh.size))}


def serve() -> None:
  """Trains with each setting as one of several processes, or alone; the lead prints what it found."""
  coordinator, processes, number = PLACE.value.split(',')
  if int(processes) > 1:
    multihost.initialize(coordinator, int(processes), int(number), stops_itself=False)
  found = [train(setting) for setting in SETTINGS]
  if multihost.is_lead():
    print(json.dumps(found))
  if int(processes) > 1:
    multihost.part()


def run(processes: int, devices: int) -> list[dict[str, Any]]:
  """Starts the processes; returns what the first one found with each setting."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    coordinator = f'127.0.0.1:{free.getsockname()[1]}'
  forced = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
  command = [sys.executable, '-m', 'benchmarks.communication']
  running = [
    subprocess.Popen(
      [*command, f'--place={coordinator},{processes},{number}'],
      env={**os.environ, **forced},
      stdout=subprocess.PIPE,
      text=True,
    )
    for number in range(processes)
  ]
  outputs = [process.communicate()[0] for process in running]
  if any(process.returncode for process in running):
    raise RuntimeError(f'{processes} processes ended with {[process.returncode for process in running]}')
  return json.loads(outputs[0].splitlines()[-1])


def rehearse(setting: tuple[str, str], devices: int) -> dict[str, float]:
  """What a rehearsal says of the train step."""
  (target,) = targets.parse([f'cpu:{devices}'])
  config = make_config(setting, devices)
  made = programs.make(config, datasets.load(config, config.eval.splits), target)
  program = programs.compile_train(made, precompile.PLAIN, made.run.phases[0])
  return summed(hlo.measure(program.text, devices))


def main(_):
  if PLACE.value:
    serve()
    return
  targets.prepare(targets.parse(['cpu:8']))
  steps = [['parameters', 'norm_sync', 'processes x devices', 'kind', 'program', 'rehearsal', 'algebra']]
  wire = [['parameters', 'norm_sync', 'processes', 'sent in a ring', 'on the wire', 'ratio']]
  for processes, devices in SHARES:
    count = processes * devices
    for setting, found in zip(SETTINGS, run(processes, devices), strict=True):
      said = rehearse(setting, count)
      # Gradients and statistics are summed, with loss and accuracy; what is split is gathered where it is used.
      algebra = {'all-reduce': 4 * (found['parameters'] + found['statistics'] + 2)}
      algebra |= {'all-gather': 4 * found['split']} if setting[0] == 'fsdp' else {}
      for kind in sorted({*hlo.COLLECTIVES} & {*found, *said, *algebra}):
        cells = [f'{figures.get(kind, 0):,}' for figures in (found, said, algebra)]
        steps.append([*setting, f'{processes} x {devices}', kind, *cells])
      if processes > 1:
        ring = processes * said['sent']
        wire.append([*setting, str(processes), f'{ring:,.0f}', f'{found["wire"]:,.0f}', f'{found["wire"] / ring:.3f}'])
  print(f'Bytes of the arrays of a step, on one device:\n\n{tables.markdown(steps)}')
  print(f'\nBytes that all processes send in a step:\n\n{tables.markdown(wire)}')


if __name__ == '__main__':
  app.run(main)
