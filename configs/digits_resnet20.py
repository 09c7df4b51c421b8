"""ResNet-20 on scikit-learn's digits (1797 pictures of 8x8): the default, nothing to download.

  python -m dnt.main --config=configs/digits_resnet20.py

Expected: at least 99 % test accuracy, under 45 s on 2 CPU cores.
"""

from dnt import config as schema


def get_config():
  config = schema.default()
  config.data.source = 'digits'
  config.data.augment = 'pad_crop_flip'
  config.data.crop_padding = 1
  config.data.flip = False
  config.model.name = 'resnet'
  config.model.depth = 20
  config.optim.learning_rate = 0.1
  config.optim.nesterov = True
  config.optim.weight_decay = 5e-4
  config.schedule.name = 'cosine'
  config.schedule.warmup = '5%'
  config.train.batch_size = 128
  config.train.epochs = 20.0
  config.eval.every = '5 epochs'
  config.checkpoint.every = '5 epochs'
  return config
