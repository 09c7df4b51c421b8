"""Finds image files in and below a folder, and counts the files that it skips."""

import collections
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

# Formats of single images that Pillow reads in every build. A fixed list, so that all versions find the same files.
SUFFIXES = (
  *('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm', '.pbm', '.pnm'),
  *('.jfif', '.jpe', '.apng', '.dib', '.jp2', '.j2k', '.jpf', '.jpx', '.j2c', '.jpc', '.tga', '.pcx', '.qoi'),
)
_SUFFIX = re.compile(r'\.(?!\d+$)\w{1,7}')  # no number, such as the end of `1.2.840.78`, the name of a DICOM file
# Folders that systems and unpackers make, beside those whose name begins with a dot. They hold copies and previews.
_SYSTEM = ('@eadir', '__macosx', '#recycle', '$recycle.bin', 'system volume information', 'lost+found')


class Found(NamedTuple):
  """The sorted paths of image files, and the number of skipped files or folders by reason."""

  paths: list[str]
  skipped: collections.Counter[str]


def is_skipped(name: str) -> bool:
  """Returns whether a file or folder of this name is hidden or made by a system, so that nothing in it counts."""
  return name.startswith('.') or name.lower() in _SYSTEM


def is_image(name: str) -> bool:
  """Returns whether the name has a suffix of `SUFFIXES`, in upper or lower case."""
  return os.path.splitext(name)[1].lower() in SUFFIXES


def find(base: pathlib.Path) -> Found:
  """Finds all image files in and below a folder; follows links to files and to folders.

  It reads no folder twice, whatever links to it, and follows no link to a folder that holds `base`. It skips hidden
  files and folders and those of systems. A link to a missing image counts as an image, so that reading it names it.
  """
  skipped = collections.Counter()
  paths = []
  for path in _walk(base, skipped):
    name = os.path.basename(path)
    if is_image(name):
      paths.append(path)
    else:
      suffix = os.path.splitext(name)[1].lower()
      skipped[suffix if _SUFFIX.fullmatch(suffix) else 'without a known suffix'] += 1
  return Found(sorted(paths), skipped)


def reasons(skipped: collections.Counter[str]) -> list[str]:
  """Says how many files or folders were skipped for each reason, the most first."""
  return [f'{count:,} {reason}' for reason, count in sorted(skipped.items(), key=lambda item: (-item[1], item[0]))]


def holds_images(base: pathlib.Path) -> bool:
  """Returns whether there is an image in or below a folder; stops at the first."""
  return any(is_image(path) for path in _walk(base, collections.Counter()))


def real_folders(paths: Iterable[str]) -> dict[str, str]:
  """Returns the path without links of each folder that holds one of the files, by its path among theirs."""
  return {folder: os.path.realpath(folder) for folder in {_split(path)[0] for path in paths}}


def count_shared(paths: Collection[str], others: Collection[str]) -> int:
  """Returns how many files are among others, whatever links lead to the folders of both.

  A link to a file counts as a file of its own.
  """
  mine, theirs = real_folders(paths), real_folders(others)
  common = {*mine.values()} & {*theirs.values()}

  def real(paths, folders):
    split = map(_split, paths)
    return {(folders[folder], name) for folder, name in split if folders[folder] in common}

  return len(real(paths, mine) & real(others, theirs)) if common else 0


def _split(path: str) -> tuple[str, str]:
  """Returns the folder, with the slash at its end, and the name; several times as fast as `os.path.split`."""
  place = path.rfind(os.sep) + 1
  return path[:place], path[place:]


def _walk(base: pathlib.Path, skipped: collections.Counter[str]) -> Iterator[str]:
  """Yields the paths of the files in and below `base`, and counts what it skips."""
  top = _identity(str(base))
  seen = {_identity(str(each)) for each in base.resolve().parents} - {top}
  # Real folders come before links, so that a folder keeps its own path when a link beside it leads there too.
  folders, links = [str(base)], collections.deque()
  while folders or links:
    folder = folders.pop() if folders else links.popleft()
    identity = _identity(folder)
    if identity in seen:
      skipped['links to a folder that is read already or holds this one'] += 1
      continue
    seen.add(identity)
    try:
      entries = list(os.scandir(folder))
    except OSError:
      skipped['folders that cannot be opened'] += 1
      continue
    for entry in sorted(entries, key=lambda each: each.name):
      linked = entry.is_symlink()
      if is_skipped(entry.name):
        skipped['hidden or of a system'] += 1
      elif os.path.isdir(entry.path) if linked else entry.is_dir():
        (links if linked else folders).append(entry.path)
      elif linked and not os.path.exists(entry.path) and not is_image(entry.name):
        skipped['links that lead nowhere'] += 1
      elif linked or entry.is_file():
        yield entry.path


def _identity(path: str) -> tuple[int, int]:
  stat = os.stat(path)
  return stat.st_dev, stat.st_ino
