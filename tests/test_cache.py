"""The program that lists and empties the cache of features."""

import numpy as np
import pytest

from dnt import cache, cli
from dnt.finetune import feature_files


@pytest.fixture
def folder(tmp_path):
  """A cache of one file, and a file of another program."""
  (tmp_path / 'mine.txt').write_text('')
  head = feature_files.header(data='folder:cats', split='val', records=7)
  writer = feature_files.Writer(tmp_path / f'{"0" * 32}.features', head, feature_files.Found(0, 0, False))
  writer.write(0, np.zeros((7, 2), np.float32), np.zeros(7, np.int32))
  writer.close()
  return tmp_path


def run(capsys, *flags):
  with pytest.raises(SystemExit) as ended:
    cli.run(cache.PROGRAM, ['cache', *flags])
  output = capsys.readouterr()
  return ended.value.code, output.out + output.err


def test_lists_the_files(folder, capsys):
  code, output = run(capsys, f'--dir={folder}')
  assert code == 0 and 'folder:cats' in output and ' 7 ' in output and '1 file, ' in output
  assert run(capsys, f'--dir={folder / "missing"}')[0] == 0
  code, output = run(capsys, '--dir=gs://bucket/mine')
  assert code == 2 and '--dir=gs://bucket/mine is the address' in output


def test_empties_the_folder_of_what_nobody_uses(folder, capsys):
  features = np.empty((7, 2), np.float32)
  feature_files.hold(folder / f'{"0" * 32}.features', features)
  assert '1 are in use' in run(capsys, f'--dir={folder}', '--empty')[1]
  assert list(folder.glob('*.features'))
  del features
  code, output = run(capsys, f'--dir={folder}', '--empty')
  assert code == 0 and 'removed 1 file' in output
  assert [path.name for path in folder.iterdir()] == ['mine.txt']


def test_a_folder_that_cannot_be_read_is_named(folder, capsys, monkeypatch):
  def files_in(path):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(feature_files, 'files_in', files_in)
  code, output = run(capsys, f'--dir={folder}')
  assert code == 2 and str(folder) in output and output.count('\n') == 1
