"""Tests that hold on one accelerator, in worker processes that share it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.parts import options as options_lib

TESTS = (
  'tests/models/test_norms.py',
  'tests/models/test_conv.py',
  'tests/models/test_blocks.py',
  'tests/optim',
  'tests/training/test_steps.py',
  'tests/training/test_precompile.py',
  'tests/training/test_evaluate.py',
  'tests/training/test_initialize.py',
  'tests/parallel/test_mesh.py',
  'tests/test_loop.py',
  'tests/test_resume.py',
)
LEFT_OUT = 'stream'  # those of them that need, streaming, worker processes of grain; what needs more devices is skipped
WORKERS = 8
_OUTCOME = '(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)'
# A line a test, with workers and without.
_RESULTS = (
  re.compile(rf'^\[gw\d+\] \[ *\d+%\] {_OUTCOME} (\S+::.*?) *$', re.M),
  re.compile(rf'^(\S+::.*?) {_OUTCOME}(?: .*)?\[ *\d+%\]$', re.M),
)


def run(options: options_lib.Options, save: Callable[[Any], None]) -> None:
  """Runs them until their time is over; what had not ended by then counts as not run."""
  log = options.folder / 'pytest.log'
  workers = 0 if options.tiny else min(WORKERS, os.cpu_count() or 1)
  command = [sys.executable, '-m', 'pytest', '-v', '-n', str(workers), '--color=no', '--tb=short', '-W', 'default']
  command += ['-p', 'no:cacheprovider', *(options.tests or TESTS)]
  if not options.tests:
    command += ['-k', f'not {LEFT_OUT}']
  environment = {**os.environ, 'COLUMNS': '200', 'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}  # float32, not TF32
  if not options.tiny:
    environment |= {'DNT_TEST_PLATFORM': '', 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  start, over = time.monotonic(), False
  with log.open('w') as out:
    process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
      process.wait(max(1.0, options.left))
    except subprocess.TimeoutExpired:
      over = True
      process.send_signal(signal.SIGINT)  # it still says what failed
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
      process.kill()
      process.wait()
  text = log.read_text(errors='replace')
  results = {name: outcome for outcome, name in _RESULTS[0].findall(text)}
  results |= dict(_RESULTS[1].findall(text))
  if process.returncode not in (0, 1) and not results and not over:
    raise RuntimeError(f'pytest ended with code {process.returncode}: {text.strip()[-1000:]}')
  counts = {kind.lower(): list(results.values()).count(kind) for kind in ('PASSED', 'FAILED', 'ERROR', 'SKIPPED')}
  reasons = dict(re.findall(r'^(?:FAILED|ERROR) (\S+::.*?) - (.*)$', text, re.M))
  failures = {name: reasons.get(name, '') for name, outcome in results.items() if outcome in ('FAILED', 'ERROR')}
  save({**counts, 'seconds': time.monotonic() - start, 'out_of_time': over, 'failures': failures, 'log': str(log)})


def markdown(found: Any) -> str:
  counts = ', '.join(f'{found[name]} {name}' for name in ('passed', 'failed', 'error', 'skipped'))
  over = '; time was over before the last one' if found['out_of_time'] else ''
  lines = [f'{counts} in {found["seconds"]:.0f} s{over}']
  return '\n'.join([*lines, *(f'- {name}: {reason}' for name, reason in found['failures'].items())])
