"""Reads the official binary files of CIFAR-10 and CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html)."""

import functools
import pathlib
from typing import NamedTuple

import numpy as np

from dnt import errors
from dnt.config import typed
from dnt.data import examples

PIXELS = 3 * 32 * 32


class _Format(NamedTuple):
  """The files and record layout of a data set; a record has the label bytes, then 3 x 32 x 32 pixels."""

  folder: str
  files: dict[str, tuple[str, ...]]
  names: str
  classes: int
  label_bytes: int
  records: dict[str, int]


FORMATS = (
  _Format(
    folder='cifar-10-batches-bin',
    files={'train': tuple(f'data_batch_{i}.bin' for i in range(1, 6)), 'test': ('test_batch.bin',)},
    names='batches.meta.txt',
    classes=10,
    label_bytes=1,
    records={'train': 10_000, 'test': 10_000},
  ),
  _Format(
    folder='cifar-100-binary',
    files={'train': ('train.bin',), 'test': ('test.bin',)},
    names='fine_label_names.txt',
    classes=100,
    label_bytes=2,  # the coarse label, then the fine one
    records={'train': 50_000, 'test': 10_000},
  ),
)


def cifar_binary(where: str, config: typed.Data, seed: int) -> examples.Splits:
  """Returns the splits of CIFAR-10, or of CIFAR-100 with its fine labels, [32, 32, 3].

  Args:
    where: the folder of the binary files, or its parent folder.

  Raises:
    errors.InputError: files are missing, or their size differs from the official files.
  """
  del config, seed
  folder, form = _find(pathlib.Path(where).expanduser())
  missing = [name for names in form.files.values() for name in names if not (folder / name).is_file()]
  missing += [name for name in (form.names,) if not (folder / name).is_file()]
  if missing:
    raise errors.InputError(f'{folder} lacks {", ".join(missing)} of the official {form.folder} archive')
  class_names = tuple(line for line in (folder / form.names).read_text('utf-8-sig').split('\n') if line.strip())
  if len(class_names) != form.classes:
    raise errors.InputError(f'{folder / form.names} must hold {form.classes} class names, not {len(class_names)}')

  def read(split):
    parts = [_read(folder / name, form, form.records[split]) for name in form.files[split]]
    labels = np.concatenate([part[0] for part in parts])
    images = np.concatenate([part[1] for part in parts])
    return examples.in_memory(f'cifar_binary:{where}', split, images, labels, class_names)

  return {split: functools.partial(read, split) for split in form.files}


def _find(where: pathlib.Path) -> tuple[pathlib.Path, _Format]:
  """Finds the folder that holds the files, and their format."""
  result = []
  for form in FORMATS:
    for folder in (where, where / form.folder):
      if any((folder / name).is_file() for names in form.files.values() for name in names):
        result.append((folder, form))
  if len(result) == 1:
    return result[0]
  if result:
    both = ' and '.join(str(folder) for folder, _ in result)
    raise errors.InputError(f'cifar_binary:{where} holds both {both}; give one of them')
  state = 'holds none of' if where.is_dir() else 'does not exist; expected there:'
  wanted = ' or '.join(f'{form.files["train"][0]} (in it or in {form.folder}/)' for form in FORMATS)
  raise errors.InputError(
    f'cifar_binary:{where} {state} {wanted}: unpack the official "binary version" archive of CIFAR-10 or CIFAR-100'
  )


def _read(path: pathlib.Path, form: _Format, records: int) -> tuple[np.ndarray, np.ndarray]:
  """Reads the labels, uint8 [N], and the images, uint8 [N, 32, 32, 3], of one file."""
  expected, size = records * (form.label_bytes + PIXELS), path.stat().st_size
  if size != expected:
    kind = 'truncated' if size < expected else 'not the official file'
    raise errors.InputError(f'{path} is {kind}: {size} bytes, expected {expected}; unpack the archive again')
  raw = np.fromfile(path, np.uint8).reshape(records, form.label_bytes + PIXELS)
  labels = raw[:, form.label_bytes - 1]
  if labels.max() >= form.classes:
    raise errors.InputError(
      f'{path} is damaged: it holds label {labels.max()}, but valid labels are 0 to {form.classes - 1}'
    )
  return labels, raw[:, form.label_bytes :].reshape(records, 3, 32, 32).transpose(0, 2, 3, 1)
