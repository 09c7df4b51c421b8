import sys
import types

import jax
import pytest

from dnt import errors
from dnt.parallel import capacity


@pytest.mark.parametrize(
  ('own', 'files', 'limits'),
  [
    ('0::/\n', {'memory.max': '1000\n'}, [1000]),
    ('0::/\n', {'memory.max': 'max\n'}, []),
    ('0::/a/b\n', {'a/b/memory.max': 'max\n', 'a/memory.max': '70\n', 'memory.max': '90\n'}, [70, 90]),
    ('0::/../../kubepods/x\n', {'memory.max': '5\n'}, [5]),
    ('5:cpu:/x\n4:memory:/x\n0::/\n', {'memory/x/memory.limit_in_bytes': '8\n', 'cpu/x/memory.max': '1\n'}, [8]),
    ('4:memory:/of/the/host\n', {'memory/memory.limit_in_bytes': '6\n'}, [6]),
    ('', {}, []),
  ],
)
def test_limits_of_control_groups(own, files, limits, tmp_path):
  (tmp_path / 'own').write_text(own)
  for name, text in files.items():
    path = tmp_path / 'groups' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  assert list(capacity._group_limits(tmp_path / 'groups', tmp_path / 'own')) == limits
  assert list(capacity._group_limits(tmp_path / 'groups', tmp_path / 'absent')) == []


def test_the_lowest_limit_counts(monkeypatch):
  whole = capacity.host()
  assert 2**28 < whole < 2**50
  monkeypatch.setattr(capacity, '_group_limits', lambda *_: iter([2**40 * 2**20, 1000]))
  assert capacity.host() == 1000
  assert capacity.device() == 1000 // len(jax.local_devices())


@pytest.mark.parametrize(('stats', 'limit'), [({'bytes_limit': 7}, 7), ({}, sys.maxsize), (None, sys.maxsize)])
def test_an_accelerator_has_what_its_allocator_states(monkeypatch, stats, limit):
  accelerator = types.SimpleNamespace(platform='gpu', memory_stats=lambda: stats)
  monkeypatch.setattr(jax, 'local_devices', lambda: [accelerator])
  assert capacity.device() == limit


def test_what_does_not_fit_is_refused_in_numbers():
  capacity.check(10, 10, 'this', 'that')
  with pytest.raises(errors.InputError, match=r'batch_size=9 .* 1\.3 GB .* 1\.0 GB: lower it'):
    capacity.check(1.21e9, 10**9, 'batch_size=9', 'it')
  with pytest.raises(errors.InputError, match='4,000,000,000 GB'):
    capacity.check(4e18, 10**9, 'this', 'that')
