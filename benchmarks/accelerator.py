"""What one accelerator makes of dnt, in a given time: tests, speed beside PyTorch's, and training runs on packed data.

  python -m benchmarks.accelerator --output=<folder> [--minutes=8] [--parts=step,epoch] [--skip=tests]
  python -m benchmarks.accelerator --output=<folder> --data=<folder> --parts=degradation --steps=16000

The parts, in their order, each a process with a time limit of its own:

tests: those that hold on one accelerator, in float32 without TF32, two minutes at most.
step: train steps of ResNet-20, -50 and -56 in turn with torch.compile's; aim: 0.9 of its step rate.
epoch: the whole loop on 50,000 CIFAR-shaped images against the bare step; aim: 98 % of its rate.
norms: GB/s of the norms beside a copy's.
degradation: plain-20 and -56, ResNet-20 and -56 on CIFAR-10 side by side, as many of the paper's 64k steps as the time
allows; --steps shortens their schedule to what it allows, so that the rate has fallen at the end.
cars: all of a pretrained ResNet-50 on Stanford Cars, likewise.

The last two need --data: files of benchmarks/pack.py, or a folder that they were unpacked to. Their runs are in --work
(with caches and logs, many files), and go on where they stopped when the same command is given again. `results.json`
in --output is written anew after every part, and the tables on standard output are Markdown. A part for which too
little time is left is skipped; one that fails leaves its error, and the others go on. Without PyTorch dnt's steps are
timed alone.

It needs absl-py, filelock, flax, jax, matplotlib, ml-collections, numpy, optax, orbax-checkpoint, pillow and
tensorboardX; tests also pytest, pytest-xdist, safetensors, scikit-learn and scipy; step also torch; cars also grain
with array-record and portpicker, and cars in the layout of the official archives scipy. On a machine with jax, flax,
optax, orbax and torch (which brings filelock) that leaves ml-collections, tensorboardX, grain, array-record and
portpicker to install from wheels.
"""

import contextlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import app, flags, logging

from benchmarks import packed
from benchmarks.parts import epoch, norms, step, suite, training
from benchmarks.parts import options as options_lib
from dnt.reporting import versions


class Part(NamedTuple):
  """A part.

  Attributes:
    run: measures; `run(options, save)`.
    markdown: of what was saved.
    least: seconds below which it is not started.
    most: seconds it gets.
    computes: in its own process, on the accelerator.
    needs: packed sets.
    weight: its weight, relative to those of later parts, when the time left is divided; 0: it takes what it needs.
  """

  run: Callable[[options_lib.Options, Callable[[Any], None]], None]
  markdown: Callable[[Any], str]
  least: float
  most: float
  computes: bool = True
  needs: tuple[str, ...] = ()
  weight: float = 0.0


PARTS = {
  'tests': Part(suite.run, suite.markdown, 30, 120, computes=False),
  'step': Part(step.run, step.markdown, 60, 270, computes=False),
  'epoch': Part(epoch.run, epoch.markdown, 40, 100),
  'norms': Part(norms.run, norms.markdown, 20, 60),
  'degradation': Part(training.degradation, training.markdown, 240, 3600, needs=('cifar',), weight=2),
  'cars': Part(training.cars, training.markdown, 100, 3600, needs=('cars', 'weights'), weight=1),
}
GRACE = 20.0  # seconds between when a part should end and when it is ended
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'torch')

CHOSEN = flags.DEFINE_list('parts', list(PARTS), 'Parts to run.')
SKIP = flags.DEFINE_list('skip', [], 'Parts to leave out.')
MINUTES = flags.DEFINE_float('minutes', 8.0, 'Time for all parts together.')
DATA = flags.DEFINE_string('data', None, 'Folder of packed files, or that they were unpacked to.')
OUTPUT = flags.DEFINE_string('output', None, 'Folder of results.json.', required=True)
WORK = flags.DEFINE_string('work', None, 'Folder of runs, logs and caches; default: work in --output.')
TESTS = flags.DEFINE_list('tests', [], 'Test files to run instead of those chosen here.')
TORCH_MODES = flags.DEFINE_list('torch_modes', ['default'], 'Of torch.compile; with several the fastest counts.')
STEPS = flags.DEFINE_integer('steps', 0, 'Steps of each training run; 0: those of its config.', 0)
TINY = flags.DEFINE_bool('tiny', False, 'Sizes for a test on CPU.')
PART = flags.DEFINE_string('part', None, 'Used by the benchmark itself: run this part here.')
OPTIONS = flags.DEFINE_string('options', None, 'Used by the benchmark itself.')
RECORD = flags.DEFINE_string('record', None, 'Used by the benchmark itself.')


def measure() -> None:
  """Runs one part in this process; what it has found so far is in the record."""
  part, options = PARTS[PART.value], options_lib.from_json(OPTIONS.value)

  def save(found):
    replace(pathlib.Path(RECORD.value), found)

  if part.computes:
    import jax

    from dnt.parallel import compile as compile_lib

    compile_lib.enable_cache()
    if jax.default_backend() == 'cpu' and not options.tiny:
      raise RuntimeError('jax finds no accelerator; --tiny is for CPUs')
  part.run(options, save)


def replace(path: pathlib.Path, content: Any) -> None:
  """Writes JSON so that a reader sees the old file or the new one."""
  beside = path.with_suffix('.new')
  beside.write_text(json.dumps(content, indent=2) + '\n')
  beside.replace(path)


def run_part(name: str, options: options_lib.Options, limit: float) -> dict[str, Any]:
  """Runs a part in a process group of its own, to its end or the end of its time."""
  record, log = options.folder / f'{name}.json', options.folder / f'{name}.log'
  record.unlink(missing_ok=True)
  command = [sys.executable, '-m', 'benchmarks.accelerator', f'--part={name}', f'--options={options.to_json()}']
  command += [f'--record={record}', f'--output={options.work}']
  environment = {
    'JAX_COMPILATION_CACHE_DIR': str(options.folder / 'xla'),
    'TORCHINDUCTOR_CACHE_DIR': str(options.folder / 'inductor'),
    'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',  # a part may start processes of its own
    **os.environ,
  }
  start = time.monotonic()
  with log.open('w') as out:
    pipes = {'stdout': out, 'stderr': subprocess.STDOUT}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    out_of_time = False
    try:
      process.wait(limit)
    except subprocess.TimeoutExpired:
      out_of_time = True
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # it, or what it has left behind
      process.wait()
  status = 'out of time' if out_of_time else 'failed' if process.returncode else 'ok'
  result = {'status': status, 'seconds': time.monotonic() - start, 'limit_seconds': limit}
  if status != 'ok':
    lines = log.read_text(errors='replace').strip().splitlines()
    result |= {'error': lines[-1] if lines else f'code {process.returncode}', 'log': lines[-30:]}
  if record.is_file():
    result['found'] = json.loads(record.read_text())
  return result


def missing(part: Part, data: pathlib.Path | str | None) -> str:
  """Why a part cannot have the data that it needs; empty if it can."""
  if part.needs and data is None:
    return 'it needs --data'
  if part.needs and isinstance(data, str):
    return data
  found = [packed.where(data, name) for name in part.needs]
  return next((place for place in found if isinstance(place, str)), '')


def unpacked(work: pathlib.Path) -> pathlib.Path | str | None:
  """The folder of unpacked sets, or what went wrong."""
  if not DATA.value or not packed.archives([DATA.value]):
    return pathlib.Path(DATA.value).absolute() if DATA.value else None
  try:
    packed.unpack(packed.archives([DATA.value]), work / 'data')
  except Exception as error:  # the other parts go on without the data
    return f'{type(error).__name__}: {error}'
  return work / 'data'


def gpu() -> str | None:
  """Name, memory and driver, as NVIDIA's own tool says."""
  query = ['nvidia-smi', '--query-gpu=name,memory.total,driver_version', '--format=csv,noheader']
  try:
    return subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
  except (OSError, subprocess.SubprocessError):
    return None


def run_all(chosen: list[str]) -> dict[str, Any]:
  """Runs the parts; `results.json` and the tables grow with them."""
  start, total = time.monotonic(), 60 * MINUTES.value
  output = pathlib.Path(OUTPUT.value).absolute()
  work = pathlib.Path(WORK.value).absolute() if WORK.value else output / 'work'
  for folder in (output, work):
    folder.mkdir(parents=True, exist_ok=True)

  def left():
    return total - (time.monotonic() - start)

  def say(text):
    print(f'[{time.monotonic() - start:4.0f} s] {text}', file=sys.stderr, flush=True)

  results: dict[str, Any] = {
    'command': shlex.join(['python', '-m', 'benchmarks.accelerator', *sys.argv[1:]]),
    'started': time.strftime('%Y-%m-%d %H:%M:%S'),
    'minutes': MINUTES.value,
    'tiny': TINY.value,
    'device': None,
    'gpu': gpu(),
    'cores': os.cpu_count(),
    'versions': versions.find(PACKAGES),
    'parts': {},
  }
  data = unpacked(work) if any(PARTS[name].needs for name in chosen) else None
  for number, name in enumerate(chosen):
    part, later = PARTS[name], chosen[number + 1 :]
    fraction = part.weight / sum(PARTS[each].weight for each in (name, *later)) if part.weight else 1.0
    limit = fraction * left() if TINY.value else min(part.most, fraction * left())  # a test's machine may be busy
    why = missing(part, data)
    if not why and limit < part.least:
      why = f'it needs {part.least:.0f} s, and {max(limit, 0):.0f} s are left for it'
    if why:
      results['parts'][name] = {'status': 'skipped', 'reason': why}
      say(f'{name}: skipped: {why}')
    else:
      end = time.strftime('%H:%M:%S', time.localtime(time.time() + limit))
      say(f'{name}: until {end} at most; {left():.0f} s left')
      options = options_lib.Options(
        seconds=limit - GRACE,
        tiny=TINY.value,
        work=str(work),
        data=str(data or ''),
        tests=tuple(TESTS.value),
        torch_modes=tuple(TORCH_MODES.value),
        steps=STEPS.value,
      )
      result = results['parts'][name] = run_part(name, options, limit)
      device = result.get('found', {}).pop('device', None)
      results['device'] = results['device'] or device
      say(
        f'{name}: {result["status"]} in {result["seconds"]:.0f} s'
        + ''.join(f': {result[key]}' for key in result if key == 'error')
      )
    results['seconds'] = time.monotonic() - start
    replace(output / 'results.json', results)
    print(f'\n### {name}\n\n{text(name, results["parts"][name])}', flush=True)
  return results


def text(name: str, result: dict[str, Any]) -> str:
  """What a part has found, as Markdown."""
  lines = [PARTS[name].markdown(result['found'])] if result.get('found') else []
  if result['status'] != 'ok':
    lines.append(f'{result["status"]}: {result.get("reason") or result.get("error")}')
  return '\n\n'.join(lines)


def main(_):
  logging.set_verbosity(logging.ERROR)
  if PART.value:
    measure()
    return
  unknown = [name for name in (*CHOSEN.value, *SKIP.value) if name not in PARTS]
  if unknown:
    raise app.UsageError(f'{unknown[0]!r} is none of {", ".join(PARTS)}')
  results = run_all([name for name in PARTS if name in CHOSEN.value and name not in SKIP.value])
  print(f'\n{results["gpu"] or results["device"]}; {results["cores"]} cores; {results["versions"]}')
  print(f'`{results["command"]}`: {results["seconds"]:.0f} s')


if __name__ == '__main__':
  app.run(main)
