"""Lists or empties the cache of features: the output of frozen entries, which later runs read instead of images.

  python -m dnt.cache
  python -m dnt.cache --empty

Runs keep the cache within DNT_CACHE_GB (default: 20) and remove what was not used for DNT_CACHE_DAYS (default: 30).
Files that a run uses remain. What is missing is computed anew.
"""

import datetime
import pathlib

from absl import flags

from dnt import cli, errors, files


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this program."""
  cli.define_path('dir', 'Folder of the cache (config.finetune.cache_dir); default: ~/.cache/dnt/features.', values)
  flags.DEFINE_bool('empty', False, 'Remove the files that no run uses.', flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Reads the flags, and lists or empties the cache; the last line printed is its number of files, size and folder."""
  from dnt.finetune import feature_cache, feature_files
  from dnt.reporting import tables

  files.check_path(values.dir or '', '--dir')
  folder = pathlib.Path(values.dir) if values.dir else files.cache_folder(feature_cache.FOLDER)
  if folder is None:
    raise errors.InputError('there is no home folder; give --dir=<folder of the cache>')
  try:
    held = feature_files.files_in(folder)
  except OSError as error:
    raise errors.InputError(f'{folder} cannot be read ({error.strerror}); give another folder with --dir') from error
  if values.empty:
    removed = [file for file in held if feature_files.remove(file.path)]
    left = len(held) - len(removed)
    remain = f', {left} are in use or cannot be removed' if left else ''
    print(f'removed {_total(removed)}{remain}  {folder}')
    return
  if held:
    rows = [('last used', 'MB', 'examples', 'split', 'data')]
    for file in held:
      used = datetime.datetime.fromtimestamp(file.used).isoformat(' ', 'minutes')
      about = (str(file.header.get(name, '-')) for name in ('records', 'split', 'data'))
      rows.append((used, f'{file.size / 1e6:,.1f}', *about))
    print(tables.text(rows))
  print(f'{_total(held)} of at most {feature_files.limit("DNT_CACHE_GB"):g} GB  {folder}')


def _total(held: list) -> str:
  count = f'{len(held)} file{"" if len(held) == 1 else "s"}'
  return f'{count}, {sum(file.size for file in held) / 1e6:,.1f} MB'


PROGRAM = cli.Program(__doc__, define_flags, main, computes=False)

if __name__ == '__main__':
  cli.run(PROGRAM)
