"""What the programs share: where the config comes from, how errors end a program, what --help and --list say."""

import importlib
import os
import pathlib
import re
import signal
import sys

import jax
import pytest
from absl import flags

from dnt import cli, compare, errors
from dnt import config as schema
from dnt.config import run_config
from dnt.parallel import cpu, signals

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'


def program(main=lambda values: pytest.fail('the program ran'), config='digits_resnet20.py'):
  kinds = ('train',) if config else ()
  return cli.Program('A program.\n', lambda values: None, main, config, kinds)


def parse(*arguments):
  """The validated config of a command line, and its file."""
  values = cli.parse(program(), ['program', *arguments])
  return cli.config(values), cli.config_path(values)


def test_the_default_config_file():
  config, path = parse()
  assert path == CONFIGS / 'digits_resnet20.py'
  assert config.data.source == 'digits'


@pytest.mark.parametrize(
  'given', [['--config=cifar_plain20'], ['--config', 'cifar_plain20.py'], ['-config=cifar_plain20']]
)
def test_a_config_that_comes_with_dnt_is_found_by_its_name(given, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config, path = parse(*given, '--config.train.steps=7')
  assert path == CONFIGS / 'cifar_plain20.py'
  assert (config.model.name, config.train.steps) == ('plain', 7)


@pytest.mark.parametrize(
  'given', [['--config', 'cifar_plain20'], ['--config=cifar_plain20'], ['-config', 'cifar_plain20']]
)
def test_another_flag_may_have_the_value_of_the_config(given, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)

  def define(values):
    flags.DEFINE_string('workdir', None, 'where', flag_values=values)

  shown = cli.Program('Trains.', define, lambda values: None, 'digits_resnet20.py', ('train',))
  values = cli.parse(shown, ['program', '--workdir', 'cifar_plain20', *given])
  assert values.workdir == 'cifar_plain20'
  assert cli.config_path(values) == CONFIGS / 'cifar_plain20.py'


@pytest.mark.parametrize(
  'given',
  [
    ['--config=digits_resnet20', '--config=cifar_plain20', '--config.model.depth=44'],
    ['--config=digits_resnet20', '--config.model.depth=44', '--config', 'cifar_plain20'],
    ['--config', 'absent.py', '-config=cifar_plain20.py', '--config.model.depth', '44'],
    ['--config.model.depth=44', '--config=cifar_plain20'],
  ],
)
def test_the_last_of_several_configs_counts_as_of_other_flags(given, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config, path = parse(*given)
  assert path == CONFIGS / 'cifar_plain20.py'
  assert (config.model.name, config.model.depth) == ('plain', 44)


def test_options_of_a_module_are_given_as_a_dict():
  config, _ = parse("--config.model.options={'width': 4, 'blocks': [{'a': 1}]}")
  assert config.model.options == {'width': 4, 'blocks': [{'a': 1}]}


def test_an_argument_of_a_flag_file_that_belongs_to_no_flag_is_refused(tmp_path):
  (tmp_path / 'words').write_text('extra\n')
  with pytest.raises(errors.InputError, match="^unexpected argument 'extra'; options are written --name=value$"):
    parse(f'--flagfile={tmp_path / "words"}')


@pytest.mark.parametrize(
  'given',
  [
    'configs/cifar_plain20.py',
    'configs/cifar_plain20',
    './configs/cifar_plain20.py',
  ],
)
def test_a_config_that_comes_with_dnt_is_found_by_its_path_in_the_clone(given, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert parse(f'--config={given}')[1] == CONFIGS / 'cifar_plain20.py'
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'cifar_plain20.py').write_text((CONFIGS / 'cifar_resnet56.py').read_text())
  assert parse('--config=configs/cifar_plain20.py')[0].model.depth == 56, 'the file that is there comes first'


@pytest.mark.parametrize(
  ('given', 'said'),
  [
    ('mine/cifar_plain20.py', "no config file at 'mine/cifar_plain20.py'; did you mean --config=cifar_plain20,"),
    ('cifar_plan20.py', "'cifar_plan20.py'; did you mean --config=cifar_plain20,"),
    ('other.py', "'other.py', and dnt has none of this name; .*--list"),
    ('empty', '--config=empty is a folder, and no workdir of a run .it has no config.json'),
  ],
)
def test_a_config_file_that_is_not_there_is_said_with_the_one_meant(given, said, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(errors.InputError, match=said):
    parse(f'--config={given}')


def test_a_config_without_a_value_is_refused():
  with pytest.raises(errors.InputError, match='--config has no value'):
    parse('--config.model.depth=44', '--config')


def test_a_workdir_that_is_called_config_is_a_config(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'config').mkdir()
  run_config.write(tmp_path / 'config' / 'config.json', schema.default())
  assert parse('--config=config')[0].data.source == schema.default().data.source


def test_a_file_of_the_name_of_a_shipped_config_comes_first(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'cifar_plain20.py').write_text((CONFIGS / 'cifar_resnet56.py').read_text())
  assert parse('--config=cifar_plain20.py')[0].model.depth == 56


@pytest.mark.parametrize('separate', [True, False])
def test_a_config_file_and_overrides(separate):
  path = str(CONFIGS / 'cifar_resnet56.py')
  config, found = parse(*(['--config', path] if separate else [f'--config={path}']), '--config.model.depth=20')
  assert str(found) == path
  assert config.model.depth == 20
  assert config.train.steps == 64_000


@pytest.mark.parametrize(
  ('arguments', 'steps'),
  [
    (('--config.train.epochs=2',), None),
    (('--config.train.steps=7',), 7),
  ],
)
def test_of_steps_and_epochs_the_one_given_counts(arguments, steps):
  config, _ = parse(f'--config={CONFIGS / "cifar_plain20.py"}', *arguments)
  assert config.train.steps == steps


@pytest.mark.parametrize(
  ('arguments', 'depth'),
  [
    (('--config.model.depth=None',), None),
    (('--config.model.depth=8', '--config.model.depth=None'), None),
    (('--config.model.depth=None', '--config.model.depth=8'), 8),
  ],
)
def test_an_option_without_a_default_can_be_left_unset(arguments, depth):
  values = cli.parse(program(), ['program', '--config=cifar_resnet56', *arguments])
  assert cli.config(values).model.depth == depth
  assert cli.overrides(values) == {'model.depth': depth}


def test_texts_switches_and_steps_can_be_left_unset_too(tmp_path):
  recorded = schema.default()
  recorded.update({'data': {'hold_out': False, 'eval_resize': 'squash'}, 'train': {'steps': 7}})
  run_config.write(tmp_path / 'config.json', recorded)
  config, _ = parse(
    f'--config={tmp_path}', *(f'--config.{key}=None' for key in ('data.hold_out', 'data.eval_resize', 'train.steps'))
  )
  assert (config.data.hold_out, config.data.eval_resize, config.train.steps) == (None, None, None)


@pytest.mark.parametrize('given', ['--config.{}=None', '--config.{} None'])
def test_a_text_that_is_empty_by_default_can_be_left_unset_too(given, tmp_path):
  recorded, texts = schema.default(), ('data.dir', 'finetune.cache_dir', 'train.init_from')
  recorded.update({'data': {'dir': '/data'}, 'finetune': {'cache_dir': '/kept'}, 'train': {'init_from': 'old'}})
  run_config.write(tmp_path / 'config.json', recorded)
  arguments = [argument for key in texts for argument in given.format(key).split()]
  values = cli.parse(program(), ['program', f'--config={tmp_path}', *arguments])
  config = cli.config(values)
  assert (config.data.dir, config.finetune.cache_dir, config.train.init_from) == ('', '', '')
  assert cli.overrides(values) == dict.fromkeys(texts, '')
  config, _ = parse('--config.data.source=idx', '--config.data.dir=None', '--config.data.dir=./None')
  assert config.data.dir == './None'


@pytest.mark.parametrize(
  'key', ['train.epochs', 'optim.name', 'data.mean', 'model.options', 'optim.learning_rate', 'eval.splits', 'data.flip']
)
def test_an_option_with_a_default_cannot(key):
  with pytest.raises(errors.InputError, match=f'config.{key}.*None'):
    parse(f'--config.{key}=None')


@pytest.mark.parametrize(
  ('given', 'source', 'folder'),
  [
    (['--config.data.source=folder:other'], 'folder:other', ''),
    (['--config.data.source=idx:other', '--config.data.dir=mine'], 'idx:other', 'mine'),
    (['--config.data.source=tfds:mnist'], 'tfds:mnist', 'pets'),
    (['--config.data.source=idx'], 'idx', 'pets'),
    ([], 'folder', 'pets'),
  ],
)
def test_a_folder_in_the_source_replaces_the_folder_of_the_file(given, source, folder, tmp_path):
  recorded = schema.default()
  recorded.data.update({'source': 'folder', 'dir': 'pets'})
  run_config.write(tmp_path / 'config.json', recorded)
  config, _ = parse(f'--config={tmp_path}', *given)
  assert (config.data.source, config.data.dir) == (source, folder)


def test_a_folder_in_the_source_replaces_that_of_the_base_of_a_comparison(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    "from dnt import config\ndef get_config():\n  c = config.default('compare')\n  c.variants = {'all': {}}\n"
    "  c.base.data.source, c.base.data.dir = 'folder', 'pets'\n  return c\n"
  )
  shown = importlib.import_module('dnt.compare').PROGRAM
  config = cli.config(cli.parse(shown, ['compare', f'--config={path}', '--config.base.data.source=folder:other']))
  assert (config.base.data.source, config.base.data.dir) == ('folder:other', '')


def test_of_steps_and_epochs_one_alone_is_given():
  with pytest.raises(errors.InputError, match='train.epochs=2.0 .*train.steps is 7'):
    parse('--config.train.epochs=2', '--config.train.steps=7')


def test_a_boolean_override_is_checked_too():
  config, _ = parse('--noconfig.data.flip')
  assert config.data.flip is False
  with pytest.raises(errors.InputError, match=r"config key 'data.flipp'.* 'data.flip'"):
    parse('--noconfig.data.flipp')


@pytest.mark.parametrize(
  ('argument', 'meant'),
  [
    ('--config.optim.learning-rate=0.1', "'optim.learning_rate'"),
    ('--lr=0.1', "'--config.optim.learning_rate'"),
    ('--confg=x', "'--config'"),
    ('--config.optim.name=adam', "'adamw'"),
  ],
)
def test_a_flag_or_key_of_another_name_is_refused_with_the_one_meant(argument, meant):
  with pytest.raises(errors.InputError, match=f'did you mean {meant}'):
    parse(argument)


@pytest.mark.parametrize(
  ('name', 'arguments', 'said'),
  [
    ('predict', ['--images', 'a.png', 'b.png', '--output=x.csv'], "'b.png'; .*--name=value; .*--images='photos/.*png'"),
    ('explain', ['--workdir=mine', '--images=a.png', 'b.png'], "'b.png'; .*in quotes: --images="),
    ('compare', ['--only', 'deep', 'wide'], "'wide'; .* with commas: --only=a,b"),
    ('main', ['--mode=train', 'train.steps=3'], "'train.steps=3'; options are written --name=value$"),
  ],
)
def test_an_argument_without_a_flag_is_refused_with_how_several_are_written(name, arguments, said):
  with pytest.raises(errors.InputError, match=said):
    cli.parse(importlib.import_module(f'dnt.{name}').PROGRAM, [name, *arguments])


@pytest.mark.parametrize('separate', [False, True])
@pytest.mark.parametrize('loader', [run_config.__file__, os.path.relpath(run_config.__file__)])
@pytest.mark.parametrize('name', ['mine', 'mine/config.json', 'run_config.py:mine/config.json'])
def test_the_config_of_a_run_is_run_again(name, loader, separate, tmp_path):
  recorded = schema.default()
  recorded.model.depth, recorded.optim.learning_rate = 14, 'auto'
  (tmp_path / 'mine').mkdir()
  run_config.write(tmp_path / 'mine' / 'config.json', recorded)
  _, colon, rest = name.rpartition(':')
  path = f'{loader if colon else ""}{colon}{tmp_path}/{rest}'
  given = ['--config', path] if separate else [f'--config={path}']
  values = cli.parse(program(), ['program', *given, '--config.train.steps=7'])
  config = cli.config(values)
  assert (config.model.depth, config.optim.learning_rate, config.train.steps) == (14, 'auto', 7)
  assert cli.config_name(values) == 'mine_again'  # it would go on in the workdir 'mine' without steps to do


@pytest.fixture
def run(tmp_path, monkeypatch):
  """The workdir `mine` of a run of 14 layers, which held out `val`; it is in the current folder."""
  monkeypatch.chdir(tmp_path)
  given, resolved = schema.default(), schema.default()
  given.model.depth = resolved.model.depth = 14
  resolved.data.hold_out, resolved.train.steps = True, 7
  (tmp_path / 'mine').mkdir()
  run_config.write(tmp_path / 'mine' / 'config.json', resolved, {'open': run_config.left_open(given, resolved)})
  return tmp_path / 'mine'


@pytest.mark.parametrize(
  'given',
  [
    ['--workdir=mine'],
    ['--config.train.batch_size', '16', '--workdir', 'mine'],
    ['-workdir', 'mine', '--mode=evaluate', "--config.eval.splits=('test',)", '--noconfig.optim.nesterov'],
    ['--workdir=mine', '--config.train.epochs=2'],
    ['--workdir=mine', '--config.model.depth=None'],
  ],
)
def test_a_run_that_is_in_the_workdir_gives_its_config(run, given):
  shown = importlib.import_module('dnt.main').PROGRAM
  alone = cli.parse(shown, ['main', *given])
  named = cli.parse(shown, ['main', '--config=mine', *given])
  assert cli.config(alone).to_dict() == cli.config(named).to_dict()
  assert alone.config.model.depth == (None if 'None' in given[-1] else 14) and alone.config.data.hold_out is None
  assert cli.run_of_config(alone) == 'mine' and not alone['config'].present


def test_a_workdir_without_a_run_or_with_another_config_gives_none(run):
  shown = importlib.import_module('dnt.main').PROGRAM
  (run.parent / 'empty').mkdir()
  for given, file in (
    (['--workdir=new'], 'digits_resnet20.py'),
    (['--workdir=empty'], 'digits_resnet20.py'),
    (['--workdir=s3://bucket/mine'], 'digits_resnet20.py'),
    (['--workdir=mine', '--config=cifar_plain20'], 'cifar_plain20.py'),
  ):
    values = cli.parse(shown, ['main', *given])
    assert cli.config_path(values) == CONFIGS / file and not cli.run_of_config(values)
  for name in ('probe', 'rehearse'):  # they write their own results there
    values = cli.parse(importlib.import_module(f'dnt.{name}').PROGRAM, [name, '--workdir=mine'])
    assert cli.config_path(values) == CONFIGS / 'digits_resnet20.py'
  (run / 'config.json').write_text('{"optim": {"lr": 1}}')
  with pytest.raises(errors.InputError, match="mine/config.json 'optim.lr'; did you mean 'optim.learning_rate'"):
    cli.parse(shown, ['main', '--workdir=mine'])
  with pytest.raises(errors.InputError, match='workdir'):
    cli.parse(shown, ['main', '--workdir'])


@pytest.mark.parametrize(('name', 'taken'), [('main', True), ('probe', True), ('rehearse', True), ('compare', False)])
def test_the_help_offers_the_workdir_of_a_run_where_its_config_is_taken(name, taken, tmp_path):
  shown = importlib.import_module(f'dnt.{name}').PROGRAM
  assert ('or the workdir of a run' in cli.help_text(shown).partition('\nConfig keys')[0]) == taken
  run_config.write(tmp_path / 'config.json', schema.default())
  try:
    assert cli.parse(shown, [name, f'--config={tmp_path}']).config and taken
  except errors.InputError:
    assert not taken


@pytest.mark.parametrize(
  ('content', 'said'),
  [
    ('{"optim": {"lr": 1}}', "config.json.* 'optim.lr'; did you mean 'optim.learning_rate'"),
    ('{"optim": ', '^[^ ]*config.json is damaged: .*not JSON'),
    ('{"train": {"steps": "many"}}', "config.json: .*train.steps must be int, not str .'many'"),
    ('{"train": {"steps": -1}}', 'config.train.steps=-1 must'),
    ('[]', '^[^ ]*config.json is damaged: .*list'),
    (b'\xff', '^[^ ]*config.json is damaged'),
    (None, 'config.json'),
  ],
)
def test_a_recorded_config_that_cannot_be_read_is_named(content, said, tmp_path):
  path = tmp_path / 'config.json'
  if content is not None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(errors.InputError, match=said) as refused:
    parse(f'--config={path}')
  assert 'run_config.py' not in str(refused.value) and '\n' not in str(refused.value)


@pytest.mark.parametrize(
  ('error', 'code', 'said'),
  [
    (None, 0, ''),
    (errors.InputError('no data'), 2, 'error: no data\n'),
    (errors.RunError('the loss is not finite'), 1, 'error: the loss is not finite\n'),
    (PermissionError(13, 'Permission denied', '/a/b'), 1, 'error: /a/b: Permission denied\n'),
    (KeyboardInterrupt(), 130, ''),
    (signals.Stopped(signal.SIGINT), 130, ''),
    (signals.Stopped(signal.SIGTERM), 143, ''),
    (signals.Stopped(signal.SIGHUP), 129, ''),
    (MemoryError('Unable to allocate 7 TiB'), 1, 'error: there is not enough memory (Unable to allocate 7 TiB); '),
    (MemoryError(), 1, 'error: there is not enough memory (MemoryError); '),
    (jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 9 GB\n  more'), 1, 'error: there is not enough memory '),
    (jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: /a/b; No space left on device'), 1, 'error: a disk is full (RES'),
    (OverflowError('int too large'), 1, 'error: a number is too large (int too large); '),
  ],
)
def test_exit_codes(capsys, error, code, said):
  def main(values):
    if error:
      raise error

  with pytest.raises(SystemExit) as stopped:
    cli.run(program(main), ['program'])
  assert (stopped.value.code or 0) == code
  shown = capsys.readouterr().err
  assert shown.startswith(said) and shown.count('\n') == bool(said)


def test_an_error_of_the_program_itself_keeps_its_traceback():
  def main(values):
    raise RuntimeError('a fault of dnt')

  with pytest.raises(RuntimeError, match='a fault'):
    cli.run(program(main), ['program'])


@pytest.mark.parametrize(('seen', 'lines'), [(True, 1), (False, 0)])
def test_a_program_says_that_jax_leaves_a_gpu_unused(capsys, monkeypatch, seen, lines):
  from jax._src import hardware_utils, xla_bridge

  monkeypatch.setattr(hardware_utils, 'has_visible_nvidia_gpu', lambda: seen)
  jax.devices()
  with pytest.raises(SystemExit):
    cli.run(program(lambda values: xla_bridge._suggest_missing_backends()), ['program'])  # which jax calls once
  shown = capsys.readouterr().err
  assert shown.count('\n') == shown.count('warning: An NVIDIA GPU may be present on this machine') == lines


def test_a_trick_that_does_not_exist_is_bad_input(capsys, monkeypatch):
  monkeypatch.setenv(cpu.VARIABLE, 'alocator')
  with pytest.raises(SystemExit) as stopped:
    cli.run(program(lambda values: None), ['program'])
  assert stopped.value.code == 2
  assert "'allocator'" in capsys.readouterr().err


def test_help_begins_with_the_description(capsys):
  with pytest.raises(SystemExit) as stopped:
    cli.run(program(), ['program', '--help'])
  assert stopped.value.code == 0
  text = capsys.readouterr().out
  assert text.startswith('A program.\n\nFlags:\n')
  for code in (0, 1, 2, *signals.CODES, cli.CLOSED):
    assert re.search(rf'\b{code} \w', text.partition('Exit codes:')[2])


@pytest.mark.parametrize('argument', ['--config=configs/digits_resnet20.py', '--config.train.steps=3', '--confg=x'])
def test_a_program_without_a_config_takes_none(capsys, argument):
  with pytest.raises(SystemExit) as stopped:
    cli.run(program(config=None), ['program', argument])
  assert stopped.value.code == 2
  said = "'confg'" if argument == '--confg=x' else 'no --config'
  assert said in capsys.readouterr().err
  with pytest.raises(SystemExit):
    cli.run(program(config=None), ['program', '--help'])
  assert '--config' not in capsys.readouterr().out


def test_a_trained_network_is_named_once(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  assert cli.model_source(str(tmp_path), None) == str(tmp_path)
  assert cli.model_source(None, 'tfjs:there') == 'tfjs:there'
  for given, said in (
    ((None, None), '--workdir=.* --weights='),
    ((str(tmp_path), 'tfjs:there'), 'not both.* --workdir='),
    ((str(tmp_path / 'no'), ''), f'{re.escape(str(tmp_path / "no"))} is no workdir of a dnt run.* --weights'),
  ):
    with pytest.raises(errors.InputError, match=said):
      cli.model_source(*given)


def test_a_training_config_for_a_comparison_is_told_how_one_begins():
  said = r"is a train config; this program takes: compare; .* config = schema\.default\('compare'\), .*docs/runs\.md$"
  with pytest.raises(errors.InputError, match=said):
    cli.parse(compare.PROGRAM, ['compare', '--config=digits_resnet20'])


@pytest.mark.parametrize('kind', ['folder', 'image.png', 'net.safetensors', 'missing', 'hf:timm/resnet18.a1_in1k'])
def test_a_workdir_to_read_is_that_of_a_run(tmp_path, monkeypatch, kind):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'folder').mkdir()
  for name in ('image.png', 'net.safetensors'):
    (tmp_path / name).write_bytes(b'')
  with pytest.raises(
    errors.InputError, match=rf'^--workdir={re.escape(kind)} is no workdir of a dnt run \(.*config\.json\)$'
  ):
    cli.check_run(kind)
  with pytest.raises(errors.InputError, match=rf'^--workdir={re.escape(kind)} is no .*; --weights'):
    cli.model_source(kind, None)


@pytest.mark.parametrize('name', ['cache', 'compare', 'explain', 'export', 'main', 'predict', 'probe', 'rehearse'])
def test_the_home_folder_is_that_of_the_user_in_every_program(name, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  shown = importlib.import_module(f'dnt.{name}').PROGRAM
  paths = {'cache': ['dir'], 'explain': ['workdir', 'output']}
  paths |= dict.fromkeys(('export', 'predict'), paths['explain'])
  for flag in paths.get(name, ['workdir']):
    for given, path in (('~/runs/mine', f'{tmp_path}/runs/mine'), ('gs://mine/~/run', 'gs://mine/~/run')):
      config = ['--config=cifar_plain20'] if name == 'main' else []  # else it would look for one in the bucket
      assert cli.parse(shown, [name, f'--{flag}={given}', *config])[flag].value == path


@pytest.mark.parametrize('separate', [True, False])
@pytest.mark.parametrize('given', ['~/mine.py', '~/run'])
def test_a_config_in_the_home_folder(given, separate, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'mine.py').write_text((CONFIGS / 'cifar_resnet56.py').read_text())
  recorded = schema.default()
  recorded.model.depth = 56
  (tmp_path / 'run').mkdir()
  run_config.write(tmp_path / 'run' / 'config.json', recorded)
  assert parse(*(['--config', given] if separate else [f'--config={given}']))[0].model.depth == 56


@pytest.mark.parametrize('by', [os.path.relpath, os.path.abspath])
def test_a_recorded_config_does_not_make_the_modules_beside_its_reader_those_of_the_user(by, tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'path', before := list(sys.path))
  run_config.write(tmp_path / 'requested.json', schema.default())
  parse(f'--config={by(run_config.__file__)}:{tmp_path}/requested.json')
  assert sys.path == before and str(pathlib.Path(run_config.__file__).parent) not in before


def test_the_catalogue_has_every_config_with_its_first_line(tmp_path):
  (tmp_path / 'one.py').write_text('"""The first.\n\nMore.\n"""\n')
  (tmp_path / 'another.py').write_text('x = 1\n')
  lines = cli.catalogue(tmp_path).splitlines()
  assert lines[1:3] == ['  another.py  ', '  one.py      The first.']
  assert any(line.split()[:1] == ['densenet'] for line in lines)
