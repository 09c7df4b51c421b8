"""Trains, evaluates or examines the network of a config.

  python -m dnt.main --config=configs/digits_resnet20.py
  python -m dnt.main --config=configs/cifar_resnet56.py --workdir=runs/mine --config.train.steps=100

The same command goes on where the last one stopped. Ctrl-C saves and stops; a second one stops at once.
"""

import os
import pathlib
import shlex
import sys
import time

from absl import flags

from dnt import cli, errors

ROOT = pathlib.Path(__file__).parents[1]
MODES = ['train', 'evaluate', 'dead_units', 'noise_scale', 'lr_find']
MODE_HELP = 'Train; or, from the newest checkpoint: evaluate; name dead_units; measure the noise_scale; lr_find.'
MODE = flags.DEFINE_enum('mode', 'train', MODES, MODE_HELP)
WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run is written; default: runs/<name of the config>.')
LIST = flags.DEFINE_bool('list', False, 'Print the configs, models and data sources that come with dnt, and exit.')
DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'Run as one of several processes (found on Cloud TPU and Slurm).')
COORDINATOR = flags.DEFINE_string('coordinator', None, 'With --distributed elsewhere: host:port of process 0.')
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'With --distributed elsewhere: processes of the run.')
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'With --distributed elsewhere: number of this process, from 0.')
JOIN_TIMEOUT = flags.DEFINE_integer('join_timeout', 300, 'With --distributed: seconds to wait for the others.', 1)


def main(start: float) -> None:
  """Reads the flags and runs; prints the result and where it is as the last line."""
  if LIST.value:
    print(cli.catalogue(ROOT / 'configs'))
    return
  config = cli.config()
  workdir = pathlib.Path(WORKDIR.value or pathlib.Path('runs') / cli.config_path().stem)
  # A launcher that gives each process flags of its own says what the user typed.
  command = os.environ.get('DNT_COMMAND') or shlex.join(['python', '-m', 'dnt.main', *sys.argv[1:]])

  from dnt.parallel import compile as compile_lib
  from dnt.parallel import multihost

  compile_lib.enable_cache()
  if DISTRIBUTED.value:
    joining = (COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, JOIN_TIMEOUT.value)
    multihost.initialize(*joining, stops_itself=MODE.value == 'train')
  elif COORDINATOR.value or NUM_PROCESSES.value or PROCESS_ID.value is not None:
    raise errors.InputError('--coordinator, --num_processes and --process_id need --distributed')

  from dnt import evaluate, record, report, train

  if MODE.value == 'train':
    outcome = report.last_line(train.train(config, workdir, record.Clock(start), command), command)
  elif MODE.value == 'evaluate':
    outcome = report.evaluation_line(evaluate.evaluate(config, workdir))
  else:
    from dnt.diagnostics import dead_units, lr_find, noise

    tool = {'dead_units': dead_units, 'noise_scale': noise, 'lr_find': lr_find}[MODE.value]
    outcome = tool.text(tool.run(config, workdir))
  if multihost.is_lead():
    print(f'{outcome}  {workdir}')


if __name__ == '__main__':
  start = time.monotonic()
  cli.run(lambda: main(start), __doc__, ROOT / 'configs' / 'digits_resnet20.py')
