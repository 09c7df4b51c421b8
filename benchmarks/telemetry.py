"""A training step that shows its telemetry against one that does not, in turn: what the default period costs a run.

  python -m benchmarks.telemetry [--json=FILE]

Both are compiled as the loop compiles them, one step a call, on the same synthetic pictures of the real size.
"""

import json
import pathlib
import statistics
import time

from dnt.parallel import allocator

allocator.tune()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from absl import app, flags, logging  # noqa: E402

from benchmarks import loop  # noqa: E402
from dnt import experiment, report, steps  # noqa: E402
from dnt.data import pipeline  # noqa: E402
from dnt.parallel import compile as compile_lib  # noqa: E402
from dnt.parallel import mesh as mesh_lib  # noqa: E402

STEPS = flags.DEFINE_integer('steps', 10, 'Steps of a turn.')


def make_turns(config):
  """Two functions that time a turn of steps, without and with telemetry."""
  mesh = mesh_lib.make_mesh(config.mesh)
  data = experiment.load_data(config, ())
  run = experiment.make(experiment.resolve(config, data), data.spec)
  feed = pipeline.make_train_feed(run.config, data.train, mesh)
  arrays = feed.arrays(0, 1)

  def make(train_step):
    step = compile_lib.jit(steps.make_train_steps(train_step, feed.batch_at, 1), donate_argnums=0)
    state = mesh_lib.place(run.make_state(run.init_variables()), mesh_lib.replicated(mesh))

    def turn() -> float:
      nonlocal state
      start = time.monotonic()
      for _ in range(STEPS.value):
        state, metrics = step(state, arrays, np.int32(1))
        jax.device_get(metrics)
      return time.monotonic() - start

    return turn

  return make(run.train_step), make(run.telemetry_step)


def main(_):
  logging.set_verbosity(logging.ERROR)
  rows = []
  for name, make_config in (('digits_resnet20', loop.digits), ('cifar_resnet20', loop.cifar)):
    config = make_config()
    plain, watched = make_turns(config)
    plain(), watched()
    turns = [(plain(), watched()) for _ in range(loop.ROUNDS.value)]
    ratio = statistics.median(after / before for before, after in turns)
    share = (ratio - 1) / float(config.telemetry.every)
    rows.append({'config': name, 'ratio': ratio, 'every': config.telemetry.every, 'share': share, 'turns': turns})
    print(
      f'{name:18} a watched step takes {ratio:.3f} of a plain one; every {config.telemetry.every}: {100 * share:.3f} %'
    )
  if loop.JSON.value:
    found = {'rows': rows, 'versions': report.versions(), 'device': jax.devices()[0].device_kind}
    pathlib.Path(loop.JSON.value).write_text(json.dumps(found, indent=2) + '\n')


if __name__ == '__main__':
  app.run(main)
