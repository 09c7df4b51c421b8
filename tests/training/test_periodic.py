from dnt.training import periodic


def test_whole_periods_fall_on_multiples():
  every = periodic.Every(10)
  assert [step for step in range(31) if every.due(step)] == [10, 20, 30]
  assert every.next(0) == 10
  assert every.next(10) == 20


def test_fractional_periods_do_not_drift():
  epoch = periodic.Every(1437 / 128)
  fallen = [step for step in range(226) if epoch.due(step)]
  assert len(fallen) == 20
  assert fallen == [int(k * 1437 / 128 + 0.5) for k in range(1, 21)]
  assert fallen[-1] == 225


def test_period_below_one_step_falls_on_every_step():
  every = periodic.Every(0.3)
  assert [every.next(step) for step in range(4)] == [1, 2, 3, 4]


def test_never():
  never = periodic.Every(0)
  assert never.next(5) is None
  assert not any(never.due(step) for step in range(10))
