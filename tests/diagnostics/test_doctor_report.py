"""What the doctor prints, writes and draws."""

import json
import re

import numpy as np
import pytest

from dnt import errors, workdir
from dnt.diagnostics import cures, diagnosis, doctor_report, first_steps, labels, remedies, trial
from dnt.diagnostics.verdicts import Kind, Verdict
from dnt.reporting import plots


def examination(entries=5):
  """Of two seeds, whose second has twice the figures of the first; the signal halves at each entry."""
  halves = 0.5 ** np.arange(entries)
  one = np.ones(entries)
  columns = {
    'activation_rms': halves,
    'activation_variance': halves**2 / 2,
    'cosine': np.linspace(0.4, 0.9, entries),
    'zero': 0.5 * one,
    'dead': np.append(0.25 * one[1:], np.nan),
    'output_gradient_norm': halves[::-1],
    'jacobian_gain': np.append(np.nan, 0.5 * one[1:]),
    'gradient_norm': 3 * one,
    'update_ratio': 1e-3 * one,
  }
  columns = {name: np.stack([values, 2 * values]) for name, values in columns.items()}
  names = ('stem', *(f'stage1/block{index:03d}' for index in range(1, entries - 1)), 'head')
  losses, ratios = np.array([[2.0, 1.0], [4.0, np.inf]]), np.array([[1e-3, 1e-2], [3e-3, 3e-2]])
  rates = np.array([0.1, 0.2])
  return first_steps.Examination(
    names, columns, 0.3, losses, ratios, rates, 0.2, False, np.log(10), np.log(9), 1.0, np.eye(10), True
  )


def diagnose(verdict):
  steps = np.linspace(3, 2, 20)
  tried = trial.Trial(steps, steps / 10, np.ones(20), np.full(20, 0.1), 1.0, 1.0, 0.1, 'time', 60.0)
  cause = Verdict(*verdict)
  finding = labels.Finding('one class', 'all images are of class 3')
  return diagnosis.Diagnosis(
    examination(), tried, verdict, 'sick', 0.9, [cause, cause._replace(kind='dead')], [finding]
  )


SICK = Verdict(Kind.VANISHING, 'stage1/block002', 'the signal shrinks to 1.0e-09 of what it was')


def test_the_table_holds_medians_and_says_what_they_are():
  lines = doctor_report.table(examination(), SICK).splitlines()
  assert lines[0].split() == ['entry', 'rms', 'variance', 'cosine', 'zero', 'dead', 'backward', 'gain', 'gradient']
  assert lines[1].split() == ['stem', '1.5', '0.75', '0.6000', '75', '%', '38', '%', '0.0938', '-', '4.5']
  assert lines[5].split() == ['head', '0.0938', '0.00293', '1.3500', '75', '%', '-', '1.5', '0.75', '4.5']
  assert len({len(line) for line in lines[:6]}) == 1
  assert [line.partition(':')[0] for line in lines[7:]] == lines[0].split()[1:]


def test_the_table_of_a_deep_network_leaves_out_entries_but_not_that_of_the_verdict():
  found = examination(400)
  table = doctor_report.table(found, SICK)
  shown = [line.split()[0] for line in table.splitlines() if line]
  assert (shown[1], shown[doctor_report.LONGEST + 1]) == ('stem', 'head')
  assert 'stage1/block002' in shown
  assert f'({400 - doctor_report.LONGEST - 1} entries' in table


def test_the_first_steps():
  lines = doctor_report.steps_table(examination()).splitlines()
  assert lines[0].split() == ['step', '1', '2']
  assert lines[1].split() == ['learning', 'rate', '0.1', '0.2']
  assert lines[2].split() == ['loss', '3', 'inf']
  assert lines[3].split() == ['update', 'ratio', '0.002', '0.02']


def test_the_figure_has_units_and_draws_what_was_found():
  found = examination()
  drawn = doctor_report.figure(diagnose(SICK))
  panels = {axes.get_title(loc='left'): axes for axes in drawn.axes}
  assert len(panels) == 10
  assert all(axes.get_ylabel() for axes in drawn.axes)
  assert re.search(f'vanishing .*stage1/block002.* {SICK.reason}\n.*2 initializations', drawn.get_suptitle())
  signal = panels['signal: the output of each entry']
  assert signal.get_yscale() == 'log'
  assert [text.get_text() for text in signal.get_legend().get_texts()] == ['RMS', 'standard deviation']
  np.testing.assert_allclose(signal.lines[0].get_ydata(), 1.5 * 0.5 ** np.arange(5))
  deviation = np.median(np.sqrt(found.columns['activation_variance']), 0)
  np.testing.assert_allclose(signal.lines[1].get_ydata(), deviation)
  units = panels['units: zero, dead, saturated']
  assert [text.get_text() for text in units.get_legend().get_texts()] == ['zero', 'dead']
  np.testing.assert_allclose(units.lines[0].get_ydata(), 75.0)
  loss = panels['first steps: loss']
  np.testing.assert_allclose(loss.lines[0].get_ydata(), [3.0, np.nan])
  assert loss.lines[1].get_ydata()[0] == pytest.approx(np.log(9))
  accuracy = panels['trial: accuracy on the batches']
  np.testing.assert_allclose(accuracy.lines[0].get_ydata(), np.linspace(30, 20, 20))
  assert [line.get_ydata()[0] for line in accuracy.lines[1:]] == pytest.approx([10, 25]), 'chance, and failed below'
  marked = [axes for axes in drawn.axes if any(line.get_color() == doctor_report.MARK for line in axes.lines)]
  assert len(marked) == 7, 'where it begins, in each panel by depth, and where the trial fails'
  assert plots.png(drawn)[1:4] == b'PNG'


@pytest.mark.thorough
def test_unknown_updates_are_drawn_and_said():
  found = examination()._replace(update_ratios=np.full((2, 2), np.nan))
  assert doctor_report.steps_table(found).splitlines()[3].split() == ['update', 'ratio', 'nan', 'nan']
  assert plots.png(doctor_report.figure(diagnose(SICK)._replace(examination=found)))


def test_the_summary_says_how_sure_it_is_and_what_the_data_has():
  lines = doctor_report.summary(diagnose(SICK)).splitlines()
  assert lines[0].startswith('verdict: vanishing from stage1/block002 on')
  assert re.search(r'^sick: 90 % .*300 steps.* time limit.*20 steps', lines[1])
  assert lines[2].startswith('also: dead')
  assert lines[3] == 'data: one class: all images are of class 3'
  well = diagnose(SICK)._replace(state='healthy', verdict=Verdict(Kind.TRAINABLE, None, 'it learns'))
  lines = doctor_report.summary(well).splitlines()
  assert [line.partition(':')[0] for line in lines] == [
    'verdict',
    'healthy',
    *['it trains all the same, but'] * 2,
    'data',
  ]


def sigmoids(config):
  config.model.update({'norm': 'none', 'activation': 'sigmoid', 'depth': 14, 'scan': True})
  return config


@pytest.mark.thorough
def test_a_sick_network_and_what_mends_it(tiny, tmp_path, console):
  content = doctor_report.run(sigmoids(tiny), tmp_path, seeds=2, trying=True)
  assert json.loads((tmp_path / 'probe.json').read_text()) == content
  assert content['format'] == workdir.FORMAT
  assert content['verdict']['kind'] == 'vanishing'
  assert len(content['losses']) == len(content['update_ratios']) == 2
  stem = content['entries']['stem']
  assert stem['jacobian_gain'] is None
  assert stem['activation_rms']['min'] <= stem['activation_rms']['median'] <= stem['activation_rms']['max']
  assert content['state'] == 'sick' and content['probability_of_failure'] > 0.5
  assert len(content['trial']['losses']) == trial.STEPS
  tried = content['tried']
  assert 2 <= len(tried) == len(content['offered']) <= cures.MOST
  assert tried[0]['state'] == 'healthy'
  assert tried[0]['steps'] == min(each['steps'] for each in tried if each['state'] == 'healthy')
  assert (tmp_path / 'probe.png').read_bytes()[1:4] == b'PNG'
  out = console.readouterr().out
  where = content['verdict']['entry']
  assert re.search(f'vanishing .*{where}.* {re.escape(content["verdict"]["reason"])}\n', out)
  verdict, first, best = (out.index(text) for text in ('verdict: ', 'tried: ', 'best: '))
  assert verdict < first < best, 'the verdict comes first, then each as it ends'
  assert out[best:].startswith(f'best: {remedies.flags(tried[0]["overrides"])}\n')


@pytest.mark.thorough
def test_a_healthy_network_is_offered_nothing(tiny, tmp_path, console):
  content = doctor_report.run(tiny, tmp_path, seeds=1, trying=True)
  assert content['verdict']['kind'] == 'trainable'
  assert content['offered'] == []
  assert 'tried' not in content
  out = console.readouterr().out
  assert 'verdict: trainable' in out
  assert 'likely to mend it' not in out


NETS = """
import flax.linen as nn

class Dead(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    for index in range(2):
      x = nn.relu(nn.Dense(16, bias_init=nn.initializers.constant(-100.0), name=f'layer{index}')(x))
    return nn.Dense(self.num_classes, name='answer')(x)
"""


@pytest.mark.thorough
def test_it_says_when_no_option_reaches_what_is_sick(tiny, tmp_path, monkeypatch, console):
  (tmp_path / 'reportnets.py').write_text(NETS)
  monkeypatch.syspath_prepend(tmp_path)
  tiny.model.name, tiny.model.depth, tiny.model.width = 'reportnets:Dead', None, None
  content = doctor_report.run(tiny, tmp_path / 'probe', seeds=1, trying=True)
  assert content['verdict']['kind'] == 'dead'
  assert content['offered'] == []
  assert 'no option' in console.readouterr().out


def test_a_workdir_that_cannot_be_written(tiny, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.InputError, match=f'{re.escape(str(tmp_path / "file"))} .*written'):
    doctor_report.run(tiny, tmp_path / 'file', seeds=1, trying=False)
