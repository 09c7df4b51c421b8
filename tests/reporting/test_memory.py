import subprocess
import sys
import types

import jax
import pytest

from dnt.reporting import memory


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != 'linux', reason='other systems do not hand the peak down')
def test_what_a_process_has_held_is_not_that_of_the_one_that_started_it():
  child = 'from dnt.reporting import memory; print(memory.peak()["process"])'
  parent = f"""
import subprocess, sys
held = b'x' * (1 << 30)
subprocess.run([sys.executable, '-c', {child!r}], check=True, preexec_fn=lambda: None)
"""
  output = subprocess.run([sys.executable, '-c', parent], check=True, capture_output=True, text=True).stdout
  assert 2**24 < int(output) < 2**29


def test_the_peak_rises_with_what_is_held():
  code = """
from dnt.reporting import memory
held = b'x' * (memory.peak()['process'] + 2**26)
found = memory.peak()
assert found['process'] > len(held)
assert found['device'] is None, 'CPUs do not count'
"""
  subprocess.run([sys.executable, '-c', code], check=True)  # a worker would hold it to the end


def test_devices_that_count(monkeypatch):
  devices = [types.SimpleNamespace(memory_stats=lambda peak=peak: {'peak_bytes_in_use': peak}) for peak in (3, 7)]
  monkeypatch.setattr(jax, 'local_devices', lambda: devices)
  assert memory.peak()['device'] == 7
