"""Joins what the first steps, a trial and the data show to a diagnosis of a network."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dnt import config as schema
from dnt.config import checks, typed
from dnt.diagnostics import causes, doctor, first_steps, labels, trial
from dnt.diagnostics.verdicts import Kind, Verdict
from dnt.training import datasets

UNCLEAR = (0.05, 0.95)  # mean probabilities of failure between which another initialization is tried


class Diagnosis(NamedTuple):
  """Holds a diagnosis.

  Attributes:
    examination: the first steps, of several initializations.
    trial: the trial, of the first of them; of that which shows least if several were tried.
    verdict: its kind is 'trainable' for a healthy network, and where the labels alone are wrong; else the kind of the
      first cause.
    state: healthy, doubtful or sick.
    probability: that a training of `trial.STEPS` steps fails, at least the fraction of first steps that do.
    causes: why the network does not train, ordered by which problem stops training first; of a healthy one, faults
      with which it trains all the same.
    findings: what is unusual in the data.
  """

  examination: first_steps.Examination
  trial: trial.Trial
  verdict: Verdict
  state: str
  probability: float
  causes: list[Verdict]
  findings: list[labels.Finding]


def make(
  config: typed.Config,
  data: datasets.Data,
  seeds: int = 3,
  seconds: float = 60.0,
  log: Callable[[str], None] = lambda text: None,
) -> Diagnosis:
  """Examines the network of a training config.

  Args:
    config: a validated training config.
    data: its images, from `datasets.load`.
    seeds: number of initializations whose first steps are examined, and from which a trial starts at most; more than
      one does where the outcome is not clear, or fails although the first steps look well.
    seconds: limit for the trials together.
    log: receives a status message for each step.

  Raises:
    errors.InputError: the config does not fit the data or the model.
  """
  examination = first_steps.examine(config, data, seeds, log)
  trials = [trial.run(config, data, seconds, log)]
  probabilities = [trial.probability(trials[0])]
  left = seconds - trials[0].seconds
  while len(trials) < seeds and _depends(examination, float(np.mean(probabilities))) and left > trials[-1].seconds:
    seed = (config.seed + len(trials)) % (checks.LARGEST_SEED + 1)
    other = schema.override(config, {'seed': seed}, 'another initialization')
    trials.append(trial.run(other, data, left, log))
    probabilities.append(trial.probability(trials[-1]))
    left -= trials[-1].seconds
  tried = trials[int(np.argmax(probabilities))]
  failed = float(np.mean(~np.isfinite(examination.losses).all(1)))  # fraction of the initializations
  probability = max(float(np.mean(probabilities)), failed)
  state = trial.state(probability)
  findings = labels.find(data.train, examination.input_rms)
  verdict = Verdict(Kind.TRAINABLE, None, trial.course(tried))
  if state == trial.HEALTHY:
    found = causes.find_faults(examination)
  else:
    wrong = [finding.kind for finding in findings if finding.kind in labels.UNLEARNABLE]
    found = causes.find(config, examination, tried, learnable=not wrong)
    if found[0].kind == Kind.STUCK and wrong:
      verdict = verdict._replace(reason=f'but not on this data ({wrong[0]}): {verdict.reason}')
      found = []
    else:
      verdict = found[0]
  return Diagnosis(examination, tried, verdict, state, probability, found, findings)


def _depends(examination: first_steps.Examination, probability: float) -> bool:
  """Whether another initialization may behave otherwise.

  It may where the trials so far leave the outcome open, or fail although the first steps look well.

  Args:
    examination: the first steps.
    probability: mean of the trials so far.
  """
  low, high = UNCLEAR
  return low < probability < high or (probability >= high and doctor.judge(examination).kind == Kind.TRAINABLE)
