"""The options of a part of the accelerator benchmark, and what it has of its time."""

import dataclasses
import json
import pathlib
import time
from typing import Any


@dataclasses.dataclass(frozen=True)
class Options:
  """Holds the options of one part.

  Attributes:
    seconds: that it should take at most; it is stopped soon after.
    tiny: sizes for a test on CPU.
    work: folder for what may be used again, such as runs and caches.
    data: folder of unpacked data sets; empty: none.
    tests: files to test instead of those chosen; empty: those.
    torch_modes: modes of torch.compile.
    steps: number of steps of each training run; 0: that of its config.
  """

  seconds: float
  tiny: bool
  work: str
  data: str = ''
  tests: tuple[str, ...] = ()
  torch_modes: tuple[str, ...] = ('default',)
  steps: int = 0
  started: float = dataclasses.field(default_factory=time.monotonic, compare=False)

  @property
  def left(self) -> float:
    """Returns the seconds that are left of its time."""
    return self.started + self.seconds - time.monotonic()

  @property
  def folder(self) -> pathlib.Path:
    return pathlib.Path(self.work)

  def to_json(self) -> str:
    values = dataclasses.asdict(self)
    del values['started']  # the clock of another process
    return json.dumps(values)


def from_json(text: str) -> Options:
  values = json.loads(text)
  return Options(**values | {name: tuple(values[name]) for name in ('tests', 'torch_modes')})


def device() -> dict[str, Any]:
  """What jax computes on."""
  import jax

  first = jax.devices()[0]
  return {'kind': first.device_kind, 'platform': first.platform, 'count': jax.device_count()}


def table(rows: list[dict[str, str]]) -> str:
  """Rows of equal keys as a Markdown table."""
  lines = [list(rows[0]), ['---'] * len(rows[0]), *(list(row.values()) for row in rows)]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def percent(fraction: float | None, digits: int = 1) -> str:
  return '-' if fraction is None else f'{100 * fraction:.{digits}f} %'


def gigabytes(count: float | None) -> str:
  return '-' if count is None else f'{count / 1e9:.2f} GB'


def verdict(ratio: float | None, aim: float) -> str:
  if ratio is None:
    return '-'
  return f'{ratio:.2f} (aim {aim:g}: {"met" if ratio >= aim else "MISSED"})'
