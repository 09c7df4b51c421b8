"""Loaders for a split that every device holds whole; the jitted program gathers each batch from it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dnt.data import order
from dnt.parallel import mesh as meshes

Arrays = dict[str, Any]


class _Placed:
  """A split on every device of a mesh, which need not exist before the first batch is read."""

  def __init__(self, images: np.ndarray, labels: np.ndarray, mesh: Mesh):
    self._host, self._sharding = {'image': images, 'label': labels}, meshes.replicated(mesh)
    self._arrays: Arrays = {}

  def shapes(self) -> Arrays:
    return meshes.shapes(self._host, self._sharding)

  def arrays(self) -> Arrays:
    if not self._arrays:
      self._arrays = meshes.place(self._host, self._sharding)
    return self._arrays

  def close(self) -> None:
    self._host, self._arrays = {}, {}


class TrainLoader:
  """Serves batches of an endless run through shuffled epochs; see `pipeline.make_train_loader`."""

  def __init__(self, images: np.ndarray, labels: np.ndarray, seed: int, batch_size: int, mesh: Mesh, views: int = 1):
    self._views = views  # views of each image; epoch e uses view e % views
    self._seed, self._batch_size, self._mesh, self._count = seed, batch_size, mesh, len(labels)
    # Enough epochs for one batch that starts at the last example of the first epoch: two, except for tiny data sets.
    self._epochs = max(2, -(-(self._count - 1 + batch_size) // self._count))
    self._data = _Placed(images, labels, mesh)
    self._epoch, self._order = -1, None

  def max_steps(self, step: int) -> int:
    first = step * self._batch_size % self._count
    return (self._epochs * self._count - first) // self._batch_size

  def shapes(self) -> Arrays:
    drawn = {'order': jax.ShapeDtypeStruct((self._epochs * self._count,), np.int32)}
    drawn['window'] = jax.ShapeDtypeStruct((3,), np.int32)
    return self._data.shapes() | meshes.shapes(drawn, meshes.replicated(self._mesh))

  def arrays(self, step: int, count: int) -> Arrays:
    if not 1 <= count <= self.max_steps(step):
      raise ValueError(f'steps {step} to {step + count} need more than {self._epochs} epochs of order')
    epoch, first = divmod(step * self._batch_size, self._count)
    if epoch != self._epoch:
      orders = [order.order(self._seed, e, self._count) for e in range(epoch, epoch + self._epochs)]
      self._epoch, self._order = epoch, meshes.place(np.concatenate(orders), meshes.replicated(self._mesh))
    window = meshes.place(np.array([step, epoch, first], np.int32), meshes.replicated(self._mesh))
    return self._data.arrays() | {'order': self._order, 'window': window}

  def batch_at(self, arrays: Arrays, step: jax.Array) -> dict[str, jax.Array]:
    start, epoch, first = arrays['window']
    # `place` counts from the first epoch of the window; counted from the start of the run it would overflow int32.
    place = (step - start) * self._batch_size + first + jnp.arange(self._batch_size)
    place = meshes.constrain_batch(place, self._mesh)
    index = arrays['order'].at[place].get(mode='promise_in_bounds')
    epoch = epoch + place // self._count
    view = index + epoch % self._views * self._count if self._views > 1 else index
    batch = {
      name: arrays[name].at[at].get(mode='promise_in_bounds') for name, at in (('image', view), ('label', index))
    }
    return batch | {'epoch': epoch, 'position': place % self._count}

  def close(self) -> None:
    self._order = None
    self._data.close()


class EvalLoader:
  """Serves the batches of one pass in the order of the split; see `pipeline.make_eval_loader`."""

  def __init__(self, images: np.ndarray, labels: np.ndarray, batch_size: int, mesh: Mesh):
    self._batch_size, self._mesh, self.count = batch_size, mesh, len(labels)
    self._data = _Placed(images, labels, mesh)
    self.steps = -(-self.count // batch_size)

  def max_steps(self, step: int) -> int:
    return self.steps - step

  def shapes(self) -> Arrays:
    return self._data.shapes()

  def arrays(self, step: int, count: int) -> Arrays:
    del step, count
    return self._data.arrays()

  def batch_at(self, arrays: Arrays, step: jax.Array) -> dict[str, jax.Array]:
    place = meshes.constrain_batch(step * self._batch_size + jnp.arange(self._batch_size), self._mesh)
    batch = {name: arrays[name].at[place].get(mode='fill', fill_value=0) for name in ('image', 'label')}
    return batch | {'mask': place < self.count}

  def close(self) -> None:
    self._data.close()
