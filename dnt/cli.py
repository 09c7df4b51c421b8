"""Provides what the programs share: the config flag, help, and errors as one line with an exit code.

`EXIT_CODES` lists the codes, which are those of every program.
"""

import ast
import contextlib
import dataclasses
import io
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TextIO

from absl import flags, logging
from ml_collections.config_flags import config_flags

from dnt import buckets, errors, files
from dnt import config as schema
from dnt import workdir as workdir_lib
from dnt.config import config_files, keys, relations, run_config
from dnt.config import overrides as overrides_lib
from dnt.parallel import cpu, peers, signals
from dnt.parallel.cpu import allocator
from dnt.reporting import terminal

# An installed package contains the config files; in a checkout they are next to it.
_PACKAGED = pathlib.Path(__file__).parent / 'configs'
CONFIGS = _PACKAGED if _PACKAGED.is_dir() else pathlib.Path(__file__).parents[1] / 'configs'
CLOSED = 141  # as of a program that SIGPIPE ends
EXIT_CODES = """\
Exit codes: 0 finished, 1 failed (such as a loss that is not finite), 2 bad input (flags, config, data, checkpoint);
128 + its number if a signal stopped the program, after it saved: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP (a closed
terminal), 141 the reader of the output ended (`| head`). The same command then goes on."""
_CONFIG_ARGUMENT = re.compile(r'--?config(?:=(.*))?$', re.DOTALL)
_OVERRIDE = re.compile(r'--?(?:no)?config\.([^=]+)')
_COMPARISON = (
  "; a comparison begins with config = schema.default('compare'), and sets options of the training config config.base "
  "and config.variants = {'<name>': {'<section>.<key>': value}, ...}: see 'Your own comparison' in docs/runs.md"
)


@dataclasses.dataclass(frozen=True)
class Program:
  """Describes one of the programs, `python -m dnt.<name>`.

  Attributes:
    description: the first part of the `--help` output.
    define_flags: defines its flags on the given flag values.
    main: runs the program with the parsed flags.
    default_config: name of the config file in `configs/` if `--config` is not set; None: the program takes no config.
    kinds: the kinds of config files that it takes, from `dnt.config.KINDS`.
    goes_on: whether, without `--config`, it takes the config of the run that is in `--workdir`.
    computes: whether it runs networks itself and therefore keeps freed memory; if not, the processes it starts do.
  """

  description: str
  define_flags: Callable[[flags.FlagValues], None]
  main: Callable[[flags.FlagValues], None]
  default_config: str | None = None
  kinds: Sequence[str] = ()
  goes_on: bool = False
  computes: bool = True


def run(program: Program, argv: Sequence[str] | None = None) -> NoReturn:
  """Parses the flags, runs a program and exits with the code of its outcome.

  Args:
    program: the program to run.
    argv: the command line, with the name first; None: the command line of the process.
  """
  argv = list(sys.argv if argv is None else argv)
  # Python has no object for a stream that was closed before it started (`>&-`).
  sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
  with signals.Watch() as watch:
    try:
      try:
        code = _run(program, argv, watch)
      except KeyboardInterrupt as error:
        code = 128 + (error.number if isinstance(error, signals.Stopped) else signal.SIGINT)
      with signals.hold():
        terminal.check_output()
    except OSError as error:
      if terminal.is_writable(sys.stdout):
        raise  # another file failed
      code = _lose(terminal.OutputError(error))
    except terminal.OutputError as error:
      code = _lose(error)
    if code:
      watch.leave(code)
  if code:
    _leave(code)
  sys.exit(0)


def _lose(error: terminal.OutputError) -> int:
  """Reports that the output cannot be written; returns the exit code."""
  terminal.discard(sys.stdout)
  if error.closed:
    return CLOSED
  _print_error(error)
  return 1


def _run(program: Program, argv: Sequence[str], watch: signals.Watch) -> int:
  """Runs a program and returns its exit code."""
  if any(argument in ('-h', '--help', '--helpfull', '--helpshort') for argument in argv[1:]):
    print(help_text(program))
    return 0
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors='backslashreplace')  # names of files need not be valid text
  logging.use_absl_handler()
  logging.set_verbosity(logging.ERROR)  # hides the messages of the libraries
  try:
    cpu.check()
    if program.computes:
      allocator.tune()
    with terminal.console() as shown:
      try:
        program.main(parse(program, argv))
      except signals.Stopped as stopped:
        if not shown.lost or stopped.number != signal.SIGPIPE:
          raise
    if shown.lost:  # the work saved and stopped
      raise shown.lost
  except Exception as error:
    if watch.raised:
      return 128 + watch.raised
    if isinstance(error, OSError) and error.filename is not None:  # without a name, perhaps the output
      error = errors.of_file(error)
    known = error if isinstance(error, errors.InputError | errors.RunError) else _out_of_bounds(error)
    if not known:
      raise
    _print_error(known)
    return 2 if isinstance(known, errors.InputError) else 1
  return 0


def _out_of_bounds(error: Exception) -> errors.RunError | None:
  """Returns an error of one line if memory or a disk ran out or a number is too large for its type, else None."""
  reason = errors.first_line(error)
  if isinstance(error, OverflowError):
    return errors.RunError(f'a number is too large ({reason}); lower the sizes and numbers of the config or the flags')
  # jax has an error of its own, a RuntimeError, and one code for everything that runs out.
  exhausted = isinstance(error, RuntimeError) and 'RESOURCE_EXHAUSTED' in reason
  if exhausted and any(os.strerror(number) in reason for number in errors.FULL):
    return errors.RunError(f'a disk is full ({reason}); make room and run the same command again')
  if isinstance(error, MemoryError) or exhausted:
    return errors.RunError(
      f'there is not enough memory ({reason}); lower a batch size, config.data.image_size or the size of the network'
    )
  return None


def _nowhere() -> TextIO:
  return open(os.devnull, 'w')


def _print_error(error: Exception) -> None:
  if watched := peers.current():
    watched.explain(str(error))
  try:
    print(f'error: {error}', file=sys.stderr, flush=True)
  except OSError:
    terminal.discard(sys.stderr)


def config(values: flags.FlagValues, program: str = relations.TRAINING) -> Any:
  """Returns the validated config of the command line, of one of the kinds that the program takes.

  What the command line sets replaces other options of the file, see `overrides.unset_replaced`, and is marked, see
  `dnt.config.mark_given`. What a run has determined itself is open again in its config, see `run_config.reopen`.

  Args:
    values: the parsed flags.
    program: the running program, see `relations.PROGRAM`; one with the flag `--mode` is what that says.

  Raises:
    errors.InputError: the schema refuses a key or value, or a key of the command line has no effect. (In a comparison,
      that depends on the variants, so `comparison.plan` checks it.)
  """
  parsed, given = values.config, overrides(values)
  file, _, recorded = str(config_path(values)).partition(':')
  if _reads_runs(file):
    run_config.reopen(parsed, recorded, given)
  if schema.kind(parsed) != 'signal':
    overrides_lib.unset_replaced(parsed.get('base', parsed), [key.removeprefix('base.') for key in given])
  try:
    schema.validate(parsed)
  except errors.InputError as error:
    raise config_files.locate(error, config_path(values), given) from None
  schema.mark_given(parsed, given)
  if schema.kind(parsed) != 'compare':
    schema.check_given(parsed, given, f'--mode={values.mode}' if 'mode' in values else program)
  return parsed


def overrides(values: flags.FlagValues) -> dict[str, object]:
  """Returns the config keys of the command line, with their values."""
  return config_flags.get_override_values(values['config'])


def config_path(values: flags.FlagValues) -> pathlib.Path:
  """Returns the path of the config file."""
  return pathlib.Path(config_flags.get_config_filename(values['config']))


def config_name(values: flags.FlagValues) -> str:
  """Returns the name of the config, after which the default workdir is named.

  It is the name of the file; for the config of a run it is the name of its workdir with `_again`.
  """
  run = run_of_config(values)
  return f'{pathlib.Path(run).resolve().name}_again' if run else config_path(values).stem


def run_of_config(values: flags.FlagValues) -> str:
  """Returns the workdir of the run whose config it is, its address if it is in a bucket; '' if it is that of no run."""
  file, _, recorded = str(config_path(values)).partition(':')
  path = pathlib.Path(recorded)
  return buckets.name(path.parent) if _reads_runs(file) and path.name == workdir_lib.CONFIG else ''


class _PathParser(flags.ArgumentParser[str]):
  """Parses a path, in which `~` is the home folder; the address of a bucket stays as it is."""

  def parse(self, argument: str) -> str:
    return os.path.expanduser(argument)


def define_path(name: str, meaning: str, values: flags.FlagValues) -> None:
  """Defines a flag for the path of a file or folder, which is None if it is not given."""
  flags.DEFINE(_PathParser(), name, None, meaning, values, flags.ArgumentSerializer[str]())


def define_checkpoint(values: flags.FlagValues) -> None:
  """Defines the flag that chooses a checkpoint of the run at `--workdir`, as `pretrained.read_checkpoint` takes it."""
  meaning = 'Checkpoint of the run: newest (or last), best (by config.checkpoint.best_metric) or a step.'
  flags.DEFINE_string('checkpoint', 'newest', meaning, flag_values=values)


def model_source(workdir: str | None, weights: str | None) -> str:
  """Returns the model source given by exactly one of `--workdir` and `--weights`.

  Raises:
    errors.InputError: both or neither are set, or the workdir is not that of a run.
  """
  source = workdir or weights
  if not source or (workdir and weights):
    given = 'not both' if workdir else 'one of them'
    raise errors.InputError(
      f'give {given}: --workdir=<folder of a dnt run>, or --weights=<file>.safetensors, .pth, .h5, .keras, tfjs:<dir> '
      'or hf:<owner>/<name>[@<revision>]'
    )
  if workdir:
    check_run(workdir, '; --weights takes pretrained weights')
  return source


def check_run(workdir: str, hint: str = '') -> None:
  """Refuses a `--workdir` to read that is not that of a run, such as a file of weights or the address of a hub.

  Args:
    workdir: the value of the flag.
    hint: what to do, for the end of the message.

  Raises:
    errors.InputError: no run has written there.
  """
  files.check_workdir(workdir)
  if not _holds_config(workdir):
    raise errors.InputError(f'--workdir={workdir} is no workdir of a dnt run (it has no {workdir_lib.CONFIG}){hint}')


def output_folder(given: str | None, workdir: str | None, name: str) -> pathlib.Path:
  """Returns the folder that a program writes to: that of `--output`, by default one in the workdir that it reads.

  Raises:
    errors.InputError: there is no `--output`, and no workdir that is a folder.
  """
  if not given and (not workdir or buckets.address(workdir)):
    source = '--workdir in a bucket only read it' if workdir else '--weights there is no workdir to write to'
    raise errors.InputError(f'with {source}: give --output=<folder>')
  return pathlib.Path(given or pathlib.Path(workdir or '', name))


def catalogue(configs: pathlib.Path) -> str:
  """Lists the configs of a folder with the first lines of their docstrings, the models and the data sources."""
  from dnt import models
  from dnt.data import sources

  shipped = sorted(configs.glob('*.py'))
  width = max(len(file.name) for file in shipped)
  lines = ['Configs:']
  for file in shipped:
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ''
    lines.append(f'  {file.name:{width}}  {docstring.partition(chr(10))[0]}')
  lines += ['', 'Models (config.model.name):']
  for name, model in models.MODELS.items():
    lines.append(f'  {name:{width}}  {(model.__doc__ or "").partition(chr(10))[0]}')
  lines += [
    f'  {"mypkg.nets:Net":{width}}  Your own Flax module, by import path.',
    f'  {models.PRETRAINED:{width}}  The network of the weights at config.train.init_from.',
    '',
  ]
  lines += ['Data sources (config.data.source):', *(f'  {name}' for name in sources.names())]
  return '\n'.join(lines)


def help_text(program: Program) -> str:
  """Lists the flags of a program, the config keys of its kinds, with valid values and relations, and its exit codes."""
  lines = [program.description.strip(), '', 'Flags:']
  values = _define(program, [])
  for name in sorted(values):
    flag = values[name]
    default = '' if flag.default in (None, False) else f' (default: {flag.default})'
    lines.append(f'  --{flag.name}: {flag.help}{default}')
  if program.kinds:
    lines += ['', 'Config keys (--config.<key>=<value>):']
  for key, option in _options(program.kinds).items():
    lines.append(f'  {key} {_describe(option)}')
  lines += ['', EXIT_CODES]
  return '\n'.join(lines)


def _describe(option: schema.Option) -> str:
  default = f'{option.type.__name__}, not set' if isinstance(option.default, type) else repr(option.default)
  parts = [f'({default}): {option.help}']
  choices = option.choices or ((True, False) if option.type is bool else ())
  if option.words:
    parts.append(f'a number or {" or ".join(option.words)}')
  if choices:
    parts.append(f'{"any" if option.type is tuple else "one"} of: {", ".join(map(str, choices))}')
  if option.only:
    parts.append(f'with {relations.describe(option.only)}')
  return '; '.join(parts)


def _define(program: Program, argv: list[str]) -> flags.FlagValues:
  values = flags.FlagValues()
  program.define_flags(values)
  if program.kinds:
    recorded = ', or the workdir of a run, to run its config again' if 'train' in program.kinds else ''
    description = (
      f'Config file{recorded}; set any key with --config.section.key=value (None: not set, as far as it has no default '
      'or an empty one).'
    )
    config_flags.DEFINE_config_file('config', None, description, flag_values=values, sys_argv=argv)
  return values


def _options(kinds: Sequence[str]) -> dict[str, schema.Option]:
  return {key: option for kind in kinds for key, option in schema.OPTIONS[kind].items()}


def parse(program: Program, argv: Sequence[str]) -> flags.FlagValues:
  """Parses a command line.

  Args:
    program: the program whose flags to parse.
    argv: the command line, with the name first.

  Raises:
    errors.InputError: a flag, key or value is not valid, or the config file cannot be read.
  """
  argv = list(argv)
  if not program.kinds:
    return _parse_flags(program, argv)
  known = _options(program.kinds)
  for argument in argv[1:]:
    match = _OVERRIDE.match(argument)
    if match and match[1] not in known:
      raise errors.unknown('config key', match[1], known)
  named, argv = _take_config(argv)
  given = _run_at_workdir(program, argv) if named is None and program.goes_on else named
  assert program.default_config is not None  # programs that take configs have one
  shown = str(CONFIGS / program.default_config) if given is None else _shipped(os.path.expanduser(given))
  chosen = _recorded(shown)
  argv, unset = _without_none([argv[0], f'--config={chosen}', *argv[1:]], known)
  file = pathlib.Path(chosen.partition(':')[0])
  _search_beside(file)
  values = _define(program, argv)
  try:
    rest = values(argv)
    kind = schema.kind(values.config)  # a file that failed to load raises here, not before
  except flags.UnrecognizedFlagError as error:
    valid = [*(f'--{name}' for name in values), *(f'--config.{key}' for key in known)]
    raise errors.unknown('flag', error.flagname, valid) from error
  except flags.Error as error:
    if 'Traceback' in str(error):  # the message holds the traceback of a ValueError in a config file
      raise config_files.explain(error, file, shown) from error
    raise _refused(error) from error
  except OSError as error:
    raise (config_files.explain(error, file, shown) if file.is_file() else _missing(shown)) from error
  except Exception as error:  # a config file is code: any exception is bad input
    raise config_files.explain(error, file, shown) from error
  config_files.check_result(values.config, shown)
  if kind not in program.kinds:
    taken = ', '.join(program.kinds)
    way = _COMPARISON if 'compare' in program.kinds else ''
    raise errors.InputError(f'{shown!r} is a {kind} config; this program takes: {taken}{way}')
  for key in unset:
    if key not in schema.OPTIONS[kind]:
      raise errors.InputError(f'{shown!r} is a {kind} config, which has no key {key!r}')
  # A text that is empty by default, such as a folder, is not set either.
  empty = [key for key, value in overrides(values).items() if value == 'None' and known[key].default == '']
  for key, value in (dict.fromkeys(unset) | dict.fromkeys(empty, '')).items():
    keys.put(values.config, key, value)
    overrides(values)[key] = value
  _refuse_rest(rest, argv, values)
  values['config'].present *= named is not None  # it is not on the command line
  return values


def _parse_flags(program: Program, argv: list[str]) -> flags.FlagValues:
  """Parses the flags of a program without a config."""
  if any(_CONFIG_ARGUMENT.match(argument) or _OVERRIDE.match(argument) for argument in argv[1:]):
    raise errors.InputError('this program takes no --config: it reads the config from the run or the weights')
  values = _define(program, argv)
  try:
    _refuse_rest(values(argv), argv, values)
  except flags.Error as error:
    raise _refused(error) from error
  return values


def _refuse_rest(rest: list[str], argv: list[str], values: flags.FlagValues) -> None:
  """Refuses arguments that belong to no flag, such as the further files for which a shell replaces a glob."""
  if not rest[1:]:
    return
  end = argv.index(rest[1]) if rest[1] in argv else 0  # it is not if it came from a --flagfile
  before = [argument for argument in argv[:end] if argument.startswith('-')]
  name = before[-1].lstrip('-').partition('=')[0] if before else ''
  hint = ''
  if name == 'images':
    hint = "; several images are a folder or a glob in quotes: --images='photos/*.png'"
  elif name in values and isinstance(values[name].parser, flags.ListParser):
    hint = f'; several values are written with commas: --{name}=a,b'
  raise errors.InputError(f'unexpected argument {rest[1]!r}; options are written --name=value{hint}')


def _refused(error: flags.Error) -> errors.InputError:
  return errors.InputError(f'{error} (--help lists the flags)')


def _search_beside(file: pathlib.Path) -> None:
  """Makes Python find the modules beside a user's config file first, as it does for a script."""
  folder = str(file.absolute().parent)
  if not _reads_runs(file) and folder != str(CONFIGS) and folder not in sys.path[:1]:
    sys.path.insert(0, folder)


def _reads_runs(file: str | pathlib.Path) -> bool:
  """Returns whether a config file is that of dnt which reads the configs of runs, by whatever path."""
  return pathlib.Path(file).resolve() == pathlib.Path(run_config.__file__).resolve()


def _take_config(argv: list[str]) -> tuple[str | None, list[str]]:
  """Returns the value of --config, of several the last as of other flags, and the arguments without it.

  Raises:
    errors.InputError: the value is missing.
  """
  value, others, rest = None, [], iter(argv)
  for argument in rest:
    match = _CONFIG_ARGUMENT.match(argument)
    if match is None:
      others.append(argument)
      continue
    value = next(rest, None) if match[1] is None else match[1]
    if value is None:
      raise errors.InputError('--config has no value: write --config=<file> (--help says what it takes)')
  return value, others


def _run_at_workdir(program: Program, argv: list[str]) -> str | None:
  """Returns the value of `--workdir` if a run has written its config there, else None."""
  values = flags.FlagValues()
  program.define_flags(values)
  values.set_gnu_getopt()  # values of --config.<key> may stand apart
  with contextlib.suppress(flags.Error):  # which is refused when all flags are parsed
    values(argv, known_only=True)
  workdir = values['workdir'].value
  return workdir if workdir and _holds_config(workdir) else None


def _holds_config(workdir: str) -> bool:
  return (buckets.local(workdir) / workdir_lib.CONFIG).is_file()


def _shipped(given: str) -> str:
  """Returns the path of a config file that comes with dnt if its bare name is given, else what is given."""
  name, colon, argument = given.partition(':')
  path = pathlib.Path(name)
  file = CONFIGS / f'{path.name.removesuffix(".py")}.py'
  # README names them from the clone.
  if ('/' in name and path.parent != pathlib.Path('configs')) or path.exists() or not file.is_file():
    return given
  return f'{file}{colon}{argument}'


def _missing(shown: str) -> errors.InputError:
  """Makes the error for a config file that is not there."""
  path = pathlib.Path(shown.partition(':')[0])
  if path.is_dir():
    return errors.InputError(f'--config={shown} is a folder, and no workdir of a run (it has no {workdir_lib.CONFIG})')
  near = errors.nearest(path.stem, [file.stem for file in CONFIGS.glob('*.py')])
  hint = f'; did you mean --config={near}, which comes with dnt?' if near else ', and dnt has none of this name;'
  return errors.InputError(
    f'there is no config file at {shown!r}{hint} python -m dnt.main --list shows the configs of dnt'
  )


def _recorded(given: str) -> str:
  """Returns, for the workdir of a run or its config.json, the config file that reads it, else what is given."""
  if '.py:' in given:  # a config file with an argument
    return given
  path = buckets.local(given)
  if path.is_dir() and (path / workdir_lib.CONFIG).is_file():
    path /= workdir_lib.CONFIG
  return f'{run_config.__file__}:{path}' if path.suffix == '.json' else given


def _without_none(argv: list[str], known: Mapping[str, schema.Option]) -> tuple[list[str], list[str]]:
  """Takes `--config.<key>=None` out of a command line, which ml_collections does not read.

  Args:
    argv: the command line.
    known: the options by key.

  Returns:
    The other arguments, and the keys that are to be left unset: of options without a default, not set again behind.
  """
  rest, unset = [], dict[str, None]()
  for argument in argv:
    match = _OVERRIDE.match(argument)
    if match and argument.endswith('=None') and isinstance(known[match[1]].default, type):
      unset[match[1]] = None
      continue
    if match:
      unset.pop(match[1], None)
    rest.append(argument)
  return rest, list(unset)


def _leave(code: int) -> None:
  if 'jax' in sys.modules:
    from dnt.parallel import multihost

    multihost.leave(code)  # one of several processes must not wait for the others
  sys.exit(code)
