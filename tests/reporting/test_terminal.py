import io

from dnt.reporting import terminal


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_terminal_shows_the_status_in_place():
  stream, now = _Terminal(), iter([0.0, 0.0, 0.05, 0.2])
  line = terminal.StatusLine(stream, lambda: next(now))
  line.update('one')
  line.update('too soon')
  line.update('two')
  line.print('said')
  line.close()
  assert stream.getvalue() == 'one\r\x1b[Ktwo\r\x1b[Ksaid\ntwo\r\x1b[K'


def test_a_log_file_gets_a_line_now_and_then():
  times = [0, *range(1000)]
  stream, now = io.StringIO(), iter(map(float, times))
  line = terminal.StatusLine(stream, lambda: next(now))
  for second in range(1000):
    line.update(f'{second}')
  line.print('said')
  line.close()
  shown = stream.getvalue().splitlines()
  assert shown[:3] == ['0', '10', '20'] and shown[-1] == 'said'
  assert 30 < len(shown) < 50
