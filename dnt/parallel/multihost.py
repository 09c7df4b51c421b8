"""Several processes as one run: joining, and what they tell each other outside the jitted program.

Every function works in one process too. All but `is_lead` must be called by every process, in the same order.
"""

import json
import sys
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dnt.parallel import clusters, preemption, rendezvous


def initialize(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout: int = 300,
  stops_itself: bool = True,
) -> None:
  """Joins the other processes; call it before anything touches a device.

  First all processes meet on the coordinator's port, which names who is missing; then jax takes that port over.

  Args:
    coordinator: `host:port` of process 0; None (all three): detected on Slurm and Cloud TPU.
    num_processes: of the whole run.
    process_id: of this process, from 0.
    timeout: seconds to wait for the others.
    stops_itself: whether the program has a `preemption.Guard`: SIGTERM is then jax's and asks it to stop. If not,
      SIGTERM ends the process.

  Raises:
    errors.InputError: flags that do not fit together or with those of the others, no cluster, or the port is taken.
    errors.RunError: processes that did not report in time, by number.
  """
  cluster = clusters.from_flags(coordinator, num_processes, process_id)
  rendezvous.meet(cluster, timeout)
  jax.config.update('jax_enable_preemption_service', stops_itself)
  jax.distributed.initialize(
    cluster.coordinator,
    cluster.num_processes,
    cluster.process_id,
    cluster.local_device_ids,
    cluster_detection_method='deactivate',  # it would give one GPU to a Slurm task that has a whole node
    initialization_timeout=timeout,
  )
  sys.excepthook = _leave_on_error


def leave(code: int) -> None:
  """Ends this process after a failure that the others may not share; ends it as usual when it runs alone.

  At a usual exit jax waits for all processes, up to five minutes, while they wait for this one in a collective. Ending
  at once breaks their connections: they fail within seconds, or when the heartbeat of this one is missed (100 s).

  Args:
    code: exit code.
  """
  if not jax.distributed.is_initialized():
    sys.exit(code)
  sys.stdout.flush()
  sys.stderr.flush()
  preemption.exit_at_once(code)


def _leave_on_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
  sys.__excepthook__(kind, error, traceback)
  leave(130 if issubclass(kind, KeyboardInterrupt) else 1)


def is_lead() -> bool:
  """Whether this is the process that writes logs and files."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Returns when every process has reached the barrier of that name."""
  multihost_utils.sync_global_devices(name)


def broadcast_from_lead(value: Any) -> Any:
  """The lead's value in every process.

  Args:
    value: anything that JSON holds; only the lead's counts.
  """
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
  return json.loads(multihost_utils.broadcast_one_to_all(np.resize(text, size)).tobytes())
