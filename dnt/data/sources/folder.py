"""Image folders with one subfolder per class."""

import collections
import dataclasses
import functools
import os
import pathlib
import re
import string
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from dnt import errors, files
from dnt.config import typed
from dnt.data import examples, order
from dnt.data.sources import image_files
from dnt.data.splits import ALL
from dnt.data.transforms import images

LAYOUT = 'train/<class>/<images> beside val/ or test/ of the same kind, or <class>/<images> alone'
ALL_CLASSES = '/*'  # `folder:<dir>/*`: every folder in <dir> is a class, whatever its name
# The names that fastai, Keras, Kaggle and Ultralytics give to the folders of splits, in lower case.
_SPLIT = re.compile(
  r'(?:(?P<train>train|training)|(?P<val>val|valid|validation|validate|dev)|(?P<test>test|testing))'
  r'(?:[ _-]?(?:set|data|dataset|split|images|imgs|\d+(?:x\d+)?(?:px)?))?'
)
# Words in the names of parts and of copies of a data set, by how they begin, as in `02_test` and `augmented`, or whole.
_PART = re.compile(
  r'(?:.*[^a-z])?(?:(?:train|val|test|dev|eval|hold|fold|split|part|orig|aug|raw|process|resize|crop).*'
  r'|(?:colou?r|gr[ae]y(?:[ _-]?scale)?|rgb|segmented|masks?)(?:[ _-]?(?:images|imgs))?)'  # `gray_wolf` is a class
)
_PREFIXED = re.compile(rf'(?P<prefix>.*)[ _-]{_SPLIT.pattern}')


@dataclasses.dataclass(frozen=True)
class Files:
  """Image files, their labels and how to decode them; reads one image at a time."""

  paths: tuple[str, ...]
  labels: np.ndarray
  how: images.Decoding
  channels: int = dataclasses.field(default=3, kw_only=True)  # 1 or 3

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> tuple[Any, int]:
    return self.decode(index, self.how), int(self.labels[index])

  def decode(self, index: int, how: images.Decoding) -> Any:
    """Returns the image of a file."""
    return images.decode(self.paths[index], self.paths[index], self.channels, how)

  def part(self, start: int, stop: int) -> 'Files':
    return dataclasses.replace(self, paths=self.paths[start:stop], labels=self.labels[start:stop])

  def take(self, indices: np.ndarray) -> 'Files':
    return dataclasses.replace(self, paths=tuple(self.paths[index] for index in indices), labels=self.labels[indices])

  def relabelled(self, places: np.ndarray) -> 'Files':
    return dataclasses.replace(self, labels=places[self.labels])

  def in_channels(self, count: int) -> 'Files':
    return dataclasses.replace(self, channels=count)

  def shares(self, other: 'Files') -> bool:
    return bool(image_files.count_shared(self.paths, other.paths))


class _Listed(NamedTuple):
  """The images in the class folders of a split: paths and labels, int32 [N], and the number of skipped files."""

  paths: list[str]
  labels: np.ndarray
  skipped: collections.Counter[str]


class Drawn(NamedTuple):
  """Indices of the images of `train` and of `val`, int32 [n], and for the line of `val` the classes that it lacks."""

  train: np.ndarray
  val: np.ndarray
  lacks: str


def folder(where: str, config: typed.Data, seed: int) -> examples.Splits:
  """Returns the splits of a folder of class folders: RGB images of any size, classes sorted by name.

  If the folder has `train/` and also `val/`, `test/` or both, these are the splits; other usual names count too
  (`Training`, `valid`, `test_set`), also after a prefix that all have (`seg_train`, `seg_test`). Otherwise it draws
  `train` and `val` at random, class by class, from the class folders in `train/` or in the folder itself; `all` is then
  all of these images (`registry.undrawn` takes them as `train`). A folder without `train/` has only the splits that are
  there, to evaluate a run of other data. Each split is in random order, so that a slice holds every class. Its line
  says what was skipped.

  Args:
    where: the folder; `<dir>/*` if all of its folders are classes, also one named `train`.
    config: the `data` section of the config; reads `val_fraction`, `image_bits` and `exif_rotation`.
    seed: seed of the random split and of the order.

  Raises:
    errors.InputError: the folder does not exist, has another layout or one that can be read in two ways, a class has no
      images or those of another one, by a link, or training lacks a class of another split. The split `train` of a
      folder that has none: when it is read.
  """
  root = pathlib.Path(where.removesuffix(ALL_CLASSES[1:])).expanduser()
  if not root.is_dir():
    raise errors.InputError(f'the folder {root} does not exist; expected there: {LAYOUT}')
  bases = {} if where.endswith(ALL_CLASSES) else _find_splits(root)
  base = bases.get('train', root)
  known = _class_folders(base).keys() if 'train' in bases else None
  unlabelled = {split for split in bases if split == 'test' and not _holds_classes(bases[split], known)}
  if not where.endswith(ALL_CLASSES):
    for each in [bases[split] for split in bases if split not in unlabelled] or [root]:
      _check_one_reading(each)
  separate = bases.keys() - unlabelled - {'train'}
  if separate and 'train' not in bases:
    names = tuple(sorted({name for split in separate for name in _classes(bases[split], least=1)}))
  else:
    names = _classes(base, least=2 if bases else 1)
  if separate:
    listed = {split: _list(bases[split], names) for split in bases if split not in unlabelled}
  else:
    listed = dict.fromkeys(('train', 'val', ALL), _list(base, names))

  @functools.cache
  def drawn():
    _classes(base)
    return draw_val(str(base), names, listed[ALL].labels, config.val_fraction, seed)

  def draw(split):
    if separate or split == ALL:
      return order.permutation(order.philox(seed, order.SPLIT), len(listed[split].paths))
    return drawn()._asdict()[split]

  def read(split):
    if split in unlabelled:
      raise examples.UnlabelledError(
        f'{bases[split]} holds no class folders, or none of a class in train/, so that its images have no labels; '
        f'expected: {LAYOUT}'
      )
    if split not in listed:
      _refuse(root, next(iter(bases.values())).name)
    paths, labels, skipped = listed[split]
    chosen = draw(split)
    reasons = image_files.reasons(skipped)
    if split in ('train', ALL) and bases:
      reasons += [f'the folder {name}/' for name in _unread(root, [bases[each] for each in listed if each in bases])]
    line = describe(split, str(bases.get(split, base)), names, len(chosen), labels[chosen], reasons)
    line += drawn().lacks if split == 'val' and not separate else ''
    if split in separate and 'train' in listed and (shared := image_files.count_shared(paths, listed['train'].paths)):
      line += f'; {shared:,} of its images are in train too, by links to folders, and say little about new ones'
    store = Files(tuple(paths[index] for index in chosen), labels[chosen], images.decoding(config))
    return examples.Examples(f'folder:{where}', split, names, (None, None, 3), store, store.labels, line=line)

  return {split: functools.partial(read, split) for split in dict.fromkeys(['train', *listed, *unlabelled])}


def draw_val(origin: str, names: Sequence[str], labels: np.ndarray, fraction: float, seed: int) -> Drawn:
  """Draws `val` class by class; the only image of a class trains.

  Args:
    origin: where the images come from.
    names: names of all classes.
    labels: those of the images, int [N].
    fraction: fraction of each class in `val`, see `order.stratified`.
    seed: seed of the draw.

  Raises:
    errors.InputError: no class has two images.
  """
  counts = np.bincount(labels, minlength=len(names))
  if counts.max() < 2:
    raise errors.InputError(
      f"no class of {origin} has two images, so that none can be held out as 'val'; to train on all of them, leave "
      "config.data.hold_out unset and 'val' out: config.eval.splits=('train',)"
    )
  alone = [repr(names[label]) for label in np.flatnonzero(counts == 1)]
  lacks = f'; none of {errors.list_names(alone)}, whose only image is in train' if alone else ''
  return Drawn(*order.stratified(labels, fraction, seed), files.readable(lacks))


def split_of(name: str) -> str | None:
  """Returns the split that a folder of this name usually holds ('train', 'val' or 'test'), or None."""
  match = _SPLIT.fullmatch(name.lower())
  return match.lastgroup if match else None


def _groups(names: Sequence[str]) -> list[dict[str, str]]:
  """Returns the splits of folders by name, for each prefix or number that `train` and another split have in common.

  Such are `seg_train` and `seg_test`, or `train2017` and `val2017`; a folder such as `steam_train` alone is a class.
  """
  groups = {}
  for name in names:
    lower = name.lower()
    if split := split_of(name):
      groups.setdefault((None, lower.lstrip(string.ascii_lowercase + ' _-')), {})[name] = split
    elif match := _PREFIXED.fullmatch(lower):
      groups.setdefault((match['prefix'], None), {})[name] = match.lastgroup
  return [group for group in groups.values() if {'train'} < {*group.values()}]


def _named(root: pathlib.Path, names: Sequence[str], groups: Sequence[dict[str, str]]) -> dict[str, str]:
  """Returns the split of each folder in `root` that its name makes one, see `_groups`."""
  parted = functools.cache(lambda name: bool(_folders(_descend(root / name))))
  held = [(group, {group[name] for name in group if parted(name)}) for group in groups]
  # Those with another split that holds class folders come first.
  sure = [group for group, splits in sorted(held, key=lambda each: each[1] == {'train'}) if 'train' in splits]
  # A class may be named `train2`; a split of that name holds class folders, or stands beside a train that does.
  beside = {name for group in sure for name in group}
  named = {name: split for name in names if (split := split_of(name))}
  named = {name: split for name, split in named.items() if name[-1].isalpha() or name in beside or parted(name)}
  return named or next(iter(sure), {})


def _find_splits(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the folder of each split, or nothing if the folders in `root` are the classes.

  Raises:
    errors.InputError: the folders can be read in two ways, or none holds class folders.
  """
  names = _folders(root)
  groups = _groups(names)
  named = _named(root, names, groups)
  others = [name for name in names if name not in named]
  inner = {name: _descend(root / name) for name in named}
  parted = [name for name in named if _folders(inner[name])]  # these hold folders, so that they can be splits
  plain = named.keys() - parted
  classes = _way_out(root)
  if not named or (others and not parted and not named.keys() & {'train', 'val', 'test'}):
    if groups:
      raise errors.InputError(
        f'{root} can be read in two ways: {errors.list_names([*groups[0]])} are splits (then each must hold one folder '
        f'per class; expected: {LAYOUT}), or classes themselves ({classes})'
      )
    return {}  # such as the classes `valid` and `invalid`
  for split in ('train', 'val', 'test'):
    both = [name for name in parted if named[name] == split]
    if len(both) > 1:
      raise errors.InputError(
        f'{root} can be read in two ways: {both[0]}/ or {both[1]}/ is the {split!r} split; rename or move one of them; '
        f'or, {classes}'
      )
  splits = {named[name]: inner[name] for name in [*sorted(plain), *parted]}
  train = next((name for name in names if named.get(name) == 'train'), None)
  if train in plain:
    raise errors.InputError(
      f'{root / train} must hold one folder per class, at least two; found none; expected: {LAYOUT}; or, {classes}'
    )
  if train is None and (others or not parted):
    _refuse(root, (parted or list(named))[0])
  pictured = [name for name in others if len(parted) == 1 and image_files.holds_images(root / name)]
  if pictured:
    raise errors.InputError(
      f'{root} can be read in two ways: {parted[0]}/ holds the classes {errors.list_names(_classes(splits["train"]))} '
      f"(then give config.data.source='folder:{splits['train']}', or rename {pictured[0]}/ to val or test), or "
      f'{errors.list_names([*pictured, parted[0]])} are classes themselves ({classes})'
    )
  return {split: splits[split] for split in ('train', 'val', 'test') if split in splits}


def _check_one_reading(root: pathlib.Path) -> None:
  """Raises an error if the folders in `root` may be copies or parts of a data set, and not classes.

  One may if it holds others of them again, while not all hold folders of the same names, such as 1 and 2. All may if
  they hold no images themselves but folders, of which at least two have the same names in all of them, and if their own
  names are those of parts, or the names of these folders are those of splits.
  """
  names = _folders(root)
  inner = {name: _folders_alone(root / name) for name in names}
  shared = sorted(set.intersection(*inner.values())) if inner else []
  copy = next((name for name in names if inner[name] and _repeats(root / name, {*names} - {name})), None)
  if copy and not shared:
    raise errors.InputError(
      f'{root} can be read in two ways: {copy}/ is no class but holds others again (then move it out of {root}), or it '
      f'is a class itself (then rename the folders in it; or, {_way_out(root)})'
    )
  splits = all(map(split_of, shared))
  if len(names) < 2 or len(shared) < 2 or not (splits or all(_PART.fullmatch(name.lower()) for name in names)):
    return
  listed, within = errors.list_names(names), errors.list_names(shared)
  if splits:
    other = f'each of {listed} holds the splits {within} (then move them to {shared[0]}/{names[0]}/ and so on)'
  else:
    other = (
      f"each of {listed} holds the classes {within} (then give config.data.source='folder:{root / names[0]}', or name "
      'them train, val and test)'
    )
  raise errors.InputError(f'{root} can be read in two ways: {other}, or they are classes themselves ({_way_out(root)})')


def _repeats(path: pathlib.Path, names: Collection[str]) -> bool:
  """Returns whether a folder holds no images itself but folders of these names, or folders that hold them."""
  inner = _folders_alone(path)
  return bool(inner) and all(each in names or _repeats(path / each, names) for each in inner)


def _folders_alone(path: pathlib.Path) -> set[str]:
  """Returns the names of the folders in a folder; none if it holds an image, at the first of which it stops."""
  found = set()
  try:
    with os.scandir(path) as entries:
      for entry in entries:
        if image_files.is_skipped(entry.name):
          continue
        if image_files.is_image(entry.name):
          return set()
        if entry.is_dir():
          found.add(entry.name)
  except OSError:  # the search for images counts it
    return set()
  return found


def _holds_classes(base: pathlib.Path, known: Collection[str] | None) -> bool:
  """Returns whether a folder holds class folders, if `known` is given at least one of these classes."""
  folders = _class_folders(base)
  return bool(folders) if known is None else not folders.keys().isdisjoint(known)


def _refuse(root: pathlib.Path, split: str) -> NoReturn:
  """Raises the error for a folder that has the folder of another split, but no `train/`."""
  raise errors.InputError(f'{root} has {split}/ but no train/; expected: {LAYOUT}; or, {_way_out(root)}')


def _way_out(root: pathlib.Path) -> str:
  return f"if all its folders are classes, give config.data.source='folder:{root}{ALL_CLASSES}', which reads it alone"


def _descend(path: pathlib.Path) -> pathlib.Path:
  """Returns the folder, or the one of the same name that is all it holds, as in some archives of Kaggle."""
  return path / path.name if _folders(path) == [path.name] and _folders(path / path.name) else path


def _unread(root: pathlib.Path, bases: list[pathlib.Path]) -> list[str]:
  """Returns the names of the folders in `root` that hold none of the splits' folders `bases`."""
  return [name for name in _folders(root) if not any(base.is_relative_to(root / name) for base in bases)]


def describe(
  split: str, origin: str, names: Sequence[str], count: int, labels: np.ndarray | None, reasons: Sequence[str] = ()
) -> str:
  """Says in one line what was read of a split.

  Args:
    split: its name.
    origin: where it comes from.
    names: names of all classes.
    count: number of images.
    labels: their labels, int [count]; None: reading them would mean reading the images.
    reasons: what was not read, and why.
  """
  line = f'{split} from {origin}: {count_classes(names, count, labels)}'
  return files.readable(line + (f'; not read: {errors.list_names(reasons)}' if reasons else ''))


def count_classes(names: Sequence[str], count: int, labels: np.ndarray | None) -> str:
  """Says how many classes and images there are, and the fewest and most images of a class; as for `describe`."""
  classes, each = f'{len(names):,}', ''
  if labels is not None and count:
    counts = np.bincount(labels, minlength=len(names))
    present = counts[counts > 0]
    least, most = present.min(), present.max()
    each = f' ({most:,} per class)' if least == most else f' ({least:,} to {most:,} per class)'
    classes = classes if len(present) == len(names) else f'{len(present):,} of {classes}'
  return f'{classes} classes, {count:,} images{each}'


def _folders(base: pathlib.Path) -> list[str]:
  return sorted(path.name for path in base.iterdir() if path.is_dir() and not image_files.is_skipped(path.name))


def _class_folders(base: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """Returns the class folders in `base` by class, sorted by the names on disk.

  Names that differ only in their Unicode form (macOS writes an accent as a character of its own) are one class.
  """
  result = {}
  for name in _folders(base):
    result.setdefault(files.normalized(name), []).append(base / name)
  return result


def _classes(base: pathlib.Path, least: int = 2) -> tuple[str, ...]:
  names = tuple(_class_folders(base))
  if len(names) < least:
    result = f'only {names[0]!r}' if names else 'none'
    deeper = names and len(_folders(base / names[0])) > 1
    hint = f"; or give the folder in it: config.data.source='folder:{base / names[0]}'" if deeper else ''
    raise errors.InputError(
      f'{base} must hold one folder per class, at least two; found {result}. Expected: {LAYOUT}{hint}'
    )
  return names


def _list(base: pathlib.Path, names: tuple[str, ...]) -> _Listed:
  """Lists the images in the class folders of `base`, sorted; `base` may lack classes."""
  folders = _class_folders(base)
  known = {*names}
  extra = [name for name in folders if name not in known]
  if extra:
    its = errors.list_names(names, errors.LISTED)
    raise errors.InputError(f'{base} has the class {extra[0]!r}, which train/ lacks; its classes: {its}')
  skipped = collections.Counter()
  outside = sum(image_files.is_image(path.name) and path.is_file() for path in base.iterdir())
  if outside:
    skipped['images outside of the class folders'] = outside
  paths, labels, owners = [], [], {}
  for label, name in enumerate(names):
    if name not in folders:
      continue
    result, held = [], collections.Counter()
    for each in folders[name]:
      found = image_files.find(each)
      for real in image_files.real_folders(found.paths).values():
        if (owner := owners.setdefault(real, each)) != each:
          raise errors.InputError(
            f'the class folders {owner} and {each} both lead to the images in {real}, by a link, so that these would '
            'count twice; remove the link from one of them'
          )
      result += found.paths
      held += found.skipped
    skipped += held
    if not result:
      suffixes, others = ', '.join(image_files.SUFFIXES), errors.list_names(image_files.reasons(held))
      raise errors.InputError(
        f'the class folder {folders[name][0]} holds no images ({suffixes}){f", but {others}" if others else ""}'
      )
    paths += sorted(result)
    labels += [label] * len(result)
  if not paths:
    raise errors.InputError(f'{base} holds no class folders; expected: {LAYOUT}')
  return _Listed(paths, np.array(labels, np.int32), skipped)
