"""The depth list: a network's entries in the order they run, and the code that depends on that order.

An entry is a direct submodule of the model, in call order, with each `stage.Stage` expanded into its blocks:
`stem, stage1/block001, ..., head`. Freezing, layer-wise rates, telemetry, block-wise clipping and the table of blocks
all index this list. `trace` computes it for any Flax module from one abstract trace.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dnt import errors, trees
from dnt.models import activations, flops, initializers, layouts
from dnt.models import stage as stage_lib
from dnt.parallel import compile as compile_lib

Shape = tuple[int, ...]
LAYERS = 10_000  # most that dnt builds


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
    activation: path and output shape of the activation before the pooling, in a head of dnt's own that begins with one;
      else None.
  """

  entry: Entry
  shape: Shape | None
  parameters: int
  flops: int
  activation: tuple[str, Shape] | None = None


@dataclasses.dataclass(frozen=True)
class Trace:
  """The result of one abstract trace of a model's initialization.

  Attributes:
    table: the entries in depth order, with their shapes and costs. Parameters that the model owns itself, outside any
      submodule, come first, each as a separate entry.
    outside: FLOPs of one example's forward pass outside of all entries, as of a user's own module.
    variables: `ShapeDtypeStruct` of each variable by collection, in the unrolled layout.
    scanned: number of rows of each stage by path, 0 where it is not scanned.
    program: function that draws the leaves of `variables` from a key; it is not compiled.
  """

  table: tuple[Row, ...]
  outside: int
  variables: dict[str, Any]
  scanned: layouts.Rows
  program: Callable[[jax.Array], list[jax.Array]]

  @property
  def entries(self) -> tuple[Entry, ...]:
    """Returns the depth list."""
    return tuple(row.entry for row in self.table)


def head(table: Sequence[Row]) -> Entry:
  """Returns the last entry with parameters, which gives the classes; a pooling may follow it."""
  return [row.entry for row in table if row.parameters][-1]


@contextlib.contextmanager
def intercept(
  watch: Callable[[Callable[[], Any], nn.Module], Any],
) -> Generator[dict[tuple[str, ...], stage_lib.Stage]]:
  """Routes every call of an entry through `watch` while the context is active.

  Args:
    watch: `watch(run, module) -> output`; `run()` is the call itself. `'/'.join(module.path)` is the `path` of the
      entry, or of all rows of a scanned stage at once.

  Yields:
    The stages called so far, by path.
  """
  stages: dict[tuple[str, ...], stage_lib.Stage] = {}
  running: set[tuple[str, ...]] = set()  # active entries; `watch` skips their helper methods

  def intercept(next_fun, args, kwargs, context):
    module = context.module
    if module.scope is None or not module.path or context.method_name == 'setup':
      return next_fun(*args, **kwargs)
    path = module.path
    if isinstance(module, stage_lib.Stage):
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
  """Traces `model.init` abstractly, which takes a second for a deep network; `Experiment.trace` keeps the result.

  Args:
    model: a module with the call `model(x, train)`.
    input_shape: shape of one example, (H, W, C).

  Raises:
    errors.InputError: the model has variables in a collection other than `params` and `batch_stats`, variables that no
      path of dnt names, or an entry with an empty output, as the images are too small for it; or a user's own module
      draws random numbers in evaluation.
  """
  calls: dict[str, Shape | None] = {}
  activated: dict[str, tuple[str, Shape]] = {}
  own = not getattr(model, 'calls_functions', False)

  def record(run, module):
    name = '/'.join(module.path)
    calls.setdefault(name, None)
    with flops.mark(list(calls).index(name)):
      output = run()
    shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(output) if hasattr(leaf, 'shape')]
    calls[name] = shapes[0] if shapes else None
    if 0 in (calls[name] or ()):
      raise errors.InputError(
        f'of images of {"x".join(map(str, input_shape))} nothing is left after the entry {name!r} of the network, '
        f'whose output is {"x".join(map(str, shapes[0]))}: set a larger config.data.image_size, or take a network that '
        "makes them smaller by less (such as one with config.model.stem='cifar')"
      )
    return output

  def watch(next_fun, args, kwargs, context):
    output = next_fun(*args, **kwargs)
    module = context.module
    if own and isinstance(module, activations.Activation) and context.method_name == '__call__' and output.ndim == 4:
      activated[module.path[0]] = '/'.join(module.path), output.shape[1:]
    return output

  def run(key):
    return model.init(key, jnp.zeros((1, *input_shape)), train=False)

  key = jax.eval_shape(lambda: jax.random.key(0, impl=initializers.PRNG))
  with intercept(record) as stages, nn.intercept_methods(watch):
    program, variables = jax.make_jaxpr(run, return_shape=True)(key)
  foreign = set(variables) - {'params', 'batch_stats'}
  if foreign:
    raise errors.InputError(
      f'the model keeps variables in the collection {sorted(foreign)[0]!r}; only params and batch_stats are trained, '
      'saved and restored'
    )
  _check_names(variables)
  scanned = {path: stage.count - 1 if stage.scan else 0 for path, stage in stages.items()}
  if not own:  # `init` lets it draw from any rng, evaluation from none
    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    jax.eval_shape(functools.partial(model.apply, train=False), layouts.to_scanned(variables, scanned), x)
  cost = flops.count(program.jaxpr)
  owned = [name for name, leaf in variables.get('params', {}).items() if not isinstance(leaf, Mapping)]
  rows = [Row(_entry(name, {}), None, int(math.prod(variables['params'][name].shape)), 0) for name in owned]
  for index, (name, shape) in enumerate(calls.items()):
    parameters = trees.count(trees.subtree(variables.get('params', {}), name))
    pools = shape is not None and len(shape) == 1
    rows.append(Row(_entry(name, scanned), shape, parameters, cost[index], activated.get(name) if pools else None))
  return Trace(tuple(rows), cost[None], variables, scanned, functools.partial(compile_lib.evaluate, program))


def _check_names(variables: Mapping[str, Any]) -> None:
  """Raises an `errors.InputError` if the '/'-joined path of a variable would not name it, see `trees`."""
  for keys, _ in jax.tree_util.tree_flatten_with_path(variables)[0]:
    names = [key.key if isinstance(key, jax.tree_util.DictKey) else None for key in keys]
    wrong = ''
    if not all(isinstance(name, str) for name in names):
      wrong = 'variables must be arrays or dicts of arrays by name, with nothing else around them'
    elif any('/' in str(name) for name in names):
      wrong = (
        "'/' may not be in a name, because it joins names to paths. nn.SpectralNorm and nn.WeightNorm of flax make "
        'such names: write the normalization as a module of your own'
      )
    elif trees.SCANNED in names:
      wrong = f'the name {trees.SCANNED!r} is for the blocks of a scanned stage; give another'
    if wrong:
      name = jax.tree_util.keystr(keys[1:], simple=True, separator=' > ')
      raise errors.InputError(f'the network has the variable {name!r}: {wrong}')


def _entry(name: str, scanned: layouts.Rows) -> Entry:
  stage, _, block = name.partition('/')
  number = layouts.block_number(block) if scanned.get((stage,)) else 1
  if number == 1:
    return Entry(name, name)
  return Entry(name, f'{stage}/{trees.SCANNED}', number - 2)


def find_owners(entries: Sequence[Entry], paths: Iterable[str]) -> dict[str, tuple[int, ...]]:
  """Returns the depth list indices that each leaf belongs to: one, or one per row for a leaf of a scanned stage.

  Args:
    entries: the depth list.
    paths: paths of the leaves in the model's own layout, joined by '/'.

  Raises:
    errors.InputError: no entry owns a leaf.
  """
  below: dict[str, list[int]] = {}
  for i, entry in enumerate(entries):
    below.setdefault(entry.path, []).append(i)
  result = {}
  for path in paths:
    # An entry owns the leaf of its own path and all leaves below it.
    owners = [i for above in trees.prefixes(path) for i in below.get(above, ())]
    if not owners:
      raise errors.InputError(f'{path!r} belongs to no entry of this model: {", ".join(e.name for e in entries)}')
    result[path] = tuple(sorted(owners))
  return result
