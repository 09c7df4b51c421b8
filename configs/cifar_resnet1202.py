"""ResNet-1202 on CIFAR-10: He et al. 2015, section 4.2. Scanned stages keep its compilation short.

  python -m dnt.main --config=configs/cifar_resnet1202.py
  ... --config.data.source=cifar_binary:<dir>    with the official binary files at hand
  ... --config.eval.splits="('test',)"             trains on all 50,000 images, as the paper did

Published: 7.93 % test error (table 6).
"""

from dnt import config as schema


def get_config():
  config = schema.default()
  config.data.source = 'tfds:cifar10'
  config.data.val_fraction = 0.1
  config.data.augment = 'pad_crop_flip'
  config.model.name = 'resnet'
  config.model.depth = 1202
  config.model.scan = True
  config.model.remat = True
  config.optim.learning_rate = 0.1
  config.optim.weight_decay = 1e-4
  config.schedule.name = 'piecewise'
  config.schedule.boundaries = ('32000', '48000')
  config.train.batch_size = 128
  config.train.steps = 64_000
  config.schedule.warmup = '400'
  config.schedule.warmup_shape = 'constant'
  config.schedule.warmup_start = 0.1
  return config
