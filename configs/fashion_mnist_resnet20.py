"""ResNet-20 on Fashion-MNIST (28x28, gray), a recipe of ten epochs.

  python -m dnt.main --config=configs/fashion_mnist_resnet20.py
  ... --config.data.source=idx:<dir>    with the four IDX files at hand (Debian: dataset-fashion-mnist)

Published for comparison: ResNet-18 with 94.9 % (zalandoresearch/fashion-mnist).
"""

from dnt import config as schema


def get_config():
  config = schema.default()
  config.data.source = 'tfds:fashion_mnist'
  config.data.val_fraction = 0.1
  config.data.augment = 'pad_crop_flip'
  config.data.crop_padding = 2
  config.model.name = 'resnet'
  config.model.depth = 20
  config.optim.learning_rate = 0.1
  config.optim.nesterov = True
  config.optim.weight_decay = 5e-4
  config.schedule.name = 'cosine'
  config.schedule.warmup = '5%'
  config.train.batch_size = 128
  config.train.epochs = 10.0
  return config
