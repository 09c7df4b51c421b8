"""What a rehearsal says in words."""

import pytest

from dnt.rehearsal import findings, fit, hlo, roofline, targets


@pytest.fixture
def on_tpu(rehearse, tiny):
  """A rehearsal on a slice of four TPUs, of which the collectives are given."""

  def make(*collectives, config=tiny, traffic=0, chip='v5e'):
    found = rehearse(config, 'cpu:4')
    (target,) = targets.parse([f'{chip}:2x2'])
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
  assert any('the 128 ' in line and '12%' in line for line in said)  # 16 units, and 10 classes, of 128
  assert any('the 256 ' in line and '6%' in line for line in findings.find(on_tpu(chip='v6e')))


def test_hosts_that_read_images_are_told_how_many(on_tpu, tiny):
  assert not any('workers' in line for line in findings.find(on_tpu()))
  tiny.data.placement, tiny.data.workers = 'stream', 0
  assert any('workers' in line for line in findings.find(on_tpu(config=tiny)))


def test_what_does_not_fit_is_told_what_makes_it_smaller(rehearse, tiny, monkeypatch):
  found = rehearse(tiny, 'cpu:4')
  monkeypatch.setattr('dnt.parallel.capacity.host', lambda: 4000)
  (said, *_) = findings.find(found)
  assert all(word in said for word in ('batch_size', 'accumulate', 'remat', 'fsdp=4', '--fit'))


def test_an_evaluation_that_does_not_fit_needs_a_smaller_batch_of_its_own(rehearse, tiny, monkeypatch):
  tiny.eval.batch_size = 4096
  found = rehearse(tiny, 'cpu:4')
  assert found.peaks['training'] < found.peaks['evaluation'] == found.peak
  monkeypatch.setattr('dnt.parallel.capacity.host', lambda: 4 * found.peaks['training'])
  assert not found.fits
  (said, largest, *_) = findings.find(found._replace(fit=fit.Fit(64, 1000, {64: 1000}, {})))
  assert 'for evaluation' in said and 'config.eval.batch_size' in said and 'fsdp=4' in said
  assert not any(word in said for word in ('train.batch_size', 'accumulate', 'remat', '--fit'))
  assert largest == 'the largest batch whose train step fits is about config.train.batch_size=64'
  monkeypatch.setattr('dnt.parallel.capacity.host', lambda: 4000)
  (said, *_) = findings.find(found)
  assert 'for training and evaluation' in said and 'eval.batch_size' in said and 'train.batch_size' in said


@pytest.mark.parametrize(('name', 'key', 'other'), [('evaluation', 'eval', 'train'), ('plain', 'train', 'eval')])
def test_what_makes_a_program_smaller_that_does_not_compile(rehearse, tiny, name, key, other):
  found = rehearse(tiny, 'cpu:1')
  kept = tuple(each for each in found.steps if each.program.name != 'evaluation')
  (said, *_) = findings.find(found._replace(steps=kept, problem=f'the program {name!r} does not compile: too large'))
  assert f'config.{key}.batch_size' in said and f'config.{other}.batch_size' not in said
