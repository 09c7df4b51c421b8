"""No norm, Batch-, Layer-, Group- and RMSNorm at 1, 2, 8 and 128 examples a step: a ResNet-8 on Fashion-MNIST.

  python -m dnt.compare --config=configs/compare_norms_resnet.py
  ... --config.base.data.source=idx:<dir>    with the four IDX files at hand (Debian: dataset-fashion-mnist)

All runs see the same number of examples, from a twentieth of the training images at 14 pixels; the learning rate is
proportional to the batch size. A convolution gives BatchNorm a value per position too, so that even one example has
statistics. Convolutions have biases only without a norm, and RMSNorm has none, so that with it only the dense layer has
biases (74,762 parameters; 75,002 with the other norms). The 60 runs took 27 minutes on one core. Expected: test error
at 128, 8, 2 and 1 examples 19.47, 16.90, 18.79 and 46.91 % with BatchNorm, 33.43, 20.05, 19.54 and 19.42 % with
LayerNorm.
"""

from dnt import config as schema

NORMS = {'none': 'none', 'bn': 'batch_norm', 'ln': 'layer_norm', 'gn': 'group_norm', 'rms': 'rms_norm'}


def get_config():
  config = schema.default('compare')
  config.seeds = (0, 1, 2)
  base = config.base
  base.data.source = 'tfds:fashion_mnist'
  base.data.train_split = 'train[:5%]'
  base.data.image_size = 14
  base.model.name = 'resnet'
  base.model.depth = 8
  base.model.norm_groups = 8
  base.optim.weight_decay = 0.0
  base.schedule.name = 'cosine'
  base.schedule.warmup = '5%'
  base.train.epochs = 5.0
  base.train.steps_per_dispatch = 100
  base.train.log_every = '2%'
  base.telemetry.every = '0'
  base.eval.splits = ('test', 'train[:5%]')
  base.eval.every = '2 epochs'
  base.eval.batch_size = 500
  base.checkpoint.every = '0'
  config.variants = {
    f'batch{size}_{name}': {
      'model.norm': norm,
      'train.batch_size': size,
      'optim.learning_rate': 0.1 * size / 128,
    }
    for size in (1, 2, 8, 128)
    for name, norm in NORMS.items()
  }
  return config
