"""Where pictures come from: `config.data.source` to a split of examples."""

from collections.abc import Callable, Mapping

import ml_collections

from dnt import errors
from dnt.data import builtin, cifar, examples, folder, idx, placement, splits, tfds

# name -> f(where, config.data, seed) -> {split: read}; `where` is what follows the colon.
SOURCES: Mapping[str, Callable[..., examples.Splits]] = {
  'digits': builtin.digits,
  'synthetic': builtin.synthetic,
  'tfds': tfds.tfds,
  'cifar_binary': cifar.cifar_binary,
  'idx': idx.idx,
  'folder': folder.folder,
}
WHERE = {'tfds': '<name>', 'cifar_binary': '<dir>', 'idx': '<dir>', 'folder': '<dir>'}


def load(config: ml_collections.ConfigDict, split: str, seed: int) -> examples.Examples:
  """A split of the configured source; in memory when it is to live on the device.

  Args:
    config: the `data` section of the config.
    split: a split's name, sliced as in TFDS (`'train[:98%]'`).
    seed: of the splits that are drawn here (digits, folders without a val folder) and of synthetic pictures.

  Raises:
    errors.InputError: unknown source or split, or files that are missing or damaged; says what was expected where.
  """
  part = splits.parse(split)
  name, colon, where = config.source.partition(':')
  if name not in SOURCES or bool(where) != (name in WHERE) or bool(colon) != bool(where):
    valid = [f'{known}:{WHERE[known]}' if known in WHERE else known for known in SOURCES]
    raise errors.unknown('value of config.data.source', config.source, valid)
  available = SOURCES[name](where, config, seed)
  if part.name not in available:
    raise errors.unknown(f'split of {config.source}', part.name, available)
  whole = available[part.name]()
  chosen = whole.part(split, *part.bounds(len(whole)))
  if placement.on_device(config, len(chosen), chosen.shape) and chosen.images is None:
    return chosen.decoded()
  return chosen
