"""Brings what older versions wrote to the present format, so that other modules read as if there were no other.

`fill` completes a config, and `envelope` the record of a checkpoint. `workdir.FORMAT` says when the names of leaves
changed. The other functions are for what a run of an older version keeps when it continues.
"""

import re
from collections.abc import Container, Mapping
from typing import Any

from dnt.config import implied, keys, relations, schema, typed

_SPLITS = ('test',)  # default of eval.splits before `data.hold_out` existed
_THRESHOLD = 1.0  # default of clip.threshold before it was left open
_RULE = {'momentum': 0.9, 'nesterov': False, 'epsilon': 1e-8}  # defaults of optim before they were left open


def fill(config: typed.Config, given: Container[str]) -> None:
  """Sets options that a file lacks to what its version did, where that is not their default.

  Args:
    config: the config with the options of the file.
    given: keys of these options.
  """
  if 'data.hold_out' not in given and 'eval.splits' in given:
    hold_nothing_out(config)
  if 'data.eval_resize' not in given:  # if not set, it would now follow the pretrained weights
    config.data.eval_resize = implied.eval_resize(config.data)


def hold_nothing_out(config: typed.Config) -> None:
  """Sets what versions without `data.hold_out` did: they trained on all images, and the first split ranked."""
  if config.data.hold_out is None:
    config.data.hold_out = False
  if '/' not in config.checkpoint.best_metric:
    config.checkpoint.best_metric = f'{config.eval.splits[0]}/{config.checkpoint.best_metric}'


def held_nothing_out(content: Mapping[str, Any]) -> bool:
  """Returns whether a config, in JSON values as it was written, is of a version without `data.hold_out`."""
  return 'data' in content and 'hold_out' not in content['data']


def begin(config: typed.Config) -> None:
  """Fills in what the config of a run leaves open as a version without `data.hold_out` did."""
  if config.eval.splits == schema.default().eval.splits:
    config.eval.splits = _SPLITS
  hold_nothing_out(config)


def leave_open(old: typed.Config, new: typed.Config, content: Mapping[str, Any]) -> None:
  """Unsets what an older version did by default and the run, as it goes on, keeps, as the present config is open there.

  Args:
    old: the config that the run was given.
    new: the config that it is given now.
    content: the JSON value of `old`.
  """
  if 'eval_resize' not in content.get('data', {}) and new.data.eval_resize is None:
    old.data.eval_resize = None
  if new.clip.threshold is None and new.clip.name == old.clip.name and old.clip.threshold == _THRESHOLD:
    old.clip.threshold = None
  if new.optim.name == old.optim.name and all(content.get('optim', {}).get(key) is not None for key in _RULE):
    for key, value in _RULE.items():
      if new.optim[key] is None and old.optim[key] == value:
        old.optim[key] = None


def likely_open(config: typed.Config, given: Container[str]) -> dict[str, Any]:
  """Returns what a run has probably determined, for one of a version that did not record it.

  It is what contradicts the splits of the command line.

  Args:
    config: the config of the run, with the options of the command line.
    given: keys of the options of the command line.
  """
  if 'eval.splits' not in given:
    return {}
  found, (split, _, quantity) = {}, config.checkpoint.best_metric.rpartition('/')
  names_val = not relations.failing({'eval.splits': ('val',)}, lambda key: keys.get(config, key))
  if config.data.hold_out not in (None, names_val):
    found['data.hold_out'] = None
  if split and split not in config.eval.splits:
    found['checkpoint.best_metric'] = quantity
  return found


def envelope(content: Mapping[str, Any], step: int) -> dict[str, Any]:
  """Returns the envelope of a checkpoint with all that the present format has, see `dnt.checkpoints.format`.

  Args:
    content: the envelope as it was written.
    step: the checkpoint's step.
  """
  current = {'format': 1, **content, 'meta': meta(content['meta'], step)}
  return current if 'metrics' in content else {**current, 'metrics': _metrics(content)}


def leaf(name: str, number: int) -> str:
  """Returns the path that a leaf of a checkpoint of the format `number` has in the present one."""
  return name if number > 1 else re.sub(r'^opt_state/stage(\d+)/', r'opt_state/phase\1/', name)


def meta(content: Mapping[str, Any], step: int) -> dict[str, Any]:
  """Returns the loop's metadata of a checkpoint with all that `record.Record.history` has.

  The config stays as it was written; `run_config.parse` reads it.

  Args:
    content: the metadata as it was written.
    step: the checkpoint's step.
  """
  if 'config' not in content:  # it is not of the loop
    return dict(content)
  config, sums = content['config'], dict(content.get('sums', {}))
  data = config['data']
  found = {
    'data': {},
    'versions': {},
    'devices': {},
    'images': step * config['train']['batch_size'],
    # The size is None if the config left it open.
    'image_shape': [data['image_size'], data['image_size'], len(data['mean'])],
  }
  if 'images' not in content and sums.get('steps'):  # the rate was summed too
    sums['learning_rate'] /= sums['steps']
  return {**found, **content, 'sums': sums}


def _metrics(content: Mapping[str, Any]) -> dict[str, float]:
  """Returns the metrics of an envelope that holds only the one that ranked: that of the first split, when measured."""
  config, metric = content['meta'].get('config'), content['metric']
  if not config or metric is None:
    return {}
  suffix = '_ema' if config['ema']['decay'] else ''
  return {f'{config["eval"]["splits"][0]}{suffix}/{config["checkpoint"]["best_metric"]}': metric}
