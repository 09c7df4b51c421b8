"""What telemetry costs a run at its default period: the loop's steps with one watched step among them, and without.

  python -m benchmarks.telemetry [--json=FILE]

Turns of a few steps, as the loop takes them, with and without in turn: a watched turn has a dispatch more, the watched
step, its line in metrics.jsonl and TensorBoard, and its warnings. The cost of one watched step is the median of the
differences of neighbouring turns, also given as a fraction of the time of all steps of a period. Apart from it: what
comes once a run, the compilation of the watched program (cold) and the plot. Images are synthetic, of the real size.
"""

import contextlib
import io
import json
import pathlib
import statistics
import tempfile
import time

from dnt.parallel.cpu import allocator

allocator.tune()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from absl import app, flags, logging  # noqa: E402

from benchmarks import loop  # noqa: E402
from dnt.data import pipeline  # noqa: E402
from dnt.parallel import compile as compile_lib  # noqa: E402
from dnt.parallel import mesh as mesh_lib  # noqa: E402
from dnt.reporting import metrics, plots  # noqa: E402
from dnt.training import datasets, experiment, open_options, record, report, steps  # noqa: E402

PAIRS = flags.DEFINE_integer('pairs', 40, 'Pairs of turns, with and without.', 4)
STEPS = flags.DEFINE_integer('steps', 4, 'Steps of a turn.', 2)


def seconds(fn):
  """What `fn` returns, and how long it took."""
  start = time.monotonic()
  found = fn()
  return found, time.monotonic() - start


def make_turn(run, mesh, loader, rec, plain, watched=None):
  """A function that takes and records the steps of a turn, the last one with the program `watched` if there is one."""
  state, step = mesh_lib.place(run.make_state(run.init_variables()), mesh_lib.replicated(mesh)), 0

  def take(program, count):
    nonlocal state, step
    while count:
      taken = min(count, loader.max_steps(step))
      state, found = program(state, loader.arrays(step, taken), np.int32(taken))
      rec.add_training(step, taken, jax.device_get(found))
      step, count = step + taken, count - taken

  def turn():
    take(plain, STEPS.value - bool(watched))
    if watched:
      take(watched, 1)

  return turn


def measure(config):
  """Figures of one config, in seconds."""
  config.train.steps = 100_000  # more than are taken
  mesh = mesh_lib.make_mesh(config.mesh)
  data = datasets.load(config, ())
  run = experiment.make(open_options.resolve(config, data), data.spec)

  with (
    tempfile.TemporaryDirectory() as workdir,
    contextlib.ExitStack() as records,
    contextlib.redirect_stdout(io.StringIO()),
    contextlib.closing(pipeline.make_train_loader(run.config, data.train, mesh)) as loader,
  ):
    state = mesh_lib.place(run.make_state(run.init_variables()), mesh_lib.replicated(mesh))

    def compiled(train_step, longest):
      program = compile_lib.jit(steps.make_train_steps(train_step, loader.batch_at, longest), donate_argnums=0)
      return compile_lib.ahead(program, state, loader.shapes(), np.int32(1))

    plain, plain_compilation = seconds(lambda: compiled(run.phases[0].train_step, config.train.steps_per_dispatch))
    watched, compilation = seconds(lambda: compiled(run.phases[0].telemetry_step, 1))
    places, turns = [pathlib.Path(workdir) / name for name in ('without', 'with')], []
    for place, program in zip(places, (None, watched), strict=True):
      place.mkdir()
      rec = records.enter_context(record.Record(run, place, 0, {}, record.Clock(time.monotonic())))
      turns.append(make_turn(run, mesh, loader, rec, plain, program))
    for turn in turns * 2:  # warm-up
      turn()
    pairs = []
    for number in range(PAIRS.value):
      order = (0, 1) if number % 2 else (1, 0)  # neither is always the first
      took = {at: seconds(turns[at])[1] for at in order}
      pairs.append((took[0], took[1]))
    lines, names = metrics.read(places[1]), [row.entry.name for row in run.table]
    _, image = seconds(lambda: plots.png(plots.telemetry(lines, names)))

  step = statistics.median(without for without, _ in pairs) / STEPS.value
  period = run.every(config.telemetry.every).period
  fractions = sorted((after - before) / (period * step) for before, after in pairs)
  return {
    'step': step,
    'period': period,
    'watched_step': statistics.median(after - before for before, after in pairs) + step,
    'fraction': statistics.median(fractions),
    'fraction_quartiles': statistics.quantiles(fractions)[::2],
    'compilation': compilation,
    'plain_compilation': plain_compilation,
    'image': image,
    'pairs': pairs,
  }


def main(_):
  logging.set_verbosity(logging.ERROR)
  rows = [{'config': name, **measure(make_config())} for name, make_config in loop.CONFIGS.items()]
  print(
    'config           plain step  watched step  period  fraction of the run (quartiles)  once a run: compilation, plot'
  )
  for row in rows:
    low, high = row['fraction_quartiles']
    print(
      f'{row["config"]:15}  {1e3 * row["step"]:7.1f} ms  {1e3 * row["watched_step"]:9.1f} ms  {row["period"]:6.0f}  '
      f'{100 * row["fraction"]:.2f} % ({100 * low:.2f} to {100 * high:.2f} %)  '
      f'{row["compilation"]:.1f} s (plain step {row["plain_compilation"]:.1f} s), {row["image"]:.1f} s'
    )
  if loop.JSON.value:
    found = {'rows': rows, 'versions': report.versions(), 'device': jax.devices()[0].device_kind}
    pathlib.Path(loop.JSON.value).write_text(json.dumps(found, indent=2) + '\n')


if __name__ == '__main__':
  app.run(main)
