"""Each way of clipping the gradient of an MLP of 20 layers that explodes from too large a start, on Fashion-MNIST.

  python -m dnt.compare --config=configs/compare_clipping.py
  ... --config.base.data.source=idx:<dir>    with the four IDX files at hand (Debian: dataset-fashion-mnist)

Expected: without clipping the loss is not finite after a few steps, and the exit code is 1.
"""

from dnt import config as schema


def get_config():
  config = schema.default('compare')
  config.seeds = (0, 1, 2)
  base = config.base
  base.data.source = 'tfds:fashion_mnist'
  base.data.train_split = 'train[:20%]'
  base.model.name = 'mlp'
  base.model.norm = 'none'
  base.model.depth = 20
  base.model.width = 128
  base.model.init_gain = 1.3
  base.optim.learning_rate = 0.02
  base.optim.weight_decay = 0.0
  base.schedule.name = 'cosine'
  base.train.batch_size = 128
  base.train.epochs = 10.0
  base.telemetry.every = '5%'
  base.eval.splits = ('test', 'train[:20%]')
  base.eval.every = '2 epochs'
  base.checkpoint.every = '0'
  config.variants = {
    'none': {},
    'value': {'clip.name': 'value', 'clip.threshold': 0.01},
    'global_norm': {'clip.name': 'global_norm', 'clip.threshold': 1.0},
    'block_norm': {'clip.name': 'block_norm', 'clip.threshold': 0.3},
    'adaptive': {'clip.name': 'adaptive', 'clip.threshold': 0.02},
  }
  return config
