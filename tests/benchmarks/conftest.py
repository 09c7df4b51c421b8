"""Data that tests of several benchmarks share."""

import numpy as np
import pytest

from benchmarks import packed


@pytest.fixture
def cifar(tmp_path):
  """The binary files of CIFAR-10, with 33 random images in each."""
  folder = tmp_path / 'cifar'
  folder.mkdir()
  rng = np.random.default_rng(0)
  for name in (*(f'data_batch_{number}.bin' for number in range(1, 6)), 'test_batch.bin'):
    records = rng.integers(0, 256, (33, packed.RECORD), np.uint8)
    records[:, 0] %= 10
    (folder / name).write_bytes(records.tobytes())
  (folder / 'batches.meta.txt').write_text(''.join(f'class {label}\n' for label in range(10)))
  return folder
