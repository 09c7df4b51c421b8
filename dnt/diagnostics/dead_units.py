"""Dead units, exactly: over the whole training split, in evaluation mode, the units of a trained network that are lost.

A unit is an index of the last axis of an activation: a channel, or a feature of a dense layer. It is dead when it is
zero for every picture at every position, so that nothing passes through it and no gradient comes back. A sigmoid or
tanh is never zero: its unit is dead when it is saturated (`taps.SATURATED`) for every picture at every position.
"""

import contextlib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from dnt import files, trees
from dnt import workdir as workdir_lib
from dnt.data import examples, pipeline
from dnt.models import depth, taps
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import multihost
from dnt.training import evaluate, experiment

# What the taps leave of each unit, how often it does something; and what it is when it never does.
DEAD = {'fired': 'zero', 'steep': 'saturated'}


class Units(NamedTuple):
  """The units of one activation.

  Attributes:
    entry: of the depth list.
    name: `stage1/block001/Activation_0`; the entry's own name where its output stands for it.
    criterion: what a dead unit is on every picture: 'zero' or 'saturated'.
    count: units.
    dead: indices of those that are dead, in order.
  """

  entry: str
  name: str
  criterion: str
  count: int
  dead: tuple[int, ...]


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Finds the dead units of a run's newest checkpoint and writes `dead_units.json`.

  Returns:
    What the file holds: `step`, `split`, `examples`, and over all entries and by activation `units`, `dead`, `share`,
    by activation also `indices`.

  Raises:
    errors.InputError: no checkpoint in the workdir, one of another network, or data that does not fit.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  loaded = evaluate.load(config, workdir, mesh, ())
  found = find(loaded.run, mesh, loaded.data.train, loaded.variables[''])
  units, dead = sum(each.count for each in found), sum(len(each.dead) for each in found)
  result = {
    'step': loaded.step,
    'split': loaded.data.train.split,
    'examples': len(loaded.data.train),
    'units': units,
    'dead': dead,
    'share': dead / max(units, 1),
    'entries': [
      {
        'entry': each.entry,
        'name': each.name,
        'criterion': each.criterion,
        'units': each.count,
        'dead': len(each.dead),
        'share': len(each.dead) / each.count,
        'indices': list(each.dead),
      }
      for each in found
    ],
  }
  if multihost.is_lead():
    files.write_json(workdir / workdir_lib.DEAD_UNITS, result)
  return result


def find(run: experiment.Experiment, mesh: Mesh, source: examples.Examples, variables: Any) -> tuple[Units, ...]:
  """The units of each activation of the network, in depth order; exact for any batch size and number of devices.

  Args:
    run: the experiment.
    mesh: whose devices share each batch of `config.eval.batch_size`.
    source: the split to look at.
    variables: `params` and `batch_stats`, on the mesh.
  """

  def step(variables, batch):
    # A padded row repeats the first, which is always a picture: what a unit never does, it does not do there either.
    real = batch['mask'].reshape(-1, 1, 1, 1)
    batch = {**batch, 'image': jnp.where(real, batch['image'], batch['image'][:1])}
    with taps.watching():
      _, updates = run.model.apply(variables, run.preprocess(batch, None), train=False, mutable=[taps.FOUND])
    found = trees.flatten(updates.get(taps.FOUND, {}))
    return {path: leaf for path, leaf in found.items() if path.rpartition('/')[2] in DEAD}, {}

  feed = pipeline.make_eval_feed(run.config, source, mesh)
  with contextlib.closing(evaluate.Pass(step, feed, mesh)) as whole:
    sums, _ = whole(variables)
  return _units(sums, run.table)


def _units(sums: Mapping[str, np.ndarray], table: Sequence[depth.Row]) -> tuple[Units, ...]:
  found = []
  for row in table:
    path = row.entry.path
    inside = [key for key in sums if key.startswith(f'{path}/') and key.split('/')[-2] == 'units']
    for key in sorted(inside, key=_natural) or ([f'{path}/output/fired'] if row.shape else []):
      if key in sums:
        values = sums[key] if row.entry.row is None else sums[key][row.entry.row]
        module, _, name = key.rsplit('/', 2)
        dead = tuple(np.flatnonzero(values == 0).tolist())
        found.append(Units(row.entry.name, row.entry.name + module[len(path) :], DEAD[name], len(values), dead))
  return tuple(found)


def _natural(name: str) -> list[str | int]:
  """Sorts `Activation_10` after `Activation_9`: modules are numbered as they are called."""
  return [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', name)]


def text(result: Mapping[str, Any]) -> str:
  """The result as a table, and in one line."""
  lines = [('activation', 'units', 'dead', 'share', '')]
  for each in result['entries']:
    figures = (f'{each["units"]:,}', f'{each["dead"]:,}', f'{100 * each["share"]:.1f} %')
    lines.append((each['name'], *figures, 'saturated' if each['dead'] and each['criterion'] == 'saturated' else ''))
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  table = [
    f'{name:<{widths[0]}}  {units:>{widths[1]}}  {dead:>{widths[2]}}  {share:>{widths[3]}}  {note}'.rstrip()
    for name, units, dead, share, note in lines
  ]
  seen = f'the {result["examples"]:,} pictures of {result["split"]}, step {result["step"]:,}'
  total = f'{result["dead"]:,} of {result["units"]:,} units ({100 * result["share"]:.1f} %) are dead on {seen}'
  return '\n'.join([*table, f'{total}; which ones: {workdir_lib.DEAD_UNITS}' if result['dead'] else total])
