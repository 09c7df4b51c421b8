"""The table of chips."""

import pytest

from dnt.parallel import chips


def test_peaks_are_those_of_the_device_and_the_arithmetic():
  assert chips.flops_per_second('NVIDIA H100 80GB HBM3', 'bfloat16') == 989.4e12
  assert chips.flops_per_second('NVIDIA H100 PCIe', 'tf32') == 378e12
  assert chips.flops_per_second('NVIDIA L40S', 'float32') == 91.6e12
  assert chips.flops_per_second('Tesla T4', 'bfloat16') is None
  assert chips.flops_per_second('cpu', 'float32') is None
  assert chips.utilization(66.9e12, 2.0, 'NVIDIA H200', 'float32') == pytest.approx(0.5)
  assert chips.utilization(1e12, 1.0, 'cpu', 'float32') is None


@pytest.mark.parametrize(
  ('kind', 'name'),
  [
    ('TPU v4', 'v4'),
    ('TPU v6 lite', 'v6e'),
    ('TPU v5 lite', 'v5e'),
    ('TPU v5e', 'v5e'),
    ('TPU v5', 'v5p'),
    ('TPU v5p', 'v5p'),
    ('TPU v6e', 'v6e'),
  ],
)
def test_a_tpu_is_found_by_every_name_that_jax_has_for_it(kind, name):
  assert chips.find(kind) == chips.BY_NAME[name]


@pytest.mark.parametrize(
  ('kind', 'part'),
  [
    ('NVIDIA L4', 'L4'),
    ('NVIDIA L40S', 'L40S'),
    ('Tesla T4', 'T4'),
    ('NVIDIA A10', 'A10'),
    ('NVIDIA A10G', 'A10G'),
    ('NVIDIA A100-SXM4-80GB', 'A100'),
    ('NVIDIA A100 80GB PCIe', 'A100'),
    ('NVIDIA H100 80GB HBM3', 'H100'),
    ('NVIDIA H100 PCIe', 'H100 PCIe'),
    ('NVIDIA H200', 'H200'),
    ('NVIDIA H200 NVL', 'H200 NVL'),
    ('NVIDIA B200', 'B200'),
  ],
)
def test_a_gpu_is_found_by_the_words_of_its_name(kind, part):
  chip = chips.find(kind)
  assert chip and chip.kind == part


@pytest.mark.parametrize(
  'kind',
  [
    *('NVIDIA L40', 'NVIDIA RTX A1000 Laptop GPU', 'NVIDIA T400 4GB', 'NVIDIA T4G', 'NVIDIA A10M', 'NVIDIA A100X'),
    *('NVIDIA GH200 480GB', 'NVIDIA GB200', 'NVIDIA H20', 'NVIDIA H800', 'TPU v4 lite', 'TPU v2', 'TPU v5x', 'cpu'),
  ],
)
def test_a_chip_with_part_of_the_name_of_another_is_not_that_one(kind):
  assert chips.find(kind) is None


@pytest.mark.parametrize(
  'kind', ['NVIDIA H200 MIG 1g.18gb', 'NVIDIA H100 80GB HBM3 MIG 3g.40gb', 'NVIDIA A100-SXM4-40GB MIG 1g.5gb']
)
def test_a_slice_of_a_gpu_has_not_the_figures_of_the_whole(kind):
  assert chips.find(kind) is None
  assert chips.utilization(1e12, 1.0, kind, 'tf32') is None


def test_products_of_a_dtype_run_at_the_precision_that_jax_takes_by_default():
  assert chips.BY_NAME['v5e'].precision('float32') == 'bfloat16'
  assert chips.BY_NAME['h100'].precision('float32') == 'tf32'
  assert chips.BY_NAME['h100'].precision('bfloat16') == 'bfloat16'


def test_chips_that_can_be_rehearsed_have_every_figure():
  assert set(chips.BY_NAME) == {'v4', 'v5e', 'v5p', 'v6e', 'h100', 'h200'}
  for chip in chips.BY_NAME.values():
    figures = (chip.memory, chip.memory_bandwidth, chip.link_bandwidth, chip.network_bandwidth, chip.latency)
    assert all(figures) and chip.peak(chip.precision('float32'))
