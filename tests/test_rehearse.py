"""The program `dnt.rehearse`."""

import json

import pytest

from dnt import errors
from dnt.rehearsal import targets

TINY = (
  '--config.data.source=synthetic',
  '--config.data.synthetic_examples=64',
  '--config.data.image_size=8',
  '--config.model.name=mlp',
  '--config.model.depth=3',
  '--config.model.width=16',
  '--config.train.batch_size=16',
  '--config.train.steps=6',
  "--config.eval.splits=('test',)",
  '--config.eval.batch_size=16',
)


def test_a_rehearsal_prints_and_writes_what_it_found(call_program, tmp_path):
  code, output, problems = call_program('rehearse', '--on=cpu:1,cpu:4', f'--workdir={tmp_path / "found"}', *TINY)
  assert code == 0, problems
  assert {path.name for path in (tmp_path / 'found').iterdir()} == {'rehearsal.json', 'rehearsal.md', 'rehearsal.html'}
  content = json.loads((tmp_path / 'found' / 'rehearsal.json').read_text())
  one, four = content['targets']
  assert (one['chips'], four['chips']) == (1, 4)
  assert one['fits'] and four['compiles']
  assert one['programs'][0]['flops'] == four['programs'][0]['flops'] > 0
  assert not one['programs'][0]['collectives'] and four['programs'][0]['collectives']
  assert content['versions']['jax']
  for name in ('rehearsal.md', 'rehearsal.html'):
    text = (tmp_path / 'found' / name).read_text()
    assert 'cpu:4' in text and 'all-reduce' in text
  assert 'all-reduce' in output and 'written to' in output


def test_a_run_that_does_not_fit_ends_with_1_and_the_others_are_rehearsed(call_program, tmp_path):
  code, output, problems = call_program('rehearse', '--on=cpu:3,cpu:4', f'--workdir={tmp_path}', *TINY)
  assert code == 1
  assert 'cpu:3' in problems and 'cpu:4' not in problems
  assert 'batch_size' in output
  assert [each['fits'] for each in json.loads((tmp_path / 'rehearsal.json').read_text())['targets']] == [False, True]


@pytest.mark.parametrize(
  ('flags', 'word'),
  [
    ((), '--on'),
    (('--on=v5e',), 'v5e:4x4'),
    (('--on=cpu:2', '--stand_in=1'), '--stand_in'),
    (('--off=cpu:2',), 'off'),
    (('--config.lr_find.steps=50',), 'the program is dnt.rehearse;'),
  ],
)
def test_bad_input_is_refused(refused, tmp_path, flags, word):
  assert word in refused(f'--workdir={tmp_path}', *flags, name='rehearse')


# One config of each family, small.
FAMILIES = {
  'mlp': ('--config.model.depth=3', '--config.model.width=128'),
  'plain': ('--config.model.depth=8',),
  'resnet': ('--config.model.depth=8', '--config.mesh.fsdp=4'),
  'highway': ('--config.model.depth=8',),
  'densenet': ('--config.model.depth=10', '--config.model.growth_rate=8'),
}


@pytest.mark.slow
@pytest.mark.parametrize('family', FAMILIES)
def test_a_config_of_each_family_compiles_for_tpus(run_program, tmp_path, family):
  try:
    targets.prepare(targets.parse(['v5e:2x2']))
  except errors.InputError as error:
    pytest.skip(str(error))
  tiny = [flag for flag in TINY if 'config.model.' not in flag]
  flags = (f'--config.model.name={family}', '--config.model.dtype=bfloat16', *FAMILIES[family])
  code, output = run_program('dnt.rehearse', '--on=v5e:2x2', f'--workdir={tmp_path}', *tiny, *flags)
  assert code == 0, output
  (found,) = json.loads((tmp_path / 'rehearsal.json').read_text())['targets']
  assert found['fits'] and found['step_seconds'] > 0 and 0 < found['mfu_at_most'] <= 1
  assert any(line['kind'] == 'all-reduce' for line in found['programs'][0]['collectives'])


@pytest.mark.slow
def test_a_run_compiles_for_gpus(run_program, tmp_path):
  try:
    targets.prepare(targets.parse(['h100:8']))
  except errors.InputError as error:
    pytest.skip(str(error))
  tiny = [flag for flag in TINY if 'config.model.' not in flag]
  code, output = run_program('dnt.rehearse', '--on=h100:8', f'--workdir={tmp_path}', *tiny, '--config.model.depth=8')
  assert code == 0, output
  (found,) = json.loads((tmp_path / 'rehearsal.json').read_text())['targets']
  assert found['fits'] and found['step_seconds'] > 0


def test_fit_finds_the_largest_batch(call_program, tmp_path):
  code, output, problems = call_program('rehearse', '--on=cpu:1', '--fit', f'--workdir={tmp_path}', *TINY)
  assert code == 0, problems
  (found,) = json.loads((tmp_path / 'rehearsal.json').read_text())['targets']
  assert found['fit']['batch'] == 64  # of 64 images
  assert 'batch_size=64' in output


def test_what_fsdp_splits_is_a_table(call_program, tmp_path):
  wide = (*TINY, '--config.model.width=128', '--config.mesh.fsdp=2')
  code, output, problems = call_program('rehearse', '--on=cpu:2', f'--workdir={tmp_path}', *wide)
  assert code == 0, problems
  (found,) = json.loads((tmp_path / 'rehearsal.json').read_text())['targets']
  assert {'parameter': 'stem/dense/kernel', 'shape': [192, 128], 'axis': 0} in found['sharding']
  assert 'stem/dense/kernel' in output
