"""Makes folders that are removed when the program ends, also by a signal: by any way but a kill."""

import atexit
import pathlib
import shutil
import tempfile

_made: list[pathlib.Path] = []


def make_folder(prefix: str) -> pathlib.Path:
  """Makes a folder in the system's one for temporary files, with a name that begins with `prefix`."""
  _made.append(pathlib.Path(tempfile.mkdtemp(prefix=prefix)))
  return _made[-1]


@atexit.register
def remove_folders() -> None:
  """Removes the folders; `parallel.signals` calls it where a process ends without Python's own cleanup."""
  for folder in _made:
    shutil.rmtree(folder, ignore_errors=True)
