"""One run of dnt's whole loop, timed, and the bare jitted step that it runs."""

import pathlib
import tempfile
import time
from collections.abc import Callable
from unittest import mock

import jax
import ml_collections

from dnt import loop
from dnt.data import pipeline
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.training import datasets, experiment, open_options, precompile, record


def loop_laps(config: ml_collections.ConfigDict) -> dict[str, float]:
  """Returns seconds by what a run of the whole loop spent them on; nothing compiles while it trains."""
  prepare = precompile.Programs.prepare

  def prepare_and_wait(self, state, step):
    prepare(self, state, step)
    for requested in self._requested.values():
      requested.result()

  with tempfile.TemporaryDirectory() as workdir, mock.patch.object(precompile.Programs, 'prepare', prepare_and_wait):
    return loop.train(config, pathlib.Path(workdir), record.Clock(time.monotonic()), 'benchmark')['seconds']


def loop_seconds(config: ml_collections.ConfigDict) -> float:
  """Returns the seconds of one run of the whole loop, without set-up, compilation and evaluation."""
  laps = loop_laps(config)
  return laps['train'] + laps['checkpoint']


def make_bare(config: ml_collections.ConfigDict) -> Callable[[], float]:
  """Returns a function that times as many bare steps as a run has."""
  mesh = mesh_lib.make_mesh(config.mesh)
  data = datasets.load(config, ())
  run = experiment.make(open_options.resolve(config, data), data.spec)
  loader = pipeline.make_train_loader(run.config, data.train, mesh)
  step = compile_lib.jit(
    lambda state, arrays: run.phases[0].train_step(state, loader.batch_at(arrays, state.step)), donate_argnums=0
  )

  def fresh():
    state = run.make_state(run.init_variables())
    return mesh_lib.place(state, mesh_lib.parameter_shardings(mesh, state))

  arrays = loader.arrays(0, 1)
  jax.block_until_ready(step(fresh(), arrays))

  def seconds() -> float:
    state = jax.block_until_ready(fresh())
    start = time.monotonic()
    for index in range(config.train.steps):
      state, metrics = step(state, loader.arrays(index, 1))
    jax.block_until_ready((state, metrics))
    return time.monotonic() - start

  return seconds
