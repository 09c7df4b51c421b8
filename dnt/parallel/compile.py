"""Compiles programs: XLA's options for this backend and jax version, and the compilation cache on disk."""

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

_log = logging.getLogger(__name__)

# The CPU options for each tested jax version; tests ran with the compilation cache on, benchmarks/step.py measured the
# speed. XLA's defaults are the fastest on 0.12 (its oneDNN calls are 10 % faster, but crash the cache).
_CPU_OPTIONS = {
  '0.10.2': {
    # Keeps optimization barriers, and uses YNNPACK for sums and single dots but Eigen for convolutions.
    'xla_disable_hlo_passes': 'cse_barrier_expander',
    'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE',
  },
  '0.12.0.1': {},
}


def jit(fn: Callable, **kwargs: Any) -> Any:
  """Calls `jax.jit` with the compiler options that suit the backend; it initializes the backend.

  Args:
    fn: function to compile.
    **kwargs: arguments of `jax.jit`, except `compiler_options`.
  """
  return jax.jit(fn, compiler_options=compiler_options(), **kwargs)


def ahead(jitted: Any, *args: Any) -> Any:
  """Compiles ahead of time for arguments or their shapes; on CPU it also tunes the allocator for large programs."""
  compiled = jitted.lower(*args).compile()
  memory = compiled.memory_analysis()
  if memory is not None:
    allocator.release_large(memory.temp_size_in_bytes)
  return compiled


def eagerly(fn: Callable) -> Callable:
  """Wraps `fn`, which makes many small arrays, to run op by op: NumPy fills constants, jax runs every other op.

  jax compiles a single op once for each shape, which takes about 30 ms. For constants this would be most of the time of
  a start.

  Args:
    fn: pure function; takes and returns pytrees of arrays.
  """

  def run(*args):
    program, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    return jax.tree.unflatten(jax.tree.structure(shapes), evaluate(program, *jax.tree.leaves(args)))

  return run


def evaluate(program: core.ClosedJaxpr, *args: Any) -> list[Any]:
  """Computes the outputs of a traced program without compiling it as a whole; see `eagerly`."""
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
  """Returns the options for this backend, or None for XLA's defaults; on CPU, warns if the jax version is untested."""
  if jax.default_backend() != 'cpu':
    return None
  if jax.__version__ not in _CPU_OPTIONS:
    tested = ', '.join(_CPU_OPTIONS)
    _log.warning('jax %s is untested (tested: %s): XLA compiles with its default options', jax.__version__, tested)
  return _CPU_OPTIONS.get(jax.__version__) or None


def enable_cache(directory: pathlib.Path | None = None) -> None:
  """Caches every compiled program on disk for later processes; `JAX_COMPILATION_CACHE_DIR` overrides `directory`.

  Args:
    directory: directory of the cache, created if missing; default: `~/.cache/dnt/xla`.

  Raises:
    errors.InputError: the directory cannot be created.
  """
  if jax.config.jax_compilation_cache_dir is None:
    directory = directory or pathlib.Path.home() / '.cache' / 'dnt' / 'xla'
    try:
      directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise errors.InputError(f'cannot make the compilation cache {directory}: {error.strerror}') from error
    jax.config.update('jax_compilation_cache_dir', str(directory))
  # By default jax caches only programs that compile for at least a second, which excludes most of those at the start.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
