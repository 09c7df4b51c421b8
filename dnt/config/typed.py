"""Types of configs, for annotations: each option by name has the type that the schema gives it.

At run time configs are of class `schema.Section`, or plain `ml_collections.ConfigDict`s of a user. Options that
`open_options.resolve` always sets have the type that they hold then; other options without a default may be None.
`.ci/config_types.py` writes this file.
"""

from typing import Any, Literal

import ml_collections


class Data(ml_collections.ConfigDict):
  source: str
  train_split: str
  images_per_class: int | None
  dir: str
  seed: int
  val_fraction: float
  hold_out: bool | None
  crop_to_box: bool
  image_size: int | None
  image_bits: int
  exif_rotation: bool
  placement: str
  workers: int
  augment: str
  crop_padding: int
  flip: bool
  resized_crop_min_area: float
  eval_resize: str
  eval_crop: float
  interpolation: str
  mean: tuple[Any, ...]
  std: tuple[Any, ...]
  policy: str
  rand_augment_ops: int
  rand_augment_magnitude: int
  mixup: float
  cutmix: float
  erasing: float
  synthetic_examples: int
  synthetic_classes: int


class Model(ml_collections.ConfigDict):
  name: str
  num_classes: int
  dtype: str
  norm: str
  norm_epsilon: float
  norm_groups: int
  norm_momentum: float
  norm_sync: str
  weight_standardization: bool
  activation: str
  initializer: str
  init_gain: float
  depth: int | None
  width: int | None
  block: str | None
  stem: str | None
  shortcut: str | None
  stride_on: str | None
  zero_init_last_norm: bool | None
  residual_scalar: float | None
  stochastic_depth: float | None
  gate_bias: float | None
  growth_rate: int | None
  compression: float | None
  bottleneck: bool | None
  scan: bool
  remat: bool
  options: dict[str, Any]
  folder: str | None


class Loss(ml_collections.ConfigDict):
  label_smoothing: float
  class_weights: tuple[Any, ...]
  balance_classes: bool


class Optim(ml_collections.ConfigDict):
  name: str
  learning_rate: float | Literal['auto']
  momentum: float
  nesterov: bool
  b1: float
  b2: float
  epsilon: float
  weight_decay: float
  weight_decay_on: str


class Schedule(ml_collections.ConfigDict):
  name: str
  warmup: str
  warmup_shape: str
  warmup_start: float
  boundaries: tuple[Any, ...]
  factor: float
  final: float
  one_cycle_rise: str
  one_cycle_start: float


class Clip(ml_collections.ConfigDict):
  name: str
  threshold: float
  epsilon: float


class Finetune(ml_collections.ConfigDict):
  trainable: str
  unfreeze: tuple[Any, ...]
  frozen_norm: str
  layer_decay: float
  head_lr_mult: float
  rates: tuple[Any, ...]
  reinit: tuple[Any, ...]
  cached_views: int | None
  cache_dir: str
  l2_sp: float


class Ema(ml_collections.ConfigDict):
  decay: float


class Train(ml_collections.ConfigDict):
  batch_size: int
  steps: int
  epochs: float
  accumulate: int
  steps_per_dispatch: int
  log_every: str
  patience: int
  init_from: str


class Eval(ml_collections.ConfigDict):
  splits: tuple[str, ...]
  every: str
  batch_size: int


class Checkpoint(ml_collections.ConfigDict):
  every: str
  keep: int
  best_metric: str


class Telemetry(ml_collections.ConfigDict):
  every: str


class LrFind(ml_collections.ConfigDict):
  start: float
  end: float
  steps: int
  groups: tuple[Any, ...]


class NoiseScale(ml_collections.ConfigDict):
  batches: int
  micro_batches: int


class Mesh(ml_collections.ConfigDict):
  fsdp: int


class Config(ml_collections.ConfigDict):
  seed: int
  data: Data
  model: Model
  loss: Loss
  optim: Optim
  schedule: Schedule
  clip: Clip
  finetune: Finetune
  ema: Ema
  train: Train
  eval: Eval
  checkpoint: Checkpoint
  telemetry: Telemetry
  lr_find: LrFind
  noise_scale: NoiseScale
  mesh: Mesh
  sharding: tuple[Any, ...]


class Comparison(ml_collections.ConfigDict):
  seeds: tuple[int, ...]
  base: Config
  variants: dict[str, Any]
  forms: dict[str, Any]
  columns: tuple[str, ...]


class Signal(ml_collections.ConfigDict):
  depths: tuple[int, ...]
  activations: tuple[str, ...]
  blocks: tuple[str, ...]
  norms: tuple[str, ...]
  weight_variances: tuple[float, ...]
  bias_variances: tuple[float, ...]
  gate_bias: float
  width: int
  batch_size: int
  input_correlation: float
  seed: int
  seeds: int
  singular_values: int
  lanczos_iterations: int
  jacobian_seeds: int


class SignalConfig(ml_collections.ConfigDict):
  signal: Signal
