"""Finds how much memory there is, and refuses what cannot fit into it before it is allocated."""

import math
import os
import pathlib
import resource
import sys
from collections.abc import Iterator

import jax

from dnt import errors

_GROUPS, _OWN_GROUPS = pathlib.Path('/sys/fs/cgroup'), pathlib.Path('/proc/self/cgroup')


def host() -> int:
  """Returns the bytes that this process can have: the memory of the machine, or a lower limit of its control group."""
  physical = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  soft, _ = resource.getrlimit(resource.RLIMIT_AS)  # `ulimit -v`
  own = [] if soft == resource.RLIM_INFINITY else [soft]
  return min([physical, *own, *_group_limits(_GROUPS, _OWN_GROUPS)])


def device() -> int:
  """Returns the bytes of one device of this process; CPU devices share the memory of the host.

  An accelerator whose allocator states no limit (such as `XLA_PYTHON_CLIENT_ALLOCATOR=platform`) counts as unlimited.
  """
  devices = jax.local_devices()
  if devices[0].platform == 'cpu':
    return host() // len(devices)
  return (devices[0].memory_stats() or {}).get('bytes_limit') or sys.maxsize


def check(needed: float, available: int, what: str, remedy: str) -> None:
  """Refuses what needs more memory than there is.

  Args:
    needed: bytes that it needs at least.
    available: from `host` or `device`.
    what: names it and its size: 'config.train.batch_size=1000000'.
    remedy: what to do, after 'lower '.

  Raises:
    errors.InputError: it does not fit.
  """
  if needed > available:
    raise errors.InputError(
      f'{what} needs at least {gigabytes(needed)} of memory, and there are {gigabytes(available)}: lower {remedy}'
    )


def gigabytes(count: float) -> str:
  """Formats bytes, rounded up: '1.3 GB'."""
  digits = 1 if count < 1e12 else 0
  return f'{math.ceil(count / 10 ** (9 - digits)) / 10**digits:,.{digits}f} GB'


def _group_limits(root: pathlib.Path, own: pathlib.Path) -> Iterator[int]:
  """Yields the limits of the control groups (versions 1 and 2) of this process and of those around them."""
  try:
    lines = own.read_text().splitlines()
  except OSError:  # not Linux
    return
  for line in lines:
    _, controllers, path = line.split(':', 2)
    if not controllers:
      base, name = root, 'memory.max'
    elif 'memory' in controllers.split(','):
      base, name = root / 'memory', 'memory.limit_in_bytes'
    else:
      continue
    folder = base / path.lstrip('/')
    # In a container, the path may be the host's, and the files of the own group are in the root.
    for each in (folder, *(parent for parent in folder.parents if parent.is_relative_to(base))):
      try:
        text = (each / name).read_text().strip()
      except OSError:
        continue
      if text.isdigit():  # else 'max'
        yield int(text)
