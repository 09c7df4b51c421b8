"""Folders that are removed when a program ends; tests/parallel/test_signals.py has those that a signal ends."""

import subprocess
import sys


def test_a_folder_is_there_until_the_program_ends(tmp_path):
  code = """
import sys, tempfile
from dnt import temporary

tempfile.tempdir = sys.argv[1]
first, second = temporary.make_folder('dnt-a-'), temporary.make_folder('dnt-a-')
(second / 'deep').mkdir()
print(first != second and all(path.is_dir() and path.name.startswith('dnt-a-') for path in (first, second)))
sys.exit('an error')
"""
  ended = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True, check=False)
  assert (ended.returncode, ended.stdout) == (1, 'True\n'), ended.stderr
  assert not list(tmp_path.iterdir())
