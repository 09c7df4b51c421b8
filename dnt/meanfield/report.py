"""Writes a measured grid to its folder: a table, the results as JSON, and plots."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dnt import files
from dnt import workdir as workdir_lib
from dnt.meanfield import grid_plots
from dnt.reporting import plots, tables

AGREES = 0.05  # deviation of a rate from theory
CRITICAL = 0.05  # smaller rates change a gradient by less than e in 20 layers: noise is a large fraction of them
EDGE = 1e-4  # chi_1 this near to 1 is on the edge of chaos

HEADER = (
  'depth',
  'activation',
  'block',
  'norm',
  'sigma_w^2',
  'sigma_b^2',
  'gradient x per layer',
  'theory',
  'deviation %',
  'gradient first / last',
  'q last',
  'theory',
  'c last',
  'theory',
  'singular values',
)
PHASE_HEADER = (
  'activation',
  'sigma_w^2',
  'sigma_b^2',
  'phase',
  'q*',
  'c*',
  'chi_1',
  'xi_q',
  'xi_c',
  'xi gradient',
  'edge: sigma_w^2',
)


def write(result: Mapping[str, Any], workdir: pathlib.Path) -> None:
  """Writes `signal.json`, `signal.md` and the PNGs; each replaces an older one.

  The plots show the deepest networks: `gradient_norm_<activation>.png`, `variance_<activation>.png` and
  `correlation_<activation>.png` at the first sigma_b^2, `phases_<activation>.png` of the plain networks without norm,
  if both variances have several values.

  Args:
    result: from `grid.run`.
    workdir: an existing folder.
  """
  files.write_json(workdir / workdir_lib.SIGNAL, {'format': workdir_lib.FORMAT, **result})
  files.write(workdir / workdir_lib.SIGNAL_TABLES, table(result))
  networks = result['networks']
  if not networks:
    return
  deepest = max(network['depth'] for network in networks)
  shown = [network for network in networks if network['depth'] == deepest]
  for activation in dict.fromkeys(network['activation'] for network in shown):
    own = [network for network in shown if network['activation'] == activation]
    first = [network for network in own if network['bias_variance'] == own[0]['bias_variance']]
    for name, quantity in (('gradient_norm', 'gradient_norm'), ('variance', 'q'), ('correlation', 'c')):
      _png(workdir / f'{name}_{activation}.png', grid_plots.by_depth(first, quantity))
    plain = [network for network in own if (network['block'], network['norm']) == ('plain', 'none')]
    if all(len({network[key] for network in plain}) > 1 for key in ('weight_variance', 'bias_variance')):
      _png(workdir / f'phases_{activation}.png', grid_plots.phases(plain))


def _png(path: pathlib.Path, figure: Any) -> None:
  files.write(path, plots.png(figure))


def summarize(networks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Summarizes how far measured rates are from theory: counts, and the network with the largest deviation."""
  compared = [network for network in networks if network['rate']['deviation'] is not None]
  worst = max(compared, key=lambda network: abs(network['rate']['deviation']), default=None)
  return {
    'networks': len(networks),
    'compared': len(compared),
    'within': sum(abs(network['rate']['deviation']) <= AGREES for network in compared),
    'agreement': AGREES,
    'largest_deviation': abs(worst['rate']['deviation']) if worst else None,
    'largest_deviation_of': _name(worst) if worst else None,
  }


def summary_text(result: Mapping[str, Any]) -> str:
  """Formats the summary as one or two lines."""
  summary = result['summary']
  lines = [f'{summary["networks"]} networks measured' + (' before it was stopped' if result['interrupted'] else '')]
  if summary['compared']:
    lines.append(
      f'the gradient per layer is within {100 * AGREES:.0f} % of theory in {summary["within"]} of '
      f'{summary["compared"]} that vanish or explode; largest deviation {100 * summary["largest_deviation"]:.1f} %: '
      f'{summary["largest_deviation_of"]}'
    )
  return '\n'.join(lines)


def _name(network: Mapping[str, Any]) -> str:
  return (
    f'{network["activation"]} {network["block"]} {network["norm"]}, depth {network["depth"]}, '
    f'sigma_w^2 {network["weight_variance"]:g}, sigma_b^2 {network["bias_variance"]:g}'
  )


def table(result: Mapping[str, Any]) -> str:
  """Formats Markdown tables: one line per network, and one per pair of variances of plain networks without a norm."""
  config = result['config']
  lines = [
    f'Random dense networks of width {config["width"]}, {config["batch_size"]} inputs, {config["seeds"]} seeds.',
    '',
    summary_text(result),
    '',
    'Gradient x per layer: factor on its norm in one layer of the backward pass. Deviation: of the logarithm of this '
    f'factor from theory, with the standard error over the seeds; left out if theory is within {CRITICAL} of 0. '
    'First / last: |dL/dx_0| / |dL/dx_L|. q, c: variance of the pre-activations and correlation of two inputs, in the '
    'last layer. Singular values: the largest of the Jacobian of output by input. nan: signals or gradients left the '
    'range of float32.',
    '',
    tables.markdown([HEADER, *map(_cells, result['networks'])]),
  ]
  if result['phases']:
    lines += [
      '',
      'Theory of plain networks without a norm: fixed points, chi_1, the numbers of layers over which the distances '
      'from them and the gradient fall by a factor e (negative: grow), and sigma_w^2 on the edge of chaos at this '
      'sigma_b^2.',
      '',
      tables.markdown([PHASE_HEADER, *map(_phase_cells, result['phases'])]),
    ]
  if result['batch_norm_gains']:
    gains = (f'{name} {gain["batch"]:.4f} ({gain["limit"]:.4f})' for name, gain in result['batch_norm_gains'].items())
    lines += [
      '',
      'In theory, batch norm multiplies the squared norm of the gradient in each plain layer, for all variances, by '
      f'(in brackets: for a large batch) {", ".join(gains)}.',
    ]
  return '\n'.join(lines) + '\n'


def _cells(network: Mapping[str, Any]) -> list[str]:
  rate, q, c = network['rate'], network['q'], network['c']
  cells = [str(network['depth']), network['activation'], network['block'], network['norm']]
  cells += [f'{network["weight_variance"]:g}', f'{network["bias_variance"]:g}']
  cells += [f'{math.exp(rate["measured"]):.4f}', f'{math.exp(rate["theory"]):.4f}']
  cells += [_deviation(rate), f'{network["gradient_norm"]["measured"][0]:.3g}']
  cells += [f'{q["measured"][-1]:.3g}', f'{q["theory"][-1]:.3g}', f'{c["measured"][-1]:.3f}', f'{c["theory"][-1]:.3f}']
  return [*cells, ', '.join(f'{value:.3g}' for value in network.get('singular_values', ()))]


def _deviation(rate: Mapping[str, Any]) -> str:
  if rate['deviation'] is None:
    return ''
  spread = '' if math.isnan(rate['error']) else f' ± {abs(100 * rate["error"] / rate["theory"]):.1f}'
  return f'{100 * rate["deviation"]:+.1f}{spread}'


def _phase_cells(phase: Mapping[str, Any]) -> list[str]:
  critical = phase['critical_weight_variance']
  if math.isinf(phase['q']):
    name = 'unbounded'
  elif abs(phase['chi_1'] - 1) <= EDGE:
    name = 'edge of chaos'
  else:
    name = 'ordered' if phase['chi_1'] < 1 else 'chaotic'
  cells = [phase['activation'], f'{phase["weight_variance"]:g}', f'{phase["bias_variance"]:g}', name]
  cells += [f'{phase[key]:.4g}' for key in ('q', 'c', 'chi_1', 'xi_q', 'xi_c', 'xi_gradient')]
  return [*cells, 'none' if critical is None else f'{critical:.4g}']
