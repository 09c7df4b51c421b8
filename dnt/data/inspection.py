"""Looks at the first and last bytes of image files, for what a user should know before a run starts.

A look takes at most `SECONDS` for a split; then it covers only the files that were read by then. Splits are in random
order, so that these are a random sample. What decides the values of images, the bits that they use, is looked up in the
first files of a split, and does not depend on the time that it takes.
"""

import collections
import itertools
import logging
import os
import struct
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

from dnt import errors
from dnt.config import typed
from dnt.data import examples
from dnt.data.sources import folder
from dnt.data.transforms import images
from dnt.parallel import multihost

SECONDS = 0.5  # longest look at a split; longest time to decode the files that it suspects
SHOWN = 3  # most damaged files that a message names
COMMON_BITS = (8, 10, 12)  # what cameras and scanners store in 16 bits
_THREADS = 8
_BLOCK = 64  # files that a thread reads at once; those that are looked at in any case
_AHEAD = 4  # blocks that wait or are read, for each thread
_HEAD, _TAIL = 2**14, 64  # bytes; metadata comes first, and programs may append a few bytes to the end
_ORIENTATION = 0x0112  # number of the EXIF tag


_log = logging.getLogger(__name__)


def check(splits: Mapping[str, examples.Examples], evaluated: Collection[str], config: typed.Data) -> int | None:
  """Looks at the image files of splits, and logs a line for each property of theirs that the config ignores.

  The lead process looks; all processes call it.

  Args:
    splits: by name; the training split comes first.
    evaluated: names of the splits in which it looks for damaged files, which would stop a run after many steps.
    config: the `data` section of the config.

  Returns:
    The value of `image_bits`, if the config leaves it open and sBIT chunks of the training split name it; else None.

  Raises:
    errors.InputError: an evaluated split has damaged files; the message names them.
  """
  bits, lines, problems = multihost.on_lead(lambda: _inspect(splits, evaluated, config))
  for line in lines:
    _log.info(line)
  if problems:
    more = f'; {len(problems) - SHOWN} more cannot be read either' if len(problems) > SHOWN else ''
    raise errors.InputError('; '.join(problems[:SHOWN]) + more)
  return bits


def _inspect(
  splits: Mapping[str, examples.Examples], evaluated: Collection[str], config: typed.Data
) -> tuple[int | None, list[str], list[str]]:
  """Returns the value of `image_bits` as in `check`, lines for the log, and what is wrong with each damaged file."""
  bits, lines, problems = None, [], []
  for name, split in splits.items():
    if not isinstance(split.store, folder.Files):
      continue
    seen = look(split.store.paths)
    if seen.rotated and not config.exif_rotation:
      lines.append(f'{name}: {describe_rotation(seen)}; config.data.exif_rotation=True applies it')
    usual = not bits and images.decoding(config).bits == images.USUAL.bits
    depth = measure_depth(seen.deep) if usual else None
    if depth and depth.declared and not config.image_bits and name == next(iter(splits)):
      bits = depth.declared
      lines.append(f'{name}: 16-bit images use {bits} bits, as their sBIT chunks say: config.data.image_bits={bits}')
    elif depth and depth.fitting:
      lines.append(
        f'{name}: {describe_depth(depth)}; if their values have {depth.fitting} bits, set '
        f'config.data.image_bits={depth.fitting}'
      )
    if name in evaluated:
      problems += damaged(seen.suspects)
  return bits, lines, problems


def describe_rotation(seen: 'Seen') -> str:
  """Says in how many files an EXIF orientation is ignored."""
  return (
    f'{seen.rotated:,} of {seen.looked:,} images have an EXIF orientation other than 1, which is ignored, as by the '
    'loaders of torchvision and timm'
  )


def describe_depth(depth: 'Depth') -> str:
  """Says that the values of 16-bit images use few of the bits that are read."""
  return f'the largest value in {depth.count:,} 16-bit images is {depth.largest:,}, so that they look black'


class Seen(NamedTuple):
  """Holds what a look found.

  Attributes:
    looked: number of files that were looked at, the first ones.
    rotated: number of those with an EXIF orientation other than 1, which Pillow does not apply by itself.
    deep: paths of those among the first `_BLOCK` that may have 16-bit channels, each with the bits that its sBIT chunk
      says are used, or None.
    suspects: paths of those that may be cut off or damaged.
  """

  looked: int
  rotated: int
  deep: tuple[tuple[str, int | None], ...]
  suspects: tuple[str, ...]


class _File(NamedTuple):
  """Holds what the bytes of a file show; see `Seen`."""

  rotated: bool = False
  deep: bool = False
  bits: int | None = None
  suspect: bool = False


def look(paths: Sequence[str]) -> Seen:
  """Looks at files until `SECONDS` have passed, and at a few in any case."""
  found = _in_time(_look, paths, _BLOCK)
  both = list(zip(paths, found, strict=False))
  return Seen(
    looked=len(found),
    rotated=sum(file.rotated for file in found),
    deep=tuple((path, file.bits) for path, file in both[:_BLOCK] if file.deep),
    suspects=tuple(path for path, file in both if file.suspect),
  )


def damaged(suspects: Sequence[str]) -> list[str]:
  """Decodes files like `look`, and returns the error messages of those that cannot be read."""

  def problem(path):
    try:
      images.decode(path, path)
    except errors.InputError as error:
      return str(error)
    return None

  return [each for each in _in_time(problem, suspects, _THREADS) if each]


class Depth(NamedTuple):
  """Holds how many bits the values of the 16-bit images of a split use; see `measure_depth`.

  Attributes:
    declared: the bits that sBIT chunks name, where no value is larger; None: there is no such chunk, or a value is.
    fitting: the smallest of `COMMON_BITS` that all values fit in; None: none of them.
    largest: the largest value.
    count: number of images whose values were read.
  """

  declared: int | None
  fitting: int | None
  largest: int
  count: int


def measure_depth(deep: Sequence[tuple[str, int | None]]) -> Depth | None:
  """Reads the values of 16-bit images until one needs more bits than `COMMON_BITS` and sBIT chunks name.

  By the PNG standard, values of fewer bits are scaled to the 16 bits of the file. Programs that do not scale them make
  images that look black. One image cannot show which of both it is, so that this looks at a sample of a split.

  Args:
    deep: from `look`.

  Returns:
    None if there are no 16-bit images.
  """
  largest, count, deadline = 0, 0, time.monotonic() + SECONDS
  named = [bits for _, bits in deep if bits]
  declared = max(named) if named and len(named) == len(deep) else None
  most = max(declared or 0, *COMMON_BITS)
  with futures.ThreadPoolExecutor(_THREADS, 'depth') as pool:
    for value in pool.map(_largest_value, [path for path, _ in deep]):
      if value is not None:
        largest, count = max(largest, value), count + 1
      # Where no chunk names the bits, this is for a hint alone, which must not take long.
      if largest >= 2**most or (declared is None and time.monotonic() > deadline):
        pool.shutdown(cancel_futures=True)
        break
  if not count:
    return None
  fits = [bits for bits in (declared, *COMMON_BITS) if bits and largest < 2**bits]
  return Depth(declared if declared in fits else None, min(fits, default=None), largest, count)


def _largest_value(path: str) -> int | None:
  try:
    return images.largest_value(path)
  except Exception:  # reading the image for the run reports it
    return None


def _in_time(function: Callable[[str], Any], paths: Sequence[str], least: int) -> list[Any]:
  """Returns the results of the first paths: of at least `least`, and of as many as threads finish in `SECONDS`."""
  deadline, size = time.monotonic() + SECONDS, max(1, min(_BLOCK, len(paths) // _THREADS))

  def block(start: int) -> list[Any]:
    late = start >= least and time.monotonic() > deadline
    return [] if late else list(map(function, paths[start : start + size]))

  result, starts = [], iter(range(0, len(paths), size))
  with futures.ThreadPoolExecutor(_THREADS, 'look') as pool:
    # A few blocks at a time, because to submit those of millions of files takes many times as long as the look.
    pending = collections.deque(pool.submit(block, start) for start in itertools.islice(starts, _AHEAD * _THREADS))
    while pending and (each := pending.popleft().result()):  # without a block, later ones are no prefix
      result += each
      pending.extend(pool.submit(block, start) for start in itertools.islice(starts, 1))
    pool.shutdown(cancel_futures=True)
  return result


def _look(path: str) -> _File:
  try:
    number = os.open(path, os.O_RDONLY)
    try:
      head, size = os.pread(number, _HEAD, 0), os.fstat(number).st_size
      tail = head[-_TAIL:] if size <= _HEAD else os.pread(number, _TAIL, size - _TAIL)
    finally:
      os.close(number)
  except OSError:
    return _File(suspect=True)
  return _examine(path, head, tail, size)


def _examine(path: str, head: bytes, tail: bytes, size: int) -> _File:
  """Returns what the first and last bytes of a file show by its format; an unknown format is suspect."""
  if head.startswith(b'\xff\xd8'):
    start = head.find(b'Exif\0\0')
    return _File(rotated=start > 0 and _is_rotated(head[start + 6 :]), suspect=b'\xff\xd9' not in tail)
  if head.startswith(b'\x89PNG'):
    start = head.find(b'eXIf')
    deep = head[24:25] == b'\x10'  # bits per channel
    return _File(start > 0 and _is_rotated(head[start + 4 :]), deep, _sbit(head) if deep else None, b'IEND' not in tail)
  if head.startswith(b'RIFF'):
    has_exif = head[12:16] == b'VP8X' and bool(head[20] & 8)
    return _File(has_exif and _is_rotated_webp(path), suspect=int.from_bytes(head[4:8], 'little') + 8 > size)
  if head.startswith(b'GIF8'):
    return _File(suspect=not tail.rstrip(b'\0').endswith(b';'))
  if head.startswith((b'II*\0', b'MM\0*')):
    return _File(deep=True, suspect=int.from_bytes(head[4:8], 'little' if head[:1] == b'I' else 'big') >= size)
  if head.startswith((b'\0\0\0\x0cjP', b'\xff\x4f\xff\x51')):  # JPEG 2000
    return _File(deep=True, suspect=b'\xff\xd9' not in tail)
  if head.startswith((b'P2', b'P5', b'P6')):
    return _File(deep=True)
  return _File(suspect=not head.startswith((b'P1', b'P3', b'P4', b'BM', b'\x0a', b'qoif')))


def _is_rotated(exif: bytes) -> bool:
  """Returns whether the first directory of EXIF data holds an orientation other than 1."""
  order = {b'II': '<', b'MM': '>'}.get(exif[:2])
  if order is None or len(exif) < 8:
    return False
  (start,) = struct.unpack(f'{order}I', exif[4:8])
  (count,) = struct.unpack(f'{order}H', exif[start : start + 2].ljust(2, b'\0'))
  for entry in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
    tag, _, _, value = struct.unpack(f'{order}HHIH', exif[entry : entry + 10])
    if tag == _ORIENTATION:
      return 2 <= value <= 8
  return False


def _is_rotated_webp(path: str) -> bool:
  try:  # its EXIF data come after the pixels
    with images.opened(path) as image:
      return 2 <= image.getexif().get(_ORIENTATION, 1) <= 8
  except Exception:  # reading the image for the run reports it
    return False


def _sbit(head: bytes) -> int | None:
  """Returns the largest number of bits that the sBIT chunk of a PNG says are used, if it is below 16."""
  start, end = head.find(b'sBIT'), head.find(b'IDAT')
  if not 4 <= start < (end if end > 0 else len(head)):
    return None
  bits = max(head[start + 4 : start + 4 + int.from_bytes(head[start - 4 : start], 'big')], default=16)
  return max(bits, 8) if bits < 16 else None
