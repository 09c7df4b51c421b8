"""Names the files of a workdir and the number of their format."""

import json
import pathlib
import re

from dnt import errors, files

# The number grows if older code can no longer read what is written; older formats are still read.
# 2: the optimizer's state of the parameters that begin to train in phase 1 is `opt_state/phase1`; it was
#    `opt_state/stage1`.
FORMAT = 2

# Files of a run.
VERSION = 'format.json'
OWNER = 'owner.json'  # the process that writes to the workdir, while it lives
CONFIG = 'config.json'
METRICS = 'metrics.jsonl'
CHECKPOINTS = 'checkpoints'
SUMMARY = 'summary.json'
REPORT = 'report.html'
CURVES = 'curves.png'
TELEMETRY = 'telemetry.png'
DEAD_UNITS = 'dead_units.json'
NOISE_SCALE = 'noise_scale.json'
LR_FIND, LR_FIND_PLOT = 'lr_find.json', 'lr_find.png'
# Files of a run that is part of a comparison.
REQUESTED = 'requested.json'  # its config before data and model fill it in
LOG = 'log.txt'
FAILURE = 'failure.json'  # why it failed
# Files of a comparison.
COMPARISON = (OWNER, REPORT, CURVES, 'results.md', 'results.csv', 'results.json')


def confusion_path(workdir: pathlib.Path, split: str) -> pathlib.Path:
  """Returns the file of a split's last evaluation: class names, confusion (true by predicted) and `per_class`."""
  return workdir / f'confusion_{re.sub(r"[^A-Za-z0-9_.-]+", "_", split).strip("_")}.json'


def confusion_paths(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Returns the existing files of `confusion_path`."""
  return sorted(workdir.glob('confusion_*.json'))


def check_format(workdir: pathlib.Path) -> None:
  """Refuses a workdir that newer code has written; a workdir without a number has format 1.

  Raises:
    errors.InputError: its format is unknown to this version, or cannot be read.
  """
  path = workdir / VERSION
  if not path.exists():
    return
  try:
    number = int(json.loads(path.read_bytes())['format'])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise errors.InputError(f'{path}, which holds the format of the workdir, cannot be read ({error})') from error
  check_number(number, str(workdir))


def check_number(number: int, what: str) -> None:
  """Refuses a format that is unknown to this version.

  Args:
    number: number of the format.
    what: the object in this format, for the message.

  Raises:
    errors.InputError: the format is newer than `FORMAT`.
  """
  if number > FORMAT:
    raise errors.InputError(
      f'{what} was written by a newer dnt (format {number}; this version reads up to {FORMAT}): install that version, '
      'or give another --workdir'
    )


def write_format(workdir: pathlib.Path) -> None:
  """Writes the format into an existing workdir."""
  files.write_json(workdir / VERSION, {'format': FORMAT})
