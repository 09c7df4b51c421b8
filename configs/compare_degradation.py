"""Degradation: plain-20 and -56 against ResNet-20, -56 and -110 on CIFAR-10, the recipe of He et al. 2015, section 4.2.

  python -m dnt.compare --config=configs/compare_degradation.py
  ... --form=short --only=plain20,plain56,resnet20,resnet56    for two CPU cores
  ... --config.base.data.source=cifar_binary:<dir>             with the official binary files at hand

Expected: plain-56 has a larger training error than plain-20 in every form (81.89 against 0.04 % in the short one,
55.70 against 11.38 % after 7,812 steps on all images). That ResNet-56 has a smaller one than ResNet-20 is the
paper's result after 64k steps; in fewer it was not seen here (0.05 against 0.00 %; 26.60 against 17.39 % after 2,850
of 3,125 steps, 10.82 against 9.24 % after 7,812). Published test errors: ResNet 8.75, 6.97, 6.43 %, plain 10.08, 15.39
% (a reimplementation). The full form takes 64k steps per run, for an accelerator. The short form takes 2,500 images at
16x16 without augmentation, 40 epochs in batches of 32 (3,125 steps) and a quarter of the rate. It shows which networks
can fit the training images, but not the paper's test errors.
"""

from dnt import config as schema


def get_config():
  config = schema.default('compare')
  config.seeds = (0, 1, 2)
  base = config.base
  base.data.source = 'tfds:cifar10'
  base.data.augment = 'pad_crop_flip'
  base.optim.learning_rate = 0.1
  base.optim.weight_decay = 1e-4
  base.schedule.name = 'piecewise'
  base.schedule.boundaries = ('50%', '75%')
  base.train.batch_size = 128
  base.train.steps = 64_000
  base.telemetry.every = '2%'
  base.eval.splits = ('test', 'train')
  base.eval.every = '4 epochs'
  base.checkpoint.every = '4 epochs'
  config.forms = {
    'short': {
      'data.image_size': 16,
      'data.augment': 'none',
      'data.train_split': 'train[:5%]',
      'optim.learning_rate': 0.025,
      'train.batch_size': 32,
      'train.epochs': 40.0,
      'eval.splits': ('test', 'train[:5%]'),
      'eval.every': '20%',
      'checkpoint.every': '20%',
    }
  }
  # 400 of 64k steps, as in the paper.
  warm = {'schedule.warmup': '0.625%', 'schedule.warmup_shape': 'constant', 'schedule.warmup_start': 0.1}
  config.variants = {
    'plain20': {'model.name': 'plain', 'model.depth': 20},
    'plain56': {'model.name': 'plain', 'model.depth': 56},
    'resnet20': {'model.name': 'resnet', 'model.depth': 20},
    'resnet56': {'model.name': 'resnet', 'model.depth': 56},
    'resnet110': {'model.name': 'resnet', 'model.depth': 110, **warm},
  }
  return config
