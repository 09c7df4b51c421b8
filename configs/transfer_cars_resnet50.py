"""Stanford Cars, 196 classes: the head of an ImageNet ResNet-50, its last two blocks, all of it, and with RandAugment.

  python -m dnt.compare --config=configs/transfer_cars_resnet50.py --config.base.data.source=cars:<dir> \
    --config.base.train.init_from=tfjs:<dir>

The first folder holds the images (dnt/data/sources/cars.py describes the layouts), the second Keras' ResNet-50 in
TensorFlow.js layers format. Other weights need other values of model.norm_epsilon and model.stride_on (torchvision:
1e-5 and 3x3). `--form=short` takes images of 112 pixels, for machines without an accelerator. Expected, on 2 CPU cores
with 6,146 images to train on: head 66.83 % and last two blocks 77.95 % (3 seeds), all 74.27 % (1 seed).
"""

from dnt import config as schema


def get_config():
  config = schema.default('compare')
  config.columns = ('accuracy', 'seconds', 'trainable_parameters', 'process_memory', 'device_memory')
  config.forms = {'short': {'data.image_size': 112}}
  base = config.base
  base.data.source = 'cars:data/cars'
  base.data.image_size = 224
  base.data.eval_resize = 'squash'
  base.model.name = 'resnet'
  base.model.depth = 50
  base.model.stem = 'imagenet'
  base.model.stride_on = '1x1'
  base.model.norm_epsilon = 1e-3
  base.train.init_from = 'tfjs:data/resnet50_keras'
  base.optim.name = 'adamw'
  base.optim.weight_decay = 0.01
  base.schedule.name = 'cosine'
  base.train.batch_size = 32
  base.train.epochs = 8.0
  base.train.log_every = '5%'
  base.telemetry.every = '10%'
  base.eval.splits = ('test',)
  base.eval.batch_size = 64
  base.eval.every = '12.5%'
  base.checkpoint.every = '12.5%'
  every_block = {'optim.learning_rate': 1e-5, 'finetune.head_lr_mult': 100.0}
  config.variants = {
    'head': {'finetune.trainable': 'head', 'optim.learning_rate': 1e-3, 'train.batch_size': 64, 'train.epochs': 40.0},
    'top2': {
      'finetune.trainable': 'top:2',
      'optim.learning_rate': 1e-4,
      'finetune.head_lr_mult': 10.0,
      'train.epochs': 8.0,
    },
    'all': every_block,
    'all_rand_augment': {
      **every_block,
      'data.augment': 'resized_crop_flip',
      'data.policy': 'rand_augment',
      'train.epochs': 16.0,
    },
  }
  return config
