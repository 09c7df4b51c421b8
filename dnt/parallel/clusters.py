"""Finds the processes of a run: from flags, or from the documented variables of Slurm and Cloud TPU.

jax.distributed.initialize() detects the same clusters. But it has no public way to find out beforehand whether it will
detect one and who the other processes are, or to use all GPUs of a node from one Slurm task.
"""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple

from dnt import errors

TPU_PORT = 8482  # the same port as jax's


class Cluster(NamedTuple):
  """The processes of a run, from the view of one of them.

  Attributes:
    coordinator: `host:port` of process 0.
    num_processes: number of processes of the whole run.
    process_id: id of this process, from 0.
    local_device_ids: the GPUs that this process uses; None: all visible ones.
    hosts: the host of each process, ordered by process id; empty if unknown.
  """

  coordinator: str
  num_processes: int
  process_id: int
  local_device_ids: list[int] | None = None
  hosts: tuple[str, ...] = ()


def from_flags(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Cluster:
  """Returns the cluster that the flags describe, or detects one if all three are None.

  Raises:
    errors.InputError: only some of the flags are set, a value is out of range, or no cluster is detected.
  """
  given = {'--coordinator': coordinator, '--num_processes': num_processes, '--process_id': process_id}
  missing = [flag for flag, value in given.items() if value is None]
  if len(missing) == 3:
    return detect(os.environ)
  if coordinator is None or num_processes is None or process_id is None:
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
    errors.InputError: `coordinator` is not of that form.
  """
  match = re.fullmatch(r'(\[[0-9a-fA-F:]+\]|[^:\s]+):(\d+)', coordinator)
  if not match or not 0 < int(match[2]) < 2**16:
    raise errors.InputError(f'--coordinator={coordinator!r} must be host:port of process 0, such as 10.0.0.1:8482')
  return match[1].strip('[]'), int(match[2])


def detect(environ: Mapping[str, str]) -> Cluster:
  """Detects the cluster that this process runs in: a Slurm step, a TPU slice on GKE, or a Cloud TPU VM.

  Raises:
    errors.InputError: there is none.
  """
  cluster = _slurm(environ) or _tpu(environ)
  if cluster is None:
    raise errors.InputError(
      'no cluster detected (a Slurm step started by srun, or Cloud TPU); elsewhere give --coordinator=host:port '
      '--num_processes=N --process_id=I together with --distributed'
    )
  return cluster


def _slurm(environ: Mapping[str, str]) -> Cluster | None:
  """Reads the variables that srun sets for each task (man srun, OUTPUT ENVIRONMENT VARIABLES)."""
  names = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_STEP_NUM_TASKS', 'SLURM_STEP_NUM_NODES', 'SLURM_PROCID')
  if any(name not in environ for name in names):
    return None
  job, nodes, tasks, num_nodes, process = (environ[name] for name in names)
  # Matches the first node of 'node7', 'node7,other1', 'node[007-012,020],other1'.
  first = re.match(r'([^,\[]+)(?:\[([^,\-\]]+))?', nodes)
  assert first is not None  # a node list starts with a name
  port = 61440 + int(job) % 4096  # as in jax, so that jobs that share a node do not collide
  # A task that is alone on its node uses all GPUs. If tasks share a node, each uses the GPU with its local id, unless
  # Slurm has bound it to one.
  several = tasks != num_nodes and len(environ.get('CUDA_VISIBLE_DEVICES', '').split(',')) > 1
  return Cluster(
    f'{first[1]}{first[2] or ""}:{port}', int(tasks), int(process), [int(environ['SLURM_LOCALID'])] if several else None
  )


def _tpu(environ: Mapping[str, str]) -> Cluster | None:
  """Detects one or several TPU slices, with one process per host; processes are numbered slice by slice.

  GKE describes the slice in environment variables, Cloud TPU VMs in attributes of the metadata server.
  """
  if 'TPU_WORKER_HOSTNAMES' in environ and 'TPU_WORKER_ID' in environ:
    worker, hosts = environ['TPU_WORKER_ID'], environ['TPU_WORKER_HOSTNAMES'].split(',')
    slices = environ
  else:
    worker = _metadata(environ, 'agent-worker-number')
    endpoints = worker and _metadata(environ, 'worker-network-endpoints')
    if not endpoints:
      return None
    # Each endpoint is 'ip' or 'name:id:ip'.
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
  """Returns an attribute of this Google Cloud machine, or None if it has none of that name or is another machine."""
  host = environ.get('GCE_METADATA_HOST', 'metadata.google.internal')
  request = urllib.request.Request(
    f'http://{host}/computeMetadata/v1/instance/attributes/{attribute}', headers={'Metadata-Flavor': 'Google'}
  )
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy: the server is link-local
  try:
    with opener.open(request, timeout=5) as answer:
      return answer.read().decode()
  except (urllib.error.URLError, TimeoutError):
    return None
