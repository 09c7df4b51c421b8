"""Feeds that read and decode while the run goes on: grain worker processes, each process its own rows of a batch.

A batch is a function of its step alone, so a run goes on from its step and no iterator state is saved.
"""

import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dnt import errors
from dnt.data import examples, readers
from dnt.parallel import mesh as meshes

THREADS = 4  # that read ahead in the main process, when there are no workers
AHEAD = 2  # finished batches that wait in each worker

# Grain walks an endless run as a range; this is its end.
ENDLESS = 2**62
UNTOLD = 'ignore:resource_tracker:UserWarning'  # of the tracker's process, which is started with these options


class Batches:
  """This process' rows of each batch, read ahead by `workers` processes (0: by threads of this one).

  Args:
    reader: `index -> row`.
    steps: batches before it starts again; None: endless.
    workers: processes.
  """

  def __init__(self, reader: readers.TrainReader | readers.EvalReader, steps: int | None, workers: int):
    self._reader, self._steps, self._workers = reader, steps, workers
    self._iterator, self._next = None, None

  def at(self, step: int) -> dict[str, np.ndarray]:
    """The batch of a step: image uint8 [b, H, W, C], label int32 [b]; quickest when steps follow each other.

    Raises:
      errors.InputError: a picture that cannot be read; workers are ended.
      errors.RunError: a worker was killed.
    """
    if step != self._next:
      self.close()
      self._iterator = self._open(step)
    try:
      # Copied: grain frees the shared memory that a worker's batch lies in when its arrays go.
      batch = {name: np.array(value) for name, value in next(self._iterator).items()}
    except BaseException as error:
      self.close()
      message = str(error).partition('\n')[0]  # grain appends a note on its traceback
      if isinstance(error, errors.InputError):
        raise errors.InputError(message) from error
      if isinstance(error, RuntimeError) and 'Worker process' in message:  # killed, or out of (shared) memory
        raise errors.RunError(f'a worker process that reads data ended: {message}') from error
      raise
    self._next = step + 1 if self._steps is None else (step + 1) % self._steps
    return batch

  def close(self) -> None:
    """Ends the workers."""
    if self._iterator is not None:
      self._iterator.close()
    self._iterator, self._next = None, None

  def _open(self, step: int) -> Any:
    import grain
    from absl import flags

    # Grain's workers read absl flags, which a program that does not use absl never parses.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    # Where workers are stopped while they hand over a batch, its shared memory is left to the tracker of Python, which
    # frees it when the program ends: that is no news to be told after the line on what is wrong.
    if UNTOLD not in sys.warnoptions:
      sys.warnoptions.append(UNTOLD)
    rows = len(self._reader.rows)
    if self._steps is None:
      data = grain.MapDataset.range(step * rows, ENDLESS)
    else:  # around and around, so that the workers of an evaluation live until the next one
      data = grain.MapDataset.range(self._steps * rows).repeat().slice(slice(step * rows, None))
    threads = 0 if self._workers else THREADS
    return iter(
      data.map(self._reader)
      .batch(rows)
      .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
      .mp_prefetch(
        grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=AHEAD),
        worker_init_fn=readers.start_worker,
      )
    )


def local_rows(batch_size: int, mesh: Mesh) -> range:
  """The rows of a batch that lie on this process' devices; the mesh keeps them contiguous."""
  slices = meshes.batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
  bounds = [index[0].indices(batch_size)[:2] for index in slices]
  return range(min(start for start, _ in bounds), max(stop for _, stop in bounds))


class _Feed:
  """What both feeds share: one step an array, put on the devices of the mesh."""

  def __init__(self, batches: Batches, rows: range, batch_size: int, shape: tuple[int, int, int], mesh: Mesh):
    self._batches, self._rows, self._batch_size, self._shape = batches, rows, batch_size, shape
    self._sharding = meshes.batch_sharding(mesh)

  def _shapes(self, **others: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Of image, label and other arrays of one number an example, of which the dtypes are given."""
    dtypes = {'image': np.uint8, 'label': np.int32, **others}
    shapes = {name: self._shape if name == 'image' else () for name in dtypes}
    batch = {name: jax.ShapeDtypeStruct((self._batch_size, *shapes[name]), dtypes[name]) for name in dtypes}
    return meshes.shapes(batch, self._sharding)

  def _put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    def put(value):
      return jax.make_array_from_process_local_data(self._sharding, value, (self._batch_size, *value.shape[1:]))

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


class TrainFeed(_Feed):
  """Batches of an endless run through shuffled epochs; see `pipeline.make_train_feed`."""

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


class EvalFeed(_Feed):
  """Batches of one pass in the order of the split; see `pipeline.make_eval_feed`."""

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
    self._count = len(source)

  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    return self._shapes(mask=np.bool_)

  def arrays(self, step: int, count: int) -> dict[str, jax.Array]:
    del count
    return self._put(self._batches.at(step) | {'mask': self._places(step) < self._count})
