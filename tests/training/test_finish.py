import pytest

from dnt import errors
from dnt.parallel import multihost
from dnt.training import finish


class Saved:
  """Stands in for the checkpoints of a run."""

  def __init__(self, failing=None):
    self.closed, self.failing = 0, failing

  def close(self):
    self.closed += 1
    if self.failing:
      raise self.failing

  def newest_on_disk(self):
    return 7


def test_a_checkpoint_that_is_never_complete_can_be_given_up(console):
  """As on a file server that does not answer."""

  class Stuck:
    closed = 0

    def close(self):
      self.closed += 1
      raise KeyboardInterrupt

  stuck = Stuck()
  with pytest.raises(KeyboardInterrupt), finish.writing(stuck):
    raise errors.RunError('the loss is not finite')
  assert stuck.closed == 2 and 'press Ctrl-C again to give it up' in console.readouterr().out


@pytest.mark.parametrize('error', [None, errors.RunError('not finite'), TypeError('a defect'), KeyboardInterrupt()])
def test_checkpoints_are_closed_once_whatever_ends_the_run(error):
  saved = Saved()
  try:
    with finish.writing(saved):
      if error:
        raise error
  except BaseException as caught:
    assert caught is error
  assert saved.closed == 1


def test_the_first_error_counts_beside_one_of_the_checkpoint():
  with pytest.raises(errors.RunError, match='first'), finish.writing(Saved(errors.RunError('second'))):
    raise errors.RunError('first')
  with pytest.raises(errors.RunError, match='second'), finish.writing(Saved(errors.RunError('second'))):
    pass


def test_a_process_that_fails_alone_does_not_wait_for_the_others_to_write(monkeypatch):
  monkeypatch.setattr(multihost, 'is_single', lambda: False)
  saved = Saved()
  with pytest.raises(TypeError), finish.writing(saved):
    raise TypeError('a defect')
  assert saved.closed == 0
  with pytest.raises(errors.InputError), finish.writing(saved):  # all of them have agreed on it
    raise errors.InputError('an image cannot be read')
  assert saved.closed == 1


@pytest.mark.parametrize(
  'error, words',
  [
    (errors.RunError('not finite'), 'not finite; the checkpoint of step 7 is kept in .*run$'),
    (errors.InputError('no image'), 'no image; the checkpoint of step 7 .*; if the files .* with --allow=data.source$'),
    (OSError(28, 'No space left on device', '/run/x'), '/run/x: No space left on device;.* the checkpoint of step 7'),
  ],
)
def test_an_error_names_the_checkpoint_that_is_kept(tmp_path, error, words):
  with pytest.raises((errors.InputError, errors.RunError), match=words), finish.naming_kept(Saved(), tmp_path / 'run'):
    raise error
