"""How programs are compiled: XLA's options for this backend and version, and the cache on disk."""

import functools
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core

from dnt import errors
from dnt.parallel import allocator

_log = logging.getLogger('dnt')

# On CPU, the options for each jax version on which tests tried them, with the compilation cache on; measured by
# benchmarks/step.py. XLA's defaults are the fastest on 0.12 (its oneDNN calls are 10 % faster, but crash the cache).
_CPU_OPTIONS = {
  '0.10.2': {
    # Keeps optimization barriers, and takes YNNPACK's sums and single dots but Eigen's convolutions.
    'xla_disable_hlo_passes': 'cse_barrier_expander',
    'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE',
  },
  '0.12.0.1': {},
}


def jit(fn: Callable, **kwargs: Any) -> Any:
  """`jax.jit` with the compiler options that suit the backend, which it initializes.

  Args:
    fn: what to compile.
    **kwargs: of `jax.jit`, but for `compiler_options`.
  """
  return jax.jit(fn, compiler_options=compiler_options(), **kwargs)


def ahead(jitted: Any, *args: Any) -> Any:
  """Compiles for arguments or their shapes, before they are at hand; on CPU it sees to the memory of large programs."""
  compiled = jitted.lower(*args).compile()
  memory = compiled.memory_analysis()
  if memory is not None:
    allocator.release_large(memory.temp_size_in_bytes)
  return compiled


def eagerly(fn: Callable) -> Callable:
  """`fn` for programs that draw or fill many small arrays: constants are filled by NumPy, all else runs op by op.

  An op by itself is compiled once for each shape, some 30 ms each, which for constants is most of what a start takes.

  Args:
    fn: pure; takes and returns pytrees of arrays.
  """

  def run(*args):
    program, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    return jax.tree.unflatten(jax.tree.structure(shapes), evaluate(program, *jax.tree.leaves(args)))

  return run


def evaluate(program: core.ClosedJaxpr, *args: Any) -> list[Any]:
  """The outputs of a traced program, without compiling it; see `eagerly`."""
  filled = {}
  for equation in program.jaxpr.eqns:
    if equation.primitive.name == 'broadcast_in_dim' and isinstance(equation.invars[0], core.Literal):
      aval = equation.outvars[0].aval
      filled[equation.outvars[0]] = np.full(aval.shape, equation.invars[0].val, aval.dtype)

  def is_filled(variable):
    return not isinstance(variable, core.Literal) and variable in filled

  outputs = program.jaxpr.outvars
  rest = [variable for variable in outputs if not is_filled(variable)]
  computed = iter(core.jaxpr_as_fun(_without_dead_code(program, rest))(*args))
  return [filled[variable] if is_filled(variable) else next(computed) for variable in outputs]


def _without_dead_code(program: core.ClosedJaxpr, outputs: list[Any]) -> core.ClosedJaxpr:
  needed, kept = {variable for variable in outputs if not isinstance(variable, core.Literal)}, []
  for equation in reversed(program.jaxpr.eqns):
    if not needed.isdisjoint(equation.outvars):
      kept.append(equation)
      needed.update(variable for variable in equation.invars if not isinstance(variable, core.Literal))
  return program.replace(jaxpr=program.jaxpr.replace(eqns=kept[::-1], outvars=outputs))


@functools.cache
def compiler_options() -> dict[str, str] | None:
  """The options for this backend and jax version; None: XLA's defaults, which CPUs get with a warning if untested."""
  if jax.default_backend() != 'cpu':
    return None
  if jax.__version__ not in _CPU_OPTIONS:
    tested = ', '.join(_CPU_OPTIONS)
    _log.warning('jax %s is untested (tested: %s): XLA compiles with its default options', jax.__version__, tested)
  return _CPU_OPTIONS.get(jax.__version__) or None


def enable_cache(directory: pathlib.Path | None = None) -> None:
  """Keeps every compiled program in a directory for later processes, unless `JAX_COMPILATION_CACHE_DIR` names another.

  Args:
    directory: made if it is not there; default: `~/.cache/dnt/xla`.

  Raises:
    errors.InputError: a directory that cannot be made.
  """
  if jax.config.jax_compilation_cache_dir is None:
    directory = directory or pathlib.Path.home() / '.cache' / 'dnt' / 'xla'
    try:
      directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise errors.InputError(f'cannot make the compilation cache {directory}: {error.strerror}') from error
    jax.config.update('jax_compilation_cache_dir', str(directory))
  # The default skips programs of less than a second, which is most of those at the start.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
