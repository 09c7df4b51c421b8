"""Trains a network for a few hundred steps, and estimates from what they show how likely its training is to fail.

A training fails if a loss is not finite, or if the accuracy after `STEPS` steps stays close to that of guessing, below
`limit`. For ten classes that is 25 %.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dnt.config import typed
from dnt.data import pipeline
from dnt.optim import schedules
from dnt.parallel import mesh as mesh_lib
from dnt.training import datasets, experiment, initialize, losses, open_options, precompile, steps

STEPS = 300
LAST_TRIED = 50  # steps over which the accuracy counts
LEARNT = 1 / 6  # fraction of the way from chance to 1, below which a training has failed
TIMES = 2.5  # accuracy over chance from which one has not failed, whatever the number of classes
CHUNK = 10  # steps of one call
SURE = 100  # steps after which an accuracy may settle the question
SETTLED = 0.75  # fraction of the way from chance to 1 that settles it
SHORT = 10.0  # seconds of remaining steps which are taken all the same: a few networks fall back later
HEALTHY, DOUBTFUL, SICK = 'healthy', 'doubtful', 'sick'
DOUBT = (0.25, 0.75)  # probabilities of failure between which a network is doubtful
SURPRISE = 0.01  # probability that another seed behaves otherwise, at least
WEIGHTS = (5.58, -5.02, -5.55, 3.4)  # of `features`, see `probability`


class Trial(NamedTuple):
  """Holds what the steps of a trial show.

  Attributes:
    losses: float64 [steps], up to the first one that is not finite.
    accuracies: float64 [steps], of the batches that were trained on; an example counts by the weight of its class.
    weights: float64 [steps], with which the accuracies are averaged: of the batches, all 1 without class weights.
    learning_rates: float64 [steps].
    reached: the largest learning rate of its steps over that of the whole run; below 1 where a warm-up is longer.
    shrinkage: norm of all kernels after the trial over that before.
    chance: accuracy of always predicting the most frequent class, or with class weights that of the largest weight.
    stopped: why it has ended: 'complete', 'settled' (it learns), 'not finite' or 'time'.
    seconds: how long it took, with compilation.
  """

  losses: np.ndarray
  accuracies: np.ndarray
  weights: np.ndarray
  learning_rates: np.ndarray
  reached: float
  shrinkage: float
  chance: float
  stopped: str
  seconds: float

  @property
  def learnt(self) -> float:
    """Returns how far the accuracy of the last steps is on the way from chance to 1; 1 if there is one class alone."""
    return _progress(self.accuracy, self.chance) if len(self.accuracies) else 0.0

  @property
  def accuracy(self) -> float:
    """Returns the accuracy of the last steps; 0 without any."""
    return mean(self.accuracies[-LAST_TRIED:], self.weights[-LAST_TRIED:])


def limit(chance: float) -> float:
  """Returns the accuracy below which a training has failed, for that of always predicting the most frequent class."""
  return min(TIMES * chance, chance + LEARNT * (1 - chance))


def mean(accuracies: Sequence[float] | np.ndarray, weights: Sequence[float] | np.ndarray) -> float:
  """Returns the weighted mean of accuracies; 0 without any, or any weight."""
  return float(np.average(accuracies, weights=weights)) if np.sum(weights) else 0.0


def run(
  config: typed.Config,
  data: datasets.Data,
  seconds: float = 60.0,
  log: Callable[[str], None] = lambda text: None,
) -> Trial:
  """Trains the network of a training config from its first step on, as far as it takes to see whether it learns.

  Args:
    config: a validated training config.
    data: its images, from `datasets.load`.
    seconds: no further steps begin after this time, which counts compilation; two are always taken.
    log: receives a status message for each chunk.

  Raises:
    errors.InputError: the config does not fit the data or the model, or pretrained weights do not fit the model.
  """
  begun = time.monotonic()
  mesh = mesh_lib.make_mesh(config.mesh)
  run = experiment.make(open_options.resolve(config, data), data.spec)
  chance = float(losses.shares(data.train, run.config.loss.class_weights).max())
  rates = np.asarray(jax.vmap(run.schedule)(np.arange(STEPS)), np.float64)
  taken: dict[str, list[float]] = {'loss': [], 'accuracy': [], 'weight': []}
  with contextlib.closing(pipeline.make_train_loader(run.config, data.train, mesh)) as loader:
    log('trial: compiling')
    training = _Training(run, mesh, loader, initialize.load_new(run, data.weights))
    before = _kernel_norm(training.state.params)
    stopped, count = 'complete', 1  # the second step shows how long one takes
    while training.done < STEPS and stopped == 'complete':
      started = time.monotonic()
      metrics = training.take(count)
      for name, values in taken.items():
        values.extend(metrics[name].tolist())
      now, done, start = time.monotonic(), training.done, training.phase.start
      each = (now - started) / count
      count = max(1, min(training.most(), int((seconds - (now - begun)) / each) if done > 1 else 1))
      log(f'trial: step {done} of {STEPS}, loss {taken["loss"][-1]:.3g}, accuracy {taken["accuracy"][-1]:.2f}')
      if not np.isfinite(taken['loss']).all():
        stopped = 'not finite'
      elif (
        each * (STEPS - done) > SHORT
        and done > training.last_start
        and is_settled(taken['accuracy'][start:], taken['weight'][start:], rates[start:], chance)
      ):
        stopped = 'settled'
      elif 1 < done < STEPS and now - begun > seconds:
        stopped = 'time'
    shrinkage = _kernel_norm(training.state.params) / before if before else math.nan
  broken = np.flatnonzero(~np.isfinite(taken['loss']))
  end = int(broken[0]) if broken.size else done
  arrays = {name: np.array(values[:end]) for name, values in taken.items()}
  return Trial(
    arrays['loss'],
    arrays['accuracy'],
    arrays['weight'],
    rates[:end],
    min(1.0, float(rates[:done].max()) / schedules.peak_rate(run.config.optim)),
    shrinkage,
    chance,
    stopped,
    time.monotonic() - begun,
  )


class _Training:
  """Trains a network from its first step on, over the starts of later phases.

  Attributes:
    state: the training state.
    done: how many steps were taken.
    phase: the phase of the last step.
    last_start: the step at which the last phase within a trial begins; 0 if there is one alone.
  """

  def __init__(
    self, run: experiment.Experiment, mesh: jax.sharding.Mesh, loader: pipeline.Loader, variables: dict[str, Any]
  ):
    self._run, self._mesh, self._loader = run, mesh, loader
    self._metrics = {'loss': 'loss', 'accuracy': 'accuracy'}
    if run.config.loss.class_weights:
      self._metrics |= dict(zip(('accuracy', 'weight'), steps.WEIGHTED, strict=True))
    self._longest = min(CHUNK, loader.max_steps(0))
    self._starts = [each.start for each in run.phases if 0 < each.start < STEPS]
    self.last_start, self.done = max(self._starts, default=0), 0
    self.state = initialize.begin(run, mesh, variables)
    self._enter(run.phases[0])

  def _enter(self, phase: experiment.Phase) -> None:
    names = tuple(self._metrics.values())
    train_steps = steps.make_train_steps(phase.train_step, self._loader.batch_at, self._longest, names)
    self.phase = phase
    self._program = precompile.jit_on_state(self._run, self._mesh, train_steps, self.state)

  def most(self) -> int:
    """Returns how many steps one call can take from here; it ends where a phase does."""
    until = min((start for start in self._starts if start > self.done), default=STEPS)
    return min(self._longest, self._loader.max_steps(self.done), until - self.done)

  def take(self, count: int) -> dict[str, np.ndarray]:
    """Takes `count` steps, at most `most()`; returns `loss`, `accuracy` and `weight`, float64 [count], see `Trial`."""
    if self.done in self._starts:
      phase = self._run.phase(self.done)
      self.state = initialize.advance(self._run, self._mesh, self.state, phase)
      self._enter(phase)
    self.state, metrics = self._program(self.state, self._loader.arrays(self.done, count), np.int32(count))
    self.done += count
    values = {own: np.asarray(metrics[name][:count], np.float64) for own, name in self._metrics.items()}
    return {'weight': np.ones(count)} | values


def is_settled(accuracies: list[float], weights: list[float], rates: np.ndarray, chance: float) -> bool:
  """Whether the steps so far settle that the network learns: well, for long, and no worse than before.

  Args:
    accuracies: of the steps so far, of the last phase.
    weights: of these steps, see `Trial`.
    rates: float64 [steps], the learning rates of all its steps; nothing is settled before the largest of them has come.
    chance: see `Trial`.
  """
  done = len(accuracies)
  if done < SURE or rates[done - LAST_TRIED // 2 :].max() > 1.001 * rates[: done - LAST_TRIED // 2].max():
    return False
  middle = -LAST_TRIED // 2
  recent = mean(accuracies[middle:], weights[middle:])
  earlier = mean(accuracies[-LAST_TRIED:middle], weights[-LAST_TRIED:middle])
  return _progress(recent, chance) > SETTLED and recent >= earlier - 0.02


def probability(trial: Trial) -> float:
  """Returns the probability that a training of `STEPS` steps fails, of any seed.

  The coefficients are fitted by logistic regression (benchmarks/doctor.py --fit).
  """
  if trial.stopped == 'not finite':
    return 1 - SURPRISE
  score = sum(weight * value for weight, value in zip(WEIGHTS, features(trial), strict=True))
  return min(max(1 / (1 + math.exp(-score)), SURPRISE), 1 - SURPRISE)


def features(trial: Trial) -> tuple[float, ...]:
  """Returns what the probability depends on: 1, how much was learnt, how much of the trial is missing, and both.

  What was learnt is the accuracy above chance over that of `limit`, at most 6, which is perfect for ten classes. Steps
  are missing if time has ended the trial, and the rate's way to its peak if the warm-up is longer than the trial.
  """
  learnt = 1 / LEARNT
  if trial.chance < 1:
    learnt = min(learnt, trial.learnt * (1 - trial.chance) / (limit(trial.chance) - trial.chance))
  steps = len(trial.losses) / STEPS if trial.stopped == 'time' else 1.0
  missing = 1 - min(steps, trial.reached)
  return 1.0, learnt, missing, missing * learnt


def state(probability: float) -> str:
  """Returns healthy, doubtful or sick for a probability of failure."""
  low, high = DOUBT
  return HEALTHY if probability < low else SICK if probability > high else DOUBTFUL


def course(trial: Trial) -> str:
  """Returns the course of a trial in words."""
  if not len(trial.losses):
    return 'the first loss is not finite'
  first, last = trial.losses[0], np.mean(trial.losses[-LAST_TRIED:])
  text = f'the loss goes from {first:.4g} to {last:.4g} in {len(trial.losses)} steps'
  if trial.stopped == 'not finite':
    return f'{text}, after which it is not finite'
  return f'{text}, the {accuracy_name(trial)} to {100 * trial.accuracy:.0f} %'


def accuracy_name(trial: Trial) -> str:
  """Returns what the accuracies of a trial are called."""
  return 'accuracy' if (trial.weights == 1).all() else 'weighted accuracy'


def _progress(accuracy: float, chance: float) -> float:
  return 1.0 if chance >= 1 else (accuracy - chance) / (1 - chance)


def _kernel_norm(params: Any) -> float:
  kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
  return math.sqrt(sum(float(np.sum(np.square(np.asarray(leaf, np.float64)))) for leaf in kernels))
