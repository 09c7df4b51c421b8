"""Transfer from Fashion-MNIST to 100 digits, offline: from scratch, head only, last two blocks, all of a ResNet-8.

  python -m dnt.compare --config=configs/transfer_digits.py --config.base.data.dir=<dir>

The folder holds Fashion-MNIST's four IDX files (Debian: dataset-fashion-mnist); the images are resized to the digits'
8 pixels. Each seed has its own pretraining run, from which its other variants start. Expected, in 1 min 54 s on 2 CPU
cores: test accuracy 87.00 % from scratch, 74.74 head, 87.28 last two blocks and 87.37 all.
"""

from dnt import config as schema


def get_config():
  config = schema.default('compare')
  config.seeds = (0, 1, 2)
  config.columns = ('accuracy', 'seconds', 'trainable_parameters')
  base = config.base
  base.data.source = 'idx'
  base.data.dir = 'data/fashion_mnist'
  base.data.train_split = 'train[:20%]'
  base.data.image_size = 8
  base.data.eval_resize = 'squash'
  base.data.augment = 'pad_crop_flip'
  base.data.crop_padding = 1
  base.data.flip = False
  base.model.name = 'resnet'
  base.model.depth = 8
  base.model.width = 2
  base.optim.learning_rate = 0.1
  base.optim.nesterov = True
  base.optim.weight_decay = 5e-4
  base.schedule.name = 'cosine'
  base.schedule.warmup = '5%'
  base.train.epochs = 1.0
  base.train.log_every = '10%'
  base.telemetry.every = '0'
  base.eval.splits = ('test',)
  base.eval.every = '0'
  base.checkpoint.every = '0'
  digits = {
    'data.source': 'digits',
    'data.dir': '',
    'data.augment': 'none',
    'data.train_split': 'train[:100]',
    'train.batch_size': 20,
    'train.epochs': 40.0,
  }
  pretrained = digits | {'train.init_from': 'variant:pretrain'}
  config.variants = {
    'pretrain': {},
    'scratch': digits,
    'head': pretrained | {'finetune.trainable': 'head'},
    'top2': pretrained | {'finetune.trainable': 'top:2'},
    'all': pretrained | {'optim.learning_rate': 0.03},
  }
  return config
