"""Computes from a chip's published figures how long a step takes, and what bounds it.

Three bounds: arithmetic, memory traffic and links. What a chip cannot overlap comes on top: it waits for the sums of
BatchNorm in the middle of the network, while the reduction of gradients can overlap with the rest of the backward pass.
It is not a forecast: chips reach their peaks only in large products, and a cache may spare memory traffic.
"""

from collections.abc import Sequence
from typing import NamedTuple

from dnt.rehearsal import hlo, targets


class Roofline(NamedTuple):
  """The least seconds of a step on one chip, by what bounds it; None where the chip's figures are not known.

  Attributes:
    compute: products at the chip's peak rate.
    memory: bytes from and to the chip's memory.
    links: bytes through its links, of collectives that can overlap with the rest.
    waiting: collectives in the middle of the network, which cannot, with their latency.
  """

  compute: float | None
  memory: float | None
  links: float | None
  waiting: float | None

  @property
  def step(self) -> float | None:
    """Returns the seconds of the step: the largest bound, and the waiting."""
    if self.compute is None or self.memory is None or self.links is None or self.waiting is None:
      return None
    return max(self.compute, self.memory, self.links) + self.waiting

  @property
  def bound(self) -> str:
    """Returns the name of the largest part."""
    parts = {name: value for name, value in self._asdict().items() if value is not None}
    return max(parts, key=lambda name: parts[name]) if parts else ''


def make(target: targets.Target, flops: float, costs: hlo.Costs, dtype: str) -> Roofline:
  """Returns the roofline of a step.

  Args:
    target: the hardware.
    flops: of the step, over all chips.
    costs: of one chip.
    dtype: `config.model.dtype`.
  """
  chip = target.chip
  if chip is None:
    return Roofline(None, None, None, None)
  peak, bandwidth = chip.peak(chip.precision(dtype)), chip.memory_bandwidth
  waits = [each for each in costs.collectives if each.purpose == hlo.STATISTICS]
  overlaps = [each for each in costs.collectives if each.purpose != hlo.STATISTICS]
  return Roofline(
    compute=flops / target.chips / peak if peak else None,
    memory=costs.bytes / bandwidth if bandwidth else None,
    links=_seconds(target, overlaps),
    waiting=_seconds(target, waits),
  )


def _seconds(target: targets.Target, collectives: Sequence[hlo.Collective]) -> float | None:
  times = [each.times * seconds(target, each) for each in collectives]
  return sum(times) if target.links is not None else None


def seconds(target: targets.Target, collective: hlo.Collective) -> float:
  """Returns the seconds of a collective: the latency of its steps, and its bytes through the links.

  Across slices or nodes, each chip also sends its part of the arrays through the network.
  """
  if collective.group == 1:
    return 0.0
  chip, inside = target.chip, target.chips // target.slices
  assert chip is not None and target.links and chip.network_bandwidth
  turns = 2 if collective.kind == 'all-reduce' else 1
  if collective.kind == hlo.SEND:
    return chip.latency + collective.total / chip.network_bandwidth
  far = min(-(-collective.span // inside), collective.group)  # slices that a group reaches
  near = collective.group // far
  hops = target.hops * (near - 1) / max(inside - 1, 1)
  result = chip.latency + turns * (hops + far - 1) * chip.hop_latency
  result += turns * collective.total * (near - 1) / near / target.links
  return result + turns * collective.total / near * (far - 1) / far / chip.network_bandwidth
