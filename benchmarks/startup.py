"""From the start of the process to the first step done, of the default config: cold, and with a warm compilation cache.

  python -m benchmarks.startup [--json=FILE]

Each run is a process of its own, timed from outside until its first training line is on disk. Cold runs get an empty
compilation cache each; warm ones the cache that a cold one left. The files of Python and jax are in the system's cache.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from dnt.reporting import metrics
from dnt.training import report

ROUNDS = flags.DEFINE_integer('rounds', 5, 'Times that a cold and a warm start take turns.')
JSON = flags.DEFINE_string('json', None, 'File to write the figures to.')


def first_step_seconds(cache: str) -> float:
  """Of one process, from its start to its first training line."""
  with tempfile.TemporaryDirectory() as workdir:
    command = [sys.executable, '-m', 'dnt.main', f'--workdir={workdir}', '--config.train.log_every=1']
    start = time.monotonic()
    process = subprocess.Popen(
      command, env={**os.environ, 'JAX_COMPILATION_CACHE_DIR': cache}, stdout=subprocess.DEVNULL
    )
    try:
      while not metrics.read(workdir):
        if process.poll() is not None:
          raise RuntimeError(f'the run ended before its first step, with code {process.returncode}')
        time.sleep(0.01)
      return time.monotonic() - start
    finally:
      process.kill()
      process.wait()


def main(_):
  found: dict[str, list[float]] = {'cold': [], 'warm': []}
  with tempfile.TemporaryDirectory() as warm:
    first_step_seconds(warm)
    for _ in range(ROUNDS.value):
      with tempfile.TemporaryDirectory() as cold:
        found['cold'].append(first_step_seconds(cold))
      found['warm'].append(first_step_seconds(warm))
  for name, seconds in found.items():
    print(f'{name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})')
  if JSON.value:
    content = {'seconds': found, 'versions': report.versions()}
    pathlib.Path(JSON.value).write_text(json.dumps(content, indent=2) + '\n')


if __name__ == '__main__':
  app.run(main)
