"""Which rate of a range test to take: short runs at each suggestion and at a grid of rates, on held-out images.

  python -m benchmarks.learning_rates [--mri=DIR] [--cars=DIR --weights=tfjs:DIR] [--cifar=DIR [--run=DIR]]

Heads train on features of a ResNet-50 (Keras' weights), small networks from scratch on the digits and on 2,000 images
of CIFAR-10; with `--run`, all of a network trains that was trained on other images before. A task without its data is
left out. Each run is short, with a cosine schedule. A suggestion's regret is what its accuracy, on images that were not
trained on, lacks to that of the best rate of the grid, by task and seed.
"""

import contextlib
import json
import pathlib
import statistics
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from dnt import config as schema
from dnt.data import pipeline
from dnt.diagnostics import lr_find
from dnt.finetune import feature_cache
from dnt.optim import schedules
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.training import datasets, evaluate, experiment, initialize, open_options, report, steps

MRI = flags.DEFINE_string('mri', None, 'Folder with train/<class>/ and val/<class>/.')
CARS = flags.DEFINE_string('cars', None, 'Folder of Stanford Cars.')
WEIGHTS = flags.DEFINE_string('weights', None, 'Weights of the features: tfjs:<dir>.')
CIFAR = flags.DEFINE_string('cifar', None, "Folder of CIFAR-10's binary files.")
RUN = flags.DEFINE_string('run', None, 'Workdir of a run on the first 10,000 images of CIFAR-10, at 16 pixels.')
SEEDS = flags.DEFINE_integer('seeds', 2, 'Seeds of each task.')
ONLY = flags.DEFINE_list('only', [], 'Tasks to run; default: all that have their data.')
JSON = flags.DEFINE_string('json', None, 'File to write the figures to.')
GRID = tuple(float(f'{10**exponent:.2g}') for exponent in np.arange(-4, 0.1, 0.5))


def tasks():
  """Returns (name, config) of the tasks."""
  result = {}
  heads = {'mri': (MRI.value, 'folder', 'val'), 'cars': (CARS.value, 'cars', 'test')} if WEIGHTS.value else {}
  for name, (folder, source, split) in heads.items():
    for optimizer in ('adamw', 'sgd') if name == 'mri' else ('adamw',):
      if folder:
        config = schema.default()
        config.data.update({'source': f'{source}:{folder}', 'image_size': 112, 'eval_resize': 'squash'})
        config.model.name, config.train.init_from = 'pretrained', WEIGHTS.value
        config.finetune.trainable, config.eval.splits = 'head', (split,)
        config.train.epochs = 5.0
        result[f'{name}_head_{optimizer}'] = _with(config, optimizer)
  for optimizer in ('sgd', 'adamw'):
    config = schema.default()
    config.model.depth, config.train.epochs = 8, 3.0
    result[f'digits_{optimizer}'] = _with(config, optimizer)
  if CIFAR.value:
    config = schema.default()
    config.data.update({'source': f'cifar_binary:{CIFAR.value}', 'train_split': 'train[:2000]'})
    config.model.depth, config.train.epochs, config.eval.splits = 8, 3.0, ('test[:1000]',)
    result['cifar_sgd'] = _with(config, 'sgd')
  for optimizer in ('sgd', 'adamw') if CIFAR.value and RUN.value else ():
    config = schema.default()
    config.data.update({'source': f'cifar_binary:{CIFAR.value}', 'train_split': 'train[10000:10500]'})
    config.model.name, config.train.init_from, config.train.epochs = 'pretrained', RUN.value, 5.0
    config.data.image_size, config.eval.splits = 16, ('test[:1000]',)
    result[f'cifar_whole_{optimizer}'] = _with(config, optimizer)
  return {name: config for name, config in result.items() if not ONLY.value or name in ONLY.value}


def _with(config, optimizer):
  config.optim.name = optimizer
  config.optim.weight_decay = 0.01 if optimizer == 'adamw' else 1e-4
  config.schedule.name, config.train.batch_size = 'cosine', 64
  return config


def measure(config, seed):
  """Returns the suggestions of a range test, and the accuracy after a run at each of them and of the grid, by rate."""
  config.seed = seed
  mesh = mesh_lib.make_mesh(config.mesh)
  data = datasets.load(config, config.eval.splits)
  run = experiment.make(open_options.resolve(config, data), data.spec)
  with tempfile.TemporaryDirectory() as workdir:
    run, data = feature_cache.use(run, data, mesh, pathlib.Path(workdir))
    start = initialize.load_start(run, pathlib.Path(workdir), data.weights)
  phase = run.phases[0]
  with (
    contextlib.closing(pipeline.make_train_loader(run.config, data.train, mesh)) as loader,
    evaluate.Evaluator(run, mesh, data.evaluation) as evaluator,
  ):
    state = initialize.begin(run, mesh, start)
    suggestions = lr_find.sweep(run, mesh, state, loader).suggestions
    longest = loader.max_steps(0)

    def train(state, arrays, count, peak):
      schedule = schedules.make(run.config.schedule, peak, run.config.train.steps, run.steps_per_epoch)
      optimizer = run.make_optimizer(phase.partitions, schedule)
      step = run.make_step(phase.partition, optimizer, schedule)
      return steps.make_train_steps(step, loader.batch_at, longest)(state, arrays, count)

    program, accuracy = compile_lib.jit(train, mesh), {}
    for rate in (*GRID, *suggestions.values()):
      trained, done = state, 0
      while done < run.config.train.steps:
        count = min(loader.max_steps(done), longest, run.config.train.steps - done)
        trained, _ = program(trained, loader.arrays(done, count), np.int32(count), jnp.float32(rate))
        done += count
      metrics = evaluator(evaluate.get_variables(trained)['']).metrics
      accuracy[rate] = next(value for name, value in metrics.items() if name.endswith('/accuracy'))
  return suggestions, accuracy


def main(_):
  found = []
  for name, config in tasks().items():
    for seed in range(SEEDS.value):
      suggestions, accuracy = measure(config, seed)
      best = max(accuracy[rate] for rate in GRID)
      found.append({'task': name, 'seed': seed, 'suggestions': suggestions, 'accuracy': list(accuracy.items())})
      shown = [f'{method} {rate:.2g}: {100 * accuracy[rate]:.1f} %' for method, rate in suggestions.items()]
      grid = ' '.join(f'{rate:g}:{100 * accuracy[rate]:.1f}' for rate in GRID)
      print(f'{name}, seed {seed}: best {100 * best:.1f} %; {"; ".join(shown)}; grid {grid}', flush=True)
  for method in found[0]['suggestions']:
    regrets = [
      max(dict(each['accuracy'])[rate] for rate in GRID) - dict(each['accuracy'])[each['suggestions'][method]]
      for each in found
    ]
    print(f'{method}: regret {100 * statistics.mean(regrets):.1f} % on average, {100 * max(regrets):.1f} % at most')
  if JSON.value:
    content = {'found': found, 'versions': report.versions(), 'backend': jax.default_backend()}
    pathlib.Path(JSON.value).write_text(json.dumps(content, indent=2) + '\n')


if __name__ == '__main__':
  app.run(main)
