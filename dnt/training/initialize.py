"""Makes the state from which a run starts: from its own checkpoint, pretrained weights or the seed.

Checkpoints hold the unrolled layout, so they do not depend on `model.scan`.
"""

import functools
import logging
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dnt import buckets, checkpoints, errors, trees
from dnt.config import changes, schema
from dnt.data import class_order
from dnt.models import depth, layouts
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import multihost
from dnt.training import experiment, steps
from dnt.weights import pretrained

_log = logging.getLogger(__name__)


class Start(NamedTuple):
  """Describes where a run starts, read and checked; `make_state` makes the state from it.

  Attributes:
    step: steps done.
    shapes: shapes of the state with its shardings, for which programs can be compiled.
    restored: the state of a checkpoint, in the model's layout, on the mesh; None: there is none.
    variables: pretrained parameters and statistics on the host; None: there are none, or a checkpoint is newer.
    history: the `meta` of the checkpoint; {} for a new run.
  """

  step: int
  shapes: steps.TrainState
  restored: steps.TrainState | None
  variables: dict[str, Any] | None
  history: dict[str, Any]


def find(
  run: experiment.Experiment,
  mesh: Mesh,
  saved: checkpoints.Checkpoints | checkpoints.ReadOnly,
  weights: pretrained.Source | None,
) -> Start:
  """Finds the start of the next step. No check can fail after this, and it draws no parameters but for `reinit`.

  The first source that exists wins: the newest good checkpoint of the run's own workdir (the whole state); the weights
  at `config.train.init_from` (parameters and BatchNorm statistics of another run or of a file), but for what
  `config.finetune.reinit` names; `config.seed`.

  Args:
    run: the experiment.
    mesh: the mesh of the state.
    saved: the run's own checkpoints.
    weights: `data.weights` of the experiment; their arrays are released, as nothing later needs them.

  Raises:
    errors.InputError: a checkpoint or weights belong to another network, or a checkpoint to another optimizer.
  """
  rows = run.trace.scanned

  @functools.cache
  def unrolled(start):  # the states of a phase have the same shapes
    state = layouts.to_unrolled(run.abstract_state(start + 1), rows)
    return mesh_lib.shapes(state, run.shardings(mesh, state))

  restored = saved.restore_latest(lambda step: unrolled(run.phase_of_state(step).start))
  step = int(restored.state.step) if restored else 0
  abstract = run.abstract_state(step + 1)  # includes what the next step needs
  shapes = mesh_lib.shapes(abstract, run.shardings(mesh, abstract))
  given = load_variables(run, weights) if weights and not restored else None
  if weights:
    weights.release()
  if restored:
    return Start(step, shapes, layouts.to_scanned(restored.state, rows), None, restored.meta)
  return Start(step, shapes, None, given, {})


def make_state(run: experiment.Experiment, mesh: Mesh, start: Start) -> steps.TrainState:
  """Returns the state from which the next step starts, on the mesh."""
  if start.restored is None:
    return begin(run, mesh, start.variables or run.init_variables())
  # That of the config's seed, with which the loader draws too: a run may go on with another (`--allow=seed`).
  rng = compile_lib.eagerly(lambda: steps.make_rng(run.config.seed))()
  restored = start.restored.replace(rng=mesh_lib.place(rng, mesh_lib.replicated(mesh)))
  if run.phase(start.step) is not run.phase_of_state(start.step):
    return advance(run, mesh, restored, run.phase(start.step))
  return jax.device_put(restored, run.shardings(mesh, restored))


def begin(run: experiment.Experiment, mesh: Mesh, variables: dict[str, Any]) -> steps.TrainState:
  """Returns the state before the first step, on the mesh, from variables on the host."""
  made = compile_lib.eagerly(run.make_state)(variables)
  return mesh_lib.place(made, run.shardings(mesh, made))


def load_start(run: experiment.Experiment, workdir: pathlib.Path, weights: pretrained.Source | None) -> dict[str, Any]:
  """Returns the parameters and statistics that `find` would start from, on the host, without logging a message."""
  if checkpoints.ReadOnly(workdir).steps():
    newest = checkpoints.load_parameters(workdir)  # not the average, which does not train
    return match(run.trace, {'params': newest.params, 'batch_stats': newest.batch_stats}, buckets.name(workdir))
  return load_new(run, weights)


def load_new(run: experiment.Experiment, weights: pretrained.Source | None) -> dict[str, Any]:
  """Returns the parameters and statistics from which a new run starts, on the host, without logging a message."""
  return load_variables(run, weights, quiet=True) if weights else run.init_variables()


def advance(
  run: experiment.Experiment, mesh: Mesh, state: steps.TrainState, phase: experiment.Phase
) -> steps.TrainState:
  """Returns the state at the start of a phase, on the mesh, from the state at the end of the phase before."""

  def begin(state):
    return run.advance(state, phase)

  shardings = run.shardings(mesh, jax.eval_shape(begin, state))
  return compile_lib.jit(begin, mesh, out_shardings=shardings)(state)


def load_variables(run: experiment.Experiment, source: pretrained.Source, quiet: bool = False) -> dict[str, Any]:
  """Loads pretrained parameters and statistics of the same network, in this model's layout.

  The head follows the names of its classes: if they are those of the data in another order, so is the head. If they
  are others, or another number, or the weights have no head, it starts at zero. If the weights have no names, a head of
  as many classes is kept. One line says so. On good features zero is better than any random draw (Kolesnikov et al.
  2020, "Big Transfer"): a draw adds noise to the logits, which training removes only where there are examples.

  What `config.finetune.reinit` names is drawn with the seed of the config, whether the weights have it or not.

  A network that the weights of a run fit, and that computes something else with them, gets a line for each option in
  which it differs.

  Args:
    run: the experiment.
    source: the weights.
    quiet: whether to log no line.

  Raises:
    errors.InputError: there are no weights, or they belong to another network; the message names the option to set or
      the leaves that differ. Or the head starts at zero and is frozen, or processes have other weights.
  """
  pretrained.check_model(source, run.config.model)
  want, have = trees.flatten(run.trace.variables), trees.flatten(source.variables)
  drawn = _draw(run, want, have, source.origin)
  entry = depth.head(run.trace.table).name
  head = [path for path in _head(want, entry, run.config.model.num_classes) if path not in drawn]
  if source.absent:
    head = [path for path in want if path not in have | drawn and path.split('/')[1] == entry]
    reason = f'{source.origin} has no classifier, the data has {run.config.model.num_classes} classes'
    changed, line = _zeros(want, head), f'{reason}: {", ".join(head)} start at zero' if head else ''
  else:
    changed, line = _renew(want, have, head, run.spec.class_names, source) if head else ({}, '')
  _check_head_trains(run, changed, entry, line)
  have = {path: leaf for path, leaf in have.items() if not _is_named(path, run.config.finetune.reinit)}
  if line and not quiet:
    _log.info(line)
  if drawn and not quiet:
    listed = errors.list_names(sorted(drawn, reverse=True))  # parameters before statistics
    _log.info(f'{len(drawn)} leaves are drawn anew, not from {source.origin}: {listed}')
  advice = '; what finetune.reinit names is drawn anew, in place of that of the weights'
  variables = match(run.trace, trees.unflatten(have | changed | drawn), source.origin, advice)
  if source.workdir and not quiet:
    tried = [f'model.{key}' for key in schema.model_options('weights', 'computation') if key != 'folder']
    for change in changes.find(source.run_config, run.config):
      if change.key in tried:
        _log.info(f'not as the run in {source.origin}: {change}')
  if not multihost.is_single():
    multihost.check_equal({'the digest of the weights at config.train.init_from': trees.sha256(variables)[:12]})
  return variables


def _draw(run: experiment.Experiment, want: dict[str, Any], have: dict[str, Any], origin: str) -> dict[str, np.ndarray]:
  """Draws the leaves that `finetune.reinit` names, by path in the unrolled layout."""
  patterns = run.config.finetune.reinit
  example = max((path.removeprefix('params/') for path in want if path.startswith('params/')), key=len)
  for pattern in patterns:
    if not any(_is_named(path, (pattern,)) for path in (*want, *have)):
      raise errors.InputError(
        f'config.finetune.reinit: {pattern!r} matches the whole name of no entry, module or parameter, neither of the '
        f'network nor of {origin}; they have names such as {example}'
      )
  if not patterns:
    return {}
  initial = trees.flatten(layouts.to_unrolled(run.init_variables(), run.trace.scanned))
  return {path: initial[path] for path in want if _is_named(path, patterns)}


def _is_named(path: str, patterns: Sequence[str]) -> bool:
  return trees.is_named(path.partition('/')[2], patterns)  # without `params` or `batch_stats`


def _head(want: dict[str, Any], entry: str, classes: int) -> list[str]:
  """Returns the leaves of the entry's last layer with the classes on their last axis: its kernel and its bias."""
  ending = [path for path in want if path.split('/')[1] == entry and want[path].shape[-1:] == (classes,)]
  layers = [path.rpartition('/')[0] for path in ending if len(want[path].shape) > 1]
  return [path for path in ending if path.rpartition('/')[0] == layers[-1]] if layers else []


def _check_head_trains(run: experiment.Experiment, changed: dict[str, np.ndarray], entry: str, line: str) -> None:
  """Refuses a kernel of zeros in a frozen head: all logits stay equal, and no gradient gets below it."""
  is_zero = any(leaf.ndim > 1 and not leaf.any() for leaf in changed.values())
  if is_zero and entry in run.phases[0].partition.frozen:
    chosen = run.config.finetune.trainable
    raise errors.InputError(
      f'{line}, and config.finetune.trainable={chosen!r} freezes them there, so that nothing would learn; set '
      f"config.finetune.trainable='{chosen}|{entry}'"
    )


def _zeros(want: dict[str, Any], paths: list[str]) -> dict[str, np.ndarray]:
  return {path: np.zeros(want[path].shape, want[path].dtype) for path in paths}


def _renew(
  want: dict[str, Any], have: dict[str, Any], head: list[str], names: tuple[str, ...], source: pretrained.Source
) -> tuple[dict[str, np.ndarray], str]:
  """Returns the leaves of the head that differ from those of the weights, and the line that says why, or ''."""
  counts = {
    have[path].shape[-1] if path in have and have[path].shape[:-1] == want[path].shape[:-1] else None for path in head
  }
  count = counts.pop() if len(counts) == 1 else None
  if count is None:  # another network: `match` raises the error
    return {}, ''
  zeros = f'{", ".join(head)} start at zero'
  if count != len(names):
    return _zeros(want, head), f'{source.origin} has {count} classes, the data has {len(names)}: {zeros}'
  theirs, ours = class_order.normalized(source.class_names), class_order.normalized(names)
  if not theirs:
    return {}, f'{source.origin} has no class names: its head is kept, as it has {count} classes like the data'
  if theirs == ours:
    return {}, ''
  if sorted(theirs) == sorted(ours) and len({*ours}) == count:
    places = {name: place for place, name in enumerate(theirs)}
    order = [places[name] for name in ours]
    line = f'{source.origin} has the classes of the data in another order: its head is brought into that of the data'
    return {path: have[path][..., order] for path in head}, line
  known, wanted = {*theirs}, {*ours}
  new, missing = [name for name in ours if name not in known], [name for name in theirs if name not in wanted]
  listed = f'has {errors.list_names(new) or "none"} in place of {errors.list_names(missing) or "none"}'
  return _zeros(want, head), f'{source.origin} was trained on other classes; the data {listed}: {zeros}'


def match(trace: depth.Trace, variables: dict[str, Any], origin: str, advice: str = '') -> dict[str, Any]:
  """Checks unrolled variables against the model, leaf by leaf, and converts them to the model's layout.

  Args:
    trace: the trace of the model.
    variables: `params` and `batch_stats`.
    origin: where the variables come from, for messages.
    advice: what to do about other leaves, at the end of the message.

  Raises:
    errors.InputError: leaves are missing, unexpected or of another shape; the message names their paths.
  """
  want = {path: leaf.shape for path, leaf in trees.flatten(trace.variables).items()}
  have = {path: leaf.shape for path, leaf in trees.flatten(variables).items()}
  different = sorted(path for path in want.keys() | have.keys() if want.get(path) != have.get(path))
  if different:
    listed = '; '.join(f'{path}: {have.get(path, "absent")}, wanted {want.get(path, "none")}' for path in different[:8])
    more = f' and {len(different) - 8} more' if len(different) > 8 else ''
    raise errors.InputError(f'{origin} holds another network than config.model: {listed}{more}{advice}')
  return layouts.to_scanned(variables, trace.scanned)
