"""Measures what each trick of `dnt.parallel.cpu` saves: runs with and without it take turns.

  python -m benchmarks.tricks [--tricks=barriers,options]

It measures a step of ResNet-20 (batch 128, 32x32, float32) inside a loop of several steps, as in a run. For background
compilation it measures a whole run of the default config with 100 steps and an empty compilation cache. Each contender
is a separate process; `DNT_CPU_WITHOUT` turns the trick off.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from benchmarks import racing
from dnt.parallel import cpu

TRICKS = flags.DEFINE_list('tricks', list(cpu.TRICKS), 'Tricks to measure.')
ROUNDS = flags.DEFINE_integer('rounds', 5, 'Number of turns of each contender.')
STEPS = flags.DEFINE_integer('steps', 2, 'Steps per turn.')
CONTENDER = flags.DEFINE_bool('contender', False, 'Used by the benchmark itself: serve one contender.')


def serve() -> None:
  """Answers each turn with the seconds per step."""
  from dnt.parallel.cpu import allocator

  allocator.tune()
  import jax
  import numpy as np

  from dnt import config as schema
  from dnt.data import pipeline
  from dnt.parallel import compile as compile_lib
  from dnt.parallel import mesh as mesh_lib
  from dnt.training import datasets, experiment, open_options, steps

  config = schema.default()
  config.data.source, config.data.synthetic_examples, config.data.image_size = 'synthetic', 1000, 32
  config.train.batch_size, config.train.steps = 128, 1000
  data = datasets.load(config, ())
  run = experiment.make(open_options.resolve(config, data), data.spec)
  mesh = mesh_lib.make_mesh(config.mesh)
  loader = pipeline.make_train_loader(run.config, data.train, mesh)
  program = steps.make_train_steps(run.phases[0].train_step, loader.batch_at, 10)
  program = compile_lib.jit(program, mesh, donate_argnums=0)
  state = mesh_lib.place(run.make_state(run.init_variables()), mesh_lib.replicated(mesh))

  def turn():
    nonlocal state
    start = time.perf_counter()
    state, metrics = program(state, loader.arrays(0, STEPS.value), np.int32(STEPS.value))
    jax.block_until_ready(metrics)
    return (time.perf_counter() - start) / STEPS.value

  turn()
  racing.serve(turn=turn)


def step_seconds(trick: str) -> dict[str, list[float]]:
  """Returns the seconds per step of each turn, with and without the trick."""
  command = [sys.executable, '-m', 'benchmarks.tricks', '--contender', f'--steps={STEPS.value}']
  with contextlib.ExitStack() as stack:
    contenders = {}
    for name, without in (('with', ''), ('without', trick)):
      contenders[name] = racing.Contender(name, command, {cpu.VARIABLE: without})
      stack.callback(contenders[name].close)
      contenders[name].wait()
    asked = {name: lambda contender=contender: contender.ask(racing.TURN) for name, contender in contenders.items()}
    return racing.take_turns(asked, ROUNDS.value)


def run_seconds(trick: str) -> dict[str, list[float]]:
  """Returns the seconds of each run, with and without the trick."""

  def turn(without):
    with tempfile.TemporaryDirectory() as folder:
      command = [sys.executable, '-m', 'dnt.main', f'--workdir={folder}/run', '--config.train.steps=100']
      environment = {**os.environ, cpu.VARIABLE: without, 'JAX_COMPILATION_CACHE_DIR': f'{folder}/cache'}
      start = time.perf_counter()
      subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
      return time.perf_counter() - start

  return racing.take_turns({'with': lambda: turn(''), 'without': lambda: turn(trick)}, ROUNDS.value)


def main(_):
  if CONTENDER.value:
    serve()
    return
  for trick in TRICKS.value:
    measure = run_seconds if trick == 'background' else step_seconds
    for name, seconds in measure(trick).items():
      spread = f'{statistics.median(seconds):7.3f} s ({min(seconds):.3f} to {max(seconds):.3f})'
      print(f'{trick:14} {name:8} {spread}', flush=True)


if __name__ == '__main__':
  app.run(main)
