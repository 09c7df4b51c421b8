import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import config as schema
from dnt import errors
from dnt.optim import schedules

PEAK = 0.1


def section(**options):
  config = schema.default().schedule
  config.update(options)
  return config


def values(config, steps, count=None, steps_per_epoch=10.0):
  schedule = schedules.make(config, PEAK, steps, steps_per_epoch)
  return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(count or steps)))


@pytest.fixture
def torch_values(torch_reference):
  """`torch_values(make_scheduler, count)`: the rates of `make_scheduler(torch.optim.lr_scheduler, optimizer)`."""

  def values(make_scheduler, count):
    def compute(torch):
      optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
      scheduler = make_scheduler(torch.optim.lr_scheduler, optimizer)
      rates = []
      for _ in range(count):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
      return np.array(rates)

    return torch_reference(compute)

  return values


def check(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7 * PEAK)


def test_constant_is_the_peak_in_float32_inside_and_outside_jit():
  schedule = schedules.make(section(), PEAK, 10, 10)
  assert schedule(3).dtype == jnp.float32 and schedule(3).shape == ()
  assert schedule(3) == jax.jit(schedule)(3) == np.float32(PEAK)


def test_piecewise_equals_torch(torch_values):
  config = section(name='piecewise', boundaries=('20', '3.5 epochs', '50%'), factor=0.3)
  check(values(config, 100), torch_values(lambda s, o: s.MultiStepLR(o, [20, 35, 50], 0.3), 100))


@pytest.mark.parametrize('final', [0.0, 0.05])
def test_cosine_equals_torch(torch_values, final):
  config = section(name='cosine', final=final)
  expected = torch_values(lambda s, o: s.CosineAnnealingLR(o, 60, eta_min=final * PEAK), 61)
  check(values(config, 60, 61), expected)


@pytest.mark.parametrize('final', [0.0, 0.05])
def test_linear_equals_torch(torch_values, final):
  config = section(name='linear', final=final)
  check(values(config, 60, 61), torch_values(lambda s, o: s.LinearLR(o, 1.0, final, 60), 61))


def test_one_cycle_equals_torch(torch_values):
  config = section(name='one_cycle', one_cycle_rise='25%', one_cycle_start=0.04, final=0.001)

  def scheduler(schedulers, optimizer):
    return schedulers.OneCycleLR(
      optimizer, PEAK, total_steps=81, pct_start=21 / 81, div_factor=25, final_div_factor=0.04 / 0.001
    )

  check(values(config, 80, 81), torch_values(scheduler, 81))


def test_one_cycle_without_a_rise_falls_from_the_peak():
  check(values(section(name='one_cycle', one_cycle_rise='0'), 40), values(section(name='cosine'), 40))


@pytest.mark.parametrize('name', ['constant', 'piecewise', 'cosine', 'linear'])
def test_linear_warmup_equals_torch_and_the_shape_has_what_is_left(torch_values, name):
  warm = section(name=name, warmup='2 epochs', warmup_start=0.2, boundaries=('45', '75%'))  # of all 80 steps
  alone = section(name=name, boundaries=('25', '40'))
  actual = values(warm, 80)
  check(actual[:21], torch_values(lambda s, o: s.LinearLR(o, 0.2, 1.0, 20), 21))
  check(actual[20:], values(alone, 60))


@pytest.mark.parametrize('rise', ['24', '40%'])
def test_linear_warmup_leads_to_where_one_cycle_starts(rise):
  actual = values(section(name='one_cycle', warmup='10', one_cycle_start=0.5, one_cycle_rise=rise), 60)
  check(actual[:11], np.linspace(0, 0.5 * PEAK, 11))
  assert actual.argmax() == 34 and actual[34] == np.float32(PEAK)


@pytest.mark.parametrize('rise', ['0', '1%', '0.03 epochs'])
def test_linear_warmup_leads_to_the_peak_where_one_cycle_has_no_rise(rise):
  actual = values(section(name='one_cycle', warmup='5', one_cycle_rise=rise), 25)
  check(actual[:6], np.linspace(0, PEAK, 6))
  check(actual[5:], values(section(name='cosine'), 20))


def test_constant_warmup_is_that_of_resnet_110():
  config = section(name='piecewise', boundaries=('32000', '48000'), warmup='400', warmup_shape='constant')
  config.warmup_start = 0.1
  schedule = schedules.make(config, 0.1, 64_000, 390.6)
  steps = [0, 399, 400, 31_999, 32_000, 47_999, 48_000, 63_999]
  check([schedule(step) for step in steps], [0.01, 0.01, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_boundaries_beyond_a_shortened_run_are_never_reached():
  check(values(section(name='piecewise', boundaries=('32000', '48000')), 100), np.full(100, PEAK))


def test_boundaries_given_as_numbers_are_steps():
  check(values(section(name='piecewise', boundaries=(10, 20)), 30)[[9, 10, 20]], [PEAK, PEAK / 10, PEAK / 100])


def test_boundaries_that_round_to_one_step_act_together():
  check(values(section(name='piecewise', boundaries=('50%', '75%')), 1, 2), [PEAK, PEAK / 100])


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'warmup': '10', 'warmup_shape': 'constant'}, 'warmup_start'),
    ({'name': 'piecewise'}, 'schedule.boundaries'),
    ({'name': 'piecewise', 'boundaries': ('50', '20')}, r'boundaries.*\[50, 20\]'),
    ({'name': 'piecewise', 'boundaries': ('20', '60'), 'warmup': '30'}, r'step 20\b.* 30\b'),
    ({'name': 'one_cycle', 'one_cycle_rise': '80', 'warmup': '20'}, 'one_cycle_rise=.* 80 .*warm-up'),
    ({'name': 'exponential'}, "schedule 'exponential'"),
  ],
)
def test_refusals_name_the_option(options, words):
  with pytest.raises(errors.InputError, match=words):
    schedules.make(section(**options), PEAK, 100, 10)


@pytest.mark.parametrize('name', ['constant', 'cosine', 'linear', 'one_cycle', 'piecewise'])
def test_a_run_shorter_than_its_warmup_ends_in_it(name):
  options = {'name': name, 'warmup': '400', 'boundaries': ('50%', '75%')}
  for steps in (100, 400):
    shortened = values(section(**options), steps)
    check(shortened, values(section(**options), 1000)[:steps])
