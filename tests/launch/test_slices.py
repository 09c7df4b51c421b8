"""The names of TPU slices. The numbers are those of the tables in cloud.google.com/tpu/docs/v4, v5e, v5p and v6e."""

import pathlib
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / 'launch'


def bash(text):
  sources = f'source {LAUNCH}/lib.sh; source {LAUNCH}/slices.sh; '
  return subprocess.run(['bash', '-c', sources + text], capture_output=True, text=True)


@pytest.mark.parametrize(
  ('kind', 'topology', 'chips', 'hosts'),
  [
    ('v5litepod-1', 'v5e:1x1', 1, 1),
    ('v5litepod-4', 'v5e:2x2', 4, 1),
    ('v5litepod-8', 'v5e:2x4', 8, 1),
    ('v5litepod-16', 'v5e:4x4', 16, 4),
    ('v5litepod-32', 'v5e:4x8', 32, 8),
    ('v5litepod-64', 'v5e:8x8', 64, 16),
    ('v5litepod-128', 'v5e:8x16', 128, 32),
    ('v5litepod-256', 'v5e:16x16', 256, 64),
    ('v6e-1', 'v6e:1x1', 1, 1),
    ('v6e-8', 'v6e:2x4', 8, 1),
    ('v6e-16', 'v6e:4x4', 16, 4),
    ('v6e-256', 'v6e:16x16', 256, 64),
    ('v4-8', 'v4:2x2x1', 4, 1),
    ('v4-32', 'v4:2x2x4', 16, 4),
    ('v4-64', 'v4:2x4x4', 32, 8),
    ('v4-128', 'v4:4x4x4', 64, 16),
    ('v5p-8', 'v5p:2x2x1', 4, 1),
    ('v5p-16', 'v5p:2x2x2', 8, 2),
    ('v5p-64', 'v5p:2x4x4', 32, 8),
    ('v5p-128', 'v5p:4x4x4', 64, 16),
    ('v5p-256', 'v5p:4x4x8', 128, 32),
    ('v5p-384', 'v5p:4x4x12', 192, 48),
    ('v5p-512', 'v5p:4x8x8', 256, 64),
    ('v5p-1024', 'v5p:8x8x8', 512, 128),
    ('v5p-1536', 'v5p:8x8x12', 768, 192),
    ('v5p-2048', 'v5p:8x8x16', 1024, 256),
    ('v5p-8192', 'v5p:16x16x16', 4096, 1024),
    ('v5p-12288', 'v5p:16x16x24', 6144, 1536),
  ],
)
def test_a_type_names_its_topology_chips_and_hosts(kind, topology, chips, hosts):
  result = bash(f'describe_slice {kind}; echo "$generation:$topology $chips $hosts"')
  assert (result.stdout, result.stderr) == (f'{topology} {chips} {hosts}\n', '')


@pytest.mark.parametrize(
  ('kind', 'words'),
  [
    ('v5litepod-24', 'chips: 1, 4, 8'),
    ('v5litepod-512', 'chips: 1, 4, 8'),
    ('v6e-2', 'chips: 1, 4, 8'),
    ('v5p-4', 'TensorCores, two a chip: 8, 16'),
    ('v5p-24', 'TensorCores, two a chip: 8, 16'),
    ('v4-9', 'TensorCores, two a chip: 8, 16'),
    ('v4-200', 'multiple of 128'),
    ('v5e-16', 'v5litepod-16'),
  ],
)
def test_a_size_that_is_none_is_refused_with_what_it_counts(kind, words):
  result = bash(f'describe_slice {kind}')
  assert (result.returncode, result.stdout) == (2, '')
  assert f'--type={kind}' in result.stderr and words in result.stderr


@pytest.mark.parametrize('kind', ['v9-8', 'v3-8', 'v4', 'v4-', '8', "v4-8'"])
def test_other_types_are_not_known(kind):
  assert bash(f'describe_slice "{kind}"').returncode == 1


@pytest.mark.parametrize(
  ('generation', 'valid', 'invalid'),
  [
    ('v5e', ['1x1', '4x4', '8x16', '16x16'], ['4x2', '4x4x4', '16x32', '3x3', '', '4x']),
    ('v6e', ['2x2', '2x4'], ['2x2x1', '8x4']),
    ('v4', ['2x2x1', '2x2x4', '4x4x4', '4x4x8', '8x8x12'], ['2x2', '1x1x1', '4x4x2', '8x4x4', '04x4x4', '4x4x6']),
    ('v5p', ['2x2x2', '4x8x8', '16x16x24'], ['4x4', '2x2x8', '4x4x', '4x4x4x4']),
  ],
)
def test_topologies_of_a_generation(generation, valid, invalid):
  for topology in valid:
    assert bash(f'has_topology {generation} "{topology}"').returncode == 0, topology
  for topology in invalid:
    assert bash(f'has_topology {generation} "{topology}"').returncode == 1, topology
