"""1000 MRI scans, four classes: from scratch, head only, last two blocks, all of an ImageNet ResNet-50.

  python -m dnt.compare --config=configs/transfer_mri_resnet50.py --config.base.data.source=folder:<dir> \
    --config.base.train.init_from=tfjs:<dir>

The folder holds train/<class>/ and val/<class>/; the weights are Keras' ResNet-50 in TensorFlow.js layers format. Other
weights need other values of model.norm_epsilon and model.stride_on (torchvision: 1e-5 and 3x3). The features of frozen
entries are computed once. The classes have 121 to 294 scans each and equal weight in the loss. Expected (3 seeds): head
88.75 %, last two blocks 91.92, all 89.58; PyTorch: head 88.3, last two blocks 91.3. `--form=short`: 20 scans a class.
"""

from dnt import config as schema


def get_config():
  config = schema.default('compare')
  config.seeds = (0, 1, 2)
  config.columns = (
    'accuracy',
    'auroc',
    'calibration_error',
    'seconds',
    'trainable_parameters',
    'process_memory',
    'device_memory',
  )
  config.forms = {'short': {'data.images_per_class': 20}}
  base = config.base
  base.data.source = 'folder:data/mri'
  base.data.update({'image_size': 224, 'eval_resize': 'squash'})
  base.model.name = 'resnet'
  base.model.depth = 50
  base.model.stem = 'imagenet'
  base.model.stride_on = '1x1'
  base.model.norm_epsilon = 1e-3
  base.train.init_from = 'tfjs:data/resnet50_keras'
  base.loss.balance_classes = True
  base.optim.name = 'adamw'
  base.optim.weight_decay = 0.01
  base.schedule.name = 'cosine'
  base.train.batch_size = 32
  base.train.epochs = 10.0
  base.train.log_every = '5%'
  base.telemetry.every = '10%'
  base.eval.splits = ('val',)
  base.eval.batch_size = 64
  base.eval.every = '10%'
  base.checkpoint.every = '0'
  # A small network of its own, at 64 pixels.
  small = {'model.depth': 20, 'model.stem': 'cifar', 'model.stride_on': None, 'data.image_size': 64}
  normalized = {'data.mean': (0.485, 0.456, 0.406), 'data.std': (0.229, 0.224, 0.225)}
  scratch = {'train.init_from': '', 'data.augment': 'pad_crop_flip', 'optim.learning_rate': 1e-3, 'train.epochs': 30.0}
  top2 = {'finetune.trainable': 'top:2', 'finetune.head_lr_mult': 10.0}
  config.variants = {
    'scratch': {**small, **normalized, **scratch},
    'head': {'finetune.trainable': 'head', 'optim.learning_rate': 1e-3, 'train.batch_size': 64, 'train.epochs': 40.0},
    'top2': {**top2, 'optim.learning_rate': 1e-4, 'train.epochs': 10.0},
    'all': {'optim.learning_rate': 1e-5, 'finetune.head_lr_mult': 100.0},
  }
  return config
