"""Peak arithmetic of accelerators, from which the utilization of a step is computed.

Dense rates from NVIDIA's data sheets (those with sparsity halved), in TFLOP/s: H100 and H200 (2024), A100 (2021),
L4 and L40S (2023), A10 (2021), T4 (2019), HGX B200 (2024). None: the device has no such arithmetic.
"""

# By a part of the device's name; the first that fits counts. (bfloat16, TF32, float32)
_TERAFLOPS = (
  ('H100 PCIe', (756.0, 378.0, 51.0)),
  ('H100 NVL', (835.5, 417.5, 60.0)),
  ('H100', (989.4, 494.7, 66.9)),  # SXM
  ('H200 NVL', (835.5, 417.5, 60.0)),
  ('H200', (989.4, 494.7, 66.9)),
  ('B200', (2250.0, 1125.0, 75.0)),
  ('A100', (312.0, 156.0, 19.5)),
  ('L40S', (362.0, 183.0, 91.6)),
  ('L4', (121.0, 60.0, 30.3)),
  ('A10G', (70.0, 35.0, 31.2)),
  ('A10', (125.0, 62.5, 31.2)),
  ('T4', (None, None, 8.1)),
)
PRECISIONS = ('bfloat16', 'tf32', 'float32')


def flops_per_second(device_kind: str, precision: str) -> float | None:
  """The peak of one device; None where it is not known.

  Args:
    device_kind: as jax names it, such as 'NVIDIA H100 80GB HBM3'.
    precision: of `PRECISIONS`, of the factors of a product.
  """
  for part, peaks in _TERAFLOPS:
    if part.lower() in device_kind.lower():
      peak = peaks[PRECISIONS.index(precision)]
      return None if peak is None else 1e12 * peak
  return None


def utilization(flops: float, seconds: float, device_kind: str, precision: str) -> float | None:
  """Returns the fraction of the peak that a step uses; None if the peak is not known."""
  peak = flops_per_second(device_kind, precision)
  return flops / seconds / peak if peak else None
