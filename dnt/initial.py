"""Where a run starts: its state on the mesh, from its own checkpoint, another run's parameters or the seed.

Checkpoints hold the unrolled layout, so that they do not depend on `model.scan`.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from dnt import checkpoints, errors, experiment, steps, stored, trees
from dnt.models import depth
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import multihost


def state(
  run: experiment.Experiment,
  mesh: Mesh,
  saved: checkpoints.Checkpoints | checkpoints.ReadOnly,
  checked: Callable[[steps.TrainState, int], None] = lambda shapes, step: None,
) -> tuple[steps.TrainState, dict[str, Any]]:
  """The state that the next step starts from, and the `meta` of the checkpoint it came from ({} for a new run).

  The first that exists wins: the newest good checkpoint of the run's own workdir (the whole state); the run at
  `config.train.init_from` (parameters and BatchNorm statistics); `config.seed`.

  Args:
    run: the experiment.
    mesh: where the state will lie.
    saved: the run's own checkpoints.
    checked: called with the shapes of the state and its step as soon as nothing can be refused any more, and before
      parameters are drawn: the moment to start compiling.

  Raises:
    errors.InputError: a checkpoint of another network or optimizer.
  """
  rows = depth.scanned_rows(run.abstract_state().params)

  def unrolled(step):
    state = depth.to_unrolled(run.abstract_state(step), rows)
    return mesh_lib.shapes(state, mesh_lib.parameter_shardings(mesh, state))

  restored = saved.restore_latest(unrolled)
  step = int(restored[0].step) if restored else 0
  abstract = run.abstract_state(step + 1)  # with what the next step needs
  given = load_variables(run, run.config.train.init_from) if not restored and run.config.train.init_from else None
  shardings = mesh_lib.parameter_shardings(mesh, abstract)
  checked(mesh_lib.shapes(abstract, shardings), step)
  if restored:
    found = depth.to_scanned(restored[0], rows)
    if run.stage(step) is not run.stage_of_state(step):
      return advance(run, mesh, found, run.stage(step)), restored[1]
    return jax.device_put(found, shardings), restored[1]
  return mesh_lib.place(compile_lib.eagerly(run.make_state)(given or run.init_variables()), shardings), {}


def variables(run: experiment.Experiment, workdir: pathlib.Path) -> dict[str, Any]:
  """Parameters and statistics that a run goes on from, on the host: from where `state` takes them."""
  if multihost.broadcast_from_lead(stored.steps_in(workdir / checkpoints.DIRECTORY)):
    return load_variables(run, str(workdir))
  return load_variables(run, run.config.train.init_from) if run.config.train.init_from else run.init_variables()


def advance(
  run: experiment.Experiment, mesh: Mesh, state: steps.TrainState, stage: experiment.Stage
) -> steps.TrainState:
  """The state at the start of a stage, on the mesh, from that at the end of the one before."""

  def begin(state):
    return run.advance(state, stage)

  return compile_lib.jit(begin, out_shardings=mesh_lib.parameter_shardings(mesh, jax.eval_shape(begin, state)))(state)


def load_variables(run: experiment.Experiment, workdir: str) -> dict[str, Any]:
  """Parameters and statistics of another run of the same network, in this model's layout.

  Raises:
    errors.InputError: no checkpoint there, or one whose parameters differ in name or shape.
  """
  loaded = checkpoints.load_parameters(workdir)
  return match(run, {'params': loaded.params, 'batch_stats': loaded.batch_stats}, workdir)


def match(run: experiment.Experiment, variables: dict[str, Any], origin: str) -> dict[str, Any]:
  """Checks unrolled variables against the model, leaf by leaf, and brings them into its layout.

  Raises:
    errors.InputError: missing, unexpected or differently shaped leaves, by path.
  """
  trace = depth.trace(run.model, run.spec.image_shape)
  want = {path: leaf.shape for path, leaf in trees.flatten(trace.variables).items()}
  have = {path: leaf.shape for path, leaf in trees.flatten(variables).items()}
  different = sorted(path for path in want.keys() | have.keys() if want.get(path) != have.get(path))
  if different:
    listed = '; '.join(f'{path}: {have.get(path, "absent")}, wanted {want.get(path, "none")}' for path in different[:8])
    more = f' and {len(different) - 8} more' if len(different) > 8 else ''
    raise errors.InputError(f'{origin} holds another network than config.model: {listed}{more}')
  return depth.to_scanned(variables, trace.scanned)
