import types

import pytest

from dnt.config import changes
from dnt.parallel import multihost
from dnt.training import prepare


def test_processes_take_the_changes_of_the_lead_for_those_of_a_run_that_has_ended(tmp_path, monkeypatch):
  """A process whose weights stand elsewhere would ask alone whether the run has ended."""
  run = types.SimpleNamespace(config=types.SimpleNamespace(train=types.SimpleNamespace(steps=6, patience=0)))
  saved, change = types.SimpleNamespace(latest_step=6), changes.Change('train.init_from', '/here', '/there', 'note')
  monkeypatch.setattr(prepare, '_has_ended', lambda *_: pytest.fail('the lead does not ask'))
  monkeypatch.setattr(multihost, 'broadcast_from_lead', lambda value: [])
  prepared = prepare.Prepared(run, None, {}, None, tmp_path, saved, {}, [change])
  assert prepare.already_done(prepared, 'command') is None
