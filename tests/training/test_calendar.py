import pytest

from dnt.training import calendar, datasets, experiment, open_options


@pytest.fixture
def make(tiny):
  def build(**options):
    tiny.update_from_flattened_dict({'train.steps': 20, 'train.log_every': '0', 'train.steps_per_dispatch': 100})
    tiny.update_from_flattened_dict({'eval.every': '0', 'checkpoint.every': '0', 'telemetry.every': '0', **options})
    data = datasets.load(tiny, ())
    return calendar.Calendar(experiment.make(open_options.resolve(tiny, data), data.spec))

  return build


def walk(due, most=100):
  """The steps at which a run looks up, from its start to its end."""
  steps = [0]
  while steps[-1] < due.total:
    steps.append(steps[-1] + due.steps_at_once(steps[-1], most))
  return steps


@pytest.mark.parametrize(
  ('options', 'expected'),
  [
    ({}, [0, 20]),
    ({'eval.every': '8'}, [0, 8, 16, 20]),
    ({'checkpoint.every': '8'}, [0, 8, 16, 20]),
    ({'train.log_every': '8'}, [0, 8, 16, 20]),
    ({'train.steps_per_dispatch': 8}, [0, 8, 16, 20]),
    ({'eval.every': '8', 'checkpoint.every': '5'}, [0, 5, 8, 10, 15, 16, 20]),
    ({'telemetry.every': '8'}, [0, 7, 8, 15, 16, 20]),  # a step with telemetry is taken alone
    ({'finetune.trainable': 'head', 'finetune.unfreeze': (('6', 'all'),)}, [0, 6, 20]),
  ],
)
def test_a_run_looks_up_where_something_is_due(make, options, expected):
  assert walk(make(**options)) == expected


def test_the_loader_limits_how_many_steps_are_taken_at_once(make):
  assert walk(make(), most=9) == [0, 9, 18, 20]


def test_the_last_step_evaluates_and_the_first_moment_does_nothing(make):
  due = make(**{'eval.every': '8', 'checkpoint.every': '5', 'telemetry.every': '8'})
  assert [step for step in range(21) if due.evaluates(step)] == [8, 16, 20]
  assert [step for step in range(21) if due.saves(step)] == [5, 10, 15, 20]
  assert [step for step in range(21) if due.shows_telemetry(step)] == [8, 16]
