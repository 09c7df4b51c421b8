"""A comparison whose runs were not trained: what they leave is written."""

import json
import re

from dnt import config as schema
from dnt import workdir as workdir_lib
from dnt.config import run_config

# Accuracies of the last evaluation by variant and seed: on the training split and on the test split.
ACCURACIES = {('plain', 0): (0.7, 0.625), ('plain', 1): (0.8, 0.5), ('deep', 0): (0.9375, 0.75)}


def make_config():
  config = schema.default('compare')
  config.seeds = (0, 1)
  config.base.data.train_split = 'train[:20%]'
  config.base.eval.splits = ('test', 'train[:20%]')
  config.variants = {'plain': {}, 'deep': {'optim.learning_rate': 0.2}}
  config.forms = {'short': {}}
  return config


def lines(train, test):
  """A record: training lines, which hold an accuracy of their own, telemetry and two evaluations."""
  for step in range(10, 101, 10):
    training = {'train/loss': 20 / step, 'train/accuracy': 0.01, 'train/learning_rate': 0.1}
    yield {'step': step, 'epoch': step / 50, **training, 'images_per_second': 900.0}
    yield {'step': step, 'epoch': step / 50, 'telemetry/head/zero': 0.5}
    if step % 50 == 0:
      fraction = step / 100
      evaluated = {'test/loss': 0.5, 'test/accuracy': fraction * test, 'train[:20%]/loss': None if step == 50 else 0.25}
      evaluated |= {'test/auroc': fraction * test + 0.1, 'test/calibration_error': 0.125}
      yield {'step': step, 'epoch': step / 50, **evaluated, 'train[:20%]/accuracy': fraction * train}


def leave(run, train, test):
  """What a finished run leaves."""
  run.workdir.mkdir(parents=True)
  (run.workdir / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines(train, test)))
  summary = {
    'finished': True,
    'seconds': {'total': 60.0 + 2 * run.seed},
    'images_per_second': 950.0 + 100 * run.seed if run.variant == 'plain' else 1000.0,
    'parameters': 269_722,
    'trainable_parameters': 650,
    'peak_memory': {'process': 2**29 + 2**26 * run.seed, 'device': None},
    'warnings': {'dead': {'step': 10, 'text': 'units are <dead>'}} if run.seed else {},
    'devices': {'kind': 'cpu'},
    'versions': {'jax': '1.2'},
  }
  (run.workdir / 'summary.json').write_text(json.dumps(summary))
  for split, step in (('test', 100), ('train[:20%]', 100), ('val', 50)):
    per_class = {'examples': [4, 0], 'sensitivity': [test, None], 'specificity': [0.5, None], 'auroc': [None, None]}
    content = {'split': split, 'step': step, 'class_names': ['cat', 'd|g'], 'per_class': per_class}
    content['matrix'] = [[4, 0], [0, 0]]
    name = re.sub(r'\W+', '_', split).strip('_')
    (run.workdir / f'confusion_{name}.json').write_text(json.dumps(content))
  run_config.write(run.workdir / workdir_lib.REQUESTED, run.config)
