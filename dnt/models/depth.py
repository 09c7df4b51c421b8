"""The depth list: a network's entries in the order they run, and everything that must know that order.

An entry is a direct submodule of the model, in call order, with each `Stage` expanded into its blocks:
`stem, stage1/block001, ..., head`. Freezing, layer-wise rates, telemetry, block-wise clipping and the table of blocks
index this one list, which `entries` reads off one abstract trace of the model; any Flax module has it.

A stage has two layouts. Unrolled, its blocks are the submodules `block001`, `block002`, ... Scanned, the first block,
which may change the shape, stays as it is, and the rest are one submodule `scanned` whose leaves have a leading row
axis. `to_scanned` and `to_unrolled` convert any tree that mirrors the parameters.
"""

import collections
import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from dnt import errors, trees
from dnt.parallel import compile as compile_lib

# Collections that blocks may read and write inside a scanned stage; whoever sows into another one adds it here.
COLLECTIONS = ('params', 'batch_stats', 'intermediates', 'perturbations', 'telemetry', 'sinks')

_BLOCK = re.compile(r'block(\d{3,})')
_MARK = re.compile(r'dnt_entry_(\d+)_')
Shape = tuple[int, ...]
Rows = Mapping[tuple[str, ...], int]


def block_name(number: int) -> str:
  """The name of the block of that number, counted from 1: three digits, so that sorted names are in depth order."""
  return f'block{number:03d}'


class Stage(nn.Module):
  """A run of blocks, unrolled or scanned, with stochastic depth.

  Each block is called as `block(x, train, keep)`, with keep float32 [B]: 1 / (1 - rate) where the example keeps this
  block's residual branch and 0 where it drops it (Huang et al. 2016, by example, scaled in training instead of in
  evaluation); None in evaluation or without stochastic depth.

  While parameters are initialized the layout is always the unrolled one (`models.init` stacks them afterwards), so
  that both layouts start equal.

  Attributes:
    first: `first(name=...)` makes the first block, which may change the shape.
    rest: `rest(name=...)` makes every other one; scanned, it must keep shape and dtype.
    count: blocks.
    drop_rates: chance of dropping each block; empty: stochastic depth is off.
    scan: run all blocks but the first as one scanned block.
    remat: recompute the inside of each block in the backward pass.
  """

  first: Callable[..., nn.Module]
  rest: Callable[..., nn.Module]
  count: int
  drop_rates: tuple[float, ...] = ()
  scan: bool = False
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    keep = self._keep(x.shape[0]) if train and self.drop_rates else None
    scanned = self.scan and self.count > 1 and not self.is_initializing()

    def run(block, x, keep):
      return block(x, train, keep)

    def row(index):
      return None if keep is None else keep[index]

    outside = nn.remat(run) if self.remat else run
    x = outside(self.first(name=block_name(1)), x, row(0))
    if not scanned:
      for index in range(1, self.count):
        x = outside(self.rest(name=block_name(index + 1)), x, row(index))
      return x

    # Inside a scan nothing can be merged with the forward pass, so that remat needs no barriers there.
    inside = nn.remat(run, prevent_cse=False) if self.remat else run

    def body(block, x, keep):
      return inside(block, x, keep), None

    rows = self.count - 1
    scan = nn.scan(body, variable_axes=dict.fromkeys(COLLECTIONS, 0), length=rows)
    x, _ = scan(self.rest(name=trees.SCANNED), x, row(slice(1, None)))
    return x

  def _keep(self, batch: int) -> jax.Array:
    """float32 [count, batch], drawn for all blocks at once so that both layouts drop the same ones."""
    key = self.make_rng('stochastic_depth')
    uniform = jax.vmap(lambda index: jax.random.uniform(jax.random.fold_in(key, index), (batch,)))
    survival = 1 - jnp.array(self.drop_rates, jnp.float32).reshape(-1, 1)
    return jnp.where(uniform(jnp.arange(self.count)) < survival, 1 / survival, 0.0)


@dataclasses.dataclass(frozen=True)
class Entry:
  """One part of the network.

  Attributes:
    name: `stage1/block002`: where its leaves are in the unrolled layout.
    path: where they are in the model's own layout: its name, or `stage1/scanned`.
    row: its row in the stacked leaves below `path`; None where they are not stacked.
  """

  name: str
  path: str
  row: int | None = None


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the table of blocks.

  Attributes:
    entry: which part.
    shape: of its output for one example; None where it is not called (a parameter of the model itself).
    parameters: numbers it learns.
    flops: of one example's forward pass: 2 for each multiply-add of its convolutions and matrix products.
  """

  entry: Entry
  shape: Shape | None
  parameters: int
  flops: int


@dataclasses.dataclass(frozen=True)
class Trace:
  """What one abstract run of a model's initialization shows.

  Attributes:
    table: the entries in depth order, with their shapes and costs.
    variables: `ShapeDtypeStruct` of each variable by collection, in the unrolled layout.
    scanned: path and number of rows of each scanned stage.
    program: draws the leaves of `variables` from a key; not compiled.
  """

  table: tuple[Row, ...]
  variables: dict[str, Any]
  scanned: Rows
  program: Callable[[jax.Array], list[jax.Array]]


def entries(model: nn.Module, input_shape: Shape) -> tuple[Entry, ...]:
  """The depth list of any Flax module.

  Parameters that the model owns itself, outside any submodule, come first, each as an entry of its own.

  Args:
    model: called as `model(x, train)`.
    input_shape: of one example, (H, W, C).
  """
  return tuple(row.entry for row in table(model, input_shape))


def table(model: nn.Module, input_shape: Shape) -> tuple[Row, ...]:
  """The entries in depth order with output shape, parameters and FLOPs, without compiling.

  Args:
    model: called as `model(x, train)`.
    input_shape: of one example, (H, W, C).
  """
  return trace(model, input_shape).table


@contextlib.contextmanager
def watching(watch: Callable[[Callable[[], Any], nn.Module], Any]) -> Iterator[dict[tuple[str, ...], Stage]]:
  """A context in which every call of an entry goes through `watch`.

  Args:
    watch: `watch(run, module) -> output`; `run()` is the call itself. `'/'.join(module.path)` is the `path` of the
      entry, or of all rows of a scanned stage at once.

  Yields:
    The stages that were met, by path.
  """
  stages: dict[tuple[str, ...], Stage] = {}
  running: set[tuple[str, ...]] = set()  # entries being called, whose own helper methods are no calls of theirs

  def intercept(next_fun, args, kwargs, context):
    module = context.module
    if module.scope is None or not module.path or context.method_name == 'setup':
      return next_fun(*args, **kwargs)
    path = module.path
    if isinstance(module, Stage):
      stages[path] = module
    entry = len(path) == 1 or (len(path) == 2 and path[:1] in stages)
    if path in stages or not entry or path in running:
      return next_fun(*args, **kwargs)
    running.add(path)
    try:
      return watch(lambda: next_fun(*args, **kwargs), module)
    finally:
      running.remove(path)

  with nn.intercept_methods(intercept):
    yield stages


def trace(model: nn.Module, input_shape: Shape) -> Trace:
  """Runs `model.init` abstractly; the last model's result is kept, so that asking again costs nothing.

  Args:
    model: called as `model(x, train)`.
    input_shape: of one example, (H, W, C).

  Raises:
    errors.InputError: variables in a collection other than `params` and `batch_stats`.
  """
  try:
    hash(model)
  except TypeError:  # a user's module with a list or dict among its fields
    return _trace(model, tuple(input_shape))
  return _last_trace(model, tuple(input_shape))


def _trace(model: nn.Module, input_shape: Shape) -> Trace:
  calls: dict[str, Shape | None] = {}

  def record(run, module):
    name = '/'.join(module.path)
    calls.setdefault(name, None)
    with jax.named_scope(f'dnt_entry_{list(calls).index(name)}_'):
      output = run()
    shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(output) if hasattr(leaf, 'shape')]
    calls[name] = shapes[0] if shapes else None
    return output

  def run(key):
    return model.init(key, jnp.zeros((1, *input_shape)), train=False)

  with watching(record) as stages:
    program, variables = jax.make_jaxpr(run, return_shape=True)(jax.random.key(0))
  foreign = set(variables) - {'params', 'batch_stats'}
  if foreign:
    raise errors.InputError(
      f'the model keeps variables in the collection {sorted(foreign)[0]!r}; only params and batch_stats are trained, '
      'saved and restored'
    )
  scanned = {path: stage.count - 1 for path, stage in stages.items() if stage.scan and stage.count > 1}
  cost = _flops(program.jaxpr)
  owned = [name for name, leaf in variables.get('params', {}).items() if not isinstance(leaf, Mapping)]
  rows = [Row(_entry(name, {}), None, int(math.prod(variables['params'][name].shape)), 0) for name in owned]
  for index, (name, shape) in enumerate(calls.items()):
    parameters = trees.count(trees.subtree(variables.get('params', {}), tuple(name.split('/'))))
    rows.append(Row(_entry(name, scanned), shape, parameters, cost[index]))
  return Trace(tuple(rows), variables, scanned, functools.partial(compile_lib.evaluate, program))


_last_trace = functools.lru_cache(maxsize=1)(_trace)


def _entry(name: str, scanned: Rows) -> Entry:
  stage, _, block = name.partition('/')
  number = int(_BLOCK.fullmatch(block)[1]) if (stage,) in scanned else 1
  if number == 1:
    return Entry(name, name)
  return Entry(name, f'{stage}/{trees.SCANNED}', number - 2)


def _flops(jaxpr: core.Jaxpr) -> collections.Counter:
  """2 x multiply-adds of a program by entry index; None for what no entry computes."""
  total = collections.Counter()
  for equation in jaxpr.eqns:
    inner = _equation_flops(equation)
    mark = _MARK.search(str(equation.source_info.name_stack)) if inner else None
    for index, flops in inner.items():
      total[index if mark is None else int(mark[1])] += flops
  return total


def _equation_flops(equation: core.JaxprEqn) -> collections.Counter:
  kind, params = equation.primitive.name, equation.params
  if kind == 'conv_general_dilated':
    kernel = equation.invars[1].aval
    features = kernel.shape[params['dimension_numbers'].rhs_spec[0]]
    return collections.Counter({None: 2 * equation.outvars[0].aval.size * (kernel.size // features)})
  if kind == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return collections.Counter({None: 2 * equation.outvars[0].aval.size * depth})
  parts = [_flops(inner) for inner in core.jaxprs_in_params(params)]
  if kind == 'cond':
    return max(parts, key=lambda part: part.total())
  times = params['length'] if kind == 'scan' else 1
  return collections.Counter({index: flops * times for part in parts for index, flops in part.items()})


def entry_index(entries: Sequence[Entry], path: str) -> tuple[int, ...]:
  """The places in the depth list that a leaf belongs to: one, or one a row for a leaf of a scanned stage.

  Args:
    entries: the depth list.
    path: of the leaf in the model's own layout, joined by '/'.

  Raises:
    errors.InputError: a leaf that no entry owns.
  """
  owners = tuple(i for i, entry in enumerate(entries) if path == entry.path or path.startswith(f'{entry.path}/'))
  if not owners:
    raise errors.InputError(f'{path!r} belongs to no entry of this model: {", ".join(e.name for e in entries)}')
  return owners


def scanned_rows(tree: Any) -> Rows:
  """Path and number of rows of each scanned stage, read off parameters (or their shapes) in the scanned layout."""
  rows = {}

  def visit(node, path):
    if not isinstance(node, Mapping):
      return
    leaves = jax.tree.leaves(node.get(trees.SCANNED))
    if leaves:
      rows[path] = leaves[0].shape[0]
    for key, value in node.items():
      visit(value, (*path, key))

  visit(tree, ())
  return rows


def to_unrolled(tree: Any, rows: Rows | None = None) -> Any:
  """Takes scanned stages apart: `stage1/scanned` becomes `stage1/block002` and so on. Exact; unrolled stages stay.

  Args:
    tree: dicts, tuples, lists and dataclasses of arrays (or `ShapeDtypeStruct`s) in which parts mirror the parameters,
      such as parameters, batch statistics, optimizer states and whole train states.
    rows: of the stages, from `scanned_rows`; None reads them off `tree` itself, which then must be nested dicts.

  Returns:
    The tree in the unrolled layout.
  """
  rows = scanned_rows(tree) if rows is None else rows

  def convert(stage, count):
    blocks = {key: value for key, value in stage.items() if key != trees.SCANNED}
    for index in range(count):
      blocks[block_name(index + 2)] = jax.tree.map(functools.partial(_row, index=index), stage[trees.SCANNED])
    return blocks

  return _convert(tree, rows, lambda stage: trees.SCANNED in stage, convert)


def to_scanned(tree: Any, rows: Rows) -> Any:
  """Stacks the blocks of stages from the second on: the inverse of `to_unrolled`. Exact; scanned stages stay.

  Args:
    tree: as for `to_unrolled`.
    rows: of the stages to scan, from `scanned_rows` of parameters (or shapes) in that layout.

  Returns:
    The tree in the scanned layout.

  Raises:
    errors.InputError: a stage with another number of blocks, or blocks that are not equal.
  """

  def convert(stage, count):
    blocks = {key: value for key, value in stage.items() if _BLOCK.fullmatch(key)}
    if len(blocks) != count + 1:
      raise errors.InputError(f'a stage of {len(blocks)} blocks cannot become one of {count + 1}')
    first, *rest = (blocks.pop(block_name(index + 1)) for index in range(count + 1))
    if any(_shapes(block) != _shapes(rest[0]) for block in rest):
      raise errors.InputError('the blocks of a stage differ in their parameters, so that they cannot be scanned')
    return {block_name(1): first, trees.SCANNED: jax.tree.map(_stack, *rest)}

  return _convert(tree, rows, lambda stage: block_name(2) in stage, convert)


def _convert(tree: Any, rows: Rows, is_stage: Callable, convert: Callable, path: tuple[str, ...] = ()) -> Any:
  """Applies `convert` to each dict that stands for a stage of `rows`, wherever the parameters are mirrored."""

  def inside(node, *keys):
    return _convert(node, rows, is_stage, convert, path + keys)

  if isinstance(tree, Mapping):
    count = next((count for stage, count in rows.items() if path[-len(stage) :] == stage), 0)
    if count and is_stage(tree):
      return convert(tree, count)
    return type(tree)({key: inside(value, key) for key, value in tree.items()})
  if isinstance(tree, tuple) and hasattr(tree, '_fields'):
    return type(tree)(*map(inside, tree))
  if isinstance(tree, tuple | list):
    return type(tree)(map(inside, tree))
  if dataclasses.is_dataclass(tree):
    fields = [field.name for field in dataclasses.fields(tree)]
    return dataclasses.replace(tree, **{name: inside(getattr(tree, name)) for name in fields})
  return tree


def _shapes(tree: Any) -> Any:
  leaves, structure = jax.tree.flatten(tree)
  return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _row(leaf: Any, index: int) -> Any:
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
  return leaf[index]


def _stack(*leaves: Any) -> Any:
  if isinstance(leaves[0], jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct((len(leaves), *leaves[0].shape), leaves[0].dtype)
  return (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves)
