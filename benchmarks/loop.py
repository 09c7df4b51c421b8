"""dnt's whole loop against the bare jitted step that it runs, in turn: what logging, metrics and checkpoints cost.

  python -m benchmarks.loop [--json=FILE]

The loop's time is all of a run but for set-up, compilation and evaluation: dispatch, metrics, logging, checkpoints. The
bare step is the same function, compiled alone and called once a step, on the same resident images. Images are
synthetic, of the real size: the speed does not depend on what they show. What the loop would compile in the background
while it trains is compiled before, so that compilation, a cost of the start and not of the loop, is not timed.
"""

import json
import pathlib
import statistics
import tempfile

from dnt.parallel.cpu import allocator

allocator.tune()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from absl import app, flags, logging  # noqa: E402

from benchmarks import looping  # noqa: E402
from configs import cifar_resnet20, digits_resnet20  # noqa: E402
from dnt.parallel import compile as compile_lib  # noqa: E402
from dnt.training import report  # noqa: E402

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


def race(name: str, config) -> dict[str, str | float]:
  """Loop and bare step in turn: images a second of each, and the ratio of neighbouring turns."""
  bare = looping.make_bare(config)
  looping.loop_seconds(config), bare()  # warm-up: caches, allocator
  pairs = [(looping.loop_seconds(config), bare()) for _ in range(ROUNDS.value)]
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
