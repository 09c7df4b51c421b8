"""Keeps the C allocator from returning memory to the system between steps; for programs on CPU, before importing jax.

XLA allocates a new temporary buffer in every call, and image decoders do the same. glibc maps a large block from the
system and unmaps it when it is freed, so each step costs tens of thousands of page faults, and each photograph a few
hundred. Kept blocks of many MB are reused without waste. Kept blocks of GBs fragment: once a small allocation takes
part of one, the next large block may need new memory. A program with such blocks therefore calls `release_large`. This
module does not import jax.
"""

import ctypes
import glob
import os
import platform
import sys

from dnt.parallel import cpu

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_MMAP_MAX, _MMAP_LARGEST = 65536, 2**25  # glibc's default, and its largest valid threshold
_tuned = False  # whether this process has tuned malloc, whose settings cannot be read
_ACCELERATORS = ('/dev/nvidia[0-9]*', '/dev/accel*', '/dev/vfio/[0-9]*', '/dev/kfd')


def tune() -> None:
  """Calls `keep_freed` if this process computes on CPU only; libraries must not call this."""
  global _tuned
  _tuned = cpu_only() and keep_freed()


def keep_freed() -> bool:
  """Makes malloc keep freed memory, on Linux with glibc; elsewhere it does nothing.

  The process then holds its peak memory until it ends.

  Returns:
    Whether any setting was changed.
  """
  if not cpu.uses('allocator') or sys.platform != 'linux' or platform.libc_ver()[0] != 'glibc':
    return False
  return _set(
    (_M_MMAP_MAX, 0),  # takes large blocks from the heap too
    (_M_TRIM_THRESHOLD, -1),  # never returns the end of the heap
    (_M_ARENA_MAX, 1),  # shares one heap among all threads
  )


def large() -> int:
  """Returns the size in bytes above which temporary buffers are not kept: 2 GiB, or 1/8 of a small machine's memory.

  Measured: if they are kept, about four times the buffer size stays resident (benchmarks/RESULTS.md).
  """
  return min(2**31, os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 8)


def release_large(temporary: int) -> None:
  """Lets malloc return freed blocks of 32 MB and more to the system, if `tune` keeps them and `temporary` is too large.

  Args:
    temporary: bytes of the program's temporary buffer, compared with `large`.
  """
  if _tuned and temporary > large():
    _set((_M_MMAP_THRESHOLD, _MMAP_LARGEST), (_M_MMAP_MAX, _MMAP_MAX))


def _set(*settings: tuple[int, int]) -> bool:
  libc = ctypes.CDLL(None)
  return all(libc.mallopt(ctypes.c_int(name), ctypes.c_int(value)) for name, value in settings)


def cpu_only() -> bool:
  """Returns whether jax will find no accelerator: `JAX_PLATFORMS` is cpu, or unset without a GPU or TPU device file."""
  platforms = os.environ.get('JAX_PLATFORMS', '')
  if platforms:
    return platforms == 'cpu'
  return not any(glob.glob(pattern) for pattern in _ACCELERATORS)
