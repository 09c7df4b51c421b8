"""The order of events and of resume sources, as the docstring of dnt.loop states them."""

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from concurrent import futures

import jax
import numpy as np
import pytest

import dnt
from dnt import checkpoints, cli, errors, files, inference, loop, main, trees
from dnt import config as schema
from dnt.checkpoints import format
from dnt.config import run_config
from dnt.data import resident, stream
from dnt.models import depth
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import preemption, signals
from dnt.reporting import metric_names, metrics
from dnt.training import datasets, evaluate, open_options, precompile, record, report
from dnt.weights import pretrained

pytestmark = pytest.mark.usefixtures('undrawn')


def run(config, workdir):
  return loop.train(config, workdir, record.Clock(0.0), 'test')


KERNELLESS = """
import flax.linen as nn

class Net(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    return x @ self.param('weight', nn.initializers.lecun_normal(), (x.shape[1], self.num_classes))
"""


def test_a_module_without_kernels_trains_with_the_defaults_and_a_line_says_that_nothing_decays(
  tiny, tmp_path, monkeypatch, console
):
  (tmp_path / 'kernelless.py').write_text(KERNELLESS)
  monkeypatch.syspath_prepend(tmp_path)
  tiny.model = schema.default().model
  tiny.model.name = 'kernelless:Net'
  assert run(tiny, tmp_path / 'run')['finished']
  said = console.readouterr().out
  assert said.count("weight_decay_on='kernel$' matches no parameter that trains; their paths look like 'weight'") == 1
  sys.modules.pop('kernelless')


def test_order_of_events(tiny, tmp_path, monkeypatch):
  events = []

  def spy(owner, name, label):
    original = getattr(owner, name)

    def wrapped(self, *args, **kwargs):
      events.append(label(*args))
      return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)

  spy(record.Record, 'add_training', lambda start, count, values: ('trained', start + count))
  spy(record.Record, 'add_evaluation', lambda step, result: ('evaluated', step))
  spy(checkpoints.Checkpoints, 'save', lambda step, *_: ('saved', step))
  spy(checkpoints.Checkpoints, 'rate', lambda step, *_: ('rated', step))
  tiny.train.steps_per_dispatch = 1
  tiny.train.steps, tiny.train.log_every, tiny.eval.every, tiny.checkpoint.every = 6, '2', '2', '4'
  run(tiny, tmp_path)
  assert [event for event in events if event[0] == 'trained'] == [('trained', step) for step in range(1, 7)]
  assert events == [
    ('trained', 1),
    ('trained', 2),
    ('evaluated', 2),
    ('trained', 3),
    ('trained', 4),
    ('saved', 4),
    ('evaluated', 4),
    ('rated', 4),
    ('trained', 5),
    ('trained', 6),
    ('saved', 6),
    ('evaluated', 6),
    ('rated', 6),
  ]
  names = [(line['step'], 'train/loss' in line) for line in metrics.read(tmp_path)]
  assert names == [(2, True), (2, False), (4, True), (4, False), (6, True), (6, False)]


def test_a_run_in_another_thread_leaves_signals_to_the_main_one(tiny, tmp_path):
  tiny.train.steps, tiny.eval.every, tiny.checkpoint.every, tiny.telemetry.every = 2, '0', '0', '0'
  before = signal.getsignal(signal.SIGTERM)
  with futures.ThreadPoolExecutor(1) as pool:
    assert pool.submit(dnt.train, tiny, tmp_path).result()['finished']
  assert signal.getsignal(signal.SIGTERM) == before
  with signals.hold() as watch:
    assert signal.getsignal(signal.SIGTERM) == watch._handle


def test_a_workdir_in_the_home_folder(tiny, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.InputError, match=f'{re.escape(str(tmp_path))}/file.* cannot be written'):
    dnt.train(tiny, '~/file/run')


class KilledError(BaseException):
  """Ends a run where nothing handles it, as a kill does."""


def lines(workdir):
  """The record without the speed, which differs from run to run."""
  return [{name: line[name] for name in line if name not in metric_names.SPEED} for line in metrics.read(workdir)]


def raising(error, at):
  """Returns a function that raises at its call number `at`, and otherwise calls the original."""

  def wrap(original):
    calls = itertools.count(1)

    def wrapped(*args, **kwargs):
      if next(calls) == at:
        raise error
      return original(*args, **kwargs)

    return wrapped

  return wrap


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  """The folder of the run that no case disturbs; the first case makes it."""
  return tmp_path_factory.mktemp('undisturbed')


@pytest.mark.thorough
@pytest.mark.parametrize(
  ('owner', 'name', 'error', 'at', 'kept'),
  [
    (evaluate, 'evaluate_all', errors.InputError('cannot read the image dog.jpg'), 2, 4),  # a checkpoint is due
    (evaluate, 'evaluate_all', errors.InputError('cannot read the image dog.jpg'), 1, 2),  # none is due
    (evaluate, 'evaluate_all', errors.RunError('a worker process has died'), 1, 2),
    (evaluate, 'evaluate_all', errors.InputError('cannot read the image dog.jpg'), 3, 6),  # the last step
    (resident.TrainLoader, 'arrays', errors.InputError('cannot read the image dog.jpg'), 4, 3),
    (resident.TrainLoader, 'arrays', errors.RunError('a worker process has died'), 4, 3),
    (evaluate, 'evaluate_all', KilledError('killed'), 2, 4),
    (checkpoints.Checkpoints, 'rate', KilledError('killed'), 1, 4),
    (format, 'replace_meta', KilledError('killed'), 1, 4),
    (format, 'replace_meta', OSError('the disk is full'), 1, 4),
  ],
)
def test_what_was_trained_is_kept_and_the_run_goes_on_as_if_nothing_was(
  tiny, tmp_path, undisturbed, monkeypatch, owner, name, error, at, kept
):
  tiny.train.steps, tiny.train.log_every, tiny.eval.every, tiny.checkpoint.every = 6, '2', '2', '4'
  tiny.train.steps_per_dispatch, tiny.train.patience = 1, 3
  if not (undisturbed / 'summary.json').exists():
    run(tiny, undisturbed)
  whole = json.loads((undisturbed / 'summary.json').read_text())
  with monkeypatch.context() as patch:
    patch.setattr(owner, name, raising(error, at)(getattr(owner, name)))
    with pytest.raises(errors.RunError if isinstance(error, OSError) else type(error), match=str(error)) as caught:
      run(tiny, tmp_path / 'run')
  if not isinstance(error, KilledError):
    assert f'step {kept} is kept in {tmp_path}' in str(caught.value)
    assert ('--allow=data.source' in str(caught.value)) == isinstance(error, errors.InputError)
  assert checkpoints.load_parameters(tmp_path / 'run').step == kept
  again = run(tiny, tmp_path / 'run')

  assert again['params_sha256'] == whole['params_sha256']
  assert again['best'] == whole['best']
  assert sorted(lines(tmp_path / 'run'), key=str) == sorted(lines(undisturbed), key=str)
  last = checkpoints.load_parameters(tmp_path / 'run').meta
  expected = checkpoints.load_parameters(undisturbed).meta
  for name in metric_names.SPEED:
    last['last'].pop(name, None)
    expected['last'].pop(name, None)
  for key in ('last', 'best', 'evaluated_at', 'evaluations_without_better'):
    assert last[key] == expected[key]
  folder = tmp_path / 'run' / 'checkpoints' / '6'
  name = whole['best']['metric']
  assert format.metrics_of(folder)[name] == expected['last'][name]


def test_a_run_that_ends_in_any_way_leaves_no_thread_that_writes(tiny, tmp_path, monkeypatch):
  """The next run in the workdir would remove the checkpoint under its hands."""
  import orbax.checkpoint as ocp

  finalize, close = ocp.PyTreeCheckpointHandler.finalize, checkpoints.Checkpoints.close
  closed = []

  def slowly(*args):
    time.sleep(0.5)
    return finalize(*args)

  def interrupted(saved):
    closed.append(1)
    if len(closed) == 1:
      raise KeyboardInterrupt('the third Ctrl-C')
    close(saved)

  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'finalize', slowly)
  monkeypatch.setattr(checkpoints.Checkpoints, 'close', interrupted)
  monkeypatch.setattr(checkpoints.Checkpoints, 'wait', raising(KeyboardInterrupt('the second Ctrl-C'), 1)(None))
  tiny.train.steps, tiny.eval.every = 2, '0'
  with pytest.raises(KeyboardInterrupt, match='second'):
    run(tiny, tmp_path)
  assert [path.name for path in (tmp_path / 'checkpoints').iterdir()] == ['2']
  assert len(closed) == 2 and not (tmp_path / 'owner.json').exists()
  assert checkpoints.load_parameters(tmp_path).step == 2


def test_a_file_that_cannot_be_written_is_an_error_of_the_run_that_names_it(tiny, tmp_path):
  (tmp_path / 'config.json').mkdir()
  with pytest.raises(errors.RunError, match=rf'^{re.escape(str(tmp_path))}/config.json: Is a directory$'):
    run(tiny, tmp_path)


def test_a_checkpoint_after_a_signal_is_rated_when_the_run_goes_on(tiny, tmp_path, monkeypatch):
  """The process that stopped did not wait for the evaluation."""
  tiny.train.steps_per_dispatch = 1
  with monkeypatch.context() as patch:
    patch.setattr(preemption.Guard, 'requested', lambda self, count: count == 2)
    run(tiny, tmp_path)
  folder = tmp_path / 'checkpoints' / '3'
  assert not format.metrics_of(folder)
  tiny.checkpoint.keep = 3
  run(tiny, tmp_path)
  assert format.metrics_of(folder)
  assert checkpoints.load_parameters(tmp_path, 3).meta['evaluated_at'] == 3


def test_train_is_a_function_of_the_package(tiny, tmp_path):
  tiny.train.steps = 2
  summary = dnt.train(tiny, str(tmp_path / 'run'))
  assert summary['step'] == 2 and (tmp_path / 'run' / 'summary.json').exists()
  tiny.model.norm = 'no such norm'
  with pytest.raises(errors.InputError, match='config.model.norm'):
    dnt.train(tiny, tmp_path / 'other')
  assert not (tmp_path / 'other').exists()
  assert {'load', 'train'} <= set(dir(dnt)) and dnt.load is inference.load
  with pytest.raises(AttributeError, match='no_such'):
    dnt.no_such  # noqa: B018


def test_a_jax_that_does_not_compile_is_refused_before_anything_is_written(tiny, tmp_path):
  with jax.disable_jit(), pytest.raises(errors.InputError, match='jax_disable_jit is set'):
    dnt.train(tiny, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_second_run_at_the_same_time_in_one_process_is_refused(tiny, tmp_path, monkeypatch):
  def train_another(*_):
    with futures.ThreadPoolExecutor(1) as pool:
      return pool.submit(dnt.train, tiny, tmp_path / 'other').result()

  with monkeypatch.context() as patch:
    patch.setattr(loop, '_train', train_another)
    with pytest.raises(
      errors.InputError, match=f'{re.escape(str(tmp_path))}/other .*another thread of this process trains'
    ):
      dnt.train(tiny, tmp_path / 'run')
  assert not (tmp_path / 'other').exists()
  monkeypatch.setattr(loop, '_train', lambda *_: {'step': 1})
  assert dnt.train(tiny, tmp_path / 'run') == {'step': 1}


@pytest.mark.parametrize(
  'case', ['device', 'stream', *(pytest.param(each, marks=pytest.mark.thorough) for each in ('phases', 'scan'))]
)
def test_the_loop_has_no_transfers_but_those_that_it_allows(tiny, tmp_path, monkeypatch, case):
  """On CPU, jax guards what goes to the devices."""
  tiny.data.placement, tiny.data.workers = 'stream' if case == 'stream' else 'device', 0
  tiny.ema.decay, tiny.telemetry.every = 0.9, '4'
  if case == 'phases':
    tiny.finetune.trainable, tiny.finetune.unfreeze, tiny.finetune.cached_views = 'head', (('4', 'all'),), 0
  if case == 'scan':
    tiny.model.name, tiny.model.depth, tiny.model.width, tiny.model.scan = 'resnet', 14, None, True
  inner, guarded = loop._run, []

  def guard(*args):
    with jax.transfer_guard('disallow'):
      state = inner(*args)
    guarded.append(int(state.step))
    return state

  monkeypatch.setattr(loop, '_run', guard)
  run(tiny, tmp_path)
  assert guarded == [6]


def test_a_run_traces_its_network_once(tiny, tmp_path, monkeypatch):
  """Also with a second experiment on cached features, and when it goes on from weights."""
  trace, traced = depth.trace, []
  monkeypatch.setattr(depth, 'trace', lambda *args: traced.append(args) or trace(*args))
  tiny.train.steps, tiny.eval.every = 2, '0'
  run(tiny, tmp_path / 'first')
  assert len(traced) == 1
  tiny.train.init_from, tiny.finetune.trainable = str(tmp_path / 'first'), 'head'
  tiny.finetune.cache_dir, tiny.finetune.cached_views = str(tmp_path / 'features'), 1
  run(tiny, tmp_path / 'second')
  assert len(traced) == 2


def contents(workdir):
  return {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}


@pytest.mark.thorough
@pytest.mark.parametrize('summarized', [True, False])
def test_a_run_that_is_further_than_its_steps_is_finished(tiny, tmp_path, console, summarized):
  """Nothing changes, also where a kill left no summary and lines after the checkpoint."""
  whole = run(tiny, tmp_path)
  if not summarized:
    (tmp_path / 'summary.json').unlink()
    with (tmp_path / 'metrics.jsonl').open('a') as file:
      file.write('{"step": 7, "epoch": 1.75, "train/loss": 1.0}\n')
  before = contents(tmp_path)
  console.readouterr()
  tiny.train.steps = 4
  again = run(tiny, tmp_path)
  assert contents(tmp_path) == before
  assert again['finished'] and again['step'] == 6
  for name in ('last', 'best', 'params_sha256', 'parameters', 'trainable_parameters'):
    assert again[name] == whole[name]
  assert report.last_line(again, 'command').startswith('finished step 6')
  assert re.search(r'done 6 steps.*4 of config.train.steps.*--workdir', console.readouterr().out)
  tiny.train.steps = 8
  assert run(tiny, tmp_path)['step'] == 8


def test_a_run_that_has_ended_keeps_the_config_that_it_was_trained_with(tiny, tmp_path, console):
  whole = run(tiny, tmp_path)
  before = contents(tmp_path)
  tiny.optim.learning_rate = 3.0
  again = run(tiny, tmp_path)
  assert contents(tmp_path) == before
  assert again['finished'] and again['params_sha256'] == whole['params_sha256']
  assert re.search(
    r'ended.*with all.*optim.learning_rate.*With more config.train.steps the run', console.readouterr().out
  )
  (tmp_path / 'summary.json').write_text('{"step": 6, "finished": false}')  # it was stopped before its end
  run(tiny, tmp_path)
  assert files.read_object(tmp_path / 'summary.json')['finished']


@pytest.mark.thorough
def test_a_run_that_patience_ended_keeps_its_config_as_long_as_it_is_out_of_patience(tiny, tmp_path, console):
  tiny.model.norm, tiny.optim.learning_rate, tiny.eval.every = 'none', 1e-12, '1'  # the first evaluation is the best
  tiny.train.steps, tiny.train.patience = 50, 2
  whole = run(tiny, tmp_path)
  before = contents(tmp_path)
  for key, value in (('learning_rate', 0.1), ('steps', 60), ('patience', 1)):
    (tiny.optim if key == 'learning_rate' else tiny.train)[key] = value
    console.readouterr()
    again = run(tiny, tmp_path)
    assert contents(tmp_path) == before
    assert again['finished'] and again['step'] == 3 and again['params_sha256'] == whole['params_sha256']
    said = console.readouterr().out
    assert re.search(rf'ended at step 3 as patience .* another .*{key}.* config.train.patience above 2 ', said)
  tiny.train.patience = 4
  assert run(tiny, tmp_path)['step'] > 3
  assert [line['step'] for line in metrics.read(tmp_path) if 'changed' in line] == [3]


def test_a_run_whose_patience_ended_with_its_steps_names_both_options_in_the_way(tiny, tmp_path, console):
  tiny.model.norm, tiny.optim.learning_rate, tiny.eval.every = 'none', 1e-12, '1'  # the first evaluation is the best
  tiny.train.steps, tiny.train.patience = 3, 2
  run(tiny, tmp_path)
  tiny.optim.learning_rate = 1e-11
  for steps, patience, said in (
    (3, 2, r'at step 3 with all of its steps.* With more config\.train\.steps and a config\.train\.patience above 2 '),
    (4, 2, r'at step 3 as patience ran out.* With a config\.train\.patience above 2 '),
    (3, 3, r'at step 3 with all of its steps.* With more config\.train\.steps the run'),
  ):
    tiny.train.steps, tiny.train.patience = steps, patience
    console.readouterr()
    assert run(tiny, tmp_path)['step'] == 3
    assert re.search(said, console.readouterr().out)
  tiny.train.steps = 4
  assert run(tiny, tmp_path)['step'] == 4


@pytest.mark.thorough
def test_fewer_steps_than_the_start_of_a_phase_that_was_reached(tiny, tmp_path):
  """The optimizer's state of that phase is in the checkpoint, but the run as it is asked for now has no such phase."""
  tiny.finetune.trainable, tiny.finetune.unfreeze, tiny.finetune.cached_views = 'head', (('4', 'all'),), 0
  whole = run(tiny, tmp_path)
  before = contents(tmp_path)
  tiny.train.steps = 3
  again = run(tiny, tmp_path)
  assert again['finished'] and again['step'] == 6
  assert again['params_sha256'] == whole['params_sha256']
  assert contents(tmp_path) == before


def test_fewer_steps_than_a_damaged_checkpoint_go_on_from_the_one_before(tiny, tmp_path):
  """As every run does whose newest checkpoint is damaged."""
  run(tiny, tmp_path)
  (tmp_path / 'checkpoints' / '6' / 'meta' / 'meta.json').write_text('{')
  tiny.train.steps = 5
  assert run(tiny, tmp_path)['step'] == 5


def first_kernel(workdir):
  return trees.flatten(checkpoints.load_parameters(workdir).params)['stem/dense/kernel']


@pytest.mark.thorough
def test_order_of_resume_sources(tiny, tmp_path):
  run(tiny, tmp_path / 'other')
  tiny.seed = 1
  tiny.optim.weight_decay, tiny.optim.learning_rate = 0.0, 1e-30  # kernels stay where they start
  run(tiny, tmp_path / 'fresh')
  fresh, other = first_kernel(tmp_path / 'fresh'), first_kernel(tmp_path / 'other')
  assert not np.array_equal(fresh, other)
  tiny.train.init_from = str(tmp_path / 'other')
  run(tiny, tmp_path / 'started')
  assert np.array_equal(first_kernel(tmp_path / 'started'), other)
  # The run's own checkpoint comes before init_from.
  tiny.train.steps = 8
  assert run(tiny, tmp_path / 'fresh')['step'] == 8
  assert np.array_equal(first_kernel(tmp_path / 'fresh'), fresh)


@pytest.mark.thorough
@pytest.mark.parametrize('scan', [True, False])
def test_a_checkpoint_of_one_layout_loads_into_the_other(tiny, tmp_path, scan):
  tiny.model.name, tiny.model.depth, tiny.model.width = 'resnet', 14, None
  tiny.ema.decay = 0.5
  tiny.train.steps, tiny.eval.every = 3, '0'
  tiny.model.scan = scan
  first = run(tiny, tmp_path / 'run')
  tiny.model.scan = not scan
  again = run(tiny, tmp_path / 'run')
  assert again['params_sha256'] == first['params_sha256']
  tiny.train.steps = 5
  assert run(tiny, tmp_path / 'run')['step'] == 5


def test_a_state_that_is_not_finite_is_not_saved(tiny, tmp_path):
  tiny.train.steps, tiny.checkpoint.every, tiny.eval.every = 40, '1', '0'
  tiny.model.norm, tiny.optim.learning_rate = 'none', 1e3
  with pytest.raises(errors.RunError, match=r'not finite.*step \d+.*(kept|none was saved)'):
    run(tiny, tmp_path)
  saved = checkpoints.load_parameters(tmp_path)
  tiny.optim.learning_rate = 1e-3
  assert saved.step < 40
  evaluated = evaluate.evaluate(tiny, tmp_path)
  assert evaluated['step'] == saved.step


def test_init_from_another_network_is_refused(tiny, saved, tmp_path):
  saved(tiny, tmp_path / 'other')
  tiny.model.width, tiny.train.init_from = 24, str(tmp_path / 'other')
  with pytest.raises(errors.InputError, match=r'stem/norm/mean: \(16,\), wanted \(24,\)'):
    run(tiny, tmp_path / 'run')
  assert not list((tmp_path / 'run' / 'checkpoints').glob('[0-9]*'))


def test_a_run_does_not_go_on_with_other_classes(tiny, saved, tmp_path, change_splits):
  saved(tiny)
  tiny.train.steps = 9

  def written():
    files = (path for path in (tmp_path / 'run').rglob('*') if path.is_file() and path.suffix != '.lock')
    return {path: path.read_bytes() for path in files}

  before = written()
  change_splits(lambda split: dataclasses.replace(split, class_names=('z_class', *split.class_names[1:])))
  with pytest.raises(errors.InputError, match='z_class; missing: class0'):
    run(tiny, tmp_path / 'run')
  assert written() == before


@pytest.mark.thorough
def test_a_head_of_other_classes_starts_at_zero(tiny, tmp_path, console):
  tiny.optim.weight_decay, tiny.optim.learning_rate, tiny.train.steps = 0.0, 1e-30, 1
  run(tiny, tmp_path / 'other')
  tiny.data.synthetic_classes, tiny.seed, tiny.train.init_from = 4, 1, str(tmp_path / 'other')
  run(tiny, tmp_path / 'started')
  said = (
    f'{re.escape(str(tmp_path / "other"))} .*10 classes.* 4.* params/head/dense/bias, params/head/dense/kernel .*zero'
  )
  assert re.search(said, console.readouterr().out)
  assert np.array_equal(first_kernel(tmp_path / 'started'), first_kernel(tmp_path / 'other'))
  head = trees.flatten(checkpoints.load_parameters(tmp_path / 'started').params)['head/dense/kernel']
  assert head.shape[-1] == 4 and np.all(np.abs(head) < 1e-20)


def stop_and_wait(*_):
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(30)


@pytest.mark.thorough
@pytest.mark.parametrize('what', ['evaluation', 'compilation', 'data'])
def test_a_signal_ends_what_need_not_be_waited_for(tiny, tmp_path, monkeypatch, what):
  """Nothing trained is lost: the run ends as one that was not stopped."""
  tiny.finetune.trainable, tiny.finetune.unfreeze, tiny.finetune.cached_views = 'head', (('4', 'all'),), 0
  tiny.checkpoint.every, tiny.data.placement, tiny.data.workers = '0', 'stream', 0
  whole = run(tiny, tmp_path / 'whole')
  stops_at = {'evaluation': 3, 'compilation': 4, 'data': 5}[what]
  begin = time.monotonic()
  with monkeypatch.context() as patch:
    if what == 'evaluation':
      patch.setattr(evaluate, 'evaluate_all', stop_and_wait)
    elif what == 'compilation':
      get = precompile.Programs._get
      waits = lambda self, name, step, state: (stop_and_wait if step == 4 else get)(self, name, step, state)  # noqa: E731
      patch.setattr(precompile.Programs, '_get', waits)
    else:
      arrays = stream.TrainLoader.arrays
      waits = lambda self, step, count: (stop_and_wait if step == 5 else arrays)(self, step, count)  # noqa: E731
      patch.setattr(stream.TrainLoader, 'arrays', waits)
    stopped = run(tiny, tmp_path / 'stopped')
  assert time.monotonic() - begin < 29
  assert (stopped['step'], stopped['finished'], stopped['stopped_by']) == (stops_at, False, 'SIGTERM')
  again = run(tiny, tmp_path / 'stopped')
  assert again['finished'] and again['stopped_by'] is None
  assert again['params_sha256'] == whole['params_sha256']
  assert lines(tmp_path / 'whole') == lines(tmp_path / 'stopped')


@pytest.mark.thorough
@pytest.mark.parametrize(('placement', 'dispatched'), [('stream', [0, 1]), ('device', [0, 4])])
def test_a_signal_ends_an_evaluation_of_several_processes(tiny, tmp_path, monkeypatch, placement, dispatched):
  """Between two dispatches of its batches, as the processes agree."""
  tiny.train.steps_per_dispatch, tiny.checkpoint.every, tiny.data.placement, tiny.data.workers = 1, '0', placement, 0
  tiny.eval.batch_size = 4  # 16 batches
  batches = []
  kind = {'stream': stream, 'device': resident}[placement].EvalLoader
  arrays = kind.arrays
  with monkeypatch.context() as patch:
    patch.setattr(kind, 'arrays', lambda self, step, count: batches.append(step) or arrays(self, step, count))
    patch.setattr(preemption, 'take_over', lambda: lambda: None)
    joined = types.SimpleNamespace(is_initialized=lambda: True)
    patch.setattr(preemption, 'jax', types.SimpleNamespace(distributed=joined, process_count=lambda: 2))
    patch.setattr(preemption.multihost_utils, 'reached_preemption_sync_point', lambda count: count == 5)
    patch.setattr(preemption.Guard, '_agree', lambda self: signal.SIGTERM)
    stopped = run(tiny, tmp_path)
  assert (stopped['step'], stopped['finished'], stopped['stopped_by']) == (3, False, 'SIGTERM')
  assert batches == dispatched  # after calls 0 to 2, of the steps
  assert checkpoints.load_parameters(tmp_path).step == 3
  assert run(tiny, tmp_path)['finished']
  assert any('test/loss' in line and line['step'] == 3 for line in metrics.read(tmp_path))


def test_what_a_signal_has_saved_is_ranked_when_it_is_evaluated(tiny, tmp_path, monkeypatch):
  """Where no checkpoint was due."""
  tiny.train.steps_per_dispatch, tiny.checkpoint.every, tiny.checkpoint.keep = 1, '6', 5
  with monkeypatch.context() as patch:
    patch.setattr(preemption.Guard, 'requested', lambda self, count: count == 2)
    assert run(tiny, tmp_path)['step'] == 3
  assert not format.metrics_of(tmp_path / 'checkpoints/3')
  assert run(tiny, tmp_path)['finished']
  (line,) = [line for line in metrics.read(tmp_path) if line['step'] == 3 and 'test/accuracy' in line]
  assert format.metrics_of(tmp_path / 'checkpoints/3')['test/accuracy'] == line['test/accuracy']


def test_a_signal_at_the_last_step_leaves_its_evaluation_to_the_next_process(tiny, tmp_path, monkeypatch):
  tiny.train.steps, tiny.eval.every = 2, '0'
  with monkeypatch.context() as patch:
    patch.setattr(evaluate, 'evaluate_all', stop_and_wait)
    stopped = run(tiny, tmp_path)
  assert (stopped['step'], stopped['finished']) == (2, False)
  finished = run(tiny, tmp_path)
  assert finished['finished'] and 'test/loss' in finished['last']


def test_the_test_split_is_looked_at_when_the_run_ends(tiny, tmp_path, console):
  """With the last weights and with the best checkpoint, which a split that is held out of train has chosen."""
  tiny.eval.splits, tiny.checkpoint.best_metric, tiny.checkpoint.keep = ('val',), 'loss', 1
  tiny.train.steps, tiny.eval.every, tiny.checkpoint.every, tiny.ema.decay = 12, '3', '3', 0.5
  tiny.optim.learning_rate, tiny.schedule.name = 1.0, 'constant'  # too large, so that the last step is not the best
  summary = run(tiny, tmp_path)
  said = console.readouterr().out
  assert (summary['best']['metric'], summary['best']['step']) == ('val_ema/loss', summary['best_checkpoint']['step'])
  best = summary['best_checkpoint']['step']
  assert best < 12
  looked = [line['step'] for line in metrics.read(tmp_path) if 'test/loss' in line]
  assert looked == [12] and 'the end  test/loss' in said
  values = {}
  for step in (best, 12):
    loaded = checkpoints.load_parameters(tmp_path, step)
    mesh = mesh_lib.make_mesh(tiny.mesh)
    at = evaluate.load(tiny, tmp_path, mesh, ('test',))
    with evaluate.Evaluator(at.run, mesh, at.data.evaluation) as evaluator:
      values[step] = evaluate.evaluate_all(evaluator, evaluate.place(at.run, mesh, loaded, tmp_path)).metrics
  assert {'step': best, **values[best]} == summary['best_checkpoint']
  assert {name: summary['last'][name] for name in values[12]} == values[12]
  assert not summary['warnings']

  before = (tmp_path / 'metrics.jsonl').read_text()
  assert run(tiny, tmp_path)['best_checkpoint'] == summary['best_checkpoint'], 'a run that has ended, run again'
  assert (tmp_path / 'metrics.jsonl').read_text() == before


def test_a_run_whose_best_checkpoint_is_damaged_ends_without_its_figures(tiny, tmp_path, monkeypatch, console):
  tiny.eval.splits, tiny.checkpoint.best_metric = ('val',), 'accuracy'

  def damage(*_):
    (tmp_path / 'checkpoints' / '3' / 'meta' / 'meta.json').write_text('{')
    return 3

  monkeypatch.setattr(checkpoints, 'choose_step', damage)
  summary = run(tiny, tmp_path)
  assert summary['finished'] and (tmp_path / 'summary.json').exists()
  assert 'test/loss' in summary['last'] and summary['best_checkpoint'] == {}
  assert re.search(r'without .* best checkpoint: checkpoint 3 in .* is damaged .*: 6\n', console.readouterr().out)


def test_a_run_that_has_ended_evaluates_splits_that_are_named_later(tiny, tmp_path):
  tiny.eval.splits, tiny.checkpoint.best_metric = ('val',), 'accuracy'
  before = run(tiny, tmp_path)
  for splits in (('val', 'test'), ('val', 'test', 'train')):
    tiny.eval.splits = splits
    after = run(tiny, tmp_path)
    assert {name for name in before['last'] if after['last'][name] != before['last'][name]} <= {
      'train/loss',  # of the evaluation, no longer of the last steps
      'train/accuracy',
    }
    assert after['best_checkpoint'].items() >= before['best_checkpoint'].items() != {}.items()
  assert 'train/calibration_error' in after['last'] and 'train/calibration_error' not in before['last']
  named = {line['step'] for line in metrics.read(tmp_path) if 'train/calibration_error' in line}
  assert named == {after['step']}


def test_an_end_that_is_not_finite_is_an_error_of_the_run_also_if_no_better_checkpoint_was_kept(tiny, tmp_path):
  tiny.eval.splits, tiny.checkpoint.best_metric, tiny.checkpoint.every = ('val',), 'accuracy', '0'
  tiny.eval.every, tiny.train.steps = '1', 3
  # The last update is too large for the logits of float32, the loss before it is finite.
  tiny.schedule.name, tiny.schedule.boundaries, tiny.schedule.factor = 'piecewise', ('2',), 1e30
  with pytest.raises(errors.RunError, match='val/loss is not finite at step 3, the end'):
    run(tiny, tmp_path)
  assert any('test/accuracy' in line for line in metrics.read(tmp_path))


@pytest.mark.parametrize('kind', [errors.InputError, errors.RunError])
def test_an_error_at_the_first_step_of_a_phase_keeps_the_phase_before(tiny, tmp_path, monkeypatch, kind):
  tiny.finetune.trainable, tiny.finetune.unfreeze = 'head', (('3', 'all'),)
  tiny.train.steps, tiny.train.steps_per_dispatch, tiny.checkpoint.every = 6, 1, '0'
  whole = run(tiny, tmp_path / 'whole')
  with monkeypatch.context() as patch:
    fails = raising(kind('cannot read the image dog.jpg'), 4)(resident.TrainLoader.arrays)
    patch.setattr(resident.TrainLoader, 'arrays', fails)
    with pytest.raises(kind, match='the checkpoint of step 3 is kept'):
      run(tiny, tmp_path / 'run')
  assert run(tiny, tmp_path / 'run')['params_sha256'] == whole['params_sha256']


def test_a_line_says_what_trains_at_the_start_and_when_a_phase_begins(tiny, tmp_path, console):
  tiny.finetune.trainable, tiny.finetune.unfreeze = 'head', (('3', 'all'),)
  tiny.train.steps, tiny.train.log_every = 4, '1'
  total = run(tiny, tmp_path)['parameters']
  output = [line for line in console.readouterr().out.splitlines() if re.match(r'from step|step \d+/', line)]
  head, every = (f'from step {each}' for each in (f'0 on head trains: 170 of {total:,} parameters', '3 on all entries'))
  assert output[:2] == [head, f'{every} train: {total:,} parameters']
  begins = output.index(output[1], 2)
  assert output[begins - 1] < 'step 4/' <= output[begins + 1]
  tiny.train.steps = 6
  run(tiny, tmp_path)
  output = console.readouterr().out
  assert output.count('from step 3 on all') == 1 and 'from step 0 on' not in output


def test_a_run_that_stops_does_not_look_at_the_test_split(tiny, tmp_path, monkeypatch):
  tiny.eval.splits, tiny.checkpoint.best_metric = ('val',), 'accuracy'
  monkeypatch.setattr('dnt.parallel.preemption.Guard.requested', lambda self, count: count == 0)
  summary = run(tiny, tmp_path)
  assert not summary['finished'] and not summary['best_checkpoint']
  assert not any('test' in name for line in metrics.read(tmp_path) for name in line)


def test_patience_ends_by_the_split_that_ranks_and_then_looks_at_test(tiny, tmp_path):
  tiny.eval.splits, tiny.checkpoint.best_metric, tiny.eval.every = ('val',), 'accuracy', '1'
  tiny.optim.learning_rate, tiny.train.patience, tiny.train.steps = 1e-9, 2, 50
  tiny.train.log_every = '50'
  summary = run(tiny, tmp_path)
  assert summary['finished'] and summary['step'] == 3 and summary['best']['metric'] == 'val/accuracy'
  assert summary['best_checkpoint']['step'] == 1 or summary['best_checkpoint']['step'] == 3
  assert [line['step'] for line in metrics.read(tmp_path) if 'test/loss' in line] == [3]
  assert [line['step'] for line in metrics.read(tmp_path) if 'train/loss' in line] == [3]
  assert summary['last']['train/loss'] > 0 and not checkpoints.load_parameters(tmp_path).meta['sums']


def test_a_run_that_ranks_by_test_says_so_in_its_summary_and_report(tiny, tmp_path):
  tiny.train.steps = 3
  summary = run(tiny, tmp_path)
  assert 'test/accuracy' in summary['warnings']['ranked_by_test']['text'] and not summary['best_checkpoint']
  assert 'ranked_by_test' in (tmp_path / 'report.html').read_text()
  tiny.checkpoint.best_metric = 'accuracy'
  summary = run(tiny, tmp_path / 'unranked')
  assert not summary['warnings'] and not summary['best'] and 'test/accuracy' in summary['last']
  assert 'no split ranks' in (tmp_path / 'unranked' / 'report.html').read_text()


@pytest.mark.thorough
def test_a_run_records_its_data_and_the_weights_that_it_began_with(tiny, tmp_path, monkeypatch):
  """A run that goes on does not read the weights again; the config beside the record can be run again."""
  tiny.train.steps = 3
  first = run(tiny, tmp_path / 'first')
  assert first['provenance'].keys() == {'data'} and first['provenance']['data'].keys() == {'train', 'test'}
  tiny.train.init_from = str(tmp_path / 'first')
  second = run(tiny, tmp_path / 'second')
  weights = {'origin': tiny.train.init_from, 'step': 3, 'params_sha256': first['params_sha256']}
  assert second['provenance'] == first['provenance'] | {'weights': weights}
  config = tmp_path / 'second' / 'config.json'
  recorded = json.loads(config.read_text())['provenance']
  left_open = recorded.pop('open')
  assert (left_open['data.hold_out'], left_open['model.num_classes']) == ([None, False], [None, 10])
  assert recorded == second['provenance'] | {key: second[key] for key in ('versions', 'devices')}
  monkeypatch.delattr(pretrained.Source, 'describe')
  tiny.train.steps = 6
  assert run(tiny, tmp_path / 'second')['provenance'] == second['provenance']
  again = run_config.get_config(str(config))
  again.train.init_from = ''
  assert run(again, tmp_path / 'again')['provenance']['data'] == first['provenance']['data']


def test_a_run_with_the_config_of_another_and_other_splits_holds_out_what_these_need(tiny, tmp_path, console):
  """README's way to train on all images, with the config of a run in place of its file."""
  tiny.eval.splits, tiny.checkpoint.best_metric, tiny.loss.balance_classes = ('val',), 'accuracy', True
  tiny.train.steps, tiny.train.epochs, tiny.data.eval_resize = None, 0.5, 'center_crop'
  run(tiny, tmp_path / 'first')
  output = console.readouterr().out
  assert output.count('does not name val and config.data.hold_out is not set') == 1
  assert output.count('training squashes whole images (config.data.augment=none), and evaluation crops') == 1
  first = run_config.get_config(str(tmp_path / 'first' / 'config.json'))
  assert (first.data.hold_out, first.checkpoint.best_metric, first.train.steps) == (True, 'val/accuracy', 2)

  def again(*flags):
    config = cli.config(cli.parse(main.PROGRAM, ['main', f'--config={tmp_path}/first', *flags]))
    data = datasets.load(config, config.eval.splits, test=True)
    return open_options.rank(open_options.resolve(config, data), data), data

  config, data = again()
  assert config == first.unlock(), 'the same config gives the same run'
  config, data = again("--config.eval.splits=('test',)", '--config.train.batch_size=8')
  assert (len(data.train), data.held_out, config.data.hold_out) == (64, False, False)
  assert (config.checkpoint.best_metric, config.train.steps) == ('accuracy', 4)
  counts = np.bincount(data.train.labels)
  np.testing.assert_allclose(config.loss.class_weights, 64 / (10 * counts))
  config, data = again("--config.eval.splits=('test',)", '--config.data.hold_out=True')
  assert len(data.train) == 54


def test_a_run_that_goes_on_with_its_own_config_keeps_what_it_holds_out(tiny, tmp_path):
  tiny.eval.splits, tiny.checkpoint.best_metric = ('val',), 'accuracy'
  run(tiny, tmp_path)
  flags = ["--config.eval.splits=('test',)", '--config.train.steps=8']
  config = cli.config(cli.parse(main.PROGRAM, ['main', f'--config={tmp_path}', *flags]))
  assert run(config, tmp_path)['step'] == 8
  assert run_config.get_config(str(tmp_path / 'config.json')).data.hold_out is True


@pytest.mark.thorough
def test_a_run_that_goes_on_records_what_it_had_left_open_when_it_began(tiny, tmp_path):
  tiny.train.steps, tiny.train.epochs = None, 0.5
  run(tiny, tmp_path)
  path = tmp_path / 'config.json'
  began = json.loads(path.read_text())['provenance']['open']
  assert began['train.steps'] == [None, 2]
  config = run_config.get_config(str(path))  # as a program in Python reads it, with everything determined
  config.train.steps = 3
  run(config, tmp_path)
  assert json.loads(path.read_text())['provenance']['open'] == began
  tiny.train.epochs = 1.0
  run(tiny, tmp_path)
  assert json.loads(path.read_text())['provenance']['open'] == began | {'train.steps': [None, 4]}


def test_a_run_of_an_older_version_that_goes_on_does_not_claim_that_it_left_nothing_open(tiny, tmp_path):
  run(tiny, tmp_path)
  path = tmp_path / 'config.json'
  content = json.loads(path.read_text())
  del content['provenance']['open']
  path.write_text(json.dumps(content))
  config = cli.config(cli.parse(main.PROGRAM, ['main', f'--config={tmp_path}', '--config.train.steps=8']))
  assert run(config, tmp_path)['step'] == 8
  content = json.loads(path.read_text())
  assert content['train']['steps'] == 8 and 'open' not in content['provenance']


@pytest.mark.thorough
def test_a_program_in_python_gives_paths_numbers_of_numpy_and_steps(tiny, tmp_path):
  run_config.write(tmp_path / 'tiny.json', tiny)
  program = """
import pathlib, sys
import numpy as np
import dnt
from dnt import config, errors
from dnt.config import run_config

folder = pathlib.Path(sys.argv[1])
run = run_config.get_config(folder / 'tiny.json')
try:
  run.train.lr = 3
except errors.InputError as error:
  print(error)
run.train.steps, run.optim.learning_rate, run.eval.splits = np.int64(2), np.float32(0.5), ['test']
run.eval.every, run.finetune.cache_dir = 1, folder / 'features'
assert dnt.train(run, folder / 'first')['finished']
run.train.init_from = folder / 'first'
assert dnt.train(run, folder / 'second')['finished']
"""
  ended = subprocess.run([sys.executable, '-c', program, str(tmp_path)], capture_output=True, text=True, check=False)
  assert ended.returncode == 0, ended.stderr
  assert "unknown config key 'train.lr'; did you mean 'optim.learning_rate'?" in ended.stdout
  written = json.loads((tmp_path / 'second' / 'config.json').read_text())
  assert written['train']['init_from'] == str(tmp_path / 'first') and written['train']['steps'] == 2
  assert written['eval']['every'] == '1' and written['optim']['learning_rate'] == 0.5
