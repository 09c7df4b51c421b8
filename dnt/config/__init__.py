"""Defines the options of configs: their defaults, checks and relations to one another."""

from dnt.config.durations import duration, period
from dnt.config.overrides import override
from dnt.config.schema import (
  ACTIVATIONS,
  AUTO,
  INITIALIZERS,
  KINDS,
  NORMS,
  ROLES,
  RUN_METRICS,
  SCHEMA,
  SIGNAL,
  SPLIT_METRICS,
  Option,
  copy_unlocked,
  default,
  kind,
  model_options,
  options,
)
from dnt.config.typed import Comparison, Config, SignalConfig
from dnt.config.validation import check_given, no_effect, spell, validate

__all__ = [
  'ACTIVATIONS',
  'AUTO',
  'Comparison',
  'Config',
  'INITIALIZERS',
  'KINDS',
  'NORMS',
  'Option',
  'ROLES',
  'RUN_METRICS',
  'SCHEMA',
  'SIGNAL',
  'SPLIT_METRICS',
  'SignalConfig',
  'check_given',
  'copy_unlocked',
  'default',
  'duration',
  'kind',
  'model_options',
  'no_effect',
  'options',
  'override',
  'period',
  'spell',
  'validate',
]
