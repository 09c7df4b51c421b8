"""Generates dnt/config/typed.py, the types of configs, from the schema.

python .ci/config_types.py
"""

import pathlib
import sys
from collections.abc import Mapping
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from dnt import config as schema  # noqa: E402

HEAD = '''"""Types of configs, for annotations: each option by name has the type that the schema gives it.

At run time configs are of class `schema.Section`, or plain `ml_collections.ConfigDict`s of a user. Options that
`open_options.resolve` always sets have the type that they hold then; other options without a default may be None.
`.ci/config_types.py` writes this file.
"""

from typing import Any, Literal

import ml_collections
'''
RESOLVED = (
  *('train.steps', 'model.num_classes', 'data.eval_resize', 'data.eval_crop', 'data.interpolation'),
  *('data.image_bits', 'clip.threshold', 'optim.momentum', 'optim.nesterov', 'optim.epsilon'),
)
NAMES = {'train': 'Config', 'compare': 'Comparison', 'signal': 'SignalConfig'}


def text() -> str:
  """Returns the contents of the file."""
  classes: dict[str, str] = {}
  for kind, entries in schema.KINDS.items():
    _add(classes, NAMES[kind], entries)
  return '\n\n'.join([HEAD, *classes.values()])


def _add(classes: dict[str, str], name: str, entries: Mapping[str, Any]) -> None:
  """Adds the class of a schema or section, after the classes of its own sections."""
  lines = []
  for key, entry in entries.items():
    if isinstance(entry, schema.Option):
      lines.append(f'  {key}: {_type(entry, f"{name.lower()}.{key}" in RESOLVED)}\n')
      continue
    section = NAMES['train'] if entry is schema.SCHEMA else key.title().replace('_', '')
    if section not in classes:
      _add(classes, section, entry)
    lines.append(f'  {key}: {section}\n')
  classes[name] = f'class {name}(ml_collections.ConfigDict):\n{"".join(lines)}'


def _type(option: schema.Option, is_set: bool) -> str:
  if option.type is dict:
    return 'dict[str, Any]'
  if option.words:
    return f'{option.type.__name__} | Literal{list(option.words)}'
  if option.type is tuple:
    members = sorted({type(member).__name__ for member in option.default})
    return f'tuple[{" | ".join(members) or "Any"}, ...]'
  return option.type.__name__ + (' | None' if isinstance(option.default, type) and not is_set else '')


if __name__ == '__main__':
  (ROOT / 'dnt' / 'config' / 'typed.py').write_text(text())
