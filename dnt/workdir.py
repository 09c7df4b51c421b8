"""Names the files of a workdir and the number of their format."""

import logging
import os
import pathlib
import re
from typing import Any, NoReturn

from dnt import buckets, errors, files

_log = logging.getLogger(__name__)

# The number grows if older code can no longer read what is written; older formats are still read.
# 2: the optimizer's state of the parameters that begin to train in phase 1 is `opt_state/phase1`; it was
#    `opt_state/stage1`.
# 3: `val` may be held out of `train`, as `data.hold_out` in config.json says; config.json and summary.json have
#    `provenance`.
FORMAT = 3

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
EVALUATION = 'evaluation.json'  # of `--mode=evaluate`
PROFILE = 'profile'  # folder of traces
LR_FIND, LR_FIND_PLOT = 'lr_find.json', 'lr_find.png'
# Those with names that files of other programs may have; a run replaces them.
COMMON = (CONFIG, METRICS, SUMMARY, REPORT, CURVES, TELEMETRY)
# Files of the probe, whose JSON holds the number of the format itself: their folder need not be that of a run.
PROBE, PROBE_PLOT = 'probe.json', 'probe.png'
SIGNAL, SIGNAL_TABLES = 'signal.json', 'signal.md'
# Files of an explanation.
EXPLANATION, EXPLANATION_PAGE = 'explain.json', 'explain.html'
# Files of a rehearsal.
REHEARSAL, REHEARSAL_TABLES, REHEARSAL_PAGE = 'rehearsal.json', 'rehearsal.md', 'rehearsal.html'
# Files of a run that is part of a comparison.
REQUESTED = 'requested.json'  # its config before data and model fill it in
SOURCE = 'source.json'  # digest of the weights that it received, if it starts from another run
LOG = 'log.txt'
FAILURE = 'failure.json'  # why it failed
# Files of a comparison.
RESULTS, RESULTS_CSV, RESULTS_TABLES = 'results.json', 'results.csv', 'results.md'
COMPARISON = (OWNER, REPORT, CURVES, RESULTS, RESULTS_CSV, RESULTS_TABLES)
CELLS = ('true', 'predicted', 'count')  # of a confusion matrix, see `dnt.reporting.confusion`


def checkpoints(workdir: str | os.PathLike) -> pathlib.Path:
  """Returns the folder of a run's checkpoints, which Orbax writes; for a mirror, that in the bucket."""
  if where := buckets.address(workdir):
    return buckets.path(where) / CHECKPOINTS
  return pathlib.Path(workdir).absolute() / CHECKPOINTS


def confusion_path(workdir: pathlib.Path, split: str) -> pathlib.Path:
  """Returns the file of a split's last evaluation: class names, confusion (true by predicted) and `per_class`."""
  readable = split.replace(':', '-').replace('%', 'pct')  # other slices of a split have other files
  return workdir / f'confusion_{re.sub(r"[^A-Za-z0-9_.-]+", "_", readable).strip("_")}.json'


def confusion_paths(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Returns the existing files of `confusion_path`."""
  return sorted(workdir.glob('confusion_*.json'))


def read_confusion(path: pathlib.Path) -> dict[str, Any] | None:
  """Returns the content of a `confusion_path`; None if it is damaged, with a line that says so."""

  def are(values, kind):
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)

  def is_matrix(matrix, classes):
    if not isinstance(matrix, dict):
      return len(matrix) == classes and all(are(row, int) and len(row) == classes for row in matrix)
    columns = [matrix[name] for name in CELLS]
    good = all(are(column, int) and len(column) == len(columns[0]) for column in columns)
    return good and all(0 <= place < classes for places in columns[:2] for place in places)

  try:
    content = files.read_object(path)
    names, matrix = content['class_names'], content['matrix']
    columns = content.get('per_class', {}).values()  # older versions have none
    good = isinstance(content['split'], str) and isinstance(content['step'], int) and are(names, str)
    good = good and is_matrix(matrix, len(names))
    good = good and all(are(column, int | float | None) and len(column) == len(names) for column in columns)
  except (errors.InputError, KeyError, TypeError, AttributeError):
    good, content = False, None
  if not good:
    _log.info(f'{path} is damaged and is left out; an evaluation writes it again')
  return content if good else None


def check_format(workdir: pathlib.Path) -> None:
  """Refuses a workdir that newer code has written; a workdir without a number has format 1.

  Raises:
    errors.InputError: its format is unknown to this version, or cannot be read.
  """
  path = workdir / VERSION
  if not path.exists():
    return
  try:
    number = int(files.read_object(path)['format'])
  except (ValueError, KeyError, TypeError, OverflowError) as error:
    raise errors.InputError(
      f'{path}, which holds the format of the workdir, cannot be read ({error}). If this version of dnt wrote the '
      'workdir, delete the file; else give another --workdir'
    ) from error
  check_number(number, str(workdir))


def refuse_others(path: pathlib.Path, what: str, flag: str = '--workdir') -> NoReturn:
  """Raises the error of a file that dnt would replace, and that another program has written.

  Args:
    path: path of the file.
    what: what would replace it, for the message.
    flag: command line flag that names the folder, for the message.

  Raises:
    errors.InputError: always.
  """
  raise errors.InputError(
    f'{buckets.name(path)} is not of {what}, which would replace it: give another {flag}, or move that file away'
  )


def check_file(path: pathlib.Path) -> None:
  """Refuses to replace a JSON file that newer code has written; one that has no number, or is damaged, is replaced.

  Raises:
    errors.InputError: its format is unknown to this version.
  """
  try:
    number = files.read_object(path).get('format')
  except errors.InputError:
    return
  if isinstance(number, int):
    check_number(number, str(path))


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
