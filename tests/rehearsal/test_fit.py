"""The largest batch that fits, and what makes a batch fit."""

import pytest

from dnt.rehearsal import fit, rehearsal, stand_in, targets
from dnt.training import precompile


@pytest.mark.parametrize('start', [8, 64, 4096])
@pytest.mark.parametrize('limit', [100, 1000, 12_345])
def test_the_search_ends_at_the_limit_within_an_eighth(start, limit):
  asked = []

  def measure(batch):
    asked.append(batch)
    return 10 * batch + 7

  found = fit.search(measure, 10 * limit + 7, start, 8, 10**6)
  assert limit / (1 + 1 / fit.CLOSE) - 8 <= found <= limit
  assert found % 8 == 0
  assert len(set(asked)) == len(asked) <= 20


def test_the_search_ends_where_nothing_fits_and_where_the_images_end():
  assert fit.search(lambda batch: None, 100, 64, 8, 1000) == 0
  assert fit.search(lambda batch: 0, 100, 64, 8, 1003) == 1000
  assert fit.search(lambda batch: 0, 100, 2000, 8, 1000) == 2000, 'the batch of the config, which may be larger'


@pytest.mark.parametrize('limit', [33_000, 40_000, 49_999])
def test_a_limit_between_the_last_doubling_and_the_images_is_found_too(limit):
  asked = []
  found = fit.search(lambda batch: asked.append(batch) or batch, limit, 128, 8, 50_000)
  assert limit / (1 + 1 / fit.CLOSE) - 8 <= found <= limit
  assert max(asked) == 50_000 and len(set(asked)) == len(asked)


def find(config, text, available):
  (target,) = targets.parse([text])
  config, data = stand_in.load(config, None)
  return fit.find(config, data, target, available)


@pytest.mark.thorough
def test_the_largest_batch_fits_and_a_larger_one_does_not(tiny):
  tiny.data.synthetic_examples = 100_000
  small = find(tiny, 'cpu:2', 0).tried
  assert set(small) == {2, 4, 8, 16}  # down from that of the config
  found = find(tiny, 'cpu:2', 3 * max(small.values()))
  assert found.batch > 16 and found.changes == {}
  assert found.memory == found.tried[found.batch] <= 3 * max(small.values())
  assert any(memory > 3 * max(small.values()) for batch, memory in found.tried.items() if batch > found.batch)


@pytest.mark.thorough
def test_the_search_counts_the_step_with_telemetry_too(rehearse, tiny):
  tiny.train.batch_size = tiny.mesh.fsdp = 2
  tiny.model.remat, tiny.telemetry.every = True, '2'
  memory = {each.program.name: each.program.memory for each in rehearse(tiny, 'cpu:2').steps}
  assert memory[precompile.PLAIN] < memory[precompile.TELEMETRY]
  assert find(tiny, 'cpu:2', 0).tried == {2: memory[precompile.TELEMETRY]}


def test_the_search_leaves_room_for_the_images_to_evaluate(tiny, monkeypatch):
  monkeypatch.setattr(fit, 'find', lambda config, data, target, available: available)
  monkeypatch.setattr('dnt.parallel.capacity.host', lambda: 10**6)
  tiny.data.synthetic_examples = 1000  # to train on, and as many to evaluate
  (target,) = targets.parse(['cpu:1'])
  found = rehearsal.rehearse(*stand_in.load(tiny, None), target, fitting=True)
  assert 10**6 - found.fit == pytest.approx(1000 * (8 * 8 * 3 + 4), rel=0.01)  # pixels and a label


@pytest.mark.thorough
def test_what_makes_a_batch_fit_is_named(plain):
  plain.train.batch_size = plain.data.synthetic_examples = 16
  plain.optim.name = 'adamw'
  whole = find(plain, 'cpu:4', 10**9).tried[16]
  found = find(plain, 'cpu:4', 0.9 * whole)
  assert found.batch < 16
  assert found.changes in ({'mesh.fsdp': 4}, {'model.remat': True, 'mesh.fsdp': 4})
