"""What the doctor leaves to read: a table, the verdict, what may mend it, `probe.json` and `probe.png`."""

import pathlib
from typing import TYPE_CHECKING, Any

import ml_collections
import numpy as np

from dnt import experiment, files, plots
from dnt.diagnostics import doctor

if TYPE_CHECKING:
  from matplotlib.figure import Figure

COLUMNS = {
  'activation_rms': 'rms',
  'activation_variance': 'variance',
  'cosine': 'cosine',
  'zero': 'zero',
  'dead': 'dead',
  'saturated': 'saturated',
  'backward': 'backward',
  'jacobian_gain': 'gain',
  'gradient_norm': 'gradient',
}


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path, seeds: int, trying: bool) -> dict[str, Any]:
  """Examines a training config, prints the findings and writes `probe.json` and `probe.png`.

  Args:
    config: a validated training config.
    workdir: where they are written.
    seeds: initializations to examine.
    trying: try what is offered, and rank it.

  Returns:
    What `probe.json` holds.

  Raises:
    errors.InputError: as `doctor.examine`, or a workdir that cannot be written.
  """
  files.make_workdir(workdir)
  data = experiment.load_data(config, ())
  found = doctor.examine(config, data, seeds)
  verdict = doctor.judge(found)
  offered = doctor.remedies(config, verdict.kind)
  print(table(found))
  where = f' from {verdict.entry} on' if verdict.entry else ''
  print(f'\nverdict: {verdict.kind}{where}: {verdict.reason}')
  content: dict[str, Any] = {
    'verdict': verdict._asdict(),
    'offered': offered,
    'entries': {
      name: {column: _number(values[:, index]) for column, values in found.columns.items()}
      for index, name in enumerate(found.entries)
    },
    'input_cosine': found.input_cosine,
    'losses': found.losses.tolist(),
    'update_ratios': found.update_ratios.tolist(),
    'loss_of_chance': found.chance,
  }
  if trying and offered:
    tried = doctor.try_out(config, data, offered)
    content['tried'] = [
      {'overrides': overrides, 'verdict': each._asdict(), 'loss': loss} for overrides, each, loss in tried
    ]
    print('tried, the best first:')
    for overrides, each, _ in tried:
      print(f'  {doctor.flags(overrides)}\n    {each.kind}: {each.reason}')
  elif offered:
    print('likely to mend it (--try tries them):')
    for overrides in offered:
      print(f'  {doctor.flags(overrides)}')
  files.write_json(workdir / 'probe.json', content)
  files.write(workdir / 'probe.png', plots.png(figure(found, verdict)))
  return content


def table(found: doctor.Examination) -> str:
  """The figures by entry, the median over seeds, as text."""
  shown = {name: title for name, title in COLUMNS.items() if name in found.columns}
  lines = [('entry', *shown.values())]
  for index, name in enumerate(found.entries):
    lines.append((name, *(_figure(name, np.median(found.columns[name][:, index])) for name in shown)))
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(cell.ljust(width) if not place else cell.rjust(width) for place, (cell, width) in enumerate(pairs))
    for pairs in (zip(line, widths, strict=True) for line in lines)
  )


@plots.styled
def figure(found: doctor.Examination, verdict: doctor.Verdict) -> 'Figure':
  """The figures by depth, median over seeds with their range, and the loss of the first steps."""
  drawn = plots.new_figure(16, 9)
  grid = drawn.subplots(2, 3)
  depth = np.arange(len(found.entries))
  panels = (
    ('forward: RMS of the output', ('activation_rms',), True),
    ('backward: norm of a random gradient', ('backward',), True),
    ("gain of each entry's Jacobian", ('jacobian_gain',), True),
    ('cosine of different pictures', ('cosine',), False),
    ('share of units (%)', ('zero', 'dead', 'saturated'), False),
  )
  for axes, (title, names, logarithmic) in zip(grid.flat, panels, strict=False):
    for number, name in enumerate(name for name in names if name in found.columns):
      values = found.columns[name] * (100 if len(names) > 1 else 1)
      values = np.where(values > 0, values, np.nan) if logarithmic else values
      axes.plot(depth, np.median(values, 0), color=plots.COLORS[number], marker='o', markersize=4, label=name)
      axes.fill_between(depth, values.min(0), values.max(0), color=plots.COLORS[number], alpha=0.2, linewidth=0)
    if len(names) > 1:
      axes.legend(frameon=False)
      axes.set_ylim(-4, 104)
    if logarithmic:
      axes.set_yscale('log')
    axes.set_title(title, loc='left')
    ticks = np.unique(np.linspace(0, len(depth) - 1, min(len(depth), 6)).round().astype(int))
    axes.set_xticks(ticks, [found.entries[tick] for tick in ticks], rotation=30, ha='right')
  loss = grid.flat[5]
  loss.plot(np.arange(1, found.losses.shape[1] + 1), found.losses.T, color=plots.COLORS[0], marker='o', markersize=4)
  loss.axhline(found.chance, color='#888888', linestyle='--', label='chance')
  loss.legend(frameon=False)
  loss.set_title('loss of the first steps, each seed', loc='left')
  loss.set_xlabel('step')
  for axes in grid.flat:
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
  drawn.suptitle(f'{verdict.kind}: {verdict.reason}', x=0.01, ha='left')
  return drawn


def _figure(name: str, value: float) -> str:
  if np.isnan(value):
    return '-'
  if name in ('zero', 'dead', 'saturated'):
    return f'{100 * value:.0f} %'
  return f'{value:.4f}' if name == 'cosine' else f'{value:.3g}'


def _number(values: np.ndarray) -> dict[str, float] | None:
  if np.isnan(values).all():
    return None
  return {'median': float(np.median(values)), 'min': float(values.min()), 'max': float(values.max())}
