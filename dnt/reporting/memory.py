"""Measures the most memory that a process and its devices have held so far."""

import pathlib
import resource
import sys

import jax


def peak() -> dict[str, int | None]:
  """Returns bytes: `process`, its resident set, `device`, the most of any device (None if not counted, as on CPUs)."""
  counted = [stats['peak_bytes_in_use'] for device in jax.local_devices() if (stats := device.memory_stats())]
  return {'process': _resident(), 'device': max(counted, default=None)}


def _resident() -> int:
  # Linux passes ru_maxrss on to the programs that a process starts: a large parent would count as the child's.
  status = pathlib.Path('/proc/self/status')
  lines = status.read_text().splitlines() if status.exists() else []
  result = [int(line.split()[1]) for line in lines if line.startswith('VmHWM:')]
  if result:
    return 1024 * result[0]
  unit = 1 if sys.platform == 'darwin' else 1024
  return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
