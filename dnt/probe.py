"""Examines an untrained network, or compares how signals propagate in random networks with theory.

  python -m dnt.probe --config=configs/cifar_plain56.py [--try]
  python -m dnt.probe --config=configs/probe_grid.py

For a training config, the program examines the network at initialization on one real batch and takes its first ten
steps. It prints a table by entry, a verdict (trainable, vanishing, exploding, collapsing to one direction, dead, step
too large), the entry where the problem begins, and the overrides most likely to fix it, which --try tries. For a grid
(configs/probe_*.py), it measures random networks over many seeds.
"""

import pathlib
import signal

from absl import flags

from dnt import cli, errors
from dnt import config as schema


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this program."""
  flags.DEFINE_string(
    'workdir', None, 'Folder to write the results to; default: runs/probe_<name>.', flag_values=values
  )
  flags.DEFINE_integer(
    'seeds', 3, 'Number of initializations of a training config to examine.', 1, 1000, flag_values=values
  )
  flags.DEFINE_bool('try', False, 'Try the suggested overrides and rank them.', flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Reads the flags and examines; the last line printed is the folder of the findings."""
  config = cli.config(values)
  workdir = pathlib.Path(values.workdir or pathlib.Path('runs') / f'probe_{cli.config_name(values)}')

  from dnt.parallel import compile as compile_lib
  from dnt.parallel import signals

  compile_lib.enable_cache()
  interrupted = False
  if schema.kind(config) == 'signal':
    if values['try'].value or values['seeds'].present:
      raise errors.InputError('--try and --seeds are for training configs; for a grid set config.signal.seeds')
    from dnt.meanfield import grid

    interrupted = grid.run(config, workdir)['interrupted']
  else:
    from dnt.diagnostics import doctor_report

    doctor_report.run(config, workdir, values.seeds, bool(values['try'].value))
  print(f'written to {workdir}')
  if interrupted:
    raise signals.Stopped(signals.received() or signal.SIGINT)


PROGRAM = cli.Program(__doc__, define_flags, main, 'digits_resnet20.py', ('train', 'signal'))

if __name__ == '__main__':
  cli.run(PROGRAM)
