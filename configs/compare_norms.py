"""No norm, Batch-, Layer-, Group- and RMSNorm at 2, 8 and 128 examples a step: an MLP of six layers on Fashion-MNIST.

  python -m dnt.compare --config=configs/compare_norms.py
  ... --config.base.data.source=idx:<dir>    with the four IDX files at hand (Debian: dataset-fashion-mnist)

All runs see the same number of examples, from a tenth of the training images; the learning rate is proportional to the
batch size. In an MLP, BatchNorm has one value per example and unit, so that two examples leave nothing but a sign.
Expected, each run on one CPU core: training error at 128, 8 and 2 examples 2.70, 10.76 and 71.21 % with BatchNorm,
7.32, 4.63 and 4.69 % with LayerNorm.
"""

from dnt import config as schema

NORMS = {'none': 'none', 'bn': 'batch_norm', 'ln': 'layer_norm', 'gn': 'group_norm', 'rms': 'rms_norm'}


def get_config():
  config = schema.default('compare')
  config.seeds = (0, 1, 2)
  base = config.base
  base.data.source = 'tfds:fashion_mnist'
  base.data.train_split = 'train[:10%]'
  base.model.name = 'mlp'
  base.model.depth = 6
  base.model.width = 128
  base.model.norm_groups = 8
  base.optim.weight_decay = 0.0
  base.schedule.name = 'cosine'
  base.schedule.warmup = '5%'
  base.train.epochs = 10.0
  base.train.steps_per_dispatch = 100
  base.train.log_every = '2%'
  base.telemetry.every = '5%'
  base.eval.splits = ('test', 'train[:10%]')
  base.eval.every = '2 epochs'
  base.checkpoint.every = '0'
  config.variants = {
    f'batch{size}_{name}': {
      'model.norm': norm,
      'train.batch_size': size,
      'optim.learning_rate': 0.05 * size / 128,
    }
    for size in (2, 8, 128)
    for name, norm in NORMS.items()
  }
  return config
