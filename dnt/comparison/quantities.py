"""Names of the quantities that a comparison shows, such as `test_error` or `seconds`."""

from dnt import config as schema
from dnt.config import measures

_TITLES = {
  'auroc': 'AUROC',
  'seconds': 'time',
  'images_per_second': 'images/s',
  'process_memory': 'peak memory',
  'device_memory': 'peak device memory',
}
PERCENT = ('error', *measures.FRACTIONS)  # shown in percent
MORE_IS_BETTER = (*measures.MORE_IS_BETTER, 'images_per_second')


def kind(name: str) -> str:
  """Returns the metric, as named in `config.columns`, of a quantity of a run or split (`test_calibration_error`)."""
  if name in schema.RUN_METRICS:
    return name
  return max((figure for figure in schema.SPLIT_METRICS if name.endswith(f'_{figure}')), key=len)


def title(name: str) -> str:
  """Formats the name of a quantity in words."""
  quantity = kind(name)
  words = (name.removesuffix(quantity) + _TITLES.get(quantity, quantity)).replace('_', ' ')
  return f'{words} (%)' if quantity in PERCENT else words
