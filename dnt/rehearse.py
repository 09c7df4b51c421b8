"""Compiles the programs of a run for hardware that is not here, and says what would limit it there.

  python -m dnt.rehearse --config=configs/imagenet_resnet50.py --on=v5e:4x4,v5e:16x16,h100:8
  python -m dnt.rehearse --config=configs/cifar_resnet56.py --on=h100:1 --fit

It needs no accelerator: XLA compiles on this machine. TPUs need the package libtpu (pip install ".[tpu]"), GPUs
jax-cuda13-plugin (".[gpu]"). For each target it prints and writes the memory, FLOPs, bytes and collectives of a train
step, the time that they take by the published figures of the chip, and what holds the run back. Images need
not be here: splits of the same size stand in for them. The exit code is 0 if the run fits everywhere, else 1.
"""

import pathlib

from absl import flags

from dnt import cli, errors, files
from dnt import workdir as workdir_lib
from dnt.config import relations


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this program."""
  flags.DEFINE_multi_string(
    'on',
    [],
    'Hardware: v4:2x2x2, v5e:4x4, v5p:2x2x2, v6e:8x8 (a slice of a TPU), 2*v5e:16x16 (two slices), h100:8, cpu:8.',
    flag_values=values,
  )
  cli.define_path('workdir', 'Folder to write the results to; default: runs/rehearse_<name>.', values)
  flags.DEFINE_bool(
    'fit',
    False,
    'Find the largest batch whose train step fits; and if that of the config does not, whether remat or fsdp help.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'stand_in',
    None,
    'Size of data that is not here, <training images>:<classes>, such as 1281167:1000.',
    flag_values=values,
  )


def main(values: flags.FlagValues) -> None:
  """Reads the flags and rehearses; the last line printed is the folder of the results."""
  from dnt.rehearsal import rehearsal, report, stand_in, targets

  config = cli.config(values, relations.REHEARSE)
  chosen = targets.parse(values.on)
  targets.prepare(chosen)
  workdir = pathlib.Path(values.workdir or pathlib.Path('runs') / f'rehearse_{cli.config_name(values)}')
  files.make_workdir(workdir)
  workdir_lib.check_file(workdir / workdir_lib.REHEARSAL)
  config, data = stand_in.load(config, stand_in.parse(values.stand_in) if values.stand_in else None)
  found = [rehearsal.rehearse(config, data, target, bool(values['fit'].value)) for target in chosen]
  report.write(workdir, cli.config_name(values), found)
  print(f'\n{report.text(found)}\nwritten to {workdir}')
  if unfit := [each.target.text for each in found if not each.fits]:
    raise errors.RunError(f'the run does not fit on {", ".join(unfit)}; {workdir} says why')


PROGRAM = cli.Program(__doc__, define_flags, main, 'digits_resnet20.py', ('train',), computes=False)

if __name__ == '__main__':
  cli.run(PROGRAM)
