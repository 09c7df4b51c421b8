"""Defines the train state and the pure functions for one optimizer step and one evaluation step, and nothing else."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dnt import trees
from dnt.config import typed
from dnt.data.transforms import mixing
from dnt.models import captures, freeze, initializers, stage
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import sharding
from dnt.training import losses, scores
from dnt.training import telemetry as telemetry_lib

METRICS = ('loss', 'accuracy', 'gradient_norm', 'learning_rate')  # of a train step, float32 scalars
# Also of one with class weights: the accuracy with each example weighed by its class, and the weight of the batch.
WEIGHTED = ('weighted_accuracy', 'weight')

Batch = dict[str, Any]  # of arrays
Preprocess = Callable[[Batch, jax.Array | None], jax.Array]


class TrainState(flax.struct.PyTreeNode):
  """Holds everything that defines a run except its place on disk.

  Attributes:
    step: int32 scalar, optimizer steps done; it is also the position in the data.
    params: float32 parameters, nested dicts.
    batch_stats: float32 running statistics of BatchNorm; empty without BatchNorm.
    opt_state: the state of the optimizer chain, for the trainable parameters.
    rng: uint32 [2], the key from which every random draw of a step is folded.
    ema: `{'params': ..., 'batch_stats': ...}`, both averaged with the same decay; empty when off.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  rng: jax.Array
  ema: Any


def make_rng(seed: int) -> jax.Array:
  """Returns `TrainState.rng` of a seed; no step changes it."""
  return jax.random.key_data(jax.random.key(seed, impl=initializers.PRNG))


def make_state(
  config: typed.Config,
  variables: Any,
  optimizer: optax.GradientTransformation,
  partition: freeze.Partition = freeze.ALL,
) -> TrainState:
  """Returns the state before the first step.

  Args:
    config: a validated config.
    variables: `{'params': ..., 'batch_stats': ...}` as from `models.init`; the statistics may be absent.
    optimizer: the chain whose state to make.
    partition: which parameters train at first.
  """
  params, batch_stats = variables['params'], variables.get('batch_stats', {})
  averaged = {'params': params, 'batch_stats': batch_stats} if config.ema.decay else {}
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    opt_state=optimizer.init(partition.split(params)[0]),
    rng=make_rng(config.seed),
    ema=jax.tree.map(jnp.array, averaged),  # a copy, since the step donates the state's buffers one by one
  )


class Auxiliary(NamedTuple):
  """Holds the outputs of the forward pass of a (micro-)batch besides the loss.

  Attributes:
    batch_stats: the new running statistics.
    correct: number of right predictions, float32 scalar.
    weighted: with class weights, the weight of the right predictions and of all, float32 scalars; else empty.
    captures: the collection `captures.CAPTURES` of its entries; empty without telemetry.
  """

  batch_stats: Any
  correct: jax.Array
  weighted: tuple[jax.Array, ...]
  captures: Any


class Gradient(NamedTuple):
  """Holds the gradient of a batch.

  Attributes:
    loss: the loss of the batch, float32 scalar.
    params: gradient with respect to the trainable parameters.
    gradient_captures: gradient with respect to telemetry's gradient captures, which is the squared gradient norm at the
      outputs of entries.
    auxiliary: outputs of the forward pass, summed over the micro-batches.
  """

  loss: jax.Array
  params: Any
  gradient_captures: Any
  auxiliary: Auxiliary


def make_gradient(
  config: typed.Config,
  model: Any,
  preprocess: Preprocess,
  telemetry: telemetry_lib.Telemetry | None = None,
  partition: freeze.Partition = freeze.ALL,
) -> Callable[[TrainState, Batch], Gradient]:
  """Returns the gradient function of a training step, as a pure function.

  It differentiates sum(weighted losses) / sum(weights) over the whole batch, even if it accumulates over micro-batches;
  BatchNorm then normalizes each micro-batch separately. A batch of classes of weight 0 has loss and gradient 0.

  Args:
    config: a validated config.
    model: the network, `apply(variables, x, train)`.
    preprocess: `(batch, augmentation key) -> images`, augmented and normalized.
    telemetry: what to capture for each entry.
    partition: which parameters train.

  Returns:
    `(state, batch) -> Gradient`; batch: image [B, H, W, C], label int32 [B] and what preprocess reads.
  """
  accumulate = config.train.accumulate
  cross_entropy = losses.make(config.loss)
  mix = mixing.make(config.data)
  gradient_captures = telemetry.gradient_captures if telemetry else {}

  def compute_loss(trainable, gradient_captures, frozen, batch_stats, batch, keys, total_weight):
    params = trees.merge(trainable, frozen)
    params = mesh_lib.gather_for_use(params, sharding.match(config.sharding, params, config.mesh.fsdp))

    def apply(variables, images, rngs):
      return model.apply(variables, images, train=True, rngs=rngs, mutable=['batch_stats', captures.CAPTURES])

    with partition.running(), captures.capturing() if telemetry else captures.barriers():
      logits, updates = captures.with_function_calls(model, apply, watch=telemetry is not None)(
        {'params': params, 'batch_stats': batch_stats, captures.GRADIENTS: gradient_captures},
        preprocess(batch, keys['augment']),
        {name: keys[name] for name in stage.RNGS},
      )
    each, weights = cross_entropy(logits, batch['label'])
    correct = losses.correct(logits, batch['label'])
    weighted = (jnp.sum(weights * correct), jnp.sum(weights)) if config.loss.class_weights else ()
    auxiliary = Auxiliary(
      updates.get('batch_stats', {}), jnp.sum(correct), weighted, updates.get(captures.CAPTURES, {})
    )
    return jnp.sum(each) / total_weight, auxiliary

  differentiate = jax.value_and_grad(compute_loss, argnums=(0, 1), has_aux=True)

  def compute_gradient(state, batch):
    trainable, frozen = partition.split(state.params)
    augment, step_key = jax.random.split(jax.random.wrap_key_data(state.rng, impl=initializers.PRNG))
    # The augmentation folds epoch and position into its key, so an image is the same for any batch size.
    depth, dropout, mixture = jax.random.split(jax.random.fold_in(step_key, state.step), 3)
    keys = {'augment': augment, 'stochastic_depth': depth, 'dropout': dropout}
    batch = mix(batch, mixture)
    total_weight = jnp.sum(losses.weights(config.loss.class_weights, batch['label']))
    total_weight = jnp.where(total_weight > 0, total_weight, jnp.inf)  # with label smoothing, the losses are not 0
    if accumulate == 1:
      (loss, auxiliary), gradient = differentiate(
        trainable, gradient_captures, frozen, state.batch_stats, batch, keys, total_weight
      )
      return Gradient(loss, *gradient, auxiliary)
    # Strided micro-batches: each device keeps its own rows of the batch.
    micro = jax.tree.map(lambda x: x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]), batch)

    def add(carry, index):
      loss, batch_stats, total = carry
      part = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, 1, keepdims=False), micro)
      drawn = {name: jax.random.fold_in(keys[name], index) for name in stage.RNGS}
      (value, auxiliary), gradient = differentiate(
        trainable, gradient_captures, frozen, batch_stats, part, {**keys, **drawn}, total_weight
      )
      carry = (loss + value, auxiliary.batch_stats, jax.tree.map(jnp.add, total, gradient))
      return carry, auxiliary._replace(batch_stats={})

    zeros = jax.tree.map(jnp.zeros_like, (trainable, gradient_captures))
    (loss, batch_stats, total), auxiliary = jax.lax.scan(
      add, (jnp.zeros(()), state.batch_stats, zeros), jnp.arange(accumulate)
    )
    auxiliary = jax.tree.map(lambda x: jnp.sum(x, 0), auxiliary)._replace(batch_stats=batch_stats)
    return Gradient(loss, *total, auxiliary)

  return compute_gradient


def make_train_step(
  config: typed.Config,
  model: Any,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  preprocess: Preprocess,
  telemetry: telemetry_lib.Telemetry | None = None,
  partition: freeze.Partition = freeze.ALL,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
  """Returns one optimizer step as a pure function: it computes the gradient of `make_gradient` and applies its update.

  Args:
    config: a validated config.
    model: the network, `apply(variables, x, train)`.
    optimizer: from `optim.chain.make`.
    schedule: learning rate by step, for the metrics; the optimizer holds the same one.
    preprocess: `(batch, augmentation key) -> images`, augmented and normalized.
    telemetry: what to record for each entry; it does not change the state.
    partition: which parameters train; the optimizer is for those parameters only.

  Returns:
    `(state, batch) -> (state, metrics)`; batch: as for `make_gradient`; metrics: float32 scalars `loss`, `accuracy`
    (for mixed examples, of the label with the larger mixing fraction), `gradient_norm` (before clipping) and
    `learning_rate`, with class weights those of `WEIGHTED`, and with telemetry its columns under `telemetry`.
  """
  compute_gradient = make_gradient(config, model, preprocess, telemetry, partition)

  def average(ema, params, batch_stats):
    # Copy frozen leaves, so that their average is bit-identical to them.
    (params, fixed), (stats, fixed_stats) = partition.split(params), partition.split_statistics(batch_stats)
    before = {
      'params': partition.split(ema['params'])[0],
      'batch_stats': partition.split_statistics(ema['batch_stats'])[0],
    }
    # Not decay * old + (1 - decay) * new, whose factors, rounded to float32, do not add up to 1.
    moved: trees.Tree = jax.tree.map(
      lambda new, old: old + (1 - config.ema.decay) * (new - old), {'params': params, 'batch_stats': stats}, before
    )
    fixed = {'params': fixed, 'batch_stats': fixed_stats}
    return {name: trees.merge(moved[name], fixed[name]) for name in moved}

  def train_step(state, batch):
    trainable, frozen = partition.split(state.params)
    result = compute_gradient(state, batch)
    # Programs for CPU have barriers here, so that the state is the same with and without telemetry to the last bit.
    gradient = captures.barrier(result.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, trainable)
    updates = captures.barrier(updates)
    moved: trees.Tree = optax.apply_updates(trainable, updates)
    params = trees.merge(moved, frozen)
    batch_stats = result.auxiliary.batch_stats
    ema = average(state.ema, params, batch_stats) if config.ema.decay else state.ema
    accuracy = result.auxiliary.correct / batch['label'].shape[0]
    values = (result.loss, accuracy, optax.tree.norm(gradient), schedule(state.step))
    metrics: dict[str, Any] = {
      name: jnp.asarray(value, jnp.float32) for name, value in zip(METRICS, values, strict=True)
    }
    if config.loss.class_weights:
      right, weight = result.auxiliary.weighted
      metrics |= zip(WEIGHTED, (right / jnp.where(weight > 0, weight, 1.0), weight), strict=True)
    if telemetry:
      shown = (trainable, gradient, updates, result.auxiliary.captures, result.gradient_captures)
      metrics['telemetry'] = telemetry.measure(*captures.barrier(shown))
    state = state.replace(step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema)
    return state, metrics

  return train_step


def make_train_steps(
  train_step: Callable, batch_at: Callable, longest: int, names: tuple[str, ...] = METRICS
) -> Callable:
  """Returns a program that takes several train steps, with a traced count: one compilation serves all counts.

  Args:
    train_step: from `make_train_step`.
    batch_at: `(arrays, step) -> batch`, pure.
    longest: the largest number of steps of one call.
    names: the metrics to return.

  Returns:
    `(state, arrays, count) -> (state, metrics)`, metrics float32 [longest], of which the first `count` are set; if
    `longest` is 1, also `telemetry` where the step records it.
  """

  def train_steps(state, arrays, count):
    def body(index, carry):
      state, record = carry
      state, metrics = train_step(state, batch_at(arrays, state.step))
      return state, {name: record[name].at[index].set(metrics[name]) for name in names}

    if longest == 1:
      state, metrics = train_step(state, batch_at(arrays, state.step))
      kept = {name: metrics[name][None] for name in names}
      return state, kept | ({'telemetry': metrics['telemetry']} if 'telemetry' in metrics else {})
    record = {name: jnp.zeros((longest,), jnp.float32) for name in names}
    return jax.lax.fori_loop(0, count, body, (state, record))

  return train_steps


def make_eval_step(
  model: Any, num_classes: int, preprocess: Preprocess, partition: freeze.Partition = freeze.ALL
) -> Callable:
  """Returns one evaluation step as a pure function: exact sums over the real examples of a padded batch.

  Args:
    model: the network.
    num_classes: classes of the head.
    preprocess: `(batch, key) -> images`, normalized; the key is None.
    partition: the partition of the run, for runs that skip entries.

  Returns:
    `(variables, batch) -> (sums, rows)`; batch: image, label and mask (bool [B], False on padding); sums: `loss`
    float32 (plain cross-entropy, without smoothing or class weights), `confusion` int32 [classes, classes], true by
    predicted, without examples whose probabilities are not finite, `calibration_gaps` (see `scores`), and with many
    classes `top5` int32, how often the label is among the five largest logits; rows: `log_odds` float32
    [B, classes] (see `scores`) and `label` int32 [B], including padding.
  """

  def eval_step(variables, batch):
    variables = {**variables, 'params': mesh_lib.gather_for_use(variables['params'])}
    with partition.running():
      logits = model.apply(variables, preprocess(batch, None), train=False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
    probabilities = jax.nn.softmax(logits)
    correct = losses.correct(logits, batch['label'])
    cell = batch['label'] * num_classes + jnp.argmax(logits, -1)
    # Logits that are not finite predict nothing, though the first of them would count as the largest.
    predicted = batch['mask'] & jnp.all(jnp.isfinite(probabilities), -1)
    confusion = jnp.zeros((num_classes * num_classes,), jnp.int32).at[cell].add(predicted.astype(jnp.int32))
    sums = {
      'loss': jnp.sum(jnp.where(batch['mask'], loss, 0.0)),
      'confusion': confusion.reshape(num_classes, num_classes),
      'calibration_gaps': scores.calibration_gaps(jnp.max(probabilities, -1), correct, batch['mask']),
    }
    if num_classes >= scores.TOP5_FROM:
      hit = jnp.any(jax.lax.top_k(logits, 5)[1] == batch['label'][:, None], axis=-1)
      sums['top5'] = jnp.sum(hit & batch['mask'], dtype=jnp.int32)
    return sums, {'log_odds': scores.log_odds(logits), 'label': batch['label']}

  return eval_step
