"""Exact evaluation of any split: every example counts once, whatever the batch size, devices and processes."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from dnt import checkpoints, experiment, files, initial
from dnt.data import examples, pipeline
from dnt.models import depth
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


class Sums:
  """Sums over one split of what a step finds in each of its batches; compiled once, at its first use."""

  def __init__(self, step: Callable[[Any, pipeline.Batch], Any], feed: Any, mesh: Mesh):
    """Args: step: `(variables, batch) -> sums`, pure; feed: of `pipeline.make_eval_feed`, closed with this."""
    self._step, self._feed, self._mesh, self._program = step, feed, mesh, None

  def __call__(self, variables: Mapping[str, Any]) -> Any:
    """The sums over the whole split, on the host.

    Args:
      variables: `params` and `batch_stats`, on the mesh.
    """
    self.prepare(variables)
    step, total = 0, None
    while step < self._feed.steps:
      count = min(self._feed.max_steps(step), self._feed.steps - step)
      sums = self._program(variables, self._feed.arrays(step, count), np.int32(step), np.int32(count))
      total = sums if total is None else jax.tree.map(jnp.add, total, sums)
      step += count
    return jax.device_get(total)

  def prepare(self, variables: Mapping[str, Any]) -> None:
    """Compiles, if it is not done yet; shapes with shardings will do."""
    if self._program is None:
      program = compile_lib.jit(self._run, out_shardings=mesh_lib.replicated(self._mesh))
      self._program = program.lower(variables, self._feed.shapes(), np.int32(0), np.int32(1)).compile()

  def close(self) -> None:
    """Ends the feed."""
    self._feed.close()

  def _run(self, variables, arrays, start, count):
    shapes = jax.eval_shape(lambda: self._step(variables, self._feed.batch_at(arrays, start)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def body(step, total):
      return jax.tree.map(jnp.add, total, self._step(variables, self._feed.batch_at(arrays, step)))

    return jax.lax.fori_loop(start, start + count, body, zeros)


class Evaluator:
  """Evaluates variables on the splits of a run; programs are compiled once, at their first use."""

  def __init__(self, run: experiment.Experiment, mesh: Mesh, splits: Mapping[str, examples.Examples]):
    self._run, self._mesh, self._splits = run, mesh, splits
    self._sums: dict[str, Sums] = {}

  def __enter__(self) -> 'Evaluator':
    return self

  def __exit__(self, *_: object) -> None:
    for sums in self._sums.values():
      sums.close()

  def __call__(self, variables: Mapping[str, Any], suffix: str = '') -> Result:
    """Evaluates every split.

    Args:
      variables: `params` and `batch_stats`, on the mesh.
      suffix: of the splits' names in the result (`'_ema'`).
    """
    metrics, confusion = {}, {}
    for split in self._splits:
      sums = self._of(split)(variables)
      count = int(sums['confusion'].sum())
      metrics[f'{split}{suffix}/loss'] = float(sums['loss']) / count
      metrics[f'{split}{suffix}/accuracy'] = int(np.trace(sums['confusion'])) / count
      if 'top5' in sums:
        metrics[f'{split}{suffix}/top5_accuracy'] = int(sums['top5']) / count
      confusion[f'{split}{suffix}'] = sums['confusion']
    return Result(metrics, confusion)

  def prepare(self, variables: Mapping[str, Any]) -> None:
    """Compiles what is not compiled yet; shapes with shardings will do."""
    for split in self._splits:
      self._of(split).prepare(variables)

  def _of(self, split: str) -> Sums:
    if split not in self._sums:
      feed = pipeline.make_eval_feed(self._run.config, self._splits[split], self._mesh)
      self._sums[split] = Sums(self._run.eval_step, feed, self._mesh)
    return self._sums[split]


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


class Loaded(NamedTuple):
  """A trained run, ready to be looked at.

  Attributes:
    run: the experiment of the config.
    data: its training split, and those that were asked for.
    step: of the newest good checkpoint.
    variables: `params` and `batch_stats` on the mesh, as `variables_of` names them.
  """

  run: experiment.Experiment
  data: experiment.Data
  step: int
  variables: dict[str, dict[str, Any]]


def load(config: ml_collections.ConfigDict, workdir: pathlib.Path, mesh: Mesh, splits: Sequence[str]) -> Loaded:
  """Reads a run's newest checkpoint and the pictures to look at it with; nothing on disk is changed.

  Args:
    config: a validated config of the run.
    workdir: of the run.
    mesh: to place the variables on.
    splits: to read beside the training split.

  Raises:
    errors.InputError: no checkpoint in the workdir, one of another network, or data that does not fit.
  """
  mesh_lib.check_batch('config.eval.batch_size', config.eval.batch_size, mesh)
  loaded = checkpoints.load_parameters(workdir)
  data = experiment.load_data(config, splits)
  run = experiment.make(experiment.resolve(config, data), data.spec)
  trace, variables = depth.trace(run.model, data.spec.image_shape), {}
  for suffix, each in variables_of(loaded).items():
    matched = initial.match(trace, each, str(workdir))
    variables[suffix] = mesh_lib.place(matched, mesh_lib.parameter_shardings(mesh, matched))
  return Loaded(run, data, loaded.step, variables)


def evaluate(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Evaluates a run's newest checkpoint on `config.eval.splits` and writes `evaluation.json`.

  Returns:
    `step` and the metrics.

  Raises:
    errors.InputError: as `load` does.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  run, data, step, variables = load(config, workdir, mesh, config.eval.splits)
  with Evaluator(run, mesh, data.evaluation) as evaluator:
    result = evaluate_all(evaluator, variables)
  summary = {'step': step, **result.metrics}
  if multihost.is_lead():
    confusion = {split: matrix.tolist() for split, matrix in result.confusion.items()}
    classes = list(data.spec.class_names)
    files.write_json(workdir / 'evaluation.json', {**summary, 'class_names': classes, 'confusion': confusion})
  return summary
