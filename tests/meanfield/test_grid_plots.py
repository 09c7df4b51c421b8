import numpy as np

from dnt.meanfield import grid_plots
from dnt.reporting import plots


def test_theory_is_drawn_over_what_is_measured():
  measured = {'measured': [8.0, 4.0, 2.0, 1.0], 'spread': [0.5, 0.4, 0.3, 0.0], 'theory': [9.0, 4.5, 2.0, 1.0]}
  network = {'activation': 'tanh', 'block': 'plain', 'norm': 'none', 'depth': 3, 'weight_variance': 1.0}
  network |= {'bias_variance': 0.0, 'seeds': 5, 'gradient_norm': measured}
  network['q'] = {key: values[1:] for key, values in measured.items()}
  axes = grid_plots.by_depth([network], 'gradient_norm').axes[0]
  points, theory = axes.lines
  np.testing.assert_allclose(points.get_xydata(), [[0, 8], [1, 4], [2, 2], [3, 1]])
  np.testing.assert_allclose(theory.get_xydata(), [[0, 9], [1, 4.5], [2, 2], [3, 1]])
  assert theory.get_zorder() > points.get_zorder()
  assert axes.get_yscale() == 'log' and axes.get_ylabel() and axes.get_xlabel()
  q = grid_plots.by_depth([network], 'q').axes[0]
  np.testing.assert_allclose(q.lines[0].get_xdata(), [1, 2, 3])  # of the first layer's pre-activations on


def test_phases_draw_the_edge_of_chaos():
  networks = [
    {'activation': 'tanh', 'weight_variance': weight, 'bias_variance': bias, 'rate': {'measured': 0.1 * weight}}
    for weight in (0.5, 2.0)
    for bias in (0.0, 0.1)
  ]
  axes = grid_plots.phases(networks).axes[0]
  edge = axes.lines[0].get_xydata()
  np.testing.assert_allclose(edge[np.abs(edge[:, 1] - 0.05).argmin()], (1.76, 0.05), atol=0.05)
  np.testing.assert_allclose(axes.collections[1].get_offsets()[0], (0.5, 0.0))
  relu = [network | {'activation': 'relu', 'bias_variance': 0.0} for network in networks]
  figure = grid_plots.phases(relu)
  np.testing.assert_allclose(figure.axes[0].lines[0].get_xydata(), [[2, 0]], atol=1e-6)
  plots.png(figure)


def test_the_edge_of_chaos_is_drawn_where_it_is_stable():
  networks = [
    {'activation': 'gelu', 'weight_variance': weight, 'bias_variance': bias, 'rate': {'measured': 0.1}}
    for weight in (1.0, 40.0)
    for bias in (0.0, 0.5)
  ]
  edge = grid_plots.phases(networks).axes[0].lines[0]
  weight, bias = edge.get_xydata().T
  assert edge.get_linestyle() == '--', 'a line, however narrow beside the largest sigma_w^2'
  assert 0.17 < bias.min() < 0.2 and weight.max() <= 2, 'from the fixed point 3.5 on'
