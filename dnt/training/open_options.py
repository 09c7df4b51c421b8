"""Fills in what a config leaves open, from the data, the pretrained weights and the model."""

from dnt import config as schema
from dnt import errors, models
from dnt.config import checks, durations, implied, typed
from dnt.data import pipeline
from dnt.data import splits as splits_lib
from dnt.parallel import multihost
from dnt.training import datasets, losses, scores
from dnt.weights import pretrained


def resolve(config: typed.Config, data: datasets.Data) -> typed.Config:
  """Returns a new config whose open options are filled in from pretrained weights, data and model.

  A run writes it to `config.json`.

  Raises:
    errors.InputError: a head, weights or statistics disagree with the data, the data has one class alone, or the
      classes cannot be balanced.
  """
  weights = data.weights
  resolved = datasets.prepared(config, weights)
  if weights and config.model.name == models.PRETRAINED:
    multihost.together(lambda: pretrained.fill_model(resolved.model, weights))
  classes = len(data.spec.class_names)
  if classes < 2:
    raise errors.InputError(
      f'{config.data.source} has only one class, {data.spec.class_names[0]!r}: there is nothing to learn'
    )
  if config.model.num_classes not in (None, classes):
    raise errors.InputError(
      f'config.model.num_classes={config.model.num_classes}, but {config.data.source} has {classes} classes; '
      'leave config.model.num_classes unset (None) to take the number in the data'
    )
  resolved.model.num_classes = classes
  if config.data.hold_out is None:
    resolved.data.hold_out = data.held_out
  if data.image_bits is not None:
    resolved.data.image_bits = data.image_bits
  fill_defaults(resolved.data)
  resolved.data.mean, resolved.data.std = pipeline.statistics(resolved.data, data.train)
  resolved.clip.threshold = implied.clip_threshold(config.clip)
  resolved.optim.update(implied.rule(config.optim))
  if config.train.steps is None:
    steps = config.train.epochs * data.spec.steps_per_epoch(config.train.batch_size)
    if steps > checks.LARGEST:
      raise errors.InputError(
        f'config.train.epochs={config.train.epochs} are {steps:.3g} steps; a run has at most {checks.LARGEST:,}'
      )
    resolved.train.steps = max(1, durations.nearest(steps))
  if config.loss.balance_classes:
    # Keep only the weights, so that the recorded config can be run again.
    resolved.loss.class_weights, resolved.loss.balance_classes = losses.balanced_weights(data.train), False
  resolved.model.update(models.resolved_options(resolved.model))
  return resolved


def fill_defaults(data: typed.Data) -> None:
  """Sets the options that neither the user nor weights determine to the values that a run uses."""
  data.eval_resize = implied.eval_resize(data)
  for key, value in pipeline.DEFAULTS.items():
    if data[key] is None:
      data[key] = value


def rank(config: typed.Config, data: datasets.Data) -> typed.Config:
  """Returns a new config whose `checkpoint.best_metric` names the split that ranks, or no split if none does.

  It is the split that the config names, or the first of `eval.splits` that is no test split and shares no images with
  the training split.

  Args:
    config: from `resolve`.
    data: of the run, with all of `eval.splits`.

  Raises:
    errors.InputError: the named split is not evaluated, or the metric not measured on the split that ranks; or
      `train.patience` is set and no split ranks.
  """
  ranked, metric = schema.copy_unlocked(config), config.checkpoint.best_metric
  named, _, quantity = metric.rpartition('/')
  if named and named not in config.eval.splits:
    raise errors.InputError(
      f'config.checkpoint.best_metric={metric!r} ranks by {named!r}, which is not in '
      f'config.eval.splits={config.eval.splits!r}; set '
      f'config.eval.splits={(*config.eval.splits, named)!r}'
    )
  fair = (each for each in config.eval.splits if not splits_lib.parse(each).is_test)
  split = named or next((each for each in fair if not data.evaluation[each].overlaps(data.train)), '')
  if config.train.patience and not split:
    raise errors.InputError(
      f'config.train.patience needs a split that ranks checkpoints, but config.eval.splits={config.eval.splits!r} '
      "holds only test splits and training images; add 'val', or name a split in config.checkpoint.best_metric"
    )
  if split and (reason := scores.why_not_measured(quantity, data.evaluation[split])):
    raise errors.InputError(f'config.checkpoint.best_metric={metric!r}: {reason}; choose another metric')
  ranked.checkpoint.best_metric = f'{split}/{quantity}' if split else quantity
  return ranked
