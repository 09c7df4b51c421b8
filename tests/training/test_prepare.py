import types

import pytest

from dnt.config import changes, schema
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import multihost
from dnt.training import prepare


@pytest.mark.parametrize(
  ('source', 'fraction', 'splits', 'said'),
  [
    ('folder:pets', 0.5, ('val',), 'folder:pets has a val of its own; config.data.hold_out=True draws one from train'),
    (
      'tfds:pets',
      0.5,
      ('val[:50%]',),
      'tfds:pets has a val of its own; config.data.hold_out=True draws one',
    ),
    ('folder:pets', 0.5, ('test',), 'config.eval.splits does not name val; config.data.hold_out=True draws one from t'),
    ('folder:pets', 0.2, ('val',), ''),
    ('digits', 0.1, ('test',), ''),  # as the configs of CIFAR, with the command line of README
  ],
)
def test_a_fraction_without_effect_is_said(source, fraction, splits, said):
  config = schema.default()
  config.data.source, config.data.val_fraction, config.eval.splits = source, fraction, splits
  line = prepare._unused_fraction(config)
  assert said in line and bool(said) == bool(line)


def test_phases_that_start_when_the_run_has_ended_are_said(tiny, tmp_path, console):
  tiny.train.steps = 8
  tiny.finetune.update({'trainable': 'head', 'unfreeze': (('50%', 'top:1'), ('8', 'top:2'), ('5 epochs', 'all'))})
  run = prepare.prepare(tiny, tmp_path, mesh_lib.make_mesh(tiny.mesh), ()).run
  assert [phase.start for phase in run.phases] == [0, 4]
  start = 5 * run.steps_per_epoch
  lines = [line for line in console.readouterr().out.splitlines() if 'unfreeze' in line]
  assert lines == [
    'config.finetune.unfreeze: top:2 would train from step 8 on, but the run ends at step 8',
    f'config.finetune.unfreeze: all would train from step {start:.0f} on, but the run ends at step 8',
  ]


def test_processes_take_the_changes_of_the_lead_for_those_of_a_run_that_has_ended(tmp_path, monkeypatch):
  """A process whose weights stand elsewhere would ask alone whether the run has ended."""
  run = types.SimpleNamespace(config=types.SimpleNamespace(train=types.SimpleNamespace(steps=6, patience=0)))
  saved, change = types.SimpleNamespace(latest_step=6), changes.Change('train.init_from', '/here', '/there', 'note')
  monkeypatch.setattr(prepare, '_has_ended', lambda *_: pytest.fail('the lead does not ask'))
  monkeypatch.setattr(multihost, 'broadcast_from_lead', lambda value: [])
  prepared = prepare.Prepared(run, None, {}, None, tmp_path, saved, {}, [change])
  assert prepare.already_done(prepared, 'command') is None
