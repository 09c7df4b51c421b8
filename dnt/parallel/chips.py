"""Holds the published figures of accelerators, in one table: arithmetic, memory and links of one chip.

Sources, by the letter in the table:
  a. NVIDIA's data sheets: dense rates (those with sparsity halved) and memory bandwidth of H100 and H200 (2024), A100
     (2021), L4 and L40S (2023), A10 (2021), T4 (2019), HGX B200 (2024). NVLink 4: 900 GB/s in both directions together;
     a node of eight GPUs has one 400 Gbit/s adapter for each (DGX H100 and H200 user guide).
  b. cloud.google.com/tpu/docs/v5e, v5p and v6e: bfloat16 rate, memory bandwidth, interconnect (1600, 4800 and 3200
     Gbit/s a chip, one way) and its ports, network (6.4 Tbit/s for 256 chips of v5e, 25.6 for 256 of v6e, 50 Gbit/s a
     chip of v5p), matrix units (of v6e 256x256, else 128x128). Of v4: cloud.google.com/tpu/docs/v4 for bfloat16 rate
     and memory bandwidth, "TPU v4: An Optically Reconfigurable Supercomputer" (Jouppi et al. 2023) for six links of
     50 GB/s, source d for the network.
  c. The memory that programs may use: for TPUs what libtpu's compiler reports as available; for GPUs 75 % (jax's
     default, XLA_PYTHON_CLIENT_MEM_FRACTION) of the `device_memory_size` in XLA's target configs.
  d. Latency: a hop of a TPU's interconnect takes about 1 us ("How to Scale Your Model", Austin et al. 2025, which also
     says what a chip sends to another slice: 6.25 GB/s where no other figure is given); NCCL's own
     constants for a ring within a node (src/graph/tuning.cc, protocol LL): 6.6 us, and 0.6 us for each step.
"""

import re
from typing import Any, NamedTuple

PRECISIONS = ('bfloat16', 'tf32', 'float32')


class Chip(NamedTuple):
  """Describes one chip; a figure that is not published or not used is None.

  Attributes:
    name: as dnt's programs name it; None: it cannot be rehearsed.
    kind: words of the name that jax gives the device.
    flops: FLOP/s of dense products, by the precision of their factors, in the order of `PRECISIONS`.
    memory: bytes that a program may use.
    memory_bandwidth: bytes per second.
    link_bandwidth: bytes per second that a chip sends to its neighbours, all links together.
    ports: number of those links; a TPU has one pair for each axis of its torus. 0: a switch connects all chips.
    network_bandwidth: bytes per second that a chip sends to another node or slice.
    latency: seconds that every collective takes.
    hop_latency: seconds more for each of its steps.
    host: chips of one host.
    lanes: channels that a matrix unit of a TPU takes at once.
  """

  name: str | None
  kind: str
  flops: tuple[float | None, float | None, float | None]
  memory: float | None = None
  memory_bandwidth: float | None = None
  link_bandwidth: float | None = None
  ports: int = 0
  network_bandwidth: float | None = None
  latency: float = 0.0
  hop_latency: float = 0.0
  host: int = 1
  lanes: int | None = None

  @property
  def is_tpu(self) -> bool:
    return self.kind.startswith('TPU')

  def precision(self, dtype: str) -> str:
    """Returns the precision of the factors of a product in a dtype, by default in jax; one of `PRECISIONS`.

    Args:
      dtype: `float32` or `bfloat16`. TPUs round the factors of a float32 product to bfloat16, GPUs to TF32.
    """
    if self.is_tpu or dtype == 'bfloat16':
      return 'bfloat16'
    return 'tf32' if self.flops[1] else 'float32'

  def peak(self, precision: str) -> float | None:
    """Returns the FLOP/s at a precision of `PRECISIONS`."""
    return self.flops[PRECISIONS.index(precision)]


_GIB = 2**30
# d, b; libtpu's topologies have hosts of 4 chips.
_TPU: dict[str, Any] = {'latency': 1e-6, 'hop_latency': 1e-6, 'host': 4, 'lanes': 128}
_V6E: dict[str, Any] = _TPU | {'lanes': 256}  # b
_HOPPER: dict[str, Any] = {
  'link_bandwidth': 450e9,  # a
  'network_bandwidth': 50e9,  # a
  'latency': 6.6e-6,  # d
  'hop_latency': 0.6e-6,  # d
  'host': 8,
}

# The first row whose `kind` is among the words of the device's name counts.
CHIPS = (
  Chip('v4', 'TPU v4', (275e12, None, None), 30.75 * _GIB, 1200e9, 300e9, 6, 6.25e9, **_TPU),  # b, c, d
  Chip('v5e', 'TPU v5 lite', (197e12, None, None), 15.75 * _GIB, 819e9, 200e9, 4, 3.125e9, **_TPU),  # b, c
  Chip('v5p', 'TPU v5', (459e12, None, None), 95.74 * _GIB, 2765e9, 600e9, 6, 6.25e9, **_TPU),  # b, c
  Chip('v6e', 'TPU v6 lite', (918e12, None, None), 31.25 * _GIB, 1640e9, 400e9, 4, 12.5e9, **_V6E),  # b, c
  Chip(None, 'H100 PCIe', (756e12, 378e12, 51e12)),  # a
  Chip(None, 'H100 NVL', (835.5e12, 417.5e12, 60e12)),  # a
  Chip('h100', 'H100', (989.4e12, 494.7e12, 66.9e12), 0.75 * 84_942_979_072, 3.35e12, **_HOPPER),  # a, c; SXM
  Chip(None, 'H200 NVL', (835.5e12, 417.5e12, 60e12)),  # a
  Chip('h200', 'H200', (989.4e12, 494.7e12, 66.9e12), 0.75 * 151_397_597_184, 4.8e12, **_HOPPER),  # a, c
  Chip(None, 'B200', (2250e12, 1125e12, 75e12)),  # a
  Chip(None, 'A100', (312e12, 156e12, 19.5e12)),  # a
  Chip(None, 'L40S', (362e12, 183e12, 91.6e12)),  # a
  Chip(None, 'L4', (121e12, 60e12, 30.3e12)),  # a
  Chip(None, 'A10G', (70e12, 35e12, 31.2e12)),  # a
  Chip(None, 'A10', (125e12, 62.5e12, 31.2e12)),  # a
  Chip(None, 'T4', (None, None, 8.1e12)),  # a
)
BY_NAME = {chip.name: chip for chip in CHIPS if chip.name}


def find(device_kind: str) -> Chip | None:
  """Returns the chip that jax names so, such as 'NVIDIA H100 80GB HBM3'; None if the table does not have it.

  It has no slices of a GPU ('NVIDIA H100 80GB HBM3 MIG 1g.10gb'), which have a part of its units and of its memory.
  """
  # jax has both names of these.
  named = device_kind.lower().replace('v5e', 'v5 lite').replace('v5p', 'v5').replace('v6e', 'v6 lite')
  if re.search(r'\bmig\b', named):
    return None
  # Whole words: an L40 is no L4, and a TPU v4 lite no v4.
  return next((chip for chip in CHIPS if re.search(rf'\b{chip.kind.lower()}\b(?! lite)', named)), None)


def flops_per_second(device_kind: str, precision: str) -> float | None:
  """Returns the peak of one device; None where it is not known.

  Args:
    device_kind: as jax names it.
    precision: of `PRECISIONS`, of the factors of a product.
  """
  chip = find(device_kind)
  return chip and chip.peak(precision)


def utilization(flops: float, seconds: float, device_kind: str, precision: str) -> float | None:
  """Returns the fraction of the peak that a step uses; None if the peak is not known."""
  peak = flops_per_second(device_kind, precision)
  return flops / seconds / peak if peak else None
