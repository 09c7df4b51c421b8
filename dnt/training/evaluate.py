"""Evaluates any split exactly: each example counts once, for any batch size and number of devices and processes."""

import contextlib
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dnt import checkpoints, errors, files
from dnt import workdir as workdir_lib
from dnt.checkpoints import format
from dnt.config import typed
from dnt.data import examples, pipeline
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import multihost
from dnt.reporting import confusion as confusion_lib
from dnt.reporting import metric_names, progress
from dnt.training import apart, budget, datasets, experiment, initialize, open_options, resume, scores
from dnt.weights import preprocessing, pretrained

TOGETHER = 4  # batches of one dispatch; a signal ends an evaluation between two dispatches


class UnreadableError(errors.InputError):
  """Raised in all of several processes if one of them cannot read an image, at the end of the pass over the split."""


class Result(NamedTuple):
  """Holds the result of an evaluation.

  Attributes:
    metrics: `<split>/loss`, `<split>/accuracy`, `<split>/balanced_accuracy`, `<split>/calibration_error`, and as far as
      `scores.why_not_measured` does not rule them out `<split>/top5_accuracy` and `<split>/auroc`, the mean over the
      classes that have one. If the loss is not finite, as a logit is not, the others are NaN.
    confusion: int [classes, classes], true class by predicted, by split; without the examples whose probabilities are
      not finite, which have no prediction.
    per_class: the result of `scores.per_class`, by split, over the examples in `confusion`.
  """

  metrics: dict[str, float]
  confusion: dict[str, np.ndarray]
  per_class: dict[str, dict[str, list[Any]]]


class Pass:
  """Runs an evaluation step over every batch of a split and sums or concatenates its outputs.

  The program is compiled once, at its first use.
  """

  def __init__(self, step: Callable[[Any, pipeline.Batch], tuple[Any, Any]], loader: Any, mesh: Mesh, what: str):
    """Prepares nothing yet.

    Args:
      step: `(variables, batch) -> (sums, rows)`, pure.
      loader: from `make_eval_loader`; closed by `close`.
      mesh: mesh whose devices share each batch.
      what: what is done with the images, for the status line: 'evaluated test'.
    """
    self._step, self._loader, self._mesh, self._program, self._what = step, loader, mesh, None, what

  def __call__(self, variables: Mapping[str, Any], between: Callable[[], None] = lambda: None) -> tuple[Any, Any]:
    """Returns the outputs of the step over the whole split, on every host.

    Args:
      variables: `params` and `batch_stats`, on the mesh.
      between: called before each dispatch, when the one before the last is done; an error that it raises ends the
        pass.

    Returns:
      The sums over all batches, and the concatenated rows, including the padding rows of the last batch.

    Raises:
      errors.InputError: an image cannot be read; an `UnreadableError` in each of several processes.
    """
    self.prepare(variables)
    assert self._program is not None  # `prepare` sets it
    step, total, earlier, parts, counts, problem = 0, None, None, [], [], None
    with contextlib.closing(progress.Count(self._what, self._loader.count)) as line:
      while step < self._loader.steps:
        jax.block_until_ready(earlier)  # what is dispatched cannot be ended
        if len(parts) > 1:
          parts[-2] = jax.device_get(parts[-2])  # rows of a whole split do not stay on the device
        between()
        line.update(sum(counts[:-1]) * self._loader.count // self._loader.steps)
        count = min(self._most(step), self._loader.steps - step)
        try:
          arrays = self._blank() if problem else self._loader.arrays(step, count)
        except errors.InputError as error:
          if multihost.is_single():
            raise
          problem, arrays = UnreadableError(str(error)), self._blank()  # the others wait for this process in each step
        places = mesh_lib.place((np.int32(step), np.int32(count)), mesh_lib.replicated(self._mesh))
        sums, rows = self._program(variables, arrays, *places)
        earlier, total = total, sums if total is None else jax.tree.map(jnp.add, total, sums)
        parts.append(rows)
        counts.append(count)
        step += count
    problem = multihost.agree(problem, (UnreadableError,))
    if problem is not None:
      raise problem
    total, parts = jax.device_get((total, parts))

    def joined(*leaves):
      return np.concatenate(
        [leaf[:count].reshape(-1, *leaf.shape[2:]) for leaf, count in zip(leaves, counts, strict=True)]
      )

    return total, jax.tree.map(joined, *parts)

  def _blank(self) -> Any:
    """Returns arrays of zeros like those of the loader."""
    shapes = self._loader.shapes()
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return mesh_lib.place(zeros, jax.tree.map(lambda leaf: leaf.sharding, shapes))

  def prepare(self, variables: Mapping[str, Any]) -> None:
    """Compiles the program if this has not happened yet. `variables` may be shapes with shardings."""
    if self._program is None:
      self._program = compile_lib.ahead(*self.program(variables))

  def program(self, variables: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the jitted program and its arguments or their shapes. `variables` may be shapes with shardings."""
    jitted = compile_lib.jit(self._run, self._mesh, out_shardings=mesh_lib.replicated(self._mesh))
    return jitted, variables, self._loader.shapes(), np.int32(0), np.int32(1)

  def close(self) -> None:
    """Closes the loader."""
    self._loader.close()

  def _most(self, step: int) -> int:
    return min(self._loader.max_steps(step), TOGETHER)

  def _run(self, variables, arrays, start, count):
    def measured(index):
      return self._step(variables, self._loader.batch_at(arrays, start + index))

    def body(index, carry):
      (total, kept), (sums, rows) = carry, measured(index)
      kept = jax.tree.map(lambda whole, part: jax.lax.dynamic_update_index_in_dim(whole, part, index, 0), kept, rows)
      return jax.tree.map(jnp.add, total, sums), kept

    sums, rows = jax.eval_shape(measured, 0)
    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), sums)
    longest = self._most(0)
    kept = jax.tree.map(lambda leaf: jnp.zeros((longest, *leaf.shape), leaf.dtype), rows)
    return jax.lax.fori_loop(0, count, body, (total, kept))


class Evaluator:
  """Evaluates variables on the splits of a run. Each program is compiled once, at its first use."""

  def __init__(self, run: experiment.Experiment, mesh: Mesh, splits: Mapping[str, examples.Examples]):
    self._run, self._mesh, self._splits = run, mesh, splits
    self._passes: dict[str, Pass] = {}
    self.between: Callable[[], None] = lambda: None  # see `Pass`

  def __enter__(self) -> 'Evaluator':
    return self

  def __exit__(self, *_: object) -> None:
    for each in self._passes.values():
      each.close()

  def __call__(self, variables: Mapping[str, Any], suffix: str = '', splits: Sequence[str] | None = None) -> Result:
    """Evaluates splits.

    Args:
      variables: `params` and `batch_stats`, on the mesh.
      suffix: appended to the names of the splits in the result (`'_ema'`).
      splits: the splits to evaluate; None: all.
    """
    metrics, confusion, per_class = {}, {}, {}
    for split in self._splits if splits is None else splits:
      sums, rows = self._of(split)(variables, self.between)
      name, count = f'{split}{suffix}', len(self._splits[split])
      found = {'accuracy': int(np.trace(sums['confusion'])) / count}
      found['balanced_accuracy'] = scores.balanced_accuracy(sums['confusion'])
      if 'top5' in sums:
        found['top5_accuracy'] = int(sums['top5']) / count
      found['calibration_error'] = scores.calibration_error(sums['calibration_gaps'], count)
      areas = np.full(len(sums['confusion']), np.nan)
      if rows:  # rows are in the order of the split, and padding rows come last
        areas = scores.auroc(rows['log_odds'][:count], rows['label'][:count])
      if not np.all(np.isnan(areas)):
        found['auroc'] = float(np.nanmean(areas))
      metrics[f'{name}/loss'] = loss = float(sums['loss']) / count
      known = math.isfinite(loss)
      metrics |= {f'{name}/{quantity}': value if known else math.nan for quantity, value in found.items()}
      confusion[name] = sums['confusion']
      per_class[name] = scores.per_class(sums['confusion'], areas)
    return Result(metrics, confusion, per_class)

  def prepare(self, variables: Mapping[str, Any]) -> None:
    """Compiles the programs that are not compiled yet. `variables` may be shapes with shardings."""
    for split in self._splits:
      self._of(split).prepare(variables)

  def program(self, variables: Mapping[str, Any], split: str) -> tuple[Any, ...]:
    """Returns the jitted program of a split and its arguments, as `Pass.program` does."""
    return self._of(split).program(variables)

  def _of(self, split: str) -> Pass:
    if split not in self._passes:
      source, step = self._splits[split], self._run.eval_step
      if not scores.has_auroc(source):
        step = _without_rows(step)
      loader = pipeline.make_eval_loader(self._run.config, source, self._mesh)
      self._passes[split] = Pass(step, loader, self._mesh, f'evaluated {split}')
    return self._passes[split]


def _without_rows(step: Callable[[Any, pipeline.Batch], tuple[Any, Any]]) -> Callable:
  def sums_alone(variables, batch):
    return step(variables, batch)[0], {}

  return sums_alone


def get_variables(state: Any) -> dict[str, dict[str, Any]]:
  """Returns the variables to evaluate of a state or of loaded parameters, by the suffix of their metrics."""
  current = {'': {'params': state.params, 'batch_stats': state.batch_stats}}
  return current | ({metric_names.AVERAGED: state.ema} if state.ema else {})


def evaluate_all(
  evaluator: Evaluator, variables: Mapping[str, Mapping[str, Any]], splits: Sequence[str] | None = None
) -> Result:
  """Evaluates all variables of `get_variables` on the splits (None: all)."""
  result = Result({}, {}, {})
  for suffix, each in variables.items():
    metrics, confusion, per_class = evaluator(each, suffix, splits)
    result = Result(result.metrics | metrics, result.confusion | confusion, result.per_class | per_class)
  return result


class Loaded(NamedTuple):
  """Holds a trained run that is ready for analysis.

  Attributes:
    run: the experiment of the config.
    data: its training split and the requested splits; of data apart from that of the run, only the latter.
    step: the step of the checkpoint.
    variables: `params` and `batch_stats` on the mesh, by the suffixes of `get_variables`.
  """

  run: experiment.Experiment
  data: datasets.Data
  step: int
  variables: dict[str, dict[str, Any]]


def load(
  config: typed.Config,
  workdir: pathlib.Path,
  mesh: Mesh,
  splits: Sequence[str] | None = None,
  checkpoint: str = checkpoints.NEWEST,
) -> Loaded:
  """Reads a checkpoint of a run and the images to analyze it with. It changes nothing on disk.

  The splits may be of data that the run was not trained on, see `apart`.

  Args:
    config: a validated config of the run.
    workdir: the workdir of the run.
    mesh: the mesh on which to place the variables.
    splits: the splits to read in addition to the training split; None: `config.eval.splits`.
    checkpoint: the checkpoint, see `pretrained.read_checkpoint`; `config.checkpoint.best_metric` ranks.

  Raises:
    errors.InputError: the workdir has no such checkpoint or one of another network, or the data does not fit.
  """
  mesh_lib.check_batch('config.eval.batch_size', config.eval.batch_size, mesh)
  loaded = pretrained.read_checkpoint(workdir, checkpoint, config.checkpoint.best_metric)
  trained = resume.of_meta(loaded.meta, workdir)
  config = resume.keep_open(config, trained)
  if trained:  # an evaluation takes what it leaves open from the run
    preprocessing.fill(config.data, preprocessing.of_run(trained.config.data))
  splits = config.eval.splits if splits is None else splits
  if splits and trained:
    config, data = apart.load(config, splits, workdir, trained, loaded.meta)
  else:
    data = datasets.load(config, splits, workdir)
  config = open_options.resolve(config, data)
  resume.check_network(config, trained, workdir)
  run = experiment.make(config, data.spec, trains=False)
  budget.check_evaluation(run, mesh)
  if data.weights:
    data.weights.release()  # they were read, if at all, to determine the network
  return Loaded(run, data, loaded.step, place(run, mesh, loaded, workdir))


def check_writable(workdir: pathlib.Path) -> None:
  """Refuses a workdir that cannot take the result of an analysis, before that is computed; all processes call it.

  Raises:
    errors.InputError: the lead cannot write to the folder.
  """

  def check():
    if reason := files.why_not_writable(workdir):
      raise errors.InputError(
        f'workdir {workdir} cannot be written ({reason}), and the result goes there; copy the run to a folder that can '
        'be written, and give that with --workdir'
      )

  multihost.on_lead(check)


def place(
  run: experiment.Experiment, mesh: Mesh, loaded: format.Parameters, workdir: pathlib.Path
) -> dict[str, dict[str, Any]]:
  """Returns the variables of a loaded checkpoint as `get_variables` does, in the model's layout, on the mesh."""
  variables = {}
  for suffix, each in get_variables(loaded).items():
    matched = initialize.match(run.trace, each, str(workdir))
    variables[suffix] = mesh_lib.place(matched, run.shardings(mesh, matched))
  return variables


def evaluate(config: typed.Config, workdir: pathlib.Path, checkpoint: str = checkpoints.NEWEST) -> dict[str, Any]:
  """Evaluates a checkpoint of a run on `config.eval.splits` and writes `evaluation.json`.

  Returns:
    `step` and the metrics.

  Raises:
    errors.InputError: see `load`; or the workdir cannot be written.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  run, data, step, variables = load(config, workdir, mesh, checkpoint=checkpoint)
  check_writable(workdir)
  with Evaluator(run, mesh, data.evaluation) as evaluator:
    result = evaluate_all(evaluator, variables)
  summary = {'step': step, **result.metrics}
  if multihost.is_lead():
    confusion = {split: confusion_lib.to_json(matrix) for split, matrix in result.confusion.items()}
    measured = {
      'data': config.data.source,
      'class_names': data.spec.class_names,
      'confusion': confusion,
      'per_class': result.per_class,
    }
    files.write_json(workdir / workdir_lib.EVALUATION, summary | measured)
  return summary
