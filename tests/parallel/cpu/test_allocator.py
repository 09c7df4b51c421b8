import pathlib
import resource
import subprocess
import sys

import pytest

from dnt.parallel import cpu
from dnt.parallel.cpu import allocator

ROOT = pathlib.Path(__file__).parents[3]
tune = allocator.tune  # in the module it is replaced while tests run
# Page faults of three blocks of 64 MB, written and freed, after a first one.
COUNT_FAULTS = """
import ctypes, resource, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: with pages of 2 MB there would be few faults
from dnt.parallel.cpu import allocator
assert 'jax' not in sys.modules
if {tune}:
  allocator.tune()
allocator.release_large({temporary})
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def block():
  pointer = libc.malloc(64 << 20)
  ctypes.memset(pointer, 1, 64 << 20)
  libc.free(pointer)
block()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
  block()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
MANY = 3 * 2**26 // resource.getpagesize() // 5  # a fifth of the pages of the three blocks


def faults(tune, temporary=0):
  command = [sys.executable, '-c', COUNT_FAULTS.format(tune=tune, temporary=temporary)]
  return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != 'linux', reason='mallopt is glibc on Linux')
def test_a_tuned_process_does_not_fault_its_memory_in_again():
  assert faults(tune=False) > MANY
  assert faults(tune=True) < 100


@pytest.mark.skipif(sys.platform != 'linux', reason='mallopt is glibc on Linux')
def test_what_is_too_large_to_keep_goes_back_to_the_system():
  assert faults(tune=True, temporary=allocator.large() + 1) > MANY
  assert faults(tune=True, temporary=allocator.large()) < 100
  assert faults(tune=False, temporary=allocator.large() + 1) > MANY


@pytest.mark.parametrize(('memory', 'expected'), [(2**33, 2**30), (2**34, 2**31), (2**40, 2**31)])
def test_what_is_large_depends_on_the_memory(monkeypatch, memory, expected):
  of_machine = {'SC_PHYS_PAGES': memory // 4096, 'SC_PAGE_SIZE': 4096}
  monkeypatch.setattr(allocator.os, 'sysconf', of_machine.get)
  assert allocator.large() == expected


@pytest.mark.parametrize(
  ('platforms', 'devices', 'expected'),
  [
    ('cpu', ['/dev/nvidia0'], True),
    ('cuda', [], False),
    ('cuda,cpu', [], False),
    ('', ['/dev/nvidia0'], False),
    ('', ['/dev/accel0'], False),
    ('', ['/dev/vfio/0'], False),
    ('', [], True),
  ],
)
def test_cpu_only_is_read_off_the_environment_and_the_device_files(monkeypatch, platforms, devices, expected):
  monkeypatch.setenv('JAX_PLATFORMS', platforms)
  monkeypatch.setattr(
    allocator.glob,
    'glob',
    lambda pattern: [device for device in devices if device.startswith(pattern.split('[')[0].rstrip('*'))],
  )
  assert allocator.cpu_only() is expected


def test_other_processes_are_left_alone(monkeypatch):
  monkeypatch.setattr(allocator.ctypes, 'CDLL', lambda name: pytest.fail('the allocator was changed'))
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  tune()
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setenv(cpu.VARIABLE, 'allocator')
  tune()
  monkeypatch.delenv(cpu.VARIABLE)
  monkeypatch.setattr(allocator.platform, 'libc_ver', lambda: ('musl', '1.2'))
  tune()
  monkeypatch.setattr(allocator.sys, 'platform', 'darwin')
  tune()
