"""Joins several processes into one run, and lets them communicate outside the jitted program.

Every function works in a single process too, without a device: a program that starts others, such as a comparison, must
leave the accelerator to them. Every process must call all of them, except `is_lead`, in the same order.
"""

import json
import pathlib
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dnt import errors
from dnt.parallel import agreement, clusters, peers, preemption, rendezvous, signals

T = TypeVar('T')
KINDS = (errors.RunError, errors.InputError)  # errors that processes share, the most severe last


def initialize(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout: int = 300,
  stops_itself: bool = True,
  description: Mapping[str, Any] | None = None,
) -> None:
  """Joins the other processes; call it before anything touches a device.

  First all processes meet on the coordinator's port, so that an error can name the missing ones; then jax takes over
  that port.

  Args:
    coordinator: `host:port` of process 0. If this and the next two are None, detects the cluster (Slurm, Cloud TPU).
    num_processes: number of processes of the whole run.
    process_id: id of this process, from 0.
    timeout: seconds to wait for the others.
    stops_itself: whether the program has a `preemption.Guard`, which needs jax's preemption service.
    description: what must be equal in all processes, as JSON values by name.

  Raises:
    errors.InputError: the flags contradict each other or those of other processes, the processes or their devices
      differ, there is no cluster, or the port is in use.
    errors.RunError: some processes did not report in time; the message lists their ids.
  """
  cluster = clusters.from_flags(coordinator, num_processes, process_id)
  peers.watch(cluster.process_id, *rendezvous.meet(cluster, timeout, description))
  sys.excepthook = _leave_on_error  # at once: jax's own part may fail too
  jax.config.update('jax_enable_preemption_service', stops_itself)
  jax.distributed.initialize(
    cluster.coordinator,
    cluster.num_processes,
    cluster.process_id,
    cluster.local_device_ids,
    cluster_detection_method='deactivate',  # detection would give only one GPU to a Slurm task with a whole node
    initialization_timeout=timeout,
    heartbeat_timeout_seconds=int(2 * peers.SILENCE),  # `peers` is first, and names the process
  )
  if stops_itself:
    preemption.take_over()
  agreement.check_devices(jax.devices(), jax.process_count())  # before a collective, which needs equal devices


def leave(code: int) -> None:
  """Ends this process at once after a failure that the others may not share; a single process exits normally.

  At a normal exit jax waits up to five minutes for all processes, while these wait for this one in a collective. After
  an immediate exit they end within seconds, see `parallel.peers`.

  Args:
    code: exit code.
  """
  watched = peers.current()
  if watched is None:
    sys.exit(code)
  watched.leave(code, peers.GRACE)
  sys.stdout.flush()
  sys.stderr.flush()
  signals.exit_at_once(code)


def part() -> None:
  """Ends the communication of all processes, after which they can end together; waits until all call it."""
  if not is_single():
    _wait_for_devices()
  jax.distributed.shutdown()
  if watched := peers.current():
    watched.leave()


def _wait_for_devices() -> None:
  """Waits until every device of every process has finished what it was given.

  The functions here return with the result of the first local device. The others may still be connecting to those of
  other processes, by way of the service that a shutdown ends, and would then wait for ever.
  """
  mesh = Mesh(jax.devices(), ('all',))
  ones = jax.make_array_from_callback(
    (mesh.size,), NamedSharding(mesh, PartitionSpec('all')), lambda index: np.ones(1, np.int32)
  )
  total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(ones)
  jax.block_until_ready(total)  # on every local device


def _leave_on_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
  if watched := peers.current():
    watched.blame()
    watched.explain(f'{kind.__name__}: {errors.first_line(error)}')
  sys.__excepthook__(kind, error, traceback)
  leave(130 if issubclass(kind, KeyboardInterrupt) else 1)


def is_single() -> bool:
  """Returns whether the run has one process."""
  return not jax.distributed.is_initialized() or jax.process_count() == 1


def is_lead() -> bool:
  """Returns whether this is the lead: the process that writes logs and files."""
  return is_single() or jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits until every process has reached the barrier of that name."""
  if not is_single():
    multihost_utils.sync_global_devices(name)


def broadcast_from_lead(value: Any) -> Any:
  """Returns the lead's value in every process.

  Args:
    value: any JSON value; only the lead's is used.
  """
  if is_single():
    return value
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
  return json.loads(multihost_utils.broadcast_one_to_all(np.resize(text, size)).tobytes())


def least(value: int) -> int:
  """Returns the smallest value of all processes."""
  return value if is_single() else int(np.min(multihost_utils.process_allgather(np.int32(value))))


def sees_files_of_lead(folder: pathlib.Path) -> bool:
  """Returns whether this process sees the files of the lead in a folder, in which the lead can write."""
  probe = folder / f'.shared-{broadcast_from_lead(secrets.token_hex(4))}'
  if is_lead():
    probe.touch()
  barrier('dnt: the lead has written a probe')
  seen = probe.exists()
  barrier('dnt: all have looked for the probe')
  if is_lead():
    probe.unlink()
  return seen


def gather_from_all(value: Any) -> list[Any]:
  """Returns the values of all processes, in their order, in every process.

  Args:
    value: any JSON value.
  """
  if is_single():
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(text.size)).tolist()
  rows = multihost_utils.process_allgather(np.resize(text, max(sizes)))
  return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def agree(problem: Exception | None, kinds: Sequence[type[Exception]] = KINDS) -> Exception | None:
  """Returns the most severe problem of any process, in every process; None if no process has one.

  Args:
    problem: the problem of this process, of one of the kinds.
    kinds: types of errors, the most severe last.
  """
  if is_single():
    return problem
  severity = next((place for place, kind in enumerate(kinds, 1) if isinstance(problem, kind)), 0)
  found = gather_from_all([severity, str(problem)])
  process = max(range(len(found)), key=lambda number: found[number][0])
  most, text = found[process]
  return problem if severity == most else kinds[most - 1](f'process {process}: {text}')


def raise_any(problem: Exception | None) -> None:
  """Raises the most severe problem of any process, in every process, if there is one; see `agree`."""
  problem = agree(problem)
  if problem is not None:
    raise problem


def together(call: Callable[[], T]) -> T:
  """Calls a function in every process; an error of one is an error of all, or the others would wait for it.

  Raises:
    errors.InputError: the function has raised one in any process.
  """
  result, problem = None, None
  try:
    result = call()
  except errors.InputError as error:
    problem = error
  raise_any(problem)
  return cast(T, result)


def on_lead(call: Callable[[], T]) -> T:
  """Calls a function in the lead alone; its result, or its error, is that of every process.

  Args:
    call: returns a JSON value.

  Raises:
    errors.InputError: the function has raised one; or an errors.RunError likewise.
  """
  if is_single():
    return call()
  result, problem = None, None
  if is_lead():
    try:
      result = call()
    except KINDS as error:
      problem = error
  severity = next((place for place, kind in enumerate(KINDS, 1) if isinstance(problem, kind)), 0)
  result, severity, text = broadcast_from_lead([result, severity, str(problem)])
  if severity:
    raise problem or KINDS[severity - 1](f'process 0: {text}')
  return result


def check_equal(values: Mapping[str, Any]) -> None:
  """Checks that all processes have equal JSON values by name; every process calls it.

  Raises:
    agreement.DifferenceError: they do not; in every process.
  """
  agreement.check(gather_from_all(values))
