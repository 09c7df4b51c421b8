"""ResNet-50 on ImageNet: He et al. 2015, stride on the 3x3, 90 epochs and a warm-up (Goyal et al. 2017).

  python -m dnt.main --config=configs/imagenet_resnet50.py --config.data.dir=<tfds dir>

TFDS cannot download ImageNet: place the two archives by hand, as its message says. Made for 8 accelerators or more.
Published: 76.1 to 76.7 % top-1 (torchvision's V1 weights; flax's example).
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
  config.model.name = 'resnet'
  config.model.stem = 'imagenet'
  config.model.depth = 50
  config.optim.nesterov = True
  config.optim.learning_rate = 0.1
  config.optim.weight_decay = 1e-4
  config.schedule.name = 'piecewise'
  config.schedule.boundaries = ('30 epochs', '60 epochs', '80 epochs')
  config.schedule.warmup = '5 epochs'
  config.train.batch_size = 256
  config.train.epochs = 90.0
  config.eval.splits = ('validation',)
  return config
