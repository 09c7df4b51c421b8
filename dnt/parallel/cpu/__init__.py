"""Lists the tricks that dnt applies on CPU only, and turns them off on request.

| trick | what it does | seconds with it | without |
| --- | --- | --- | --- |
| allocator | freed memory stays with the process (`allocator`) | 0.350 (0.340 to 0.458) | 0.338 (0.328 to 0.375) |
| background | programs compile while others run (`precompile`) | 18.8 (16.4 to 21.7) | 19.6 (17.7 to 21.6) |
| barriers | a convolution's input is computed once (`lowering`) | 0.348 (0.338 to 0.356) | 0.470 (0.448 to 0.488) |
| convolutions | all of them are fast, in loops and for 1x1 kernels (`lowering`) | 0.10 | 9.4 |
| options | barriers stay, convolutions run in Eigen (`options`) | 0.69 (0.39 to 0.71) | 0.77 (0.76 to 1.35) |

Measured on two cores with jax 0.10.2, median (least to most) of three turns, by `python -m benchmarks.tricks`: a step
of ResNet-20, and for `background` a cold run of 100 steps. `allocator` took eight turns of four steps each; no step
became faster on this machine, but one with 64 MB of temporary memory spent 8 to 17 ms of system time instead of 40. The
row `convolutions` is a separate, single measurement of the gradient of two convolutions in a loop (128 images, 32x32,
16 channels); what it saves with 1x1 kernels is in benchmarks/RESULTS.md. Barriers also make a step with telemetry
bit-identical to one without.

A program holds barriers and these convolutions only if jax lowers it for CPU alone. Options and background compilation
depend on the devices of the mesh. The allocator is tuned before jax is imported, in a process that will not use
an accelerator. `DNT_CPU_WITHOUT=barriers,options` turns tricks off.

This module does not import jax.
"""

import os

from dnt import errors

TRICKS = ('allocator', 'background', 'barriers', 'convolutions', 'options')
VARIABLE = 'DNT_CPU_WITHOUT'


def uses(trick: str) -> bool:
  """Returns whether a trick is on: all are, except those that the environment variable `DNT_CPU_WITHOUT` lists.

  Args:
    trick: one of `TRICKS`.
  """
  return trick not in _without()


def check() -> None:
  """Checks the environment variable `DNT_CPU_WITHOUT`.

  Raises:
    errors.InputError: the variable lists an unknown trick.
  """
  for name in _without():
    if name not in TRICKS:
      raise errors.unknown(f'trick in {VARIABLE}', name, TRICKS)


def _without() -> list[str]:
  return [name for name in os.environ.get(VARIABLE, '').split(',') if name]
