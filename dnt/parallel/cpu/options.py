"""Holds the XLA options for CPU of each jax version."""

import functools
import logging

import jax

from dnt.parallel import cpu

_log = logging.getLogger('dnt')

# For each tested jax version; tests ran with the compilation cache on, benchmarks/step.py measured the speed. XLA's
# defaults are the fastest on 0.12, without the gradients of 1x1 kernels that `lowering` rewrites (its oneDNN calls are
# 10 % faster on small networks, but crash the cache).
OPTIONS = {
  '0.10.2': {
    # Keeps optimization barriers, and uses YNNPACK for sums and single dots but Eigen for convolutions.
    'xla_disable_hlo_passes': 'cse_barrier_expander',
    'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE',
  },
  '0.12.0.1': {},
}


@functools.cache
def find() -> dict[str, str] | None:
  """Returns the options of this jax version, or None for XLA's defaults; warns if the version is untested."""
  if not cpu.uses('options'):
    return None
  if jax.__version__ not in OPTIONS:
    tested = ', '.join(OPTIONS)
    _log.warning('jax %s is untested (tested: %s): XLA compiles with its default options', jax.__version__, tested)
  return OPTIONS.get(jax.__version__) or None
