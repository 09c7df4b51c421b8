"""Exact evaluation of any split: every example counts once, whatever the batch size, devices and processes."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from dnt import checkpoints, experiment, files, initial
from dnt.data import examples, pipeline
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import multihost


class Result(NamedTuple):
  """What an evaluation found.

  Attributes:
    metrics: `<split>/loss`, `<split>/accuracy`, with many classes `<split>/top5_accuracy`.
    confusion: int [classes, classes], true class by predicted, by split.
  """

  metrics: dict[str, float]
  confusion: dict[str, np.ndarray]


class Evaluator:
  """Evaluates variables on the splits of a run; programs are compiled once, at their first use."""

  def __init__(self, run: experiment.Experiment, mesh: Mesh, splits: Mapping[str, examples.Examples]):
    self._run, self._mesh, self._splits = run, mesh, splits
    self._feeds: dict[str, Any] = {}
    self._programs: dict[str, Any] = {}

  def __enter__(self) -> 'Evaluator':
    return self

  def __exit__(self, *_: object) -> None:
    for feed in self._feeds.values():
      feed.close()

  def __call__(self, variables: Mapping[str, Any], suffix: str = '') -> Result:
    """Evaluates every split.

    Args:
      variables: `params` and `batch_stats`, on the mesh.
      suffix: of the splits' names in the result (`'_ema'`).
    """
    metrics, confusion = {}, {}
    for split in self._splits:
      sums = jax.device_get(self._sums(split, variables))
      count = int(sums['confusion'].sum())
      metrics[f'{split}{suffix}/loss'] = float(sums['loss']) / count
      metrics[f'{split}{suffix}/accuracy'] = int(np.trace(sums['confusion'])) / count
      if 'top5' in sums:
        metrics[f'{split}{suffix}/top5_accuracy'] = int(sums['top5']) / count
      confusion[f'{split}{suffix}'] = sums['confusion']
    return Result(metrics, confusion)

  def prepare(self, variables: Mapping[str, Any]) -> None:
    """Compiles what is not compiled yet."""
    for split in self._splits:
      self._program(split, variables)

  def _sums(self, split: str, variables: Mapping[str, Any]) -> dict[str, jax.Array]:
    program, feed, total = self._program(split, variables), self._feeds[split], None
    step = 0
    while step < feed.steps:
      count = min(feed.max_steps(step), feed.steps - step)
      sums = program(variables, feed.arrays(step, count), np.int32(step), np.int32(count))
      total = sums if total is None else jax.tree.map(jnp.add, total, sums)
      step += count
    return total

  def _program(self, split: str, variables: Mapping[str, Any]) -> Any:
    if split not in self._programs:
      feed = self._feeds[split] = pipeline.make_eval_feed(self._run.config, self._splits[split], self._mesh)
      eval_step = self._run.eval_step

      def sums(variables, arrays, start, count):
        shapes = jax.eval_shape(lambda: eval_step(variables, feed.batch_at(arrays, start)))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def body(step, total):
          return jax.tree.map(jnp.add, total, eval_step(variables, feed.batch_at(arrays, step)))

        return jax.lax.fori_loop(start, start + count, body, zeros)

      program = compile_lib.jit(sums, out_shardings=mesh_lib.replicated(self._mesh))
      count = min(feed.max_steps(0), feed.steps)
      self._programs[split] = program.lower(variables, feed.arrays(0, count), np.int32(0), np.int32(count)).compile()
    return self._programs[split]


def variables_of(state: Any) -> dict[str, dict[str, Any]]:
  """What there is to evaluate in a state or in loaded parameters, by the suffix of its metrics."""
  current = {'': {'params': state.params, 'batch_stats': state.batch_stats}}
  return current | ({'_ema': state.ema} if state.ema else {})


def evaluate_all(evaluator: Evaluator, variables: Mapping[str, Mapping[str, Any]]) -> Result:
  """Evaluates each of `variables_of`."""
  metrics, confusion = {}, {}
  for suffix, each in variables.items():
    result = evaluator(each, suffix)
    metrics |= result.metrics
    confusion |= result.confusion
  return Result(metrics, confusion)


def evaluate(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Evaluates a run's newest checkpoint on `config.eval.splits` and writes `evaluation.json`.

  Returns:
    `step` and the metrics.

  Raises:
    errors.InputError: no checkpoint in the workdir, one of another network, or data that does not fit.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  mesh_lib.check_batch('config.eval.batch_size', config.eval.batch_size, mesh)
  loaded = checkpoints.load_parameters(workdir)
  data = experiment.load_data(config, config.eval.splits)
  run = experiment.make(experiment.resolve(config, data), data.spec)
  variables = {}
  for suffix, each in variables_of(loaded).items():
    matched = initial.match(run, each, str(workdir))
    variables[suffix] = mesh_lib.place(matched, mesh_lib.parameter_shardings(mesh, matched))
  with Evaluator(run, mesh, data.evaluation) as evaluator:
    result = evaluate_all(evaluator, variables)
  summary = {'step': loaded.step, **result.metrics}
  if multihost.is_lead():
    confusion = {split: matrix.tolist() for split, matrix in result.confusion.items()}
    classes = list(data.spec.class_names)
    files.write_json(workdir / 'evaluation.json', {**summary, 'class_names': classes, 'confusion': confusion})
  return summary
