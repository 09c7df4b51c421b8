import re
import types

import pytest

from dnt import config as schema
from dnt import errors
from dnt import loop as loop_lib
from dnt.diagnostics import first_steps, lr_find, noise
from dnt.parallel import capacity
from dnt.parallel import mesh as mesh_lib
from dnt.rehearsal import programs, stand_in, targets
from dnt.training import budget, datasets, evaluate, experiment, open_options

MEGABYTES = 10**7
ONE_EACH = {'train.accumulate': 16, 'model.norm': 'layer_norm'}  # an example at a time


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setattr(capacity, 'device', lambda: MEGABYTES)


def make(config):
  data = datasets.load(config, ())
  return experiment.make(open_options.resolve(config, data), data.spec), mesh_lib.make_mesh(config.mesh)


def test_the_memory_of_every_optimizer_is_known():
  assert {*budget.MOMENTS} == {*schema.SCHEMA['optim']['name'].choices}


def test_a_batch_beyond_memory_is_refused_with_one_that_fits(tiny):
  tiny.train.batch_size = 10**6
  with pytest.raises(errors.InputError, match=r'config.train.batch_size=1000000 .* GB .* 0.1 GB') as refused:
    budget.check_training(*make(tiny))
  assert 'config.data.image_size' in str(refused.value)
  tiny.train.batch_size = fits = int(re.search(r'it to ([\d,]+)', str(refused.value))[1].replace(',', ''))
  budget.check_training(*make(tiny))
  tiny.train.batch_size = fits + 1
  with pytest.raises(errors.InputError):
    budget.check_training(*make(tiny))


@pytest.mark.thorough
def test_what_makes_a_batch_larger_counts(tiny):
  tiny.train.batch_size = 4000
  budget.check_training(*make(tiny))
  tiny.data.augment, tiny.data.crop_padding = 'pad_crop_flip', 100
  with pytest.raises(errors.InputError, match='config.data.crop_padding'):
    budget.check_training(*make(tiny))
  tiny.data.augment, tiny.model.depth = 'none', 200
  with pytest.raises(errors.InputError, match='config.train.accumulate'):
    budget.check_training(*make(tiny))
  tiny.train.accumulate = 40
  budget.check_training(*make(tiny))
  tiny.train.accumulate, tiny.finetune.trainable = 1, 'head'
  budget.check_training(*make(tiny))


@pytest.mark.usefixtures('optimized')
@pytest.mark.parametrize('changes', [{'model.activation': 'tanh'}, {'model.remat': True}])
def test_a_network_that_fits_is_not_refused(tiny, monkeypatch, changes):
  """That of few arrays for each entry, on a device of the memory that its programs take."""
  tiny.model.norm, tiny.model.depth, tiny.model.width, tiny.telemetry.every = 'none', 8, 64, '0'
  tiny.train.batch_size = 8192
  for key, value in changes.items():
    section, name = key.split('.')
    tiny[section][name] = value
  (target,) = targets.parse(['cpu:1'])
  made = programs.make(*stand_in.load(tiny, None), target)
  memory = max(program.memory for program in programs.compile_steps(made))
  monkeypatch.setattr(capacity, 'device', lambda: memory)
  budget.check_training(made.run, made.mesh)
  monkeypatch.setattr(capacity, 'device', lambda: memory // 2)
  with pytest.raises(errors.InputError, match='config.train.batch_size=8192'):
    budget.check_training(made.run, made.mesh)


def test_an_evaluation_that_fits_is_not_refused(tiny, monkeypatch):
  """A hidden layer much larger than what goes into it: its output alone is large."""
  tiny.model.norm, tiny.model.depth, tiny.model.width, tiny.eval.batch_size = 'none', 2, 2048, 1000
  monkeypatch.setattr(capacity, 'device', lambda: 4 * 1000 * 2048 + 1000 * 192 * 5 + 2 * 10**6)
  budget.check_evaluation(*make(tiny))
  monkeypatch.setattr(capacity, 'device', lambda: 4 * 1000 * 2048)
  with pytest.raises(errors.InputError, match='config.eval.batch_size=1000'):
    budget.check_evaluation(*make(tiny))


@pytest.mark.parametrize('changes', [{'optim.name': 'adamw'}, {'ema.decay': 0.9}])
def test_the_state_of_the_optimizer_and_averages_count(tiny, changes):
  tiny.model.width = 700  # 0.63 million parameters: 7.6 MB with gradient and momentum
  budget.check_training(*make(tiny))
  for key, value in changes.items():
    section, name = key.split('.')
    tiny[section][name] = value
  with pytest.raises(errors.InputError, match='config.model.depth or config.model.width'):
    budget.check_training(*make(tiny))


def test_an_evaluation_beyond_memory_is_refused(tiny, monkeypatch):
  tiny.eval.batch_size = 10**5
  with pytest.raises(errors.InputError, match=r'config.eval.batch_size=100000 .*lower it to'):
    budget.check_evaluation(*make(tiny))
  tiny.eval.batch_size, tiny.data.synthetic_classes = 16, 2000
  with pytest.raises(errors.InputError, match='2,000 classes'):
    budget.check_evaluation(*make(tiny))


@pytest.mark.parametrize(
  'start',
  [
    lambda config, folder: loop_lib.train(config, folder),
    lambda config, folder: lr_find.run(config, folder),
    lambda config, folder: noise.run(config, folder),
    lambda config, folder: first_steps.examine(config, datasets.load(config, ())),
  ],
)
def test_every_program_that_trains_asks(tiny, tmp_path, start):
  tiny.train.batch_size = 10**6
  with pytest.raises(errors.InputError, match='config.train.batch_size=1000000'):
    start(tiny, tmp_path)


def test_a_batch_larger_than_the_split_gets_a_line(tiny, caplog):
  tiny.train.batch_size = 128
  with caplog.at_level('INFO'):
    budget.check_training(*make(tiny))
  assert 'larger than train with 64 images' in caplog.text and '2.0 times' in caplog.text
  caplog.clear()
  tiny.train.batch_size = 64
  budget.check_training(*make(tiny))
  assert not caplog.text


@pytest.mark.parametrize(
  ('options', 'offered'),
  [
    ({}, {'train.batch_size', 'data.image_size', 'train.accumulate', 'model.remat=True', 'model.dtype=bfloat16'}),
    ({**ONE_EACH}, {'data.image_size', 'model.remat=True', 'model.dtype=bfloat16'}),
    ({**ONE_EACH, 'model.remat': True, 'model.dtype': 'bfloat16'}, {'data.image_size'}),
  ],
)
def test_the_compiled_step_is_refused_before_the_first_one_with_what_would_help(
  tiny, tmp_path, monkeypatch, options, offered
):
  for key, value in options.items():
    section, name = key.split('.')
    tiny[section][name] = value
  run, mesh = make(tiny)
  assert set(re.findall(r'config\.([a-z_.]+(?:=\w+)?)', budget.remedy(run.config, mesh))) == offered
  for estimate in ('check_training', 'check_evaluation'):
    monkeypatch.setattr(budget, estimate, lambda *_: None)
  monkeypatch.setattr(capacity, 'device', lambda: 1000)
  with pytest.raises(errors.InputError, match='compiled train step.* needs') as refused:
    loop_lib.train(tiny, tmp_path / 'run')
  assert budget.remedy(run.config, mesh) in str(refused.value)
  assert not (tmp_path / 'run' / 'metrics.jsonl').exists() or not (tmp_path / 'run' / 'metrics.jsonl').read_text()


@pytest.mark.usefixtures('eight_devices')
def test_more_fsdp_is_offered_where_there_is_more(tiny):
  for tiny.mesh.fsdp, offered in ((1, True), (4, True), (8, False)):
    tiny.train.batch_size = 16
    assert ('config.mesh.fsdp' in budget.remedy(*(tiny, mesh_lib.make_mesh(tiny.mesh)))) == offered


@pytest.mark.thorough
@pytest.mark.usefixtures('eight_devices')
def test_devices_share_a_batch_and_split_parameters(tiny):
  tiny.train.batch_size = 8 * 4000
  budget.check_training(*make(tiny))
  tiny.model.width, tiny.train.batch_size = 1500, 16
  with pytest.raises(errors.InputError, match='config.mesh.fsdp'):
    budget.check_training(*make(tiny))
  tiny.mesh.fsdp = 8
  budget.check_training(*make(tiny))


def test_epochs_of_too_many_steps_are_refused(tiny):
  tiny.train.steps, tiny.train.epochs = None, 1e30
  with pytest.raises(errors.InputError, match='config.train.epochs'):
    make(tiny)


def test_evaluation_of_a_run_asks(tiny, tmp_path, monkeypatch):
  monkeypatch.setattr(evaluate.checkpoints, 'load_parameters', lambda workdir: types.SimpleNamespace(meta={}))
  monkeypatch.setattr(evaluate.resume, 'of_meta', lambda meta, workdir: None)
  monkeypatch.setattr(evaluate.resume, 'keep_open', lambda config, trained: config)
  tiny.eval.batch_size = 10**6
  with pytest.raises(errors.InputError, match='config.eval.batch_size'):
    evaluate.evaluate(tiny, tmp_path)
