"""When the programs of a run are compiled: at their first use, or before it."""

import pytest

from dnt import loop
from dnt.data import pipeline
from dnt.parallel import compile as compile_lib
from dnt.parallel import cpu
from dnt.parallel import mesh as mesh_lib
from dnt.training import datasets, evaluate, experiment, open_options, precompile, record

PLAIN, TELEMETRY, EVALUATION = precompile.PLAIN, precompile.TELEMETRY, precompile.EVALUATION


@pytest.fixture
def make(tiny):
  """The programs of a run and the shapes of its state."""

  def build(config=tiny):
    mesh = mesh_lib.make_mesh(config.mesh)
    data = datasets.load(config, config.eval.splits)
    run = experiment.make(open_options.resolve(config, data), data.spec)
    loader = pipeline.make_train_loader(run.config, data.train, mesh)
    compiled = precompile.Programs(run, mesh, loader, evaluate.Evaluator(run, mesh, data.evaluation), record.Clock(0.0))
    return compiled, mesh_lib.shapes(run.abstract_state(), mesh_lib.replicated(mesh))

  return build


@pytest.fixture
def order(monkeypatch):
  """The names of the programs that are compiled, in order; none really is."""
  names = []

  def note(self, name, phase, state):
    names.append(name)
    return name

  monkeypatch.setattr(precompile.Programs, '_compile', note)
  return names


@pytest.mark.parametrize(
  ('every', 'step', 'expected'),
  [
    ('3', 0, [PLAIN, TELEMETRY, EVALUATION]),
    ('3', 2, [TELEMETRY, PLAIN, EVALUATION]),
    ('3', 9, [PLAIN, EVALUATION]),  # of 10 steps
    ('1', 0, [TELEMETRY, EVALUATION]),
    ('0', 0, [PLAIN, EVALUATION]),
    ('10', 9, [TELEMETRY, EVALUATION]),
    ('3', 10, []),  # the run is over
  ],
)
def test_what_a_run_will_use_is_compiled_ahead_in_that_order(tiny, make, order, every, step, expected):
  tiny.train.steps, tiny.telemetry.every = 10, every
  compiled, shapes = make(tiny)
  with compiled:
    compiled.prepare(shapes, step)
    found = [compiled._get(name, step, shapes) for name in expected]
  assert order == found == expected


def elsewhere(monkeypatch):
  monkeypatch.setattr(mesh_lib, 'on_cpu', lambda mesh: False)


def turned_off(monkeypatch):
  monkeypatch.setenv(cpu.VARIABLE, 'background')


@pytest.mark.parametrize('where', [elsewhere, turned_off])
def test_on_an_accelerator_nothing_is_compiled_ahead(make, order, monkeypatch, where):
  where(monkeypatch)
  compiled, shapes = make()
  with compiled:
    compiled.prepare(shapes, 0)
    assert not order
    assert compiled._get(PLAIN, 0, shapes) == PLAIN
  assert order == [PLAIN]


@pytest.mark.parametrize('every', ['0', '1'])
def test_steps_wait_for_a_compilation_once_and_it_is_known_before(tiny, make, monkeypatch, every):
  elsewhere(monkeypatch)
  events = []

  def compile_program(self, name, stage, state):
    return lambda state, arrays, count: events.append((name, int(count)))

  monkeypatch.setattr(precompile.Programs, '_compile', compile_program)
  tiny.telemetry.every = every
  compiled, shapes = make(tiny)
  with compiled:
    for step in (0, 1):
      events.append(compiled.is_ready(step))
      compiled.next_steps(shapes, step, 1)(shapes)
  name = TELEMETRY if every == '1' else PLAIN
  assert events == [False, (name, 1), True, (name, 1)]
  assert compiled._clock.seconds['compile'] > 0


def test_an_error_of_the_background_reaches_the_loop(make, monkeypatch):
  def fail(self, name, phase, state):
    raise MemoryError(name)

  monkeypatch.setattr(precompile.Programs, '_compile', fail)
  compiled, shapes = make()
  with compiled:
    compiled.prepare(shapes, 0)
    with pytest.raises(MemoryError, match=PLAIN):
      compiled.next_steps(shapes, 0, 1)


@pytest.mark.thorough
@pytest.mark.usefixtures('undrawn')
def test_the_first_program_is_asked_for_before_parameters_are_drawn_and_each_is_compiled_once(
  tiny, tmp_path, monkeypatch
):
  events = []

  def spy(owner, name, label):
    original = getattr(owner, name)

    def wrapped(*args):
      events.append(label(*args))
      return original(*args)

    monkeypatch.setattr(owner, name, wrapped)

  spy(precompile.Programs, 'prepare', lambda self, shapes, step: 'prepare')
  spy(compile_lib, 'eagerly', lambda make_state: 'draw')
  spy(precompile.Programs, '_compile', lambda self, name, phase, state: name)
  tiny.train.steps, tiny.telemetry.every = 4, '2'
  loop.train(tiny, tmp_path, record.Clock(0.0), 'test')
  compiled = (PLAIN, TELEMETRY, EVALUATION)
  assert [event for event in events if event not in compiled] == ['prepare', 'draw']
  assert sorted(event for event in events if event in compiled) == sorted(compiled)
