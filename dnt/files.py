"""Files that are replaced as one change: whoever reads them, or is killed writing them, leaves the old or the new."""

import json
import os
import pathlib
from typing import Any


def write(path: str | os.PathLike, content: str | bytes) -> None:
  """Replaces the file at `path` by `content` (text as UTF-8)."""
  path = pathlib.Path(path)
  partial = path.with_name(f'{path.name}.partial')
  with partial.open('wb') as file:
    file.write(content.encode() if isinstance(content, str) else content)
    file.flush()
    os.fsync(file.fileno())
  partial.replace(path)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Replaces the file at `path` by `value` as indented JSON; NaN and infinities, which JSON lacks, raise ValueError."""
  write(path, json.dumps(value, indent=2, allow_nan=False) + '\n')
