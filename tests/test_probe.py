"""The program: what it prints, what it refuses, and that what it offers can be given to it."""

import functools
import re
import shlex

import pytest


@pytest.fixture
def probe(run_here, tmp_path):
  """Runs the program: (exit code, output)."""
  return functools.partial(run_here, 'probe', f'--workdir={tmp_path / "probe"}')


@pytest.mark.thorough
@pytest.mark.usefixtures('undrawn')
def test_what_it_offers_can_be_given_to_it(probe, config_file, tmp_path):
  sick = {'model.name': 'mlp', 'model.depth': 3, 'model.norm': 'none', 'optim.learning_rate': 100.0}
  config = config_file('sick', sick)
  code, output = probe(f'--config={config}', '--seeds=1')
  assert code == 0, output
  assert 'verdict: step too large' in output
  assert output.splitlines()[-1] == f'written to {tmp_path / "probe"}'
  assert {path.name for path in (tmp_path / 'probe').iterdir()} == {'probe.json', 'probe.png'}
  offered = re.findall(r'^  (--config\..*)$', output.partition('verdict: ')[2], re.MULTILINE)
  assert 2 <= len(offered) <= 4
  code, output = probe(f'--config={config}', '--seeds=1', *shlex.split(offered[0]))
  assert code == 0, output
  assert 'verdict: trainable' in output


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (['--config=configs/compare_init.py'], r'compare_init\.py.* compare .*train, signal'),
    (['--confg=configs/probe_grid.py'], "'confg'"),
    (['--config=configs/probe_grid.py', '--try'], '--try, --seeds'),
    (['--config=configs/probe_grid.py', '--seeds=2'], '--try, --seeds'),
    (['--config=configs/probe_grid.py', '--seconds=2'], '--try, --seeds'),
    (['--seeds=2'], r'--seeds.* give --config too'),
    (['--config.optim.learning_rate=0.01'], r'--config\.<key> .* give --config too'),
    (['--config=configs/digits_resnet20.py', '--config.lr_find.steps=30'], r'the program is dnt\.probe;'),
    (['--config=configs/digits_resnet20.py', '--try', '--config.lr_find.steps=30'], r'is dnt\.probe --try;'),
  ],
)
def test_bad_input_is_one_line(probe, arguments, said):
  code, output = probe(*arguments)
  assert code == 2
  assert re.search(said, output)
  assert len(output.splitlines()) == 1, output
