"""What a rehearsal says in words."""

import pytest

from dnt.rehearsal import findings, hlo, roofline, targets


@pytest.fixture
def on_tpu(rehearse, tiny):
  """A rehearsal on a slice of v5e, of which the collectives are given."""

  def make(*collectives, config=tiny, traffic=0):
    found = rehearse(config, 'cpu:4')
    (target,) = targets.parse(['v5e:2x2'])
    costs = hlo.Costs(collectives, traffic)
    steps = [
      each._replace(costs=costs, roofline=roofline.make(target, each.program.flops, costs, 'float32'))
      for each in found.steps
    ]
    return found._replace(target=target, steps=tuple(steps))

  return make


def collective(purpose, times, size=64):
  return hlo.Collective('all-reduce', {purpose: size}, 4, 4, times)


def test_collectives_of_batch_norm_are_counted(on_tpu):
  found = on_tpu(collective(hlo.STATISTICS, 106), collective(hlo.GRADIENTS, 42))
  (said,) = [line for line in findings.find(found) if 'BatchNorm' in line and 'all-reduces' in line]
  assert '106 of 148' in said
  assert 'norm=group_norm' in said
  assert not any('BatchNorm' in line for line in findings.find(on_tpu(collective(hlo.GRADIENTS, 42))))


@pytest.mark.parametrize(
  ('collectives', 'traffic', 'word'),
  [
    ([collective(hlo.STATISTICS, 1000)], 0, 'waits'),
    ([collective(hlo.GRADIENTS, 1, 10**9)], 0, 'exchange'),
    ([], 10**9, 'bfloat16'),
    ([], 0, 'peak'),
  ],
)
def test_the_largest_bound_is_named(on_tpu, collectives, traffic, word):
  (said,) = [line for line in findings.find(on_tpu(*collectives, traffic=traffic)) if 'bound by' in line]
  assert word in said


def test_small_batches_and_narrow_networks_are_named(on_tpu):
  said = findings.find(on_tpu())
  assert any('4 examples' in line for line in said)
  assert any('12%' in line for line in said)  # 16 units, and 10 classes, of 128


def test_hosts_that_read_images_are_told_how_many(on_tpu, tiny):
  assert not any('workers' in line for line in findings.find(on_tpu()))
  tiny.data.placement, tiny.data.workers = 'stream', 0
  assert any('workers' in line for line in findings.find(on_tpu(config=tiny)))


def test_what_does_not_fit_is_told_what_makes_it_smaller(rehearse, tiny, monkeypatch):
  found = rehearse(tiny, 'cpu:4')
  monkeypatch.setattr('dnt.parallel.capacity.host', lambda: 4000)
  (said, *_) = findings.find(found)
  assert all(word in said for word in ('batch_size', 'accumulate', 'remat', 'fsdp=4', '--fit'))
