"""Versions of installed packages, for the record of a run."""

import contextlib
import platform
from collections.abc import Iterable
from importlib import metadata


def find(packages: Iterable[str]) -> dict[str, str]:
  """Returns the version of Python and those of the packages that are installed, by name."""
  found = {'python': platform.python_version()}
  for name in packages:
    with contextlib.suppress(metadata.PackageNotFoundError):
      found[name] = metadata.version(name)
  return found
