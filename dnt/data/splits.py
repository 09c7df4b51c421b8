"""Parses slices of splits in TFDS's notation: 'train', 'train[:98%]', 'train[5000:]', 'train[-10%:]'."""

import re
from typing import NamedTuple

from dnt import errors

TRAIN, VAL, TEST = 'train', 'val', 'test'
ALSO_VAL = ('validation', 'valid')  # what sets of TFDS call `VAL`; both names are of one split
ALL = 'all'  # every image of class folders without splits: those of `TRAIN` and `VAL`
BOUND = r'-?[\d.]+'
PATTERN = re.compile(
  rf'(?P<name>[\w.-]+)(?P<slice>\[((?P<start>{BOUND})(?P<start_unit>%)?)?:((?P<stop>{BOUND})(?P<stop_unit>%)?)?\])?'
)


class Slice(NamedTuple):
  """A slice of a split: the split's name, the bounds (None: open) and whether the bounds are percentages."""

  text: str
  name: str
  start: float | None
  stop: float | None
  percent: bool

  @property
  def is_test(self) -> bool:
    """Returns whether the split is by its name a test split, which must not choose anything."""
    return self.name.lower().startswith('test')

  @property
  def is_whole(self) -> bool:
    return self.start is None and self.stop is None

  def overlaps(self, other: 'Slice') -> bool:
    """Returns whether two slices share examples, as far as their names and bounds say, in a large split.

    What only the split itself could say counts as overlapping: a bound in percent against one in examples, for which
    its size is needed, and a slice of `ALL` against one of its parts, for which its order is.
    """
    names = {VAL if each.name in ALSO_VAL else each.name for each in (self, other)}
    if len(names) > 1:
      return ALL in names and names <= {ALL, TRAIN, VAL}
    if self.percent != other.percent:
      return True
    (start, stop), (first, last) = self._places(), other._places()
    return start < last and first < stop

  def _places(self) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns both bounds as percent of the split and examples from there on, which compare as in a large split."""

    def place(bound: float | None, open_end: float) -> tuple[float, float]:
      if bound is None:
        return open_end, 0
      end = 100 if bound < 0 else 0
      return (end + bound, 0) if self.percent else (end, bound)

    return place(self.start, 0), place(self.stop, 100)

  def bounds(self, count: int) -> tuple[int, int]:
    """Returns the index of the first example and one past the last, for a split of `count` examples.

    Percentages are rounded to the nearest example, halves to even, as in TFDS. Negative bounds count from the end.

    Raises:
      errors.InputError: a bound lies beyond the split, or the slice is empty.
    """

    def absolute(bound: float | None, open_end: int) -> int:
      if bound is None:
        return open_end
      bound = round(bound * count / 100) if self.percent else int(bound)
      if abs(bound) > count:
        raise errors.InputError(f'split {self.text!r} reaches beyond the {count} examples of {self.name!r}')
      return bound + count if bound < 0 else bound

    start, stop = absolute(self.start, 0), absolute(self.stop, count)
    if start >= stop:
      raise errors.InputError(f'split {self.text!r} holds no examples: {self.name!r} has {count}')
    return start, stop


def parse(text: str) -> Slice:
  """Parses a split's name and slice; as in TFDS, a % on one bound applies to both.

  Raises:
    errors.InputError: `text` is not of that form.
  """
  match = PATTERN.fullmatch(text)
  try:
    if match is None or match['slice'] == '[:]':
      raise ValueError
    percent = bool(match['start_unit'] or match['stop_unit'])
    start, stop = ((float if percent else int)(match[key]) if match[key] else None for key in ('start', 'stop'))
  except ValueError:  # no match, or a bound that is not a number
    form = "'train', 'train[:98%]', 'train[5000:]' or 'train[-10%:]'"
    raise errors.InputError(f'split {text!r} must have the form {form}') from None
  return Slice(text, match['name'], start, stop, percent)
