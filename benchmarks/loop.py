"""dnt's whole loop against the bare jitted step that it runs, in turn: what logging, metrics and checkpoints cost.

  python -m benchmarks.loop [--json=FILE]

The loop's time is all of a run but for set-up, compilation and evaluation: dispatch, metrics, logging, checkpoints. The
bare step is the same function, compiled alone and called once a step, on the same resident pictures. Pictures are
synthetic, of the real size: the speed does not depend on what they show. What the loop would compile in the background
while it trains is compiled before, so that compilation, a cost of the start and not of the loop, is not timed.
"""

import json
import pathlib
import statistics
import tempfile
import time
from unittest import mock

from dnt.parallel import allocator

allocator.tune()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from absl import app, flags, logging  # noqa: E402

from configs import cifar_resnet20, digits_resnet20  # noqa: E402
from dnt import experiment, programs, record, report, train  # noqa: E402
from dnt.data import pipeline  # noqa: E402
from dnt.parallel import compile as compile_lib  # noqa: E402
from dnt.parallel import mesh as mesh_lib  # noqa: E402

ROUNDS = flags.DEFINE_integer('rounds', 5, 'Times that loop and bare step take turns.')
JSON = flags.DEFINE_string('json', None, 'File to write the figures to.')


def digits():
  config = digits_resnet20.get_config()
  config.train.steps = 200
  return config


def cifar():
  config = cifar_resnet20.get_config()
  config.data.source, config.data.synthetic_examples, config.data.image_size = 'synthetic', 10_000, 32
  config.train.steps = 60
  return config


CONFIGS = {'digits_resnet20': digits, 'cifar_resnet20': cifar}


def loop_seconds(config) -> float:
  """Of one run of the whole loop, without set-up, compilation and evaluation."""
  ahead = programs.Programs.ahead

  def ahead_and_wait(self, shapes, step):
    ahead(self, shapes, step)
    for asked in self._asked.values():
      asked.result()

  with tempfile.TemporaryDirectory() as workdir, mock.patch.object(programs.Programs, 'ahead', ahead_and_wait):
    seconds = train.train(config, pathlib.Path(workdir), record.Clock(time.monotonic()), 'benchmark')['seconds']
  return seconds['train'] + seconds['checkpoint']


def make_bare(config):
  """A function that times as many bare steps as a run has."""
  mesh = mesh_lib.make_mesh(config.mesh)
  data = experiment.load_data(config, ())
  run = experiment.make(experiment.resolve(config, data), data.spec)
  feed = pipeline.make_train_feed(run.config, data.train, mesh)
  step = compile_lib.jit(
    lambda state, arrays: run.stages[0].train_step(state, feed.batch_at(arrays, state.step)), donate_argnums=0
  )

  def fresh():
    state = run.make_state(run.init_variables())
    return mesh_lib.place(state, mesh_lib.parameter_shardings(mesh, state))

  arrays = feed.arrays(0, 1)
  jax.block_until_ready(step(fresh(), arrays))

  def seconds() -> float:
    state = jax.block_until_ready(fresh())
    start = time.monotonic()
    for index in range(config.train.steps):
      state, metrics = step(state, feed.arrays(index, 1))
    jax.block_until_ready((state, metrics))
    return time.monotonic() - start

  return seconds


def race(name: str, config) -> dict[str, str | float]:
  """Loop and bare step in turn: images a second of each, and the ratio of neighbouring turns."""
  bare = make_bare(config)
  loop_seconds(config), bare()  # warm-up: caches, allocator
  pairs = [(loop_seconds(config), bare()) for _ in range(ROUNDS.value)]
  images = config.train.steps * config.train.batch_size
  loop, alone = (images / np.array(column) for column in zip(*pairs, strict=True))
  ratios = loop / alone
  return {
    'config': name,
    'loop_images_per_second': statistics.median(loop),
    'bare_images_per_second': statistics.median(alone),
    'ratio_median': statistics.median(ratios),
    'ratio_min': min(ratios),
    'ratio_max': max(ratios),
  }


def main(_):
  logging.set_verbosity(logging.ERROR)  # as the programs do
  with tempfile.TemporaryDirectory() as cache:
    compile_lib.enable_cache(pathlib.Path(cache))
    rows = [race(name, make_config()) for name, make_config in CONFIGS.items()]
  print(f'\n{"config":18}  {"loop":>8}  {"bare step":>9}  loop / bare (images/s; median of {ROUNDS.value}, min to max)')
  for row in rows:
    print(
      f'{row["config"]:18}  {row["loop_images_per_second"]:8.0f}  {row["bare_images_per_second"]:9.0f}  '
      f'{row["ratio_median"]:.3f} ({row["ratio_min"]:.3f} to {row["ratio_max"]:.3f})'
    )
  if JSON.value:
    found = {'rows': rows, 'versions': report.versions(), 'device': jax.devices()[0].device_kind}
    pathlib.Path(JSON.value).write_text(json.dumps(found, indent=2) + '\n')


if __name__ == '__main__':
  app.run(main)
