import errno
import io
import logging
import os
import subprocess
import sys
import types

import pytest

from dnt import cli
from dnt.reporting import terminal

LOG = logging.getLogger('dnt.some.module')


class _Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def joined(monkeypatch):
  """Makes this process one of several."""
  jax = types.SimpleNamespace(distributed=types.SimpleNamespace(is_initialized=lambda: True))
  monkeypatch.setitem(sys.modules, 'jax', jax)

  def become(index):
    jax.process_index = lambda: index

  return become


@pytest.fixture
def program():
  """Runs as a program and exits."""

  def run(main):
    with pytest.raises(SystemExit):
      cli.run(cli.Program('A program.', lambda values: None, main), ['program'])

  return run


def test_a_terminal_shows_the_status_in_place():
  stream, now = _Terminal(), iter([0.0, 0.0, 0.05, 0.2])
  with terminal.console(stream):
    line = terminal.StatusLine(lambda: next(now))
    line.update('one')
    line.update('too soon')
    line.update('two')
    LOG.info('said')
    line.close()
  assert stream.getvalue() == 'one\r\x1b[Ktwo\r\x1b[Ksaid\ntwo\r\x1b[K'


def test_short_work_shows_no_status_and_leaves_that_of_others():
  stream, now = _Terminal(), iter([0.0, 0.0, 10.0, 10.05, 20.0, 20.2])
  with terminal.console(stream):
    outer = terminal.StatusLine(lambda: next(now))
    outer.update('outer')
    short = terminal.StatusLine(lambda: next(now), at_start=False)
    short.update('short')
    short.close()
    assert stream.getvalue() == 'outer'
    longer = terminal.StatusLine(lambda: next(now), at_start=False)
    longer.update('longer')
    longer.close()
    assert stream.getvalue() == 'outer\r\x1b[Klonger\r\x1b[Kouter'
    outer.close(leave=True)
  assert stream.getvalue() == 'outer\r\x1b[Klonger\r\x1b[Kouter\n'


def test_a_log_file_gets_a_line_now_and_then(console):
  times = [0, *range(1000)]
  now = iter(map(float, times))
  line = terminal.StatusLine(lambda: next(now))
  for second in range(1000):
    line.update(f'{second}')
  LOG.info('said')
  line.close()
  shown = console.readouterr().out.splitlines()
  assert shown[:3] == ['0', '10', '20'] and shown[-1] == 'said'
  assert 30 < len(shown) < 50


def test_what_ends_in_an_error_leaves_no_status(program, monkeypatch):
  stream = _Terminal()
  monkeypatch.setattr(sys, 'stdout', stream)

  def main(values):
    terminal.StatusLine().update('step 1')
    raise KeyboardInterrupt

  program(main)
  assert stream.getvalue() == 'step 1\r\x1b[K'


def test_a_line_is_shown_once_by_a_program_and_each_at_once(program, capsys):
  def main(values):
    LOG.info('said at 100 %')
    assert capsys.readouterr() == ('said at 100 %\n', '')
    LOG.warning('%s is odd', 'it')
    assert capsys.readouterr() == ('', 'warning: it is odd\n')

  program(main)
  LOG.info('after the program')
  assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize(('index', 'shown'), [(0, 'said\nstatus\n'), (1, '')])
def test_of_several_processes_the_lead_alone_shows_lines(program, capsys, joined, index, shown):
  joined(index)

  def main(values):
    LOG.info('said')
    terminal.StatusLine().update('status')

  program(main)
  assert capsys.readouterr().out == shown


def test_other_processes_draw_no_status(joined):
  joined(1)
  stream = _Terminal()
  with terminal.console(stream):
    line = terminal.StatusLine()
    line.update('status')
    line.close(leave=True)
  assert stream.getvalue() == ''


def test_as_a_library_lines_go_where_the_user_sends_them(capsys, caplog):
  def work():
    LOG.info('said')
    terminal.StatusLine().update('status')

  work()
  assert capsys.readouterr() == ('', '') and not caplog.messages
  caplog.set_level(logging.INFO, 'dnt')
  work()
  assert capsys.readouterr().out == '' and caplog.messages == ['said', 'status']


def test_a_console_asks_for_no_device(program, capsys, monkeypatch):
  jax = pytest.importorskip('jax')
  monkeypatch.setattr(jax, 'process_index', lambda: pytest.fail('this initializes the devices'))
  program(lambda values: LOG.info('said'))
  assert capsys.readouterr().out == 'said\n'


TALKATIVE = """
import logging, sys
from dnt import cli

def main(values):
  for number in range(100_000):
    if sys.argv[1] == 'log':
      logging.getLogger('dnt.some.module').info(f'line {number}')
    else:
      print(f'line {number}')

cli.run(cli.Program('A program. ' * 100_000, lambda values: None, main), ['program', *sys.argv[2:]])
"""


def _talk(*arguments, stdout=subprocess.PIPE):
  command = [sys.executable, '-c', TALKATIVE, *arguments]
  return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize('arguments', [('log',), ('print',), ('help', '--help')])
def test_a_closed_output_ends_a_program_quietly(arguments):
  with _talk(*arguments) as process:
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == ''
  assert process.returncode == 141


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='Linux has /dev/full')
@pytest.mark.parametrize('arguments', [('log',), ('print',), ('help', '--help')])
def test_a_full_disk_under_the_output_is_one_line(arguments):
  with open('/dev/full', 'w') as full, _talk(*arguments, stdout=full) as process:
    said = process.stderr.read()
  assert process.returncode == 1
  assert said.startswith('error: ') and said.count('\n') == 1 and 'No space left' in said


def test_the_failure_of_another_file_is_not_the_outputs():
  def main(values):
    raise BrokenPipeError(errno.EPIPE, 'a worker ended')

  with pytest.raises(BrokenPipeError):
    cli.run(cli.Program('A program.', lambda values: None, main), ['program'])


def test_work_that_outlives_its_output_is_asked_to_stop_once(monkeypatch):
  class Closed(io.StringIO):
    def write(self, text):
      raise BrokenPipeError(errno.EPIPE, 'closed')

  requests = []
  with terminal.console(Closed()) as shown:
    with terminal.outlive(lambda: requests.append('stop')):
      for _ in range(3):
        LOG.info('said')
    LOG.info('said')
  assert requests == ['stop'] and shown.lost.closed
  with terminal.console(Closed()), pytest.raises(terminal.OutputError):
    LOG.info('said')
