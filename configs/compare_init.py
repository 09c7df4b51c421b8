"""Sigmoid, tanh and ReLU from five starts: an MLP of ten layers without norm on Fashion-MNIST.

  python -m dnt.compare --config=configs/compare_init.py
  ... --config.base.data.source=idx:<dir>    with the four IDX files at hand (Debian: dataset-fashion-mnist)

Expected: ReLU from the large start is not finite after a few steps, and the exit code is 1.
"""

from dnt import config as schema

STARTS = {
  'glorot': {'model.initializer': 'glorot'},
  'he': {'model.initializer': 'he'},
  'orthogonal': {'model.initializer': 'orthogonal'},
  'small': {'model.initializer': 'he', 'model.init_gain': 0.1},
  'large': {'model.initializer': 'he', 'model.init_gain': 3.0},
}


def get_config():
  config = schema.default('compare')
  config.seeds = (0, 1, 2)
  base = config.base
  base.data.source = 'tfds:fashion_mnist'
  base.data.train_split = 'train[:20%]'
  base.model.name = 'mlp'
  base.model.norm = 'none'
  base.model.depth = 10
  base.model.width = 128
  base.optim.learning_rate = 0.02
  base.optim.weight_decay = 0.0
  base.train.batch_size = 128
  base.train.epochs = 10.0
  base.eval.splits = ('test', 'train[:20%]')
  base.eval.every = '2 epochs'
  base.checkpoint.every = '0'
  config.variants = {
    f'{activation}_{start}': {'model.activation': activation, **changes}
    for activation in ('sigmoid', 'tanh', 'relu')
    for start, changes in STARTS.items()
  }
  return config
