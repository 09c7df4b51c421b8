"""Fine-tunes any pretrained network on a folder of images: the head for one epoch, then all, at a rate it finds.

  python -m dnt.main --config=configs/transfer_folder.py --config.data.dir=<folder> --config.train.init_from=<weights>

The folder holds train/<class>/, and may hold val/<class>/ and test/<class>/, or it holds <class>/ alone; without val, a
fifth of the training images becomes val. The weights determine network, image size and normalization; they are
hf:timm/resnet50.a1_in1k, tfjs:<dir>, a .safetensors, .pth, .h5 or .keras file, or the workdir of another run. A range
test of the head finds the learning rate, unless --config.optim.learning_rate sets it. The head has 37.5 times the rate
of the entry before it, and each entry further from the head a rate smaller by a fifth. No figure was measured: it
depends on the images. Afterwards, classify your own images:

  python -m dnt.predict --workdir=runs/transfer_folder --images=<image, folder or quoted glob>
"""

from dnt import config as schema


def get_config():
  config = schema.default()
  config.data.source = 'folder'
  config.data.augment = 'resized_crop_flip'
  config.data.resized_crop_min_area = 0.5
  config.model.name = 'pretrained'
  config.optim.name = 'adamw'
  config.optim.learning_rate = 'auto'
  config.optim.weight_decay = 0.01
  config.schedule.name = 'one_cycle'
  config.finetune.trainable = 'head'
  config.finetune.unfreeze = (('1 epochs', 'all'),)
  config.finetune.layer_decay = 0.8
  config.finetune.head_lr_mult = 30.0
  config.train.batch_size = 32
  config.train.epochs = 10.0
  config.train.log_every = '5%'
  config.telemetry.every = '10%'
  config.eval.batch_size = 64
  config.checkpoint.keep = 1
  return config
