import errno
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dnt import config as schema
from dnt import errors, trees
from dnt import workdir as workdir_lib
from dnt.checkpoints import format
from dnt.comparison import plan, runner
from dnt.reporting import progress, terminal


@pytest.fixture
def runs(tmp_path):
  config = schema.default('compare')
  config.seeds = (0, 1)
  config.variants = {'a': {}, 'b': {}, 'c': {}}
  return plan.make(config, tmp_path)


def finished(run, seconds):
  run.workdir.mkdir(parents=True)
  (run.workdir / 'summary.json').write_text(json.dumps({'finished': True, 'seconds': {'total': seconds}}))


def log(run, line):
  run.workdir.mkdir(parents=True, exist_ok=True)
  with (run.workdir / 'log.txt').open('a') as file:
    file.write(line + '\n')


def test_the_estimate_over_all_runs(runs):
  now = 0.0
  pace = runner.Pace(runs, lambda: now)
  finished(runs[0], 100.0)  # a, seed 0
  assert pace.look(runs[1]) == ['starting']
  now = 10.0
  log(runs[1], 'step 10/110  epoch 0.1  loss 6.8173  4 images/s')
  assert pace.look(runs[1]) == ['step 10/110']
  now = 20.0
  log(runs[1], 'step 20/110  epoch 0.2  loss 6.8173  4 images/s  ETA 2 min')
  # b takes 20 s so far and 90 steps of 1 s more, hence 110 s; c is taken for their mean.
  pending = 105 + 100 + 110 + 105
  assert pace.look(runs[1]) == [
    'step 20/110',
    f'ETA 1 min 30 s, all runs {(90 + pending) // 60} min {(90 + pending) % 60:02d} s',
  ]
  now = 40.0  # the run evaluates, or a step takes longer
  log(runs[1], 'test/accuracy 50.00 %')
  position, left = pace.look(runs[1])
  assert (position, left.split(',')[0]) == ('step 20/110', 'ETA 1 min 10 s')


def test_the_estimate_over_all_runs_while_one_goes_on(runs):
  now = 0.0
  pace = runner.Pace(runs, lambda: now)
  finished(runs[0], 100.0)  # a, seed 0
  pace.look(runs[1])
  now = 10.0
  log(runs[1], 'step 900/1000  epoch 9.0')
  assert pace.look(runs[1]) == ['step 900/1000']
  now = 20.0
  log(runs[1], 'step 910/1000  epoch 9.1')
  # b has 90 steps of 1 s left, and takes 1000 s from its first step on; c is taken for the mean of a and b.
  pending = 550 + 100 + 1000 + 550
  assert pace.look(runs[1]) == [
    'step 910/1000',
    f'ETA 1 min 30 s, all runs {(90 + pending) // 60} min {(90 + pending) % 60:02d} s',
  ]


def test_a_run_that_starts_says_what_it_is_at(runs):
  pace = runner.Pace(runs, lambda: 0.0)
  log(runs[0], 'step 3/10  ETA 2 s')  # of an earlier process
  assert pace.look(runs[0]) == ['starting']
  log(runs[0], 'head 10\nfeatures of train 64/640  16 images/s  ETA 36 s')
  assert pace.look(runs[0]) == ['starting', 'features of train 64/640  16 images/s  ETA 36 s']
  log(runs[0], 'features of train: 3 MB kept')
  assert pace.look(runs[0]) == ['starting']
  log(runs[0], 'step 4/10  epoch 0.0  loss 6.8')
  assert pace.look(runs[0]) == ['step 4/10']


def test_files_that_cannot_be_read_leave_the_estimate_to_the_others(runs, monkeypatch):
  now = 0.0
  pace = runner.Pace(runs[:3], lambda: now)
  finished(runs[0], 100.0)
  (runs[0].workdir / 'summary.json').write_text('{')
  assert pace.look(runs[1]) == ['starting']
  log(runs[1], 'step 10/110')
  assert pace.look(runs[1]) == ['step 10/110']
  with monkeypatch.context() as patch:
    patch.setattr(runner, '_since', lambda *_: os.stat(runs[1].workdir / 'gone'))
    assert pace.look(runs[1]) == ['starting']
  now = 20.0
  log(runs[1], 'step 20/110')
  # 90 steps of 2 s are left; the run after it is taken for this one, of 110 steps.
  assert pace.look(runs[1]) == ['step 20/110', 'ETA 3 min 00 s, all runs 6 min 40 s']


def test_the_line_of_a_real_run_is_understood(runs, caplog):
  """Long before its first record, which a run of hours writes every twentieth of its steps."""
  pace = runner.Pace(runs, lambda: 0.0)
  assert pace.look(runs[0]) == ['starting']
  with caplog.at_level(logging.INFO):
    progress.Progress(1536).update(87, 0.5, {'loss': 4.0})
  log(runs[0], caplog.messages[-1])
  assert pace.look(runs[0]) == ['step 87/1536']


@pytest.mark.parametrize(
  ('written', 'code', 'reason'),
  [
    ('step 1\nerror: no such file; do this\n', 2, 'no such file; do this'),
    ('error: earlier\nTraceback\nKeyError: 3\n', 1, 'error: earlier'),
    ('Traceback (most recent call last)\n  File\nKeyError: 3\n\n', 1, 'KeyError: 3'),
    ('step 1\n', -9, '.*SIGKILL.* memory.*'),
    ('step 1\n', -11, '.*SIGSEGV.*'),
    ('', 3, '.*code 3'),
  ],
)
def test_why_a_run_failed(tmp_path, written, code, reason):
  path = tmp_path / 'log.txt'
  path.write_text('error: of another time\n' + written)
  found = runner._reason(path, len('error: of another time\n'), code)
  assert re.fullmatch(reason.removeprefix('error: '), found)


OWN = """
import pathlib, sys
from dnt.parallel import ownership
with ownership.own(pathlib.Path(sys.argv[1]), alone=True):
  print('owns', flush=True)
  input()
"""


@pytest.mark.parametrize('owned', ['', 'b/seed1'])
def test_two_comparisons_do_not_share_a_workdir(runs, tmp_path, owned):
  """Nor does a comparison begin while a run lives that another comparison, now gone, has started."""
  assert tmp_path / owned in (tmp_path, *(run.workdir for run in runs))
  child = subprocess.Popen([sys.executable, '-c', OWN, tmp_path / owned], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  assert child.stdout.readline() == b'owns\n'
  refused = pytest.raises(
    errors.InputError, match=rf'{re.escape(str(tmp_path / owned))} .*in use.*\bprocess {child.pid}\b'
  )
  with refused, runner.own(tmp_path, runs):
    pass
  child.communicate(b'\n')
  with runner.own(tmp_path, runs):
    pass


def test_a_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with (
    pytest.raises(errors.InputError, match=f'{re.escape(str(tmp_path / "file"))}.*cannot be written'),
    runner.own(tmp_path / 'file', ()),
  ):
    pass


@pytest.mark.parametrize('name', ['report.html', 'results.json'])
def test_a_workdir_with_files_of_another_program_or_of_a_run(runs, tmp_path, name):
  path = tmp_path / name
  path.write_text('{"runs": 3}')
  refused = pytest.raises(errors.InputError, match=f'{re.escape(str(path))} is not of a comparison.* another --workdir')
  with refused, runner.own(tmp_path, runs):
    pass
  assert path.read_text() == '{"runs": 3}' and [each.name for each in tmp_path.iterdir()] == [name]
  runs[1].workdir.mkdir(parents=True)
  (runs[1].workdir / 'requested.json').write_text('{}')  # a comparison has begun
  with runner.own(tmp_path, ()):
    pass


def test_a_comparison_without_its_runs_is_one(tmp_path):
  for name in ('report.html', 'results.md'):
    (tmp_path / name).write_text('')
  (tmp_path / 'results.json').write_text('{"comparison": {}, "best": null, "variants": [], "runs": []}')
  with runner.own(tmp_path, ()):
    pass


def test_finished_runs_are_not_started(runs, monkeypatch, caplog):
  caplog.set_level(logging.INFO, 'dnt')
  monkeypatch.setattr(runner.plan, 'is_finished', lambda run: True)
  monkeypatch.setattr(runner.subprocess, 'Popen', lambda *args, **kwargs: pytest.fail('started'))
  assert runner.run(runs)
  assert re.search('6 of 6  c seed 1  .*finished', caplog.messages[-1])


def test_a_closed_output_stops_a_comparison_before_its_next_run(runs, monkeypatch):
  class Closed(io.StringIO):
    def write(self, text):
      raise BrokenPipeError(errno.EPIPE, 'closed')

  monkeypatch.setattr(plan, 'check_data', lambda *_: None)
  monkeypatch.setattr(plan, 'is_finished', lambda run: run is runs[0])
  monkeypatch.setattr(runner, '_run_one', lambda *_: pytest.fail('the next run started'))
  with terminal.console(Closed()) as shown:
    assert runner.run(runs) is False
  assert shown.lost.closed


def test_an_error_while_a_run_trains_stops_it(runs, tmp_path, monkeypatch):
  program = tmp_path / 'program'  # in place of Python, with a run that saves on SIGTERM
  program.write_text("#!/bin/sh\ntrap 'echo saved; kill $!; exit' TERM\nsleep 60 &\necho ready\nwait\n")
  program.chmod(0o755)
  monkeypatch.setattr(runner.sys, 'executable', str(program))
  monkeypatch.setattr(runner, '_end_with_parent', lambda: None)  # jax, which is here, warns of a fork
  runs[0].workdir.mkdir(parents=True)
  log = runs[0].workdir / 'log.txt'

  class Line:
    def update(self, text):
      if log.read_text():
        raise ValueError('a fault of dnt')

  begin = time.monotonic()
  with pytest.raises(ValueError, match='a fault'):
    runner._run_one(runs[0], 'run 1 of 1', Line(), runner.Pace(runs), [])
  assert log.read_text() == 'ready\nsaved\n'
  assert time.monotonic() - begin < 30


def test_a_second_ctrl_c_reaches_a_run_that_counts_two_at_once_as_one(runs, tmp_path, monkeypatch):
  program = tmp_path / 'program'  # in place of Python, with a run that ends at the third signal
  program.write_text(
    "#!/bin/sh\nn=0\ntrap 'n=$((n + 1)); [ $n = 3 ] && exit 130' INT\necho ready\nwhile :; do sleep 0.1; done\n"
  )
  program.chmod(0o755)
  monkeypatch.setattr(runner.sys, 'executable', str(program))
  monkeypatch.setattr(runner, '_end_with_parent', lambda: None)  # jax, which is here, warns of a fork
  runs[0].workdir.mkdir(parents=True)
  log, received = runs[0].workdir / 'log.txt', []

  class Line:
    def update(self, text):
      received[:] = [signal.SIGINT] * 2 if log.read_text() else []

  assert runner._run_one(runs[0], 'run 1 of 1', Line(), runner.Pace(runs), received) == ''
  assert log.read_text() == 'ready\n'


def test_a_comparison_leaves_the_devices_to_its_runs(tmp_path):
  # A process that has initialized an accelerator holds it, or most of its memory, until it ends.
  script = """
import jax
from dnt import cli, compare
from dnt.comparison import runner

jax.config.update('jax_platforms', 'none_such')  # of this process alone; initializing a device fails
runner._run_one = lambda run, *_: print('starts', run.name) or ''
cli.run(compare.PROGRAM)
"""
  options = ['--config=configs/compare_init.py', '--config.base.data.source=digits', '--only=relu_he,relu_small']
  ended = subprocess.run(
    [sys.executable, '-c', script, *options, '--config.seeds=(0,)', f'--workdir={tmp_path}'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert re.findall('starts (.*)', ended.stdout) == ['relu_he seed 0', 'relu_small seed 0'], ended.stderr
  assert '2 of 2 runs failed' in ended.stderr  # as nothing was trained; the results are written


def test_the_results_are_written_after_each_run_that_ended(runs, monkeypatch, caplog):
  caplog.set_level(logging.INFO, 'dnt')
  shown = []

  def run_one(run, *_):
    (run.workdir).mkdir(parents=True, exist_ok=True)
    if run.variant == 'b':
      return 'it failed'
    averaged = {'test_ema/accuracy': 0.75} if run.seed else {}
    summary = {'finished': True, 'seconds': {'total': 1.0}, 'last': {'test/accuracy': 0.5} | averaged}
    (run.workdir / 'summary.json').write_text(json.dumps(summary))
    return ''

  finished(runs[0], 1.0)
  (runs[0].workdir / 'requested.json').write_text(json.dumps(runs[0].config.to_dict()))
  monkeypatch.setattr(runner, '_run_one', run_one)
  assert runner.run(runs, lambda: shown.append(caplog.messages[-1]))
  assert len(shown) == 5, 'not after the one that was finished before'
  assert re.search('2 of 6  b seed 0  .*it failed', shown[0])
  assert '3 of 6  c seed 0  test accuracy 50.00 %  1 s' in shown[1]
  assert '4 of 6  a seed 1  test_ema accuracy 75.00 %  1 s' in shown[2]


@pytest.fixture
def in_process(monkeypatch, program):
  """Runs are made in this process instead of one of their own; returns the workdirs of those that are started."""
  started = []

  class Process:
    def __init__(self, command, stdout, **_):
      started.append(command[4].removeprefix('--workdir='))
      self.code, out, error = program(*command[3:])
      stdout.write((out + error).encode())

    def __enter__(self):
      return self

    def __exit__(self, *_):
      pass

    def wait(self, _):
      return self.code

  monkeypatch.setattr(runner.subprocess, 'Popen', Process)
  return started


def test_a_run_is_given_the_defaults_that_its_weights_would_replace(tmp_path):
  config = schema.default('compare')
  tuned = {'train.init_from': 'variant:first', 'model.name': 'pretrained', 'model.activation': 'relu'}
  config.variants = {'first': {'model.name': 'mlp', 'model.activation': 'relu'}, 'tuned': tuned}
  schema.mark_given(config, ['base.model.initializer', 'base.model.norm_momentum'])  # the first: where they are drawn
  flags = {run.variant: sorted(runner._given_defaults(run.config)) for run in plan.make(config, tmp_path)}
  assert flags == {'first': [], 'tuned': ['--config.model.activation=relu', '--config.model.norm_momentum=0.9']}


@pytest.mark.thorough
@pytest.mark.usefixtures('undrawn')
def test_a_variant_starts_from_the_weights_of_another(tiny, in_process, tmp_path, caplog):
  caplog.set_level(logging.INFO, 'dnt')
  config = schema.default('compare')
  with config.unlocked():
    config.base = tiny
  config.base.train.steps, config.base.eval.every, config.base.checkpoint.every = 2, '0', '0'
  config.base.telemetry.every = '0'
  config.variants = {
    'tuned': {'train.init_from': 'variant:pretrain', 'finetune.trainable': 'head', 'finetune.cached_views': 0},
    'lost': {'train.init_from': 'variant:diverges'},
    'pretrain': {'data.seed': 1},
    'diverges': {'optim.learning_rate': 1e30},
  }
  runs = plan.make(config, tmp_path)
  pretrain, tuned, diverges, lost = runs
  assert runner.run(runs)
  assert in_process == [str(run.workdir) for run in (pretrain, tuned, diverges)], 'what cannot start is not started'

  before, after = (
    trees.flatten(format.read_parameters(run.workdir / 'checkpoints' / '2').value.params) for run in (pretrain, tuned)
  )
  same = {path for path in before if np.array_equal(before[path], after[path])}
  assert same == {path for path in before if not path.startswith('head/')}
  assert json.loads((tuned.workdir / 'config.json').read_text())['train']['init_from'] == str(pretrain.workdir)

  failed, failure = (json.loads((run.workdir / workdir_lib.FAILURE).read_text())['error'] for run in (diverges, lost))
  assert 'not finite' in failed and 'diverges' in failure and failure.endswith(failed)
  said = [record.getMessage() for record in caplog.records if record.name == 'dnt.comparison.runner']
  assert '4 of 4  lost seed 0  ' in said[-1] and said[-1].endswith(failure)

  in_process.clear()
  assert runner.run(plan.make(config, tmp_path))
  assert in_process == [str(diverges.workdir)], 'what is finished is not run again'


def test_nothing_is_run_when_data_are_missing(runs, in_process):
  runs[1].config.data.source = 'folder:absent'
  with pytest.raises(errors.InputError, match='b seed 0: .*absent .*exist'):
    runner.run(runs)
  assert not in_process
