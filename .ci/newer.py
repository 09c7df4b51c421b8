"""Prints which versions in pip's installation report (standard input) are not those of a constraints file."""

import json
import pathlib
import sys

lines = pathlib.Path(sys.argv[1]).read_text().splitlines()
tested = dict(line.split('==') for line in lines if '==' in line)
report = json.load(sys.stdin)
found = {package['metadata']['name']: package['metadata']['version'] for package in report['install']}
names = {name.lower().replace('_', '-'): version for name, version in tested.items()}
newer = [
  f'  {name} {version} (tested: {names.get(name.lower().replace("_", "-"), "not at all")})'
  for name, version in sorted(found.items())
  if names.get(name.lower().replace('_', '-')) != version
]
print('\n'.join(newer) or '  none')
