"""Writes what tests compare with torch to the files beside this one; needs torch, as requirements-dev.txt pins it.

python tests/references/write.py                            all of it
python tests/references/write.py tests/optim/test_clip.py   that of a test file, or of a test, <file>::<name>
"""

import pathlib
import sys

import pytest

if __name__ == '__main__':
  tests = sys.argv[1:] or [str(pathlib.Path(__file__).parents[1])]
  sys.exit(pytest.main(['-q', '-n', '0', '-m', '', '--write-references', *tests]))
