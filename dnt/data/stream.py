"""Loaders that read and decode images during the run, in grain worker processes.

Each process reads its rows of a batch. A batch is a function of its step alone, so a run resumes from its step and
checkpoints hold no iterator state.
"""

import errno
import functools
import logging
import shutil
import signal
import sys
from multiprocessing import spawn
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dnt import errors
from dnt.data import examples, readers
from dnt.parallel import mesh as meshes

THREADS = 4  # threads of the main process that read ahead, if there are no workers
AHEAD = 2  # finished batches that each worker buffers
SHARED_MEMORY = '/dev/shm'  # where workers leave their batches on Linux; Docker gives a container 64 MB of it
SHARE = 0.25  # fraction of the free shared memory that one loader may fill; other loaders and processes need some too
_SHORT = (errno.ENOSPC, errno.ENOSYS, errno.EROFS)  # what fails without shared memory, as semaphores do
_log = logging.getLogger(__name__)

# Grain reads an endless run as a range, which ends here.
ENDLESS = 2**62
_WORKER = 'grain-process-prefetch'  # beginning of the name of each of grain's worker processes
IGNORED = 'ignore:resource_tracker:UserWarning'  # warning option for the process of the resource tracker


class Batches:
  """Reads this process's rows of each batch ahead, in `workers` processes (0: in threads of this process).

  Args:
    reader: function `index -> row`.
    steps: number of batches before it starts again; None: endless.
    workers: number of worker processes.
  """

  def __init__(self, reader: readers.TrainReader | readers.EvalReader, steps: int | None, workers: int):
    self._reader, self._steps, self._workers = reader, steps, workers
    self._iterator, self._next = None, None
    self._shares: bool | None = None  # whether workers leave batches in shared memory; None: not known yet

  def at(self, step: int) -> dict[str, np.ndarray]:
    """Returns the batch of a step: image uint8 [b, H, W, C], label int32 [b]; fastest for consecutive steps.

    Raises:
      errors.InputError: an image cannot be read; the workers are stopped.
      errors.RunError: a worker was killed.
    """
    try:
      if step != self._next:
        self.close()
        self._iterator = self._open(step)
      assert self._iterator is not None  # `close` also forgets the next step
      # Copies the arrays: a worker's batch lies in shared memory, which grain frees together with its arrays.
      batch = {name: np.array(value) for name, value in next(self._iterator).items()}
    except BaseException as error:
      self.close()
      message = str(error).partition('\n')[0]  # grain appends a note about its traceback
      if isinstance(error, errors.InputError):
        raise errors.InputError(message) from error
      if self._workers and _lacks_shared_memory(error, message):
        _log.info(f'worker processes found no room in shared memory ({SHARED_MEMORY}); reading goes on without them')
        self._workers = 0
        return self.at(step)
      if isinstance(error, RuntimeError) and 'Worker process' in message:  # it was killed, or ran out of memory
        raise errors.RunError(f'a worker process that reads data has died: {message}') from error
      raise
    self._next = step + 1 if self._steps is None else (step + 1) % self._steps
    return batch

  def close(self) -> None:
    """Stops the workers."""
    if self._iterator is not None:
      self._iterator.close()
    self._iterator, self._next = None, None

  def _open(self, step: int) -> Any:
    import grain
    from absl import flags

    _keep_main_out_of_workers()
    # Grain's workers read absl flags, which programs without absl never parse.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    # If workers stop while they pass on a batch, Python's resource tracker frees its shared memory when the program
    # ends, and warns about it. We suppress the warning; it would only follow our own error message.
    if IGNORED not in sys.warnoptions:
      sys.warnoptions.append(IGNORED)
    rows = len(self._reader.rows)
    if self._steps is None:
      data = grain.MapDataset.range(step * rows, ENDLESS)
    else:  # repeats, so that the workers of one evaluation serve the next one too
      data = grain.MapDataset.range(self._steps * rows).repeat().slice(slice(step * rows, None))
    threads = 0 if self._workers else THREADS
    if self._workers and self._shares is None:
      self._shares = _has_room(sum(value.nbytes for value in self._reader(step * rows).values()) * rows, self._workers)
    data = data.map(self._reader).batch(rows)
    data = data.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    if self._workers and not self._shares:
      # All arrays are smaller than this, and therefore go through pipes.
      data = grain.experimental.WithOptionsIterDataset(data, grain.experimental.DatasetOptions(min_shm_size=2**62))
    return iter(
      data.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=AHEAD),
        worker_init_fn=readers.start_worker,
      )
    )


@functools.cache
def _keep_main_out_of_workers() -> None:
  """Keeps grain's workers from running the user's script, as every process does that Python spawns.

  A script that trains without looking at `__name__` would train in each worker too, and wait for ever for a worker that
  fails at that. Workers need nothing of it: what `__main__` defines is pickled by value.
  """
  prepare = spawn.get_preparation_data

  def without_main(name: str) -> dict[str, Any]:
    data = prepare(name)
    for key in ('init_main_from_name', 'init_main_from_path') if name.startswith(_WORKER) else ():
      data.pop(key, None)
    return data

  spawn.get_preparation_data = without_main  # ty: ignore[invalid-assignment]  # Python allows it


def _has_room(size: int, workers: int) -> bool:
  """Returns whether the batches that workers read ahead fit into shared memory; says so if they do not.

  Args:
    size: bytes of a batch.
    workers: number of worker processes.
  """
  try:
    free = shutil.disk_usage(SHARED_MEMORY).free
  except OSError:  # a system that keeps shared memory elsewhere
    return True
  # Of each worker: what it and the main process buffer, and the two batches between.
  needed = size * workers * (2 * AHEAD + 2)
  if needed <= SHARE * free:
    return True
  _log.info(
    f'{needed / 1e6:,.1f} MB of batches are too much for the {free / 1e6:,.1f} MB left in shared memory '
    f'({SHARED_MEMORY}), so worker processes pass them through pipes; more (docker run --shm-size) would be faster'
  )
  return False


def _lacks_shared_memory(error: BaseException, message: str) -> bool:
  """Returns whether worker processes failed for want of shared memory: it is full, read-only or missing."""
  if isinstance(error, OSError):
    return error.errno in _SHORT or (isinstance(error, PermissionError) and not error.filename)
  return isinstance(error, RuntimeError) and f'exit code {-signal.SIGBUS}.' in message


def local_rows(batch_size: int, mesh: Mesh) -> range:
  """Returns the range of a batch's rows on this process's devices, of which a mesh that is not there has none.

  The mesh keeps them contiguous.
  """
  slices = meshes.batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
  bounds = [index[0].indices(batch_size)[:2] for index in slices if index is not None]
  return range(min((start for start, _ in bounds), default=0), max((stop for _, stop in bounds), default=0))


class _Loader:
  """Base of both loaders: puts the arrays of one step at a time on the devices of the mesh."""

  def __init__(self, batches: Batches, rows: range, batch_size: int, shape: tuple[int, int, int], mesh: Mesh):
    self._batches, self._rows, self._batch_size, self._shape = batches, rows, batch_size, shape
    self._sharding = meshes.batch_sharding(mesh)

  def _shapes(self, **others: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of image, label and `others`: dtypes by name of arrays with one number per example."""
    dtypes = {'image': np.uint8, 'label': np.int32, **others}
    shapes = {name: self._shape if name == 'image' else () for name in dtypes}
    batch = {name: jax.ShapeDtypeStruct((self._batch_size, *shapes[name]), dtypes[name]) for name in dtypes}
    return meshes.shapes(batch, self._sharding)

  def _put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    def put(value):
      return jax.make_array_from_process_local_data(self._sharding, value, (self._batch_size, *value.shape[1:]))

    with jax.transfer_guard('allow'):
      return {name: put(np.asarray(value)) for name, value in batch.items()}

  def _places(self, step: int) -> np.ndarray:
    return step * self._batch_size + np.arange(self._rows.start, self._rows.stop)

  def max_steps(self, step: int) -> int:
    del step
    return 1

  def batch_at(self, arrays: dict[str, jax.Array], step: jax.Array) -> dict[str, jax.Array]:
    del step
    return arrays

  def close(self) -> None:
    self._batches.close()


class TrainLoader(_Loader):
  """Serves batches of an endless run through shuffled epochs; see `pipeline.make_train_loader`."""

  def __init__(
    self,
    source: examples.Examples,
    transform: readers.Transform,
    shape: tuple[int, int, int],
    seed: int,
    batch_size: int,
    mesh: Mesh,
    workers: int,
  ):
    rows = local_rows(batch_size, mesh)
    reader = readers.TrainReader(source, transform, batch_size, rows, seed)
    super().__init__(Batches(reader, None, workers), rows, batch_size, shape, mesh)
    self._count = len(source)

  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    return self._shapes(epoch=np.int32, position=np.int32)

  def arrays(self, step: int, count: int) -> dict[str, jax.Array]:
    del count
    epoch, position = (part.astype(np.int32) for part in np.divmod(self._places(step), self._count))
    return self._put(self._batches.at(step) | {'epoch': epoch, 'position': position})


class EvalLoader(_Loader):
  """Serves the batches of one pass in the order of the split; see `pipeline.make_eval_loader`."""

  def __init__(
    self,
    source: examples.Examples,
    transform: readers.Transform,
    shape: tuple[int, int, int],
    batch_size: int,
    mesh: Mesh,
    workers: int,
    drawn: tuple[int, int] | None = None,
  ):
    rows = local_rows(batch_size, mesh)
    self.steps = -(-len(source) // batch_size)
    reader = readers.EvalReader(source, transform, batch_size, rows, shape, drawn)
    super().__init__(Batches(reader, self.steps, workers), rows, batch_size, shape, mesh)
    self.count = len(source)

  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    return self._shapes(mask=np.bool_)

  def arrays(self, step: int, count: int) -> dict[str, jax.Array]:
    del count
    return self._put(self._batches.at(step) | {'mask': self._places(step) < self.count})
