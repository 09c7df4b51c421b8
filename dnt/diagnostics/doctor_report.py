"""Writes the findings of the doctor: a table, the verdict, possible fixes, `probe.json` and `probe.png`."""

import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dnt import files
from dnt import workdir as workdir_lib
from dnt.config import typed
from dnt.diagnostics import cures, diagnosis, first_steps, remedies, trial
from dnt.diagnostics.verdicts import Kind, Verdict
from dnt.reporting import metric_names, plots, tables, terminal
from dnt.training import datasets

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

_log = logging.getLogger(__name__)
# The columns of the table. Those that telemetry lacks are `first_steps.Examination`'s own.
COLUMNS = (
  'activation_rms',
  'activation_variance',
  'cosine',
  'zero',
  'dead',
  'saturated',
  'output_gradient_norm',
  'jacobian_gain',
  'gradient_norm',
)
# Maps each column to its label and meaning.
LABELS = {name: (quantity.label, quantity.meaning) for name, quantity in metric_names.QUANTITIES.items()} | {
  'activation_variance': ('variance', 'variance of the output'),
  'cosine': ('cosine', 'cosine of the angle between the outputs for two different images'),
  'jacobian_gain': (
    'gain',
    "gain of the entry's Jacobian: gradient norm at the output of the entry before over that at this output",
  ),
}
FRACTIONS = tuple(name for name, quantity in metric_names.QUANTITIES.items() if quantity.scale == 'percent')
MARK = '#cc0000'
LONGEST = 40  # lines of the table; for a deeper network it shows only some of the entries


def run(config: typed.Config, workdir: pathlib.Path, seeds: int, trying: bool, seconds: float = 60.0) -> dict[str, Any]:
  """Examines a training config, logs the findings and writes `probe.json` and `probe.png`.

  Args:
    config: a validated training config.
    workdir: folder to write to.
    seeds: number of initializations to examine.
    trying: whether to try the suggested overrides and rank them.
    seconds: limit for the trials of the config together, and for each trial of a suggested override.

  Returns:
    The contents of `probe.json`.

  Raises:
    errors.InputError: see `first_steps.examine`; or the workdir cannot be written or holds newer findings.
  """
  files.make_workdir(workdir)
  workdir_lib.check_file(workdir / workdir_lib.PROBE)
  data = datasets.load(config, ())
  status = terminal.StatusLine()
  found = diagnosis.make(config, data, seeds, seconds, status.update)
  examination, verdict = found.examination, found.verdict
  offered = cures.offer(config, examination, found.causes) if verdict.kind != Kind.TRAINABLE else []
  status.close()
  _log.info(f'{table(examination, verdict)}\n\n{steps_table(examination)}\n\n{summary(found)}')
  content: dict[str, Any] = {
    'format': workdir_lib.FORMAT,
    'verdict': verdict._asdict(),
    'state': found.state,
    'probability_of_failure': found.probability,
    'causes': [cause._asdict() for cause in found.causes],
    'findings': [finding._asdict() for finding in found.findings],
    'trial': {
      'losses': found.trial.losses.tolist(),
      'accuracies': found.trial.accuracies.tolist(),
      'weights': found.trial.weights.tolist(),
      'chance': found.trial.chance,
      'stopped': found.trial.stopped,
      'seconds': found.trial.seconds,
    },
    'offered': offered,
    'entries': {
      name: {column: _number(values[:, index]) for column, values in examination.columns.items()}
      for index, name in enumerate(examination.entries)
    },
    'input_cosine': examination.input_cosine,
    'losses': examination.losses.tolist(),
    'update_ratios': examination.update_ratios.tolist(),
    'learning_rates': examination.learning_rates.tolist(),
    'guessing_loss': examination.guessing_loss,
  }
  files.write(workdir / workdir_lib.PROBE_PLOT, plots.png(figure(found)))
  files.write_json(workdir / workdir_lib.PROBE, content)
  if verdict.kind == Kind.TRAINABLE:
    return content
  if not offered:
    reason = 'config.model does not control the inside of this network'
    if config.train.init_from:
      reason = 'config.model must stay that of the weights at config.train.init_from'
    _log.info(f'no option of the config is likely to mend it: {reason}')
  elif not trying:
    _log.info('likely to mend it (--try tries them):')
    for overrides in offered:
      _log.info(f'  {remedies.flags(overrides)}')
  else:
    content['tried'] = [each._asdict() for each in _try(config, data, offered, seconds, status)]
    files.write_json(workdir / workdir_lib.PROBE, content)
  return content


def _try(
  config: typed.Config,
  data: datasets.Data,
  offered: Sequence[Mapping[str, Any]],
  seconds: float,
  status: terminal.StatusLine,
) -> list[cures.Tried]:
  """Tries cures, logs each as it ends, and returns them with the best first."""
  tried = []
  for overrides in offered:
    tried.append(cures.try_out(config, data, overrides, seconds, status.update))
    status.close()
    _log.info(f'tried: {remedies.flags(tried[-1].overrides)}\n    {tried[-1].state}: {tried[-1].reason}')
  tried = cures.rank(tried)
  if tried[0].state == trial.HEALTHY:
    _log.info(f'best: {remedies.flags(tried[0].overrides)}')
  else:
    _log.info('none of them mends it')
  return tried


def summary(found: diagnosis.Diagnosis) -> str:
  """Formats a diagnosis as lines: verdict, state, the other causes, and what is unusual in the data."""
  likely = f'{100 * found.probability:.0f} % likely to fail within {trial.STEPS} steps'
  limit = (
    f'; the trial ended at its time limit ({len(found.trial.losses)} steps)' if found.trial.stopped == 'time' else ''
  )
  lines = [f'verdict: {sentence(found.verdict)}', f'{found.state}: {likely}{limit}']
  trains = found.verdict.kind == Kind.TRAINABLE
  others, word = (found.causes, 'it trains all the same, but') if trains else (found.causes[1:], 'also')
  lines += [f'{word}: {sentence(cause)}' for cause in others]
  lines += [f'data: {finding.kind}: {finding.text}' for finding in found.findings]
  return '\n'.join(lines)


def sentence(verdict: Verdict) -> str:
  """Formats the verdict as one line."""
  where = f' from {verdict.entry} on' if verdict.entry else ''
  return f'{verdict.kind}{where}: {verdict.reason}'


def table(examination: first_steps.Examination, verdict: Verdict) -> str:
  """Formats the medians over seeds by entry; for a deep network only some entries, including that of the verdict."""
  shown = [name for name in COLUMNS if name in examination.columns]
  count = len(examination.entries)
  indices = set(np.linspace(0, count - 1, min(count, LONGEST)).round().astype(int).tolist())
  indices |= {examination.entries.index(verdict.entry)} if verdict.entry else set()
  lines = [('entry', *(LABELS[name][0] for name in shown))]
  for index in sorted(indices):
    lines.append(
      (examination.entries[index], *(_figure(name, np.median(examination.columns[name][:, index])) for name in shown))
    )
  left = f'\n({count - len(indices)} entries between these are in probe.json)' if count > len(indices) else ''
  meaning = '\n'.join(f'{title}: {what}' for title, what in (LABELS[name] for name in shown))
  return f'{tables.text(lines)}{left}\n\n{meaning}'


def steps_table(examination: first_steps.Examination) -> str:
  """Formats the first steps as text, as medians over seeds."""
  rows = {
    'learning rate': examination.learning_rates,
    'loss': np.median(examination.losses, 0),
    'update ratio': np.median(examination.update_ratios, 0),
  }
  lines = [('step', *(str(index + 1) for index in range(len(examination.learning_rates))))]
  lines += [(name, *(f'{value:.3g}' for value in values)) for name, values in rows.items()]
  what = 'update ratio: norm of the update over the norm of the parameters, median over entries (nan: all begin at 0)'
  return f'{tables.text(lines)}\n\n{what}'


@plots.styled
def figure(found: diagnosis.Diagnosis) -> 'Figure':
  """Plots the measurements by depth and the first steps, as medians over seeds with their range, and the trial."""
  examination, verdict = found.examination, found.verdict
  drawn = plots.new_figure(27, 11)
  (signal, cosine, gradient, gain, trial_loss), (units, ratio, loss, ratios, accuracy) = drawn.subplots(2, 5)
  deviation = np.sqrt(np.maximum(examination.columns['activation_variance'], 0))
  _by_depth(signal, examination, {'RMS': examination.columns['activation_rms'], 'standard deviation': deviation})
  _finish(signal, 'signal: the output of each entry', 'RMS, standard deviation', True)
  _by_depth(cosine, examination, {'outputs': examination.columns['cosine']})
  cosine.axhline(examination.input_cosine, color='#888888', linestyle='--', label='the images themselves')
  _finish(cosine, 'similarity of different images', 'cosine of the angle', False)
  outputs, parameters = (examination.columns[name] for name in ('output_gradient_norm', 'gradient_norm'))
  _by_depth(gradient, examination, {'at the output': outputs, 'at the parameters': parameters})
  _finish(gradient, 'gradient of the loss', 'norm', True)
  _by_depth(gain, examination, {'': examination.columns['jacobian_gain']})
  gain.axhline(1.0, color='#888888', linestyle='--')
  _finish(gain, "gain of each entry's Jacobian", 'gradient norm before / after the entry', True)
  _by_depth(
    units, examination, {name: 100 * examination.columns[name] for name in FRACTIONS if name in examination.columns}
  )
  units.set_ylim(-4, 104)
  _finish(units, 'units: zero, dead, saturated', 'fraction (%)', False)
  _by_depth(ratio, examination, {'': examination.columns['update_ratio']})
  _finish(ratio, 'size of the updates', 'update norm / parameter norm', True)
  _by_step(loss, examination.losses)
  loss.axhline(examination.guessing_loss, color='#888888', linestyle='--', label='guessing')
  _finish(
    loss,
    'first steps: loss',
    'loss',
    examination.losses[np.isfinite(examination.losses)].max(initial=1) > 20 * examination.uniform_loss,
  )
  _by_step(ratios, examination.update_ratios)
  _finish(ratios, 'first steps: size of the update', 'update / parameter norm, median entry', True)
  chance = found.trial.chance
  _draw_trial(trial_loss, found.trial.losses, examination.guessing_loss, 'guessing')
  early = {'settled': ' (ends early, as it learns)', 'time': ' (ended by its time limit)'}.get(found.trial.stopped, '')
  _finish(trial_loss, f'trial: loss{early}', 'loss', found.trial.losses.max(initial=1) > 20 * examination.uniform_loss)
  _draw_trial(accuracy, 100 * found.trial.accuracies, 100 * chance, 'chance')
  accuracy.axhline(100 * trial.limit(chance), color=MARK, linestyle=':', label='failed below')
  _finish(accuracy, f'trial: {trial.accuracy_name(found.trial)} on the batches', 'accuracy (%)', False)
  if verdict.entry:
    for axes in (signal, cosine, gradient, gain, units, ratio):
      axes.axvline(examination.entries.index(verdict.entry), color=MARK, linewidth=1.2, linestyle=':')
  bands = (
    f'lines: medians over {len(examination.losses)} initializations; bands: from the smallest value to the largest'
  )
  drawn.suptitle(f'{found.state}; {sentence(verdict)}\n{bands}', x=0.01, ha='left', parse_math=False)
  return drawn


def _by_depth(axes: 'Axes', examination: first_steps.Examination, curves: dict[str, np.ndarray]) -> None:
  """Draws each curve, [seeds, entries], with its name in the legend."""
  depth = np.arange(len(examination.entries))
  for number, (label, values) in enumerate(curves.items()):
    _draw(axes, depth, values, plots.COLORS[number], label)
  ticks = np.unique(np.linspace(0, len(depth) - 1, min(len(depth), 5)).round().astype(int))
  axes.set_xticks(ticks, [examination.entries[tick] for tick in ticks], rotation=25, ha='right')
  axes.set_xlim(-0.5, len(depth) - 0.5)


def _by_step(axes: 'Axes', values: np.ndarray) -> None:
  steps = np.arange(1, values.shape[1] + 1)
  _draw(axes, steps, values, plots.COLORS[0], '')
  axes.set_xticks(steps)
  axes.set_xlabel('step')


def _draw_trial(axes: 'Axes', values: np.ndarray, line: float, label: str) -> None:
  axes.plot(np.arange(1, len(values) + 1), values, color=plots.COLORS[0], linewidth=1.2)
  axes.axhline(line, color='#888888', linestyle='--', label=label)
  axes.set_xlabel('step')


def _draw(axes: 'Axes', x: np.ndarray, values: np.ndarray, color: str, label: str) -> None:
  """Draws the median of [seeds, n] with its range."""
  values = np.where(np.isfinite(values), values, np.nan)
  marker = 'o' if len(x) <= 40 else None
  axes.plot(x, np.median(values, 0), color=color, marker=marker, markersize=5, linewidth=1.8, label=label or None)
  axes.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)


def _finish(axes: 'Axes', title: str, unit: str, logarithmic: bool) -> None:
  drawn = [np.asarray(line.get_ydata(), float) for line in axes.lines]
  if logarithmic and any((values > 0).any() for values in drawn):
    axes.set_yscale('log', nonpositive='mask')
  axes.set_title(title, loc='left')
  axes.set_ylabel(unit)
  if any(not str(line.get_label()).startswith('_') for line in axes.lines):
    axes.legend(frameon=False)
  plots.tidy(axes)


def _figure(name: str, value: float) -> str:
  if np.isnan(value):
    return '-'
  if name in FRACTIONS:
    return f'{100 * value:.0f} %'
  return f'{value:.4f}' if name == 'cosine' else f'{value:.3g}'


def _number(values: np.ndarray) -> dict[str, float] | None:
  if np.isnan(values).all():
    return None
  return {'median': float(np.median(values)), 'min': float(values.min()), 'max': float(values.max())}
