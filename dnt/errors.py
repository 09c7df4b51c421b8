"""Defines the two errors that users can see, and the message for a misspelt name.

Programs print either error as a single line and exit with 2 for `InputError` (nothing was run), with 1 for `RunError`.
"""

import difflib
import errno
import re
from collections.abc import Iterable, Sequence

LISTED = 24  # most valid names that a message lists in full; if there are more, it lists the nearest
NEAREST = 5
PATHS = 8  # most paths of each kind that a message lists
FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk
MORE_FILES = 'raise the number of files that a process may open (`ulimit -n`, or of a container --ulimit nofile)'

# Config keys and values of dnt, each with names that other programs have for it. A name may stand in several lines:
# the first that is valid is meant.
_OTHER_NAMES = {
  # keys
  'seed': 'random_seed random_state seed',
  'data.source': 'data dataset data_source data_set',
  'data.val_fraction': 'validation_split valid_pct val_pct val_ratio val_size',
  'data.dir': 'data_dir data_path data_root root path',
  'data.image_size': 'img_size imgsz input_size resolution size',
  'data.eval_crop': 'crop_pct',
  'data.workers': 'num_workers n_workers',
  'data.augment': 'aug augmentation augmentations transforms',
  'data.policy': 'auto_augment autoaugment randaugment aa',
  'data.mixup': 'mixup_alpha',
  'data.cutmix': 'cutmix_alpha',
  'data.flip': 'hflip horizontal_flip',
  'data.erasing': 'random_erasing random_erase reprob',
  'model.name': 'model arch architecture backbone net network',
  'model.num_classes': 'classes n_classes nb_classes',
  'model.dtype': 'precision amp mixed_precision half',
  'model.norm': 'normalization normalisation norm_layer bn batchnorm batch_norm',
  'model.norm_sync': 'sync_bn sync_batchnorm',
  'model.activation': 'act act_layer activation_fn nonlinearity',
  'model.initializer': 'init initialiser initialization initialisation init_method weight_init kernel_init',
  'model.depth': 'layers num_layers n_layers',
  'model.width': 'hidden hidden_size hidden_dim units channels widen_factor',
  'model.stochastic_depth': 'drop_path drop_path_rate droppath drop_connect',
  'model.remat': 'grad_checkpointing gradient_checkpointing',
  'loss.label_smoothing': 'smoothing label_smooth',
  'loss.class_weights': 'class_weight',
  'optim.name': 'optim opt optimizer optimiser solver',
  'optim.learning_rate': 'lr base_lr max_lr lr0 learningrate rate lr_max init_lr initial_lr',
  'optim.weight_decay': 'wd weightdecay l2 l2_reg',
  'optim.b1': 'beta1 beta_1 betas',
  'optim.b2': 'beta2 beta_2',
  'optim.epsilon': 'eps',
  'schedule.name': 'schedule scheduler sched lr_schedule lr_scheduler',
  'schedule.warmup': 'warmup_steps warmup_epochs num_warmup_steps',
  'schedule.boundaries': 'milestones',
  'schedule.factor': 'gamma',
  'schedule.final': 'min_lr eta_min final_lr lr_min',
  'clip.name': 'clip clip_mode',
  'clip.threshold': 'clip_norm grad_clip clip_grad max_norm max_grad_norm gradient_clip_val clip.norm',
  'finetune.trainable': 'freeze freeze_base',
  'ema.decay': 'ema ema_decay ema.rate model_ema model_ema_decay',
  'train.batch_size': 'bs batch batchsize batch_size mini_batch minibatch',
  'train.epochs': 'epoch epochs n_epochs num_epochs num_train_epochs max_epochs',
  'train.steps': 'steps iterations iters num_iters max_iter n_steps num_steps max_steps total_steps',
  'train.accumulate': 'accumulation grad_accum accumulation_steps gradient_accumulation_steps accumulate_grad_batches',
  'train.log_every': 'log_interval log_every_n_steps logging_steps print_freq',
  'train.patience': 'early_stopping early_stop early_stopping_patience',
  'train.init_from': 'pretrained weights init_weights checkpoint_path initial_checkpoint',
  'checkpoint.every': 'save_every save_freq save_steps',
  'checkpoint.best_metric': 'monitor eval_metric metric_for_best_model',
  'checkpoint.keep': 'save_top_k save_total_limit checkpoint_hist max_to_keep',
  'eval.every': 'eval_every eval_freq eval_steps val_check_interval',
  'eval.splits': 'val_split test_split',
  # values
  'adamw': 'adam adam_w',
  'sgd': 'momentum nesterov',
  'glorot': 'xavier xavier_uniform xavier_normal glorot_uniform glorot_normal',
  'he': 'kaiming kaiming_uniform kaiming_normal he_uniform he_normal msra',
  'lecun': 'lecun_normal lecun_uniform',
  'normal': 'gaussian random_normal truncated_normal',
  'batch_norm': 'bn batchnorm batchnorm2d batch batch_normalization',
  'layer_norm': 'ln layernorm layer',
  'group_norm': 'gn groupnorm group',
  'rms_norm': 'rmsnorm rms',
  'silu': 'swish',
  'leaky_relu': 'leaky lrelu leakyrelu',
  'identity': 'linear id',
  'piecewise': 'step steps multistep multi_step',
  'one_cycle': 'onecycle 1cycle',
  'cosine': 'cos cosine_annealing cosineannealing',
  'constant': 'fixed',
  'global_norm': 'norm',
  'adaptive': 'agc',
  'float32': 'fp32 f32 float single',
  'bfloat16': 'bf16 fp16 float16 half mixed',
  'rand_augment': 'randaugment ra',
  'trivial_augment': 'trivialaugment',
  'plain': 'vgg',
  'resnet': 'wrn wide_resnet resnext',
  'none': 'no off false null',
}

# Options that other programs have and dnt has not, each line with what to do instead.
_ANSWERS = {
  'resume resume_from resume_from_checkpoint auto_resume ckpt_path': (
    'the same command resumes a run; train.init_from starts a new one from other weights'
  ),
  'dropout dropout_rate drop drop_rate': (
    'no network of dnt has dropout; resnet has model.stochastic_depth, and your own module may have dropout'
  ),
  'eval evaluate validate test eval_only test_only': '--mode=evaluate of dnt.main evaluates a run',
  'find_lr lr_finder auto_lr_find': '--mode=lr_find of dnt.main finds a rate, and so does optim.learning_rate=auto',
  'output output_dir out_dir outdir save_dir checkpoint_dir checkpoint.dir log_dir logdir default_root_dir dirpath': (
    '--workdir names the folder to which a program writes'
  ),
  'gpu gpus num_gpus device devices accelerator': (
    'a run takes all devices that jax finds, which JAX_PLATFORMS=cpu or CUDA_VISIBLE_DEVICES=0 limit'
  ),
}


class InputError(ValueError):
  """Bad config, data, checkpoint or flag; the message explains what is wrong, what is valid and what to do."""


class UnknownKeyError(InputError, AttributeError, KeyError):
  """An option that a config does not have; also what Python expects of a missing attribute and of a missing key."""

  __str__ = ValueError.__str__  # that of KeyError quotes the message


class RunError(RuntimeError):
  """A run that started and failed, such as a loss that is not finite."""


def first_line(error: BaseException) -> str:
  """Returns the first line of an error's message, or its type if it has none."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def of_file(error: OSError) -> RunError:
  """Makes the error for a file that cannot be written or read, from an error that names it."""
  hint = '; make room and run the same command again' if error.errno in FULL else ''
  hint = f'; {MORE_FILES}' if error.errno == errno.EMFILE else hint
  return RunError(f'{error.filename}: {error.strerror}{hint}')


def unknown(what: str, name: str, valid: Iterable[str]) -> InputError:
  """Makes the error for a name outside a closed set; the message names the nearest valid one, or what to do instead.

  Args:
    what: kind of the name, in words (`'config key'`).
    name: the unknown name.
    valid: all valid names.

  Returns:
    An `InputError` to raise.
  """
  valid = sorted(valid)
  if not valid:
    return InputError(f'unknown {what} {name!r}: there is none')
  answer = _answer(name) if what.startswith(('config key', 'flag')) and not _meant(name, valid) else ''
  if answer:
    return InputError(f'unknown {what} {name!r}: {answer}')
  near = nearest(name, valid)
  hint = f'; did you mean {near!r}?' if near else '.'
  shown = valid
  if len(valid) > LISTED:
    close = difflib.get_close_matches(name, valid, n=NEAREST, cutoff=0.0)
    shown = list(dict.fromkeys([near, *close]))[:NEAREST] if near else _beside(name, valid) or close
  more = f' and {len(valid) - len(shown)} more' if len(shown) < len(valid) else ''
  return InputError(f'unknown {what} {name!r}{hint} Valid: {", ".join(shown)}{more}')


def nearest(name: str, valid: Sequence[str]) -> str | None:
  """Returns the valid name that is probably meant; None if none is near."""
  return _meant(name, valid) or _alike(name, valid)


def _meant(name: str, valid: Sequence[str]) -> str | None:
  """Returns the valid name of which this is another spelling, or the field's word; None if there is none."""
  spelt = _normalized(name)
  same = [each for each in valid if _normalized(each) == spelt]
  words = {spelt, _end(spelt), re.sub(r'_?\d.*', '', spelt)}  # the last without a depth: resnet50
  known = [key for key, others in _OTHER_NAMES.items() if words & set(others.split())]
  section = name.removesuffix(_end(name))
  alike = [key for key in (section + _end(key) for key in known) if key in valid]  # eval.bs is eval.batch_size
  # A key of a comparison has a section before it, and a flag has '--config.'; without a section, seed is not data.seed.
  short = sorted(valid, key=len)
  elsewhere = [each for key in known for each in short if each == key or each.endswith(f'.{key}')]
  return next(iter([*same, *alike, *elsewhere]), None)


def _normalized(name: str) -> str:
  return name.lower().replace('-', '_').lstrip('_')


def _end(name: str) -> str:
  """Returns a config key without its section."""
  return name.rpartition('.')[2]


def _beside(name: str, valid: Iterable[str]) -> list[str]:
  """Returns the valid names of the section of a config key."""
  section = name.removesuffix(_end(name))
  return [each for each in valid if section and each.removesuffix(_end(each)) == section]


def _answer(name: str) -> str:
  """Returns what to do in place of an option that other programs have; '' if it is none."""
  words = {_normalized(name), _end(_normalized(name))}
  return next((answer for names, answer in _ANSWERS.items() if words & set(names.split())), '')


def _alike(name: str, valid: Sequence[str]) -> str | None:
  """Returns the valid name that is written like this one; None if none is, apart from the section of a config key."""
  end, beside = _end(_normalized(name)), _beside(name, valid)
  elsewhere = [each for each in valid if _end(_normalized(each)) == end]
  if not beside:
    section = _closest(name, {each.partition('.')[0] for each in valid}, 0.75)
    inside = [each for each in valid if each.startswith(f'{section}.')]
    return _closest(name, elsewhere, 0.0) or _closest(name, valid, 0.6) or _closest(name, inside, 0.0)
  # Many sections have a name, an end or a batch_size.
  moved = _closest(name, elsewhere, 0.75 if len(elsewhere) > 1 else 0.0)
  return moved or _by_end(end, beside, 0.6) or _by_end(end, (each for each in valid if each not in elsewhere), 0.75)


def _by_end(end: str, valid: Iterable[str], cutoff: float) -> str | None:
  keys = {_end(each): each for each in valid}
  return keys.get(_closest(end, keys, cutoff) or '')


def _closest(name: str, valid: Iterable[str], cutoff: float) -> str | None:
  return next(iter(difflib.get_close_matches(name, list(valid), n=1, cutoff=cutoff)), None)


def list_names(names: Sequence[str], most: int = PATHS) -> str:
  """Joins the first `most` names in one line, and adds how many more there are."""
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more
