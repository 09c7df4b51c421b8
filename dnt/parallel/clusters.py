"""Which processes a run has: told by flags, or detected on Slurm and Cloud TPU from what they document.

jax.distributed.initialize() detects the same clusters, but has no public way to tell beforehand whether it will, who
the others are, or to use all GPUs of a node from one Slurm task.
"""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple

from dnt import errors

TPU_PORT = 8482  # jax's own choice


class Cluster(NamedTuple):
  """The processes of a run, as one of them sees them.

  Attributes:
    coordinator: `host:port` of process 0.
    num_processes: of the whole run.
    process_id: of this process, from 0.
    local_device_ids: the GPUs this process drives; None: all that it sees.
    hosts: the host of each process, in their order; empty when unknown.
  """

  coordinator: str
  num_processes: int
  process_id: int
  local_device_ids: list[int] | None = None
  hosts: tuple[str, ...] = ()


def from_flags(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Cluster:
  """The cluster that the flags tell, or the detected one when none of them is given.

  Raises:
    errors.InputError: some flags without the others, values out of range, or no cluster is detected.
  """
  given = {'--coordinator': coordinator, '--num_processes': num_processes, '--process_id': process_id}
  missing = [flag for flag, value in given.items() if value is None]
  if len(missing) == 3:
    return detect(os.environ)
  if missing:
    raise errors.InputError(f'{", ".join(given)} go together; missing: {", ".join(missing)}')
  address(coordinator)
  if num_processes < 1:
    raise errors.InputError(f'--num_processes={num_processes} must be at least 1')
  if not 0 <= process_id < num_processes:
    raise errors.InputError(f'--process_id={process_id} must be from 0 to {num_processes - 1} (--num_processes - 1)')
  return Cluster(coordinator, num_processes, process_id)


def address(coordinator: str) -> tuple[str, int]:
  """Splits `host:port` (IPv6 hosts in brackets).

  Raises:
    errors.InputError: it is not one.
  """
  match = re.fullmatch(r'(\[[0-9a-fA-F:]+\]|[^:\s]+):(\d+)', coordinator)
  if not match or not 0 < int(match[2]) < 2**16:
    raise errors.InputError(f'--coordinator={coordinator!r} must be host:port of process 0, such as 10.0.0.1:8482')
  return match[1].strip('[]'), int(match[2])


def detect(environ: Mapping[str, str]) -> Cluster:
  """The cluster this process was started in: a Slurm step, a TPU slice on GKE, or a Cloud TPU VM.

  Raises:
    errors.InputError: there is none.
  """
  cluster = _slurm(environ) or _tpu(environ)
  if cluster is None:
    raise errors.InputError(
      'no cluster detected (Slurm steps started by srun, Cloud TPU); elsewhere give --coordinator=host:port '
      '--num_processes=N --process_id=I beside --distributed'
    )
  return cluster


def _slurm(environ: Mapping[str, str]) -> Cluster | None:
  """From the variables that srun sets for each task (man srun, OUTPUT ENVIRONMENT VARIABLES)."""
  names = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_STEP_NUM_TASKS', 'SLURM_STEP_NUM_NODES', 'SLURM_PROCID')
  if any(name not in environ for name in names):
    return None
  job, nodes, tasks, num_nodes, process = (environ[name] for name in names)
  # The first of 'node7', 'node7,other1', 'node[007-012,020],other1'.
  first = re.match(r'([^,\[]+)(?:\[([^,\-\]]+))?', nodes)
  port = 61440 + int(job) % 4096  # as jax: jobs that share a node do not collide
  # One task a node drives every GPU of it; of several, each drives the one with its number, unless Slurm bound one.
  several = tasks != num_nodes and len(environ.get('CUDA_VISIBLE_DEVICES', '').split(',')) > 1
  return Cluster(
    f'{first[1]}{first[2] or ""}:{port}', int(tasks), int(process), [int(environ['SLURM_LOCALID'])] if several else None
  )


def _tpu(environ: Mapping[str, str]) -> Cluster | None:
  """A TPU slice: one process a host; or several slices, numbered slice by slice.

  GKE tells by environment variables, Cloud TPU VMs by attributes of the metadata server.
  """
  if 'TPU_WORKER_HOSTNAMES' in environ and 'TPU_WORKER_ID' in environ:
    worker, hosts = environ['TPU_WORKER_ID'], environ['TPU_WORKER_HOSTNAMES'].split(',')
    slices = environ
  else:
    worker = _metadata(environ, 'agent-worker-number')
    endpoints = worker and _metadata(environ, 'worker-network-endpoints')
    if not endpoints:
      return None
    # 'ip' or 'name:id:ip' each.
    hosts = [endpoint.split(':')[-1] for endpoint in endpoints.split(',')]
    lines = re.findall(r"^(\w+)\s*:\s*'?(.*?)'?\s*$", _metadata(environ, 'tpu-env') or '', re.MULTILINE)
    slices = {**dict(lines), **environ}
  num_slices = int(slices.get('MEGASCALE_NUM_SLICES') or 1)
  process = int(worker) + int(slices.get('MEGASCALE_SLICE_ID') or 0) * len(hosts)
  if num_slices == 1:
    return Cluster(f'{hosts[0]}:{TPU_PORT}', len(hosts), process, None, tuple(hosts))
  lead = slices['MEGASCALE_COORDINATOR_ADDRESS'].split(':')[0]
  return Cluster(f'{lead}:{TPU_PORT}', len(hosts) * num_slices, process)


def _metadata(environ: Mapping[str, str], attribute: str) -> str | None:
  """An attribute of this Google Cloud machine; None anywhere else, or where it has no such attribute."""
  host = environ.get('GCE_METADATA_HOST', 'metadata.google.internal')
  request = urllib.request.Request(
    f'http://{host}/computeMetadata/v1/instance/attributes/{attribute}', headers={'Metadata-Flavor': 'Google'}
  )
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is on this machine's link
  try:
    with opener.open(request, timeout=5) as answer:
      return answer.read().decode()
  except (urllib.error.URLError, TimeoutError):
    return None
