"""Compiles quickly, for tests of what happens, or of numbers to a tolerance.

XLA's older emitters compile the train step of a ResNet-8 in a third of the processor time (0.6 instead of 1.9 s with
jax 0.10.2); newer versions have them no more.
"""

import contextlib

import jax
import pytest

from dnt.parallel.cpu import options

OLDER_EMITTERS = {'xla_cpu_use_fusion_emitters': False} if jax.__version__ == '0.10.2' else {}
QUICK = {'xla_backend_optimization_level': 0, **OLDER_EMITTERS}  # compiler options of a program
XLA_FLAGS = ' '.join(f'--{name}={str(value).lower()}' for name, value in OLDER_EMITTERS.items())  # of a process


@contextlib.contextmanager
def unoptimized():
  """Programs of dnt are compiled by the older emitters, and all programs without most of XLA's optimizations."""
  find = options.find
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(options, 'find', lambda: {**(find() or {}), **OLDER_EMITTERS} or None)
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)
