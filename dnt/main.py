"""Trains, evaluates or examines the network of a config.

  python -m dnt.main --config=configs/digits_resnet20.py
  python -m dnt.main --config=configs/cifar_resnet56.py --workdir=runs/mine --config.train.steps=100
  python -m dnt.main --workdir=runs/mine [--mode=evaluate]

The same command continues where the last one stopped, and so does --workdir=<run> alone, which has the config of the
run. Ctrl-C, SIGTERM or a closed terminal saves and stops; a second Ctrl-C stops at once.
"""

import logging
import os
import pathlib
import shlex
import signal
import sys
import time

from absl import flags

from dnt import buckets, cli, errors, files

_log = logging.getLogger('dnt.main')  # not __name__, which is '__main__' in a program
STARTED = time.monotonic()
MODES = ['train', 'evaluate', 'dead_units', 'noise_scale', 'lr_find']
WITH_CHECKPOINT = ('evaluate', 'dead_units')
MODE_HELP = (
  'train; with the checkpoint at --checkpoint: evaluate, or list dead_units; with the newest one, or where a new run '
  'would start: measure the noise_scale, or find a learning rate (lr_find).'
)


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this program."""
  flags.DEFINE_enum('mode', 'train', MODES, MODE_HELP, flag_values=values)
  cli.define_path(
    'workdir',
    'Folder to write the run to, or gs://<bucket>/<path>. A run that is there gives its config, unless there is '
    '--config. Default: runs/<name of the config>, which is runs/<name>_again for --config=<run>; but with another '
    '--mode than train this run.',
    values,
  )
  cli.define_checkpoint(values)
  flags.DEFINE_list(
    'allow',
    [],
    'Config keys that a run which continues may change although this makes it another experiment, such as '
    'train.batch_size,seed.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'profile',
    0,
    'Number of steps to profile while it trains; the trace is in the folder profile of the workdir, for TensorBoard or '
    'ui.perfetto.dev.',
    0,
    flag_values=values,
  )
  flags.DEFINE_bool(
    'list', False, 'Print the configs, models and data sources that come with dnt, and exit.', flag_values=values
  )
  flags.DEFINE_bool(
    'distributed', False, 'Run as one of several processes, detected on Cloud TPU and Slurm.', flag_values=values
  )
  flags.DEFINE_string('coordinator', None, 'With --distributed elsewhere: host:port of process 0.', flag_values=values)
  flags.DEFINE_integer(
    'num_processes', None, 'With --distributed elsewhere: number of processes of the run.', flag_values=values
  )
  flags.DEFINE_integer(
    'process_id', None, 'With --distributed elsewhere: number of this process, from 0.', flag_values=values
  )
  flags.DEFINE_integer(
    'join_timeout', 300, 'With --distributed: seconds to wait for the other processes.', 1, flag_values=values
  )


def main(values: flags.FlagValues) -> None:
  """Reads the flags and runs; the last line printed is the result and its workdir."""
  if values.list:
    print(cli.catalogue(cli.CONFIGS))
    return
  config = cli.config(values)
  if values.allow and values.mode != 'train':
    raise errors.InputError(f'--allow has no effect with --mode={values.mode}, which does not train')
  if values.profile and values.mode != 'train':
    raise errors.InputError(f'--profile has no effect with --mode={values.mode}, which does not train')
  if values['checkpoint'].present and values.mode not in WITH_CHECKPOINT:
    raise errors.InputError(
      f'--checkpoint has no effect with --mode={values.mode}, which goes on from the newest; it is for --mode='
      f'{" and --mode=".join(WITH_CHECKPOINT)}'
    )
  run = cli.run_of_config(values)
  examined = run if values.mode != 'train' else ''
  given = values.workdir or examined or pathlib.Path('runs') / cli.config_name(values)
  files.check_workdir(given)
  workdir = buckets.address(given) or pathlib.Path(given)
  # A launcher that gives each process its own flags sets this to the command that the user typed.
  command = os.environ.get('DNT_COMMAND') or shlex.join(['python', '-m', 'dnt.main', *sys.argv[1:]])

  from dnt.parallel import compile as compile_lib
  from dnt.parallel import multihost, signals

  compile_lib.enable_cache()
  if values.distributed:
    import dnt
    from dnt.parallel import agreement
    from dnt.training import report

    joining = (values.coordinator, values.num_processes, values.process_id, values.join_timeout)
    versions = {'dnt': dnt.__version__, **report.versions()}
    versions = {f'the version of {name}': version for name, version in versions.items()}
    flags_of_all = {f'--{name}': values[name].value for name in ('mode', 'checkpoint', 'allow')}
    description = agreement.describe(config, cli.config_path(values), {**versions, **flags_of_all})
    multihost.initialize(*joining, stops_itself=values.mode == 'train', description=description)
    compile_lib.keep_cache_if_shared()
  elif values.coordinator or values.num_processes or values.process_id is not None:
    raise errors.InputError('--coordinator, --num_processes and --process_id need --distributed')

  if run and not values['config'].present:
    _log.info(f'the config is that of the run in {run} (--config names another)')

  from dnt import loop
  from dnt.training import evaluate, record, report

  stopped_by = None
  try:
    if values.mode == 'train':
      summary = loop.train(config, workdir, record.Clock(STARTED), command, values.allow, values.profile)
      outcome, stopped_by = report.last_line(summary, command), summary['stopped_by']
    else:
      from dnt.diagnostics import dead_units, lr_find, noise

      with buckets.Mirror(workdir) as mirror:
        if values.mode == 'evaluate':
          outcome = report.evaluation_line(evaluate.evaluate(config, mirror.folder, values.checkpoint))
        elif values.mode == 'dead_units':
          outcome = dead_units.text(dead_units.run(config, mirror.folder, values.checkpoint))
        else:
          tool = {'noise_scale': noise, 'lr_find': lr_find}[values.mode]
          outcome = tool.text(tool.run(config, mirror.folder))
  except evaluate.UnreadableError:  # in all processes
    multihost.part()
    raise
  if multihost.is_lead():
    print(f'{outcome}  {workdir}')
  multihost.part()  # a process that ends before the others have written everything would end them too
  if stopped_by:
    raise signals.Stopped(signal.Signals[stopped_by])


PROGRAM = cli.Program(__doc__, define_flags, main, 'digits_resnet20.py', ('train',), goes_on=True)

if __name__ == '__main__':
  cli.run(PROGRAM)
