"""Finds the activations that a user's own module calls as plain functions, such as `nn.relu(x)`, in the traced program.

A part of the program is pointwise if each of its values depends on one value of a single array, its source. An
activation is the last array of such a part with a kink or a saturation in it, whatever function it is: `nn.relu`,
`jnp.maximum(x, 0)`, `x * nn.sigmoid(x)`. It belongs to the entry of the depth list that computes it, or from whose
output it is computed outside of any entry. Activations inside loops, remat or functions under jit are not found, but
their entries are known.
"""

import contextlib
import math
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from dnt import trees
from dnt.models import activations as activations_lib
from dnt.models import depth

# Names of primitives: those that keep a value, and others that are pointwise, without and with a kink or a saturation.
_SAME = re.compile('copy|copy_p|convert_element_type|stop_gradient|optimization_barrier|cpu_barrier')
_SMOOTH = re.compile(
  'add|add_any|sub|mul|div|neg|square|integer_pow|pow|exp|exp2|expm1|log|sqrt|rsqrt|cbrt|eq|ne|lt|le|gt|ge|and|or|not|'
  'is_finite|reduce_precision'
)
_BENT = re.compile(
  'max|min|clamp|select_n|abs|sign|tanh|logistic|erf|erfc|sin|cos|atan|asinh|log1p|sinh|cosh|round|floor|ceil'
)
_SATURATING = {'tanh': 'tanh', 'logistic': 'sigmoid'}  # primitives, and the kinds of `activations`
_ENTRY, _IGNORED = re.compile(r'dnt_path_(\d+)_'), 'dnt_ignored_'


class Activation(NamedTuple):
  """Describes an activation in a traced program.

  Attributes:
    path: path of its entry, see `depth.Entry`.
    kind: 'sigmoid', 'tanh' or '' for any other.
    after: whether it comes after its entry, outside of any.
    shape: [B, ..., units].
  """

  path: str
  kind: str
  after: bool
  shape: tuple[int, ...]


class Program(NamedTuple):
  """Holds a traced function and its activations.

  Attributes:
    closed: the traced function.
    structure: tree of its result.
    found: the activations, each with the variable that holds it, in the order of the program.
    unknown: paths of the entries with activations that were not found.
  """

  closed: core.ClosedJaxpr
  structure: Any
  found: dict[core.Var, Activation]
  unknown: frozenset[str]


def ignored() -> contextlib.AbstractContextManager[None]:
  """Marks all operations traced inside the context as no part of the network."""
  return jax.named_scope(_IGNORED)


def trace(fn: Callable, variables: Any, x: jax.Array, *rest: Any) -> Program:
  """Traces `fn(variables, x, *rest)`, which applies a module to x [B, ...], and finds its activations."""
  paths: dict[str, int] = {}

  def mark(run, module):
    with jax.named_scope(f'dnt_path_{paths.setdefault("/".join(module.path), len(paths))}_'):
      return run()

  with depth.intercept(mark), _ignoring_layers():
    # A function of its own: jax remembers what it traced, but not the contexts.
    closed, shapes = jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)(variables, x, *rest)
  first = len(jax.tree.leaves(variables))
  found, unknown = _search(closed.jaxpr, closed.jaxpr.invars[first])
  names = list(paths)
  activations = {at: Activation(names[each.entry], each.kind, each.after, _shape(at)) for at, each in found.items()}
  # The rows of a scanned stage share a path, so that an activation after the last one would be that of all.
  activations = {at: each for at, each in activations.items() if not trees.is_scanned(each.path)}
  return Program(closed, jax.tree.structure(shapes), activations, frozenset(names[index] for index in unknown))


@contextlib.contextmanager
def _ignoring_layers() -> Generator[None]:
  """Ignores what layers of flax do inside, such as the maximum in a norm, and the activations that are modules."""

  def intercept(next_fun, args, kwargs, context):
    kind = type(context.module)
    own = kind.__module__.startswith('flax.') and kind is not nn.Sequential
    with ignored() if own or kind is activations_lib.Activation else contextlib.nullcontext():
      return next_fun(*args, **kwargs)

  with nn.intercept_methods(intercept):
    yield


def run(program: Program, args: Sequence[Any], hook: Callable[[Activation, jax.Array], jax.Array]) -> Any:
  """Runs a program; each activation becomes what `hook(activation, value)` returns.

  Args:
    program: from `trace`.
    args: the arguments of its function.
    hook: called in the order of the program.
  """
  jaxpr = program.closed.jaxpr
  values = dict(zip(jaxpr.constvars, program.closed.consts, strict=True))
  values |= dict(zip(jaxpr.invars, jax.tree.leaves(tuple(args)), strict=True))
  waiting: list[core.JaxprEqn] = []

  def advance(wanted):
    """Runs the equations that wait, for the variables that are used later."""
    made = {variable for equation in waiting for variable in equation.outvars}
    given = dict.fromkeys(v for e in waiting for v in e.invars if not isinstance(v, core.Literal) and v not in made)
    kept = [variable for variable in dict.fromkeys(wanted) if variable in made]
    part = jaxpr.replace(constvars=(), invars=list(given), outvars=kept, eqns=list(waiting))
    outputs = core.jaxpr_as_fun(core.ClosedJaxpr(part, ()))(*(values[variable] for variable in given))
    values.update(zip(kept, outputs, strict=True))
    waiting.clear()

  for index, equation in enumerate(jaxpr.eqns):
    waiting.append(equation)
    for variable in equation.outvars:
      if variable in program.found:
        later = [v for e in jaxpr.eqns[index + 1 :] for v in e.invars if not isinstance(v, core.Literal)]
        advance([variable, *later, *(v for v in jaxpr.outvars if not isinstance(v, core.Literal))])
        values[variable] = hook(program.found[variable], values[variable])
  advance([v for v in jaxpr.outvars if not isinstance(v, core.Literal)])
  outputs = [v.val if isinstance(v, core.Literal) else values[v] for v in jaxpr.outvars]
  return jax.tree.unflatten(program.structure, outputs)


def following(program: Program, path: str, output: core.Var, logits: core.Var) -> Activation | None:
  """Returns the activation after an entry that stands for its output: of its shape, and on every way to the logits.

  Where a skip path passes an activation by, the gradient there is only a part of that at the entry.

  Args:
    program: from `trace`.
    path: path of the entry.
    output: holds the output of the entry.
    logits: holds the logits.
  """

  def passed_by(activation):
    reached = {output}
    for equation in program.closed.jaxpr.eqns:
      inputs = [v for v in equation.invars if not isinstance(v, core.Literal)]
      # A call, as of remat, returns the output twice: what the entry returns, and what was captured.
      if output in equation.outvars or (activation not in equation.outvars and not reached.isdisjoint(inputs)):
        reached.update(equation.outvars)
    return logits in reached

  after = {at: each for at, each in program.found.items() if each.path == path and each.after}
  fitting = (each for at, each in after.items() if each.shape == _shape(output) and not passed_by(at))
  return next(fitting, None)


class _Value(NamedTuple):
  """Describes a variable that depends on the images.

  Attributes:
    entry: number of its entry, -1 before the first.
    source: the array of which it is a pointwise function.
    bent: whether this function has a kink or a saturation.
    kind: as in `Activation`.
    after: as in `Activation`.
  """

  entry: int
  source: core.Var
  bent: bool = False
  kind: str = ''
  after: bool = True


def _search(jaxpr: core.Jaxpr, images: core.Var) -> tuple[dict[core.Var, _Value], set[int]]:
  """Returns the variables that hold activations, and the numbers of the entries with others inside a call."""
  known: dict[core.Var, _Value] = {images: _Value(-1, images)}
  leaving: set[core.Var] = {variable for variable in jaxpr.outvars if not isinstance(variable, core.Literal)}
  unknown = set()
  for equation in jaxpr.eqns:
    inputs = {v: known[v] for v in equation.invars if not isinstance(v, core.Literal) and v in known}
    if not inputs:
      continue
    marked, before = _entry_of(equation), list(inputs.values())
    entry = max(value.entry for value in before) if marked is None else marked
    sources = {value.source for value in before}
    primitives = None if _is_ignored(equation) else _pointwise(equation, inputs)
    joined = primitives is not None and len(sources) == 1 and all(value.entry == entry for value in before)
    bends = primitives is not None and any(map(_BENT.fullmatch, primitives)) and not _has_mask(equation, known)
    bent = joined and (bends or any(value.bent for value in before))
    kind = ''
    if joined and primitives and all(map(_SAME.fullmatch, primitives)):
      kind = before[0].kind
    elif joined and primitives and len(primitives) == 1:
      kind = _SATURATING.get(next(iter(primitives)), '')
    for variable in equation.outvars:
      known[variable] = _Value(entry, before[0].source if joined else variable, bent, kind, marked is None)
    if not joined:
      leaving.update(inputs)
    if primitives is None and not _is_ignored(equation) and _hides_activation(equation, known):
      unknown.add(entry)
  found = {
    variable: value
    for variable, value in known.items()
    if value.bent and variable in leaving and value.entry >= 0 and _has_units(variable)
  }
  return found, unknown - {-1}


def _entry_of(equation: core.JaxprEqn) -> int | None:
  """Returns the number of the entry of an equation: in a loop or remat, the last one inside; None: it is in none."""
  if mark := _ENTRY.search(str(equation.source_info.name_stack)):
    return int(mark[1])
  inside = [_entry_of(each) for inner in core.jaxprs_in_params(equation.params) for each in inner.eqns]
  return max((number for number in inside if number is not None), default=None)


def _is_ignored(equation: core.JaxprEqn) -> bool:
  return _IGNORED in str(equation.source_info.name_stack)


def _hides_activation(equation: core.JaxprEqn, known: Mapping[core.Var, _Value]) -> bool:
  """Returns whether an equation is a call with an activation inside, which may be the output."""
  if not any(core.jaxprs_in_params(equation.params)) or _has_mask(equation, known):
    return False
  return any(map(_has_units, equation.outvars)) and _is_bent(equation)


def _is_bent(equation: core.JaxprEqn) -> bool:
  inner = list(core.jaxprs_in_params(equation.params))
  if inner:
    return any(_is_bent(each) for part in inner for each in part.eqns if not _is_ignored(each))
  return any(map(_BENT.fullmatch, _inside(equation)))


def _shape(variable: core.Var | core.Literal) -> tuple[int, ...]:
  aval: Any = variable.aval  # of an array
  return aval.shape


def _dtype(variable: core.Var | core.Literal) -> Any:
  aval: Any = variable.aval  # of an array
  return aval.dtype


def _has_units(variable: core.Var) -> bool:
  # An array with a last axis of 1 is a norm or a mean.
  return jnp.issubdtype(_dtype(variable), jnp.inexact) and len(_shape(variable)) > 1 and _shape(variable)[-1] > 1


def _has_mask(equation: core.JaxprEqn, known: Mapping[core.Var, _Value]) -> bool:
  """Returns whether an equation selects by a mask that does not depend on the images."""
  return any(
    not isinstance(v, core.Literal) and v not in known and jnp.issubdtype(_dtype(v), jnp.bool_) for v in equation.invars
  )


def _pointwise(equation: core.JaxprEqn, inputs: Iterable[core.Var]) -> set[str] | None:
  """Returns the primitives of an equation whose outputs are pointwise functions of these inputs, else None."""
  names = _inside(equation)
  shapes = {_shape(variable) for variable in (*inputs, *equation.outvars)}
  pointwise = all(any(kind.fullmatch(name) for kind in (_SAME, _SMOOTH, _BENT)) for name in names)
  return names if pointwise and len(shapes) == 1 else None


def _inside(equation: core.JaxprEqn) -> set[str]:
  """Returns the primitives of an equation, those inside it if it is a call."""
  inner = list(core.jaxprs_in_params(equation.params))
  if equation.primitive.name in ('max', 'min') and any(_is_infinite(v) for v in equation.invars):
    return {'copy'}  # such as the maximum in a softmax
  if equation.primitive.name == 'broadcast_in_dim' and not _shape(equation.invars[0]):
    return set()  # a constant
  calls = {name for each in inner for e in each.eqns for name in _inside(e)}
  return calls if inner else {equation.primitive.name}


def _is_infinite(variable: Any) -> bool:
  return isinstance(variable, core.Literal) and math.isinf(variable.val)
