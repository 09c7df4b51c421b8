"""Parses the hardware to rehearse on, such as `v5e:4x4`, and makes its devices, which need not be here."""

import importlib.metadata
import importlib.util
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

from dnt import errors
from dnt.parallel import chips

CPU = 'cpu'
FORMS = 'v4:2x2x2, v5e:4x4, v5p:2x2x2, v6e:8x8 (a slice of a TPU), 2*v5e:16x16 (two slices), h100:8 (GPUs), cpu:8'
# Slices of TPUs that can be had, as in launch/slices.sh, which names the docs: of v5e and v6e the whole list; of v4 and
# v5p those below a cube of 4x4x4 chips, and then AxBxC with A <= B <= C, each a multiple of 4, up to the largest.
_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_BELOW_A_CUBE = ('2x2x1', '2x2x2', '2x2x4', '2x4x4')
_LARGEST = {'v4': (16, 16, 16), 'v5p': (16, 16, 24)}
_ONE_HOST = 8  # chips of a slice of v5e or v6e that are one host; a larger slice has hosts of `Chip.host`
_MOST_CPUS = 256
_TOOLKIT = pathlib.Path('/usr/local/cuda')
# The GpuTargetConfigProto of XLA, which stands for the GPU that is not here. The figures are those of XLA's own specs.
_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f} l2_cache_size: 52428800 device_memory_size: {memory:.0f}
  cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "{name}"
"""


# libtpu does not ask Google's metadata server where it runs, does not warn that it runs elsewhere, and does not claim
# the TPU of this machine, which another program may be using.
_LIBTPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_STDERR_LOG_LEVEL': '3',
  'TPU_MIN_LOG_LEVEL': '3',
}


class Target(NamedTuple):
  """Describes the hardware of a run.

  Attributes:
    text: as the user wrote it.
    chip: of `chips.BY_NAME`; None: CPU devices.
    shape: chips on each axis of a slice; for GPUs and CPUs their number.
    slices: number of slices, or of nodes of GPUs, which a network connects.
  """

  text: str
  chip: chips.Chip | None
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def chips(self) -> int:
    return math.prod(self.shape) * self.slices

  @property
  def hosts(self) -> int:
    if self.chip is None:
      return 1
    count, host = math.prod(self.shape), self.chip.host
    if self.chip.is_tpu and len(self.shape) == 2 and count <= _ONE_HOST:
      host = count
    return self.slices * -(-count // host)

  @property
  def links(self) -> float | None:
    """Returns the bytes per second with which a ring over all chips moves a whole array past each of them.

    It is the bandwidth of "array bytes / seconds" in an all-gather. On a torus every axis adds its two links, if it
    closes to a ring, and else one; a switch gives all links.
    """
    if self.chip is None or self.chip.link_bandwidth is None:
      return None
    if not self.chip.ports:
      return self.chip.link_bandwidth
    links = sum(2 if self._closes(size) else 1 for size in self.shape if size > 1)
    return self.chip.link_bandwidth / self.chip.ports * links

  @property
  def hops(self) -> int:
    """Returns the steps of an all-gather over a slice; an all-reduce has twice as many."""
    if self.chip is None or not self.chip.ports:
      return math.prod(self.shape) - 1
    return sum(size // 2 if self._closes(size) else size - 1 for size in self.shape)

  def _closes(self, size: int) -> bool:
    """Returns whether an axis closes to a ring: of v4 and v5p those of whole cubes, else only the longest."""
    return all(side % 4 == 0 for side in self.shape) if len(self.shape) == 3 else size == 16


def parse(texts: Sequence[str]) -> list[Target]:
  """Parses the targets of the command line, each text one or several with commas between them.

  Raises:
    errors.InputError: a target is unknown or has a shape that does not exist; the message lists the valid forms.
  """
  if not texts:
    raise errors.InputError(f'--on names the hardware to rehearse on, such as {FORMS}')
  return [_parse(each.strip()) for text in texts for each in text.split(',')]


def _parse(text: str) -> Target:
  match = re.fullmatch(r'(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)', text)
  if match is None:
    raise errors.InputError(f'--on={text} is not of the form {FORMS}')
  slices, name = int(match[1] or 1), match[2]
  shape = tuple(map(int, match[3].split('x')))
  if name != CPU and name not in chips.BY_NAME:
    raise errors.unknown('chip in --on', name, [CPU, *chips.BY_NAME])
  if not slices or not all(shape):
    raise errors.InputError(f'--on={text} has no chips')
  if name != CPU and chips.BY_NAME[name].is_tpu:
    _check_slice(text, name, shape)
    return Target(text, chips.BY_NAME[name], shape, slices)
  if len(shape) > 1 or slices > 1:
    raise errors.InputError(f'--on={text}: give the number of devices, as in {name}:8')
  (count,) = shape
  if name == CPU:
    if count > _MOST_CPUS:
      raise errors.InputError(f'--on={text}: at most {_MOST_CPUS} CPU devices can be made here')
    return Target(text, None, shape)
  chip = chips.BY_NAME[name]
  if count > chip.host and count % chip.host:
    raise errors.InputError(
      f'--on={text}: a node has {chip.host} GPUs; valid are 1 to {chip.host} and multiples of {chip.host}'
    )
  return Target(text, chip, (min(count, chip.host),), -(-count // chip.host))


def _check_slice(text: str, name: str, shape: tuple[int, ...]) -> None:
  topology, largest = 'x'.join(map(str, shape)), _LARGEST.get(name)
  if largest is None:
    valid, listed = topology in _FLAT, ', '.join(_FLAT)
  else:
    cubes = len(shape) == 3 and list(shape) == sorted(shape) and not any(side % 4 for side in shape)
    fits = all(side <= most for side, most in zip(shape, largest, strict=False))
    valid = topology in _BELOW_A_CUBE or (cubes and fits)
    most = 'x'.join(map(str, largest))
    listed = f'{", ".join(_BELOW_A_CUBE)}, or AxBxC such as 4x4x8, of ascending multiples of 4, up to {most}'
  if not valid:
    raise errors.InputError(f'--on={text}: there is no such slice; {name} has {listed}')


def prepare(targets: Sequence[Target]) -> None:
  """Prepares jax for the targets; call it before anything else uses jax. Nothing is computed on an accelerator.

  Raises:
    errors.InputError: a package that compiles for a target is missing, or there are too few CPU devices.
  """
  for target in targets:
    _check_package(target)
  for name, value in _LIBTPU.items():
    os.environ.setdefault(name, value)
  wanted = max((target.chips for target in targets if target.chip is None), default=1)
  try:
    jax.config.update('jax_platforms', CPU)
    if 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
      jax.config.update('jax_num_cpu_devices', wanted)
  except RuntimeError:  # jax is in use already, with the devices it has
    pass
  here = len(jax.local_devices(backend=CPU))
  if here < wanted:
    raise errors.InputError(
      f'--on=cpu:{wanted} needs as many CPU devices, and jax has {here}: unset XLA_FLAGS, or set '
      f'--xla_force_host_platform_device_count={wanted} there'
    )


def _check_package(target: Target) -> None:
  """Refuses a target whose compiler is not installed; jax crashes without the library of CUDA that it links."""
  if target.chip is None:
    return
  if target.chip.is_tpu:
    needed, found, extra = 'libtpu', importlib.util.find_spec('libtpu'), 'tpu'
  else:
    needed, extra = 'jax-cuda13-plugin and nvidia-nvvm', 'gpu'
    library = _TOOLKIT.is_dir() or any(map(_is_installed, ('nvidia-nvvm', 'nvidia-cuda-nvcc-cu12')))
    found = library and any(map(importlib.util.find_spec, ('jax_cuda13_plugin', 'jax_cuda12_plugin')))
  if not found:
    raise errors.InputError(
      f'--on={target.text} needs the compiler for {target.chip.name}, which comes with {needed}: '
      f'pip install "dnt[{extra}]", or in a checkout pip install ".[{extra}]"'
    )


def _is_installed(package: str) -> bool:
  return any(importlib.metadata.distributions(name=package))


def devices(target: Target) -> list[jax.Device]:
  """Returns the devices of a target, for which programs can be compiled but not run, except on CPU.

  Raises:
    errors.InputError: the compiler does not know the topology.
  """
  if target.chip is None:
    return jax.local_devices(backend=CPU)[: target.chips]
  try:
    if target.chip.is_tpu:
      bounds = {} if target.chips > 1 else {'chips_per_host_bounds': (1, 1, 1)}
      slices = {'num_slices': target.slices} if target.slices > 1 else {}
      # The two TensorCores of a chip are one device, as jax runs on it; libtpu's default for v4 alone is another.
      cores = {'chip_config_name': 'megacore'} if target.chip.name == 'v4' else {}
      name = f'{target.chip.name}:{"x".join(map(str, target.shape))}'
      described = topologies.get_topology_desc(name, 'tpu', **bounds, **slices, **cores)
    else:
      figures = {'bandwidth': target.chip.memory_bandwidth, 'memory': target.chip.memory, 'name': target.chip.kind}
      shape = f'1x{target.slices}x{target.shape[0]}'
      described = topologies.get_topology_desc(platform='cuda', target_config=_GPU.format(**figures), topology=shape)
  except (RuntimeError, NotImplementedError) as error:
    raise errors.InputError(
      f'--on={target.text}: XLA cannot describe such devices ({errors.first_line(error)})'
    ) from error
  return list(described.devices)
