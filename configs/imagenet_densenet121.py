"""DenseNet-121 on ImageNet: Huang et al. 2017, section 4.2: 90 epochs; the rate falls to a tenth at 30 and 60.

  python -m dnt.main --config=configs/imagenet_densenet121.py --config.data.dir=<tfds dir>

TFDS cannot download ImageNet: place the two archives by hand, as its message says. Made for 8 accelerators or more.
Published: 25.02 % top-1 error, single crop (table 3).
"""

from dnt import config as schema


def get_config():
  config = schema.default()
  config.data.source = 'tfds:imagenet2012'
  config.data.image_size = 224
  config.data.augment = 'resized_crop_flip'
  config.data.mean = (0.485, 0.456, 0.406)
  config.data.std = (0.229, 0.224, 0.225)
  config.data.workers = 16
  config.model.name = 'densenet'
  config.model.stem = 'imagenet'
  config.model.depth = 121
  config.model.growth_rate = 32
  config.model.bottleneck = True
  config.model.compression = 0.5
  config.optim.nesterov = True
  config.optim.learning_rate = 0.1
  config.optim.weight_decay = 1e-4
  config.schedule.name = 'piecewise'
  config.schedule.boundaries = ('30 epochs', '60 epochs')

  config.train.batch_size = 256
  config.train.epochs = 90.0
  config.eval.splits = ('validation',)
  return config
