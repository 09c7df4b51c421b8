"""Plain, residual, pre-activation, highway and dense blocks at about equal parameters, on Fashion-MNIST at 14x14.

  python -m dnt.compare --config=configs/compare_blocks.py
  ... --config.base.data.source=idx:<dir>    with the four IDX files at hand (Debian: dataset-fashion-mnist)

Plain-20, ResNet-20 and pre-activation ResNet-20 have 269,434 parameters, highway-20, three quarters as wide, has
289,774, and DenseNet-BC of 40 layers with k = 15 has 272,440. Each run takes 10 epochs on a tenth of the images.
Expected, each run on one CPU core: test error 17.16 % plain, 15.35 residual, 15.34 pre-activation, 16.67 highway and
14.33 dense.
"""

from dnt import config as schema


def get_config():
  config = schema.default('compare')
  config.seeds = (0, 1, 2)
  base = config.base
  base.data.source = 'tfds:fashion_mnist'
  base.data.train_split = 'train[:10%]'
  base.data.image_size = 14
  base.data.augment = 'pad_crop_flip'
  base.data.crop_padding = 1
  base.optim.learning_rate = 0.1
  base.optim.nesterov = True
  base.optim.weight_decay = 5e-4
  base.schedule.name = 'cosine'
  base.schedule.warmup = '5%'
  base.train.batch_size = 128
  base.train.epochs = 10.0
  base.eval.splits = ('test', 'train[:10%]')
  base.eval.every = '4 epochs'
  base.checkpoint.every = '4 epochs'
  config.variants = {
    'plain': {'model.name': 'plain', 'model.depth': 20},
    'residual': {'model.name': 'resnet', 'model.depth': 20},
    'preactivation': {'model.name': 'resnet', 'model.depth': 20, 'model.block': 'preact_basic', 'model.shortcut': 'A'},
    'highway': {'model.name': 'highway', 'model.depth': 20, 'model.width': 12},
    'dense': {'model.name': 'densenet', 'model.depth': 40, 'model.growth_rate': 15},
  }
  return config
