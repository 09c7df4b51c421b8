"""The schema of configs: every option, its default and its check."""

from dnt.config.durations import duration, period
from dnt.config.overrides import override
from dnt.config.schema import (
  ACTIVATIONS,
  INITIALIZERS,
  KINDS,
  NORMS,
  RUN_FIGURES,
  SCHEMA,
  SIGNAL,
  SPLIT_FIGURES,
  Option,
  default,
  kind,
  options,
  validate,
)

__all__ = [
  'ACTIVATIONS',
  'INITIALIZERS',
  'KINDS',
  'NORMS',
  'Option',
  'RUN_FIGURES',
  'SCHEMA',
  'SIGNAL',
  'SPLIT_FIGURES',
  'default',
  'duration',
  'kind',
  'options',
  'override',
  'period',
  'validate',
]
