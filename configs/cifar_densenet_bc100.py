"""DenseNet-BC (L = 100, k = 12) on CIFAR-10: Huang et al. 2017, section 4.2, and its recipe.

  python -m dnt.main --config=configs/cifar_densenet_bc100.py
  ... --config.data.source=cifar_binary:<dir>    with the official binary files at hand
  ... --config.eval.splits="('test',)"             trains on all 50,000 images, as the paper did

Published: 4.51 % test error with augmentation, 0.8 M parameters (table 2).
"""

from dnt import config as schema


def get_config():
  config = schema.default()
  config.data.source = 'tfds:cifar10'
  config.data.val_fraction = 0.1
  config.data.augment = 'pad_crop_flip'
  config.model.name = 'densenet'
  config.model.depth = 100
  config.model.growth_rate = 12
  config.model.bottleneck = True
  config.model.compression = 0.5
  config.optim.learning_rate = 0.1
  config.optim.nesterov = True
  config.optim.weight_decay = 1e-4
  config.schedule.name = 'piecewise'
  config.schedule.boundaries = ('50%', '75%')
  config.train.batch_size = 64
  config.train.epochs = 300.0
  return config
