import re
import threading

from dnt.parallel import activity, multihost


def test_any_thread_reads_what_the_main_thread_does(monkeypatch):
  found = []

  def read():
    thread = threading.Thread(target=lambda: found.append(activity.describe()))
    thread.start()
    thread.join()

  monkeypatch.setattr(activity, '_current', None)
  activity.note('reads data', 41)
  multihost.together(read)
  (shown,) = found
  assert (shown['phase'], shown['step']) == ('reads data', 41)
  assert 0 <= shown['seconds'] < 60
  assert re.fullmatch(r'threading\.py:\d+ \S+ < parallel/multihost\.py:\d+ together', shown['at'])
