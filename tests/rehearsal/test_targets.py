"""The hardware that a user names."""

import contextlib
import itertools
import pathlib
import subprocess

import pytest

from dnt import errors
from dnt.parallel import chips
from dnt.rehearsal import targets

LAUNCH = pathlib.Path(__file__).parents[2] / 'launch'


@pytest.mark.parametrize(
  ('text', 'count', 'hosts', 'slices'),
  [
    ('v5e:4x4', 16, 4, 1),
    ('v5e:1x1', 1, 1, 1),
    ('v5e:2x4', 8, 1, 1),
    ('2*v6e:2x4', 16, 2, 2),
    ('v5p:2x2x2', 8, 2, 1),
    ('v4:2x2x1', 4, 1, 1),
    ('2*v4:2x2x4', 32, 8, 2),
    ('v6e:16x16', 256, 64, 1),
    ('2*v5e:16x16', 512, 128, 2),
    ('h100:8', 8, 1, 1),
    ('h200:16', 16, 2, 2),
    ('cpu:8', 8, 1, 1),
  ],
)
def test_targets_have_their_chips(text, count, hosts, slices):
  (target,) = targets.parse([text])
  assert (target.chips, target.hosts, target.slices) == (count, hosts, slices)
  assert target.chip is chips.BY_NAME.get(text.split('*')[-1].split(':')[0])


@pytest.mark.parametrize(
  ('text', 'word'),
  [
    ('v5e', 'v5e:4x4'),
    ('v5e:4x4x4', '16x16'),
    ('v5e:32x32', '16x16'),
    ('v5p:4x4', '16x16x24'),
    ('v5p:16x20x20', '16x16x24'),
    ('v4:4x4', '16x16x16'),
    ('v4:1x2x2', '2x2x2'),
    ('v5e:3x4', '4x4'),
    ('v5e:6x6', '4x8'),
    ('v5e:4x2', '2x4'),
    ('v5e:2x16', '4x8'),
    ('v4:2x2x6', '4x4x8'),
    ('v4:4x4x20', '16x16x16'),
    ('v4:1x1x1', '2x2x1'),
    ('v5e:0x4', 'no chips'),
    ('h100:9', 'valid are 1 to 8 and multiples of 8'),
    ('h100:4x4', 'h100:8'),
    ('2*h100:8', 'h100:8'),
    ('cpu:100000', '256'),
    ('a100:8', 'h100'),
    ('v5e:4X4', 'v5e:4x4'),
    ('', 'v5e:4x4'),
  ],
)
def test_what_does_not_exist_is_refused(text, word):
  with pytest.raises(errors.InputError, match=word.replace('*', r'\*')):
    targets.parse([text])


@pytest.mark.parametrize(
  ('generation', 'kind', 'unit'), [('v5e', 'v5litepod', 1), ('v6e', 'v6e', 1), ('v4', 'v4', 2), ('v5p', 'v5p', 2)]
)
def test_slices_and_their_hosts_are_those_of_the_launchers(generation, kind, unit):
  sides = (1, 2, 3, 4, 6, 8, 10, 12, 16)
  shapes = [*itertools.product(sides, repeat=2), *itertools.product(sides, repeat=3)]
  asked = ' '.join('x'.join(map(str, shape)) for shape in shapes)
  # Of one type several topologies can be rented; describe_slice knows the usual one, of as many hosts.
  text = f"""source {LAUNCH}/lib.sh; source {LAUNCH}/slices.sh
for each in {asked}; do
  if has_topology {generation} $each; then
    describe_slice {kind}-$(({unit} * $(chips_of $each)))
    echo {generation}:$each $hosts
  fi
done"""
  lines = subprocess.run(['bash', '-c', text], capture_output=True, text=True, check=True).stdout.splitlines()
  found = []
  for each in asked.split():
    with contextlib.suppress(errors.InputError):
      (target,) = targets.parse([f'{generation}:{each}'])
      found.append(f'{target.text} {target.hosts}')
  assert found == lines and len(lines) >= 8


def test_no_target_is_refused():
  with pytest.raises(errors.InputError, match='--on'):
    targets.parse([])


@pytest.mark.parametrize(('text', 'extra'), [('v5e:4x4', 'tpu'), ('h100:8', 'gpu')])
def test_a_missing_compiler_is_one_line_that_says_what_to_install(text, extra, monkeypatch):
  monkeypatch.setattr(targets.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.InputError, match=rf'pip install.*\[{extra}\]'):
    targets.prepare(targets.parse([text]))


def test_a_plugin_without_the_library_that_it_links_is_refused(monkeypatch, tmp_path):
  monkeypatch.setattr(targets.importlib.util, 'find_spec', lambda name: name)
  monkeypatch.setattr(targets.importlib.metadata, 'distributions', lambda name: iter(()))
  monkeypatch.setattr(targets, '_TOOLKIT', tmp_path / 'absent')
  with pytest.raises(errors.InputError, match='nvidia-nvvm'):
    targets.prepare(targets.parse(['h100:8']))


def test_more_cpu_devices_than_there_are_is_refused():
  with pytest.raises(errors.InputError, match='xla_force_host_platform_device_count=9'):
    targets.prepare(targets.parse(['cpu:9']))


def test_cpu_devices_are_those_of_jax():
  (target,) = targets.parse(['cpu:3'])
  assert len(targets.devices(target)) == 3


@pytest.mark.slow
@pytest.mark.parametrize('text', ['v5e:1x1', 'v4:2x2x2', '2*v4:2x2x1', 'v5e:4x4', 'v5p:2x2x2', 'v6e:2x2'])
def test_the_compiler_has_a_device_for_each_chip(text):
  pytest.importorskip('libtpu', reason='the compiler for TPUs')
  found = targets.parse([text])
  targets.prepare(found)
  devices = targets.devices(found[0])
  assert len(devices) == found[0].chips
  assert {chips.find(device.device_kind) for device in devices} == {found[0].chip}


def test_links_are_those_of_the_torus():
  def links(text):
    (target,) = targets.parse([text])
    return target.links, target.hops

  one = chips.BY_NAME['v5e'].link_bandwidth / 4
  assert links('v5e:4x4') == (2 * one, 6)  # two lines
  assert links('v5e:16x16') == (4 * one, 16)  # two rings
  assert links('v5e:2x4') == (2 * one, 4)
  assert links('v4:2x2x4') == (3 * chips.BY_NAME['v4'].link_bandwidth / 6, 5)  # lines, as in all below a cube
  assert links('v4:2x4x4') == (3 * chips.BY_NAME['v4'].link_bandwidth / 6, 7)
  assert links('v5p:4x4x4') == (chips.BY_NAME['v5p'].link_bandwidth, 6)
  assert links('h100:8') == (chips.BY_NAME['h100'].link_bandwidth, 7)


def test_several_targets_stand_in_one_flag_or_in_several():
  assert [target.text for target in targets.parse(['v5e:4x4, h100:8', 'cpu:2'])] == ['v5e:4x4', 'h100:8', 'cpu:2']
