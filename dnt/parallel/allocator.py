"""Keeps the C allocator from giving memory back between steps: for programs on CPU, before jax is imported.

XLA allocates the temporary buffer of every call anew, and so do decoders of pictures theirs. glibc maps a large block
from the system and unmaps it when it is freed, so that each step pays for tens of thousands of page faults, and each
photograph for a few hundred. Kept blocks of many MB fit together; of GBs each new one may need room of its own, where
the rest of a freed one was given to something small, so a program that needs such calls `release_large`. This module
does not import jax.
"""

import ctypes
import glob
import os
import platform
import sys

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_MMAP_MAX, _MMAP_LARGEST = 65536, 2**25  # its default, and the largest threshold that glibc takes
_tuned = False  # malloc's own settings are the process', and cannot be read
_ACCELERATORS = ('/dev/nvidia[0-9]*', '/dev/accel*', '/dev/vfio/[0-9]*', '/dev/kfd')


def tune() -> bool:
  """`keep_freed` in a process that computes on CPU alone; libraries must not call this.

  Returns:
    Whether anything was changed.
  """
  global _tuned
  _tuned = cpu_only() and keep_freed()
  return _tuned


def keep_freed() -> bool:
  """Makes malloc keep what is freed, where that can be asked for: glibc on Linux.

  The process holds its peak memory to its end.

  Returns:
    Whether anything was changed.
  """
  if sys.platform != 'linux' or platform.libc_ver()[0] != 'glibc':
    return False
  return _set(
    (_M_MMAP_MAX, 0),  # large blocks come from the heap too
    (_M_TRIM_THRESHOLD, -1),  # whose end is never given back
    (_M_ARENA_MAX, 1),  # and which all threads share
  )


def large() -> int:
  """Bytes of a temporary buffer that are too many to keep: 2 GiB, on small machines an eighth of their memory.

  What is kept of them came to some four times one buffer (benchmarks/RESULTS.md).
  """
  return min(2**31, os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 8)


def release_large(temporary: int) -> bool:
  """Where `tune` keeps what is freed and a program needs too much: blocks from 32 MB on go back to the system again.

  Args:
    temporary: bytes of the program's temporary buffer.

  Returns:
    Whether anything was changed.
  """
  return _tuned and temporary > large() and _set((_M_MMAP_THRESHOLD, _MMAP_LARGEST), (_M_MMAP_MAX, _MMAP_MAX))


def _set(*settings: tuple[int, int]) -> bool:
  libc = ctypes.CDLL(None)
  return all(libc.mallopt(ctypes.c_int(name), ctypes.c_int(value)) for name, value in settings)


def cpu_only() -> bool:
  """Whether jax will find no accelerator here: `JAX_PLATFORMS` says so, or no device file of a GPU or TPU exists."""
  platforms = os.environ.get('JAX_PLATFORMS', '')
  if platforms:
    return platforms == 'cpu'
  return not any(glob.glob(pattern) for pattern in _ACCELERATORS)
