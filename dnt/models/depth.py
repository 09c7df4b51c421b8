"""The depth list: a network's entries in the order they run, and the code that depends on that order.

An entry is a direct submodule of the model, in call order, with each `Stage` expanded into its blocks:
`stem, stage1/block001, ..., head`. Freezing, layer-wise rates, telemetry, block-wise clipping and the table of blocks
all index this list. `entries` computes it for any Flax module from one abstract trace.

A stage has two layouts. In the unrolled layout, its blocks are the submodules `block001`, `block002`, ... In the
scanned layout, the first block, which may change the shape, stays separate, and the rest are one submodule `scanned`
whose leaves have a leading row axis. `to_scanned` and `to_unrolled` convert any tree that mirrors the parameters.
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

# Collections that blocks may read and write inside a scanned stage; code that sows into another one must add it here.
COLLECTIONS = ('params', 'batch_stats', 'intermediates', 'perturbations', 'telemetry', 'sinks')

_BLOCK = re.compile(r'block(\d{3,})')
_MARK = re.compile(r'dnt_entry_(\d+)_')
Shape = tuple[int, ...]
Rows = Mapping[tuple[str, ...], int]


def block_name(number: int) -> str:
  """Returns the name of a block, numbered from 1; three digits make sorted names follow the depth order."""
  return f'block{number:03d}'


class Stage(nn.Module):
  """A sequence of blocks, unrolled or scanned, with stochastic depth.

  The stage calls each block as `block(x, train, keep)`. `keep` is float32 [B]: 1 / (1 - rate) if the example keeps
  this block's residual branch and 0 if it drops it (Huang et al. 2016, but per example, and scaled in training instead
  of in evaluation). It is None in evaluation or without stochastic depth.

  Initialization always uses the unrolled layout (`models.init` stacks the parameters afterwards), so that both
  layouts start with equal values.

  Attributes:
    first: `first(name=...)` makes the first block, which may change the shape.
    rest: `rest(name=...)` makes every other block; if `scan` is set, the block must keep shape and dtype.
    count: number of blocks.
    drop_rates: probability of dropping each block; empty turns stochastic depth off.
    scan: whether to run all blocks but the first as one scanned block.
    remat: whether to recompute the inside of each block in the backward pass.
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

    # Inside a scan, XLA cannot merge the recomputation with the forward pass, so remat needs no barriers.
    inside = nn.remat(run, prevent_cse=False) if self.remat else run

    def body(block, x, keep):
      return inside(block, x, keep), None

    rows = self.count - 1
    scan = nn.scan(body, variable_axes=dict.fromkeys(COLLECTIONS, 0), length=rows)
    x, _ = scan(self.rest(name=trees.SCANNED), x, row(slice(1, None)))
    return x

  def _keep(self, batch: int) -> jax.Array:
    """Draws float32 [count, batch] for all blocks at once, so that both layouts drop the same blocks."""
    key = self.make_rng('stochastic_depth')
    uniform = jax.vmap(lambda index: jax.random.uniform(jax.random.fold_in(key, index), (batch,)))
    survival = 1 - jnp.array(self.drop_rates, jnp.float32).reshape(-1, 1)
    return jnp.where(uniform(jnp.arange(self.count)) < survival, 1 / survival, 0.0)


@dataclasses.dataclass(frozen=True)
class Entry:
  """One part of the network.

  Attributes:
    name: path of its leaves in the unrolled layout, such as `stage1/block002`.
    path: path of its leaves in the model's own layout: the name, or `stage1/scanned`.
    row: its row in the stacked leaves below `path`; None if they are not stacked.
  """

  name: str
  path: str
  row: int | None = None


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the table of blocks.

  Attributes:
    entry: the part of the network.
    shape: output shape for one example; None if the model does not call it (a parameter of the model itself).
    parameters: number of parameters.
    flops: FLOPs of one example's forward pass: 2 per multiply-add of convolutions and matrix products.
  """

  entry: Entry
  shape: Shape | None
  parameters: int
  flops: int


@dataclasses.dataclass(frozen=True)
class Trace:
  """The result of one abstract trace of a model's initialization.

  Attributes:
    table: the entries in depth order, with their shapes and costs.
    variables: `ShapeDtypeStruct` of each variable by collection, in the unrolled layout.
    scanned: path and number of rows of each scanned stage.
    program: function that draws the leaves of `variables` from a key; it is not compiled.
  """

  table: tuple[Row, ...]
  variables: dict[str, Any]
  scanned: Rows
  program: Callable[[jax.Array], list[jax.Array]]


def entries(model: nn.Module, input_shape: Shape) -> tuple[Entry, ...]:
  """Returns the depth list of any Flax module.

  Parameters that the model owns itself, outside any submodule, come first, each as a separate entry.

  Args:
    model: a module with the call `model(x, train)`.
    input_shape: shape of one example, (H, W, C).
  """
  return tuple(row.entry for row in table(model, input_shape))


def table(model: nn.Module, input_shape: Shape) -> tuple[Row, ...]:
  """Returns the entries in depth order with output shape, parameters and FLOPs, without compiling.

  Args:
    model: a module with the call `model(x, train)`.
    input_shape: shape of one example, (H, W, C).
  """
  return trace(model, input_shape).table


@contextlib.contextmanager
def watching(watch: Callable[[Callable[[], Any], nn.Module], Any]) -> Iterator[dict[tuple[str, ...], Stage]]:
  """Routes every call of an entry through `watch` while the context is active.

  Args:
    watch: `watch(run, module) -> output`; `run()` is the call itself. `'/'.join(module.path)` is the `path` of the
      entry, or of all rows of a scanned stage at once.

  Yields:
    The stages called so far, by path.
  """
  stages: dict[tuple[str, ...], Stage] = {}
  running: set[tuple[str, ...]] = set()  # active entries; `watch` skips their helper methods

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
  """Traces `model.init` abstractly; it caches the last model's result, so that a second call costs nothing.

  Args:
    model: a module with the call `model(x, train)`.
    input_shape: shape of one example, (H, W, C).

  Raises:
    errors.InputError: the model has variables in a collection other than `params` and `batch_stats`.
  """
  try:
    hash(model)
  except TypeError:  # a user's module may have a list or dict field
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
  """Counts FLOPs (2 x multiply-adds) of a program by entry index; the key None holds those outside entries."""
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
  """Returns the depth list indices that a leaf belongs to: one, or one per row for a leaf of a scanned stage.

  Args:
    entries: the depth list.
    path: path of the leaf in the model's own layout, joined by '/'.

  Raises:
    errors.InputError: no entry owns the leaf.
  """
  owners = tuple(i for i, entry in enumerate(entries) if path == entry.path or path.startswith(f'{entry.path}/'))
  if not owners:
    raise errors.InputError(f'{path!r} belongs to no entry of this model: {", ".join(e.name for e in entries)}')
  return owners


def scanned_rows(tree: Any) -> Rows:
  """Returns the path and number of rows of each scanned stage in parameters (or shapes) of the scanned layout."""
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
  """Splits scanned stages into blocks: `stage1/scanned` becomes `stage1/block002` and so on.

  The conversion is exact and keeps unrolled stages as they are.

  Args:
    tree: dicts, tuples, lists and dataclasses of arrays (or `ShapeDtypeStruct`s) in which parts mirror the parameters,
      such as parameters, batch statistics, optimizer states and whole train states.
    rows: rows of the stages, from `scanned_rows`; None computes them from `tree`, which must then be nested dicts.

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
  """Stacks the blocks of stages from the second block on: the inverse of `to_unrolled`.

  The conversion is exact and keeps scanned stages as they are.

  Args:
    tree: as in `to_unrolled`.
    rows: rows of the stages to scan, from `scanned_rows` of parameters (or shapes) in the scanned layout.

  Returns:
    The tree in the scanned layout.

  Raises:
    errors.InputError: a stage has another number of blocks, or its blocks differ in structure, shapes or dtypes.
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
  """Applies `convert` to each dict that represents a stage of `rows`, wherever the tree mirrors the parameters."""

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
