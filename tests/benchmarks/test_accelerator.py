"""The benchmark of one accelerator, in tiny sizes on CPU."""

import importlib.util
import json
import os
import re
import sys

import pytest

from benchmarks import packed

PARTS = ('tests', 'step', 'epoch', 'norms', 'degradation', 'cars')


@pytest.fixture
def measure(run_program, tmp_path):
  """Runs it: (results.json, standard output and error)."""

  def run(*flags):
    arguments = ('--tiny', f'--output={tmp_path / "out"}', '--minutes=25', *flags)
    code, output = run_program('benchmarks.accelerator', *arguments, timeout=1600)
    assert code == 0, output
    return json.loads((tmp_path / 'out' / 'results.json').read_text()), output

  return run


@pytest.mark.thorough
def test_every_part_without_data_leaves_its_figures(measure):
  results, output = measure('--tests=tests/test_errors.py')
  parts = results['parts']
  assert tuple(parts) == PARTS
  assert {name: parts[name]['status'] for name in PARTS[:4]} == dict.fromkeys(PARTS[:4], 'ok'), output
  assert all('--data' in parts[name]['reason'] for name in PARTS[4:])
  assert results['device']['platform'] == 'cpu'
  assert results['versions']['jax']
  assert '--tests=tests/test_errors.py' in results['command']

  tests = parts['tests']['found']
  assert tests['passed'] > 0
  assert (tests['failed'], tests['error'], tests['failures'], tests['out_of_time']) == (0, 0, {}, False)
  (race,) = parts['step']['found']['races'].values()
  assert race['contenders']['dnt']['images_per_second'] > 0
  assert race['contenders']['dnt']['mfu'] is None  # a CPU's peak is not known
  assert race['model_flops'] > 0
  if importlib.util.find_spec('torch'):
    assert race['ratio'] > 0
    assert race['contenders'][race['peer']]['median_seconds'] > 0
  else:
    assert race['ratio'] is None
    assert 'torch is not installed' in parts['step']['found']['torch']
  epoch = parts['epoch']['found']
  assert epoch['ratio'] > 0
  assert epoch['loop_images_per_second'] > 0
  for rates in parts['norms']['found']['rates'].values():
    assert len(rates) == 9
    assert all(rate['of_copy'] > 0 for rate in rates.values())
  assert all(f'### {name}\n' in output for name in PARTS)
  assert '| ResNet-8, float32 | 8 | dnt |' in output


@pytest.mark.thorough
def test_a_part_that_fails_leaves_its_error_and_the_others_go_on(measure, tmp_path):
  results, output = measure('--parts=tests,norms,cars', '--tests=tests/none_such.py', f'--data={tmp_path}')
  parts = results['parts']
  assert parts['tests']['status'] == 'failed'
  assert 'none_such' in parts['tests']['error'] + ''.join(parts['tests']['log'])
  assert parts['norms']['status'] == 'ok'
  assert parts['cars']['status'] == 'skipped'
  assert re.search(f'{re.escape(str(tmp_path))}.* cars', parts['cars']['reason'])
  assert 'failed: ' in output


@pytest.mark.thorough
def test_the_degradation_trains_four_networks_for_the_steps_asked_for(measure, cifar):
  for path in cifar.glob('*.bin'):
    os.truncate(path, 10_000 * packed.RECORD)  # the size it must have; the other images are black
  cifar.rename(cifar.with_name('cifar-10-batches-bin'))
  results, output = measure('--parts=degradation', '--steps=3', f'--data={cifar.parent}')
  runs = results['parts']['degradation']['found']['runs']
  assert list(runs) == ['plain20', 'plain56', 'resnet20', 'resnet56']
  for run in runs.values():
    assert 'error' not in run, output
    assert (run['step'], run['total_steps'], run['evaluated_at']) == (3, 3, 3)
    assert all(0 <= run['errors'][split] <= 1 for split in ('train', 'test'))
  assert '| resnet56 | 3 of 3 |' in output


def test_without_time_every_part_is_skipped_and_says_so(measure):
  results, _ = measure('--minutes=0', '--skip=norms')
  assert list(results['parts']) == [name for name in PARTS if name != 'norms']
  assert results['parts']['step']['status'] == 'skipped'
  assert re.search(r'\b60 s.*\b0 s', results['parts']['step']['reason'])


HANGS = """
import json
from benchmarks import accelerator
from benchmarks.parts import options
print(json.dumps(accelerator.run_part('tests', options.Options(1.0, True, {work!r}), 0.2)))
"""


def test_a_part_is_ended_when_its_time_is_over(start, finish, tmp_path):
  output = finish(start([sys.executable, '-c', HANGS.format(work=str(tmp_path))]))
  result = json.loads(output.splitlines()[-1])
  assert result['status'] == 'out of time'
  assert 'found' not in result


def test_an_unknown_part_is_refused(run_program, tmp_path):
  code, output = run_program('benchmarks.accelerator', f'--output={tmp_path}', '--parts=steps')
  assert code
  assert re.search("'steps'.* tests, step", output)
