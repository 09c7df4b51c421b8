import math

from dnt.meanfield import report


def test_a_line_of_the_table_is_in_the_order_of_its_header():
  network = {'depth': 7, 'activation': 'tanh', 'block': 'plain', 'norm': 'none', 'weight_variance': 1.5}
  network |= {'bias_variance': 0.25, 'singular_values': [9.0, 8.0], 'gradient_norm': {'measured': [5.0, 1.0]}}
  network |= {'q': {'measured': [1.0, 2.0], 'theory': [1.0, 3.0]}, 'c': {'measured': [1.0, 0.4], 'theory': [1.0, 0.6]}}
  rates = {'measured': math.log(1.1), 'theory': math.log(1.2), 'error': math.log(1.2) / 10}
  cells = report._cells(network | {'rate': rates | {'deviation': -0.5}})
  assert list(zip(report.HEADER, cells, strict=True)) == [
    ('depth', '7'),
    ('activation', 'tanh'),
    ('block', 'plain'),
    ('norm', 'none'),
    ('sigma_w^2', '1.5'),
    ('sigma_b^2', '0.25'),
    ('gradient x per layer', '1.1000'),
    ('theory', '1.2000'),
    ('deviation %', '-50.0 ± 10.0'),
    ('gradient first / last', '5'),
    ('q last', '2'),
    ('theory', '3'),
    ('c last', '0.400'),
    ('theory', '0.600'),
    ('singular values', '9, 8'),
  ]


def test_summaries_name_the_farthest():
  network = {'activation': 'relu', 'block': 'plain', 'norm': 'none', 'depth': 4, 'weight_variance': 1.0}
  network['bias_variance'] = 0.0
  networks = [network | {'rate': {'deviation': value}} for value in (0.01, None, -0.2)]
  summary = report.summarize(networks)
  assert (summary['networks'], summary['compared'], summary['within']) == (3, 2, 1)
  assert summary['largest_deviation'] == 0.2 and summary['largest_deviation_of'].startswith('relu plain none, depth 4')
  assert report.summarize([])['largest_deviation'] is None
