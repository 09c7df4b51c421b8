"""What installs dnt agrees with itself."""

import fnmatch
import pathlib
import re
import tomllib

import pytest

import dnt
from dnt import cli

ROOT = pathlib.Path(__file__).parents[1]
PROJECT, TOOLS = (tomllib.loads((ROOT / 'pyproject.toml').read_text())[table] for table in ('project', 'tool'))


def is_distributed(path):
  """Returns whether the source distribution holds a file."""
  patterns = TOOLS['hatch']['build']['targets']['sdist']['include']
  name = f'/{path.relative_to(ROOT)}'
  return any(fnmatch.fnmatch(name, pattern) or name.startswith(f'{pattern}/') for pattern in patterns)


def listed(name):
  lines = [line.split('#')[0].strip() for line in (ROOT / name).read_text().splitlines()]
  return {line.replace('"', "'") for line in lines if line and not line.startswith('-r')}


@pytest.mark.parametrize(
  ('name', 'dependencies'),
  [
    ('requirements.txt', PROJECT['dependencies']),
    ('requirements-dev.txt', PROJECT['optional-dependencies']['dev']),
    ('requirements-tfds.txt', PROJECT['optional-dependencies']['tfds']),
  ],
)
def test_requirements_are_those_of_the_project(name, dependencies):
  assert listed(name) == set(dependencies)


@pytest.mark.parametrize('version', ['3.11', '3.13'])
def test_constraints_name_a_version_of_every_requirement(version):
  def package(line):
    return line.split('=')[0].split('>')[0].split('<')[0].strip().lower().replace('_', '-')

  lines = (ROOT / f'constraints-{version}.txt').read_text().splitlines()
  constrained = {package(line) for line in lines if '==' in line}
  wanted = {package(line) for line in listed('requirements.txt') | listed('requirements-dev.txt')}
  assert wanted - constrained <= ({'torch'} if version != '3.11' else set())


def test_the_source_distribution_has_what_its_launchers_install():
  launchers = ''.join(path.read_text() for path in (ROOT / 'launch').glob('*.sh'))
  installed = set(re.findall(r'(?:-r|-c) (requirements[\w-]*\.txt|constraints-)', launchers))
  assert installed == {'requirements.txt', 'constraints-'}
  for path in (*ROOT.glob('requirements*.txt'), *ROOT.glob('constraints-*.txt')):
    assert is_distributed(path), path.name


def test_the_source_distribution_has_the_pages_that_readme_links_to_and_what_they_show():
  pages = [ROOT / 'README.md', ROOT / 'benchmarks' / 'RESULTS.md', *(ROOT / 'docs').glob('*.md')]
  linked = set()
  for page in pages:
    links = re.findall(r'\]\(([^)#:]+)[)#]', page.read_text())
    linked |= {(page.parent / link).resolve() for link in links}
  assert {ROOT / 'CONTRIBUTING.md', *pages[1:]} <= linked
  assert not [path for path in linked if not is_distributed(path)]


def test_the_package_says_its_version_and_is_typed():
  assert dnt.__version__.count('.') == 2
  assert (ROOT / 'dnt' / 'py.typed').exists()
  assert f'## {dnt.__version__}' in (ROOT / 'CHANGELOG.md').read_text()
  assert (cli.CONFIGS / 'digits_resnet20.py').exists()
