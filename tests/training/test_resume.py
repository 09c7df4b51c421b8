"""What a run continues with: its open values as they were, changes refused, logged or free, and its own data."""

import copy
import json
import os
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from dnt import checkpoints, errors, loop
from dnt import config as schema
from dnt.config import changes as changes_lib
from dnt.config import older, run_config
from dnt.diagnostics import lr_find, noise
from dnt.reporting import metrics
from dnt.training import datasets, evaluate, experiment, open_options, record, report, resume

pytestmark = pytest.mark.usefixtures('undrawn')
RUN = pathlib.Path('run')


def run(config, workdir, *allow):
  schema.validate(config)
  return loop.train(config, workdir, record.Clock(0.0), 'test', allow)


def contents(workdir):
  return {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}


def recorded(workdir):
  return [(line['step'], line['changed']) for line in metrics.read(workdir) if 'changed' in line]


def put(config, changes):
  for key, value in changes.items():
    section, _, name = key.rpartition('.')
    owner = config[section] if section else config
    with owner.ignore_type():
      owner[name] = value


def test_another_experiment_is_refused_with_the_way_out(tiny, tmp_path):
  run(tiny, tmp_path)
  before = contents(tmp_path)
  tiny.train.steps = 8
  for changes in (
    {'seed': 3},
    {'data.synthetic_examples': 48},
    {'train.batch_size': 8},
    {'loss.label_smoothing': 0.1, 'model.activation': 'tanh'},
    {'optim.weight_decay': 0.01},
    {'data.augment': 'pad_crop_flip'},
  ):
    config = copy.deepcopy(tiny)
    put(config, changes)
    with pytest.raises(errors.InputError) as refused:
      run(config, tmp_path)
    message = str(refused.value)
    for key, value in changes.items():
      assert re.search(rf'{key} was \S+ and is now {value!r}', message)
    assert '--workdir' in message and 'init_from' in message
    assert message.endswith(f'--allow={",".join(changes)}')
    assert 'train.steps' not in message, 'that may change'
  assert contents(tmp_path) == before


@pytest.mark.thorough
def test_another_batch_size_says_what_becomes_of_the_epochs(tiny, tmp_path, console):
  run(tiny, tmp_path)  # 6 steps of 16 of 64 images
  console.readouterr()
  tiny.train.batch_size, tiny.train.steps = 8, 8
  run(tiny, tmp_path, 'train.batch_size')
  assert '6 were 1.50 epochs and are now 0.75, from where' in console.readouterr().out
  assert [line['epoch'] for line in metrics.read(tmp_path) if 'changed' in line] == [0.75]
  tiny.train.batch_size, tiny.train.steps = 32, 4
  run(tiny, tmp_path, 'train.batch_size')
  said = console.readouterr().out
  assert '8 were 1.00 epochs and are now 4.00' in said and 'already done 8 steps' in said


@pytest.mark.parametrize(
  ('changes', 'names', 'same_network'),
  [
    ({'optim.name': 'adamw', 'seed': 3}, 'opt_state/adam', True),
    pytest.param({'finetune.trainable': 'head'}, 'opt_state/momentum', True, marks=pytest.mark.thorough),
    pytest.param({'ema.decay': 0.9}, 'ema/', True, marks=pytest.mark.thorough),
    ({'model.width': 8}, 'params/', False),
    ({'model.norm': 'none'}, 'batch_stats/', False),
    pytest.param({'data.image_size': 4}, 'params/', False, marks=pytest.mark.thorough),
  ],
)
def test_a_way_out_that_cannot_work_is_not_offered(tiny, tmp_path, changes, names, same_network):
  """The state of the checkpoint does not fit, so that no --allow goes on; weights of another network start nothing."""
  tiny.train.steps, tiny.finetune.cached_views = 2, 0  # no features in the home folder
  run(tiny, tmp_path / 'run')
  before = contents(tmp_path)
  tiny.train.steps = 4
  put(tiny, changes)
  for allow in ((), (*changes,)):
    with pytest.raises(errors.InputError, match='--allow cannot help') as refused:
      run(tiny, tmp_path / 'run', *allow)
    message = str(refused.value)
    assert all(f'{key} was ' in message for key in changes) and names in message and '--workdir' in message
    assert '--allow=' not in message and ('init_from' in message) == same_network
  assert contents(tmp_path) == before
  tiny.train.steps, tiny.train.init_from = 2, str(tmp_path / 'run')
  if same_network:
    assert run(tiny, tmp_path / 'other')['finished']
  else:
    with pytest.raises(errors.InputError, match='another network'):
      run(tiny, tmp_path / 'other')


@pytest.mark.thorough
def test_weights_that_were_trained_to_compute_something_else_start_no_run(tiny, tmp_path):
  """Though the checkpoint fits, so that --allow goes on."""
  tiny.train.steps = 2
  run(tiny, tmp_path / 'run')
  tiny.train.steps, tiny.model.norm_epsilon = 4, 1e-3
  with pytest.raises(errors.InputError, match='--allow=model.norm_epsilon$') as refused:
    run(tiny, tmp_path / 'run')
  assert 'init_from' not in str(refused.value)
  assert run(tiny, tmp_path / 'run', 'model.norm_epsilon')['finished']


@pytest.mark.thorough
def test_a_run_that_is_further_is_no_matter_of_the_optimizer(tiny, tmp_path, console):
  tiny.finetune.trainable, tiny.finetune.unfreeze, tiny.finetune.cached_views = 'head', (('4', 'all'),), 0
  run(tiny, tmp_path)
  tiny.train.steps, tiny.seed = 2, 3
  with pytest.raises(errors.InputError, match='--allow=seed'):
    run(tiny, tmp_path)
  assert run(tiny, tmp_path, 'seed')['finished'] and 'already done' in console.readouterr().out


def test_an_allowed_change_stands_with_its_step(tiny, tmp_path, console):
  run(tiny, tmp_path)
  tiny.seed, tiny.optim.weight_decay, tiny.train.steps = 3, 0.01, 8
  with pytest.raises(errors.InputError, match=r'--allow=optim\.weight_decay$'):
    run(tiny, tmp_path, 'seed')
  console.readouterr()
  assert run(tiny, tmp_path, 'seed', 'optim.weight_decay')['step'] == 8
  lines = [line for line in console.readouterr().out.splitlines() if line.startswith('changed')]
  assert len(lines) == 3 and any(re.search(r'step 6: seed was 0 and is now 3$', line) for line in lines)
  was = {'seed': 0, 'optim.weight_decay': 1e-4, 'train.steps': 6}
  now = {'seed': 3, 'optim.weight_decay': 0.01, 'train.steps': 8}
  expected = [(6, {key: {'was': was[key], 'now': now[key]} for key in was})]
  assert recorded(tmp_path) == expected
  assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 3
  # The steps since then were trained with it.
  assert run(tiny, tmp_path)['finished']
  assert recorded(tmp_path) == expected
  with pytest.raises(errors.InputError, match="'sede'.* 'seed'"):
    run(tiny, tmp_path, 'sede')


@pytest.mark.thorough
def test_what_a_person_changes_on_purpose_goes_on_and_is_logged(tiny, tmp_path, console):
  run(tiny, tmp_path)
  changes = {
    'train.steps': 8,
    'optim.learning_rate': 0.01,
    'clip.name': 'global_norm',
    'clip.threshold': 0.5,
    'eval.every': '1',
    'eval.splits': ('test', 'train'),
    'train.log_every': '1',
    'checkpoint.keep': 1,
    'schedule.name': 'linear',
  }
  put(tiny, changes)
  console.readouterr()
  assert run(tiny, tmp_path)['step'] == 8
  output = console.readouterr().out
  for key in changes:
    assert len(re.findall(rf'^changed at step 6: {key} was .* and is now .*$', output, re.MULTILINE)) == 1
  ((step, found),) = recorded(tmp_path)
  assert step == 6 and found.keys() == changes.keys()


@pytest.mark.thorough
@pytest.mark.usefixtures('optimized')
def test_where_and_how_a_run_computes_is_free(tiny, tmp_path, console):
  whole = run(tiny, tmp_path / 'whole')
  tiny.train.steps = 3
  run(tiny, tmp_path / 'run')
  tiny.train.steps = 6
  put(tiny, {'data.workers': 0, 'train.steps_per_dispatch': 1, 'noise_scale.batches': 9, 'data.dir': '/elsewhere'})
  console.readouterr()
  assert run(tiny, tmp_path / 'run')['params_sha256'] == whole['params_sha256']
  lines = [line for line in console.readouterr().out.splitlines() if line.startswith('changed')]
  assert lines == ['changed at step 3: train.steps was 3 and is now 6']


@pytest.mark.thorough
def test_the_line_of_a_change_is_there_once_however_often_its_steps_are_taken(tiny, tmp_path):
  run(tiny, tmp_path)
  tiny.train.steps = 8
  run(tiny, tmp_path)
  shutil.rmtree(tmp_path / 'checkpoints' / '8')
  run(tiny, tmp_path)
  assert [step for step, _ in recorded(tmp_path)] == [6]
  shutil.rmtree(tmp_path / 'checkpoints' / '8')
  tiny.train.steps = 6
  run(tiny, tmp_path)
  assert recorded(tmp_path) == [], 'nothing differs from the steps that are kept'


def test_other_versions_are_logged_and_recorded_and_are_no_other_experiment(tiny, tmp_path, console, monkeypatch):
  now = report.versions()
  monkeypatch.setattr(report, 'versions', lambda: {**now, 'jax': '0.0.1', 'gone': '1'})
  run(tiny, tmp_path)
  assert checkpoints.read_meta(tmp_path)['versions']['jax'] == '0.0.1'
  assert checkpoints.read_meta(tmp_path)['devices']['platform'] == jax.default_backend()
  tiny.train.steps = 8
  run(tiny, tmp_path)
  assert 'other versions' not in console.readouterr().out
  monkeypatch.setattr(report, 'versions', lambda: now)
  tiny.train.steps = 10
  run(tiny, tmp_path)
  said = (
    f'other versions from step 8: jax was 0.0.1 and is now {now["jax"]}, gone was 1 and is now None; the run goes on'
  )
  assert console.readouterr().out.count(said) == 1
  changes = {'versions.jax': {'was': '0.0.1', 'now': now['jax']}, 'versions.gone': {'was': '1', 'now': None}}
  (_, first), (step, second) = recorded(tmp_path)
  assert (list(first), step, second) == (['train.steps'], 8, {'train.steps': {'was': 8, 'now': 10}} | changes)
  assert json.loads((tmp_path / 'config.json').read_text())['provenance']['versions'] == now


def test_another_number_of_cores_is_logged_and_recorded(tiny, tmp_path, console, monkeypatch):
  run(tiny, tmp_path)
  cores = checkpoints.read_meta(tmp_path)['devices']['cores']
  assert cores == len(os.sched_getaffinity(0))
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: range(cores + 1))
  tiny.train.steps = 8
  run(tiny, tmp_path)
  said = f'other devices from step 6: cores was {cores} and is now {cores + 1}; the run goes on'
  assert console.readouterr().out.count(said) == 1
  ((_, changes),) = recorded(tmp_path)
  assert changes['devices.cores'] == {'was': cores, 'now': cores + 1}


def test_a_run_that_moves_to_an_accelerator_has_lost_no_cores(tiny, console):
  before, now = {'platform': 'cpu', 'count': 1, 'cores': 8}, {'platform': 'gpu', 'count': 1}
  noted = resume.log_circumstances(resume.Trained(tiny, {}, devices=before), {}, now, 3)
  assert noted == {'devices.platform': {'was': 'cpu', 'now': 'gpu'}}
  assert 'other devices from step 3: platform was cpu and is now gpu; the run' in console.readouterr().out


def test_a_run_that_is_older_than_the_record_of_versions_goes_on_without_a_line(tiny):
  older = resume.Trained(tiny, {})
  assert resume.log_circumstances(older, {'jax': '1'}, {'cores': 2}, 3) == {}
  assert resume.log_circumstances(None, {'jax': '1'}, {'cores': 2}, 3) == {}


# Tasks that a failing read leaves behind in TensorStore are reported when they are collected.
@pytest.mark.thorough
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_an_older_checkpoint_was_trained_with_the_older_config(tiny, tmp_path):
  """The newest one is damaged, and with it the steps that had the new config."""
  tiny.checkpoint.every = '2'
  run(tiny, tmp_path)
  tiny.train.steps, tiny.seed = 8, 3
  run(tiny, tmp_path, 'seed')
  shutil.rmtree(tmp_path / 'checkpoints' / '8' / 'state')
  with pytest.raises(errors.InputError, match='--allow=seed'):
    run(tiny, tmp_path)
  assert run(tiny, tmp_path, 'seed')['step'] == 8


def trained_with(content):
  """What a checkpoint says that holds a config in JSON values, and otherwise what the first version wrote."""
  return resume.of_meta(older.meta({'config': content}, 6), RUN)


def built(config):
  data = datasets.load(config, ())
  return experiment.make(open_options.resolve(config, data), data.spec)


@pytest.mark.parametrize(
  ('before', 'changes', 'step', 'higher'),
  [
    ({'schedule.name': 'cosine'}, {'train.steps': 12}, 6, True),
    ({'schedule.name': 'cosine'}, {'train.steps': 12, 'optim.learning_rate': 1e-9}, 6, False),
    ({'schedule.name': 'cosine'}, {'schedule.name': 'constant'}, 4, True),
    ({'schedule.name': 'cosine'}, {'train.steps': 6, 'clip.name': 'value'}, 4, False),
    ({'schedule.warmup': '8', 'schedule.warmup_start': 0.1}, {'train.steps': 12}, 4, False),
    ({'schedule.warmup': '8', 'schedule.warmup_start': 0.1}, {'schedule.warmup': '5'}, 4, True),
  ],
)
def test_a_rate_that_restarts_higher_than_it_stood_is_said(tiny, console, before, changes, step, higher):
  put(tiny, before)
  old = built(tiny)
  trained = trained_with(old.config.to_dict())
  put(tiny, changes)
  new = built(tiny)
  resume.log(resume.find_changes(new, {}, trained, step), new, trained, step)
  said = re.search(r'learning rate restarts at (\S+); it stood at (\S+)', console.readouterr().out)
  assert bool(said) == higher
  if said:
    assert float(said[2]) == pytest.approx(float(old.schedule(step - 1)), rel=1e-2)
    assert float(said[1]) == pytest.approx(float(new.schedule(step)), rel=1e-2)


@pytest.fixture
def folder(tiny, tmp_path):
  """A config on class folders without splits: its val is drawn from them."""
  for number, label in enumerate(('cat', 'dog')):
    (tmp_path / 'images' / label).mkdir(parents=True)
    for index in range(10):
      image = np.random.default_rng([number, index]).integers(0, 256, (8, 8, 3), np.uint8)
      Image.fromarray(image).save(tmp_path / 'images' / label / f'{index}.png')
  tiny.data.update({'source': f'folder:{tmp_path}/images', 'workers': 0, 'mean': (0.5,) * 3, 'std': (0.2,) * 3})
  tiny.eval.splits, tiny.train.batch_size, tiny.eval.batch_size = ('val',), 8, 4
  tiny.checkpoint.best_metric = 'accuracy'
  run(tiny, tmp_path / 'run')
  tiny.train.steps = 8
  return tiny


@pytest.mark.thorough
def test_a_length_that_moves_a_phase_that_has_begun_is_refused_with_the_steps_to_give(tiny, tmp_path):
  tiny.finetune.trainable, tiny.finetune.unfreeze, tiny.finetune.cached_views = 'head', (('50%', 'all'),), 0
  run(tiny, tmp_path)
  tiny.train.steps = 12
  before = contents(tmp_path)
  with pytest.raises(errors.InputError, match=r"finetune\.unfreeze was \[\['3', 'all'\]\] .* now \[\['6', 'all'\]\]"):
    run(tiny, tmp_path)
  assert contents(tmp_path) == before
  tiny.finetune.unfreeze = (('3', 'all'),)
  assert run(tiny, tmp_path)['step'] == 12
  assert recorded(tmp_path)[0][1].keys() == {'train.steps'}


def test_a_phase_that_shorter_runs_reach_earlier_is_no_matter_for_one_that_is_further(tiny):
  tiny.finetune.trainable, tiny.finetune.unfreeze, tiny.train.steps = 'head', (('50%', 'all'),), 12
  trained = trained_with(built(tiny).config.to_dict())
  tiny.train.steps = 4
  assert [change.key for change in resume.find_changes(built(tiny), {}, trained, 6)] == ['train.steps']
  tiny.train.steps = 8
  keys = [change.key for change in resume.find_changes(built(tiny), {}, trained, 6)]
  assert keys == ['train.steps', 'finetune.unfreeze']


def test_a_phase_that_rounds_to_no_step_in_a_shorter_run_has_not_moved(tiny):
  tiny.finetune.trainable, tiny.finetune.unfreeze, tiny.train.steps = 'head', (('10%', 'all'),), 12
  trained = trained_with(built(tiny).config.to_dict())
  tiny.train.steps = 4
  assert [change.key for change in resume.find_changes(built(tiny), {}, trained, 1)] == ['train.steps']


def test_a_folder_may_move(folder, tmp_path, console):
  (tmp_path / 'images').rename(tmp_path / 'moved')
  folder.data.source, folder.data.dir = 'folder', str(tmp_path / 'moved')
  console.readouterr()
  assert run(folder, tmp_path / 'run')['step'] == 8
  assert 'data.' not in ''.join(re.findall('changed at .*', console.readouterr().out))


def test_other_images_are_refused(folder, tmp_path):
  images = tmp_path / 'images'
  for changes in (
    {'data.seed': 1},
    {'data.val_fraction': 0.5},
    {'data.train_split': 'train[:50%]'},
    {'data.images_per_class': 2},
  ):
    config = copy.deepcopy(folder)
    put(config, changes)
    ((key, _),) = changes.items()
    with pytest.raises(errors.InputError, match=rf'another config: {key} was \S+ and .*--allow={key}$'):
      run(config, tmp_path / 'run')
  original = (images / 'cat' / '0.png').read_bytes()
  for change, undo in (
    (
      lambda: shutil.copy(images / 'cat' / '0.png', images / 'dog' / 'new.png'),
      lambda: (images / 'dog' / 'new.png').unlink(),
    ),
    (
      lambda: (images / 'cat' / '0.png').write_bytes(original + b'more'),
      lambda: (images / 'cat' / '0.png').write_bytes(original),
    ),
    (lambda: (images / 'cat' / '0.png').rename(images / 'dog' / '00.png'), lambda: None),
  ):
    change()
    with pytest.raises(errors.InputError, match=r"data\.source was '.*(train|val) of \d+ .*--allow=data\.source$"):
      run(folder, tmp_path / 'run')
    undo()
  assert run(folder, tmp_path / 'run', 'data.source')['step'] == 8
  assert 'data.source' in recorded(tmp_path / 'run')[0][1]


def test_what_was_measured_stays_as_it_was(tiny, tmp_path):
  """Streamed images are measured as an evaluation crops them, which may change."""
  for number, label in enumerate(('cat', 'dog')):
    (tmp_path / label).mkdir()
    for index in range(3):
      image = np.random.default_rng([number, index]).integers(0, 256, (8, 8, 3), np.uint8)
      Image.fromarray(image).save(tmp_path / label / f'{index}.png')
  put(tiny, {'data.source': f'folder:{tmp_path}', 'data.eval_resize': 'center_crop', 'data.eval_crop': 0.9})
  old = built(tiny).config
  trained = trained_with(old.to_dict())
  tiny.data.eval_crop = 0.7
  assert built(tiny).config.data.mean != old.data.mean
  new = built(resume.keep_open(tiny, trained))
  assert [change.key for change in resume.find_changes(new, {}, trained, 6)] == ['data.eval_crop']
  put(tiny, {'data.mean': (0.5,) * 3, 'data.std': (0.2,) * 3})
  assert resume.keep_open(tiny, trained).data.mean == (0.5,) * 3, 'what is asked for is done'


@pytest.mark.thorough
def test_what_is_measured_on_other_images_may_change_with_them(tiny, tmp_path):
  """Mean and standard deviation stay: the network was trained on images that they normalized."""
  tiny.loss.balance_classes = True
  run(tiny, tmp_path)
  tiny.data.synthetic_examples, tiny.train.steps = 48, 8
  run(tiny, tmp_path, 'data.synthetic_examples')
  ((_, found),) = recorded(tmp_path)
  assert found.keys() == {'data.synthetic_examples', 'loss.class_weights', 'train.steps'}


def test_a_checkpoint_of_an_older_version_goes_on(tiny):
  """It has no fingerprint of the data, and lacks newer options."""
  data = datasets.load(tiny, ())
  made = experiment.make(open_options.resolve(tiny, data), data.spec)
  content = json.loads(json.dumps(made.config.to_dict()))
  del content['data']['eval_resize'], content['data']['eval_crop'], content['telemetry'], content['model']['block']
  old = trained_with(content)
  assert resume.find_changes(made, data.fingerprint(), old, 6) == []
  tiny.model.block = 'residual'
  changed = experiment.make(open_options.resolve(tiny, data), data.spec)
  assert [change.key for change in resume.find_changes(changed, data.fingerprint(), old, 6)] == ['model.block']
  assert resume.of_meta({}, RUN) is None


def test_the_splits_of_an_older_run_stay_unless_others_are_given(tiny):
  trained = resume.Trained(copy.deepcopy(tiny), {}, older=True)
  tiny.eval.splits, tiny.checkpoint.best_metric = schema.default().eval.splits, 'accuracy'
  assert resume.keep_open(tiny, trained).eval.splits == ('test',)
  schema.mark_given(tiny, ['eval.splits'])
  kept = resume.keep_open(tiny, trained)
  assert (kept.eval.splits, kept.checkpoint.best_metric) == (('val',), 'accuracy')


def test_a_module_of_ones_own_may_move(wide_network, tmp_path):
  old = built(wide_network)
  content = old.config.to_dict()
  content['model']['folder'] = str(tmp_path / 'gone')
  trained = trained_with(content)
  assert [change.key for change in resume.find_changes(old, {}, trained, 6) if change.on_resume != schema.FREE] == []


@pytest.mark.parametrize(('augment', 'implied'), [('none', 'squash'), ('resized_crop_flip', 'center_crop')])
def test_a_run_that_goes_on_evaluates_as_before(tiny, saved, tmp_path, augment, implied):
  saved(tiny, tmp_path / 'weights')
  weights = tmp_path / 'weights' / 'config.json'
  other = {'squash': 'center_crop', 'center_crop': 'squash'}[implied]

  def rewrite(value):
    content = json.loads(weights.read_text())
    content['data']['eval_resize'] = value
    weights.write_text(json.dumps(content))

  def evaluates(trained):
    config = resume.keep_open(tiny, trained)
    return open_options.resolve(config, datasets.load(config, ())).data.eval_resize

  rewrite(other)
  tiny.data.augment, tiny.train.init_from = augment, str(tmp_path / 'weights')
  assert evaluates(resume.read(tmp_path / 'run')) == other, "a new run takes the weights' own"
  saved(tiny)
  trained = resume.read(tmp_path / 'run')
  rewrite(implied)
  assert evaluates(trained) == other, 'the run has begun'
  rewrite(other)
  old = trained.config.to_dict()
  del old['data']['eval_resize']
  assert evaluates(trained_with(old)) == implied, 'the run is older than the option'
  tiny.data.eval_resize = other
  assert evaluates(trained) == other, 'what is asked for is done'


def test_a_threshold_that_is_left_open_is_that_of_the_steps_so_far_as_long_as_the_clipping_is(tiny):
  tiny.clip.name = 'adaptive'
  now = built(tiny).config
  assert now.clip.threshold == 0.01
  older = resume.Trained(schema.override(now, {'clip.threshold': 1.0}, 'the default of older versions'), {})
  assert built(resume.keep_open(tiny, older)).config.clip.threshold == 1.0
  assert built(resume.keep_open(schema.override(tiny, {'clip.name': 'value'}, ''), older)).config.clip.threshold == 1.0
  tiny.clip.threshold = 0.04
  assert built(resume.keep_open(tiny, older)).config.clip.threshold == 0.04


@pytest.mark.parametrize(('name', 'own'), [('muon', (0.95, True, 1e-8)), ('lamb', (0.9, False, 1e-6))])
def test_constants_that_are_left_open_are_those_of_the_steps_so_far_as_long_as_the_update_rule_is(tiny, name, own):
  def constants(config):
    optim = built(config).config.optim
    return optim.momentum, optim.nesterov, optim.epsilon

  tiny.optim.name = name
  assert constants(tiny) == own
  before = {'optim.momentum': 0.9, 'optim.nesterov': False, 'optim.epsilon': 1e-8}
  older = resume.Trained(schema.override(built(tiny).config, before, 'the defaults of older versions'), {})
  assert constants(resume.keep_open(tiny, older)) == (0.9, False, 1e-8)
  assert not changes_lib.find(older.config, built(resume.keep_open(tiny, older)).config)
  other = schema.override(tiny, {'optim.name': 'lamb' if name == 'muon' else 'muon'}, '')
  assert constants(resume.keep_open(other, older)) == constants(other)
  tiny.optim.momentum, tiny.optim.epsilon = 0.5, 1e-3
  assert constants(resume.keep_open(tiny, older)) == (0.5, False, 1e-3)


@pytest.mark.parametrize('older', [False, True])
def test_a_run_that_goes_on_keeps_its_training_images(tiny, saved, tmp_path, older):
  """Also one from before `val` was held out, and with them the splits that it evaluated by default."""
  tiny.eval.splits, tiny.checkpoint.best_metric = ('test',), 'accuracy'
  saved(tiny)
  meta = checkpoints.load_parameters(tmp_path / 'run').meta
  if older:
    del meta['config']['data']['hold_out']
  trained = resume.of_meta(meta, tmp_path / 'run')
  tiny.eval.splits = schema.default().eval.splits
  kept = resume.keep_open(tiny, trained)
  assert kept.data.hold_out is False
  wanted = (('test',), 'test/accuracy') if older else (('val',), 'accuracy')
  assert (kept.eval.splits, kept.checkpoint.best_metric) == wanted
  tiny.eval.splits = ('train',)
  assert resume.keep_open(tiny, trained).eval.splits == ('train',), 'what is asked for is done'
  tiny.data.hold_out = True
  assert resume.keep_open(tiny, trained).data.hold_out is True


def test_other_training_images_are_refused(tiny, tmp_path):
  tiny.eval.splits, tiny.checkpoint.best_metric = ('val',), 'accuracy'
  run(tiny, tmp_path)
  tiny.train.steps, tiny.eval.splits = 8, ('test',)
  assert run(tiny, tmp_path)['step'] == 8, 'it still trains without the images that were held out'
  tiny.train.steps, tiny.data.hold_out = 9, False
  with pytest.raises(errors.InputError, match=r'data\.hold_out was True .*--allow=data\.hold_out'):
    run(tiny, tmp_path)


@pytest.mark.thorough
def test_what_weights_determined_stays_as_it_was(tiny, saved, tmp_path, console):
  """The same command continues, though the weights now say something else, or are gone."""
  tiny.model.depth, tiny.data.mean, tiny.data.std = 4, (0.1,) * 3, (0.3,) * 3
  saved(tiny, tmp_path / 'weights')
  tiny.model.update({'name': 'pretrained', 'depth': None, 'width': None})
  tiny.data.update({'mean': (), 'std': (), 'image_size': None})
  tiny.train.init_from = str(tmp_path / 'weights')
  run(tiny, tmp_path / 'run')
  content = run_config.get_config(str(tmp_path / 'weights' / 'config.json'))
  content.data.mean, content.data.eval_resize, content.model.activation = (0.4,) * 3, 'center_crop', 'tanh'
  run_config.write(tmp_path / 'weights' / 'config.json', content)
  tiny.train.steps = 8
  assert run(tiny, tmp_path / 'run')['step'] == 8
  shutil.rmtree(tmp_path / 'weights')
  tiny.train.steps = 10
  assert run(tiny, tmp_path / 'run')['step'] == 10
  kept = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert kept['data']['mean'] == [0.1] * 3 and kept['data']['eval_resize'] == 'squash'
  assert kept['model']['depth'] == 4 and kept['model']['activation'] == 'relu'
  tiny.model.activation = 'tanh'
  with pytest.raises(errors.InputError, match='--allow=model.activation'):
    run(tiny, tmp_path / 'run')


@pytest.mark.parametrize('program', [loop.train, evaluate.evaluate, lr_find.run, noise.run])
def test_weights_that_are_gone_are_not_needed_where_images_keep_their_size(tiny, saved, tmp_path, program):
  """Which leaves `data.image_size` open for as long as the run lasts."""
  tiny.data.update({'source': 'digits', 'image_size': None})
  tiny.lr_find.steps, tiny.noise_scale.batches = 20, 2
  saved(tiny, tmp_path / 'weights')
  tiny.train.init_from = str(tmp_path / 'weights')
  saved(tiny)
  shutil.rmtree(tmp_path / 'weights')
  tiny.train.steps = 8
  assert program(tiny, tmp_path / 'run')['step'] == (8 if program is loop.train else 7)


@pytest.mark.thorough
def test_what_a_resolved_run_measured_is_no_change(tiny, tmp_path):
  """Weights of classes, statistics of the images and steps of epochs."""
  tiny.loss.balance_classes, tiny.train.steps, tiny.train.epochs = True, None, 2.0
  assert run(tiny, tmp_path)['step'] == 8
  assert run(tiny, tmp_path)['finished']
  assert recorded(tmp_path) == []
  tiny.train.epochs = 3.0
  assert run(tiny, tmp_path)['step'] == 12
  assert [found.keys() for _, found in recorded(tmp_path)] == [{'train.steps'}]


@pytest.mark.thorough
def test_best_of_another_metric_is_ranked_by_what_was_measured(tiny, tmp_path):
  tiny.checkpoint.every = tiny.eval.every = '1'
  tiny.checkpoint.keep = 1
  first = run(tiny, tmp_path)
  assert first['best']['metric'] == 'test/accuracy'
  losses = {line['step']: line['test/loss'] for line in metrics.read(tmp_path) if 'test/loss' in line}
  tiny.checkpoint.best_metric, tiny.train.steps = 'test/loss', 8
  tiny.optim.learning_rate = 5.0  # what follows is worse
  summary = run(tiny, tmp_path)
  step = min(losses, key=losses.get)
  assert summary['best'] == {'metric': 'test/loss', 'value': losses[step], 'step': step}


@pytest.mark.thorough
def test_what_ranks_from_now_on_is_ranked_by_what_was_measured(tiny, tmp_path):
  tiny.checkpoint.every = tiny.eval.every = '1'
  tiny.eval.splits, tiny.checkpoint.best_metric = ('test',), 'accuracy'
  assert not run(tiny, tmp_path)['best']
  losses = {line['step']: line['test/loss'] for line in metrics.read(tmp_path) if 'test/loss' in line}
  tiny.checkpoint.best_metric, tiny.train.steps = 'test/loss', 8
  tiny.optim.learning_rate = 5.0  # what follows is worse
  step = min(losses, key=losses.get)
  assert run(tiny, tmp_path)['best'] == {'metric': 'test/loss', 'value': losses[step], 'step': step}


@pytest.mark.thorough
def test_a_split_that_was_not_evaluated_before_ranks_from_now_on(tiny, tmp_path):
  run(tiny, tmp_path)
  tiny.eval.splits, tiny.checkpoint.best_metric = ('train',), 'train/accuracy'
  tiny.train.steps, tiny.train.patience = 9, 9
  summary = run(tiny, tmp_path)
  assert summary['best']['metric'] == 'train/accuracy' and summary['best']['step'] == 9


def test_the_flag_that_gives_the_network_of_a_run_is_a_word_of_a_shell(tiny):
  other = copy.deepcopy(tiny)
  other.model.width += 1
  with pytest.raises(errors.InputError, match=r"--config='runs/my run' gives all of them"):
    resume.check_network(other, resume.Trained(tiny, {}), pathlib.Path('runs/my run'))
