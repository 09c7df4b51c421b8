"""Gaussian integrals that are known, as functions."""

import math

import pytest


@pytest.fixture(scope='session')
def arc_cosine():
  """E[relu(u) relu(v)] / E[relu(u)^2] at correlation c (Cho and Saul 2009)."""
  return lambda c: (math.sqrt(1 - c * c) + c * (math.pi - math.acos(c))) / math.pi


@pytest.fixture(scope='session')
def arc_sine():
  """E[erf(u) erf(v)] at variance q and correlation c (Williams 1997)."""
  return lambda q, c: 2 / math.pi * math.asin(2 * q * c / (1 + 2 * q))
