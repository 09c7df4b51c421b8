"""Tests of dnt.reporting.versions."""

import platform
from importlib import metadata

from dnt.reporting import versions


def test_only_installed_packages_have_a_version():
  expected = {'python': platform.python_version(), 'jax': metadata.version('jax'), 'numpy': metadata.version('numpy')}
  assert versions.find(('jax', 'no-such-package', 'numpy')) == expected
