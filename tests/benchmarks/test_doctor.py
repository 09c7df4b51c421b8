"""The doctor's benchmark: what it draws, what it calls sick, and how it counts."""

import numpy as np
import pytest

from benchmarks import doctor, doctor_networks, doctor_score, doctor_space
from dnt.diagnostics import trial
from dnt.diagnostics.verdicts import Kind


def outcome(accuracy, not_finite=None):
  return {'chance': 0.1, 'accuracy': accuracy, 'not_finite': not_finite}


@pytest.mark.thorough
def test_a_number_draws_the_same_network_and_every_fault_is_drawn_on_both_sides():
  for numbers in (doctor_space.TUNED, doctor_space.HELD_OUT):
    cases = [doctor_space.draw(number) for number in numbers]
    assert {case.fault for case in cases} == {'', *doctor_space.FAULTS}
    assert {case.family for case in cases} == set(doctor_space.FAMILIES)
    for case in cases[:20]:
      assert doctor_space.draw(case.number) == case
      assert case.fault == '' or case.labels or case.overrides != case.base
  assert not set(doctor_space.TUNED) & set(doctor_space.HELD_OUT)


def test_what_is_sick_and_slow():
  assert doctor_score.is_sick(outcome(0.24)) and not doctor_score.is_sick(outcome(0.26))
  assert doctor_score.is_sick(outcome(0.9, not_finite=250))
  numbers = [number for number in range(50) if doctor_space.draw(number).data == 'digits8' and number % 3 != 2][:4]
  truths = {number: {'outcome': outcome(value)} for number, value in zip(numbers, (0.9, 0.5, 0.56, 0.1), strict=True)}
  assert list(doctor_score.label(truths).values()) == ['healthy', 'slow', 'healthy', 'sick']


def test_labels_are_spoilt_as_they_are_named():
  _, right = doctor.load(doctor_space.draw(0).overrides)
  for kind in doctor_space.LABELS:
    _, spoilt = doctor.load(doctor_space.draw(0).overrides, kind)
    agree = float(np.mean(spoilt.train.labels == right.train.labels))
    assert agree < 0.2 and len(spoilt.train) == len(right.train)
  assert len(set(doctor.spoil(right.train, 'constant', 0).labels.tolist())) == 1


def test_counts_have_intervals():
  assert doctor_score.count(0, 0) == '-'
  assert doctor_score.count(9.5, 10) == '9.5/10 (69-100 %)'
  assert doctor_score.count(0, 50).startswith('0/50 (0-')
  assert doctor_score.count(50, 50).endswith('-100 %)')


@pytest.fixture
def judged():
  """A healthy, a doubted, a sick and a planted network with their verdicts."""
  numbers = [number for number in range(60) if doctor_space.draw(number).fault == ''][:3]
  planted = next(number for number in range(150) if doctor_space.draw(number).fault == 'dead')
  truths = {number: {'outcome': outcome(value)} for number, value in zip(numbers, (0.9, 0.9, 0.1), strict=True)}
  truths[planted] = {'outcome': outcome(0.1), 'base': outcome(0.9)}
  at = f'layer{doctor_space.draw(planted).overrides["model.options"]["at"]}'

  def verdict(number, state, probability, kind, **others):
    common = {'findings': [], 'seconds': 3.0, 'causes': [(kind, None)]}
    return {'number': number, 'state': state, 'probability': probability, 'kind': kind} | common | others

  return truths, [
    verdict(numbers[0], trial.HEALTHY, 0.05, 'trainable'),
    verdict(numbers[1], trial.DOUBTFUL, 0.6, Kind.STUCK),
    verdict(numbers[2], trial.SICK, 0.95, Kind.STUCK, mended=False),
    verdict(planted, trial.SICK, 0.95, 'dead', causes=[('dead', at)], mended=True),
  ]


def test_a_report_counts_what_is_right(judged):
  truths, verdicts = judged
  line = next(line for line in doctor_score.report(verdicts, truths).splitlines() if line.startswith('| all |'))
  counts = [cell.split(' (')[0].strip() for cell in line.strip('|').split('|')]
  assert counts == ['all', '2/2', '0.5/2', '1/1', '1/1', '1/2', '3']


def test_a_sick_network_without_an_offer_is_not_among_those_that_cures_mend(judged):
  truths, verdicts = judged
  unoffered = {key: value for key, value in verdicts[2].items() if key != 'mended'}
  lines = doctor_score.report([*verdicts[:2], unoffered, verdicts[3]], truths).splitlines()
  header, row = ([cell.strip() for cell in line.strip('|').split('|')] for line in (lines[0], lines[2]))
  said = dict(zip(header, row, strict=True))
  assert said['sick found'].startswith('2/2')
  assert said['best of up to 4 tried cures mends (sick networks that got an offer)'].startswith('1/1')


def test_a_fault_that_is_named_at_another_entry_or_as_another_is_wrong(judged):
  truths, verdicts = judged
  wrong = [*verdicts[:-1], verdicts[-1] | {'kind': 'vanishing', 'causes': [('dead', 'answer')]}]
  line = next(line for line in doctor_score.report(wrong, truths).splitlines() if line.startswith('| dead |'))
  assert [cell.split(' (')[0].strip() for cell in line.strip('|').split('|')][3:5] == ['0/1', '0/1']


def test_a_fault_that_begins_at_an_entry_is_sought_there(judged):
  assert set(doctor_score.LOCATED) <= set(doctor_networks.FAULTS) & set(doctor_score.NAMES)
  truths, verdicts = judged
  cut = next(number for number in range(150) if doctor_space.draw(number).fault == 'cut')
  at = f'layer{doctor_space.draw(cut).overrides["model.options"]["at"]}'
  truths[cut] = {'outcome': outcome(0.9), 'base': outcome(0.9)}  # what lies behind the cut learns without the rest
  for entry, right in ((at, '1/1'), ('answer', '0/1')):
    found = verdicts[0] | {'number': cut, 'causes': [('cut off', entry)]}
    line = next(line for line in doctor_score.report([found], truths).splitlines() if line.startswith('| cut |'))
    assert [cell.split(' (')[0].strip() for cell in line.strip('|').split('|')][4] == right


def test_a_report_shows_how_often_probabilities_come_true(judged):
  truths, verdicts = judged
  lines = doctor_score.report(verdicts, truths).splitlines()
  assert any(line.startswith('| 0.9 to 1 | 0.95 | 2/2') for line in lines)
  assert any(line.startswith('| 0.5 to 0.75 | 0.60 | 0/1') for line in lines)
