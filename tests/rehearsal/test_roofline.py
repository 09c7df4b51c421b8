"""The least seconds of a step, by hand."""

import pytest

from dnt.parallel import chips
from dnt.rehearsal import hlo, roofline, targets


def target(text):
  return targets.parse([text])[0]


def collective(kind='all-reduce', size=10**8, group=16, purpose=hlo.GRADIENTS, times=1, span=None):
  return hlo.Collective(kind, {purpose: size}, group, span or group, times)


def test_compute_and_memory_are_what_the_chip_does_at_its_peak():
  line = roofline.make(target('v5e:4x4'), 16 * 197e12, hlo.Costs((), 819 * 10**9), 'float32')
  assert (line.compute, line.memory, line.links, line.waiting) == pytest.approx((1.0, 1.0, 0.0, 0.0))
  line = roofline.make(target('h100:8'), 8 * 494.7e12, hlo.Costs((), 0), 'float32')
  assert line.compute == pytest.approx(1.0)  # TF32
  assert roofline.make(target('h100:8'), 8 * 494.7e12, hlo.Costs((), 0), 'bfloat16').compute == pytest.approx(0.5)


def test_an_all_reduce_moves_its_bytes_twice_and_pays_for_each_step():
  # Two lines of four chips: 100 GB/s, 6 steps to gather and 6 to scatter.
  seconds = roofline.seconds(target('v5e:4x4'), collective())
  assert seconds == pytest.approx(2 * 1e8 * 15 / 16 / 100e9 + 1e-6 + 12e-6)
  once = roofline.seconds(target('v5e:4x4'), collective('all-gather'))
  assert once == pytest.approx(1e8 * 15 / 16 / 100e9 + 1e-6 + 6e-6)


def test_a_switch_gives_a_chip_all_of_its_links():
  seconds = roofline.seconds(target('h100:8'), collective(group=8))
  assert seconds == pytest.approx(2 * 1e8 * 7 / 8 / 450e9 + 6.6e-6 + 14 * 0.6e-6)


def test_between_slices_each_chip_sends_its_part_through_the_network():
  one, two = (
    roofline.seconds(target(text), collective(group=16 * n)) for text, n in (('v5e:4x4', 1), ('2*v5e:4x4', 2))
  )
  network = chips.BY_NAME['v5e'].network_bandwidth
  assert two - one == pytest.approx(2 * 1e8 / 16 / 2 / network + 2e-6)


def test_a_group_of_one_chip_in_each_slice_uses_the_network_alone():
  seconds = roofline.seconds(target('2*v5e:4x4'), collective(group=2, span=17))
  assert seconds == pytest.approx(2 * 1e8 / 2 / chips.BY_NAME['v5e'].network_bandwidth + 1e-6 + 2e-6)


def test_what_a_chip_sends_to_another_slice_goes_through_the_network():
  seconds = roofline.seconds(target('2*v5e:4x4'), collective(hlo.SEND, group=32))
  assert seconds == pytest.approx(1e8 / chips.BY_NAME['v5e'].network_bandwidth + 1e-6)


def test_the_step_waits_for_statistics_and_overlaps_the_rest():
  both = (collective(size=10**9), collective(size=64, purpose=hlo.STATISTICS, times=50))
  line = roofline.make(target('v5e:4x4'), 0, hlo.Costs(both, 0), 'float32')
  assert line.waiting == pytest.approx(50 * 13e-6, rel=0.01)
  assert line.step == pytest.approx(line.links + line.waiting)
  assert line.bound == 'links'


def test_a_cpu_has_no_published_figures():
  line = roofline.make(target('cpu:8'), 1e12, hlo.Costs((), 1), 'float32')
  assert line.step is None
  assert line.bound == ''
