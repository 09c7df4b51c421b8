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
  'seed': 'random_seed random_state',
  'data.source': 'data dataset data_source data_set',
  'data.dir': 'data_dir data_path data_root root path',
  'data.image_size': 'img_size imgsz input_size resolution size',
  'data.workers': 'num_workers n_workers',
  'data.augment': 'aug augmentation augmentations transforms',
  'data.policy': 'auto_augment autoaugment randaugment aa',
  'data.flip': 'hflip horizontal_flip',
  'data.erasing': 'random_erasing random_erase reprob',
  'model.name': 'model arch architecture backbone net network',
  'model.num_classes': 'classes n_classes nb_classes',
  'model.dtype': 'precision amp mixed_precision half',
  'model.norm': 'normalization normalisation norm_layer',
  'model.activation': 'act act_layer activation_fn nonlinearity',
  'model.initializer': 'init initialiser initialization initialisation init_method weight_init kernel_init',
  'model.depth': 'layers num_layers n_layers',
  'model.width': 'hidden hidden_size hidden_dim units channels widen_factor',
  'model.stochastic_depth': 'drop_path drop_path_rate droppath drop_connect',
  'loss.label_smoothing': 'smoothing label_smooth',
  'optim.name': 'optim opt optimizer optimiser solver',
  'optim.learning_rate': 'lr base_lr max_lr lr0 learningrate rate',
  'optim.weight_decay': 'wd weightdecay l2 l2_reg',
  'optim.b1': 'beta1 beta_1 betas',
  'optim.b2': 'beta2 beta_2',
  'optim.epsilon': 'eps',
  'schedule.name': 'schedule scheduler sched lr_schedule lr_scheduler',
  'schedule.warmup': 'warmup_steps warmup_epochs num_warmup_steps',
  'schedule.boundaries': 'milestones',
  'schedule.factor': 'gamma',
  'schedule.final': 'min_lr eta_min final_lr',
  'clip.name': 'clip clip_mode',
  'clip.threshold': 'clip_norm grad_clip clip_grad max_norm max_grad_norm gradient_clip_val',
  'finetune.trainable': 'freeze',
  'ema.decay': 'ema ema_decay model_ema',
  'train.batch_size': 'bs batch batchsize batch_size mini_batch minibatch',
  'train.epochs': 'epoch epochs n_epochs num_epochs num_train_epochs max_epochs',
  'train.steps': 'steps iterations iters num_iters max_iter n_steps num_steps max_steps total_steps',
  'train.accumulate': 'accumulation grad_accum accumulation_steps gradient_accumulation_steps accumulate_grad_batches',
  'train.patience': 'early_stopping early_stop',
  'train.init_from': 'pretrained weights init_weights checkpoint_path',
  'checkpoint.every': 'save_every save_freq save_steps',
  'eval.every': 'eval_every eval_freq eval_steps val_check_interval',
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
  """Makes the error for a name outside a closed set; the message names the nearest valid one.

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
  near = _meant(name, valid)
  hint = f'; did you mean {near!r}?' if near else '.'
  listed = ', '.join(valid)
  if len(valid) > LISTED:
    shown = difflib.get_close_matches(name, valid, n=NEAREST, cutoff=0.0)
    shown = list(dict.fromkeys([*([near] if near else []), *shown]))[:NEAREST]
    listed = f'{", ".join(shown)} and {len(valid) - len(shown)} more'
  return InputError(f'unknown {what} {name!r}{hint} Valid: {listed}')


def _meant(name: str, valid: Sequence[str]) -> str | None:
  """Returns the valid name that is probably meant: another spelling of it, the field's word for it, or the nearest."""

  def normalized(text: str) -> str:
    return text.lower().replace('-', '_').lstrip('_')

  def end(text: str) -> str:  # without the section of a config key
    return text.rpartition('.')[2]

  spelt = normalized(name)
  same = [each for each in valid if normalized(each) == spelt]
  words = {spelt, end(spelt), re.sub(r'_?\d.*', '', spelt)}  # the last without a depth: resnet50
  known = [key for key, others in _OTHER_NAMES.items() if words & set(others.split())]
  section = name.removesuffix(end(name))
  alike = [key for key in (section + end(key) for key in known) if key in valid]  # eval.bs is eval.batch_size
  # A key of a comparison has a section before it, and a flag has '--config.'.
  elsewhere = [each for key in known for each in valid if each == key or each.endswith(f'.{key}')]
  ends = [each for each in valid if end(normalized(each)) == end(spelt)]
  near = [
    *difflib.get_close_matches(name, ends, n=1, cutoff=0.0),
    *difflib.get_close_matches(name, valid, n=1, cutoff=0.5),
  ]
  return next(iter([*same, *alike, *elsewhere, *near]), None)


def list_names(names: Sequence[str], most: int = PATHS) -> str:
  """Joins the first `most` names in one line, and adds how many more there are."""
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more
