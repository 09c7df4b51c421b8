"""Convolutional highway network of 32 layers on CIFAR-10: the block of Srivastava et al. 2015, He et al.'s recipe.

  python -m dnt.main --config=configs/cifar_highway32.py
  ... --config.data.source=cifar_binary:<dir>    with the official binary files at hand
  ... --config.eval.splits="('test',)"             trains on all 50,000 images, as the paper did

Published for highway networks (as quoted by He et al. 2015, table 6): 91.20 % test accuracy (32 layers, 1.25 M
parameters), 92.46 % (19 layers, 2.3 M).
"""

from dnt import config as schema


def get_config():
  config = schema.default()
  config.data.source = 'tfds:cifar10'
  config.data.val_fraction = 0.1
  config.data.augment = 'pad_crop_flip'
  config.model.name = 'highway'
  config.model.depth = 32
  config.model.gate_bias = -2.0
  config.optim.learning_rate = 0.1
  config.optim.weight_decay = 1e-4
  config.schedule.name = 'piecewise'
  config.schedule.boundaries = ('32000', '48000')
  config.train.batch_size = 128
  config.train.steps = 64_000
  return config
