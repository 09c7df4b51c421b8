import re
import threading

import pytest

from dnt.parallel import activity, multihost


def in_a_thread(work):
  thread = threading.Thread(target=work)
  thread.start()
  thread.join()


@pytest.mark.parametrize('trains', [lambda work: work(), in_a_thread])
def test_any_thread_reads_what_the_one_that_trains_does(monkeypatch, trains):
  found = []

  def read():
    in_a_thread(lambda: found.append(activity.describe()))

  def train():
    activity.note('reads data', 41)
    multihost.together(read)

  monkeypatch.setattr(activity, '_current', None)
  trains(train)
  (shown,) = found
  assert (shown['phase'], shown['step']) == ('reads data', 41)
  assert 0 <= shown['seconds'] < 60
  assert re.fullmatch(r'threading\.py:\d+ \S+ < parallel/multihost\.py:\d+ together', shown['at'])
