"""Contenders that take turns: each a process of its own that waits while another one is timed.

A contender reads the name of what it is to do from standard input, a line each time, and answers with a line of JSON.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

READY = 'ready'
TURN = 'turn'
_ANSWER = 'answer: '  # before each, since libraries print too


def serve(**answers: Callable[[], Any]) -> None:
  """Says that it is ready, and answers until standard input ends."""
  print(f'{_ANSWER}{json.dumps(READY)}', flush=True)
  for line in sys.stdin:
    print(f'{_ANSWER}{json.dumps(answers[line.strip()]())}', flush=True)


class Contender:
  """A process that serves, from this side."""

  def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None):
    self.name = name
    self._errors = tempfile.TemporaryFile('w+', errors='replace')  # noqa: SIM115
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'stderr': self._errors}
    self._process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, text=True, **pipes)

  def wait(self) -> None:
    """Waits until it is ready."""
    self._answer()

  def ask(self, what: str) -> Any:
    """Returns its answer."""
    try:
      self._process.stdin.write(f'{what}\n')
      self._process.stdin.flush()
    except BrokenPipeError:
      pass  # it has ended, which the answer that does not come tells
    return self._answer()

  def close(self) -> None:
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()
    self._errors.close()

  def _answer(self) -> Any:
    for line in iter(self._process.stdout.readline, ''):
      if line.startswith(_ANSWER):
        return json.loads(line.removeprefix(_ANSWER))
    code = self._process.wait()
    self._errors.seek(0)
    raise RuntimeError(f'{self.name} ended with code {code}: {self._errors.read()[-1000:].strip()}')


@contextlib.contextmanager
def started(commands: Mapping[str, Sequence[str]], environment: Mapping[str, str] | None = None) -> Iterator[dict]:
  """Starts processes and yields them by name when all are ready; they end with the context."""
  contenders: dict[str, Contender] = {}
  try:
    for name, command in commands.items():
      contenders[name] = Contender(name, command, environment)
    for contender in contenders.values():
      contender.wait()
    yield contenders
  finally:
    for contender in contenders.values():
      contender.close()


def take_turns(contenders: Mapping[Any, Callable[[], Any]], rounds: int) -> dict[Any, list[Any]]:
  """Calls each in turn, round after round; returns what each has returned, by name."""
  turns: dict[Any, list[Any]] = {name: [] for name in contenders}
  for _ in range(rounds):
    for name, contender in contenders.items():
      turns[name].append(contender())
  return turns


def ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
  """Returns how many times as long the others take: the median of the ratios of neighbouring turns."""
  return statistics.median(other / own for own, other in zip(seconds, others, strict=True))


def spread(seconds: Sequence[float]) -> dict[str, float]:
  return {'median_seconds': statistics.median(seconds), 'min_seconds': min(seconds), 'max_seconds': max(seconds)}
