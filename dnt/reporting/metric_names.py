"""Defines the names of metrics, and describes each quantity of the telemetry.

A metric of a split is named `<split>/<quantity>`, such as `test_ema/loss`; one of an entry of the depth list is named
`telemetry/<entry>/<quantity>`, such as `telemetry/stage1/block001/zero`; one of the run has its quantity's name.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dnt.config import typed

AVERAGED = '_ema'  # suffix of a split, for averaged parameters
_TELEMETRY = 'telemetry'
# How fast a run trains, which differs from run to run: images per second; the fraction of the time of these steps in
# which the program waited for images; the seconds in which the run so far waited for compilations; and model FLOPs
# utilization, the fraction of the chips' peak rate.
SPEED = ('images_per_second', 'input_wait', 'compile_seconds', 'mfu')


class Metric(NamedTuple):
  """Describes what a metric measures.

  Attributes:
    quantity: `loss`, `accuracy`, `gradient_norm`, ...
    split: the split, with the suffix `AVERAGED` for averaged parameters; empty for a metric without a split.
    entry: name in the depth list, for telemetry; else empty.
  """

  quantity: str
  split: str = ''
  entry: str = ''


def parse(name: str) -> Metric:
  """Parses the name of a metric; the name of an entry may contain '/'."""
  owner, _, quantity = name.rpartition('/')
  group, _, entry = owner.partition('/')
  return Metric(quantity, entry=entry) if group == _TELEMETRY and entry else Metric(quantity, split=owner)


def deciding(values: Mapping[str, Any], split: str, quantity: str) -> str:
  """Returns the name of a metric of a split: of the averaged parameters, which rank and predict, if `values` has it."""
  averaged = f'{split}{AVERAGED}/{quantity}'
  return averaged if averaged in values else f'{split}/{quantity}'


# What training lines and evaluations of a split `train` both have.
OF_BOTH = ('train/loss', 'train/accuracy')


def is_training(record: Mapping[str, Any]) -> bool:
  """Returns whether a line of `metrics.jsonl` is of training; evaluations of a split `train` have `train/loss` too."""
  return 'train/learning_rate' in record


def ranking(config: typed.Config) -> str:
  """Returns the name of the metric that ranks the checkpoints of a run; empty if none does.

  Args:
    config: the config of the run, which names the split that ranks, see `open_options.rank`.
  """
  split, _, quantity = config.checkpoint.best_metric.rpartition('/')
  suffix = AVERAGED if config.ema.decay else ''
  return f'{split}{suffix}/{quantity}' if split else ''


class Quantity(NamedTuple):
  """Describes how to display a quantity of an entry.

  Attributes:
    title: title of its plot.
    scale: scale of its plot: 'log', 'signed' or 'percent'; a fraction has 'percent'.
    label: title of its column in a table.
    meaning: explanation of the label.
  """

  title: str
  scale: str
  label: str
  meaning: str


def _quantity(*about: str) -> Any:
  return dataclasses.field(default=None, metadata={'quantity': Quantity(*about)})


@dataclasses.dataclass(frozen=True)
class EntryRow:
  """Holds the telemetry of one entry at one step. None: the entry lacks the quantity; NaN or inf: it is not finite.

  Attributes:
    entry: name in the depth list.
    output_gradient_norm: norm of the gradient of the loss with respect to its output, over the whole batch; 0 below
      about 1e-19, whose square is less than a float32 holds; absent below the first entry that trains, where only a
      capture would require a backward pass.
    gradient_norm: norm of the gradient of its parameters, before clipping; here and below, of those that train.
    parameter_norm: norm of its parameters.
    update_ratio: norm of the update over the norm of the parameters before the update.
    activation_mean: mean of its output.
    activation_rms: root mean square of its output.
    zero: fraction of its activations that are zero.
    dead: fraction of its units that are zero for the whole batch; absent if a unit has fewer than 8 values in it
      (examples times positions, `telemetry.VALUES`).
    saturated: for sigmoid and tanh, instead of `zero` and `dead`: the fraction of its activations that are flat
      (`captures.SATURATED`).
    clip_factor: with clipping, the norm of its gradient after clipping over the norm before.

  `zero`, `dead` and `saturated` describe the activations inside the entry, in a user's own module also those after it;
  or its output if there are none. They are absent if its activations cannot be captured.
  """

  entry: str
  output_gradient_norm: float | None = _quantity(
    'gradient norm at the output', 'log', 'backward', "norm of the loss's gradient at the output"
  )
  gradient_norm: float | None = _quantity(
    'gradient norm of the parameters', 'log', 'gradient', "norm of the loss's gradient at the parameters"
  )
  parameter_norm: float | None = _quantity('norm of the parameters', 'log', 'parameters', 'norm of the parameters')
  update_ratio: float | None = _quantity(
    'update / parameter norm', 'log', 'update', 'norm of the update over the norm of the parameters'
  )
  activation_mean: float | None = _quantity('mean of the output', 'signed', 'mean', 'mean of the output')
  activation_rms: float | None = _quantity('RMS of the output', 'log', 'rms', 'root mean square of the output')
  zero: float | None = _quantity('fraction of zero activations (%)', 'percent', 'zero', 'activations that are zero')
  dead: float | None = _quantity(
    'fraction of dead units (%)', 'percent', 'dead', 'units that are zero for the whole batch'
  )
  saturated: float | None = _quantity(
    'fraction of saturated activations (%)', 'percent', 'saturated', 'activations where sigmoid or tanh is flat'
  )
  clip_factor: float | None = _quantity(
    'gradient after / before clipping', 'log', 'clipping', 'norm of the gradient after clipping over the norm before'
  )


QUANTITIES: dict[str, Quantity] = {
  field.name: field.metadata['quantity'] for field in dataclasses.fields(EntryRow) if field.metadata
}


def to_metrics(rows: Iterable[EntryRow]) -> dict[str, float]:
  """Returns the rows as metrics by name."""
  return {
    f'{_TELEMETRY}/{row.entry}/{quantity}': value
    for row in rows
    for quantity in QUANTITIES
    if (value := getattr(row, quantity)) is not None
  }


def from_metrics(record: Mapping[str, Any]) -> list[EntryRow]:
  """Inverts `to_metrics` for a line of `metrics.jsonl`, where null stands for a value that is not finite.

  It ignores other metrics, and quantities that this version does not know.
  """
  rows: dict[str, dict[str, float]] = {}
  for name, value in record.items():
    metric = parse(name)
    if metric.entry and metric.quantity in QUANTITIES:
      rows.setdefault(metric.entry, {})[metric.quantity] = math.nan if value is None else value
  return [EntryRow(entry, **values) for entry, values in rows.items()]
