"""Runs of dnt on packed data, as far as the time goes: each a process of its own that is asked to stop, and can go on.

degradation: plain-20 and -56 and ResNet-20 and -56 of configs/compare_degradation.py on CIFAR-10, side by side, as one
of them leaves much of a device idle; their images/s are not those of a run alone. cars: all of a pretrained ResNet-50
of configs/transfer_cars_resnet50.py. Errors are those of the newest checkpoint, in evaluation mode.
"""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import packed
from benchmarks.parts import options as options_lib

NETWORKS = ('plain20', 'plain56', 'resnet20', 'resnet56')
TO_STOP = 15.0  # seconds from the signal to the end of a run: checkpoint and report
TO_EVALUATE = 8.0  # of each run, in one process
TINY = {
  'train.steps': 2,
  'train.batch_size': 16,
  'eval.batch_size': 16,
  'data.workers': 0,
  'telemetry.every': '0',
  'schedule.warmup': '0',
}


def degradation_configs(data: pathlib.Path, tiny: bool) -> dict[str, Any]:
  from configs import compare_degradation
  from dnt import config as schema

  config = compare_degradation.get_config()
  changes = {'data.source': f'cifar_binary:{data}', 'eval.batch_size': 1000}
  if tiny:
    splits = {'data.train_split': 'train[:64]', 'eval.splits': ('test[:32]', 'train[:64]')}
    changes |= {**splits, **TINY, 'data.image_size': 8, 'eval.every': '0', 'checkpoint.every': '0'}
  configs = {}
  for name in NETWORKS:
    variant = dict(config.variants[name])
    if tiny:
      variant['model.depth'] = 8
    configs[name] = schema.override(config.base, {**variant, **changes}, f'the variant {name}')
  return configs


def cars_configs(data: pathlib.Path, weights: pathlib.Path, tiny: bool) -> dict[str, Any]:
  from configs import transfer_cars_resnet50
  from dnt import config as schema

  config = transfer_cars_resnet50.get_config()
  changes = {'data.source': f'cars:{data}', 'train.init_from': f'tfjs:{weights}'}
  changes |= {'data.workers': min(16, os.cpu_count() or 1)}
  if tiny:
    splits = {'data.train_split': 'train[:32]', 'eval.splits': ('test[:16]',)}
    changes |= {**splits, **TINY, 'data.image_size': 32, 'eval.every': '0', 'checkpoint.every': '0'}
  return {'all': schema.override(config.base, {**dict(config.variants['all']), **changes}, 'the variant all')}


def degradation(options: options_lib.Options, save: Callable[[Any], None]) -> None:
  data = needed(options, 'cifar')
  train_all(degradation_configs(data, options.tiny), options, save)


def cars(options: options_lib.Options, save: Callable[[Any], None]) -> None:
  data, weights = needed(options, 'cars'), needed(options, 'weights')
  train_all(cars_configs(data, weights, options.tiny), options, save)


def needed(options: options_lib.Options, name: str) -> pathlib.Path:
  place = packed.where(pathlib.Path(options.data), name)
  if isinstance(place, str):
    raise ValueError(place)
  return place


def train_all(configs: Mapping[str, Any], options: options_lib.Options, save: Callable[[Any], None]) -> None:
  """Trains all side by side until they end or their time is over, then evaluates them in this process."""
  from dnt import config as schema

  if options.steps:
    configs = {name: schema.override(config, {'train.steps': options.steps}, name) for name, config in configs.items()}
  found: dict[str, Any] = {'device': options_lib.device(), 'runs': {}}
  seconds = options.left - TO_EVALUATE * len(configs) - TO_STOP
  if seconds <= 0:
    raise RuntimeError(f'no time: {options.left:.0f} s left for {len(configs)} runs')
  folders = {name: options.folder / 'runs' / name for name in configs}
  codes = run_together({name: command(configs[name], options, folders[name]) for name in configs}, options, seconds)
  for name, code in codes.items():
    ended = code in (0, 128 + signal.SIGTERM)  # the second: asked to stop, it has saved
    found['runs'][name] = outcome(folders[name]) if ended else {'error': failure(options, name, code)}
  save(found)
  for name, each in found['runs'].items():
    if 'error' not in each and each['evaluated_at'] != each['step']:
      evaluate(configs[name], folders[name], each)
      save(found)
  if all('error' in each for each in found['runs'].values()):
    raise RuntimeError('; '.join(each['error'] for each in found['runs'].values()))


def command(config: Any, options: options_lib.Options, folder: pathlib.Path) -> list[str]:
  """The command of a run; its config is written to a file of its own."""
  from dnt.config import run_config

  file = options.folder / 'configs' / f'{folder.name}.json'
  file.parent.mkdir(parents=True, exist_ok=True)
  run_config.write(file, config)
  return [sys.executable, '-m', 'dnt.main', f'--config=dnt/config/run_config.py:{file}', f'--workdir={folder}']


def run_together(commands: Mapping[str, list[str]], options: options_lib.Options, seconds: float) -> dict[str, int]:
  """Runs commands side by side, asks those that have not ended after some seconds to stop; their exit codes."""
  end = time.monotonic() + seconds
  with contextlib.ExitStack() as stack:
    processes = {}
    for name, arguments in commands.items():
      log = stack.enter_context((options.folder / f'{name}.log').open('a'))
      processes[name] = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT)
    for process in processes.values():
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, end - time.monotonic()))
    for process in processes.values():
      process.terminate()  # nothing to one that has ended
    # However long: who started this part has an eye on the time.
    return {name: process.wait() for name, process in processes.items()}


def failure(options: options_lib.Options, name: str, code: int) -> str:
  text = (options.folder / f'{name}.log').read_text(errors='replace')
  return f'{name} ended with code {code}: {text[-500:].strip()}'


def outcome(folder: pathlib.Path) -> dict[str, Any]:
  """What a run has come to."""
  from dnt.reporting import metrics

  lines = metrics.read(folder)
  evaluations = [line for line in lines if any(re.fullmatch(r'test.*/accuracy', key) for key in line)]
  summary = json.loads((folder / 'summary.json').read_text())
  return {
    'step': summary['step'],
    'total_steps': summary['total_steps'],
    'epochs': lines[-1]['epoch'] if lines else 0.0,
    'seconds': summary['seconds'],
    'images_per_second': summary['images_per_second'],
    'peak_bytes': summary['peak_memory']['device'],
    'evaluated_at': evaluations[-1]['step'] if evaluations else 0,
    'errors': errors(evaluations[-1]) if evaluations else {},
    'curve': [{'step': line['step'], **errors(line)} for line in evaluations],
  }


def errors(found: Mapping[str, Any]) -> dict[str, float]:
  """Classification errors by split, of a line of metrics or of an evaluation."""
  splits = {key.rpartition('/')[0]: value for key, value in found.items() if key.endswith('/accuracy')}
  return {split.partition('[')[0]: 1 - value for split, value in splits.items() if value is not None}


def evaluate(config: Any, folder: pathlib.Path, each: dict[str, Any]) -> None:
  """Puts the errors of the newest checkpoint in place of those on the way to it."""
  from dnt.training import evaluate as evaluate_lib

  found = evaluate_lib.evaluate(config, folder)
  each['evaluated_at'], each['errors'] = found['step'], errors(found)


def markdown(found: Any) -> str:
  rows = []
  for name, each in found['runs'].items():
    if 'error' in each:
      continue
    rows.append(
      {
        'run': name,
        'step': f'{each["step"]:,} of {each["total_steps"]:,}',
        'train error': options_lib.percent(each['errors'].get('train'), 2),
        'test error': options_lib.percent(each['errors'].get('test'), 2),
        'at step': f'{each["evaluated_at"]:,}',
        'images/s': '-' if each['images_per_second'] is None else f'{each["images_per_second"]:,.0f}',
        'seconds of training': f'{each["seconds"]["train"]:.0f}',
        'peak memory': options_lib.gigabytes(each['peak_bytes']),
      }
    )
  lines = [options_lib.table(rows)] if rows else []
  return '\n'.join([*lines, *(f'- {name}: {run["error"]}' for name, run in found['runs'].items() if 'error' in run)])
