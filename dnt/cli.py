"""What the programs share: the config flag, help, and errors as one line with an exit code.

Exit codes: 0 finished or cleanly stopped, 1 a run that failed, 2 bad input (flags, config, data, checkpoint).
"""

import ast
import logging as std_logging
import pathlib
import re
import sys
from collections.abc import Callable, Sequence

import ml_collections
from absl import app, flags, logging
from ml_collections.config_flags import config_flags

from dnt import config as schema
from dnt import errors
from dnt.parallel import allocator

CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file; any key follows as --config.section.key=value.')
_CONFIG_ARGUMENT = re.compile(r'--?config(=.*)?$')
_OVERRIDE = re.compile(r'--?(?:no)?config\.([\w.]+)')


def run(
  main: Callable[[], None],
  description: str,
  default_config: pathlib.Path | None = None,
  kinds: Sequence[str] = ('train',),
  computes: bool = True,
) -> None:
  """Parses the flags, runs `main` and exits with the code its errors stand for.

  Args:
    main: the program; reads its flags itself.
    description: what `--help` prints first.
    default_config: the config file when `--config` is not given; None: the program takes no config at all.
    kinds: of config files that the program takes, from `dnt.config.KINDS`.
    computes: whether it runs networks itself, for which memory is kept; else it leaves that to processes it starts.
  """
  kinds = kinds if default_config else ()
  if any(argument in ('-h', '--help', '--helpfull', '--helpshort') for argument in sys.argv[1:]):
    print(help_text(description, kinds))
    sys.exit(0)
  if computes:
    allocator.tune()
  logging.set_verbosity(logging.ERROR)  # the libraries' own chatter
  std_logging.getLogger('dnt').setLevel(std_logging.WARNING)
  try:
    app.run(lambda _: main(), flags_parser=lambda argv: _parse(argv, default_config, kinds))
  except errors.InputError as error:
    print(f'error: {error}', file=sys.stderr)
    _leave(2)
  except errors.RunError as error:
    print(f'error: {error}', file=sys.stderr)
    _leave(1)
  except KeyboardInterrupt:  # before there is anything to save
    _leave(130)


def config() -> ml_collections.ConfigDict:
  """The config of the command line, validated.

  Of `train.steps` and `train.epochs` the one given on the command line counts, whichever the file sets.

  Raises:
    errors.InputError: a key or value that the schema refuses.
  """
  parsed = flags.FLAGS.config
  given = config_flags.get_override_values(flags.FLAGS['config'])
  for prefix, section in (('', parsed), ('base.', parsed.get('base'))):
    if f'{prefix}train.epochs' in given and f'{prefix}train.steps' not in given:
      section.train.steps = None
  schema.validate(parsed)
  return parsed


def config_path() -> pathlib.Path:
  """The config file that was read."""
  return pathlib.Path(config_flags.get_config_filename(flags.FLAGS['config']))


def trained(workdir: str | None, weights: str | None) -> str:
  """What `inference.load` is asked for by the flags `--workdir` and `--weights`, of which one must be given.

  Raises:
    errors.InputError: both or neither, or a workdir that is no folder.
  """
  if bool(workdir) == bool(weights):
    given = 'not both' if workdir else 'one of them'
    raise errors.InputError(
      f'give {given}: --workdir=<folder of a dnt run>, or --weights=<file>.safetensors, .pth, .h5, tfjs:<dir> or '
      'hf:<owner>/<name>'
    )
  if workdir and not pathlib.Path(workdir).expanduser().is_dir():
    raise errors.InputError(f'--workdir={workdir}: no such folder; pretrained weights are given with --weights')
  return workdir or weights


def catalogue(configs: pathlib.Path) -> str:
  """The configs of a folder with the first line of their docstrings, the models and the data sources."""
  from dnt import models
  from dnt.data import sources

  files = sorted(configs.glob('*.py'))
  width = max(len(file.name) for file in files)
  lines = ['Configs:']
  for file in files:
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ''
    lines.append(f'  {file.name:{width}}  {docstring.partition(chr(10))[0]}')
  lines += ['', 'Models (config.model.name):']
  for name, model in models.MODELS.items():
    lines.append(f'  {name:{width}}  {(model.__doc__ or "").partition(chr(10))[0]}')
  lines += [
    f'  {"mypkg.nets:Net":{width}}  Your own Flax module, by import path.',
    f'  {models.PRETRAINED:{width}}  The network whose weights are at config.train.init_from.',
    '',
  ]
  lines += ['Data sources (config.data.source):', *(f'  {name}' for name in sources.names())]
  return '\n'.join(lines)


def help_text(description: str, kinds: Sequence[str]) -> str:
  """Every flag of the program and every config key of its kinds, with defaults."""
  lines = [description.strip(), '', 'Flags:']
  modules = flags.FLAGS.flags_by_module_dict()
  own = [flag for name, group in modules.items() if name == sys.argv[0] or name.startswith('dnt.') for flag in group]
  for flag in sorted((flag for flag in own if kinds or flag.name != 'config'), key=lambda flag: flag.name):
    default = '' if flag.default in (None, False) else f' (default: {flag.default})'
    lines.append(f'  --{flag.name}: {flag.help}{default}')
  if kinds:
    lines += ['', 'Config keys (--config.<key>=<value>):']
  for key, option in _options(kinds).items():
    default = f'{option.type.__name__}, not set' if isinstance(option.default, type) else repr(option.default)
    lines.append(f'  {key} ({default}): {option.help}')
  return '\n'.join(lines)


def _options(kinds: Sequence[str]) -> dict[str, schema.Option]:
  return {key: option for kind in kinds for key, option in schema.options(schema.KINDS[kind])}


def _parse(argv: list[str], default_config: pathlib.Path | None, kinds: Sequence[str]) -> list[str]:
  if default_config is None:
    return _parse_flags(argv)
  known = _options(kinds)
  for argument in argv[1:]:
    match = _OVERRIDE.match(argument)
    if match and match[1] not in known:
      raise errors.unknown('config key', match[1], known)
  if not any(_CONFIG_ARGUMENT.match(argument) for argument in argv[1:]):
    argv = [argv[0], f'--config={default_config}', *argv[1:]]
    sys.argv = argv  # the config flag looks there for its file
  try:
    rest = flags.FLAGS(argv)
    kind = schema.kind(flags.FLAGS.config)  # a file that failed to load raises here, not before
  except flags.Error as error:
    if 'Traceback' in str(error):  # ml_collections puts that of a ValueError in a config file into the message
      raise _failed(argv, error) from error
    raise _refused(error) from error
  except OSError as error:
    raise errors.InputError(
      f'no config file at {_config_argument(argv)!r}; python -m dnt.main --list shows those that come with dnt'
    ) from error
  except Exception as error:  # a config file is code: whatever it raises is bad input, named in its last line
    raise _failed(argv, error) from error
  if kind not in kinds:
    raise errors.InputError(f'{_config_argument(argv)!r} is a {kind} config; this program takes: {", ".join(kinds)}')
  return _alone(rest)


def _parse_flags(argv: list[str]) -> list[str]:
  """Of a program without a config."""
  if any(_CONFIG_ARGUMENT.match(argument) or _OVERRIDE.match(argument) for argument in argv[1:]):
    raise errors.InputError('this program takes no --config: a run and its weights say themselves what they are')
  try:
    return _alone(flags.FLAGS(argv))
  except flags.Error as error:
    raise _refused(error) from error


def _alone(rest: list[str]) -> list[str]:
  if rest[1:]:
    raise errors.InputError(f'unexpected argument {rest[1]!r}; options are written --name=value')
  return rest


def _refused(error: flags.Error) -> errors.InputError:
  return errors.InputError(f'{error} (--help lists the flags)')


def _failed(argv: list[str], error: Exception) -> errors.InputError:
  reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
  return errors.InputError(f'config file {_config_argument(argv)!r} failed: {reason}')


def _config_argument(argv: list[str]) -> str:
  for index, argument in enumerate(argv):
    if _CONFIG_ARGUMENT.match(argument):
      return argument.partition('=')[2] or ''.join(argv[index + 1 : index + 2])
  return ''


def _leave(code: int) -> None:
  if 'jax' in sys.modules:
    from dnt.parallel import multihost

    multihost.leave(code)  # one of several processes must not wait for the others
  sys.exit(code)
