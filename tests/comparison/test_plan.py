import json
import re

import pytest

from dnt import config as schema
from dnt import errors
from dnt import workdir as workdir_lib
from dnt.checkpoints import format
from dnt.comparison import plan
from dnt.config import run_config
from dnt.training import datasets
from dnt.weights import preprocessing, pretrained


@pytest.fixture
def config():
  config = schema.default('compare')
  config.seeds = (3, 5)
  config.base.model.name = 'mlp'
  config.base.train.steps = 100
  config.variants = {'plain': {}, 'deep': {'model.depth': 10, 'train.epochs': 2}}
  config.forms = {'short': {'train.steps': 10, 'optim.learning_rate': 0.5}}
  return config


@pytest.fixture
def staged(config):
  """Two variants that start from a third, which stands behind them, and one that starts from one of the two."""
  config.variants = {
    'head': {'train.init_from': 'variant:pretrain', 'finetune.trainable': 'head'},
    'last': {'train.init_from': 'variant:head'},
    'scratch': {},
    'pretrain': {'data.image_size': 4, 'data.source': 'synthetic'},
  }
  return config


def test_every_variant_with_every_seed_in_a_workdir_of_its_own(config, tmp_path):
  runs = plan.make(config, tmp_path)
  assert [run.name for run in runs] == ['plain seed 3', 'deep seed 3', 'plain seed 5', 'deep seed 5']
  assert [run.workdir.relative_to(tmp_path).as_posix() for run in runs[:2]] == ['plain/seed3', 'deep/seed3']
  assert [run.config.seed for run in runs] == [3, 3, 5, 5]
  assert [run.config.model.depth for run in runs] == [None, 10, None, 10]
  assert [run.config.train.steps for run in runs[:2]] == [100, None], 'of steps and epochs the changed one counts'
  assert runs[1].config.train.epochs == 2.0
  assert schema.kind(runs[0].config) == 'train'
  assert config.base.model.depth is None, 'base is left as it is'


def test_a_folder_of_the_command_line_and_one_of_a_form_are_two(config, tmp_path):
  config.base.data.source, config.base.data.dir = 'folder', 'mine'
  config.forms = {'few': {'data.source': 'folder:few'}}
  assert plan.make(config, tmp_path, 'few')[0].config.data.dir == ''
  with pytest.raises(errors.InputError, match="'folder:few' and config.data.dir='mine' name two folders"):
    plan.check_data(plan.make(config, tmp_path, 'few', ['data.dir']))


def test_too_many_runs_are_refused_by_their_number(config, tmp_path):
  config.seeds = tuple(range(5001))
  with pytest.raises(errors.InputError, match='5,001 seeds .*config.seeds'):
    plan.make(config, tmp_path)


def test_names_of_variants_may_hold_dots(config, tmp_path):
  config.variants = {'0.1': {'optim.learning_rate': 0.1}, 'v1.2-b': {'train.init_from': 'variant:0.1'}}
  runs = plan.make(config, tmp_path)
  assert [run.workdir.relative_to(tmp_path).as_posix() for run in runs[:2]] == ['0.1/seed3', 'v1.2-b/seed3']
  assert [run.variant for run in plan.choose(runs, ['0.1'])] == ['0.1', '0.1']


def test_seeds_of_runs_in_the_workdir_are_added(config, tmp_path):
  for name in ('plain/seed4', 'plain/seed5', 'deep/seed0', 'other/seed9', 'plain/seedling', 'plain/seed007'):
    (tmp_path / name).mkdir(parents=True)
  assert plan.add_seeds(config, tmp_path).seeds == (3, 5, 0, 4)
  assert config.seeds == (3, 5)
  (tmp_path / 'deep' / f'seed{2**32}').mkdir()
  with pytest.raises(errors.InputError, match=f'seed {2**32}, which must be .*at most 4,294,967,295; move'):
    plan.add_seeds(config, tmp_path)


def test_a_form_changes_base_and_the_command_line_wins(config, tmp_path):
  def made(form, given=()):
    first = plan.make(config, tmp_path, form, given)[0].config
    return first.train.steps, first.optim.learning_rate

  assert made('') == (100, 0.1)
  assert made('short') == (10, 0.5)
  assert made('short', ['optim.learning_rate']) == (10, 0.1)
  assert made('short', ['train.epochs']) == (100, 0.5), 'epochs that were given are not overruled by steps'
  with pytest.raises(errors.InputError, match="form 'shrt'.* 'short'"):
    plan.make(config, tmp_path, 'shrt')


def test_a_folder_in_the_source_replaces_that_of_base(config, tmp_path):
  config.base.data.source, config.base.data.dir = 'folder', 'pets'
  config.forms = {'short': {'data.dir': 'few'}}
  config.variants = {'same': {}, 'other': {'data.source': 'folder:other'}, 'idx': {'data.source': 'idx'}}

  def made(form='', given=()):
    runs = plan.make(config, tmp_path, form, given)[:3]
    return [(run.config.data.source, run.config.data.dir) for run in runs]

  assert made() == [('folder', 'pets'), ('folder:other', ''), ('idx', 'pets')]
  assert made('short')[0] == ('folder', 'few')
  config.base.data.source, config.base.data.dir = 'folder:mine', ''  # as of the command line
  assert made('short', ['data.source'])[:2] == [('folder:mine', ''), ('folder:other', '')]
  config.base.data.source, config.base.data.dir = 'folder', 'mine'
  chosen = plan.choose(plan.make(config, tmp_path), ['other'])
  with pytest.raises(errors.InputError, match='config.base.data.dir has no effect: every chosen variant sets it'):
    plan.check_given(config, chosen, ['data.dir'])


@pytest.mark.parametrize(
  ('variants', 'message'),
  [
    ({}, 'variants is empty'),
    ({'a': {'model.dpth': 3}}, "variant 'a' 'model.dpth'.* 'model.depth'"),
    ({'a': {'model.depth': '3'}}, "variant 'a'.*model.depth .*int, not str"),
    ({'a': {'model.depth': 0}}, "variant 'a'.*model.depth=0 .*at least 1"),
    ({'a': {'model.norm': 'batchnorm'}}, "'batchnorm'.* 'batch_norm'"),
    ({'a': {'model.block': 'dense'}}, "variant 'a'.*block.*'dense'"),
    ({'a': {'model.name': 'plain', 'model.depth': 21}}, r'depth.* 20\b'),
    ({'a': {'seed': 1}}, "variant 'a' .*seed"),
    ({'a': {'model': {'depth': 3}}}, "config key in variant 'a' 'model'"),
    ({'a': 3}, "variant 'a' .*section.key.* 3$"),
    ({'../a': {}}, r"'\.\./a' .*folder"),
    ({'..': {}}, r"'\.\.' .*folder"),
    ({'results.csv': {}}, "'results.csv' .*file"),
    (
      {'pretrain': {}, 'a': {'train.init_from': 'variant:pretran'}},
      "train.init_from of variant 'a' 'pretran'.* 'pretrain'",
    ),
    ({'a': {'train.init_from': 'variant:a'}}, "variant 'a' .*itself.* a from a$"),
    (
      {'a': {'train.init_from': 'variant:b'}, 'b': {'train.init_from': 'variant:a'}},
      "variant 'a' .*itself.* a from b from a$",
    ),
    (
      {'a': {'model.depth': 5}, 'b': {'train.init_from': 'variant:a', 'model.activation': 'tanh'}},
      r"variant 'b' .*'a'.* config.model.depth=5 \(now 4\)$",
    ),
  ],
)
def test_variants_are_checked_before_anything_runs(config, tmp_path, variants, message):
  config.variants = variants
  with pytest.raises(errors.InputError, match=message):
    plan.make(config, tmp_path)
  assert not list(tmp_path.iterdir())


def test_every_form_is_checked_whether_it_is_taken_or_not(config, tmp_path):
  config.forms = {'short': {'train.step': 3}}
  with pytest.raises(errors.InputError, match="form 'short' 'train.step'.* 'train.steps'"):
    plan.make(config, tmp_path)


def test_some_variants_are_chosen(config, tmp_path):
  runs = plan.make(config, tmp_path)
  assert plan.choose(runs, []) == runs
  assert [run.name for run in plan.choose(runs, ['deep'])] == ['deep seed 3', 'deep seed 5']
  assert plan.choose(runs, ['d*p', 'deep']) == plan.choose(runs, ['deep'])
  with pytest.raises(errors.InputError, match="--only 'dep'.* 'deep'"):
    plan.choose(runs, ['plain', 'dep'])


def test_a_variant_starts_from_the_run_of_another_with_its_seed(staged, tmp_path):
  runs = plan.make(staged, tmp_path)
  assert [run.name for run in runs[:4]] == ['pretrain seed 3', 'head seed 3', 'last seed 3', 'scratch seed 3']
  assert [run.source and run.source.name for run in runs[:4]] == [None, 'pretrain seed 3', 'head seed 3', None]
  assert [run.source and run.source.name for run in runs[5:7]] == ['pretrain seed 5', 'head seed 5']
  assert runs[1].config.train.init_from == 'variant:pretrain', 'wherever the comparison lies'


def test_what_a_chosen_variant_starts_from_is_chosen_too(staged, tmp_path):
  chosen = plan.choose(plan.make(staged, tmp_path), ['last'])
  assert [run.name for run in chosen if run.seed == 3] == ['pretrain seed 3', 'head seed 3', 'last seed 3']


@pytest.mark.parametrize(
  ('first', 'later'),
  [
    ({'model.name': 'pretrained', 'train.init_from': 'hf:timm/resnet50.a1_in1k'}, {'model.name': 'pretrained'}),
    ({'model.name': 'pretrained', 'train.init_from': 'hf:timm/resnet50.a1_in1k'}, {'model.name': 'resnet'}),
    ({'model.depth': 3}, {'model.name': 'pretrained'}),
  ],
)
def test_the_network_of_weights_is_left_to_the_runs(config, tmp_path, monkeypatch, first, later):
  monkeypatch.setattr(pretrained.Source, 'preprocessing', preprocessing.IMAGENET)
  monkeypatch.setattr(pretrained.Source, 'assumed', ())
  config.base.data.image_size = 8
  config.variants = {'first': first, 'later': {'train.init_from': 'variant:first', **later}}
  runs = plan.make(config, tmp_path)
  assert [run.source and run.source.variant for run in runs[:2]] == [None, 'first']
  plan.check_data(runs)


class Images:
  """Stands for loaded data, with the fingerprint of its only split."""

  evaluation = {}

  def __init__(self, content='old'):
    self.content = content

  def fingerprint(self):
    return {'train': {'images': 8, 'content': self.content, 'labels': None}}


def test_each_data_set_is_read_once(config, tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(
    datasets, 'load', lambda config, splits, test: asked.append((config.data.train_split, splits)) or Images()
  )
  config.variants['half'] = {'data.train_split': 'train[:50%]'}
  config.variants['both'] = {'eval.splits': ('test', 'train')}
  plan.check_data(plan.make(config, tmp_path))
  assert asked == [('train', ('val',)), ('train[:50%]', ('val',)), ('train', ('test', 'train'))]


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'data.source': 'folder:absent'}, '^deep seed 3: .*absent .*exist'),
    ({'eval.splits': ('tset',)}, "^deep seed 3: .*'tset'"),
    (
      {'train.init_from': 'absent.pth'},
      r'^deep seed 3: .*absent\.pth .*valid: ',
    ),
  ],
)
def test_what_is_missing_is_told_with_the_first_run_that_needs_it(config, tmp_path, monkeypatch, changes, said):
  monkeypatch.chdir(tmp_path)
  config.variants['deep'] = changes
  with pytest.raises(errors.InputError, match=said):
    plan.check_data(plan.make(config, tmp_path))
  assert not list(tmp_path.iterdir())


def test_a_metric_that_no_split_of_a_run_has_cannot_rank(config, tmp_path):
  config.base.data.source, config.base.data.synthetic_examples = 'synthetic', 64
  runs = plan.make(config, tmp_path)
  plan.check_data(runs, ranking='auroc')
  with pytest.raises(errors.InputError, match='^plain seed 3: the first of config.columns .* from 100 classes on'):
    plan.check_data(runs, ranking='top5_accuracy')


def test_images_are_checked_as_what_is_not_there_yet_will_have_them(staged, tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(datasets, 'load', lambda config, splits, test: asked.append(config) or Images())
  staged.variants['head']['data.eval_crop'] = 0.5
  runs = plan.make(staged, tmp_path)
  plan.check_data(runs[:4])
  found = [(each.data.source, each.data.image_size, each.data.eval_crop, each.train.init_from) for each in asked]
  assert found == [('synthetic', 4, None, ''), ('digits', 4, 0.5, ''), ('digits', None, None, '')]
  assert runs[1].config.data.image_size is None


def leave(run, finished, config=None):
  """What a run leaves in its workdir."""
  (run.workdir / 'checkpoints' / '3').mkdir(parents=True, exist_ok=True)
  (run.workdir / 'summary.json').write_text(json.dumps({'finished': finished, 'params_sha256': run.name}))
  run_config.write(run.workdir / workdir_lib.REQUESTED, config or run.config)


@pytest.mark.parametrize('finished', [True, False])
def test_a_run_of_another_config_is_refused_by_name_and_keys(config, tmp_path, finished):
  before = plan.make(config, tmp_path)[0]
  assert not plan.is_finished(before) and not plan.is_comparable(before)
  leave(before, finished)
  assert plan.is_finished(before) is finished and plan.is_comparable(before)
  config.base.optim.learning_rate = 0.3
  config.variants['plain']['eval.splits'] = ('test', 'train')
  changed = plan.make(config, tmp_path)[0]
  assert not plan.is_comparable(changed)
  with pytest.raises(errors.InputError) as refused:
    plan.is_finished(changed)
  assert 'plain/seed3' in str(refused.value)
  assert "eval.splits was ['val'] and is now ['test', 'train'], optim.learn" in str(refused.value)
  assert 'optim.learning_rate was 0.1 and is now 0.3' in str(refused.value)


def test_the_other_runs_of_an_old_comparison_are_made_alike(config, tmp_path):
  """Of one from before validation splits were held out, which evaluated 'test' by default."""
  config.variants['own'] = {'eval.splits': ('train',)}
  runs = plan.make(config, tmp_path)
  assert [run.config.eval.splits for run in runs[:3]] == [('val',), ('val',), ('train',)]
  old = runs[0].config.copy_and_resolve_references()
  old.eval.splits = ('test',)
  with old.unlocked():
    del old.data.hold_out
  leave(runs[0], True, old)
  runs = plan.make(config, tmp_path)
  assert [run.config.eval.splits for run in runs[:3]] == [('test',), ('test',), ('train',)]
  assert plan.is_finished(runs[0]) and not plan.is_finished(runs[1])


@pytest.mark.parametrize('finished', [True, False])
def test_a_run_that_started_from_other_weights_is_refused(staged, tmp_path, finished):
  source, run, *_ = plan.make(staged, tmp_path)
  leave(source, True)
  leave(run, finished)
  (run.workdir / workdir_lib.SOURCE).write_text('"pretrain seed 3"')
  assert plan.is_finished(run) is finished and plan.is_comparable(run)
  for content, now in (({'finished': True, 'params_sha256': 'other'}, "'other'"), ({'finished': False}, 'None')):
    (source.workdir / 'summary.json').write_text(json.dumps(content))
    assert not plan.is_comparable(run)
    with pytest.raises(
      errors.InputError, match=f"params_sha256 of pretrain seed 3 .*'pretrain seed 3' .*{now}.* delete"
    ):
      plan.is_finished(run)


def train_on(run, images):
  """Leaves a finished run, whose checkpoint has the fingerprint of its images."""
  leave(run, True)
  meta = run.workdir / 'checkpoints' / '3' / 'meta' / 'meta.json'
  meta.parent.mkdir(exist_ok=True)
  envelope = {'meta': {'data': images.fingerprint()}, 'metric': None, 'leaves': {}}
  meta.write_text(json.dumps({**envelope, 'sha256': format._sha256(envelope)}))


def test_finished_runs_were_trained_on_the_images_of_those_to_come(config, tmp_path, monkeypatch):
  runs = plan.make(config, tmp_path)
  train_on(runs[0], Images())
  monkeypatch.setattr(datasets, 'load', lambda config, splits, test: Images())
  plan.check_data(runs[1:], runs[:1])
  monkeypatch.setattr(datasets, 'load', lambda config, splits, test: Images('new'))
  with pytest.raises(errors.InputError, match=r'^plain seed 3 .*images.* deep seed 3: train of digits.* delete'):
    plan.check_data(runs[1:], runs[:1])
  train_on(runs[1], Images('new'))
  with pytest.raises(errors.InputError, match='^deep seed 3 .*images.* plain seed 3'):
    plan.check_data((), runs[:2])
  leave(runs[2], True)  # by a version that kept no fingerprint
  plan.check_data(runs[3:], runs[1:3])


def test_the_folder_of_a_finished_run_may_move_if_its_images_are_known(config, tmp_path):
  config.base.data.source = 'folder:/here'
  run = plan.make(config, tmp_path)[0]
  leave(run, True)
  config.base.data.source, config.base.data.dir = 'folder', '/there'
  moved = plan.make(config, tmp_path)[0]
  with pytest.raises(errors.InputError, match="data.source was 'folder:/here' .*data.dir was '' "):
    plan.is_finished(moved)
  config.base.data.source, config.base.data.dir = 'folder:/here', ''
  train_on(plan.make(config, tmp_path)[0], Images())
  assert plan.is_finished(moved)


def test_what_changes_only_how_a_run_computes_is_free(config, tmp_path):
  run = plan.make(config, tmp_path)[0]
  leave(run, True)
  config.base.data.workers, config.base.train.steps_per_dispatch, config.base.mesh.fsdp = 7, 1, 2
  assert plan.is_finished(plan.make(config, tmp_path)[0])


def test_a_run_that_came_to_nothing_may_change(config, tmp_path):
  run = plan.make(config, tmp_path)[0]
  run.workdir.mkdir(parents=True)
  other = schema.override(run.config, {'optim.momentum': 0.0}, 'test')
  run_config.write(run.workdir / workdir_lib.REQUESTED, other)
  assert not plan.is_finished(run)


def test_a_run_of_an_older_version_ran_with_what_are_now_defaults(config, tmp_path):
  run = plan.make(config, tmp_path)[0]
  leave(run, True)
  stored = json.loads((run.workdir / workdir_lib.REQUESTED).read_text())
  del stored['telemetry']
  (run.workdir / workdir_lib.REQUESTED).write_text(json.dumps(stored))
  assert plan.is_finished(run)


def test_a_run_of_an_older_version_spelled_a_rate_to_be_found_as_zero(config, tmp_path):
  config.base.optim.learning_rate = 'auto'
  run = plan.make(config, tmp_path)[0]
  leave(run, True)
  stored = json.loads((run.workdir / workdir_lib.REQUESTED).read_text())
  stored['optim']['learning_rate'] = 0.0
  (run.workdir / workdir_lib.REQUESTED).write_text(json.dumps(stored))
  assert plan.is_comparable(run)
  assert run_config.get_config(str(run.workdir / workdir_lib.REQUESTED)).optim.learning_rate == 'auto'


@pytest.mark.parametrize(
  ('augment', 'now', 'same'),
  [
    ('none', None, True),
    ('none', 'squash', True),
    ('none', 'center_crop', False),
    ('resized_crop_flip', None, True),
    ('resized_crop_flip', 'squash', False),
    ('resized_crop_flip', 'center_crop', True),
  ],
)
def test_a_run_of_an_older_version_evaluated_as_its_augmentation_implied(config, tmp_path, augment, now, same):
  config.base.data.augment = augment
  run = plan.make(config, tmp_path)[0]
  leave(run, True)
  stored = json.loads((run.workdir / workdir_lib.REQUESTED).read_text())
  del stored['data']['eval_resize']
  (run.workdir / workdir_lib.REQUESTED).write_text(json.dumps(stored))
  with config.base.data.ignore_type():
    config.base.data.eval_resize = now
  run = plan.make(config, tmp_path)[0]
  assert plan.is_comparable(run) == same
  if not same:
    with pytest.raises(errors.InputError, match=f"eval_resize was '.*' and is now '{now}'"):
      plan.is_finished(run)


@pytest.mark.parametrize(
  ('name', 'threshold', 'same'),
  [('global_norm', 1.0, True), ('adaptive', 1.0, True), ('adaptive', 0.5, False), ('value', 0.5, False)],
)
def test_a_run_of_an_older_version_clipped_at_1_by_default(config, tmp_path, name, threshold, same):
  config.base.clip.name = name
  run = plan.make(config, tmp_path)[0]
  leave(run, True)
  assert plan.is_comparable(run)
  stored = json.loads((run.workdir / workdir_lib.REQUESTED).read_text())
  stored['clip']['threshold'] = threshold
  (run.workdir / workdir_lib.REQUESTED).write_text(json.dumps(stored))
  assert plan.is_comparable(run) == same
  if not same:
    with pytest.raises(errors.InputError, match='clip.threshold was 0.5 and is now None'):
      plan.is_finished(run)


@pytest.mark.parametrize(
  ('name', 'key', 'value', 'same'),
  [
    *(('muon', key, value, True) for key, value in (('momentum', 0.9), ('nesterov', False), ('epsilon', 1e-8))),
    ('lamb', 'epsilon', 1e-8, True),
    ('sgd', 'momentum', 0.9, True),
    ('sgd', 'momentum', 0.8, False),
    ('lamb', 'epsilon', 1e-7, False),
  ],
)
def test_a_run_of_an_older_version_had_the_same_constants_with_all_update_rules(
  config, tmp_path, name, key, value, same
):
  config.base.optim.name = name
  run = plan.make(config, tmp_path)[0]
  leave(run, True)
  stored = json.loads((run.workdir / workdir_lib.REQUESTED).read_text())
  stored['optim'].update({'momentum': 0.9, 'nesterov': False, 'epsilon': 1e-8})  # it left none open
  stored['optim'][key] = value
  (run.workdir / workdir_lib.REQUESTED).write_text(json.dumps(stored))
  assert plan.is_comparable(run) == same


@pytest.mark.parametrize(('name', 'momentum', 'same'), [('muon', 0.9, False), ('muon', 0.95, True), ('sgd', 0.9, True)])
def test_what_an_update_rule_has_by_default_may_be_written_out(config, tmp_path, name, momentum, same):
  config.base.optim.name = name
  run = plan.make(config, tmp_path)[0]
  config.base.optim.momentum = momentum
  written = plan.make(config, tmp_path)[0]
  for before, now in ((run, written), (written, run)):
    leave(before, True)
    assert plan.is_comparable(now) == same
  assert run.config.optim.momentum is None


def test_a_workdir_of_another_program_is_refused(config, tmp_path):
  run = plan.make(config, tmp_path)[0]
  leave(run, True)
  (run.workdir / workdir_lib.REQUESTED).unlink()
  with pytest.raises(errors.InputError, match=f'{re.escape(str(run.workdir))}.* comparison'):
    plan.is_finished(run)
  (run.workdir / 'summary.json').write_text('{')
  with pytest.raises(errors.InputError, match=r'summary\.json .*JSON'):
    plan.is_finished(run)
