import pytest

from dnt import config as schema
from dnt import errors


@pytest.mark.parametrize(
  ('text', 'steps'),
  [
    ('0', 0),
    ('400', 400),
    ('400 steps', 400),
    ('1 step', 1),
    ('2.5', 3),
    ('20 epochs', 7813),  # 7812.5
    ('5 epochs', 1953),
    ('1epoch', 391),
    ('0.5 epochs', 195),
    ('10%', 6400),
    (' 12.5 % ', 8000),
    ('100%', 64_000),
  ],
)
def test_durations(text, steps):
  assert schema.duration(text, 64_000, 50_000 / 128) == steps


@pytest.mark.parametrize('text', ['', 'epoch', '-5', '5 minutes', '1e3', '5 % epochs', '5,0'])
def test_what_is_not_a_duration_is_refused(text):
  with pytest.raises(errors.InputError, match=f"'{text}' .*duration.* '400'"):
    schema.duration(text, 100, 10)


def test_a_duration_in_steps_is_at_most_that_of_the_counter():
  assert schema.duration('2000000000 epochs', 100, 1000.0) == 2**31 - 1
