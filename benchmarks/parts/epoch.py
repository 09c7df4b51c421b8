"""dnt's whole loop over CIFAR's number of augmented images on the device, in turn with the bare step.

The loop's time holds dispatch, metrics, telemetry and logging; the second time also holds its checkpoint. A run has
a few epochs and one checkpoint at its end, as often as the configs of CIFAR comparisons save. Images are synthetic.
"""

import pathlib
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks import racing
from benchmarks.parts import options as options_lib

AIM = 0.98  # of the bare step's rate
ROUNDS, EPOCHS = 5, 4
EXAMPLES = 50_000


def make_config(tiny: bool):
  from configs import cifar_resnet20

  config = cifar_resnet20.get_config()
  config.data.source, config.data.synthetic_examples, config.data.image_size = 'synthetic', EXAMPLES, 32
  config.train.steps = EPOCHS * EXAMPLES // config.train.batch_size
  config.checkpoint.every = config.eval.every = '0'
  if tiny:
    config.data.synthetic_examples, config.train.batch_size, config.train.steps = 64, 16, 4
    config.data.image_size, config.model.depth = 8, 8
  return config


def run(options: options_lib.Options, save: Callable[[Any], None]) -> None:
  from benchmarks import looping

  config = make_config(options.tiny)
  with tempfile.TemporaryDirectory(dir=pathlib.Path(options.work)) as folder:
    tempfile.tempdir = folder  # runs are written beside what else may be used again, and do not outlive it
    bare = looping.make_bare(config)
    looping.loop_laps(config), bare()  # compiled, and the allocator has what it needs
    laps, alone = [], []
    for done in range(1 if options.tiny else ROUNDS):
      if done and options.left < 10:
        break
      laps.append(looping.loop_laps(config))
      alone.append(bare())
      save(figures(config, laps, alone) | {'device': options_lib.device()})
    tempfile.tempdir = None


def figures(config: Any, laps: list[dict[str, float]], alone: list[float]) -> dict[str, Any]:
  images = config.train.steps * config.train.batch_size
  loop, saved = [lap['train'] for lap in laps], [lap['train'] + lap['checkpoint'] for lap in laps]
  return {
    'examples': config.data.synthetic_examples,
    'epochs': images / config.data.synthetic_examples,
    'rounds': len(laps),
    'loop_images_per_second': images / statistics.median(loop),
    'bare_images_per_second': images / statistics.median(alone),
    'ratio': racing.ratio(loop, alone),
    'ratios': [other / own for own, other in zip(loop, alone, strict=True)],
    'ratio_with_checkpoint': racing.ratio(saved, alone),
    'seconds_an_epoch': statistics.median(loop) * config.data.synthetic_examples / images,
    'aim': AIM,
  }


def markdown(found: Any) -> str:
  least, most = min(found['ratios']), max(found['ratios'])
  row = {
    'images x epochs': f'{found["examples"]:,} x {found["epochs"]:.1f}',
    'loop, images/s': f'{found["loop_images_per_second"]:,.0f}',
    'bare step, images/s': f'{found["bare_images_per_second"]:,.0f}',
    'loop / bare': f'{options_lib.verdict(found["ratio"], AIM)}, {least:.2f} to {most:.2f}',
    'with the checkpoint': f'{found["ratio_with_checkpoint"]:.2f}',
    's an epoch': f'{found["seconds_an_epoch"]:.2f}',
  }
  return options_lib.table([row])
