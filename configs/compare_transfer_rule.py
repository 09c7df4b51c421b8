"""How many layers of an ImageNet ResNet-50 to retrain, by images of each class, near ImageNet and far from it.

  python -m dnt.compare --config=configs/compare_transfer_rule.py --only='*_head,*_top?'
  python -m benchmarks.transfer_rule runs/compare_transfer_rule      plots the cells and tabulates the best

The rule: the more data and the closer the task to ImageNet, the fewer layers need to be retrained. The folder data/
holds, or links to, cars (near), mri (far), fashion_mnist (gray drawings) and resnet50_keras; network and rates are
those of the two transfer configs. A cell's budget does not depend on what trains: ten epochs, at least 200 steps, of 32
images. A seed of --form=short (112 pixels; drawings 96) takes 4 h 40 min of a slow core and 7.5 GB of features, 224
pixels four times both (DNT_CACHE_GB=40); without --only all layers train too. Expected of the short form: more data pay
for more layers: head and four blocks have 17.42 and 18.17 % with 5 cars of each class, 40.79 and 57.56 % with all.
"""

import math

from dnt import config as schema

# What trains: its entries, and the learning rate below the head.
CHOICES = {'head': ('head', 1e-3), 'top1': ('top:1', 1e-4), 'top2': ('top:2', 1e-4), 'top4': ('top:4', 1e-4)}
CHOICES['all'] = ('all', 1e-5)
FASHION = {'data.source': 'idx:data/fashion_mnist', 'data.image_size': 96, 'eval.splits': ('test[:20%]',)}
# Options, classes, all images, and images of each class (None: all). The smallest class of the cars has 18.
DATA = {
  'cars': ({'data.source': 'cars:data/cars'}, 196, 6146, (5, 10, 18, None)),
  'mri': ({'data.source': 'folder:data/mri', 'eval.splits': ('val',)}, 4, 1000, (5, 10, 20, None)),
  'fashion': (FASHION, 10, 60_000, (5, 10, 20, 50)),
}


def get_config():
  config = schema.default('compare')
  config.seeds = (0, 1, 2)
  config.columns = ('accuracy', 'seconds', 'trainable_parameters')
  config.forms = {'short': {'data.image_size': 112}}
  base = config.base
  base.data.update({'image_size': 224, 'eval_resize': 'squash'})
  base.model.update({'depth': 50, 'stem': 'imagenet', 'stride_on': '1x1', 'norm_epsilon': 1e-3})
  base.train.init_from = 'tfjs:data/resnet50_keras'
  base.loss.balance_classes = True
  base.optim.update({'name': 'adamw', 'weight_decay': 0.01})
  base.schedule.name = 'cosine'
  base.train.batch_size = 32
  base.train.log_every = '5%'
  base.telemetry.every = '0'
  base.eval.update({'splits': ('test',), 'batch_size': 64, 'every': '0'})
  base.checkpoint.every = '0'
  config.variants = {
    f'{data}_{count or "all"}_{choice}': {
      **options,
      'data.images_per_class': count,
      'train.steps': max(200, math.ceil(10 * (count * classes if count else images) / 32)),
      'finetune.trainable': entries,
      'finetune.head_lr_mult': 1e-3 / rate,
      'optim.learning_rate': rate,
    }
    for choice, (entries, rate) in CHOICES.items()
    for data, (options, classes, images, counts) in DATA.items()
    for count in counts
  }
  return config
