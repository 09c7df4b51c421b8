"""Prints which versions in pip's installation report (standard input) are not those of a constraints file."""

import json
import pathlib
import sys


def normalize(name):
  return name.lower().replace('_', '-')


lines = pathlib.Path(sys.argv[1]).read_text().splitlines()
tested = {normalize(name): version for name, _, version in (line.partition('==') for line in lines) if version}
report = json.load(sys.stdin)
found = {package['metadata']['name']: package['metadata']['version'] for package in report['install']}
newer = [
  f'  {name} {version} (tested: {tested.get(normalize(name), "not at all")})'
  for name, version in sorted(found.items())
  if tested.get(normalize(name)) != version
]
print('\n'.join(newer) or '  none')
