"""Compiles programs, with the XLA options that suit their devices, and keeps them in a cache on disk."""

import contextlib
import glob
import logging
import pathlib
import re
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.sharding import Mesh

from dnt import errors, files
from dnt.parallel import capacity, multihost
from dnt.parallel import mesh as mesh_lib
from dnt.parallel.cpu import allocator, lowering, options

# What to lower if a program does not fit into memory, unless `ahead` gets something better.
REMEDY = 'config.train.batch_size (or config.eval.batch_size), config.data.image_size or the size of the network'
# jax's warning of a program in the cache that was cut off, by the error of zlib or Zstandard; it has no API for this.
_CUT_OFF = "Error reading persistent compilation cache entry for '(.*)': (error|ZstdError): "
_WRITING = 60.0  # seconds in which another process may still be writing a file of the cache
_log = logging.getLogger(__name__)


def jit(fn: Callable, mesh: Mesh | None = None, **kwargs: Any) -> Any:
  """Calls `jax.jit` with the compiler options that suit the devices.

  Args:
    fn: function to compile.
    mesh: the devices that the program runs on, which `mesh.count_devices` counts; None: jax's default device.
    **kwargs: arguments of `jax.jit`, except `compiler_options`.
  """
  if mesh is not None:
    fn = mesh_lib.inside(fn, mesh)
  return jax.jit(fn, compiler_options=compiler_options(mesh), **kwargs)


def compiler_options(mesh: Mesh | None = None) -> dict[str, str] | None:
  """Returns XLA's options for programs that run on the devices of a mesh, or None for its defaults; see `jit`.

  Accelerators get the defaults, which hide the latency of communication. Compiled by jax 0.10.2, the train step of a
  ResNet-8 has the same schedule with each of these options as without it: for four v5e (libtpu 0.0.42)
  `xla_tpu_enable_latency_hiding_scheduler`, `xla_tpu_overlap_compute_collective_tc`, `xla_enable_async_all_reduce` and
  `xla_tpu_enable_data_parallel_all_reduce_opt` (the first one turned off gives another); for four H100
  `xla_gpu_enable_latency_hiding_scheduler`, on or off.
  """
  on_cpu = jax.default_backend() == 'cpu' if mesh is None else mesh_lib.on_cpu(mesh)
  if not on_cpu:
    return None
  lowering.check()
  return options.find()


def check() -> None:
  """Checks that jax compiles at all, as programs are compiled before they run, and with the types of dnt.

  Raises:
    errors.InputError: `jax_disable_jit` or `jax_enable_x64` is set.
  """
  if jax.config.jax_disable_jit:  # ty: ignore[missing-attribute]  # jax adds its options at run time
    raise errors.InputError(
      'jax_disable_jit is set (JAX_DISABLE_JIT=1 or jax.disable_jit()), but dnt compiles its programs before they run: '
      'unset it; to look into a network, call model.apply under it yourself'
    )
  if jax.config.jax_enable_x64:  # ty: ignore[missing-attribute]
    raise errors.InputError(
      'jax_enable_x64 is set (JAX_ENABLE_X64=1 or jax.enable_x64()), with which random draws and sums are others: dnt '
      'trains with the types that config.model.dtype names; unset it'
    )


def ahead(jitted: Any, *args: Any, what: str = 'a compiled program of this config', remedy: str = REMEDY) -> Any:
  """Compiles ahead of time for arguments or their shapes; on CPU it also tunes the allocator for large programs.

  Args:
    jitted: from `jit`.
    *args: its arguments, or their shapes with shardings.
    what: names the program in a message.
    remedy: what to do if it does not fit, after 'lower '.

  Raises:
    errors.InputError: the program needs more memory than the device has, or `jax_disable_jit` is set.
  """
  check()
  lowered = jitted.lower(*args)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:  # for a TPU, XLA itself refuses what does not fit
    first, *_ = str(error).splitlines()
    if 'RESOURCE_EXHAUSTED' not in first:
      raise
    raise errors.InputError(f'{what} does not fit into the memory of a device: lower {remedy} ({first})') from error
  memory = compiled.memory_analysis()
  if memory is not None:
    temporary, kept = memory.temp_size_in_bytes, memory.argument_size_in_bytes
    kept += memory.output_size_in_bytes - memory.alias_size_in_bytes
    parts = f'{capacity.gigabytes(kept)} of arguments and results, {capacity.gigabytes(temporary)} of temporary arrays'
    capacity.check(temporary + kept, capacity.device(), f'{what} ({parts})', remedy)
    allocator.release_large(memory.temp_size_in_bytes)
  return compiled


def on_host() -> contextlib.AbstractContextManager[Any]:
  """Makes jax keep new arrays in the memory of the host: split over many devices, a state need not fit on one.

  Where jax has no CPU devices (`JAX_PLATFORMS=cuda`), the arrays lie on the first accelerator, as usual.
  """
  try:
    return jax.default_device(jax.local_devices(backend='cpu')[0])
  except RuntimeError:
    return contextlib.nullcontext()


def eagerly(fn: Callable) -> Callable:
  """Wraps `fn`, which makes many arrays, to run op by op on the host: NumPy fills constants, jax runs every other op.

  jax compiles a single op once for each shape, which takes about 30 ms. Measured on two cores with jax 0.10.2, the cold
  start of the default config to its first step (benchmarks/startup.py), wall and processor time: 5.9 and 8.3 s; 6.4 and
  9.2 s if jax fills the constants too, 6.2 and 9.3 s if one compiled program each draws parameters and state. As the
  host draws kernels, the compilation cache does not keep those programs: a warm start takes 2.9 s instead of 2.3 s.

  Args:
    fn: pure function; takes and returns pytrees of arrays.
  """

  def run(*args):
    with on_host():
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


def enable_cache(directory: pathlib.Path | None = None) -> None:
  """Caches every compiled program on disk for later processes; `JAX_COMPILATION_CACHE_DIR` overrides `directory`.

  A directory that cannot be written costs a line, and time at the next start; so do programs there that are damaged.

  Args:
    directory: directory of the cache, created if missing; default: `~/.cache/dnt/xla`.
  """
  given = jax.config.jax_compilation_cache_dir  # ty: ignore[missing-attribute]  # jax adds its options at run time
  directory = pathlib.Path(given) if given else directory or files.cache_folder('xla')
  if given and '://' in given:  # a bucket
    problem = ''
  else:
    problem = files.why_not_writable(directory) if directory else 'there is no home folder'
  if problem or not directory:
    where = f' in {directory}' if directory else ''
    _log.info(f'compiled programs are not kept{where} ({problem}), so the next start compiles them again')
    jax.config.update('jax_compilation_cache_dir', None)
    return
  if not given:
    jax.config.update('jax_compilation_cache_dir', str(directory))
  # A disk that fills up later would cause a warning for each program, and it leaves files that are cut off.
  warnings.filterwarnings('ignore', 'Error (reading|writing) persistent compilation cache entry')
  _remove_cut_off(directory)
  # By default jax caches only programs that compile for at least a second, which excludes most of those at the start.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def _remove_cut_off(directory: pathlib.Path) -> None:
  """Removes what was cut off in the cache from now on, when jax warns of it, so that jax writes it anew.

  jax leaves a file that is there as it is, and would compile its program at every start. It names the program alone, so
  those of the same name in other configs go too. A file that another process is still writing stays, without a line.
  """
  show, removed = warnings.showwarning, []

  def remove(program):
    for path in directory.glob(f'{glob.escape(program)}-*-cache'):
      with contextlib.suppress(OSError):  # another process has removed it, or this user may not
        if time.time() - path.stat().st_mtime > _WRITING:
          path.unlink()
          removed.append(path)

  def showwarning(message, *where):
    if cut_off := re.match(_CUT_OFF, str(message)):
      first = not removed
      remove(cut_off[1])
      if first and removed:
        _log.info(f'compiled programs in {directory} are damaged, as a full disk leaves them; they are compiled anew')
    else:
      show(message, *where)

  warnings.filterwarnings('always', _CUT_OFF)
  warnings.showwarning = showwarning  # ty: ignore[invalid-assignment]  # Python allows it


def keep_cache_if_shared() -> None:
  """Turns the cache off if processes on GPUs do not share it; every process calls it before it compiles anything.

  jax writes to the cache in process 0 only. A process that does not find a program there compiles it, and XLA then
  waits for the kernels that the others tune, which do not compile if they have found it.
  """
  if multihost.is_single() or jax.default_backend() != 'gpu':
    return
  directory = jax.config.jax_compilation_cache_dir  # ty: ignore[missing-attribute]
  jax.config.update('jax_compilation_cache_dir', None)  # also for the programs of this comparison
  places = multihost.gather_from_all(directory)
  if any(place is None or '://' in place for place in places):  # there is none, or it is a bucket
    shared = len({*places}) == 1
  else:
    shared = all(multihost.gather_from_all(multihost.sees_files_of_lead(pathlib.Path(directory))))
  if shared:
    jax.config.update('jax_compilation_cache_dir', directory)
  elif directory:
    _log.info(
      f'compiled programs are not kept in {directory} (not all processes share it), so the next start compiles them '
      'again'
    )
