"""Plots a grid of random networks: gradient and correlation by depth, and the phase diagram of plain networks."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dnt.meanfield.theory import plain
from dnt.reporting import plots

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Row = Mapping[str, Any]
MARKS = 12  # measured points along a line
SIZES = (13.0, 5.0)  # of the marks, from the first sigma_w^2 to the last: coinciding marks appear as rings
PIXELS = 32  # of each side of the phase diagram
REACHED = 1e6  # stands for a variance q* without bound
NAMES = {
  'gradient_norm': r'gradient  $|dL/dx_l|\;/\;|dL/dx_L|$',
  'q': 'variance $q_l$ of pre-activations',
  'c': 'correlation $c_l$ of two inputs',
}


@plots.styled
def by_depth(networks: Sequence[Row], quantity: str) -> 'Figure':
  """Plots a panel for each block and norm, with a color for each sigma_w^2: theory as lines over measured rings.

  Args:
    networks: of one activation, depth and sigma_b^2.
    quantity: 'gradient_norm' or 'q' (on a log axis), or 'c'.
  """
  rows, columns = _distinct(networks, 'block'), _distinct(networks, 'norm')
  values = sorted(_distinct(networks, 'weight_variance'))
  colors, sizes = _shades(len(values)), np.linspace(*SIZES, max(len(values), 2))
  figure = plots.new_figure(max(4.6 * len(columns), 7) + 2, 3.9 * len(rows) + 1)
  grid = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True)
  first = networks[0]
  for (row, block), (column, norm) in itertools.product(enumerate(rows), enumerate(columns)):
    axes = grid[row, column]
    for network in networks:
      if (network['block'], network['norm']) == (block, norm):
        place = values.index(network['weight_variance'])
        _line(axes, network, quantity, colors[place], sizes[place])
    axes.set_title(f'{block}, {norm.replace("_", " ") if norm != "none" else "no norm"}', loc='left')
    plots.tidy(axes)
    if quantity == 'c':
      axes.set_ylim(-0.1, 1.05)
    else:
      _log_axis(axes)
    if row == len(rows) - 1:
      axes.set_xlabel('layer $l$')
  for axes in grid[:, 0]:
    axes.set_ylabel(NAMES[quantity])
  handles = [_handle(color, linestyle='-', label=f'{value:g}') for color, value in zip(colors, values, strict=True)]
  handles += [_handle('black', linestyle='-', label='theory'), _handle('black', **_ring(9), label='measured\n± std')]
  figure.legend(handles=handles, title=r'$\sigma_w^2$', loc='outside right upper', frameon=False)
  figure.suptitle(
    f'{first["activation"]}, $\\sigma_b^2$ = {first["bias_variance"]:g}, {first["seeds"]} seeds', x=0.01, ha='left'
  )
  return figure


def _line(axes: 'Axes', network: Row, quantity: str, color: Any, size: float) -> None:
  measured, spread, expected = (np.array(network[quantity][key], float) for key in ('measured', 'spread', 'theory'))
  depth = network['depth']
  layers = np.arange(depth + 1 - len(measured), depth + 1)
  at = np.unique(np.linspace(0, len(layers) - 1, MARKS).round().astype(int))
  axes.errorbar(layers[at], measured[at], spread[at], color=color, elinewidth=1.5, zorder=2, **_ring(size))
  axes.plot(layers, expected, color=color, linewidth=1.8, zorder=3)


def _ring(size: float) -> dict[str, Any]:
  return {'marker': 'o', 'linestyle': '', 'markersize': size, 'markerfacecolor': 'white', 'markeredgewidth': 1.8}


def _handle(color: Any, **style: Any) -> Any:
  from matplotlib import lines

  return lines.Line2D([], [], color=color, linewidth=2.5, **style)


def _log_axis(axes: 'Axes') -> None:
  """Sets a log axis of at least two decades around one, so that a constant curve looks constant."""
  from matplotlib import ticker

  axes.set_yscale('log')
  low, high = axes.get_ylim()
  axes.set_ylim(min(low, 0.1), max(high, 10.0))
  axes.yaxis.set_major_locator(ticker.LogLocator(numticks=6))
  axes.yaxis.set_minor_locator(ticker.NullLocator())


def _shades(count: int) -> list[Any]:
  import matplotlib

  return [matplotlib.colormaps['viridis'](0.9 * place) for place in np.linspace(0, 1, max(count, 2))[:count]]


@plots.styled
def phases(networks: Sequence[Row]) -> 'Figure':
  """Plots chi_1 in theory as color over sigma_w^2 and sigma_b^2, the edge of chaos as a line, measurements as dots.

  The color of a dot is the measured factor on the squared norm of the gradient in one layer. It matches the background
  where theory holds.

  Args:
    networks: plain networks without norm, of one activation and depth.
  """
  from matplotlib import colors

  activation = networks[0]['activation']
  weight = np.array([network['weight_variance'] for network in networks])
  bias = np.array([network['bias_variance'] for network in networks])
  measured = np.exp(2 * np.array([network['rate']['measured'] for network in networks], float))
  right, top = 1.15 * weight.max(), 1.25 * bias.max() if bias.max() > 0 else 0.1
  across, up = np.linspace(1e-3 * right, right, PIXELS), np.linspace(0, top, PIXELS)
  ground = np.array([[_chi(activation, x, y) for x in across] for y in up])
  reach = max(abs(math.log(value)) for value in (*measured, *ground[:, PIXELS // 6 :].ravel()) if 0 < value < math.inf)
  norm = colors.LogNorm(math.exp(-reach), math.exp(reach))
  figure = plots.new_figure(9.5, 7)
  axes = figure.subplots()
  image = axes.pcolormesh(across, up, ground, cmap='RdBu_r', norm=norm, shading='gouraud')
  axes.scatter(
    weight,
    bias,
    c=measured,
    cmap='RdBu_r',
    norm=norm,
    s=150,
    edgecolors='black',
    linewidths=1.5,
    zorder=3,
    clip_on=False,
    label='measured (background: theory)',
  )
  _edge(axes, activation, right, top)
  axes.legend(loc='upper left', framealpha=0.9)
  axes.set_xlim(0, right)
  axes.set_ylim(0, top)
  axes.set_xlabel(r'weight variance $\sigma_w^2$')
  axes.set_ylabel(r'bias variance $\sigma_b^2$')
  axes.set_title(f'{activation}: gradients vanish (blue) or explode (red)', loc='left')
  bar = figure.colorbar(image, ax=axes, pad=0.02, extend='both')
  bar.set_label('squared gradient norm: input / output of a layer')
  ticks = [tick for tick in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.4, 2, 3, 5, 10) if abs(math.log(tick)) <= reach]
  bar.set_ticks(ticks, labels=[f'{tick:g}' for tick in ticks])
  bar.ax.minorticks_off()
  bar.outline.set_visible(False)
  return figure


def _edge(axes: 'Axes', activation: str, right: float, top: float) -> None:
  """Draws the edge of chaos, a line or, for ReLU, one point; draws nothing if it is outside the axes."""
  q = np.geomspace(1e-4, 1e3, 240)
  line = np.stack([q, *plain.critical_line(activation, q)], 1)
  kept = [bias >= -1e-9 and plain.is_stable(plain.Net(activation, weight, bias), q) for q, weight, bias in line]
  weight, bias = line[kept, 1], np.maximum(line[kept, 2], 0)
  if not np.any((weight <= right) & (bias <= top)):
    return
  if np.ptp(weight) < 1e-3 * right and np.ptp(bias) < 1e-3 * top:
    weight, bias, style = weight[:1], bias[:1], {'marker': 'X', 'markersize': 14, 'linestyle': '', 'clip_on': False}
  else:
    style = {'linestyle': '--', 'linewidth': 2.5}
  (line,) = axes.plot(weight, bias, color='black', label=r'edge of chaos, $\chi_1$ = 1', zorder=4)
  line.set(**style)


def _chi(activation: str, weight_variance: float, bias_variance: float) -> float:
  net = plain.Net(activation, float(weight_variance), float(bias_variance))
  return plain.chi(net, min(plain.fixed_point(net, weight_variance + bias_variance), REACHED))


def _distinct(networks: Sequence[Row], key: str) -> list[Any]:
  return list(dict.fromkeys(network[key] for network in networks))
