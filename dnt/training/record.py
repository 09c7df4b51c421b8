"""Records a run: training lines, evaluations, the best metric, patience and the seconds spent on each activity."""

import json
import logging
import math
import pathlib
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dnt import checkpoints, errors, files
from dnt import workdir as workdir_lib
from dnt.config import run_config, typed
from dnt.data import splits
from dnt.optim import chain, schedules
from dnt.parallel import chips, multihost
from dnt.reporting import confusion as confusion_lib
from dnt.reporting import memory, metric_names, metrics, progress
from dnt.training import evaluate, experiment, steps, telemetry

_log = logging.getLogger(__name__)
_EVALUATED_TRAIN = 'train/calibration_error'  # which no training line has
_AGAINST_DIVERGENCE = (
  'a smaller config.optim.learning_rate, a warm-up or clipping (config.clip.name=global_norm) may help'
)


class Clock:
  """Measures the seconds spent on each activity; every moment counts for exactly one of them.

  Attributes:
    seconds: sums by activity.
    laps: the last laps of each activity, seconds and parts.
    mark: `time.monotonic()` at the end of the last lap.
    input_seconds: seconds in which the program waited for images, as part of other activities.
  """

  def __init__(self, start: float):
    """Args: start: `time.monotonic()` when the program began."""
    self.seconds: defaultdict[str, float] = defaultdict(float)
    self.laps: defaultdict[str, deque[tuple[float, int]]] = defaultdict(lambda: deque(maxlen=50))
    self.mark = start
    self.input_seconds = 0.0

  def lap(self, name: str, parts: int = 1) -> float:
    """Adds the seconds since the last lap, which had so many parts (steps), to `name`, and returns them."""
    now = time.monotonic()
    lap, self.mark = now - self.mark, now
    self.seconds[name] += lap
    self.laps[name].append((lap, parts))
    return lap


class Record:
  """Writes the record of one run as the run proceeds."""

  def __init__(
    self,
    run: experiment.Experiment,
    workdir: pathlib.Path,
    step: int,
    history: Mapping[str, Any],
    clock: Clock,
    provenance: Mapping[str, Any] | None = None,
  ):
    """Opens the record where the run continues.

    Args:
      run: the experiment.
      workdir: the folder of `metrics.jsonl`.
      step: the step of the restored state; 0 for a new run.
      history: the result of `history()` saved with that state; empty for a new run.
      clock: the clock of this process; it continues from the saved seconds.
      provenance: `data`, the fingerprint of each split, `weights`, which describes the pretrained weights, and
        `versions` and `devices` of this process.
    """
    self.provenance: Mapping[str, Any] = provenance or {}
    self._run, self._workdir, self._clock = run, workdir, clock
    self.evaluated_at: int = history.get('evaluated_at', 0)
    # The splits that were evaluated at this step, during the run.
    evaluated_now = self.evaluated_at == step and history
    self.measured: tuple[str, ...] = tuple(history['config']['eval']['splits']) if evaluated_now else ()
    self._progress = progress.Progress(run.config.train.steps)
    # Sums since the last training line, but of the learning rate the last value. They are saved too, so that the next
    # line is the same after a resume.
    self._sums: defaultdict[str, float] = defaultdict(int, history.get('sums', {}))
    self._writer = metrics.Writer(workdir, step, self.evaluated_at, step - int(self._sums.get('steps', 0)))
    self._lap: float = history.get('lap', 0.0)
    self.images: int = history.get('images', 0)  # of all steps so far, whose batches may have had other sizes
    clock.input_seconds += history.get('input_seconds', 0.0)
    self._log = run.every(run.config.train.log_every)
    self._floors = telemetry.floors(run.config, run.table)
    self.last: dict[str, float] = _still_measured(history.get('last', {}), run.config)
    self.best: dict[str, Any] = dict(history.get('best', {}))
    # Metrics of the best checkpoint on the splits that are evaluated when the run ends, and its step.
    self.best_checkpoint: dict[str, Any] = {}
    # Warnings by kind; each kind is reported once per run.
    self.warnings: dict[str, Any] = dict(history.get('warnings', {}))
    self._unclipped: bool = history.get('unclipped', False)
    self._rows: int = history.get('telemetry_rows', 0)
    self.evaluations_without_better: int = history.get('evaluations_without_better', 0)
    self._memory: dict[str, int | None] = dict(history.get('peak_memory', {}))
    for name, seconds in history.get('seconds', {}).items():
      clock.seconds[name] += seconds
    self.metrics: dict[str, float] = {}  # of the last evaluation in this process
    if not is_ranked_alike(run.config, history):
      self._rank_again(step)
    if self.best_metric and splits.parse(run.config.checkpoint.best_metric.rpartition('/')[0]).is_test:
      self._warn(
        'ranked_by_test',
        step,
        f'{self.best_metric} ranks the checkpoints, so that the test split has chosen what it measures: the figures of '
        'the best checkpoint on it are too good',
      )

  def __enter__(self) -> 'Record':
    return self

  def __exit__(self, *_: object) -> None:
    self._progress.close()
    self._writer.close()

  @property
  def best_metric(self) -> str:
    """Returns the name of the metric that ranks checkpoints; empty if none does, see `open_options.rank`."""
    return metric_names.ranking(self._run.config)

  @property
  def seconds(self) -> dict[str, float]:
    """Returns the seconds spent on each activity, over all processes of the run so far."""
    return dict(self._clock.seconds)

  @property
  def peak_memory(self) -> dict[str, int | None]:
    """Returns the result of `memory.peak`, as the maximum over all successive processes of the run so far."""
    both = [(name, (value, self._memory.get(name))) for name, value in memory.peak().items()]
    return {name: max((value for value in values if value is not None), default=None) for name, values in both}

  @property
  def out_of_patience(self) -> bool:
    return is_out_of_patience(self._run.config, self.evaluations_without_better)

  def is_finished(self, step: int) -> bool:
    """Returns whether a run that ends after `step` steps has ended for good, and was not only stopped."""
    return step == self._run.config.train.steps or self.out_of_patience

  def add_change(self, step: int, values: Mapping[str, Any]) -> None:
    """Records what differs in config and data from `step` on, by key; writes no line if nothing does."""
    if values:
      self._writer.note(step, step / self._run.steps_per_epoch, values)

  def add_training(self, start: int, count: int, values: Mapping[str, Any]) -> None:
    """Records the metrics of the steps after `start`.

    Args:
      start: steps done before them.
      count: number of steps.
      values: float32 [at least count] by name, and `telemetry` of the last step if it was recorded; on the host.

    Raises:
      errors.RunError: a loss is not finite; the message names the first such step.
    """
    self._lap += self._clock.lap('train', count)
    finite = np.isfinite(values['loss'][:count])
    if not finite.all():
      good = int(np.argmin(finite))
      step = start + good + 1
      self._write_end(step, good, values)
      raise errors.RunError(f'the loss is not finite at step {step}; {_AGAINST_DIVERGENCE}')
    self._add(count, values)
    step = start + count
    if self._log.due(step) or step == self._run.config.train.steps:
      self.write_line(step)
    elif self._lap:
      self._show(step, float(values['loss'][count - 1]), float(values['accuracy'][count - 1]), self._speed(step))
    if 'telemetry' in values:
      fraction = float(values['learning_rate'][count - 1]) / schedules.peak_rate(self._run.config.optim)
      self._watched(step, values['telemetry'], fraction)

  def write_line(self, step: int) -> None:
    """Writes the training line of the steps since the last one, up to `step`; none if there are no such steps."""
    if not self._sums.get('steps'):
      return
    line, speed = self._means(), self._speed(step)
    self._write(step, line | speed)
    self._show(step, line['train/loss'], line['train/accuracy'], speed)
    self._sums.clear()
    self._lap = self._clock.input_seconds = 0.0

  def _add(self, count: int, values: Mapping[str, Any]) -> None:
    if not count:
      return
    for name in steps.METRICS:
      self._sums[name] += float(np.sum(values[name][:count], dtype=np.float64))
    self._sums['steps'] += count
    self.images += count * self._run.config.train.batch_size
    self._sums['learning_rate'] = float(values['learning_rate'][count - 1])

  def _means(self) -> dict[str, float]:
    """Returns the means over the steps since the last line, and the learning rate of the last of them."""
    taken = self._sums['steps']
    line = {f'train/{name}': value / taken for name, value in self._sums.items() if name != 'steps'}
    return line | {'train/learning_rate': self._sums['learning_rate']}

  def _write_end(self, step: int, good: int, values: Mapping[str, Any]) -> None:
    """Writes the lines with which a run ends whose loss is not finite at a step, after `good` steps of these values."""
    self._add(good, values)
    if self._sums.get('steps'):
      self._write(step - 1, self._means())
    self._write(step, {f'train/{name}': float(values[name][good]) for name in steps.METRICS})

  def _speed(self, step: int) -> dict[str, float]:
    """Returns the metrics of `metric_names.SPEED` over the steps since the last training line, up to `step`."""
    rate = self._sums['steps'] * self._run.config.train.batch_size / self._lap
    wait = min(self._clock.input_seconds / self._lap, 1.0)
    values = (rate, wait, self._clock.seconds['compile'], self._utilization(step - 1, rate))
    return {name: value for name, value in zip(metric_names.SPEED, values, strict=True) if value is not None}

  def _utilization(self, step: int, rate: float) -> float | None:
    """Returns the fraction of the devices' peak rate at so many images per second; None if the peak is not known."""
    devices = jax.devices()
    kind = devices[0].device_kind
    chip = chips.find(kind)
    if chip is None:
      return None
    precision = chip.precision(self._run.config.model.dtype)
    return chips.utilization(self._run.train_flops(step), len(devices) / rate, kind, precision)

  def add_evaluation(self, step: int, result: evaluate.Result) -> None:
    """Records an evaluation: its line, its confusion matrices, the best metric and patience."""
    self._clock.lap('evaluate')
    self._write(step, result.metrics)
    self._write_confusion(step, result)
    self.evaluated_at, self.metrics, self.measured = step, result.metrics, tuple(self._run.config.eval.splits)
    if bad := _not_finite(result.metrics):
      text = f'{bad} is not finite, and this evaluation ranks no checkpoint; {_AGAINST_DIVERGENCE}'
      self._warn('evaluation_not_finite', step, text)
    if self.best_metric:
      self._rank(step, result.metrics.get(self.best_metric))  # labels that are stored with images may be of one class
    _log.info(f'step {step}  {progress.format_values(result.metrics)}')

  def add_end(self, step: int, result: evaluate.Result, best: Mapping[str, Any]) -> None:
    """Records the end of a run: the evaluation of the splits that are looked at only then, once.

    Args:
      step: the last step.
      result: of the last weights; empty without such splits.
      best: `step` and metrics of the best checkpoint; empty if there is none.

    Raises:
      errors.RunError: the last evaluation of a split has a loss that is not finite.
    """
    self._clock.lap('evaluate')
    if result.metrics:
      self._record_end(step, result, best)
    if bad := _not_finite(self.last):
      raise errors.RunError(f'{bad} is not finite at step {step}, the end; {_AGAINST_DIVERGENCE}')

  def _record_end(self, step: int, result: evaluate.Result, best: Mapping[str, Any]) -> None:
    lines = (line for line in metrics.read(self._workdir) if line['step'] == step)
    if any(result.metrics.keys() <= line.keys() for line in lines):  # a run that had ended is run again
      self.last |= result.metrics
    else:
      self._write(step, result.metrics)
    self._write_confusion(step, result)
    _log.info(f'step {step}, the end  {progress.format_values(result.metrics)}')
    self.best_checkpoint = dict(best)
    if best and best['step'] != step:
      values = {name: value for name, value in best.items() if name != 'step'}
      _log.info(f'step {best["step"]}, the best checkpoint  {progress.format_values(values)}')

  def _rank(self, step: int, value: float | None) -> None:
    if checkpoints.better(self.best_metric, value, self.best.get('value')):
      self.best = {'metric': self.best_metric, 'value': value, 'step': step}
      self.evaluations_without_better = 0
    else:
      self.evaluations_without_better += 1

  def _rank_again(self, step: int) -> None:
    """Ranks the evaluations up to `step` by today's metric, as far as they measured it."""
    self.best, self.evaluations_without_better = {}, 0
    name = self.best_metric

    def read():
      return [
        (line['step'], line[name])
        for line in metrics.read(self._workdir)
        if name in line and line['step'] <= step and not metric_names.is_training(line)
      ]

    for measured_at, value in multihost.on_lead(read):
      self._rank(measured_at, value)

  def history(self) -> dict[str, Any]:
    """Returns what the next process needs to continue the run, as JSON."""
    return {
      'last': self.last,
      'best': self.best,
      'evaluated_at': self.evaluated_at,
      'evaluations_without_better': self.evaluations_without_better,
      'warnings': self.warnings,
      'unclipped': self._unclipped,
      'telemetry_rows': self._rows,
      'sums': dict(self._sums),
      'lap': self._lap,
      'images': self.images,
      'input_seconds': self._clock.input_seconds,
      'seconds': self.seconds,
      'peak_memory': self.peak_memory,
      # With these, the next process can tell what has changed.
      'config': self._run.config.to_dict(),
      **self.provenance,
      # With these, `dnt.inference` can use the checkpoint without the data.
      'class_names': list(self._run.spec.class_names),
      'image_shape': list(self._run.spec.image_shape),
    }

  def _watched(self, step: int, columns: Mapping[str, telemetry.Column], rate: float) -> None:
    shown = telemetry.rows(columns, [entry.name for entry in self._run.entries])
    self._writer.write(step, step / self._run.steps_per_epoch, metric_names.to_metrics(shown))
    self._rows += 1
    self._unclipped = self._unclipped or not telemetry.is_clipped(shown)
    always_clipped = self._rows >= telemetry.ALWAYS_CLIPPED and not self._unclipped
    held_back = always_clipped and not chain.is_scale_free(self._run.config.optim)
    for kind, text in telemetry.warnings(shown, rate, held_back, self._floors).items():
      self._warn(kind, step, text)

  def _warn(self, kind: str, step: int, text: str) -> None:
    if kind not in self.warnings:
      self.warnings[kind] = {'step': step, 'text': text}
      _log.info(f'warning at step {step}: {text}')

  def _write_confusion(self, step: int, result: evaluate.Result) -> None:
    if multihost.is_lead():
      for split, matrix in result.confusion.items():
        content: dict[str, Any] = {'split': split, 'step': step, 'class_names': self._run.spec.class_names}
        content |= {'matrix': confusion_lib.to_json(matrix), 'per_class': result.per_class[split]}
        files.write(workdir_lib.confusion_path(self._workdir, split), json.dumps(content, allow_nan=False) + '\n')

  def _write(self, step: int, values: Mapping[str, float]) -> None:
    shown = values
    if metric_names.is_training(values) and _EVALUATED_TRAIN in self.last:  # loss and accuracy are of the evaluation
      shown = {name: value for name, value in values.items() if name not in metric_names.OF_BOTH}
    self.last |= shown
    self._writer.write(step, step / self._run.steps_per_epoch, values)

  def _show(self, step: int, loss: float, accuracy: float, speed: Mapping[str, float]) -> None:
    shown = {'loss': loss, 'accuracy': accuracy, **speed}
    self._progress.update(step, step / self._run.steps_per_epoch, shown)


def is_ranked_alike(config: typed.Config, history: Mapping[str, Any]) -> bool:
  """Returns whether the metric that ranks checkpoints is that of the run so far, if it has begun."""
  if not history:
    return True
  trained = run_config.parse(history['config'], workdir_lib.CHECKPOINTS)
  return metric_names.ranking(trained) == metric_names.ranking(config)


def is_out_of_patience(config: typed.Config, evaluations_without_better: int) -> bool:
  """Returns whether `train.patience` ends a run after so many evaluations without a better one."""
  return 0 < config.train.patience <= evaluations_without_better


def _still_measured(last: Mapping[str, float], config: typed.Config) -> dict[str, float]:
  """Returns the last value of each metric without those of splits that the config no longer evaluates."""
  training = {f'train/{name}' for name in steps.METRICS}
  suffixes = ('', metric_names.AVERAGED) if config.ema.decay else ('',)
  evaluated = {'', *(f'{split}{suffix}' for split in config.eval.splits for suffix in suffixes)}
  return {
    name: value for name, value in last.items() if name in training or metric_names.parse(name).split in evaluated
  }


def _not_finite(values: Mapping[str, float | None]) -> str:
  """Returns the name of the first loss that is NaN, infinite or, as JSON holds these, None; empty if there is none."""
  losses = ((name, value) for name, value in values.items() if name.endswith('/loss'))
  return next((name for name, value in losses if value is None or not math.isfinite(value)), '')
