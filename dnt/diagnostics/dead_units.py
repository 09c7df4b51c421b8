"""Finds the dead units of a trained network exactly, over the whole training split and in evaluation mode.

A unit is an index of the last axis of an activation: a channel, or a feature of a dense layer. It is dead if it is
zero for every image at every position, so that no signal passes through it and no gradient comes back. A sigmoid or
tanh is never zero: its unit is dead if it is saturated (`captures.SATURATED`) for every image at every position.
"""

import contextlib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dnt import checkpoints, files
from dnt import workdir as workdir_lib
from dnt.config import typed
from dnt.data import examples, pipeline
from dnt.models import captures, depth
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import multihost
from dnt.reporting import tables
from dnt.training import evaluate, experiment


class Units(NamedTuple):
  """Describes the units of one activation.

  Attributes:
    entry: name in the depth list.
    name: `stage1/block001/Activation_0`, or `Dense_0/activation1()` for a function that a user's own module calls; the
      entry's own name if its output stands for the activation.
    criterion: what a dead unit is on every image: 'zero' or 'saturated'; 'unknown' if the activations of the entry
      cannot be captured.
    count: number of units; 0 if unknown.
    dead: indices of the dead units, in order.
  """

  entry: str
  name: str
  criterion: str
  count: int
  dead: tuple[int, ...]


def run(config: typed.Config, workdir: pathlib.Path, checkpoint: str = checkpoints.NEWEST) -> dict[str, Any]:
  """Finds the dead units of a run's checkpoint (see `evaluate.load`) and writes `dead_units.json`.

  Returns:
    The contents of the file: `step`, `split`, `examples`, and over all entries and by activation `units`, `dead`,
    `fraction`, by activation also `indices`. Of an activation that cannot be captured the first three are None.

  Raises:
    errors.InputError: the workdir has no such checkpoint or one of another network, or cannot be written; or the data
      does not fit.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  loaded = evaluate.load(config, workdir, mesh, (), checkpoint)
  evaluate.check_writable(workdir)
  measured = find(loaded.run, mesh, loaded.data.train, loaded.variables[''])
  units, dead = sum(each.count for each in measured), sum(len(each.dead) for each in measured)
  result = {
    'step': loaded.step,
    'split': loaded.data.train.split,
    'examples': len(loaded.data.train),
    'units': units,
    'dead': dead,
    'fraction': dead / max(units, 1),
    'entries': [
      {
        'entry': each.entry,
        'name': each.name,
        'criterion': each.criterion,
        'units': each.count or None,
        'dead': len(each.dead) if each.count else None,
        'fraction': len(each.dead) / each.count if each.count else None,
        'indices': list(each.dead),
      }
      for each in measured
    ],
  }
  if multihost.is_lead():
    files.write_json(workdir / workdir_lib.DEAD_UNITS, result)
  return result


def find(run: experiment.Experiment, mesh: Mesh, source: examples.Examples, variables: Any) -> tuple[Units, ...]:
  """Returns the units of each activation of the network, in depth order; exact for any batch size and device count.

  Args:
    run: the experiment.
    mesh: its devices share each batch of `config.eval.batch_size`.
    source: the split to examine.
    variables: `params` and `batch_stats`, on the mesh.
  """

  def step(variables, batch):
    # A padded row repeats the first row, which is always an image, so it cannot make a dead unit look active.
    real = batch['mask'].reshape(-1, 1, 1, 1)
    batch = {**batch, 'image': jnp.where(real, batch['image'], batch['image'][:1])}

    def apply(variables, images):
      return run.model.apply(variables, images, train=False, mutable=[captures.CAPTURES])

    with captures.capturing():
      watched = captures.with_function_calls(run.model, apply, watch=True)
      _, updates = watched(variables, run.preprocess(batch, None))
    measured = updates.get(captures.CAPTURES, {})
    return {entry.path: _activations(captures.captures(measured, entry.path)) for entry in run.entries}, {}

  loader = pipeline.make_eval_loader(run.config, source, mesh)
  with contextlib.closing(evaluate.Pass(step, loader, mesh, f'examined {source.split}')) as whole:
    sums, _ = whole(variables)
  return _units(sums, run.table)


def _activations(captures: captures.Captures) -> dict[str, captures.Zeros | captures.Saturation] | None:
  """Returns what was captured of the activations of an entry, or of its output if it has none; None if unknown."""
  if captures.units is None:
    return None
  return captures.units or ({'': captures.output.units} if captures.output else {})


def _units(
  sums: Mapping[str, Mapping[str, captures.Zeros | captures.Saturation] | None], table: Sequence[depth.Row]
) -> tuple[Units, ...]:
  measured = []
  for row in table:
    inside = sums.get(row.entry.path, {})
    if inside is None:
      measured.append(Units(row.entry.name, row.entry.name, 'unknown', 0, ()))
      continue
    for name in sorted(inside, key=_natural):
      zeros = isinstance(inside[name], captures.Zeros)
      active = inside[name].fired if zeros else inside[name].steep
      active = active if row.entry.row is None else active[row.entry.row]
      dead = tuple(np.flatnonzero(active == 0).tolist())
      full = f'{row.entry.name}/{name}' if name else row.entry.name
      measured.append(Units(row.entry.name, full, 'zero' if zeros else 'saturated', len(active), dead))
  return tuple(measured)


def _natural(name: str) -> list[str | int]:
  """Returns a sort key that puts `Activation_10` after `Activation_9`: modules are numbered in call order."""
  return [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', name)]


def text(result: Mapping[str, Any]) -> str:
  """Formats the result as a table and one summary line."""
  lines = [('activation', 'units', 'dead', 'fraction', '')]
  for each in result['entries']:
    known = each['units'] is not None
    cells = (f'{each["units"]:,}', f'{each["dead"]:,}', f'{100 * each["fraction"]:.1f} %') if known else ('-', '-', '-')
    lines.append((each['name'], *cells, 'saturated' if each['dead'] and each['criterion'] == 'saturated' else ''))
  seen = f'the {result["examples"]:,} images of {result["split"]}, step {result["step"]:,}'
  total = f'{result["dead"]:,} of {result["units"]:,} units ({100 * result["fraction"]:.1f} %) are dead on {seen}'
  where = f'; {workdir_lib.DEAD_UNITS} lists them' if result['dead'] else ''
  return f'{tables.text(lines)}\n{total}{where}'
