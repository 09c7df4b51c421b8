"""Examines an untrained network or an ended run, or compares how signals propagate in random networks with theory.

  python -m dnt.probe --config=configs/cifar_plain56.py [--try]
  python -m dnt.probe --workdir=<run>
  python -m dnt.probe --config=configs/probe_grid.py

For a training config, the program examines the network at initialization on one real batch, takes its first ten steps
over several seeds, and trains it for up to 300 steps. With train.init_from it starts from these weights, as a run does,
and suggests no other network. It prints a table by entry, a verdict (trainable, or what keeps it from training), how
likely it is to fail, the entry where the problem begins, what is unusual in the data, and the overrides most likely to
fix it, which --try tries. For the workdir of a run, it says what went wrong and when. For a grid (configs/probe_*.py),
it measures random networks over many seeds.
"""

import pathlib
import signal

from absl import flags

from dnt import buckets, cli, errors, files
from dnt import config as schema
from dnt.config import relations


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this program."""
  cli.define_path(
    'workdir',
    'Folder to write the results to; default: runs/probe_<name>. Without --config: the run to look at.',
    values,
  )
  flags.DEFINE_integer(
    'seeds', 3, 'Number of initializations of a training config to examine.', 1, 1000, flag_values=values
  )
  flags.DEFINE_float(
    'seconds',
    60.0,
    'Limit in seconds for the trials of a training config together, and with --try for each trial of an override.',
    1.0,
    flag_values=values,
  )
  flags.DEFINE_bool('try', False, 'Try the suggested overrides and rank them.', flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Reads the flags and examines; after an examination the last line printed is the folder of the findings."""
  if values.workdir and not values['config'].present:
    from dnt.diagnostics import ended

    if values['try'].value or values['seeds'].present or values['seconds'].present or cli.overrides(values):
      raise errors.InputError('--try, --seeds, --seconds and --config.<key> are for a config: give --config too')
    files.check_workdir(values.workdir)
    workdir = buckets.local(values.workdir)
    print(ended.text(workdir, ended.read(workdir)).replace(str(workdir), buckets.name(workdir)))
    return
  config = cli.config(values, relations.TRYING if values['try'].value else relations.PROBE)
  workdir = pathlib.Path(values.workdir or pathlib.Path('runs') / f'probe_{cli.config_name(values)}')

  from dnt.parallel import compile as compile_lib
  from dnt.parallel import signals

  compile_lib.enable_cache()
  interrupted = False
  if schema.kind(config) == 'signal':
    if values['try'].value or values['seeds'].present or values['seconds'].present:
      raise errors.InputError(
        '--try, --seeds and --seconds are for training configs; for a grid set config.signal.seeds'
      )
    from dnt.meanfield import grid

    interrupted = grid.run(config, workdir)['interrupted']
  else:
    from dnt.diagnostics import doctor_report

    doctor_report.run(config, workdir, values.seeds, bool(values['try'].value), values.seconds)
  print(f'written to {workdir}')
  if interrupted:
    raise signals.Stopped(signals.received() or signal.SIGINT)


PROGRAM = cli.Program(__doc__, define_flags, main, 'digits_resnet20.py', ('train', 'signal'))

if __name__ == '__main__':
  cli.run(PROGRAM)
